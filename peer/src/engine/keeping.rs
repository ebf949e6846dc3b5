//! What the engine does with its store: off the runtime's threads, and with room made where it lacks.

use std::sync::Arc;
use std::time::Duration;

use proto::{Generation, Kind, TaskId, TaskSpec, wire};
use tracing::{debug, info};

use super::actor::Event;
use super::error::TaskError;
use super::shared::Shared;
use super::{Inner, seed};
use crate::store::{Content, NewTask, StoreError};

/// How often a content that did not fit is tried again while others are let go, and the wait between.
const ROOM_TRIES: u32 = 400;
const ROOM_WAIT: Duration = Duration::from_millis(25);

impl Inner {
    pub(super) async fn stored(
        &self,
        task: TaskId,
        generation: Option<Generation>,
    ) -> Result<Option<Arc<Content>>, TaskError> {
        let store = self.store.clone();
        blocking(move || store.get(task, generation).map_err(TaskError::from)).await
    }

    /// A new content, or the one that is there, if it is cut into the same pieces: pieces of one number have to be the
    /// same pieces everywhere.
    pub(super) async fn create(self: &Arc<Self>, new: NewTask) -> Result<Arc<Content>, TaskError> {
        let inner = Arc::clone(self);
        blocking(move || {
            let store = &inner.store;
            let (task, generation, layout) = (new.task, new.generation, new.layout);
            let mut content = inner.with_room(|| store.create(new.clone()))?;
            if !content.layout().agrees(layout) {
                info!(?task, "what is here is cut in another way and fetched anew");
                content.discard()?;
                content = inner.with_room(|| store.create(new.clone()))?;
            }
            // An empty content is whole as soon as it is made: no piece comes whose arrival would have it checked.
            if content.layout().length() == Some(0)
                && let Some(expected) = content.digest()
                && expected.algorithm().hasher().finish() != *expected
            {
                let message = format!("the content is empty, and so does not have the digest {expected}");
                store.condemn(task, generation, &message)?;
                return Err(TaskError::new(Kind::Corrupt, message));
            }
            Ok(content)
        })
        .await
    }

    pub(super) async fn create_from_meta(
        self: &Arc<Self>,
        spec: &TaskSpec,
        meta: &wire::TaskMeta,
    ) -> Result<Arc<Content>, TaskError> {
        let (generation, layout) = seed::checked_meta(meta)?;
        // Where it really came from, not where this caller would have it from.
        let origin = meta.spec.clone().and_then(|told| TaskSpec::try_from(told).ok());
        self.create(NewTask {
            task: spec.id(),
            generation,
            layout,
            digest: spec.digest.clone(),
            guarded: meta.guarded,
            headers: meta.headers.iter().map(|header| (header.name.clone(), header.value.to_vec())).collect(),
            spec: seed::without_secrets(origin.as_ref().unwrap_or(spec)),
            confirmed: false,
        })
        .await
    }

    /// Stores something. When there is no room, contents that only neighbours use are let go, so that the store may
    /// evict them. Blocks.
    pub(super) fn with_room<T>(&self, mut attempt: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut tries = 0;
        loop {
            match attempt() {
                Err(StoreError::NoSpace { .. }) if tries < ROOM_TRIES && self.let_go() => {
                    tries += 1;
                    std::thread::sleep(ROOM_WAIT);
                }
                result => return result,
            }
        }
    }

    /// Asks the actors of all tasks that no user of this host wants to leave; false when there are none.
    fn let_go(&self) -> bool {
        let mut some = false;
        self.tasks.for_each(|shared| {
            if !shared.is_wanted() {
                some = true;
                let _ = shared.events.try_send(Event::MakeRoom);
            }
        });
        some
    }

    pub(super) async fn inventory(&self) -> Vec<wire::inventory::Item> {
        let store = self.store.clone();
        let entries = blocking(move || Ok(store.inventory())).await.unwrap_or_default();
        entries
            .into_iter()
            .map(|entry| wire::inventory::Item {
                task_id: entry.task.to_bytes().to_vec().into(),
                generation: entry.generation.to_bytes().to_vec().into(),
                complete: entry.complete,
                pieces: entry.pieces,
                downloading: self
                    .tasks
                    .get((entry.task, entry.generation))
                    .is_some_and(|shared| shared.ended().is_none()),
            })
            .collect()
    }

    pub(super) fn discard(self: &Arc<Self>, task: TaskId, generation: Generation, reason: &str) {
        let (inner, reason) = (Arc::clone(self), reason.to_owned());
        self.tracker.spawn(async move {
            if let Some(shared) = inner.tasks.get((task, generation))
                && shared.events.send(Event::Discard { reason: reason.clone() }).await.is_ok()
            {
                return;
            }
            inner.condemn_stored(task, generation, &reason);
        });
    }

    /// Hashes a content again, of which a neighbour says that a bad piece came from it, and throws it away if so. One
    /// at a time, and the same one not again for a while: whoever accuses costs this host no more than that.
    pub(super) fn verify(self: &Arc<Self>, task: TaskId, generation: Generation) {
        let Some(turn) = self.verifications.begin((task, generation)) else { return };
        let inner = Arc::clone(self);
        self.tracker.spawn_blocking(move || {
            let _turn = turn;
            match inner.store.verify(task, generation) {
                Ok(true) => debug!(?task, "a content that was complained of is right"),
                Ok(false) => {
                    tracing::error!(
                        ?task,
                        "this host's own copy is spoilt, and is thrown away: its disk or memory may be failing"
                    );
                    inner.metrics.spoilt_tasks.inc();
                    inner.discard(task, generation, "this host's copy was spoilt");
                }
                Err(error) => tracing::warn!(?task, %error, "a content that was complained of cannot be checked"),
            }
        });
    }

    /// Throws away what nobody uses, or somebody is just opening.
    pub(super) fn condemn_stored(&self, task: TaskId, generation: Generation, why: &str) {
        let (store, why) = (self.store.clone(), TaskError::discarded(why).to_string());
        self.tracker.spawn_blocking(move || {
            if let Err(error) = store.condemn(task, generation, &why) {
                tracing::warn!(?task, %error, "wrong content could not be removed");
            }
        });
    }

    /// Whether a task's content is still what was checked. If another program wrote to it, or it was thrown away, the
    /// task is over: the next one begins with what the store makes of it.
    pub(super) fn is_intact(&self, shared: &Arc<Shared>) -> bool {
        let Err(error) = shared.content.check_intact() else { return true };
        tracing::warn!(task = ?shared.task, %error, "a content in use cannot be used any more");
        self.tasks.remove(shared);
        if matches!(shared.ended(), Some(Ok(()))) {
            shared.end_badly(error.into());
        }
        false
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| TaskError::stopping())?
}
