//! A set of pieces: a bitmap in memory, runs on the wire.

use std::fmt;

use crate::PieceIndex;
use crate::wire::PieceRuns;

/// A set of pieces. Grows as needed; absent pieces cost a bit.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PieceSet {
    words: Vec<u64>,
    len: u32,
}

/// Runs from the wire do not fit the content they speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("piece runs reach beyond piece {limit}")]
pub struct InvalidRuns {
    /// Pieces the content can have at most.
    pub limit: u32,
}

impl PieceSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: Vec::new(), len: 0 }
    }

    /// The pieces 0 to `count` - 1.
    #[must_use]
    pub fn full(count: u32) -> Self {
        let mut set = Self::new();
        set.insert_run(0, count);
        set
    }

    /// Number of pieces in the set.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether no piece is in the set.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a piece is in the set.
    #[must_use]
    pub fn contains(&self, piece: PieceIndex) -> bool {
        let (word, bit) = place(piece.0);
        self.words.get(word).is_some_and(|w| w & bit != 0)
    }

    /// Adds a piece; true when it was not there.
    pub fn insert(&mut self, piece: PieceIndex) -> bool {
        let (word, bit) = place(piece.0);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let added = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += u32::from(added);
        added
    }

    /// Adds `count` pieces from `first` on.
    pub fn insert_run(&mut self, first: u32, count: u32) {
        // A have-map is at most a few thousand words; a loop over pieces is cheap enough and plainly right.
        for piece in first..first.saturating_add(count) {
            self.insert(PieceIndex(piece));
        }
    }

    /// Removes a piece; true when it was there.
    pub fn remove(&mut self, piece: PieceIndex) -> bool {
        let (word, bit) = place(piece.0);
        let Some(w) = self.words.get_mut(word) else { return false };
        let there = *w & bit != 0;
        *w &= !bit;
        self.len -= u32::from(there);
        there
    }

    /// Adds all pieces of another set.
    pub fn union(&mut self, other: &Self) {
        if other.words.len() > self.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
        self.len = self.words.iter().map(|w| w.count_ones()).sum();
    }

    /// The pieces in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.words.iter().enumerate().flat_map(|(at, &word)| {
            let base = u32::try_from(at * 64).expect("a set holds u32 indices");
            std::iter::successors((word != 0).then_some(word), |w| {
                let rest = w & (w - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |w| PieceIndex(base + w.trailing_zeros()))
        })
    }

    /// The first piece at or after `from` that is *not* in the set.
    #[must_use]
    pub fn first_absent(&self, from: PieceIndex) -> PieceIndex {
        let (mut word, _) = place(from.0);
        let mut mask = !0u64 << (from.0 % 64);
        loop {
            let absent = !self.words.get(word).copied().unwrap_or(0) & mask;
            if absent != 0 {
                return PieceIndex(
                    u32::try_from(word * 64).unwrap_or(u32::MAX).saturating_add(absent.trailing_zeros()),
                );
            }
            word += 1;
            mask = !0;
        }
    }

    /// The set as runs for the wire.
    #[must_use]
    pub fn to_runs(&self) -> PieceRuns {
        let mut runs = Vec::new();
        let mut at = 0;
        let mut pieces = self.iter().peekable();
        while let Some(first) = pieces.next() {
            let mut next = first.0 + 1;
            while pieces.next_if(|p| p.0 == next).is_some() {
                next += 1;
            }
            runs.extend([first.0 - at, next - first.0]);
            at = next;
        }
        PieceRuns { runs }
    }

    /// Reads runs from the wire. `limit` is the number of pieces the content can have, which bounds the memory.
    ///
    /// # Errors
    /// When a run reaches beyond `limit`.
    pub fn from_runs(runs: &PieceRuns, limit: u32) -> Result<Self, InvalidRuns> {
        let mut set = Self::new();
        let mut at = 0u32;
        for pair in runs.runs.chunks(2) {
            let first = at.checked_add(pair[0]).ok_or(InvalidRuns { limit })?;
            let count = pair.get(1).copied().unwrap_or(0);
            at = first.checked_add(count).filter(|&end| end <= limit).ok_or(InvalidRuns { limit })?;
            set.insert_run(first, count);
        }
        Ok(set)
    }
}

fn place(piece: u32) -> (usize, u64) {
    ((piece / 64) as usize, 1 << (piece % 64))
}

impl fmt::Debug for PieceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PieceSet({} pieces)", self.len)
    }
}

impl FromIterator<PieceIndex> for PieceSet {
    fn from_iter<I: IntoIterator<Item = PieceIndex>>(pieces: I) -> Self {
        let mut set = Self::new();
        for piece in pieces {
            set.insert(piece);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_round_trip(pieces in proptest::collection::btree_set(0u32..2_000, 0..300)) {
            let set: PieceSet = pieces.iter().copied().map(PieceIndex).collect();
            prop_assert_eq!(set.len() as usize, pieces.len());
            prop_assert_eq!(set.iter().map(|p| p.0).collect::<Vec<_>>(), pieces.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(PieceSet::from_runs(&set.to_runs(), 2_000), Ok(set.clone()));
            let absent = (0..).find(|p| !pieces.contains(p)).map(PieceIndex);
            prop_assert_eq!(Some(set.first_absent(PieceIndex(0))), absent);
        }

        #[test]
        fn any_runs_are_refused_or_stay_in_the_limit(runs in proptest::collection::vec(any::<u32>(), 0..50), limit in 0u32..5_000) {
            if let Ok(set) = PieceSet::from_runs(&PieceRuns { runs }, limit) {
                prop_assert!(set.iter().all(|p| p.0 < limit));
            }
        }
    }

    #[test]
    fn remove_and_union() {
        let mut a = PieceSet::full(70);
        assert!(a.remove(PieceIndex(69)) && !a.remove(PieceIndex(69)) && !a.remove(PieceIndex(500)));
        assert_eq!((a.len(), a.contains(PieceIndex(69))), (69, false));
        let b: PieceSet = [PieceIndex(69), PieceIndex(200)].into_iter().collect();
        a.union(&b);
        assert_eq!(a.len(), 71);
    }
}
