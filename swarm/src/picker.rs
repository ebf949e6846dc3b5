//! Which piece to ask of which neighbour: one picker per task on a host.

mod choose;
mod neighbour;
mod rarity;
mod slots;

use std::collections::BTreeSet;
use std::time::Duration;

use proto::{HostId, PieceIndex, PieceSet};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::Time;
use neighbour::{Meter, Neighbour};
use rarity::{Change, Rarity};
use slots::Slots;

/// Limits and tunables of a [`Picker`].
#[derive(Clone, Debug)]
pub struct PickerConfig {
    /// Pieces ahead of the reader that may be asked for; rarest first within it.
    pub window_pieces: u32,
    /// Length of a piece in bytes, to turn speeds into numbers of requests.
    pub piece_len_bytes: u32,
    /// Requests outstanding at one neighbour at most.
    pub outstanding_per_peer_max: u32,
    /// Requests outstanding in all at most.
    pub outstanding_max: u32,
    /// A request that was not answered within this time is asked of somebody else.
    pub request_expiry: Duration,
    /// With no verified byte for so long, [`PickerAction::Starving`] is said.
    pub starving_after: Duration,
    /// Fewer useful neighbours than this, and more are asked for.
    pub neighbours_wanted: u32,
    /// Breaks ties differently on every host; the low bits of the host id.
    pub seed: u64,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum PickerEvent {
    /// The number of pieces is now known.
    Count {
        /// Pieces in the content.
        pieces: u32,
    },
    /// The hashes of these further pieces are known: only such pieces are asked for.
    Verifiable {
        /// Pieces, in addition to those told before.
        pieces: PieceSet,
    },
    /// A piece is in the store, however it came there.
    Stored {
        /// Which.
        piece: PieceIndex,
    },
    /// A neighbour may be asked.
    Joined {
        /// Who.
        peer: HostId,
        /// It is a supernode's seed.
        seed: bool,
    },
    /// A neighbour is gone; its outstanding requests with it.
    Left {
        /// Who.
        peer: HostId,
    },
    /// A neighbour told of its pieces.
    Have {
        /// Who.
        peer: HostId,
        /// Pieces it offers.
        added: PieceSet,
        /// They replace what it told before.
        replaces: bool,
        /// Bytes waiting to be sent by it.
        queued_bytes: u64,
        /// Bytes per second it has lately sent in all; 0 = not known.
        upload_bytes_per_s: u64,
    },
    /// A request ended. After [`Outcome::Good`] the piece is in the store; no `Stored` follows.
    Ended {
        /// Who was asked.
        peer: HostId,
        /// For which piece.
        piece: PieceIndex,
        /// How it ended.
        outcome: Outcome,
    },
    /// Where readers are: the first piece the foremost reader lacks. Without readers the whole content is wanted in
    /// any order.
    Reader {
        /// That piece, `None` without readers.
        next: Option<PieceIndex>,
    },
    /// Only part of the content is wanted (a ranged read); both ends included. `None` = all.
    Wanted {
        /// First and last piece.
        pieces: Option<(PieceIndex, PieceIndex)>,
    },
    /// The moment of a [`PickerAction::WakeAt`] has come.
    Tick,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Verified and stored.
    Good {
        /// Bytes of the piece.
        bytes: u32,
    },
    /// The bytes were not what the hash says: that neighbour is cut off.
    Bad,
    /// Its queue is full.
    Busy {
        /// Bytes waiting to be sent by it.
        queued_bytes: u64,
    },
    /// It does not have the piece after all.
    Missing,
    /// Cancelled, expired or failed over there, or the connection broke: nobody's fault.
    Failed,
}

/// What should be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PickerAction {
    /// Ask for a piece.
    Request {
        /// Whom.
        peer: HostId,
        /// For which piece.
        piece: PieceIndex,
        /// It may drop the request after waiting so long.
        expires: Duration,
    },
    /// Take a request back.
    Cancel {
        /// Whom it was put to.
        peer: HostId,
        /// For which piece.
        piece: PieceIndex,
    },
    /// This neighbour served bad bytes: report it and cut it off.
    Distrust {
        /// Who.
        peer: HostId,
        /// The bad piece.
        piece: PieceIndex,
    },
    /// Ask the supernode for more neighbours.
    NeedPeers {
        /// How many.
        wanted: u32,
    },
    /// Nothing verified has arrived for `starving_after`, and pieces are still wanted: time for another way. Said
    /// again after each further `starving_after`.
    Starving,
    /// Everything that is wanted is stored.
    Complete,
    /// Send a [`PickerEvent::Tick`] at this moment; replaces the moment asked for before.
    WakeAt(Time),
}

/// Chooses pieces and neighbours for one task.
#[derive(Debug)]
pub struct Picker {
    config: PickerConfig,
    rng: SmallRng,
    rarity: Rarity,
    peers: Slots,
    distrusted: BTreeSet<HostId>,
    /// Bad pieces that seeds served.
    seed_faults: u32,
    /// When each outstanding request is given up: moment, piece, slot.
    deadlines: BTreeSet<(Time, u32, usize)>,
    outstanding: u32,
    duplicates: u32,
    meter: Meter,
    /// Speed taken for neighbours of which nothing is known, in bytes per second.
    typical: f64,
    /// How often the expiry is doubled.
    patience: u32,
    reader: Option<PieceIndex>,
    starving_at: Option<Time>,
    need_peers_at: Option<Time>,
    need_peers_pause: Duration,
    endgame_at: Option<Time>,
    complete: bool,
    armed: Option<Time>,
    scratch: Vec<usize>,
}

/// The expiry of a request is doubled this often at most.
const PATIENCE_MAX: u32 = 6;
/// Asking for neighbours: the first pause between two times, and the longest; it doubles.
const NEED_PEERS_FIRST: Duration = Duration::from_secs(1);
const NEED_PEERS_MAX: Duration = Duration::from_secs(30);
/// Neighbours kept at most, whatever the supernode says: each costs a bitmap and a look per decision.
const NEIGHBOURS_MAX: usize = 256;
/// Hosts remembered as distrusted at most, per task; the smallest ids are forgotten first.
const DISTRUSTED_MAX: usize = 4_096;
/// A seed is taken for a neighbour again until it has served so many bad pieces: without it there may be nobody else, and
/// it looks at its own copy after the first.
const SEED_FAULTS_MAX: u32 = 3;

// === impl PickerConfig ===

impl Default for PickerConfig {
    fn default() -> Self {
        Self {
            // Windows of 32 pieces and more cost nothing against any order (simulated).
            window_pieces: 64,
            piece_len_bytes: proto::PIECE_LEN_UNKNOWN,
            // A lone neighbour on a fast or long link needs this many to keep it busy.
            outstanding_per_peer_max: 16,
            // 16 MiB of pieces of 256 KiB: 100 ms at 1.3 Gb/s; the measured speed decides below that.
            outstanding_max: 64,
            // Longer than any honest queue lasts, short enough for a reader who waits.
            request_expiry: Duration::from_secs(4),
            starving_after: Duration::from_secs(10),
            neighbours_wanted: 16,
            seed: 0,
        }
    }
}

// === impl Picker ===

impl Picker {
    /// A picker that knows of no pieces and no neighbours.
    #[must_use]
    pub fn new(config: PickerConfig) -> Self {
        let rng = SmallRng::seed_from_u64(config.seed);
        Self {
            config,
            rng,
            rarity: Rarity::new(),
            peers: Slots::default(),
            distrusted: BTreeSet::new(),
            seed_faults: 0,
            deadlines: BTreeSet::new(),
            outstanding: 0,
            duplicates: 0,
            meter: Meter::default(),
            typical: Self::typical_at_first(),
            patience: 0,
            reader: None,
            starving_at: None,
            need_peers_at: None,
            need_peers_pause: NEED_PEERS_FIRST,
            endgame_at: None,
            complete: false,
            armed: None,
            scratch: Vec::new(),
        }
    }

    /// Requests outstanding in all.
    #[must_use]
    pub const fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Pieces that were asked for at a second neighbour in the endgame, so far.
    #[must_use]
    pub const fn duplicates(&self) -> u32 {
        self.duplicates
    }

    /// Everything that is wanted is stored.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Takes what happened and appends what should be done.
    pub fn handle(&mut self, now: Time, event: PickerEvent, actions: &mut Vec<PickerAction>) {
        if self.starving_at.is_none() {
            self.starving_at = Some(now + self.config.starving_after);
        }
        match event {
            PickerEvent::Count { pieces } => self.count(pieces),
            PickerEvent::Verifiable { pieces } => {
                for piece in pieces.iter().map(|p| p.0) {
                    if self.rarity.reach(piece) {
                        self.rarity.set_verifiable(piece);
                        self.refresh(piece);
                    }
                }
            }
            PickerEvent::Stored { piece } => self.stored(now, piece.0, None, actions),
            PickerEvent::Joined { peer, seed } => self.joined(now, peer, seed),
            PickerEvent::Left { peer } => self.drop_peer(peer),
            PickerEvent::Have { peer, added, replaces, queued_bytes, upload_bytes_per_s } => {
                self.have(now, peer, &added, replaces, queued_bytes, upload_bytes_per_s);
            }
            PickerEvent::Ended { peer, piece, outcome } => self.ended(now, peer, piece.0, outcome, actions),
            PickerEvent::Reader { next } => self.read_on(next),
            PickerEvent::Wanted { pieces } => {
                let touched = self.rarity.set_wanted(pieces.map(|(first, last)| (first.0, last.0)));
                self.refresh_all(touched);
                self.complete = false;
            }
            PickerEvent::Tick => self.armed = None,
        }
        self.expire(now, actions);
        self.fill(now, actions);
        self.notice(now, actions);
        self.arm(now, actions);
    }

    fn count(&mut self, pieces: u32) {
        // What lies beyond the end was claimed by somebody who was wrong; a claim costs nothing.
        self.rarity.set_count(pieces, &mut self.rng);
        for (_, peer) in self.peers.iter_mut() {
            peer.useful = self.rarity.eligible_of(&peer.have);
        }
        self.read_on(self.reader);
    }

    fn read_on(&mut self, next: Option<PieceIndex>) {
        self.reader = next;
        let window = next.map(|first| (first.0, first.0.saturating_add(self.config.window_pieces.max(1) - 1)));
        let touched = self.rarity.set_window(window);
        self.refresh_all(touched);
    }

    fn refresh_all(&mut self, ranges: Vec<(u32, u32)>) {
        for (from, to) in ranges {
            for piece in from..to {
                self.refresh(piece);
            }
        }
    }

    /// Files a piece anew after its state changed.
    fn refresh(&mut self, piece: u32) {
        let change = self.rarity.refresh(piece, &mut self.rng);
        if change == Change::None {
            return;
        }
        for (_, peer) in self.peers.iter_mut() {
            if peer.have.contains(PieceIndex(piece)) {
                if change == Change::Added {
                    peer.useful += 1;
                } else {
                    peer.useful -= 1;
                }
            }
        }
    }

    fn joined(&mut self, now: Time, peer: HostId, seed: bool) {
        if self.distrusted.contains(&peer) || self.peers.find(peer).is_some() || self.peers.len() >= NEIGHBOURS_MAX {
            return;
        }
        self.peers.add(Neighbour::new(peer, seed, now));
        if self.peers.len() >= self.config.neighbours_wanted as usize {
            self.need_peers_pause = NEED_PEERS_FIRST;
        }
    }

    fn drop_peer(&mut self, peer: HostId) {
        let Some(slot) = self.peers.find(peer) else { return };
        let Some(gone) = self.peers.remove(slot) else { return };
        if !gone.seed {
            for piece in gone.have.iter() {
                self.rarity.drop_holder(piece.0);
                // Through our own refresh: it keeps the other holders' counts of useful pieces right.
                self.refresh(piece.0);
            }
        }
        for asked in gone.asked {
            self.deadlines.remove(&(asked.deadline, asked.piece, slot));
            self.outstanding -= 1;
            self.rarity.drop_asked(asked.piece);
            self.refresh(asked.piece);
        }
    }

    fn have(
        &mut self,
        now: Time,
        peer: HostId,
        added: &PieceSet,
        replaces: bool,
        queued_bytes: u64,
        upload_bytes_per_s: u64,
    ) {
        let Some(slot) = self.peers.find(peer) else { return };
        let Some(neighbour) = self.peers.get_mut(slot) else { return };
        neighbour.told_load(now, queued_bytes, upload_bytes_per_s);
        let (seed, capacity) = (neighbour.seed, neighbour.capacity());
        if replaces {
            let old = std::mem::take(&mut neighbour.have);
            neighbour.useful = 0;
            if !seed {
                for piece in old.iter() {
                    self.rarity.drop_holder(piece.0);
                    self.rarity.refresh(piece.0, &mut self.rng);
                }
            }
        }
        self.learn_typical(capacity);
        let Some(neighbour) = self.peers.get_mut(slot) else { return };
        for piece in added.iter() {
            if !self.rarity.reach(piece.0) || !neighbour.have.insert(piece) {
                continue;
            }
            if !seed {
                self.rarity.add_holder(piece.0);
                self.rarity.refresh(piece.0, &mut self.rng);
            }
            neighbour.useful += u32::from(self.rarity.is_eligible(piece.0));
        }
    }

    fn stored(&mut self, now: Time, piece: u32, from: Option<usize>, actions: &mut Vec<PickerAction>) {
        if !self.rarity.reach(piece) || !self.rarity.set_stored(piece) {
            return;
        }
        self.starving_at = Some(now + self.config.starving_after);
        if self.rarity.get(piece).is_some_and(|p| p.asked > 0) {
            for slot in 0..self.peers.slots() {
                if Some(slot) != from
                    && self.take_back(slot, piece)
                    && let Some(peer) = self.peers.get(slot)
                {
                    actions.push(PickerAction::Cancel { peer: peer.id, piece: PieceIndex(piece) });
                }
            }
        }
        self.refresh(piece);
    }

    /// Forgets a request; true when there was one.
    fn take_back(&mut self, slot: usize, piece: u32) -> bool {
        let Some(asked) = self.peers.get_mut(slot).and_then(|peer| peer.take(piece)) else { return false };
        self.deadlines.remove(&(asked.deadline, piece, slot));
        self.outstanding -= 1;
        self.rarity.drop_asked(piece);
        true
    }

    fn ended(&mut self, now: Time, peer: HostId, piece: u32, outcome: Outcome, actions: &mut Vec<PickerAction>) {
        let slot = self.peers.find(peer);
        let asked =
            slot.and_then(|s| self.peers.get(s)).and_then(|p| p.asked.iter().find(|a| a.piece == piece)).copied();
        if let (Some(slot), Some(_)) = (slot, asked) {
            self.take_back(slot, piece);
            self.refresh(piece);
        }
        match outcome {
            Outcome::Good { bytes } => {
                if let (Some(slot), Some(asked)) = (slot, asked) {
                    self.meter.add(now, bytes, now.since(asked.at));
                    if let Some(neighbour) = self.peers.get_mut(slot) {
                        neighbour.answered(now, asked.at, bytes);
                    }
                    self.patience = 0;
                } else if asked.is_none() && !self.rarity.is_stored(piece) {
                    // It was given up too early.
                    self.meter.late(self.expiry());
                }
                self.stored(now, piece, slot, actions);
            }
            Outcome::Bad => {
                actions.push(PickerAction::Distrust { peer, piece: PieceIndex(piece) });
                let is_seed = slot.and_then(|s| self.peers.get_mut(s)).is_some_and(|neighbour| neighbour.seed);
                self.drop_peer(peer);
                self.seed_faults += u32::from(is_seed);
                if is_seed && self.seed_faults < SEED_FAULTS_MAX {
                    return;
                }
                if self.distrusted.len() >= DISTRUSTED_MAX {
                    self.distrusted.pop_first();
                }
                self.distrusted.insert(peer);
            }
            // Without a request of ours it is the answer to one that was given up: it says nothing new.
            _ if asked.is_none() => {}
            Outcome::Busy { queued_bytes } => {
                let typical = self.typical;
                if let Some(neighbour) = slot.and_then(|s| self.peers.get_mut(s)) {
                    neighbour.busy(now, queued_bytes, typical);
                }
            }
            Outcome::Missing => self.lacks(now, slot, piece),
            Outcome::Failed => {
                if let Some(neighbour) = slot.and_then(|s| self.peers.get_mut(s)) {
                    neighbour.failed(now);
                }
            }
        }
        self.refresh(piece);
    }

    fn lacks(&mut self, now: Time, slot: Option<usize>, piece: u32) {
        let Some(neighbour) = slot.and_then(|s| self.peers.get_mut(s)) else { return };
        // Each further one costs a longer pause, so that empty promises cannot hold a download up.
        neighbour.failed(now);
        if neighbour.have.remove(PieceIndex(piece)) {
            if self.rarity.is_eligible(piece) {
                neighbour.useful -= 1;
            }
            if !neighbour.seed {
                self.rarity.drop_holder(piece);
            }
        }
    }

    fn expire(&mut self, now: Time, actions: &mut Vec<PickerAction>) {
        let mut any = false;
        while let Some(&(deadline, piece, slot)) = self.deadlines.first()
            && deadline <= now
        {
            any = true;
            self.take_back(slot, piece);
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.silent(now);
                actions.push(PickerAction::Cancel { peer: peer.id, piece: PieceIndex(piece) });
            }
            self.refresh(piece);
        }
        if any {
            self.patience = (self.patience + 1).min(PATIENCE_MAX);
        }
    }

    /// Says what has come about: complete, starving, too few neighbours.
    fn notice(&mut self, now: Time, actions: &mut Vec<PickerAction>) {
        let done = self.rarity.missing() == Some(0);
        if done && !self.complete {
            actions.push(PickerAction::Complete);
        }
        self.complete = done;
        if done {
            return;
        }
        if self.starving_at.is_some_and(|at| at <= now) {
            self.starving_at = Some(now + self.config.starving_after);
            actions.push(PickerAction::Starving);
        }
        let few = (self.peers.len() as u32) < self.config.neighbours_wanted;
        match self.need_peers_at {
            // The supernode gives neighbours without being asked when the task is opened: that is waited for.
            None if few => self.need_peers_at = Some(now + self.need_peers_pause),
            Some(_) if !few => self.need_peers_at = None,
            Some(at) if at <= now => {
                self.need_peers_pause = (self.need_peers_pause * 2).min(NEED_PEERS_MAX);
                self.need_peers_at = Some(now + self.need_peers_pause);
                let wanted = self.config.neighbours_wanted - self.peers.len() as u32;
                actions.push(PickerAction::NeedPeers { wanted });
            }
            _ => {}
        }
    }

    fn arm(&mut self, now: Time, actions: &mut Vec<PickerAction>) {
        if self.complete && self.outstanding == 0 {
            return;
        }
        let deadline = self.deadlines.first().map(|(at, ..)| *at);
        // A pause matters only when there is something to ask for and room to ask.
        let pause = (self.rarity.eligible() > 0 && self.outstanding < self.config.outstanding_max)
            .then(|| {
                self.peers.iter().filter(|(_, p)| p.useful > 0 && p.pause_until > now).map(|(_, p)| p.pause_until).min()
            })
            .flatten();
        let endgame = self.endgame_at.take_if(|at| *at <= now).map(|_| now).or(self.endgame_at);
        let endgame = endgame.filter(|at| *at > now);
        let next = [deadline, pause, endgame, self.starving_at, self.need_peers_at].into_iter().flatten().min();
        if let Some(next) = next
            && self.armed.is_none_or(|armed| next < armed)
        {
            self.armed = Some(next);
            actions.push(PickerAction::WakeAt(next));
        }
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        self.rarity.check()?;
        let mut asked = std::collections::BTreeMap::<u32, u32>::new();
        for (_, peer) in self.peers.iter() {
            for a in &peer.asked {
                *asked.entry(a.piece).or_default() += 1;
            }
            if peer.useful != self.rarity.eligible_of(&peer.have) {
                return Err("the number of useful pieces at a neighbour is wrong");
            }
            if peer.asked.len() as u32 > self.config.outstanding_per_peer_max {
                return Err("too much is outstanding at a neighbour");
            }
            if self.distrusted.contains(&peer.id) {
                return Err("a distrusted host is a neighbour");
            }
        }
        let total: u32 = asked.values().sum();
        let twice = asked.values().filter(|n| **n > 1).count() as u32;
        let rules = [
            (
                total == self.outstanding && total as usize == self.deadlines.len(),
                "the number of outstanding requests is wrong",
            ),
            (total <= self.config.outstanding_max, "too much is outstanding"),
            (
                asked.values().all(|n| *n <= 2) && twice <= self.duplicates,
                "a piece is asked for twice outside the endgame",
            ),
            (
                asked.iter().all(|(p, n)| {
                    self.rarity.get(*p).is_some_and(|s| s.verifiable && !s.stored && u32::from(s.asked) == *n)
                }),
                "a piece is asked for that must not be",
            ),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, broken)| Err(*broken))
    }
}
