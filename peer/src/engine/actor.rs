//! One task at work: the shell around [`swarm::Picker`] and [`swarm::Announcer`].
//!
//! Everything that happens to a task arrives as an [`Event`] in its mailbox, in order; only the actor changes what the
//! task knows. Receivers write verified pieces into the content themselves (a piece is immutable once it is there) and
//! tell the actor, so that piece bytes never pass through the mailbox.

mod authority;
mod finish;
mod neighbours;
mod origin_turn;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use proto::wire::frame::Body;
use proto::{HostId, PieceIndex, PieceSet, TaskSpec, wire};
use swarm::{AnnounceAction, AnnounceEvent, Announcer, Outcome, Picker, PickerAction, PickerConfig, PickerEvent};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::trace;

pub(crate) use self::authority::Authority;
use self::neighbours::Neighbour;
use self::origin_turn::OriginTurn;
pub(crate) use self::origin_turn::run_range;
use super::Inner;
use super::error::TaskError;
use super::link::Link;
use super::origin::{OriginBytes, OriginEvent};
use super::seed::News;
use super::shared::Shared;

/// Events waiting for one task at most. Senders that must not be lost wait; hints are dropped when it is full.
pub(crate) const MAILBOX: usize = 4096;
/// Events handled between two looks at the clock.
const BATCH_MAX: usize = 256;
/// How far a host is, is told to the supernode so often.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// A listener that had no room for news is told them after this time.
const NEWS_AGAIN: Duration = Duration::from_millis(10);
/// A task nobody wants or subscribes to any more is let go after this time.
const LINGER: Duration = Duration::from_secs(5);

/// What happens to a task.
#[derive(Debug)]
pub(crate) enum Event {
    // --- neighbours ---
    LinkUp {
        link: Arc<Link>,
    },
    LinkFailed {
        peer: HostId,
    },
    LinkDown {
        peer: HostId,
    },
    Subscribed {
        link: Arc<Link>,
    },
    Unsubscribed {
        peer: HostId,
    },
    Have {
        peer: HostId,
        have: wire::Have,
    },
    Ended {
        peer: HostId,
        piece: PieceIndex,
        outcome: Outcome,
    },
    Uploaded {
        peer: HostId,
        piece: PieceIndex,
    },
    // --- the authority that vouches for metadata and hashes ---
    Cluster(ClusterEvent),
    Peers {
        peers: Vec<wire::HostInfo>,
    },
    // --- the origin ---
    Origin(OriginEvent),
    /// Go on at the origin by this URL and with these headers.
    Credentials {
        spec: Box<TaskSpec>,
        headers: HeaderMap,
    },
    // --- this host ---
    ReadersMoved,
    Unwanted,
    /// The store is full: if nobody here wants the task, let it go.
    MakeRoom,
    StoreFailed(TaskError),
    DigestChecked(Result<(), TaskError>),
    Finished(Result<(), TaskError>),
    /// Wrong content is gone from the store.
    Condemned(TaskError),
    /// The content proved wrong elsewhere.
    Discard {
        reason: String,
    },
    /// The task was opened once more: what a new actor would have started with. It comes back when this one has ended.
    Adopt {
        start: Box<Start>,
        taken: oneshot::Sender<Option<Box<Start>>>,
    },
}

/// What a supernode says, or does not say any more.
#[derive(Clone, Debug)]
pub(crate) enum ClusterEvent {
    Opened {
        meta: Box<wire::TaskMeta>,
    },
    Hashes(wire::NewHashes),
    Peers(Vec<wire::HostInfo>),
    Refused(TaskError),
    /// No supernode answers for this task.
    Lost,
    /// A supernode answers again: open the task there.
    Found,
}

/// How a task's actor starts.
#[derive(Debug)]
pub(crate) struct Start {
    /// Who vouches for metadata.
    pub(crate) authority: Authority,
    /// An origin body that was already opened, from the content's first byte.
    pub(crate) body: Option<OriginBytes>,
    /// The URL to read the origin by; it may be signed for this caller.
    pub(crate) spec: TaskSpec,
    /// The headers to read the origin with.
    pub(crate) headers: HeaderMap,
    /// Neighbours to begin with.
    pub(crate) peers: Vec<wire::HostInfo>,
    /// No supernode answers, and the origin may be read at once, slowly.
    pub(crate) orphan: bool,
    /// Only seeds are asked for pieces.
    pub(crate) seed_only: bool,
}

pub(crate) struct Actor {
    inner: Arc<Inner>,
    shared: Arc<Shared>,
    mailbox: mpsc::Receiver<Event>,
    picker: Picker,
    announcer: Announcer,
    authority: Authority,
    origin: OriginTurn,
    spec: TaskSpec,
    headers: HeaderMap,
    neighbours: HashMap<HostId, Neighbour>,
    connecting: HashSet<HostId>,
    unreachable: Vec<HostId>,
    /// Hosts that were named as neighbours, to be called again when nothing arrives.
    named: HashMap<HostId, wire::HostInfo>,
    /// News that the listener has no room for yet. They must keep their order: what comes after the last is not heard.
    untold: VecDeque<News>,
    /// Since when nothing at all arrives, and the bytes received until then.
    starving_since: Option<(Instant, u64)>,
    picker_wake: Option<Instant>,
    announcer_wake: Option<Instant>,
    next_progress: Instant,
    unwanted_since: Option<Instant>,
    leaving: bool,
    count_told: bool,
    finishing: bool,
    digest_running: bool,
    seed_only: bool,
}

impl Start {
    /// Nothing is fetched, what is here is served.
    pub(crate) fn serving(spec: TaskSpec) -> Self {
        Self {
            authority: Authority::Nobody,
            body: None,
            spec,
            headers: HeaderMap::new(),
            peers: Vec::new(),
            orphan: false,
            seed_only: false,
        }
    }
}

impl Actor {
    pub(crate) fn start(inner: &Arc<Inner>, shared: Arc<Shared>, mailbox: mpsc::Receiver<Event>, start: Start) {
        let host_bits = inner.host_id.bits() as u64
            ^ u64::from_le_bytes(shared.task.to_bytes()[..8].try_into().expect("8 of 32 bytes"));
        let picker = PickerConfig {
            piece_len_bytes: shared.layout().piece_len(),
            seed: host_bits,
            ..inner.config.picker.clone()
        };
        let announce = swarm::AnnounceConfig { seed_bits: host_bits, ..inner.config.announce.clone() };
        let actor = Self {
            picker: Picker::new(picker),
            announcer: Announcer::new(announce),
            origin: OriginTurn::new(start.body, start.orphan),
            authority: start.authority,
            spec: start.spec,
            headers: start.headers,
            neighbours: HashMap::new(),
            connecting: HashSet::new(),
            unreachable: Vec::new(),
            named: HashMap::new(),
            untold: VecDeque::new(),
            starving_since: None,
            picker_wake: None,
            announcer_wake: None,
            next_progress: Instant::now() + PROGRESS_EVERY,
            unwanted_since: None,
            leaving: false,
            count_told: false,
            finishing: false,
            digest_running: false,
            seed_only: start.seed_only,
            mailbox,
            shared,
            inner: Arc::clone(inner),
        };
        let peers = start.peers;
        inner.tracker.spawn(actor.run(peers));
    }

    async fn run(mut self, peers: Vec<wire::HostInfo>) {
        self.begin(peers);
        loop {
            let news = (!self.untold.is_empty()).then(|| Instant::now() + NEWS_AGAIN);
            let lingered = self.unwanted_since.map(|at| at + LINGER);
            let wake = [
                self.picker_wake,
                self.announcer_wake,
                self.origin.wake(),
                lingered.filter(|_| !self.must_stay()),
                news,
            ]
            .into_iter()
            .flatten()
            .chain([self.next_progress])
            .min()
            .expect("next_progress is always there");
            tokio::select! {
                event = self.mailbox.recv() => {
                    let Some(event) = event else { break };
                    self.handle(event);
                    for _ in 0..BATCH_MAX {
                        match self.mailbox.try_recv() {
                            Ok(event) => self.handle(event),
                            Err(_) => break,
                        }
                    }
                }
                () = tokio::time::sleep_until(wake) => {}
                () = self.inner.cancel.cancelled() => {
                    self.shared.end(Err(TaskError::stopping()));
                    break;
                }
            }
            if self.tick() {
                break;
            }
        }
        self.leave().await;
    }

    /// Tells the decisions what the store already holds, and calls the first neighbours.
    fn begin(&mut self, peers: Vec<wire::HostInfo>) {
        let have = self.shared.content.have();
        let hashes = self.shared.content.hashes(0, usize::MAX);
        for (piece, hash) in (0..).map(PieceIndex).zip(hashes) {
            if let Some(hash) = hash {
                self.shared.expect(piece.0, &[hash]);
            }
        }
        self.tell_count();
        let verifiable = self.shared.known_hashes();
        self.pick(PickerEvent::Verifiable { pieces: verifiable });
        for piece in have.iter() {
            self.pick(PickerEvent::Stored { piece });
            self.announce(AnnounceEvent::Stored { piece });
        }
        for host in self.inner.mesh.subscribers((self.shared.task, self.shared.generation)) {
            if let Some(link) = self.inner.mesh.get(host) {
                self.subscribed(link);
            }
        }
        self.call(peers);
        self.readers_moved();
        self.after_store();
        self.origin_turn();
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::LinkUp { link } => self.link_up(link),
            Event::LinkFailed { peer } => {
                self.connecting.remove(&peer);
                self.cannot_reach(peer);
            }
            Event::LinkDown { peer } => self.link_down(peer),
            Event::Subscribed { link } => self.subscribed(link),
            Event::Unsubscribed { peer } => {
                self.announce(AnnounceEvent::Unsubscribed { peer });
                if let Some(neighbour) = self.neighbours.get_mut(&peer) {
                    neighbour.subscribed = false;
                }
            }
            Event::Have { peer, have } => self.peer_has(peer, &have),
            Event::Ended { peer, piece, outcome } => self.request_ended(peer, piece, outcome),
            Event::Uploaded { peer, piece } => self.announce(AnnounceEvent::Uploaded { peer, piece }),
            Event::Cluster(event) => self.cluster_says(event),
            Event::Peers { peers } => self.call(peers),
            Event::Origin(event) => self.origin_says(event),
            Event::Credentials { spec, headers } => {
                self.spec = *spec;
                self.headers = headers;
                self.origin.credentials_came();
                self.origin_turn();
            }
            Event::ReadersMoved => self.readers_moved(),
            Event::Unwanted => self.look_whether_wanted(),
            Event::MakeRoom => {
                let lingers = self.shared.ended().is_some() || self.unwanted_since.is_some();
                self.leaving = lingers && !self.shared.is_wanted();
            }
            Event::StoreFailed(error) => self.fail(error),
            Event::DigestChecked(result) => self.digest_checked(result),
            Event::Finished(result) => self.finished(result),
            Event::Condemned(error) => self.condemned(error),
            Event::Discard { reason } => self.discard(&reason),
            Event::Adopt { start, taken } => {
                if matches!(self.shared.ended(), Some(Err(_))) {
                    let _ = taken.send(Some(start));
                } else {
                    self.adopt(*start);
                    let _ = taken.send(None);
                }
            }
        }
    }

    /// Goes on as the newly opened task would have begun.
    fn adopt(&mut self, start: Start) {
        self.unwanted_since = None;
        self.leaving = false;
        if self.shared.ended().is_some() && !start.authority.is_own() {
            return;
        }
        let verifiable: PieceSet = self.shared.known_hashes();
        self.pick(PickerEvent::Verifiable { pieces: verifiable });
        if !start.authority.is_nobody() {
            self.authority = start.authority;
            self.untold.clear();
            self.tell_stored();
            self.spec = start.spec;
            self.headers = start.headers;
            self.seed_only = start.seed_only;
            if !self.origin.is_running() {
                self.origin = OriginTurn::new(start.body, start.orphan);
            }
        }
        self.call(start.peers);
        self.readers_moved();
        self.after_store();
        self.origin_turn();
    }

    /// Runs what is due; true when the actor has nothing left to do.
    fn tick(&mut self) -> bool {
        let now = Instant::now();
        if self.picker_wake.is_some_and(|at| at <= now) {
            self.picker_wake = None;
            self.pick(PickerEvent::Tick);
        }
        if self.announcer_wake.is_some_and(|at| at <= now) {
            self.announcer_wake = None;
            if self.inner.uploads.is_idle() {
                self.announce(AnnounceEvent::Idle);
            }
            self.announce(AnnounceEvent::Tick);
        }
        if self.origin.is_due(now) {
            self.origin_turn();
        }
        if self.next_progress <= now {
            self.next_progress = now + PROGRESS_EVERY;
            if self.shared.ended().is_none() {
                self.tell_progress();
            }
            self.look_whether_wanted();
            // What a full mailbox had no room for.
            self.sweep();
            self.readers_moved();
        }
        self.tell_untold();
        let lingered = self.unwanted_since.is_some_and(|since| since + LINGER <= now);
        (lingered || self.leaving) && !self.must_stay()
    }

    /// Something is under way that ends soon and by itself.
    fn must_stay(&self) -> bool {
        self.finishing || (self.digest_running && self.shared.content.is_full())
    }

    async fn leave(&mut self) {
        self.want_nothing();
        self.inner.tasks.remove(&self.shared);
        let ended = self.shared.ended();
        if ended.is_none() {
            self.shared
                .end(Err(TaskError::new(proto::Kind::Unavailable, "the download was given up: nobody waits for it")));
        }
        self.origin.stop();
        if let Some(cluster) = &self.inner.cluster {
            cluster.close(self.shared.task, &self.shared.events, matches!(ended, Some(Ok(()))));
        }
        self.authority.tell_rest(&self.inner, std::mem::take(&mut self.untold));
        self.mailbox.close();
        // Also what somebody is about to put there.
        while let Some(event) = self.mailbox.recv().await {
            match event {
                Event::Adopt { start, taken } => {
                    let _ = taken.send(Some(start));
                }
                Event::Discard { reason } => {
                    self.inner.condemn_stored(self.shared.task, self.shared.generation, &reason)
                }
                _ => {}
            }
        }
    }

    // --- decisions ---

    fn pick(&mut self, event: PickerEvent) {
        let mut actions = Vec::new();
        self.picker.handle(self.inner.now(), event, &mut actions);
        for action in actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: PickerAction) {
        trace!(task = ?self.shared.task, ?action, "picker decides");
        match action {
            PickerAction::Request { peer, piece, expires } => {
                if let Some(neighbour) = self.neighbours.get_mut(&peer) {
                    let id = neighbour.link.request(&self.inner, &self.shared, piece, expires);
                    neighbour.requests.insert(piece, id);
                } else {
                    let event = Event::Ended { peer, piece, outcome: Outcome::Failed };
                    let _ = self.shared.events.try_send(event);
                }
            }
            PickerAction::Cancel { peer, piece } => {
                if let Some(neighbour) = self.neighbours.get(&peer)
                    && let Some(id) = neighbour.requests.get(&piece)
                {
                    neighbour.link.cancel(*id);
                }
            }
            PickerAction::Distrust { peer, piece } => self.distrust(peer, piece),
            PickerAction::NeedPeers { wanted } => {
                let unreachable = std::mem::take(&mut self.unreachable);
                self.authority.need_peers(&self.inner, &self.shared, wanted, &unreachable);
            }
            PickerAction::Starving => self.starving(),
            PickerAction::Complete => {}
            PickerAction::WakeAt(time) => self.picker_wake = Some(self.inner.instant(time)),
        }
    }

    fn announce(&mut self, event: AnnounceEvent) {
        let mut actions = Vec::new();
        self.announcer.handle(self.inner.now(), event, &mut actions);
        for action in actions {
            match action {
                AnnounceAction::Have { peer, added, replaces } => {
                    if let Some(neighbour) = self.neighbours.get(&peer) {
                        let (queued_bytes, per_second) = self.inner.uploads.load();
                        neighbour.link.tell(Body::Have(wire::Have {
                            task_id: self.shared.task.to_bytes().to_vec().into(),
                            generation: self.shared.generation.to_bytes().to_vec().into(),
                            added: Some(added.to_runs()),
                            replaces,
                            queued_bytes_kib: u32::try_from(queued_bytes / 1024).unwrap_or(u32::MAX),
                            upload_kib_per_s: u32::try_from(per_second / 1024).unwrap_or(u32::MAX),
                            gone: false,
                        }));
                    }
                }
                AnnounceAction::WakeAt(time) => self.announcer_wake = Some(self.inner.instant(time)),
            }
        }
    }

    fn readers_moved(&mut self) {
        let next = self.shared.foremost_lacking();
        self.pick(PickerEvent::Reader { next });
    }

    fn tell_count(&mut self) {
        if let Some(pieces) = self.shared.layout().count()
            && !std::mem::replace(&mut self.count_told, true)
        {
            self.pick(PickerEvent::Count { pieces });
            self.announce(AnnounceEvent::Count { pieces });
        }
    }

    fn look_whether_wanted(&mut self) {
        let wanted = self.shared.is_wanted() || self.neighbours.values().any(|neighbour| neighbour.subscribed);
        // A download that only neighbours still listen to is not theirs to keep going, but a whole content is.
        let whole = matches!(self.shared.ended(), Some(Ok(())));
        let keep = self.shared.is_wanted() || (wanted && (whole || self.authority.is_nobody()));
        if keep {
            self.unwanted_since = None;
        } else {
            self.unwanted_since.get_or_insert_with(Instant::now);
        }
    }

    fn tell_progress(&mut self) {
        self.authority.progress(&self.inner, &self.shared, self.neighbours.len());
    }

    fn news(&mut self, news: News) {
        if self.authority.has_listener() {
            self.untold.push_back(news);
            self.tell_untold();
        }
    }

    fn tell_untold(&mut self) {
        self.authority.tell(&mut self.untold);
    }

    /// Tells a new listener what it cannot have heard.
    fn tell_stored(&mut self) {
        if !self.authority.has_listener() {
            return;
        }
        if let Some(length) = self.shared.layout().length() {
            self.news(News::Length { length });
        }
        let hashes = self.shared.content.hashes(0, usize::MAX);
        for (first, hash) in (0..).zip(hashes) {
            if let Some(hash) = hash {
                self.news(News::Hashes { first, hashes: vec![hash] });
            }
        }
    }
}

/// However an actor ends, nobody may wait for its task for ever.
impl Drop for Actor {
    fn drop(&mut self) {
        self.inner.tasks.remove(&self.shared);
        self.shared.end(Err(TaskError::new(proto::Kind::Internal, "the download stopped unexpectedly")));
    }
}
