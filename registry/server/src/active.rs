//! What is going on right now, counted for each client.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use oci::ErrorCode;
use parking_lot::Mutex;

use crate::client::Client;
use crate::config::UploadConfig;
use crate::http::Failure;

/// Counts things of one sort.
#[derive(Clone, Debug, Default)]
pub(crate) struct PerClient(Arc<Mutex<HashMap<Client, u32>>>);

/// Counts uploads that are being sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct ActiveUploads(PerClient);

/// One of what is counted, until it is dropped.
#[derive(Debug)]
pub(crate) struct Active(Option<(PerClient, Client)>);

impl PerClient {
    /// One more of this client, if it has fewer than `max`.
    pub(crate) fn enter(&self, client: Option<Client>, max: u32) -> Option<Active> {
        let Some(client) = client else { return Some(Active(None)) };
        let mut counts = self.0.lock();
        let count = counts.get(&client).copied().unwrap_or(0);
        if count >= max {
            return None;
        }
        counts.insert(client, count + 1);
        Some(Active(Some((self.clone(), client))))
    }
}

impl ActiveUploads {
    /// One more of this client.
    pub(crate) fn enter(&self, client: Option<Client>, config: &UploadConfig) -> Result<Active, Failure> {
        self.0.enter(client, config.max_active_per_client).ok_or_else(|| {
            let message = "this client sends too many uploads at a time";
            Failure::later(429, ErrorCode::TooManyRequests, message, Duration::from_secs(1))
        })
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
