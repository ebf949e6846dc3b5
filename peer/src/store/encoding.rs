//! How rows look on disk. A field is only ever added; anything else is a new folder version ([`super::folder`]).
//!
//! Every row is a protobuf message, so that a reader skips what it does not know. The bytes of each are pinned by
//! tests below: a store must open after an upgrade.

use proto::{Digest, PieceHash, PieceLayout, Root, TaskSpec, content_url, wire};

use super::StoreError;
use super::slot::{Finished, Stamp};

/// One task: written when it is created, when its length becomes known, and when it is finished.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TaskRowV1 {
    /// Bytes, once known.
    #[prost(uint64, optional, tag = "1")]
    pub(super) length: Option<u64>,
    #[prost(uint32, tag = "2")]
    pub(super) piece_len: u32,
    /// Empty when none was given.
    #[prost(string, tag = "3")]
    pub(super) digest: String,
    #[prost(bool, tag = "4")]
    pub(super) guarded: bool,
    #[prost(message, repeated, tag = "5")]
    pub(super) headers: Vec<HeaderV1>,
    #[prost(message, optional, tag = "6")]
    pub(super) spec: Option<wire::TaskSpec>,
    #[prost(bool, tag = "7")]
    pub(super) confirmed: bool,
    #[prost(uint64, tag = "8")]
    pub(super) created_unix_ms: u64,
    /// Present exactly when the content was whole and synced before this row was written.
    #[prost(message, optional, tag = "9")]
    pub(super) finished: Option<FinishedV1>,
}

/// A header of the origin's answer.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HeaderV1 {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

/// What a finished content must still look like.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FinishedV1 {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) root: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub(super) size: u64,
    #[prost(int64, tag = "3")]
    pub(super) mtime_unix_ns: i64,
}

/// All piece hashes of a finished content, 32 bytes each. Apart from the task row, so that opening a store does not read them.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HashesRowV1 {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) hashes: Vec<u8>,
}

/// One piece of an unfinished content.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PieceRowV1 {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) hash: Vec<u8>,
}

/// When a task was last used, roughly.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct UsedRowV1 {
    #[prost(uint64, tag = "1")]
    pub(super) unix_ms: u64,
}

/// Who this host is.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HostRowV1 {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) host_id: Vec<u8>,
}

/// What is kept of a task besides its pieces, and does not change.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Meta {
    pub(super) spec: TaskSpec,
    pub(super) digest: Option<Digest>,
    pub(super) guarded: bool,
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) created_unix_ms: u64,
}

// === impl TaskRowV1 ===

impl TaskRowV1 {
    pub(super) fn new(meta: &Meta, layout: PieceLayout, confirmed: bool, finished: Option<&Finished>) -> Self {
        // Signed parameters are credentials as much as a password is; neither reaches the disk. The task id does
        // not depend on them.
        let mut spec = meta.spec.clone();
        spec.url = content_url(&spec.url, &spec.filtered_query_params);
        Self {
            length: layout.length(),
            piece_len: layout.piece_len(),
            digest: meta.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            guarded: meta.guarded,
            headers: meta
                .headers
                .iter()
                .map(|(name, value)| HeaderV1 { name: name.clone(), value: value.clone() })
                .collect(),
            spec: Some((&spec).into()),
            confirmed,
            created_unix_ms: meta.created_unix_ms,
            finished: finished.map(|f| FinishedV1 {
                root: f.root.0.to_vec(),
                size: f.stamp.size,
                mtime_unix_ns: f.stamp.mtime_unix_ns,
            }),
        }
    }

    pub(super) fn layout(&self) -> Result<PieceLayout, StoreError> {
        PieceLayout::new(self.length, self.piece_len).ok_or(StoreError::BadRow { what: "piece length" })
    }

    pub(super) fn finished(&self) -> Result<Option<Finished>, StoreError> {
        let Some(finished) = &self.finished else { return Ok(None) };
        let root = finished.root.as_slice().try_into().map_err(|_| StoreError::BadRow { what: "root" })?;
        if self.length != Some(finished.size) {
            return Err(StoreError::BadRow { what: "finished length" });
        }
        let stamp = Stamp { size: finished.size, mtime_unix_ns: finished.mtime_unix_ns };
        Ok(Some(Finished { root: Root(root), stamp }))
    }

    pub(super) fn into_meta(self) -> Result<Meta, StoreError> {
        let spec = self.spec.ok_or(StoreError::BadRow { what: "task" })?;
        let digest = match self.digest.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| StoreError::BadRow { what: "digest" })?),
        };
        Ok(Meta {
            spec: TaskSpec::try_from(spec).map_err(|_| StoreError::BadRow { what: "task" })?,
            digest,
            guarded: self.guarded,
            headers: self.headers.into_iter().map(|h| (h.name, h.value)).collect(),
            created_unix_ms: self.created_unix_ms,
        })
    }
}

// === impl PieceRowV1, HashesRowV1 ===

impl PieceRowV1 {
    pub(super) fn new(hash: PieceHash) -> Self {
        Self { hash: hash.0.to_vec() }
    }

    pub(super) fn hash(&self) -> Result<PieceHash, StoreError> {
        self.hash.as_slice().try_into().map(PieceHash).map_err(|_| StoreError::BadRow { what: "piece hash" })
    }
}

impl HashesRowV1 {
    pub(super) fn new(hashes: &[PieceHash]) -> Self {
        Self { hashes: hashes.iter().flat_map(|h| h.0).collect() }
    }

    pub(super) fn hashes(&self) -> Result<Vec<PieceHash>, StoreError> {
        let (hashes, rest) = self.hashes.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(StoreError::BadRow { what: "piece hashes" });
        }
        Ok(hashes.iter().map(|h| PieceHash(*h)).collect())
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::{Algorithm, ByteRange};

    use super::*;

    fn meta() -> Meta {
        let mut spec = TaskSpec::of_url("https://user:pw@h/f?a=1&X-Amz-Signature=s".parse().unwrap());
        spec.tag = "t".into();
        spec.range = ByteRange::new(1, 3);
        Meta {
            spec,
            digest: Some(Digest::of(Algorithm::Md5, b"abc")),
            guarded: true,
            headers: vec![("etag".into(), b"\"x\"".to_vec())],
            created_unix_ms: 1_700_000_000_000,
        }
    }

    fn hex(row: impl Message) -> String {
        row.encode_to_vec().iter().map(|b| format!("{b:02x}")).collect()
    }

    fn row() -> TaskRowV1 {
        let stamp = Stamp { size: 65_537, mtime_unix_ns: 1_700_000_000_123_456_789 };
        let finished = Finished { root: Root([9; 32]), stamp };
        TaskRowV1::new(&meta(), PieceLayout::of_length(Some(65_537)), true, Some(&finished))
    }

    /// The bytes of version 1. A change here breaks every store in the field.
    #[test]
    fn golden_bytes() {
        assert_eq!(hex(row()), include_str!("golden/task_v1.hex").trim());
        assert_eq!(hex(PieceRowV1::new(PieceHash([7; 32]))), format!("0a20{}", "07".repeat(32)));
        let hashes = [PieceHash([1; 32]), PieceHash([2; 32])];
        let golden = format!("0a40{}{}", "01".repeat(32), "02".repeat(32));
        assert_eq!(hex(HashesRowV1::new(&hashes)), golden);
        assert_eq!(hex(UsedRowV1 { unix_ms: 1_700_000_000_000 }), "0880d095ffbc31");
        assert_eq!(hex(HostRowV1 { host_id: vec![5; 16] }), format!("0a10{}", "05".repeat(16)));
    }

    #[test]
    fn rows_round_trip_without_credentials() {
        let row = TaskRowV1::decode(row().encode_to_vec().as_slice()).unwrap();
        assert_eq!(row, self::row());
        assert_eq!(row.finished().unwrap().unwrap().root, Root([9; 32]));
        assert_eq!(row.layout().unwrap(), PieceLayout::of_length(Some(65_537)));
        let read = row.into_meta().unwrap();
        assert_eq!(read.spec.url.as_str(), "https://h/f?a=1");
        assert_eq!(read.spec.id(), meta().spec.id());
        assert_eq!((read.headers, read.digest, read.guarded), (meta().headers, meta().digest, true));
    }

    #[test]
    fn bad_rows_are_refused() {
        let mut wrong = row();
        wrong.piece_len = 3;
        assert!(matches!(wrong.layout(), Err(StoreError::BadRow { .. })));
        let mut wrong = row();
        wrong.finished.as_mut().unwrap().root.pop();
        assert!(matches!(wrong.finished(), Err(StoreError::BadRow { .. })));
        let mut wrong = row();
        wrong.length = Some(3);
        assert!(matches!(wrong.finished(), Err(StoreError::BadRow { .. })));
        let mut wrong = row();
        wrong.spec = None;
        assert!(matches!(wrong.into_meta(), Err(StoreError::BadRow { .. })));
        assert!(PieceRowV1 { hash: vec![1; 31] }.hash().is_err());
        assert!(HashesRowV1 { hashes: vec![1; 33] }.hashes().is_err());
    }
}
