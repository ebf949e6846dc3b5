//! Reading a task's verified bytes in order while the rest is still coming.

use std::sync::Arc;

use bytes::Bytes;
use proto::{ByteRange, Kind, PieceIndex};
use tokio::sync::watch;

use super::error::TaskError;
use super::shared::{Shared, Status};
use crate::store::StoreError;

/// Bytes handed out at once at most.
const CHUNK_BYTES: u64 = 1024 * 1024;

/// Verified bytes of a task in order. Dropping it gives the task back its freedom to fetch in any order.
#[derive(Debug)]
pub struct TaskReader {
    shared: Arc<Shared>,
    status: watch::Receiver<Status>,
    id: u64,
    at: u64,
    end: Option<u64>,
}

impl TaskReader {
    pub(crate) fn new(shared: Arc<Shared>, range: Option<ByteRange>) -> Self {
        let at = range.map_or(0, ByteRange::start);
        let id = shared.reader_joined(shared.layout().piece_at(at));
        Self { status: shared.status(), id, at, end: range.map(ByteRange::end), shared }
    }

    /// The next bytes; `None` at the end. An error when the rest cannot come: the bytes so far are right, but the
    /// body must not look complete to whoever receives it.
    ///
    /// # Errors
    /// When the task failed, or a stored piece cannot be read.
    pub async fn next(&mut self) -> Option<Result<Bytes, TaskError>> {
        loop {
            let status = self.status.borrow_and_update().clone();
            let length = self.shared.layout().length();
            let end = match (self.end, length) {
                (Some(end), Some(length)) => Some(end.min(length)),
                (end, length) => end.or(length),
            };
            if end.is_some_and(|end| self.at >= end) {
                return None;
            }
            let ready = self.ready_until(&status, end);
            if ready > self.at {
                return Some(self.read(ready.min(self.at + CHUNK_BYTES)).await);
            }
            match status.end {
                None => {}
                Some(Err(error)) => return Some(Err(error)),
                // All was here, and is not any more.
                Some(Ok(())) => {
                    let error = self.shared.content.check_intact().err().unwrap_or(StoreError::Discarded);
                    return Some(Err(error.into()));
                }
            }
            if self.status.changed().await.is_err() {
                return Some(Err(TaskError::stopping()));
            }
        }
    }

    /// How far from here on the content may be handed out.
    fn ready_until(&self, status: &Status, end: Option<u64>) -> u64 {
        let layout = self.shared.layout();
        let piece_len = u64::from(layout.piece_len());
        let absent = self.shared.content.have().first_absent(layout.piece_at(self.at));
        let mut ready = u64::from(absent.0) * piece_len;
        if let Some(length) = layout.length() {
            ready = ready.min(length);
        }
        if !status.digest_checked {
            // The last piece is held back until the whole is known to be right; while the length is unknown, any
            // piece may be the last.
            let last = match layout.count() {
                Some(count) => PieceIndex(count.saturating_sub(1)),
                None => PieceIndex(absent.0.saturating_sub(1)),
            };
            ready = ready.min(u64::from(last.0) * piece_len);
        }
        end.map_or(ready, |end| ready.min(end))
    }

    async fn read(&mut self, until: u64) -> Result<Bytes, TaskError> {
        let (shared, at) = (Arc::clone(&self.shared), self.at);
        let len = usize::try_from(until - at).expect("at most a chunk");
        let bytes = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; len];
            let mut filled = 0;
            while filled < len {
                match shared.content.read(at + filled as u64, &mut buffer[filled..])? {
                    0 => return Err(TaskError::new(Kind::Internal, "a stored piece ends too early")),
                    count => filled += count,
                }
            }
            Ok(Bytes::from(buffer))
        })
        .await
        .map_err(|_| TaskError::stopping())??;
        self.at = until;
        self.shared.reader_moved(self.id, self.shared.layout().piece_at(until));
        Ok(bytes)
    }
}

impl Drop for TaskReader {
    fn drop(&mut self) {
        self.shared.reader_left(self.id);
    }
}
