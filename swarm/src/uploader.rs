//! Whose request is served next: one uploader per host, for all tasks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proto::{Generation, HostId, PieceIndex, TaskId};

use crate::Time;

/// Limits and tunables of an [`Uploader`].
#[derive(Clone, Debug)]
pub struct UploadConfig {
    /// Pieces being sent at the same time at most.
    pub slots: u32,
    /// Requests of one neighbour waiting at most; more are refused as busy.
    pub queue_per_peer_max: u32,
    /// Requests waiting in all at most; more are refused as busy.
    pub queue_max: u32,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum UploadEvent {
    /// A neighbour asks for a piece that is here.
    Request {
        /// Who.
        from: HostId,
        /// Its number for the request.
        id: u64,
        /// The task.
        task: TaskId,
        /// The generation.
        generation: Generation,
        /// The piece.
        piece: PieceIndex,
        /// Its length in bytes.
        bytes: u32,
        /// Worthless after waiting so long.
        expires: Duration,
    },
    /// A neighbour takes a request back.
    Cancel {
        /// Who.
        from: HostId,
        /// Which request.
        id: u64,
    },
    /// A [`UploadAction::Send`] has ended, well or not.
    Sent {
        /// To whom.
        to: HostId,
        /// Which request.
        id: u64,
    },
    /// A neighbour is gone; its waiting requests with it.
    Left {
        /// Who.
        peer: HostId,
    },
    /// The moment of an [`UploadAction::WakeAt`] has come.
    Tick,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefuseUpload {
    /// The queue is full.
    Busy,
    /// It waited too long.
    Expired,
    /// It was taken back.
    Cancelled,
}

/// What should be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadAction {
    /// Send a piece; [`UploadEvent::Sent`] must follow.
    Send {
        /// To whom.
        to: HostId,
        /// For which request.
        id: u64,
        /// The task.
        task: TaskId,
        /// The generation.
        generation: Generation,
        /// The piece.
        piece: PieceIndex,
    },
    /// Answer without bytes.
    Refuse {
        /// Whom.
        to: HostId,
        /// For which request.
        id: u64,
        /// Why.
        why: RefuseUpload,
    },
    /// Send an [`UploadEvent::Tick`] at this moment; replaces the moment asked for before.
    WakeAt(Time),
}

/// Orders the uploads of one host: neighbours in turn, the requests of one neighbour as they came.
#[derive(Debug)]
pub struct Uploader {
    config: UploadConfig,
    waiting: BTreeMap<HostId, VecDeque<Waiting>>,
    /// Neighbours with waiting requests, the next to be served first.
    turns: VecDeque<HostId>,
    active: BTreeMap<(HostId, u64), Active>,
    /// Copies of each piece being sent.
    copies: BTreeMap<(TaskId, PieceIndex), u32>,
    deadlines: BTreeSet<(Time, HostId, u64)>,
    waiting_bytes: u64,
    active_bytes: u64,
    armed: Option<Time>,
}

#[derive(Debug)]
struct Active {
    task: TaskId,
    piece: PieceIndex,
    bytes: u32,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    task: TaskId,
    generation: Generation,
    piece: PieceIndex,
    bytes: u32,
    deadline: Time,
}

// === impl UploadConfig ===

impl Default for UploadConfig {
    fn default() -> Self {
        Self {
            // With 4 a sixth of all capacity idles, because some receivers have many senders at a time and others
            // few; with 8 a fifteenth, with 16 a fiftieth, with more no less (simulated, 100 and 300 hosts).
            slots: SLOTS_DEFAULT,
            // A picker keeps at most 16 requests at one neighbour.
            queue_per_peer_max: 16,
            // Beyond it a request would wait for seconds on an ordinary link; better asked elsewhere.
            queue_max: 256,
        }
    }
}

impl UploadConfig {
    /// The defaults of a supernode's seed.
    #[must_use]
    pub fn for_seed() -> Self {
        Self { slots: SEED_SLOTS, queue_max: SEED_QUEUE_MAX, ..Self::default() }
    }
}

const SLOTS_DEFAULT: u32 = 16;
/// A seed's slots: its neighbours' links are shared by all their senders, so it takes many of them to use its own.
const SEED_SLOTS: u32 = 32;
/// A seed has more neighbours, over many tasks.
const SEED_QUEUE_MAX: u32 = 1_024;
/// Copies of one piece being sent at the same time, at most: 16 that are all whole at the end spread later than four
/// that are whole in a quarter of the time.
const SAME_PIECE_MAX: u32 = 4;

// === impl Uploader ===

impl Uploader {
    /// An uploader with nothing to do.
    #[must_use]
    pub const fn new(config: UploadConfig) -> Self {
        Self {
            config,
            waiting: BTreeMap::new(),
            turns: VecDeque::new(),
            active: BTreeMap::new(),
            copies: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            waiting_bytes: 0,
            active_bytes: 0,
            armed: None,
        }
    }

    /// Bytes of the pieces that wait or are being sent, over all tasks: how much is ahead of a new request.
    #[must_use]
    pub const fn queued_bytes(&self) -> u64 {
        self.waiting_bytes + self.active_bytes
    }

    /// Requests that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.deadlines.len()
    }

    /// Pieces being sent.
    #[must_use]
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// Whether a slot is free and nothing waits: capacity goes unused.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.deadlines.is_empty() && self.active.len() < self.config.slots as usize
    }

    /// Takes what happened and appends what should be done.
    pub fn handle(&mut self, now: Time, event: UploadEvent, actions: &mut Vec<UploadAction>) {
        match event {
            UploadEvent::Request { from, id, task, generation, piece, bytes, expires } => {
                let request = Waiting { id, task, generation, piece, bytes, deadline: now + expires };
                self.enqueue(from, request, actions);
            }
            UploadEvent::Cancel { from, id } => {
                if self.take(from, id).is_some() {
                    actions.push(UploadAction::Refuse { to: from, id, why: RefuseUpload::Cancelled });
                }
            }
            UploadEvent::Sent { to, id } => {
                if let Some(Active { task, piece, bytes }) = self.active.remove(&(to, id)) {
                    self.active_bytes -= u64::from(bytes);
                    if let Some(copies) = self.copies.get_mut(&(task, piece)) {
                        *copies -= 1;
                        if *copies == 0 {
                            self.copies.remove(&(task, piece));
                        }
                    }
                }
            }
            UploadEvent::Left { peer } => {
                for request in self.waiting.remove(&peer).unwrap_or_default() {
                    self.waiting_bytes -= u64::from(request.bytes);
                    self.deadlines.remove(&(request.deadline, peer, request.id));
                }
                self.turns.retain(|p| *p != peer);
            }
            UploadEvent::Tick => self.armed = None,
        }
        self.expire(now, actions);
        self.start(actions);
        self.arm(actions);
    }

    fn enqueue(&mut self, from: HostId, request: Waiting, actions: &mut Vec<UploadAction>) {
        let queue = self.waiting.get(&from);
        let known = queue.is_some_and(|q| q.iter().any(|w| w.id == request.id));
        if known || self.active.contains_key(&(from, request.id)) {
            // A number in use twice is the asker's defect; the first request stands.
            return;
        }
        let full = queue.is_some_and(|q| q.len() >= self.config.queue_per_peer_max as usize)
            || self.deadlines.len() >= self.config.queue_max as usize;
        if full {
            actions.push(UploadAction::Refuse { to: from, id: request.id, why: RefuseUpload::Busy });
            return;
        }
        self.waiting_bytes += u64::from(request.bytes);
        self.deadlines.insert((request.deadline, from, request.id));
        let queue = self.waiting.entry(from).or_default();
        if queue.is_empty() {
            self.turns.push_back(from);
        }
        queue.push_back(request);
    }

    /// Takes a waiting request out of every index.
    fn take(&mut self, from: HostId, id: u64) -> Option<Waiting> {
        let queue = self.waiting.get_mut(&from)?;
        let at = queue.iter().position(|w| w.id == id)?;
        let request = queue.remove(at)?;
        if queue.is_empty() {
            self.waiting.remove(&from);
            self.turns.retain(|p| *p != from);
        }
        self.waiting_bytes -= u64::from(request.bytes);
        self.deadlines.remove(&(request.deadline, from, id));
        Some(request)
    }

    fn expire(&mut self, now: Time, actions: &mut Vec<UploadAction>) {
        while let Some(&(deadline, from, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.take(from, id);
            actions.push(UploadAction::Refuse { to: from, id, why: RefuseUpload::Expired });
        }
    }

    /// Starts what may be started: neighbours in turn, and of one piece only a few copies at a time, so that the first
    /// of those who ask for it have it soon and can pass it on.
    fn start(&mut self, actions: &mut Vec<UploadAction>) {
        let mut skipped = 0;
        while self.active.len() < self.config.slots as usize
            && skipped < self.turns.len()
            && let Some(to) = self.turns.pop_front()
        {
            let Some(queue) = self.waiting.get_mut(&to) else { continue };
            let copies = &self.copies;
            let at = queue.iter().position(|w| copies.get(&(w.task, w.piece)).is_none_or(|n| *n < SAME_PIECE_MAX));
            let Some(request) = at.and_then(|at| queue.remove(at)) else {
                self.turns.push_back(to);
                skipped += 1;
                continue;
            };
            skipped = 0;
            if queue.is_empty() {
                self.waiting.remove(&to);
            } else {
                self.turns.push_back(to);
            }
            let Waiting { id, task, generation, piece, bytes, deadline } = request;
            self.deadlines.remove(&(deadline, to, id));
            self.waiting_bytes -= u64::from(bytes);
            self.active_bytes += u64::from(bytes);
            *self.copies.entry((task, piece)).or_default() += 1;
            self.active.insert((to, id), Active { task, piece, bytes });
            actions.push(UploadAction::Send { to, id, task, generation, piece });
        }
    }

    fn arm(&mut self, actions: &mut Vec<UploadAction>) {
        if let Some(&(next, ..)) = self.deadlines.first()
            && self.armed.is_none_or(|armed| next < armed)
        {
            self.armed = Some(next);
            actions.push(UploadAction::WakeAt(next));
        }
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let bytes: u64 = self.waiting.values().flatten().map(|w| u64::from(w.bytes)).sum();
        let count: usize = self.waiting.values().map(VecDeque::len).sum();
        let rules = [
            (self.active.len() <= self.config.slots as usize, "more pieces are being sent than there are slots"),
            (count <= self.config.queue_max as usize, "the queue is over its limit"),
            (
                self.waiting.values().all(|q| !q.is_empty() && q.len() <= self.config.queue_per_peer_max as usize),
                "a neighbour's queue is empty or over its limit",
            ),
            (bytes == self.waiting_bytes && count == self.deadlines.len(), "the queue's sums are wrong"),
            (
                self.active.values().map(|a| u64::from(a.bytes)).sum::<u64>() == self.active_bytes,
                "the bytes being sent are wrong",
            ),
            (
                self.turns.len() == self.waiting.len() && self.turns.iter().all(|p| self.waiting.contains_key(p)),
                "the turns do not name each waiting neighbour once",
            ),
            (
                self.active.len() == self.config.slots as usize
                    || self
                        .waiting
                        .values()
                        .flatten()
                        .all(|w| self.copies.get(&(w.task, w.piece)) == Some(&SAME_PIECE_MAX)),
                "a slot is free although a request waits that could be served",
            ),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, broken)| Err(*broken))
    }
}
