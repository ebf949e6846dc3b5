//! A lock on the whole store: two databases beside one folder would each take for litter what only the other knows.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use crate::error::StoreError;

/// A predecessor that is just ending lets go within this time.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// Locks the folder; `None` where the filesystem cannot. The lock goes with the file.
pub(super) async fn lock(root: &Path, alone: bool) -> Result<Option<File>, StoreError> {
    let folder = File::open(root).map_err(|error| StoreError::io("open", root, error))?;
    let mut waited = Duration::ZERO;
    loop {
        match if alone { folder.try_lock() } else { folder.try_lock_shared() } {
            Ok(()) => return Ok(Some(folder)),
            Err(TryLockError::WouldBlock) if waited < PATIENCE => {
                tokio::time::sleep(PAUSE).await;
                waited += PAUSE;
            }
            Err(TryLockError::WouldBlock) => {
                let why = format!("another registry uses {}, with a database of its own", root.display());
                return Err(StoreError::Setup { why, source: None });
            }
            Err(TryLockError::Error(error)) => {
                // NFS does not lock folders.
                tracing::warn!(
                    folder = %root.display(), %error, "the store cannot be locked: nothing keeps another registry away"
                );
                return Ok(None);
            }
        }
    }
}
