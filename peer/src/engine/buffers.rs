//! Memory for pieces on their way from the network to the store.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds, over all tasks and neighbours, the bytes of pieces that have arrived in part, and keeps a few buffers for
/// the next ones, so that steady traffic does not fault in fresh pages for every piece.
#[derive(Clone, Debug)]
pub(crate) struct Buffers {
    budget: Arc<Semaphore>,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// One buffer, filled by a receiver, given back when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
    _permit: OwnedSemaphorePermit,
}

/// The budget counts in these units of bytes.
const UNIT: usize = 64 * 1024;
/// Buffers kept for later at most.
const SPARE_MAX: usize = 8;

impl Buffers {
    pub(crate) fn new(budget_bytes: usize) -> Self {
        Self { budget: Arc::new(Semaphore::new((budget_bytes / UNIT).max(64))), spare: Arc::default() }
    }

    /// A buffer of `len` bytes, zeroed or with old content; waits until the budget allows it.
    pub(crate) async fn take(&self, len: usize) -> Buffer {
        let units = u32::try_from(len.div_ceil(UNIT)).expect("a piece is at most 4 MiB");
        let permit = Arc::clone(&self.budget).acquire_many_owned(units).await.expect("the semaphore is never closed");
        let mut bytes = self.spare.lock().pop().unwrap_or_default();
        bytes.resize(len, 0);
        Buffer { bytes, spare: Arc::clone(&self.spare), _permit: permit }
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = self.spare.lock();
        if spare.len() < SPARE_MAX {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}
