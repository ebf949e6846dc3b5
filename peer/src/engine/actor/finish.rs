//! The end of a task: the digest over the whole, the root, the finished row; or its failure.

use std::sync::Arc;

use proto::{ByteRange, DigestHasher, Kind, PieceIndex, root_of};
use tracing::{debug, info, warn};

use super::super::error::TaskError;
use super::super::seed::News;
use super::super::shared::Shared;
use super::{Actor, Event};

/// Bytes hashed in one go, off the runtime's threads.
const DIGEST_STEP_BYTES: u64 = 4 * 1024 * 1024;
/// Read buffer of the digest pass, in bytes: stays in the cache.
const READ_BYTES: usize = 256 * 1024;

impl Actor {
    /// A piece came, or the length did: perhaps that was the last thing missing.
    pub(super) fn after_store(&mut self) {
        if self.finishing || self.shared.ended().is_some() {
            return;
        }
        let status = self.shared.status();
        if !status.borrow().digest_checked && !std::mem::replace(&mut self.digest_running, true) {
            let shared = Arc::clone(&self.shared);
            let cancel = self.inner.cancel.clone();
            self.inner.tracker.spawn(async move {
                tokio::select! {
                    result = digest_pass(&shared) => {
                        let _ = shared.events.send(Event::DigestChecked(result)).await;
                    }
                    () = cancel.cancelled() => {}
                }
            });
        }
        let Some(count) = self.shared.layout().count() else { return };
        if self.shared.content.have().len() < count || !status.borrow().digest_checked {
            return;
        }
        let Some(root) = self.shared.all_expected().and_then(|hashes| root_of(self.shared.layout(), &hashes)) else {
            return;
        };
        if !self.shared.set_root(root) {
            return self.discard("the pieces do not add up to the root that was told");
        }
        self.finishing = true;
        let length = self.shared.layout().length().expect("a count needs a length");
        info!(task = ?self.shared.task, length, "task is complete");
        self.news(News::Complete { length, root });
        // Readers need not wait for the disk: until the finished row stands, a crash only costs another hashing.
        self.shared.end(Ok(()));
        self.tell_progress();
        if !self.inner.is_seed() {
            // Two hosts that listened to each other for ever would keep each other's contents in use.
            self.want_nothing();
        }
        let shared = Arc::clone(&self.shared);
        let delay = self.inner.config.durable_after;
        let cancel = self.inner.cancel.clone();
        self.inner.tracker.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                // Not durable is not lost: the next process hashes it again.
                () = cancel.cancelled() => return,
            }
            let content = Arc::clone(&shared.content);
            let finished = tokio::task::spawn_blocking(move || content.finish(root).map_err(TaskError::from));
            let result = finished.await.unwrap_or_else(|_| Err(TaskError::stopping()));
            let _ = shared.events.send(Event::Finished(result)).await;
        });
    }

    pub(super) fn finished(&mut self, result: Result<(), TaskError>) {
        self.finishing = false;
        if let Err(error) = result {
            warn!(task = ?self.shared.task, %error, "the finished content could not be made durable");
            // Another try must not find this task and take it for whole.
            self.inner.tasks.remove(&self.shared);
            self.shared.end_badly(error);
        }
        self.look_whether_wanted();
    }

    pub(super) fn digest_checked(&mut self, result: Result<(), TaskError>) {
        self.digest_running = false;
        match result {
            Ok(()) => {
                self.shared.set_digest_checked();
                self.after_store();
            }
            Err(error) if error.kind() == Kind::Corrupt => {
                self.inner.metrics.corrupt_tasks.inc();
                self.condemn(error);
            }
            Err(error) => self.fail(error),
        }
    }

    /// Ends the task without its content. What is stored stays for another try.
    pub(super) fn fail(&mut self, error: TaskError) {
        if self.finishing && self.shared.ended().is_none() {
            // It is being thrown away: that is what its readers hear, once it is gone.
            return debug!(task = ?self.shared.task, %error, "a task that is being discarded failed as well");
        }
        self.want_nothing();
        if self.shared.ended().is_none() {
            warn!(task = ?self.shared.task, kind = %error.kind(), %error, "task failed");
            self.news(News::Failed { error: error.clone(), credentials_refused: false, waits: false });
            self.close_at_supernode();
            self.shared.end(Err(error));
        }
        self.origin.stop();
        self.look_whether_wanted();
    }

    /// Throws the content away: it is wrong.
    pub(super) fn discard(&mut self, reason: &str) {
        self.condemn(TaskError::discarded(reason));
    }

    /// Removes wrong content, and only then says that the task failed: whoever tries again must not find it.
    pub(super) fn condemn(&mut self, error: TaskError) {
        if std::mem::replace(&mut self.finishing, true) && self.shared.ended().is_none() {
            return;
        }
        self.origin.stop();
        self.want_nothing();
        self.tell_gone();
        let (inner, shared) = (Arc::clone(&self.inner), Arc::clone(&self.shared));
        self.inner.tracker.spawn_blocking(move || {
            if let Err(error) = shared.content.condemn(&error.to_string()) {
                warn!(task = ?shared.task, %error, "wrong content could not be removed");
            }
            inner.tasks.remove(&shared);
            let _ = shared.events.blocking_send(Event::Condemned(error));
        });
    }

    pub(super) fn condemned(&mut self, error: TaskError) {
        self.finishing = false;
        self.news(News::Corrupt { error: error.clone() });
        self.close_at_supernode();
        self.shared.end_badly(error.clone());
        self.fail(error);
    }

    /// Before anybody hears of a failure: a supernode's answer to this task must not be taken for one to the next try.
    fn close_at_supernode(&self) {
        if let Some(cluster) = &self.inner.cluster {
            cluster.close(self.shared.task, &self.shared.events, false);
        }
    }
}

/// Hashes the content in order as it comes, and compares with the digest that was asked for.
async fn digest_pass(shared: &Arc<Shared>) -> Result<(), TaskError> {
    let Some(digest) = shared.content.digest().cloned() else { return Ok(()) };
    let mut status = shared.status();
    let mut hasher = digest.algorithm().hasher();
    let mut at = 0;
    loop {
        // Seen before the looking: what changes while the pieces are hashed must wake this up again.
        let ended = status.borrow_and_update().end.is_some();
        let layout = shared.layout();
        let frontier = shared.content.have().first_absent(PieceIndex(0));
        let here = u64::from(frontier.0) * u64::from(layout.piece_len());
        let here = layout.length().map_or(here, |length| here.min(length));
        while at < here {
            let range = ByteRange::new(at, here.min(at + DIGEST_STEP_BYTES)).expect("at is before here");
            hasher = hash_range(shared, hasher, range).await?;
            at = range.end();
        }
        if layout.length() == Some(at) {
            break;
        }
        if ended {
            return Err(TaskError::new(Kind::Unavailable, "the task ended before its digest was known"));
        }
        // The sender lives in `shared`, so this fails only when there is nobody left to tell.
        let _ = status.changed().await;
    }
    let found = hasher.finish();
    if found == digest {
        Ok(())
    } else {
        warn!(task = ?shared.task, expected = %digest, %found, "the content has another digest");
        Err(TaskError::new(Kind::Corrupt, format!("the content's digest is {found}, not {digest}")))
    }
}

async fn hash_range(
    shared: &Arc<Shared>,
    mut hasher: DigestHasher,
    range: ByteRange,
) -> Result<DigestHasher, TaskError> {
    let shared = Arc::clone(shared);
    tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; READ_BYTES];
        let mut at = range.start();
        while at < range.end() {
            let step = READ_BYTES.min(usize::try_from(range.end() - at).unwrap_or(READ_BYTES));
            let count = shared.content.read(at, &mut buffer[..step])?;
            if count == 0 {
                return Err(TaskError::new(Kind::Internal, "a stored piece ends too early"));
            }
            hasher.update(&buffer[..count]);
            at += count as u64;
        }
        Ok(hasher)
    })
    .await
    .map_err(|_| TaskError::stopping())?
}
