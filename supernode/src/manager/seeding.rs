//! Our own seed: started for tasks nobody has, its news turned into what the scheduler and the hosts are told.

use std::sync::Arc;

use peer::engine::{Known, News, SeedRequest};
use proto::frame::HASHES_PER_MESSAGE_MAX;
use proto::{HostId, PieceHash, PieceLayout, TaskId, wire};
use swarm::SchedulerEvent;
use tracing::{debug, info, warn};

use super::tasks::TaskEntry;
use super::{Manager, State};

/// Tasks kept that only a sibling told of, at most: with 512 pieces each, 64 MiB of hashes.
const TOLD_MAX: usize = 4096;
/// Pieces that a sibling may tell of while the length is not known: with pieces of 1 MiB, 256 GiB and 9 MiB of hashes.
const PIECES_UNKNOWN_MAX: u32 = 1 << 18;

impl Manager {
    pub(super) fn start_seed(
        &self,
        state: &mut State,
        task: TaskId,
        on_behalf_of: HostId,
        holders: Vec<wire::HostInfo>,
    ) {
        let Some(entry) = state.tasks.get_mut(&task) else { return };
        let Some((spec, headers)) = entry.caller(on_behalf_of) else {
            // It is gone: what is kept of its URL is not enough to read the origin by.
            let event = SchedulerEvent::SeedFailed { task, on_behalf_of, credentials_refused: true };
            return self.handle(state, event);
        };
        if entry.seeding {
            if std::mem::take(&mut entry.waits) {
                debug!(?task, "the seed goes on with another caller's credentials");
                entry.lender = Some(on_behalf_of);
                self.inner.engine.seed_credentials(&spec, &headers);
                let pieces = entry.meta.as_ref().and_then(|meta| meta.layout().ok()).and_then(PieceLayout::count);
                if let Some(generation) = entry.generation() {
                    // It was opened long ago and will not say so again; who waits would wait until its end.
                    self.handle(state, SchedulerEvent::SeedOpened { task, generation, complete: false, pieces });
                }
            }
            return;
        }
        entry.seeding = true;
        entry.waits = false;
        entry.lender = Some(on_behalf_of);
        entry.seeds += 1;
        let number = entry.seeds;
        let request = SeedRequest {
            spec,
            headers,
            holders,
            known: entry.known.clone(),
            origin_bytes: Arc::clone(&entry.origin_bytes),
        };
        let manager = self.clone();
        self.inner.tracker.spawn(async move {
            let mut news = manager.inner.engine.seed(request);
            loop {
                let item = tokio::select! {
                    item = news.recv() => item,
                    () = manager.inner.cancel.cancelled() => None,
                };
                let Some(item) = item else { break };
                if manager.seed_learned(task, item) {
                    break;
                }
            }
            if let Some(entry) = manager.inner.state.lock().tasks.get_mut(&task)
                && entry.seeds == number
            {
                entry.seeding = false;
            }
        });
    }

    /// Takes a seed's news; true when it was the last.
    fn seed_learned(&self, task: TaskId, news: News) -> bool {
        let mut state = self.inner.state.lock();
        let state = &mut *state;
        let Some(entry) = state.tasks.get_mut(&task) else { return true };
        match news {
            News::Opened { meta } => {
                let meta = *meta;
                let Ok((_, generation)) = meta.key() else { return true };
                let complete = !meta.root.is_empty();
                let pieces = meta.layout().ok().and_then(PieceLayout::count);
                info!(?task, length = meta.length, complete, "the seed opened a task");
                entry.opened_as(meta.clone());
                entry.waits = false;
                if complete {
                    entry.root = meta.checked_root().ok().flatten();
                }
                if let Some(known) = entry.known.take().filter(|known| known.meta.generation == meta.generation) {
                    for (piece, hash) in (0..).zip(known.hashes) {
                        entry.add_hashes(piece, hash.as_slice());
                    }
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
                entry.length_known(length);
                if let Some(meta) = entry.meta.clone() {
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
                    (meta.key(), meta.layout().ok().and_then(PieceLayout::count))
                {
                    entry.seeding = false;
                    self.handle(state, SchedulerEvent::SeedComplete { task, generation, pieces });
                }
                true
            }
            News::Failed { error, credentials_refused, waits } => {
                warn!(?task, %error, credentials_refused, "the seed cannot go on");
                let Some(on_behalf_of) = entry.lender else { return !waits };
                entry.failure = Some(error);
                entry.seeding = waits;
                entry.waits = waits;
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

    /// Tasks whose metadata this supernode vouches for.
    #[must_use]
    pub fn vouched_for(&self) -> Vec<TaskId> {
        let state = self.inner.state.lock();
        state.tasks.iter().filter(|(_, entry)| entry.meta.is_some()).map(|(task, _)| *task).collect()
    }

    /// Everything a sibling has to know of a task to take over.
    #[must_use]
    pub fn told_of(&self, task: TaskId) -> Vec<wire::TaskNews> {
        let state = self.inner.state.lock();
        let Some((entry, meta)) = state.tasks.get(&task).and_then(|entry| Some((entry, entry.meta.clone()?))) else {
            return Vec::new();
        };
        let generation = meta.generation.clone();
        let mut bodies = vec![wire::task_news::Body::Meta(meta)];
        let mut first = 0;
        loop {
            let page = entry.hashes_from(first, HASHES_PER_MESSAGE_MAX);
            if page.is_empty() {
                break;
            }
            bodies.push(wire::task_news::Body::Hashes(wire::NewHashes {
                task_id: task.to_bytes().to_vec().into(),
                generation: generation.clone(),
                hashes: Some(wire::PieceHashes::from_hashes(first, &page)),
                ..wire::NewHashes::default()
            }));
            first += u32::try_from(page.len()).expect("a page is short");
        }
        let supernode_id = self.inner.engine.host().host_id.clone();
        bodies.into_iter().map(|body| wire::TaskNews { supernode_id: supernode_id.clone(), body: Some(body) }).collect()
    }

    fn tell_siblings(&self, body: wire::task_news::Body) {
        let supernode_id = self.inner.engine.host().host_id.clone();
        // Fails only when there is no sibling.
        let _ = self.inner.siblings.send(wire::TaskNews { supernode_id, body: Some(body) });
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
                if !state.tasks.contains_key(&task) {
                    make_room(&mut state);
                }
                let entry = state.tasks.entry(task).or_insert_with(|| TaskEntry::new(spec));
                entry.told_at = tokio::time::Instant::now();
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
                {
                    learn(known, hashes.first, checked);
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

/// Notes hashes that a sibling told, unless they are of pieces that the content cannot have.
fn learn(known: &mut Known, first: u32, hashes: Vec<PieceHash>) {
    let count = known.meta.layout().ok().and_then(PieceLayout::count).unwrap_or(PIECES_UNKNOWN_MAX);
    let end = first as usize + hashes.len();
    if end > count as usize {
        return;
    }
    if known.hashes.len() < end {
        known.hashes.resize(end, None);
    }
    for (slot, hash) in known.hashes[first as usize..].iter_mut().zip(hashes) {
        *slot = Some(hash);
    }
}

/// Forgets the task that a sibling has not told of for longest, when there are too many that nobody asked for here.
fn make_room(state: &mut State) {
    let told = || state.tasks.iter().filter(|(_, entry)| entry.is_only_told());
    if told().count() < TOLD_MAX {
        return;
    }
    let oldest = told().min_by_key(|(_, entry)| entry.told_at).map(|(task, _)| *task);
    if let Some(task) = oldest {
        state.tasks.remove(&task);
    }
}
