//! Carrying out what the scheduler decides.

use peer::engine::TaskError;
use proto::frame::HASHES_PER_MESSAGE_MAX;
use proto::wire::from_supernode::Body as Say;
use proto::{Generation, HostId, Kind, TaskId, wire};
use swarm::{RefuseReason, SchedulerAction};
use tracing::warn;

use super::tasks::Told;
use super::{Manager, State};

impl Manager {
    pub(super) fn perform(&self, state: &mut State, action: SchedulerAction) {
        match action {
            SchedulerAction::Opened { host, task, generation } => self.tell_opened(state, host, task, generation),
            SchedulerAction::Peers { host, task, generation, peers } => {
                let peers: Vec<_> = peers.iter().filter_map(|peer| self.host_info(state, *peer)).collect();
                if !peers.is_empty() {
                    let peers = wire::Peers {
                        task_id: task.to_bytes().to_vec().into(),
                        generation: generation.to_bytes().to_vec().into(),
                        peers,
                    };
                    say(state, host, Say::Peers(peers));
                }
            }
            SchedulerAction::StartSeed { task, on_behalf_of, holders } => {
                let holders = holders.iter().filter_map(|host| self.host_info(state, *host)).collect();
                self.start_seed(state, task, on_behalf_of, holders);
            }
            SchedulerAction::SeedPeers { task, peers, .. } => {
                let peers: Vec<_> = peers.iter().filter_map(|host| self.host_info(state, *host)).collect();
                self.inner.engine.seed_peers(task, &peers);
            }
            SchedulerAction::Refuse { host, task, why } => {
                let error = refusal(state, task, why);
                if let Some(entry) = state.tasks.get_mut(&task) {
                    entry.closed(host);
                }
                say(state, host, Say::Refuse(error.to_refusal(task)));
            }
            SchedulerAction::Discard { host, task, generation } => {
                if self.is_seed(host) {
                    self.inner.engine.discard(task, generation, "it proved wrong");
                } else {
                    let failure = state.tasks.get(&task).and_then(|entry| entry.failure.as_ref());
                    let discard = wire::Discard {
                        task_id: task.to_bytes().to_vec().into(),
                        generation: generation.to_bytes().to_vec().into(),
                        reason: failure.map_or_else(|| "it proved wrong".to_owned(), ToString::to_string),
                    };
                    say(state, host, Say::Discard(discard));
                }
            }
            SchedulerAction::Verify { host, task, generation } => {
                if self.is_seed(host) {
                    self.inner.engine.verify(task, generation);
                } else {
                    let verify = wire::Verify {
                        task_id: task.to_bytes().to_vec().into(),
                        generation: generation.to_bytes().to_vec().into(),
                    };
                    say(state, host, Say::Verify(verify));
                }
            }
            SchedulerAction::Forget { task } => {
                state.tasks.remove(&task);
            }
            SchedulerAction::WakeAt(at) => {
                state.wake_at = Some(at);
                self.inner.wake.notify_one();
            }
        }
    }

    fn is_seed(&self, host: HostId) -> bool {
        self.inner.engine.host().id().ok() == Some(host)
    }

    fn host_info(&self, state: &State, host: HostId) -> Option<wire::HostInfo> {
        if self.is_seed(host) {
            return Some(self.inner.engine.host().clone());
        }
        state.hosts.get(&host).map(|host| host.info.clone())
    }

    fn tell_opened(&self, state: &mut State, host: HostId, task: TaskId, generation: Generation) {
        let Some(entry) = state.tasks.get_mut(&task) else { return };
        let Some(meta) = entry.meta.clone().filter(|_| entry.generation() == Some(generation)) else {
            warn!(?task, "the task to open has no metadata");
            return;
        };
        entry.opened.insert(host, Told::default());
        say(state, host, Say::Opened(wire::Opened { meta: Some(meta) }));
        push_to(state, task, host);
    }

    /// Sends hashes that came since the last time to those who lack them.
    pub(super) fn push_hashes(&self) {
        let mut state = self.inner.state.lock();
        let mut dirty = std::mem::take(&mut state.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        for task in dirty {
            let hosts: Vec<HostId> =
                state.tasks.get(&task).map(|entry| entry.opened.keys().copied().collect()).unwrap_or_default();
            for host in hosts {
                push_to(&mut state, task, host);
            }
        }
    }
}

/// Sends a host everything known of a task that it was not told yet.
fn push_to(state: &mut State, task: TaskId, host: HostId) {
    loop {
        let Some(entry) = state.tasks.get_mut(&task) else { return };
        let Some(meta) = &entry.meta else { return };
        let (generation, length) = (meta.generation.clone(), meta.length);
        let Some(mut told) = entry.opened.get(&host).copied() else { return };
        let page = entry.hashes_from(told.pieces, HASHES_PER_MESSAGE_MAX);
        let root = entry.root;
        let news_of_length = length.is_some() && !told.length;
        let news_of_root = root.is_some() && !told.root;
        if page.is_empty() && !news_of_length && !news_of_root {
            return;
        }
        let hashes = (!page.is_empty()).then(|| wire::PieceHashes::from_hashes(told.pieces, &page));
        told.pieces += u32::try_from(page.len()).expect("a page is short");
        told.length |= news_of_length;
        told.root |= news_of_root;
        entry.opened.insert(host, told);
        let news = wire::NewHashes {
            task_id: task.to_bytes().to_vec().into(),
            generation,
            hashes,
            length,
            root: root.map(|root| root.0.to_vec()).unwrap_or_default().into(),
        };
        say(state, host, Say::Hashes(news));
    }
}

/// Queues a message. A host whose queue is full has its session closed: it comes back with a hello.
fn say(state: &mut State, host: HostId, what: Say) {
    if let Some(entry) = state.hosts.get(&host)
        && !entry.say.is_closed()
        && entry.say.try_send(wire::FromSupernode { body: Some(what) }).is_err()
    {
        warn!(host = %host, "the host does not keep up; closing its session");
        // The session's task ends when this, the last sender, is gone, and cleans up then.
        if let Some(entry) = state.hosts.get_mut(&host) {
            entry.say = tokio::sync::mpsc::channel(1).0;
        }
    }
}

fn refusal(state: &State, task: TaskId, why: RefuseReason) -> TaskError {
    let failure = state.tasks.get(&task).and_then(|entry| entry.failure.clone());
    match why {
        RefuseReason::SeedFailed => {
            failure.unwrap_or_else(|| TaskError::new(Kind::Unavailable, "the supernode could not read the origin"))
        }
        RefuseReason::NeverOrigin => {
            TaskError::new(Kind::Unavailable, "no host has the content, and going back to the origin is disabled")
        }
        RefuseReason::Quarantined => failure.unwrap_or_else(|| {
            TaskError::new(Kind::Corrupt, "the content does not have the digest that was asked for")
        }),
    }
}
