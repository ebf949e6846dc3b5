//! Blobs that nothing can compress and no two of which are alike, at next to no cost.

use std::{collections::HashMap, sync::Arc};

use proto::{Algorithm, Digest};
use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::SmallRng};
use sha2::{Digest as _, Sha256};

/// The random bytes that all blobs begin with; longer blobs have them again and again.
const BASE_BYTES: usize = 100_000_000;
/// What makes a blob another one: its last bytes.
const STAMP_BYTES: usize = 32;

/// Makes blobs. All of a length begin alike, so that only the end of each has to be hashed: a million digests a second.
pub(crate) struct Contents {
    base: Arc<[u8]>,
    random: SmallRng,
    made: u64,
    /// The state of the hash before the stamp, by the length of the blob.
    begun: HashMap<u64, Sha256>,
}

/// One blob; its bytes are read through [`Blob::part`].
#[derive(Clone)]
pub(crate) struct Blob {
    base: Arc<[u8]>,
    length: u64,
    stamp: [u8; STAMP_BYTES],
    digest: Digest,
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents").field("made", &self.made).finish_non_exhaustive()
    }
}

impl Contents {
    /// Blobs of up to `largest` bytes without repetition inside; others with the same seed are the same.
    pub(crate) fn new(seed: u64, largest: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let length = usize::try_from(largest).map_or(BASE_BYTES, |largest| largest.clamp(STAMP_BYTES, BASE_BYTES));
        let mut base = vec![0; length];
        random.fill_bytes(&mut base);
        Self { base: base.into(), random, made: 0, begun: HashMap::new() }
    }

    /// A blob of this length that was not there before.
    ///
    /// # Panics
    /// When it is too short to be another one than all others: shorter than 32 bytes.
    pub(crate) fn blob(&mut self, length: u64) -> Blob {
        assert!(length >= STAMP_BYTES as u64, "blobs have at least {STAMP_BYTES} bytes");
        let mut stamp: [u8; STAMP_BYTES] = self.random.random();
        self.made += 1;
        stamp[..8].copy_from_slice(&self.made.to_be_bytes());
        let Self { base, begun, .. } = self;
        let begun = begun.entry(length).or_insert_with(|| {
            let (mut hash, mut left) = (Sha256::new(), length - STAMP_BYTES as u64);
            while left > 0 {
                let now = left.min(base.len() as u64) as usize;
                hash.update(&base[..now]);
                left -= now as u64;
            }
            hash
        });
        let hash = begun.clone().chain_update(stamp).finalize();
        let digest = Digest::new(Algorithm::Sha256, &hash).expect("a SHA-256 has the length of one");
        Blob { base: Arc::clone(base), length, stamp, digest }
    }
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blob").field("length", &self.length).field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Blob {
    /// Its bytes from `offset` on, as many as lie together; none at its end.
    pub(crate) fn part(&self, offset: u64) -> &[u8] {
        let random = self.length - STAMP_BYTES as u64;
        if offset >= random {
            return &self.stamp[((offset - random) as usize).min(STAMP_BYTES)..];
        }
        let start = (offset % self.base.len() as u64) as usize;
        let together = (self.base.len() - start).min((random - offset) as usize);
        &self.base[start..start + together]
    }

    /// Its length, in bytes.
    pub(crate) const fn length(&self) -> u64 {
        self.length
    }

    /// Its sha256.
    pub(crate) const fn digest(&self) -> &Digest {
        &self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(blob: &Blob) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            match blob.part(bytes.len() as u64) {
                [] => return bytes,
                part => bytes.extend_from_slice(part),
            }
        }
    }

    #[test]
    fn blobs_have_their_length_and_digest_and_are_unique() {
        let mut contents = Contents::new(1, 1000);
        let mut seen = std::collections::HashSet::new();
        for length in [32, 33, 999, 1000, 1032, 1033, 2032, 5000] {
            for _ in 0..3 {
                let blob = contents.blob(length);
                let bytes = read(&blob);
                assert_eq!(bytes.len() as u64, length);
                assert_eq!(&Digest::of(Algorithm::Sha256, &bytes), blob.digest());
                assert!(seen.insert(bytes));
            }
        }
    }

    #[test]
    fn parts_go_on_from_any_offset() {
        let mut contents = Contents::new(1, 100);
        let blob = contents.blob(250);
        let bytes = read(&blob);
        for offset in 0..250 {
            let part = blob.part(offset);
            assert_eq!(part, &bytes[offset as usize..offset as usize + part.len()]);
            assert!(!part.is_empty());
        }
        assert!(blob.part(250).is_empty());
    }
}
