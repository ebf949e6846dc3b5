//! Uploads that are being sent right now, counted for each client.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use oci::ErrorCode;
use parking_lot::Mutex;

use crate::client::Client;
use crate::config::UploadConfig;
use crate::http::Failure;

/// Counts them.
#[derive(Clone, Debug, Default)]
pub(crate) struct ActiveUploads(Arc<Mutex<HashMap<Client, u32>>>);

/// One upload that is being sent; it counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Active(Option<(ActiveUploads, Client)>);

impl ActiveUploads {
    /// One more of this client.
    pub(crate) fn enter(&self, client: Option<Client>, config: &UploadConfig) -> Result<Active, Failure> {
        let Some(client) = client else { return Ok(Active(None)) };
        let mut counts = self.0.lock();
        let count = counts.entry(client).or_insert(0);
        if *count >= config.max_active_per_client {
            let message = "this client sends too many uploads at a time";
            return Err(Failure::later(429, ErrorCode::TooManyRequests, message, Duration::from_secs(1)));
        }
        *count += 1;
        Ok(Active(Some((self.clone(), client))))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let Some((active, client)) = &self.0 else { return };
        let mut counts = active.0.lock();
        if let Some(count) = counts.get_mut(client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(client);
            }
        }
    }
}
