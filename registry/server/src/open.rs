//! Unfinished uploads of which something is kept, as they were counted a moment ago.
//!
//! It is counted exactly when the first bytes of an upload are kept; this here tells most clients before they send any.

use std::time::Duration;

use oci::ErrorCode;
use parking_lot::RwLock;

use crate::client::Client;
use crate::config::UploadConfig;
use crate::http::Failure;

/// They are counted more often than that.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The last count.
#[derive(Debug, Default)]
pub(crate) struct OpenUploads(RwLock<db::OpenUploads>);

impl OpenUploads {
    /// They were counted.
    pub(crate) fn counted(&self, open: db::OpenUploads) {
        *self.0.write() = open;
    }

    /// Whether this client may begin one more.
    pub(crate) fn has_room(&self, client: Option<Client>, config: &UploadConfig) -> Result<(), Failure> {
        let open = self.0.read();
        if open.count >= config.max_open {
            return Err(too_many("there are too many unfinished uploads"));
        }
        // Hardly ever is anybody full.
        let is_full = |client: Client| !open.full.is_empty() && open.full.contains(&client.to_string());
        if client.is_some_and(is_full) {
            return Err(too_many_of_client());
        }
        Ok(())
    }
}

/// This client may not have one more.
pub(crate) fn too_many_of_client() -> Failure {
    too_many("this client has too many unfinished uploads; cancel some, or wait until they are forgotten")
}

fn too_many(message: &str) -> Failure {
    Failure::later(429, ErrorCode::TooManyRequests, message, RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_room() {
        let client = |address: &str| Some(Client::at(address.parse().unwrap()));
        let config = UploadConfig { max_open: 10, ..UploadConfig::default() };
        let open = OpenUploads::default();
        open.has_room(client("192.0.2.1"), &config).unwrap();
        open.counted(db::OpenUploads { count: 9, full: ["192.0.2.1".to_owned()].into() });
        open.has_room(client("192.0.2.1"), &config).unwrap_err();
        open.has_room(client("192.0.2.2"), &config).unwrap();
        open.has_room(None, &config).unwrap();
        open.counted(db::OpenUploads { count: 10, ..db::OpenUploads::default() });
        open.has_room(None, &config).unwrap_err();
    }
}
