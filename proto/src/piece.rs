//! How a content is cut into pieces.

use std::fmt;

use crate::ByteRange;

/// The shortest piece, in bytes: below it the cost of a request outweighs the bytes.
pub const PIECE_LEN_MIN: u32 = 64 * 1024;
/// The longest piece, in bytes: bounds what one transfer holds in memory.
pub const PIECE_LEN_MAX: u32 = 4 * 1024 * 1024;
/// The piece length while the content's length is not known, in bytes.
pub const PIECE_LEN_UNKNOWN: u32 = 1024 * 1024;

/// The number of pieces aimed at: a pipeline of thousands of hosts then adds percents, not multiples.
const PIECES_TARGET: u64 = 512;

/// A piece's number, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PieceIndex(pub u32);

/// How long a content is, and how long its pieces are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PieceLayout {
    length: Option<u64>,
    piece_len: u32,
}

/// The piece length for a content: the power of two that gives 512 to 1,023 pieces, within the limits.
#[must_use]
pub const fn piece_len_for(length: Option<u64>) -> u32 {
    let Some(length) = length else { return PIECE_LEN_UNKNOWN };
    let exact = length / PIECES_TARGET;
    if exact <= PIECE_LEN_MIN as u64 {
        return PIECE_LEN_MIN;
    }
    if exact >= PIECE_LEN_MAX as u64 {
        return PIECE_LEN_MAX;
    }
    // The largest power of two that is not larger than `exact`, which fits: it is below PIECE_LEN_MAX.
    1 << (63 - exact.leading_zeros())
}

// === impl PieceIndex ===

impl PieceIndex {
    /// The number as an index of a slice.
    #[must_use]
    pub const fn at(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PieceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for PieceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

// === impl PieceLayout ===

impl PieceLayout {
    /// A layout; `None` when the piece length is no power of two within the limits, or there would be
    /// more than `u32::MAX` pieces.
    #[must_use]
    pub fn new(length: Option<u64>, piece_len: u32) -> Option<Self> {
        let in_limits = (PIECE_LEN_MIN..=PIECE_LEN_MAX).contains(&piece_len);
        let countable = length.is_none_or(|l| l.div_ceil(u64::from(piece_len.max(1))) <= u64::from(u32::MAX));
        (piece_len.is_power_of_two() && in_limits && countable).then_some(Self { length, piece_len })
    }

    /// The layout we choose for a content of this length.
    #[must_use]
    pub const fn of_length(length: Option<u64>) -> Self {
        Self { length, piece_len: piece_len_for(length) }
    }

    /// Length of the content in bytes, when it is known.
    #[must_use]
    pub const fn length(self) -> Option<u64> {
        self.length
    }

    /// Length of every piece but the last, in bytes.
    #[must_use]
    pub const fn piece_len(self) -> u32 {
        self.piece_len
    }

    /// Whether both cut one content into the same pieces, as far as their lengths are known.
    #[must_use]
    pub fn agrees(self, other: Self) -> bool {
        let same_length = self.length.zip(other.length).is_none_or(|(here, there)| here == there);
        self.piece_len == other.piece_len && same_length
    }

    /// The same pieces, now that the length is known.
    #[must_use]
    pub const fn with_length(self, length: u64) -> Self {
        Self { length: Some(length), piece_len: self.piece_len }
    }

    /// Number of pieces, when the length is known. An empty content has none.
    #[must_use]
    pub fn count(self) -> Option<u32> {
        self.length.map(|length| {
            u32::try_from(length.div_ceil(u64::from(self.piece_len))).expect("checked when the layout was made")
        })
    }

    /// The bytes of a piece; `None` beyond the end. With an unknown length every piece is a full one.
    #[must_use]
    pub fn range(self, piece: PieceIndex) -> Option<ByteRange> {
        let start = u64::from(piece.0) * u64::from(self.piece_len);
        let end = start + u64::from(self.piece_len);
        ByteRange::new(start, self.length.map_or(end, |length| end.min(length)))
    }

    /// The piece in which a byte lies.
    #[must_use]
    pub fn piece_at(self, offset: u64) -> PieceIndex {
        PieceIndex(u32::try_from(offset / u64::from(self.piece_len)).unwrap_or(u32::MAX))
    }

    /// The pieces that a range touches: first and last, both included.
    #[must_use]
    pub fn pieces_of(self, range: ByteRange) -> (PieceIndex, PieceIndex) {
        (self.piece_at(range.start()), self.piece_at(range.end() - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_agree_as_far_as_lengths_are_known() {
        let of = |length, piece_len| PieceLayout::new(length, piece_len).unwrap();
        assert!(of(None, PIECE_LEN_MIN).agrees(of(Some(5), PIECE_LEN_MIN)));
        assert!(of(Some(5), PIECE_LEN_MIN).agrees(of(Some(5), PIECE_LEN_MIN)));
        assert!(!of(Some(5), PIECE_LEN_MIN).agrees(of(Some(6), PIECE_LEN_MIN)));
        assert!(!of(None, PIECE_LEN_MIN).agrees(of(None, PIECE_LEN_MAX)));
    }

    #[test]
    fn piece_lengths() {
        assert_eq!(piece_len_for(None), PIECE_LEN_UNKNOWN);
        assert_eq!(piece_len_for(Some(0)), PIECE_LEN_MIN);
        assert_eq!(piece_len_for(Some(200_000_000)), 256 * 1024);
        assert_eq!(piece_len_for(Some(1 << 30)), 2 * 1024 * 1024);
        assert_eq!(piece_len_for(Some(3 << 30)), PIECE_LEN_MAX);
        assert_eq!(piece_len_for(Some(u64::MAX)), PIECE_LEN_MAX);
    }

    #[test]
    fn pieces_cover_the_content_exactly() {
        for length in [0, 1, 65_535, 65_536, 65_537, 1_000_000, 40_000_000] {
            let layout = PieceLayout::of_length(Some(length));
            let count = layout.count().expect("known");
            let mut at = 0;
            for piece in (0..count).map(PieceIndex) {
                let range = layout.range(piece).expect("inside");
                assert_eq!(range.start(), at);
                assert_eq!(layout.pieces_of(range), (piece, piece));
                at = range.end();
            }
            assert_eq!(at, length);
            assert_eq!(layout.range(PieceIndex(count)), None);
        }
    }

    #[test]
    fn a_layout_from_the_wire_is_checked() {
        assert!(PieceLayout::new(Some(10), 100_000).is_none());
        assert!(PieceLayout::new(Some(10), 0).is_none());
        assert!(PieceLayout::new(Some(10), 1 << 30).is_none());
        assert!(PieceLayout::new(Some(u64::MAX), PIECE_LEN_MAX).is_none());
        assert!(PieceLayout::new(None, PIECE_LEN_MIN).is_some());
    }
}
