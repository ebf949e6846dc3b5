//! The key that tells our uploads from made-up ones.

use std::fmt;

use super::UploadId;
use crate::RepositoryName;

/// Bytes of the keyed hash in an upload's URL: 128 bits nobody guesses.
const TAG_LEN: usize = 16;

/// The key that signs uploads' ids. All processes of a registry have the same.
#[derive(Clone)]
pub struct UploadKey([u8; 32]);

// === impl UploadKey ===

impl UploadKey {
    /// A key from 32 random bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The last part of the URL of an upload in this repository: the id, `-`, and a hash over both.
    #[must_use]
    pub fn sign(&self, repository: &RepositoryName, id: UploadId) -> String {
        format!("{id}-{}", hex::encode(self.tag(repository, id)))
    }

    /// The id in the last part of a URL; `None` when this key did not sign it for this repository. Takes the same
    /// time whichever character is wrong.
    #[must_use]
    pub fn verify(&self, repository: &RepositoryName, session: &str) -> Option<UploadId> {
        let (id, tag) = session.split_once('-')?;
        let id: UploadId = id.parse().ok()?;
        if tag.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        let mut found = [0; TAG_LEN];
        hex::decode_to_slice(tag, &mut found).ok()?;
        // The comparison of `blake3::Hash` is the one that takes constant time, so both go into one.
        (padded(found) == padded(self.tag(repository, id))).then_some(id)
    }

    /// The length before the name keeps name and id apart.
    fn tag(&self, repository: &RepositoryName, id: UploadId) -> [u8; TAG_LEN] {
        let name = repository.as_str().as_bytes();
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name).update(id.as_bytes());
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&hasher.finalize().as_bytes()[..TAG_LEN]);
        tag
    }
}

fn padded(tag: [u8; TAG_LEN]) -> blake3::Hash {
    let mut bytes = [0; blake3::OUT_LEN];
    bytes[..TAG_LEN].copy_from_slice(&tag);
    bytes.into()
}

impl fmt::Debug for UploadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UploadKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RepositoryName {
        text.parse().expect("a name")
    }

    #[test]
    fn ours_and_nobody_elses() {
        let (key, id) = (UploadKey::new([7; 32]), UploadId::new(1, [2; 10]));
        let session = key.sign(&name("a/b"), id);
        assert_eq!(session.len(), 65);
        assert!(session.starts_with(&format!("{id}-")));
        assert_eq!(key.verify(&name("a/b"), &session), Some(id));
        // Another repository, another key.
        assert_eq!(key.verify(&name("a/c"), &session), None);
        assert_eq!(UploadKey::new([8; 32]).verify(&name("a/b"), &session), None);
    }

    #[test]
    fn every_changed_character_is_seen() {
        let (key, id) = (UploadKey::new([7; 32]), UploadId::new(1, [2; 10]));
        let session = key.sign(&name("a"), id);
        for at in 0..session.len() {
            let mut bytes = session.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(key.verify(&name("a"), &String::from_utf8(bytes).expect("ASCII")), None, "{at}");
            assert_eq!(key.verify(&name("a"), &session[..at]), None);
        }
        assert_eq!(key.verify(&name("a"), &format!("{session}0")), None);
        assert_eq!(key.verify(&name("a"), &session.to_uppercase()), None);
    }

    /// The same on every machine and in every version: processes of two versions share uploads.
    #[test]
    fn known_answer() {
        let session = UploadKey::new([7; 32]).sign(&name("library/ubuntu"), UploadId::new(1_700_000_000_000, [9; 10]));
        assert_eq!(session, "018bcfe5680009090909090909090909-c2128aa45806379663c1809438bc6d21");
    }

    #[test]
    fn the_key_is_not_shown() {
        assert_eq!(format!("{:?}", UploadKey::new([7; 32])), "UploadKey(redacted)");
    }
}
