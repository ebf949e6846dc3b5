//! Our own seed: started for tasks nobody has, its news turned into what the scheduler and the hosts are told.

use peer::engine::{Known, News, SeedRequest};
use proto::frame::HASHES_PER_MESSAGE_MAX;
use proto::{HostId, TaskId, wire};
use swarm::SchedulerEvent;
use tracing::{debug, info, warn};

use super::{Manager, State};

impl Manager {
    pub(super) fn start_seed(
        &self,
        state: &mut State,
        task: TaskId,
        on_behalf_of: HostId,
        holders: Vec<wire::HostInfo>,
    ) {
        let Some(entry) = state.tasks.get_mut(&task) else { return };
        let (spec, headers) = entry.caller(on_behalf_of);
        if entry.seeding {
            // It waits for credentials that the origin accepts.
            debug!(?task, "the seed goes on with another caller's credentials");
            self.inner.engine.seed_credentials(task, &headers);
            return;
        }
        entry.seeding = true;
        let request = SeedRequest { spec, headers, holders, known: entry.known.clone() };
        let manager = self.clone();
        self.inner.tracker.spawn(async move {
            let mut news = manager.inner.engine.seed(request);
            loop {
                let item = tokio::select! {
                    item = news.recv() => item,
                    () = manager.inner.cancel.cancelled() => None,
                };
                let Some(item) = item else { break };
                if manager.seed_learned(task, on_behalf_of, item) {
                    break;
                }
            }
            if let Some(entry) = manager.inner.state.lock().tasks.get_mut(&task) {
                entry.seeding = false;
            }
        });
    }

    /// Takes a seed's news; true when it was the last.
    fn seed_learned(&self, task: TaskId, on_behalf_of: HostId, news: News) -> bool {
        let mut state = self.inner.state.lock();
        let state = &mut *state;
        let Some(entry) = state.tasks.get_mut(&task) else { return true };
        match news {
            News::Opened { meta } => {
                let meta = *meta;
                let Ok((_, generation)) = meta.key() else { return true };
                let complete = !meta.root.is_empty();
                let pieces = meta.layout().ok().and_then(proto::PieceLayout::count);
                info!(?task, length = meta.length, complete, "the seed opened a task");
                entry.opened_as(meta.clone());
                if complete {
                    entry.root = meta.checked_root().ok().flatten();
                }
                if let Some(known) = entry.known.take().filter(|known| known.meta.generation == meta.generation) {
                    entry.add_hashes(0, &known.hashes);
                }
                self.tell_siblings(wire::task_news::Body::Meta(meta));
                self.handle(state, SchedulerEvent::SeedOpened { task, generation, complete, pieces });
                false
            }
            News::Hashes { first, hashes } => {
                entry.add_hashes(first, &hashes);
                let generation = entry.meta.as_ref().map(|meta| meta.generation.clone()).unwrap_or_default();
                let told = wire::NewHashes {
                    task_id: task.to_bytes().to_vec().into(),
                    generation,
                    hashes: Some(wire::PieceHashes::from_hashes(first, &hashes)),
                    length: None,
                    root: Default::default(),
                };
                self.tell_siblings(wire::task_news::Body::Hashes(told));
                state.dirty.push(task);
                false
            }
            News::Length { length } => {
                if let Some(meta) = &mut entry.meta {
                    meta.length = Some(length);
                    let meta = meta.clone();
                    self.tell_siblings(wire::task_news::Body::Meta(meta));
                }
                state.dirty.push(task);
                false
            }
            News::Complete { length, root } => {
                entry.root = Some(root);
                entry.state = "complete";
                let Some(meta) = &mut entry.meta else { return true };
                meta.length = Some(length);
                meta.root = root.0.to_vec().into();
                let meta = meta.clone();
                state.dirty.push(task);
                self.tell_siblings(wire::task_news::Body::Meta(meta.clone()));
                if let (Ok((_, generation)), Some(pieces)) =
                    (meta.key(), meta.layout().ok().and_then(proto::PieceLayout::count))
                {
                    entry.seeding = false;
                    self.handle(state, SchedulerEvent::SeedComplete { task, generation, pieces });
                }
                true
            }
            News::Failed { error, credentials_refused } => {
                warn!(?task, %error, credentials_refused, "the seed cannot go on");
                let waits = credentials_refused && entry.meta.is_some();
                entry.failure = Some(error);
                entry.seeding = waits;
                if !waits {
                    entry.state = "failed";
                }
                self.handle(state, SchedulerEvent::SeedFailed { task, on_behalf_of, credentials_refused });
                !waits
            }
            News::Corrupt { error } => {
                warn!(?task, %error, "the content is wrong and goes into quarantine");
                let generation = entry.generation();
                entry.failure = Some(error);
                entry.state = "quarantined";
                entry.seeding = false;
                entry.forget();
                if let Some(generation) = generation {
                    self.tell_siblings(wire::task_news::Body::Discard(wire::Discard {
                        task_id: task.to_bytes().to_vec().into(),
                        generation: generation.to_bytes().to_vec().into(),
                        reason: "it proved wrong".to_owned(),
                    }));
                    self.handle(state, SchedulerEvent::Quarantine { task, generation });
                }
                true
            }
        }
    }

    fn tell_siblings(&self, body: wire::task_news::Body) {
        let supernode_id = self.inner.engine.host().host_id.clone();
        // Fails only when there is no sibling.
        let _ = self.inner.siblings.send(wire::TaskNews { supernode_id, body: Some(body) });
    }

    /// Everything our seed vouches for, as news for a sibling that has heard nothing yet.
    #[must_use]
    pub fn known_tasks(&self) -> Vec<wire::TaskNews> {
        let state = self.inner.state.lock();
        let supernode_id = &self.inner.engine.host().host_id;
        let mut news = Vec::new();
        for (task, entry) in &state.tasks {
            let Some(meta) = &entry.meta else { continue };
            let mut tell = |body| news.push(wire::TaskNews { supernode_id: supernode_id.clone(), body: Some(body) });
            tell(wire::task_news::Body::Meta(meta.clone()));
            let mut first = 0;
            loop {
                let page = entry.hashes_from(first, HASHES_PER_MESSAGE_MAX);
                if page.is_empty() {
                    break;
                }
                tell(wire::task_news::Body::Hashes(wire::NewHashes {
                    task_id: task.to_bytes().to_vec().into(),
                    generation: meta.generation.clone(),
                    hashes: Some(wire::PieceHashes::from_hashes(first, &page)),
                    ..wire::NewHashes::default()
                }));
                first += u32::try_from(page.len()).expect("a page is short");
            }
        }
        news
    }

    /// Takes what a sibling supernode learned, to be used when this one has to take over.
    pub fn sibling_learned(&self, news: wire::TaskNews) {
        let Some(body) = news.body else { return };
        let mut state = self.inner.state.lock();
        match body {
            wire::task_news::Body::Meta(meta) => {
                let (Ok((task, _)), Some(Ok(spec))) = (meta.key(), meta.spec.clone().map(proto::TaskSpec::try_from))
                else {
                    return;
                };
                let entry = state.tasks.entry(task).or_insert_with(|| super::tasks::TaskEntry::new(spec));
                match &mut entry.known {
                    Some(known) if known.meta.generation == meta.generation => known.meta = meta,
                    known => *known = Some(Known { meta, hashes: Vec::new() }),
                }
            }
            wire::task_news::Body::Hashes(news) => {
                let (Ok(task), Some(hashes)) = (TaskId::from_bytes(&news.task_id), news.hashes) else { return };
                if let (Some(known), Ok(checked)) =
                    (state.tasks.get_mut(&task).and_then(|entry| entry.known.as_mut()), hashes.checked())
                    && known.meta.generation == news.generation
                    // Only the run from the start is kept: what comes after a gap is fetched again.
                    && let Some(known_already) = known.hashes.len().checked_sub(hashes.first as usize)
                {
                    known.hashes.extend(checked.into_iter().skip(known_already));
                }
            }
            wire::task_news::Body::Discard(discard) => {
                if let Ok(task) = TaskId::from_bytes(&discard.task_id)
                    && let Some(entry) = state.tasks.get_mut(&task)
                {
                    entry.known = None;
                }
            }
        }
    }
}
