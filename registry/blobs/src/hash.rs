//! The running hash of an upload, which survives the process.

use std::fmt;

use proto::{Algorithm, Digest};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};

use crate::error::StoreError;

/// SHA-256 or SHA-512 over what an upload received so far.
#[derive(Clone)]
pub struct RunningHash {
    inner: Inner,
    bytes: u64,
}

#[derive(Clone)]
enum Inner {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
}

/// A [`RunningHash`] at rest, as it stands in a checkpoint.
///
/// The text is the state's words and the bytes of the unfinished block, as the hash crate lays them out. A test holds one
/// of each, so that another layout is noticed before it is released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashState {
    /// Bytes hashed.
    bytes: u64,
    /// `sha256-v1` or `sha512-v1`.
    form: String,
    /// Lower-case hexadecimal.
    state: String,
}

/// A [`HashState`] is of an unknown form, or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the running hash is damaged or of an unknown form")]
pub struct InvalidHashState;

const SHA256_V1: &str = "sha256-v1";
const SHA512_V1: &str = "sha512-v1";

// === impl RunningHash ===

impl RunningHash {
    /// A hash of nothing yet.
    ///
    /// # Errors
    /// When blobs are not named by this algorithm.
    pub fn new(algorithm: Algorithm) -> Result<Self, StoreError> {
        let inner = match algorithm {
            Algorithm::Sha256 => Inner::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Inner::Sha512(Box::default()),
            other => return Err(StoreError::Algorithm(other.name())),
        };
        Ok(Self { inner, bytes: 0 })
    }

    /// A SHA-256 of nothing yet: what runs when the client did not say which algorithm it will name the blob by.
    #[must_use]
    pub fn sha256() -> Self {
        Self { inner: Inner::Sha256(sha2::Sha256::new()), bytes: 0 }
    }

    /// Which algorithm runs.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self.inner {
            Inner::Sha256(_) => Algorithm::Sha256,
            Inner::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Bytes taken so far.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes the next bytes. Half a millisecond of work for a MiB: not on a thread that serves others.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.inner {
            Inner::Sha256(hash) => hash.update(bytes),
            Inner::Sha512(hash) => hash.update(bytes),
        }
        self.bytes += bytes.len() as u64;
    }

    /// The digest of everything taken.
    #[must_use]
    pub fn finish(self) -> Digest {
        let (algorithm, bytes) = match self.inner {
            Inner::Sha256(hash) => (Algorithm::Sha256, hash.finalize().to_vec()),
            Inner::Sha512(hash) => (Algorithm::Sha512, hash.finalize().to_vec()),
        };
        Digest::new(algorithm, &bytes).expect("the hash has its algorithm's length")
    }

    /// The state, to be continued elsewhere.
    #[must_use]
    pub fn save(&self) -> HashState {
        let (form, state) = match &self.inner {
            Inner::Sha256(hash) => (SHA256_V1, hex::encode(hash.serialize())),
            Inner::Sha512(hash) => (SHA512_V1, hex::encode(hash.serialize())),
        };
        HashState { bytes: self.bytes, form: form.to_owned(), state }
    }

    /// Continues from a state.
    ///
    /// # Errors
    /// When the state is damaged or of a form this version does not know.
    pub fn restore(state: &HashState) -> Result<Self, InvalidHashState> {
        fn read<H: SerializableState>(text: &str) -> Result<H, InvalidHashState> {
            let mut state = SerializedState::<H>::default();
            hex::decode_to_slice(text, &mut state).map_err(|_| InvalidHashState)?;
            H::deserialize(&state).map_err(|_| InvalidHashState)
        }
        let inner = match state.form.as_str() {
            SHA256_V1 => Inner::Sha256(read(&state.state)?),
            SHA512_V1 => Inner::Sha512(Box::new(read(&state.state)?)),
            _ => return Err(InvalidHashState),
        };
        Ok(Self { inner, bytes: state.bytes })
    }
}

impl fmt::Debug for RunningHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningHash")
            .field("algorithm", &self.algorithm())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// States as the first release wrote them: rows of unfinished uploads hold them, so they must be readable for ever.
    #[test]
    fn golden_states() {
        for (algorithm, golden) in [
            (
                Algorithm::Sha256,
                r#"{"bytes":200,"form":"sha256-v1","state":"c1edc884e5afaf5331560858cdacc2c95e2b010302f90912d6863ff05e07a8d7030000000000000008070707070707070700000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"}"#,
            ),
            (
                Algorithm::Sha512,
                r#"{"bytes":200,"form":"sha512-v1","state":"8fa996e22393f5fc50153bd12ade358b43d1c070ecaa4f726815bec27ff505fb321adfb8d847e7ca052bf3959c305d6692635828cad1c704395cda2279463859010000000000000000000000000000004807070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070700000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"}"#,
            ),
        ] {
            let mut hash = RunningHash::new(algorithm).unwrap();
            hash.update(&[7; 200]);
            let text = serde_json::to_string(&hash.save()).unwrap();
            assert_eq!(text, golden, "the layout has changed: unfinished uploads would be lost");
            let mut restored = RunningHash::restore(&serde_json::from_str(golden).unwrap()).unwrap();
            restored.update(b"the rest");
            let mut whole = vec![7; 200];
            whole.extend_from_slice(b"the rest");
            assert_eq!(restored.finish(), Digest::of(algorithm, &whole));
        }
    }

    #[test]
    fn bad_states_are_refused() {
        let good = RunningHash::sha256().save();
        for bad in [
            HashState { form: "sha256-v2".to_owned(), ..good.clone() },
            HashState { form: SHA512_V1.to_owned(), ..good.clone() },
            HashState { state: "00".to_owned(), ..good.clone() },
            HashState { state: good.state.replace('0', "x"), ..good.clone() },
            // More bytes in the unfinished block than a block has.
            HashState { state: format!("{}ff{}", &good.state[..80], &good.state[82..]), ..good },
        ] {
            assert_eq!(RunningHash::restore(&bad).map(|_| ()), Err(InvalidHashState), "{bad:?}");
        }
        assert!(matches!(RunningHash::new(Algorithm::Md5), Err(StoreError::Algorithm("md5"))));
    }

    proptest! {
        #[test]
        fn any_cut_continues(content in prop::collection::vec(any::<u8>(), 0..2000), cut: prop::sample::Index, long: bool) {
            let algorithm = if long { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let cut = cut.index(content.len() + 1);
            let mut first = RunningHash::new(algorithm).unwrap();
            first.update(&content[..cut]);
            let text = serde_json::to_string(&first.save()).unwrap();
            let mut second = RunningHash::restore(&serde_json::from_str(&text).unwrap()).unwrap();
            prop_assert_eq!(second.bytes(), cut as u64);
            second.update(&content[cut..]);
            prop_assert_eq!(second.finish(), Digest::of(algorithm, &content));
        }
    }
}
