//! Records: what is needed to rebuild the database from the store alone.
//!
//! One line of JSON, which ends with a checksum of the rest of it; then, for a manifest, its bytes. A record is whole when the checksum
//! is right and the bytes have the digest that the line names, so a torn or changed one is recognised.

use bytes::Bytes;
use oci::{RepositoryName, TagName};
use proto::{Algorithm, Digest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::name::{RecordId, TagRecordName};

/// A manifest as it lies in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestRecord {
    /// The record's name.
    pub id: RecordId,
    /// The repository it was pushed to.
    pub repository: RepositoryName,
    /// Its digest.
    pub digest: Digest,
    /// Its media type, as the push said it.
    pub media_type: String,
    /// When it was pushed, milliseconds since 1970.
    pub time_ms: u64,
    /// Blobs that it names without needing them, and that were readable in the repository nevertheless.
    pub foreign: Vec<Digest>,
    /// The bytes as they came.
    pub bytes: Bytes,
}

/// Where a tag points to, or that it is gone, as it lies in the store. Of several records of a tag the one with the highest change is
/// right, so it does not matter in which order they are written: one is removed only when there is a higher one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRecord {
    /// The repository.
    pub repository: RepositoryName,
    /// The tag.
    pub tag: TagName,
    /// The manifest it points to, or pointed to before it went.
    pub digest: Digest,
    /// The tag was deleted.
    pub gone: bool,
    /// The number of the change that moved or deleted it.
    pub change: u64,
    /// When that was, milliseconds since 1970.
    pub time_ms: u64,
}

/// A record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRecord {
    /// The first line does not end: the record was not written completely.
    #[error("the record is cut off")]
    CutOff,
    /// The first line is not what it should be.
    #[error("the record's first line cannot be read: {0}")]
    Header(String),
    /// The first line does not have the checksum that it ends with.
    #[error("the record's first line was changed after it was written")]
    Checksum,
    /// The manifest's bytes do not have the digest that the line names.
    #[error("the manifest in the record has the digest {computed}")]
    Digest {
        /// What they have.
        computed: Digest,
    },
    /// The file's name is another than the content says.
    #[error("the record says that its name is {expected}")]
    Name {
        /// What the name should be.
        expected: String,
    },
}

/// Longer lines are not read: ten thousand foreign blobs, and the longest repository name, media type, tag and digest are below it.
const HEADER_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A first line and its checksum: BLAKE3 of the line without it, the first 16 bytes in hexadecimal.
#[derive(Serialize, Deserialize)]
struct Line<H> {
    #[serde(flatten)]
    header: H,
    sum: String,
}

#[derive(Serialize, Deserialize)]
struct ManifestHeader {
    v: u8,
    /// The record's name.
    id: String,
    repository: RepositoryName,
    digest: Digest,
    media_type: String,
    time_ms: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    foreign: Vec<Digest>,
}

/// What every form has.
#[derive(Deserialize)]
struct Version {
    v: u8,
}

#[derive(Serialize, Deserialize)]
struct TagHeader {
    v: u8,
    repository: RepositoryName,
    tag: TagName,
    digest: Digest,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    gone: bool,
    change: u64,
    time_ms: u64,
}

/// The form of records that this version writes, and the only one there is.
const VERSION: u8 = 2;

// === impl ManifestRecord ===

impl ManifestRecord {
    pub(crate) fn encode(&self) -> Bytes {
        let header = ManifestHeader {
            v: VERSION,
            id: self.id.to_string(),
            repository: self.repository.clone(),
            digest: self.digest.clone(),
            media_type: self.media_type.clone(),
            time_ms: self.time_ms,
            foreign: self.foreign.clone(),
        };
        let mut text = line(header);
        text.extend_from_slice(&self.bytes);
        text.into()
    }

    pub(crate) fn decode(id: RecordId, content: &Bytes) -> Result<Self, InvalidRecord> {
        let (header, rest) = split(content)?;
        let header: ManifestHeader = read(header)?;
        if header.id != id.to_string() {
            return Err(InvalidRecord::Name { expected: header.id });
        }
        let bytes = content.slice(rest..);
        let computed = Digest::of(header.digest.algorithm(), &bytes);
        if computed != header.digest {
            return Err(InvalidRecord::Digest { computed });
        }
        let ManifestHeader { v: _, id: _, repository, digest, media_type, time_ms, foreign } = header;
        Ok(Self { id, repository, digest, media_type, time_ms, foreign, bytes })
    }
}

// === impl TagRecord ===

impl TagRecord {
    /// The record's name.
    #[must_use]
    pub fn name(&self) -> TagRecordName {
        TagRecordName::new(&self.repository, &self.tag, self.change)
    }

    pub(crate) fn encode(&self) -> Bytes {
        let header = TagHeader {
            v: VERSION,
            repository: self.repository.clone(),
            tag: self.tag.clone(),
            digest: self.digest.clone(),
            gone: self.gone,
            change: self.change,
            time_ms: self.time_ms,
        };
        line(header).into()
    }

    pub(crate) fn decode(name: TagRecordName, content: &Bytes) -> Result<Self, InvalidRecord> {
        let (header, _) = split(content)?;
        let TagHeader { v: _, repository, tag, digest, gone, change, time_ms } = read(header)?;
        let record = Self { repository, tag, digest, gone, change, time_ms };
        if record.name() == name {
            Ok(record)
        } else {
            Err(InvalidRecord::Name { expected: record.name().to_string() })
        }
    }
}

fn line<H: Serialize>(header: H) -> Vec<u8> {
    let sum = checksum(&header);
    let mut text = json(&Line { header, sum });
    text.push(b'\n');
    text
}

fn json(header: &impl Serialize) -> Vec<u8> {
    // Structs of strings and numbers: serde_json fails for maps with odd keys and for failing writers only.
    serde_json::to_vec(header).expect("a plain struct becomes JSON")
}

fn checksum(header: &impl Serialize) -> String {
    hex::encode(&Digest::of(Algorithm::Blake3, &json(header)).bytes()[..16])
}

/// The line without its end, and where the rest starts.
fn split(content: &[u8]) -> Result<(&[u8], usize), InvalidRecord> {
    let head = &content[..content.len().min(HEADER_BYTES_MAX)];
    let end = head.iter().position(|byte| *byte == b'\n').ok_or(InvalidRecord::CutOff)?;
    Ok((&content[..end], end + 1))
}

fn read<H: Serialize + DeserializeOwned>(line: &[u8]) -> Result<H, InvalidRecord> {
    let invalid = |error: serde_json::Error| InvalidRecord::Header(error.to_string());
    let Version { v } = serde_json::from_slice(line).map_err(invalid)?;
    if v != VERSION {
        return Err(InvalidRecord::Header(format!("version {v} is not known")));
    }
    let Line::<H> { header, sum } = serde_json::from_slice(line).map_err(invalid)?;
    if sum == checksum(&header) { Ok(header) } else { Err(InvalidRecord::Checksum) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> ManifestRecord {
        let bytes = Bytes::from_static(b"{\n \"schemaVersion\": 2\n}\n");
        ManifestRecord {
            id: "000102030405060708090a0b0c0d0e0f".parse().unwrap(),
            repository: "team/app".parse().unwrap(),
            digest: Digest::of(Algorithm::Sha256, &bytes),
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            time_ms: 1_700_000_000_000,
            foreign: Vec::new(),
            bytes,
        }
    }

    fn tag() -> TagRecord {
        TagRecord {
            repository: "team/app".parse().unwrap(),
            tag: "latest".parse().unwrap(),
            digest: Digest::of(Algorithm::Sha256, b"abc"),
            gone: false,
            change: 17,
            time_ms: 1_700_000_000_000,
        }
    }

    #[test]
    fn golden_records() {
        assert_eq!(
            manifest().encode(),
            "{\"v\":2,\"id\":\"000102030405060708090a0b0c0d0e0f\",\"repository\":\"team/app\",\
             \"digest\":\"sha256:1826076daf0c1f0d2e31472f21772ca33ad3f5b27ff88c6c969dc48c3ef30ae2\",\
             \"media_type\":\"application/vnd.oci.image.manifest.v1+json\",\"time_ms\":1700000000000,\
             \"sum\":\"42b23c439494da89abe514696d6af5ce\"}\n\
             {\n \"schemaVersion\": 2\n}\n"
        );
        assert_eq!(
            tag().encode(),
            "{\"v\":2,\"repository\":\"team/app\",\"tag\":\"latest\",\
             \"digest\":\"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\",\
             \"change\":17,\"time_ms\":1700000000000,\"sum\":\"466066020c2f297d3e78dc172880cfde\"}\n"
        );
    }

    #[test]
    fn records_round_trip() {
        assert_eq!(ManifestRecord::decode(manifest().id, &manifest().encode()).map(|m| m.bytes), Ok(manifest().bytes));
        let digest = |number: usize| Digest::of(Algorithm::Sha512, &number.to_be_bytes());
        let foreign = ManifestRecord { foreign: (0..10_000).map(digest).collect(), ..manifest() };
        assert_eq!(ManifestRecord::decode(foreign.id, &foreign.encode()), Ok(foreign));
        let other = ManifestRecord::decode(RecordId::random(), &manifest().encode());
        assert!(matches!(other, Err(InvalidRecord::Name { .. })), "{other:?}");
        for tag in [tag(), TagRecord { gone: true, ..tag() }] {
            assert_eq!(TagRecord::decode(tag.name(), &tag.encode()), Ok(tag));
        }
    }

    #[test]
    fn no_torn_record_is_read() {
        let (manifest, tag) = (manifest(), tag());
        let whole = manifest.encode();
        for length in 0..whole.len() {
            assert!(ManifestRecord::decode(manifest.id, &whole.slice(..length)).is_err(), "{length}");
        }
        let whole = tag.encode();
        for length in 0..whole.len() {
            assert!(TagRecord::decode(tag.name(), &whole.slice(..length)).is_err(), "{length}");
        }
        let other = TagRecordName::new(&tag.repository, &tag.tag, 18);
        assert!(matches!(TagRecord::decode(other, &whole), Err(InvalidRecord::Name { .. })));
        let newer = String::from_utf8(whole.to_vec()).unwrap().replace("\"v\":2", "\"v\":3");
        assert!(matches!(TagRecord::decode(tag.name(), &newer.into()), Err(InvalidRecord::Header(_))));
    }

    #[test]
    fn no_changed_record_is_read() {
        let (manifest, tag) = (manifest(), tag());
        let change = |whole: Bytes, from: &str, to: &str| -> Bytes {
            let text = String::from_utf8(whole.to_vec()).unwrap();
            assert!(text.contains(from));
            text.replacen(from, to, 1).into()
        };
        let moved = change(manifest.encode(), "team/app", "team/apq");
        assert_eq!(ManifestRecord::decode(manifest.id, &moved), Err(InvalidRecord::Checksum));
        let points_elsewhere = change(tag.encode(), "sha256:ba", "sha256:bb");
        assert_eq!(TagRecord::decode(tag.name(), &points_elsewhere), Err(InvalidRecord::Checksum));
        let back = change(TagRecord { gone: true, ..tag.clone() }.encode(), "\"gone\":true,", "");
        assert_eq!(TagRecord::decode(tag.name(), &back), Err(InvalidRecord::Checksum));
    }
}
