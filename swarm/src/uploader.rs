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
    active: BTreeMap<(HostId, u64), u32>,
    deadlines: BTreeSet<(Time, HostId, u64)>,
    waiting_bytes: u64,
    active_bytes: u64,
    armed: Option<Time>,
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
            // Few at a time, so that a piece is soon whole at its receiver and can be passed on; more than one, so
            // that a slow receiver does not idle the link.
            slots: SLOTS_DEFAULT,
            // A picker keeps at most 16 requests at one neighbour.
            queue_per_peer_max: 16,
            // Beyond it a request would wait for seconds on an ordinary link; better asked elsewhere.
            queue_max: 256,
        }
    }
}

const SLOTS_DEFAULT: u32 = 4;

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
                if let Some(bytes) = self.active.remove(&(to, id)) {
                    self.active_bytes -= u64::from(bytes);
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

    fn start(&mut self, actions: &mut Vec<UploadAction>) {
        while self.active.len() < self.config.slots as usize
            && let Some(to) = self.turns.pop_front()
        {
            let Some(queue) = self.waiting.get_mut(&to) else { continue };
            let Some(request) = queue.pop_front() else { continue };
            if queue.is_empty() {
                self.waiting.remove(&to);
            } else {
                self.turns.push_back(to);
            }
            let Waiting { id, task, generation, piece, bytes, deadline } = request;
            self.deadlines.remove(&(deadline, to, id));
            self.waiting_bytes -= u64::from(bytes);
            self.active_bytes += u64::from(bytes);
            self.active.insert((to, id), bytes);
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
                self.active.values().map(|b| u64::from(*b)).sum::<u64>() == self.active_bytes,
                "the bytes being sent are wrong",
            ),
            (
                self.turns.len() == self.waiting.len() && self.turns.iter().all(|p| self.waiting.contains_key(p)),
                "the turns do not name each waiting neighbour once",
            ),
            (count == 0 || self.active.len() == self.config.slots as usize, "a slot is free although requests wait"),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, broken)| Err(*broken))
    }
}
