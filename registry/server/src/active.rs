//! Uploads that are being sent right now, counted for each client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use oci::ErrorCode;
use parking_lot::Mutex;
use service::http::Peer;

use crate::config::UploadConfig;
use crate::http::Failure;

/// Counts them. Clients behind one address are one client; those on a socket file are not counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct ActiveUploads(Arc<Mutex<HashMap<IpAddr, u32>>>);

/// One upload that is being sent; it counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Active(Option<(ActiveUploads, IpAddr)>);

impl ActiveUploads {
    /// One more of this client.
    pub(crate) fn enter(&self, peer: Option<Peer>, config: &UploadConfig) -> Result<Active, Failure> {
        let Some(address) = peer.and_then(|peer| peer.ip()) else { return Ok(Active(None)) };
        let mut counts = self.0.lock();
        let count = counts.entry(address).or_insert(0);
        if *count >= config.max_active_per_client {
            let message = "this client sends too many uploads at a time";
            return Err(Failure::later(429, ErrorCode::TooManyRequests, message, Duration::from_secs(1)));
        }
        *count += 1;
        Ok(Active(Some((self.clone(), address))))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let Some((active, address)) = &self.0 else { return };
        let mut counts = active.0.lock();
        if let Some(count) = counts.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(address);
            }
        }
    }
}
