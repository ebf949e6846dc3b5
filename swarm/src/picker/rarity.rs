//! The pieces of a picker, and those that may be asked for in the order of their rarity.

use proto::{PieceIndex, PieceSet};
use rand::Rng;
use rand::rngs::SmallRng;

/// Have-counts that are told apart, at most; more common pieces are alike.
const COUNTS: u32 = 64;
/// Ranks: the counts within the window, then the same counts outside it.
const RANKS: usize = 2 * COUNTS as usize;
/// More pieces than this no content is believed to have (a 64 TiB content at 4 MiB); bounds the memory.
pub(super) const PIECES_MAX: u32 = 1 << 24;

const NOWHERE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) stored: bool,
    pub(super) verifiable: bool,
    /// Requests outstanding for it: 0, 1, or more in the endgame.
    pub(super) asked: u8,
    /// Neighbours that have it, seeds not counted.
    count: u16,
    rank: u8,
    /// Its place in its rank, [`NOWHERE`] when it may not be asked for.
    place: u32,
}

/// All pieces; those that may be asked for (verifiable, wanted, neither stored nor asked for) in ranks.
#[derive(Debug)]
pub(super) struct Rarity {
    pieces: Vec<Piece>,
    ranks: Vec<Vec<u32>>,
    /// Which ranks are not empty.
    filled: u128,
    count: Option<u32>,
    stored: u32,
    /// Wanted and stored.
    stored_wanted: u32,
    window: Option<(u32, u32)>,
    wanted: Option<(u32, u32)>,
    eligible: u32,
}

/// How a piece's eligibility changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Added,
    Removed,
}

const NEW: Piece = Piece { stored: false, verifiable: false, asked: 0, count: 0, rank: 0, place: NOWHERE };

impl Rarity {
    pub(super) fn new() -> Self {
        Self {
            pieces: Vec::new(),
            ranks: vec![Vec::new(); RANKS],
            filled: 0,
            count: None,
            stored: 0,
            stored_wanted: 0,
            window: None,
            wanted: None,
            eligible: 0,
        }
    }

    pub(super) const fn count(&self) -> Option<u32> {
        self.count
    }

    /// Pieces that may be asked for now, if somebody has them.
    pub(super) const fn eligible(&self) -> u32 {
        self.eligible
    }

    pub(super) fn get(&self, piece: u32) -> Option<&Piece> {
        self.pieces.get(piece as usize)
    }

    pub(super) fn is_stored(&self, piece: u32) -> bool {
        self.get(piece).is_some_and(|p| p.stored)
    }

    pub(super) fn is_eligible(&self, piece: u32) -> bool {
        self.get(piece).is_some_and(|p| p.place != NOWHERE)
    }

    /// Wanted pieces that are not stored; `None` while their number is not known.
    pub(super) fn missing(&self) -> Option<u32> {
        let total = match (self.wanted, self.count) {
            (Some((first, last)), Some(count)) => last.saturating_add(1).min(count).saturating_sub(first),
            (Some((first, last)), None) => last.saturating_add(1).saturating_sub(first),
            (None, count) => count?,
        };
        Some(total.saturating_sub(self.stored_wanted))
    }

    pub(super) fn is_wanted(&self, piece: u32) -> bool {
        self.wanted.is_none_or(|(first, last)| (first..=last).contains(&piece))
    }

    /// Room for a piece; false when it lies beyond the content.
    pub(super) fn reach(&mut self, piece: u32) -> bool {
        let limit = self.count.unwrap_or(PIECES_MAX);
        if piece >= limit {
            return false;
        }
        if piece as usize >= self.pieces.len() {
            self.pieces.resize(piece as usize + 1, NEW);
        }
        true
    }

    pub(super) fn set_count(&mut self, count: u32, rng: &mut SmallRng) {
        let count = count.min(PIECES_MAX);
        for piece in count..u32::try_from(self.pieces.len()).unwrap_or(u32::MAX) {
            let p = &mut self.pieces[piece as usize];
            p.verifiable = false;
            if std::mem::take(&mut p.stored) {
                self.stored -= 1;
                self.stored_wanted -= u32::from(self.is_wanted(piece));
            }
            self.refresh(piece, rng);
        }
        self.count = Some(count);
        self.pieces.resize(count as usize, NEW);
    }

    pub(super) fn set_stored(&mut self, piece: u32) -> bool {
        let wanted = self.is_wanted(piece);
        let Some(p) = self.pieces.get_mut(piece as usize) else { return false };
        if std::mem::replace(&mut p.stored, true) {
            return false;
        }
        self.stored += 1;
        self.stored_wanted += u32::from(wanted);
        true
    }

    pub(super) fn set_verifiable(&mut self, piece: u32) {
        self.pieces[piece as usize].verifiable = true;
    }

    pub(super) fn add_asked(&mut self, piece: u32) {
        self.pieces[piece as usize].asked += 1;
    }

    pub(super) fn drop_asked(&mut self, piece: u32) {
        if let Some(p) = self.pieces.get_mut(piece as usize) {
            p.asked = p.asked.saturating_sub(1);
        }
    }

    pub(super) fn add_holder(&mut self, piece: u32) {
        let p = &mut self.pieces[piece as usize];
        p.count = p.count.saturating_add(1);
    }

    pub(super) fn drop_holder(&mut self, piece: u32) {
        if let Some(p) = self.pieces.get_mut(piece as usize) {
            p.count = p.count.saturating_sub(1);
        }
    }

    /// Whether no neighbour but a seed has it, as far as is known.
    pub(super) fn only_at_seed(&self, piece: u32) -> bool {
        self.get(piece).is_some_and(|p| p.count == 0)
    }

    /// The pieces whose eligibility a new window or wanted range touches; the caller refreshes them.
    pub(super) fn set_window(&mut self, window: Option<(u32, u32)>) -> Vec<(u32, u32)> {
        let old = std::mem::replace(&mut self.window, window);
        self.touched(old, window)
    }

    pub(super) fn set_wanted(&mut self, wanted: Option<(u32, u32)>) -> Vec<(u32, u32)> {
        let old = std::mem::replace(&mut self.wanted, wanted);
        self.stored_wanted = match wanted {
            None => self.stored,
            Some((first, last)) => {
                let end = (last as usize + 1).min(self.pieces.len());
                let range = self.pieces.get(first as usize..end).unwrap_or_default();
                u32::try_from(range.iter().filter(|p| p.stored).count()).unwrap_or(u32::MAX)
            }
        };
        self.touched(old, wanted)
    }

    /// Half-open ranges that lie in one of two ranges (both ends included, `None` = everything).
    fn touched(&self, old: Option<(u32, u32)>, new: Option<(u32, u32)>) -> Vec<(u32, u32)> {
        let end = u32::try_from(self.pieces.len()).unwrap_or(u32::MAX);
        match (old, new) {
            (Some((a, b)), Some((c, d))) if c >= a && c <= b && d >= b => {
                // The usual step forward: only the two margins change.
                vec![(a.min(end), c.min(end)), ((b + 1).min(end), d.saturating_add(1).min(end))]
            }
            (Some((a, b)), Some((c, d))) => {
                vec![(a.min(end), b.saturating_add(1).min(end)), (c.min(end), d.saturating_add(1).min(end))]
            }
            (None, None) => Vec::new(),
            _ => vec![(0, end)],
        }
    }

    /// Puts a piece where its state says it belongs.
    pub(super) fn refresh(&mut self, piece: u32, rng: &mut SmallRng) -> Change {
        let wanted = self.is_wanted(piece);
        let outside = self.window.is_some_and(|(first, last)| !(first..=last).contains(&piece));
        let Some(p) = self.pieces.get(piece as usize).copied() else { return Change::None };
        let should = p.verifiable && !p.stored && p.asked == 0 && wanted;
        let count = u32::from(p.count).min(COUNTS - 1);
        let rank = u8::try_from(if outside { COUNTS + count } else { count }).unwrap_or(u8::MAX);
        let is = p.place != NOWHERE;
        if is && (!should || rank != p.rank) {
            self.remove(piece, p);
        }
        if should && (!is || rank != p.rank) {
            self.insert(piece, rank, rng);
        }
        match (is, should) {
            (false, true) => {
                self.eligible += 1;
                Change::Added
            }
            (true, false) => {
                self.eligible -= 1;
                Change::Removed
            }
            _ => Change::None,
        }
    }

    fn remove(&mut self, piece: u32, p: Piece) {
        let rank = &mut self.ranks[p.rank as usize];
        rank.swap_remove(p.place as usize);
        if let Some(&moved) = rank.get(p.place as usize) {
            self.pieces[moved as usize].place = p.place;
        }
        if rank.is_empty() {
            self.filled &= !(1 << p.rank);
        }
        self.pieces[piece as usize].place = NOWHERE;
    }

    /// At a random place of its rank, so that ties break differently on every host.
    fn insert(&mut self, piece: u32, rank: u8, rng: &mut SmallRng) {
        let list = &mut self.ranks[rank as usize];
        let last = u32::try_from(list.len()).unwrap_or(NOWHERE);
        let place = rng.random_range(0..=last);
        if place == last {
            list.push(piece);
        } else {
            let moved = std::mem::replace(&mut list[place as usize], piece);
            list.push(moved);
            self.pieces[moved as usize].place = last;
        }
        self.filled |= 1 << rank;
        let p = &mut self.pieces[piece as usize];
        p.rank = rank;
        p.place = place;
    }

    /// The rarest piece of a set that may be asked for, the window first.
    pub(super) fn rarest_of(&self, have: &PieceSet) -> Option<u32> {
        let mut filled = self.filled;
        while filled != 0 {
            let rank = filled.trailing_zeros() as usize;
            if let Some(piece) = self.ranks[rank].iter().find(|p| have.contains(PieceIndex(**p))) {
                return Some(*piece);
            }
            filled &= filled - 1;
        }
        None
    }

    /// Pieces of a set that may be asked for.
    pub(super) fn eligible_of(&self, have: &PieceSet) -> u32 {
        u32::try_from(have.iter().filter(|p| self.is_eligible(p.0)).count()).unwrap_or(u32::MAX)
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        let mut seen = 0;
        for (rank, list) in self.ranks.iter().enumerate() {
            for (place, piece) in list.iter().enumerate() {
                let p = &self.pieces[*piece as usize];
                if p.rank as usize != rank || p.place as usize != place {
                    return Err("a piece is not where it says it is");
                }
                if !p.verifiable || p.stored || p.asked > 0 || !self.is_wanted(*piece) {
                    return Err("a piece may be asked for that must not be");
                }
                seen += 1;
            }
        }
        let stored = self.pieces.iter().filter(|p| p.stored).count();
        match (seen == self.eligible, stored == self.stored as usize) {
            (false, _) => Err("the number of pieces that may be asked for is wrong"),
            (_, false) => Err("the number of stored pieces is wrong"),
            _ => Ok(()),
        }
    }
}
