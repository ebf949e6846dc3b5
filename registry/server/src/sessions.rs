//! Uploads that a request of this process works on: one at a time.
//!
//! What a request has read of an upload must stay true until it is done, or it would overwrite what another was told is kept. Between
//! processes the version of the upload's row sees to that.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use blobs::StoreError;
use oci::upload::UploadId;
use parking_lot::Mutex;

/// A request that was just broken off may still be at its last bytes; so often is it asked for.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(25);

/// Which uploads are worked on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions(Arc<Mutex<HashSet<UploadId>>>);

/// The upload is this request's until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    sessions: Sessions,
    id: UploadId,
}

impl Sessions {
    /// Waits half a second at most for another request to end.
    ///
    /// # Errors
    /// `Busy` when it does not.
    pub(crate) async fn hold(&self, id: UploadId) -> Result<Held, StoreError> {
        for tried in 1..=TRIES {
            if self.0.lock().insert(id) {
                return Ok(Held { sessions: self.clone(), id });
            }
            if tried < TRIES {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Err(StoreError::Busy)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.sessions.0.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_request_at_a_time() {
        let sessions = Sessions::default();
        let (one, other) = (UploadId::new(1, [1; 10]), UploadId::new(1, [2; 10]));
        let held = sessions.hold(one).await.unwrap();
        assert!(sessions.hold(other).await.is_ok());
        assert!(matches!(sessions.hold(one).await, Err(StoreError::Busy)));
        let waits = tokio::spawn({
            let sessions = sessions.clone();
            async move { sessions.hold(one).await.is_ok() }
        });
        tokio::task::yield_now().await;
        drop(held);
        assert!(waits.await.unwrap());
        assert!(sessions.0.lock().is_empty());
    }
}
