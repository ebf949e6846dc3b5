//! What a seed tells to whom: each piece into one hand first, in different hands, before any is repeated.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proto::{HostId, PieceIndex, PieceSet};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::Listener;
use crate::Time;

/// Pieces in somebody's hand and not yet fetched: few, because all that are asked for share the seed's link, and the
/// sooner one is whole the sooner it spreads. More when the link idles, up to the extra: on a long or fast link the
/// requests would not come in time otherwise.
const IN_HAND_MIN: usize = 8;
const IN_HAND_EXTRA_MAX: usize = 24;
/// Pieces handed out once more each time the seed's link idles; a few, so that fresh ones never wait behind them.
const REPEAT_PER_IDLE: usize = 2;
/// Pieces looked at for one that a listener lacks.
const REPEAT_LOOKS: usize = 16;

/// Who knows of which piece.
#[derive(Debug)]
pub(super) struct Reveals {
    rng: SmallRng,
    again_after: Duration,
    /// Told to nobody yet.
    fresh: VecDeque<PieceIndex>,
    states: BTreeMap<PieceIndex, Hand>,
    /// Pieces in each listener's hands.
    held: BTreeMap<HostId, u32>,
    /// When a piece that did not spread is told to another neighbour.
    again: BTreeSet<(Time, PieceIndex)>,
    in_hand: usize,
    /// Told to somebody, not to everybody: what an idle link may repeat, in turn.
    handed: VecDeque<PieceIndex>,
    /// Told to everybody.
    public: PieceSet,
    /// Extra pieces that may be in hand because the link idled.
    extra: usize,
    /// Pieces to hand out once more, because the link idles and nothing fresh is there.
    repeat: usize,
}

/// The state of a piece that was told to somebody and is not public.
#[derive(Debug)]
struct Hand {
    owner: HostId,
    again_at: Time,
    fetched: bool,
    seen_at: u32,
    /// A second host has it: the swarm can do without us.
    spread: bool,
}

impl Reveals {
    pub(super) fn new(seed: u64, again_after: Duration) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(seed),
            again_after,
            fresh: VecDeque::new(),
            states: BTreeMap::new(),
            held: BTreeMap::new(),
            again: BTreeSet::new(),
            in_hand: 0,
            handed: VecDeque::new(),
            public: PieceSet::new(),
            extra: 0,
            repeat: 0,
        }
    }

    pub(super) fn stored(&mut self, piece: PieceIndex) {
        self.fresh.push_back(piece);
    }

    /// What everybody may know.
    pub(super) fn public(&self) -> PieceSet {
        self.public.clone()
    }

    pub(super) fn next_again(&self) -> Option<Time> {
        self.again.first().map(|(at, _)| *at)
    }

    /// A listener is gone: what was in its hands is told to another at once.
    pub(super) fn forget(&mut self, peer: HostId) {
        let lost: Vec<PieceIndex> =
            self.states.iter().filter(|(_, hand)| hand.owner == peer).map(|(piece, _)| *piece).collect();
        for piece in lost {
            self.fetched(piece);
            if let Some(hand) = self.states.get_mut(&piece)
                && self.again.remove(&(hand.again_at, piece))
            {
                hand.again_at = Time::default();
                self.again.insert((hand.again_at, piece));
            }
        }
        self.held.remove(&peer);
    }

    /// A listener told that it has the piece.
    pub(super) fn seen_at(&mut self, peer: HostId, piece: PieceIndex) {
        let Some(hand) = self.states.get_mut(&piece) else { return };
        hand.seen_at += 1;
        hand.spread |= hand.seen_at >= 2 || hand.owner != peer;
        if hand.owner == peer || hand.spread {
            self.fetched(piece);
        }
    }

    /// The piece need not be fetched from here any more by the one it was told to.
    pub(super) fn fetched(&mut self, piece: PieceIndex) {
        if let Some(hand) = self.states.get_mut(&piece)
            && !hand.fetched
        {
            hand.fetched = true;
            self.in_hand -= 1;
            if let Some(held) = self.held.get_mut(&hand.owner) {
                *held = held.saturating_sub(1);
            }
        }
    }

    /// The link idles: more may be told.
    pub(super) fn idle(&mut self) {
        if self.fresh.is_empty() {
            self.repeat = REPEAT_PER_IDLE;
        } else {
            self.extra = (self.extra + 1).min(IN_HAND_EXTRA_MAX);
        }
    }

    /// Tells what may be told now.
    pub(super) fn run(
        &mut self,
        now: Time,
        all_here: bool,
        listeners: &mut BTreeMap<HostId, Listener>,
        mut tell: impl FnMut(HostId, &mut Listener, PieceIndex),
    ) {
        if listeners.is_empty() {
            return;
        }
        let limit = IN_HAND_MIN + self.extra;
        // A lone listener is every hand there is.
        let lone = listeners.len() == 1;
        while let Some(&(at, piece)) = self.again.first()
            && at <= now
        {
            self.again.pop_first();
            self.fetched(piece);
            if self.states.get(&piece).is_some_and(|hand| !hand.spread) {
                self.hand_out(now, piece, listeners, &mut tell);
            }
        }
        while (self.in_hand < limit || lone)
            && let Some(piece) = self.fresh.pop_front()
        {
            self.handed.push_back(piece);
            self.hand_out(now, piece, listeners, &mut tell);
        }
        if all_here && self.fresh.is_empty() && (self.in_hand == 0 || lone) && !self.handed.is_empty() {
            // Every piece has been fetched by somebody: from here on this is a host like any other.
            for piece in std::mem::take(&mut self.handed) {
                self.publish_one(piece, listeners, &mut tell);
            }
            self.states.clear();
            self.again.clear();
            self.held.clear();
            self.in_hand = 0;
        }
        for _ in 0..std::mem::take(&mut self.repeat) {
            if self.in_hand >= limit {
                break;
            }
            for _ in 0..REPEAT_LOOKS.min(self.handed.len()) {
                let Some(piece) = self.handed.pop_front() else { break };
                self.fetched(piece);
                if self.hand_out(now, piece, listeners, &mut tell) {
                    self.handed.push_back(piece);
                    break;
                }
                // Everybody knows it.
                self.public.insert(piece);
            }
        }
    }

    fn publish_one(
        &mut self,
        piece: PieceIndex,
        listeners: &mut BTreeMap<HostId, Listener>,
        tell: &mut impl FnMut(HostId, &mut Listener, PieceIndex),
    ) {
        self.public.insert(piece);
        for (peer, listener) in listeners.iter_mut() {
            tell(*peer, listener, piece);
        }
    }

    /// Tells one listener: one that lacks the piece, was not told of it, and has least in hand; ties at random.
    fn hand_out(
        &mut self,
        now: Time,
        piece: PieceIndex,
        listeners: &mut BTreeMap<HostId, Listener>,
        tell: &mut impl FnMut(HostId, &mut Listener, PieceIndex),
    ) -> bool {
        let mut best: Option<(u32, u32, HostId)> = None;
        for (peer, listener) in listeners.iter() {
            if listener.knows.contains(piece) {
                continue;
            }
            let candidate = (self.held.get(peer).copied().unwrap_or(0), self.rng.random(), *peer);
            if best.is_none_or(|b| candidate < b) {
                best = Some(candidate);
            }
        }
        let Some((.., peer)) = best else { return false };
        let old = self.states.get(&piece);
        let (seen_at, spread) = old.map_or((0, false), |hand| (hand.seen_at, hand.spread));
        if let Some(hand) = old {
            self.again.remove(&(hand.again_at, piece));
        }
        let again_at = now + self.again_after;
        self.states.insert(piece, Hand { owner: peer, again_at, fetched: false, seen_at, spread });
        self.again.insert((again_at, piece));
        self.in_hand += 1;
        *self.held.entry(peer).or_default() += 1;
        if let Some(listener) = listeners.get_mut(&peer) {
            tell(peer, listener, piece);
        }
        true
    }
}
