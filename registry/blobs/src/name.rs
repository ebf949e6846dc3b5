//! What things are called in the store.

use std::fmt;
use std::str::FromStr;

use oci::upload::UploadId;
use oci::{RepositoryName, TagName};
use proto::{Algorithm, Digest};

/// A blob in the store. Its text, `ID.ALGORITHM-HEX.SIZE`, is its name there: a listing is enough to know all blobs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoredBlob {
    /// The upload it came by, under whose id its bytes stay.
    pub key: UploadId,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// The name of a manifest's record: 32 hexadecimal characters that nothing else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId([u8; 16]);

/// The name of a tag's record, `HASH.CHANGE`: 32 hexadecimal characters that stand for repository and tag, and the number
/// of the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagRecordName {
    of: [u8; 16],
    change: u64,
}

/// Anything that can be removed from the store. Its text is what the database keeps until it is gone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum StoreEntry {
    /// `blob/ID.ALGORITHM-HEX.SIZE`
    Blob(StoredBlob),
    /// `bytes/ID`: bytes without a name, which only object storage can have.
    Bytes(UploadId),
    /// `manifest/RECORD`
    ManifestRecord(RecordId),
    /// `tag/HASH.CHANGE`
    TagRecord(TagRecordName),
}

/// One of the 256 folders over which blobs, and records of either sort, are spread. Its text is two hexadecimal characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard(u8);

/// A text is no name of this sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of {0}")]
pub struct InvalidName(&'static str);

// === impl StoredBlob ===

impl StoredBlob {
    /// Where its bytes lie. The end of an upload's id is random; its beginning is the time.
    #[must_use]
    pub const fn shard(&self) -> Shard {
        Shard::of_upload(self.key)
    }
}

impl fmt::Display for StoredBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}-{}.{}", self.key, self.digest.algorithm().name(), self.digest.hex(), self.size)
    }
}

impl FromStr for StoredBlob {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let (key, rest) = text.split_once('.')?;
            let (digest, size) = rest.split_once('.')?;
            let (algorithm, hex) = digest.split_once('-')?;
            let digest: Digest = format!("{algorithm}:{hex}").parse().ok()?;
            let named = matches!(digest.algorithm(), Algorithm::Sha256 | Algorithm::Sha512);
            named.then_some(Self { key: key.parse().ok()?, digest, size: size.parse().ok()? })
        };
        // Only what we would write: no leading zeros, no sign.
        read().filter(|blob| blob.to_string() == text).ok_or(InvalidName("a blob"))
    }
}

// === impl RecordId ===

impl RecordId {
    /// A fresh one.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// Where the record lies.
    #[must_use]
    pub const fn shard(self) -> Shard {
        Shard(self.0[15])
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for RecordId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        read_hex(text).map(Self).ok_or(InvalidName("a manifest's record"))
    }
}

// === impl TagRecordName ===

impl TagRecordName {
    /// The name of the record of a change of this tag.
    #[must_use]
    pub fn new(repository: &RepositoryName, tag: &TagName, change: u64) -> Self {
        // Neither may hold a zero byte.
        let digest = Digest::of(Algorithm::Blake3, format!("{repository}\0{tag}").as_bytes());
        let of = digest.bytes()[..16].try_into().expect("a BLAKE3 has 32 bytes");
        Self { of, change }
    }

    /// The number of the change; the highest of a tag is its present one.
    #[must_use]
    pub const fn change(self) -> u64 {
        self.change
    }

    /// The same for all records of a tag.
    #[must_use]
    pub const fn of(self) -> [u8; 16] {
        self.of
    }

    /// Where the record lies: all changes of a tag in the same place.
    #[must_use]
    pub const fn shard(self) -> Shard {
        Shard(self.of[15])
    }
}

impl fmt::Display for TagRecordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", hex::encode(self.of), self.change)
    }
}

impl FromStr for TagRecordName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let (of, change) = text.split_once('.')?;
            Some(Self { of: read_hex(of)?, change: change.parse().ok()? })
        };
        read().filter(|name| name.to_string() == text).ok_or(InvalidName("a tag's record"))
    }
}

// === impl StoreEntry ===

impl fmt::Display for StoreEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(blob) => write!(f, "blob/{blob}"),
            Self::Bytes(key) => write!(f, "bytes/{key}"),
            Self::ManifestRecord(record) => write!(f, "manifest/{record}"),
            Self::TagRecord(name) => write!(f, "tag/{name}"),
        }
    }
}

impl FromStr for StoreEntry {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some(("blob", name)) => name.parse().map(Self::Blob),
            Some(("bytes", key)) => key.parse().map(Self::Bytes).map_err(|_| InvalidName("an upload")),
            Some(("manifest", name)) => name.parse().map(Self::ManifestRecord),
            Some(("tag", name)) => name.parse().map(Self::TagRecord),
            _ => Err(InvalidName("an entry of the store")),
        }
    }
}

// === impl Shard ===

impl Shard {
    /// All of them, in order.
    pub fn all() -> impl ExactSizeIterator<Item = Self> + Clone {
        (0..256_usize).map(|number| Self(u8::try_from(number).expect("below 256")))
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    pub(crate) const fn of_upload(id: UploadId) -> Self {
        Self(id.as_bytes()[15])
    }
}

impl From<u8> for Shard {
    fn from(number: u8) -> Self {
        Self(number)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}", self.0)
    }
}

/// Lower-case only: one thing has one name.
fn read_hex(text: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn blob() -> StoredBlob {
        StoredBlob { key: ID.parse().unwrap(), digest: Digest::of(Algorithm::Sha256, b"abc"), size: 3 }
    }

    #[test]
    fn names_are_what_lies_in_stores() {
        assert_eq!(
            blob().to_string(),
            format!("{ID}.sha256-ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad.3")
        );
        assert_eq!(blob().shard().to_string(), "ef");
        let tag_of = |repository: &str, tag: &str, change| {
            TagRecordName::new(&repository.parse().unwrap(), &tag.parse().unwrap(), change)
        };
        let tag = tag_of("team/app", "latest", 17);
        assert_eq!(tag.to_string(), "bdebe3e5af51d196cd7528d0924129cf.17");
        assert_eq!(tag.change(), 17);
        assert_eq!(tag_of("team/app", "latest", 18).shard(), tag.shard());
        assert_ne!(tag_of("team/ap", "platest", 17), tag);
        assert_eq!(Shard::all().map(|shard| shard.to_string()).last().unwrap(), "ff");
    }

    #[test]
    fn entries_round_trip() {
        let entries = [
            StoreEntry::Blob(blob()),
            StoreEntry::Blob(StoredBlob { digest: Digest::of(Algorithm::Sha512, b""), size: 0, ..blob() }),
            StoreEntry::Bytes(blob().key),
            StoreEntry::ManifestRecord(RecordId::random()),
            StoreEntry::TagRecord(TagRecordName::new(&"r".parse().unwrap(), &"t".parse().unwrap(), u64::MAX)),
        ];
        for entry in entries {
            assert_eq!(entry.to_string().parse(), Ok(entry));
        }
    }

    #[test]
    fn other_texts_are_no_names() {
        let good = blob().to_string();
        for bad in [
            String::new(),
            good.to_uppercase(),
            good.replace(".3", ".03"),
            good.replace(".3", ".+3"),
            good.replace(".3", ""),
            good.replace(".3", ".3.4"),
            good.replace("sha256", "md5"),
            good.replace("sha256-", "blake3-"),
            good[1..].to_owned(),
            format!("{good}.tmp"),
        ] {
            assert!(bad.parse::<StoredBlob>().is_err(), "{bad}");
            assert!(format!("blob/{bad}").parse::<StoreEntry>().is_err(), "{bad}");
        }
        for bad in ["", ID, "x.1", &format!("{ID}.01"), &format!("{ID}.-1"), &format!("{}.1", ID.to_uppercase())] {
            assert!(bad.parse::<TagRecordName>().is_err(), "{bad}");
        }
        for bad in ["blob", "blobs/x", "bytes/x", "tag/../x", "manifest/", "manifest/0123"] {
            assert!(bad.parse::<StoreEntry>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_one_thing_has_one_name(text in "[a-z0-9./-]{0,120}") {
            if let Ok(entry) = text.parse::<StoreEntry>() {
                prop_assert_eq!(entry.to_string(), text);
            }
        }
    }
}
