//! A task as its user sees it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::HeaderMap;
use proto::{ByteRange, Generation, TaskId};

use super::error::TaskError;
use super::reader::TaskReader;
use super::shared::Shared;
use crate::store::{Export, Exported};

/// An open task. When its last handle is dropped before it is complete, its download stops soon after.
#[derive(Clone, Debug)]
pub struct Task {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    info: TaskInfo,
    number: u64,
}

/// What is known of a task when it is opened.
#[derive(Clone, Debug)]
pub struct TaskInfo {
    /// Its id.
    pub task: TaskId,
    /// Its generation.
    pub generation: Generation,
    /// Length of the content in bytes, when it is known already.
    pub length: Option<u64>,
    /// The origin's headers that describe the content.
    pub headers: HeaderMap,
    /// It was fetched with credentials: each caller had to prove its own.
    pub guarded: bool,
    /// It was whole in the store.
    pub from_cache: bool,
}

/// How far a task is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Verified bytes that are here.
    pub bytes: u64,
    /// Of them, received from other hosts.
    pub from_peers: u64,
    /// Of them, read from the origin by this host.
    pub from_origin: u64,
    /// Of them, here before.
    pub from_cache: u64,
}

impl Task {
    /// With this user's own rate, in bytes per second.
    pub(crate) fn new(shared: Arc<Shared>, rate: Option<u64>) -> Self {
        let info = TaskInfo {
            task: shared.task,
            generation: shared.generation,
            length: shared.layout().length(),
            headers: shared.client_headers(),
            guarded: shared.content.guarded(),
            from_cache: matches!(shared.ended(), Some(Ok(()))),
        };
        let number = shared.handle_added(rate);
        Self { handle: Arc::new(Handle { shared, info, number }) }
    }

    /// What is known of it.
    #[must_use]
    pub fn info(&self) -> &TaskInfo {
        &self.handle.info
    }

    /// Length of the content in bytes, as soon as it is known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.handle.shared.layout().length()
    }

    /// Verified bytes in order, of the whole or of a range.
    #[must_use]
    pub fn reader(&self, range: Option<ByteRange>) -> TaskReader {
        TaskReader::new(Arc::clone(&self.handle.shared), range)
    }

    /// Waits until everything is here and right; gives the length in bytes.
    ///
    /// # Errors
    /// When the task failed.
    pub async fn complete(&self) -> Result<u64, TaskError> {
        let mut status = self.handle.shared.status();
        loop {
            if let Some(end) = status.borrow_and_update().end.clone() {
                end?;
                return Ok(self.length().unwrap_or_default());
            }
            status.changed().await.map_err(|_| TaskError::stopping())?;
        }
    }

    /// Waits for any change: a piece, the length, the end.
    pub async fn changed(&self) {
        let mut status = self.handle.shared.status();
        status.mark_unchanged();
        // An error means the node is stopping, which is a change too.
        let _ = status.changed().await;
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let counters = &self.handle.shared.counters;
        let from_peers = counters.from_peers.load(Ordering::Relaxed);
        let from_origin = counters.from_origin.load(Ordering::Relaxed);
        let from_cache = counters.from_cache.load(Ordering::Relaxed);
        if self.handle.info.from_cache {
            // However it once came here: for this caller it was here.
            let bytes = from_peers + from_origin + from_cache;
            return Progress { bytes, from_peers: 0, from_origin: 0, from_cache: bytes };
        }
        Progress { bytes: from_peers + from_origin + from_cache, from_peers, from_origin, from_cache }
    }

    /// Gives this user of the task a download limit of its own, in bytes per second; `None` lifts it. A task that several
    /// use comes as fast as the fastest of them wants it.
    pub fn set_rate(&self, bytes_per_s: Option<u64>) {
        self.handle.shared.set_rate_of(self.handle.number, bytes_per_s);
    }

    /// Writes the complete content, or a range of it, to a file.
    ///
    /// # Errors
    /// When the output cannot be written; an existing file is untouched then.
    pub async fn export(&self, range: Option<ByteRange>, output: &Path, how: Export) -> Result<Exported, TaskError> {
        let content = Arc::clone(&self.handle.shared.content);
        let output: PathBuf = output.to_owned();
        tokio::task::spawn_blocking(move || content.export(range, &output, how))
            .await
            .map_err(|_| TaskError::stopping())?
            .map_err(TaskError::from)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.handle_dropped(self.number);
    }
}
