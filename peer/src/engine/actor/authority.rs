//! Who vouches for a task's metadata and hashes, and what is told them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proto::wire::from_daemon::Body as Say;
use proto::{HostId, PieceIndex, PieceSet, wire};
use swarm::PickerEvent;
use tokio::sync::mpsc;
use tracing::{debug, info};

use super::super::Inner;
use super::super::error::TaskError;
use super::super::seed::News;
use super::super::shared::Shared;
use super::{Actor, ClusterEvent};

/// Nothing has arrived for so long: the task is opened at its supernode once more.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Nothing has arrived for so long although a supernode answers: the task fails.
const STARVED_MAX: Duration = Duration::from_secs(600);

/// Who vouches for a task.
#[derive(Debug)]
pub(crate) enum Authority {
    /// The cluster's supernode that owns the task.
    Cluster {
        /// How the task is opened there again after it moved or restarted.
        open: Box<wire::OpenTask>,
        /// No supernode has answered since then.
        lost_since: Option<tokio::time::Instant>,
    },
    /// This node reads the origin itself: a seed, whose supernode hears the news, or a lone host.
    Own {
        /// Who hears the news.
        news: Option<mpsc::Sender<News>>,
        /// Counts the bytes read from the origin.
        origin_bytes: Arc<AtomicU64>,
    },
    /// Nothing is downloaded here, only served.
    Nobody,
}

impl Authority {
    /// Of a host that reads the origin for itself alone.
    pub(crate) fn alone() -> Self {
        Self::Own { news: None, origin_bytes: Arc::default() }
    }

    /// Where the bytes of the next read of the origin are counted.
    pub(super) fn origin_bytes(&self) -> Arc<AtomicU64> {
        match self {
            Self::Own { origin_bytes, .. } => Arc::clone(origin_bytes),
            // The engine's own metric counts them.
            _ => Arc::default(),
        }
    }

    pub(super) const fn is_own(&self) -> bool {
        matches!(self, Self::Own { .. })
    }

    pub(super) const fn is_nobody(&self) -> bool {
        matches!(self, Self::Nobody)
    }

    fn say(&self, inner: &Arc<Inner>, shared: &Shared, what: Say) {
        if let (Self::Cluster { .. }, Some(cluster)) = (self, &inner.cluster) {
            cluster.say(shared.task, what);
        }
    }

    pub(super) fn report_bad_piece(&self, inner: &Arc<Inner>, shared: &Shared, piece: PieceIndex, from: HostId) {
        self.say(
            inner,
            shared,
            Say::BadPiece(wire::BadPiece {
                task_id: shared.task.to_bytes().to_vec().into(),
                generation: shared.generation.to_bytes().to_vec().into(),
                piece: piece.0,
                host_id: from.to_bytes().to_vec().into(),
            }),
        );
    }

    pub(super) fn need_peers(&self, inner: &Arc<Inner>, shared: &Shared, wanted: u32, unreachable: &[HostId]) {
        self.say(
            inner,
            shared,
            Say::NeedPeers(wire::NeedPeers {
                task_id: shared.task.to_bytes().to_vec().into(),
                generation: shared.generation.to_bytes().to_vec().into(),
                wanted,
                unreachable: unreachable.iter().map(|host| host.to_bytes().to_vec().into()).collect(),
            }),
        );
    }

    pub(super) fn progress(&self, inner: &Arc<Inner>, shared: &Shared, neighbours: usize) {
        self.say(
            inner,
            shared,
            Say::Progress(wire::Progress {
                task_id: shared.task.to_bytes().to_vec().into(),
                generation: shared.generation.to_bytes().to_vec().into(),
                pieces: shared.content.have().len(),
                neighbours: u32::try_from(neighbours).unwrap_or(u32::MAX),
            }),
        );
    }

    /// Tells the listener, in order, as much as it has room for.
    pub(super) fn tell(&self, untold: &mut VecDeque<News>) {
        let Self::Own { news: Some(listener), .. } = self else { return };
        while let Some(news) = untold.pop_front() {
            match listener.try_send(news) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(news)) => return untold.push_front(news),
                Err(mpsc::error::TrySendError::Closed(_)) => return untold.clear(),
            }
        }
    }

    /// Tells the listener all of it, however long that takes.
    pub(super) fn tell_rest(&self, inner: &Arc<Inner>, untold: VecDeque<News>) {
        if let Self::Own { news: Some(listener), .. } = self
            && !untold.is_empty()
        {
            let (listener, cancel) = (listener.clone(), inner.cancel.clone());
            inner.tracker.spawn(async move {
                for news in untold {
                    tokio::select! {
                        sent = listener.send(news) => if sent.is_err() { return },
                        () = cancel.cancelled() => return,
                    }
                }
            });
        }
    }

    /// Whether somebody else decides what happens after the origin failed.
    pub(super) const fn has_listener(&self) -> bool {
        matches!(self, Self::Own { news: Some(_), .. })
    }
}

impl Actor {
    pub(super) fn cluster_says(&mut self, event: ClusterEvent) {
        match event {
            ClusterEvent::Opened { meta } => {
                if meta.generation != self.shared.generation.to_bytes()[..] {
                    if self.origin.is_orphan() {
                        // What this host reads by itself is nobody else's generation; it goes on alone.
                        self.authority = Authority::alone();
                        return;
                    }
                    return self.fail(TaskError::new(
                        proto::Kind::Conflict,
                        "the content changed at its origin during the download",
                    ));
                }
                self.origin.withdraw();
                if let Authority::Cluster { lost_since, .. } = &mut self.authority {
                    *lost_since = None;
                }
                if let Some(length) = meta.length {
                    self.length_known(length);
                }
                self.root_known(meta.checked_root().ok().flatten());
            }
            ClusterEvent::Hashes(news) => {
                if news.generation != self.shared.generation.to_bytes()[..] {
                    return;
                }
                if let Some(length) = news.length {
                    self.length_known(length);
                }
                if let Some(hashes) = &news.hashes
                    && let Ok(checked) = hashes.checked()
                {
                    let here = self.shared.content.hashes(hashes.first, checked.len());
                    if here.iter().zip(&checked).any(|(here, told)| here.is_some_and(|here| here != *told)) {
                        // One generation, two contents: what is here would be mixed with what is still to come.
                        return self.discard("pieces that are here are not those that the supernode vouches for");
                    }
                    let verifiable: PieceSet = self.shared.expect(hashes.first, &checked).into_iter().collect();
                    self.pick(PickerEvent::Verifiable { pieces: verifiable });
                }
                self.root_known(news.checked_root().ok().flatten());
                self.after_store();
            }
            ClusterEvent::Peers(peers) => self.call(peers),
            // The supernode found it wrong, and this host may have begun after it was told to throw it away.
            ClusterEvent::Refused(error) if error.kind() == proto::Kind::Corrupt && self.shared.ended().is_none() => {
                self.condemn(error);
            }
            ClusterEvent::Refused(error) => self.fail(error),
            ClusterEvent::Lost => {
                if let Authority::Cluster { lost_since, .. } = &mut self.authority {
                    lost_since.get_or_insert_with(tokio::time::Instant::now);
                    debug!(task = ?self.shared.task, "no supernode answers; going on with the neighbours there are");
                }
            }
            ClusterEvent::Found => {
                if let Authority::Cluster { lost_since, .. } = &mut self.authority {
                    *lost_since = None;
                }
                self.open_again();
            }
        }
    }

    /// Opens the task at the supernode that owns it now: everything is said anew then.
    fn open_again(&mut self) {
        let (Authority::Cluster { open, .. }, Some(cluster)) = (&mut self.authority, &self.inner.cluster) else {
            return;
        };
        let (task, generation) = (self.shared.task, self.shared.generation);
        let have = self.shared.content.have();
        open.have_generation = generation.to_bytes().to_vec().into();
        open.have_pieces = have.len();
        // What it has of a running download a supernode that takes over knows from nobody else; it has to know before
        // it decides what to read from the origin.
        let item = wire::inventory::Item {
            task_id: open.task_id.clone(),
            generation: open.have_generation.clone(),
            complete: self.shared.content.is_complete(),
            pieces: have.len(),
            downloading: self.shared.ended().is_none(),
        };
        if !have.is_empty() {
            cluster.say(task, Say::Inventory(wire::Inventory { items: vec![item], last: false }));
        }
        if self.shared.ended().is_some() {
            // What is here is served; nothing more is wanted.
            return;
        }
        cluster.say(task, Say::Open((**open).clone()));
        debug!(?task, "opening the task at its supernode again");
    }

    pub(super) fn length_known(&mut self, length: u64) {
        if self.shared.layout().length().is_some_and(|known| known != length) {
            return self.discard("two different lengths were told for one generation");
        }
        if self.shared.layout().length().is_none() {
            if let Err(error) = self.shared.content.set_length(length) {
                return self.fail(error.into());
            }
            if self.shared.layout().count() == Some(1) {
                // Alone, it is hashed in another way: what was told of it before does not hold any more.
                self.shared.expect_again(PieceIndex(0), self.shared.content.hash_of(PieceIndex(0)));
            }
            self.shared.changed();
        }
        self.tell_count();
    }

    fn root_known(&mut self, root: Option<proto::Root>) {
        if let Some(root) = root
            && !self.shared.set_root(root)
        {
            self.fail(TaskError::new(proto::Kind::Corrupt, "two different roots were told for one generation"));
        }
    }

    /// Nothing verified has come for a while.
    pub(super) fn starving(&mut self) {
        match &self.authority {
            Authority::Cluster { open, lost_since } => {
                let Some(since) = lost_since else { return self.starving_in_cluster() };
                if since.elapsed() < self.inner.orphan_delay(self.shared.task) {
                    return;
                }
                if open.never_origin {
                    return self.fail(TaskError::new(
                        proto::Kind::Unavailable,
                        "no supernode answers, no neighbour has the rest, and going back to the origin is disabled",
                    ));
                }
                if !self.origin.is_allowed(&self.authority) {
                    info!(task = ?self.shared.task, "no supernode and no neighbour has the rest: reading it from the origin");
                    self.origin.allow_orphan();
                }
                self.origin_turn();
            }
            Authority::Own { .. } => {
                self.origin.trust_no_claims();
                self.origin_turn();
            }
            Authority::Nobody => {}
        }
    }

    /// A supernode answers, and yet nothing comes: whatever was lost on the way is done again, and in the end the
    /// task fails rather than keep its readers waiting for ever.
    fn starving_in_cluster(&mut self) {
        let now = tokio::time::Instant::now();
        let received = self.shared.counters.received.load(Ordering::Relaxed);
        let (since, before) = *self.starving_since.get_or_insert((now, received));
        if before != received {
            // Slow, but not dead: a low rate and long pieces.
            self.starving_since = Some((now, received));
            return;
        }
        let neighbours = self.neighbours.len();
        if now - since >= STARVED_MAX {
            return self.fail(TaskError::new(
                proto::Kind::Unavailable,
                format!("nothing has arrived for {STARVED_MAX:?}, from none of {neighbours} neighbours"),
            ));
        }
        info!(task = ?self.shared.task, neighbours, "nothing arrives: calling everybody again");
        self.call_again();
        if now - since >= OPEN_AGAIN_AFTER {
            self.open_again();
        }
    }
}
