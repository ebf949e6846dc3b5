//! Which request comes next.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::PieceIndex;
use rand::Rng;

use super::neighbour::{Asked, HORIZON_S};
use super::{Picker, PickerAction};
use crate::Time;

/// Requests outstanding in all that are always allowed, whatever the speed.
const OUTSTANDING_BASE: u32 = 6;
/// Neighbours compared before one is chosen.
const CHOICES: usize = 2;
/// In the endgame, pieces that may still be missing.
const ENDGAME_PIECES_MAX: u32 = 24;
/// Of the pieces of a content one in so many may be asked for twice.
const DUPLICATE_ONE_IN: u32 = 64;
/// A piece is asked for twice only after so many times the usual time of an answer.
const LATE_FACTOR: f64 = 2.0;
/// And not before this, so that a short hiccup costs nothing.
const LATE_MIN: Duration = Duration::from_millis(100);
/// A request may wait for so many times the usual time of an answer, when that is more than the configured expiry.
const EXPIRY_FACTOR: f64 = 4.0;
/// Before anything has been answered a request may wait for so many times the configured expiry.
const FIRST_EXPIRY_FACTOR: u32 = 3;
/// Taken for the speed of a neighbour of which nothing is known, when nothing is known of any: 100 Mb/s.
const TYPICAL_BYTES_PER_S: f64 = 12_500_000.0;

impl Picker {
    /// Asks for as much as may be asked for.
    pub(super) fn fill(&mut self, now: Time, actions: &mut Vec<PickerAction>) {
        if self.complete || self.peers.is_empty() {
            return;
        }
        let limit = self.outstanding_limit();
        self.ask_seeds(now, actions);
        while self.outstanding < limit && self.rarity.eligible() > 0 {
            let Some((slot, piece)) = self.choose(now) else { break };
            self.ask(now, slot, piece, actions);
        }
        if self.outstanding < limit && self.rarity.eligible() == 0 {
            self.endgame(now, actions);
        }
    }

    /// A piece that only a seed is known to have was shown to few hosts: nobody else can spread it, so it is asked for
    /// even when enough is outstanding otherwise.
    fn ask_seeds(&mut self, now: Time, actions: &mut Vec<PickerAction>) {
        for at in 0..self.peers.seeds().len() {
            let slot = self.peers.seeds()[at];
            while self.outstanding < self.config.outstanding_max
                && let Some(seed) = self.peers.get(slot)
                && seed.useful > 0
                && seed.pause_until <= now
                && (seed.asked.len() as u32) < self.config.outstanding_per_peer_max
                && let Some(piece) = self.rarity.rarest_of(&seed.have)
                && self.rarity.only_at_seed(piece)
            {
                self.ask(now, slot, piece, actions);
            }
        }
    }

    /// By measured speed: enough that the link stays busy, few enough that decisions are late.
    fn outstanding_limit(&self) -> u32 {
        let by_speed = self.meter.peak() * HORIZON_S / f64::from(self.config.piece_len_bytes.max(1));
        let max = self.config.outstanding_max.max(1);
        // What waits at a seed waits for the swarm as a whole; it must not keep the host from asking its neighbours.
        let at_seeds: usize = self.peers.seeds().iter().filter_map(|s| self.peers.get(*s)).map(|s| s.asked.len()).sum();
        (OUTSTANDING_BASE + at_seeds as u32 + by_speed.min(f64::from(max)) as u32).min(max)
    }

    fn choose(&mut self, now: Time) -> Option<(usize, u32)> {
        let usable = &mut self.scratch;
        usable.clear();
        // A neighbour that left requests unanswered is asked only for what no other has.
        let proven = self.peers.iter().any(|(_, p)| p.useful > 0 && p.silences == 0);
        let (piece_len, most) = (self.config.piece_len_bytes, self.config.outstanding_per_peer_max);
        usable.extend(self.peers.iter().filter_map(|(slot, p)| {
            let may = p.useful > 0
                && p.pause_until <= now
                && (!proven || p.silences == 0)
                && (p.asked.len() as u32) < p.outstanding_max(piece_len, most);
            may.then_some(slot)
        }));
        if usable.is_empty() && self.outstanding == 0 && !proven {
            // Better to ask one that was silent than nobody: the link may only be slower than was thought.
            usable.extend(self.peers.iter().filter(|(_, p)| p.useful > 0).map(|(slot, _)| slot));
        }
        let mut best: Option<(f64, usize)> = None;
        for _ in 0..CHOICES {
            if usable.is_empty() {
                break;
            }
            let slot = usable.swap_remove(self.rng.random_range(0..usable.len()));
            let Some(peer) = self.peers.get(slot) else { continue };
            let wait = peer.wait_s(now, self.config.piece_len_bytes, self.typical);
            if best.is_none_or(|(least, _)| wait < least) {
                best = Some((wait, slot));
            }
        }
        let (_, slot) = best?;
        let piece = self.rarity.rarest_of(&self.peers.get(slot)?.have)?;
        Some((slot, piece))
    }

    fn ask(&mut self, now: Time, slot: usize, piece: u32, actions: &mut Vec<PickerAction>) {
        let expires = self.expiry();
        let deadline = now + expires;
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.asked.push(Asked { piece, at: now, deadline });
        let id = peer.id;
        self.deadlines.insert((deadline, piece, slot));
        self.outstanding += 1;
        self.rarity.add_asked(piece);
        self.refresh(piece);
        actions.push(PickerAction::Request { peer: id, piece: PieceIndex(piece), expires });
    }

    /// Twice as long after each round of expiries without a piece, so that a link slower than was thought gets there.
    pub(super) fn expiry(&self) -> Duration {
        let usual = if self.meter.answer_s == 0.0 {
            // Nothing has come yet: the link may be slow.
            self.config.request_expiry * FIRST_EXPIRY_FACTOR
        } else {
            Duration::from_secs_f64((self.meter.answer_s * EXPIRY_FACTOR).min(3_600.0))
        };
        self.config.request_expiry.max(usual).saturating_mul(1 << self.patience)
    }

    /// Everything that is missing has been asked for: what is late is asked of a second neighbour.
    fn endgame(&mut self, now: Time, actions: &mut Vec<PickerAction>) {
        let Some(missing) = self.rarity.missing() else { return };
        let budget = self.rarity.count().unwrap_or(0).div_ceil(DUPLICATE_ONE_IN).max(1);
        if missing == 0 || missing > ENDGAME_PIECES_MAX || missing > self.outstanding || self.duplicates >= budget {
            return;
        }
        let asked: BTreeSet<u32> =
            self.deadlines.iter().map(|(_, p, _)| *p).filter(|p| self.rarity.is_wanted(*p)).collect();
        if (asked.len() as u32) < missing {
            return;
        }
        let late = Duration::from_secs_f64((self.meter.answer_s * LATE_FACTOR).min(3_600.0)).max(LATE_MIN);
        let mut best: Option<(f64, usize, u32)> = None;
        for (_, piece, holder) in &self.deadlines {
            let Some(asked) = self.peers.get(*holder).and_then(|p| p.asked.iter().find(|a| a.piece == *piece)) else {
                continue;
            };
            if asked.at + late > now
                || !self.rarity.is_wanted(*piece)
                || self.rarity.get(*piece).is_none_or(|p| p.asked != 1)
            {
                continue;
            }
            for (slot, peer) in self.peers.iter() {
                if slot != *holder
                    && peer.pause_until <= now
                    && peer.have.contains(PieceIndex(*piece))
                    && !peer.asked.iter().any(|a| a.piece == *piece)
                {
                    let wait = peer.wait_s(now, self.config.piece_len_bytes, self.typical);
                    if best.is_none_or(|(least, ..)| wait < least) {
                        best = Some((wait, slot, *piece));
                    }
                }
            }
        }
        if let Some((_, slot, piece)) = best {
            self.duplicates += 1;
            self.ask(now, slot, piece, actions);
        }
        self.endgame_at = Some(now + LATE_MIN);
    }

    /// The speed taken for neighbours of which nothing is known: what the known ones have on average.
    pub(super) fn learn_typical(&mut self, capacity: f64) {
        if capacity > 0.0 {
            self.typical = if self.typical == TYPICAL_BYTES_PER_S {
                capacity
            } else {
                self.typical.mul_add(0.95, capacity * 0.05)
            };
        }
    }

    pub(super) const fn typical_at_first() -> f64 {
        TYPICAL_BYTES_PER_S
    }
}
