//! Piece hashes: the subtree hashes of one BLAKE3 tree, so that 32 bytes vouch for all of them.
//!
//! BLAKE3 hashes a content as a binary tree over 1 KiB chunks whose left subtrees are complete. A piece is a
//! power of two of at least 64 KiB and starts at a multiple of its length, so it is exactly one subtree, and its
//! chaining value can be computed from its bytes and its offset alone (BLAKE3 specification, sections 2.4 and
//! 5.1.2; `blake3::hazmat`). The root over all pieces is the plain BLAKE3 hash of the content.

use std::fmt;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::{PieceIndex, PieceLayout};

/// The hash of one piece at its place in the content.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PieceHash(pub [u8; 32]);

/// The hash of the whole content: its BLAKE3 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root(pub [u8; 32]);

/// Computes the hash of one piece as its bytes arrive.
#[derive(Debug)]
pub struct PieceHasher {
    hasher: blake3::Hasher,
    is_whole: bool,
}

/// The root over all piece hashes of a content of known length; `None` when their number is not the layout's.
#[must_use]
pub fn root_of(layout: PieceLayout, hashes: &[PieceHash]) -> Option<Root> {
    if layout.count()? as usize != hashes.len() {
        return None;
    }
    Some(Root(match hashes {
        [] => *blake3::hash(b"").as_bytes(),
        // A lone piece was hashed as a root already.
        [only] => only.0,
        _ => {
            let (left, right) = split(hashes);
            *merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes()
        }
    }))
}

/// BLAKE3 section 2.1: the left subtree holds the largest power of two of chunks that leaves the right one something.
fn split(hashes: &[PieceHash]) -> (&[PieceHash], &[PieceHash]) {
    hashes.split_at((hashes.len() - 1).next_power_of_two() / if (hashes.len() - 1).is_power_of_two() { 1 } else { 2 })
}

fn subtree(hashes: &[PieceHash]) -> [u8; 32] {
    match hashes {
        [one] => one.0,
        _ => {
            let (left, right) = split(hashes);
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

// === impl PieceHasher ===

impl PieceHasher {
    /// A hasher for one piece of a content. Only the piece of a one-piece content is hashed as a root; while the
    /// length is unknown piece 0 is not, and [`PieceHash::of`] must be asked again if it turns out to be alone.
    #[must_use]
    pub fn new(layout: PieceLayout, piece: PieceIndex) -> Self {
        let mut hasher = blake3::Hasher::new();
        let is_whole = layout.count() == Some(1);
        if !is_whole {
            hasher.set_input_offset(u64::from(piece.0) * u64::from(layout.piece_len()));
        }
        Self { hasher, is_whole }
    }

    /// Takes the next bytes of the piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// The hash of everything taken, which must be the whole piece.
    #[must_use]
    pub fn finish(self) -> PieceHash {
        PieceHash(if self.is_whole { *self.hasher.finalize().as_bytes() } else { self.hasher.finalize_non_root() })
    }
}

// === impl PieceHash ===

impl PieceHash {
    /// The hash of a piece whose bytes are all here.
    #[must_use]
    pub fn of(layout: PieceLayout, piece: PieceIndex, bytes: &[u8]) -> Self {
        let mut hasher = PieceHasher::new(layout, piece);
        hasher.update(bytes);
        hasher.finish()
    }
}

impl fmt::Debug for PieceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..4]))
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_the_blake3_of_the_content() {
        let piece = 64 * 1024usize;
        let content: Vec<u8> = (0..piece * 9 + 17).map(|i| (i * 31 % 251) as u8).collect();
        for len in [
            0,
            1,
            piece - 1,
            piece,
            piece + 1,
            2 * piece,
            3 * piece,
            4 * piece + 5,
            5 * piece,
            8 * piece,
            9 * piece + 17,
        ] {
            let content = &content[..len];
            let layout = PieceLayout::of_length(Some(len as u64));
            let hashes: Vec<_> = content
                .chunks(piece)
                .enumerate()
                .map(|(i, bytes)| PieceHash::of(layout, PieceIndex(i as u32), bytes))
                .collect();
            assert_eq!(root_of(layout, &hashes).unwrap().0, *blake3::hash(content).as_bytes(), "{len} bytes");
            if !hashes.is_empty() {
                assert_eq!(root_of(layout, &hashes[1..]), None);
            }
        }
    }

    #[test]
    fn a_piece_is_bound_to_its_place() {
        let layout = PieceLayout::of_length(Some(3 * 65_536));
        let bytes = vec![7; 65_536];
        assert_ne!(PieceHash::of(layout, PieceIndex(0), &bytes), PieceHash::of(layout, PieceIndex(1), &bytes));
    }
}
