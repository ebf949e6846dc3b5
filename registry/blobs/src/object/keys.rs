//! Keys of objects.

use object_store::path::Path;
use oci::upload::UploadId;

use super::state::{Multipart, Segment};
use crate::identity;
use crate::name::{RecordId, Shard, StoreEntry, StoredBlob, TagRecordName};

/// Makes keys under a prefix.
#[derive(Debug)]
pub(super) struct Keys {
    /// Empty, or with a slash at the end.
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Self { prefix }
    }

    fn path(&self, rest: &str) -> Path {
        Path::from(format!("{}{rest}", self.prefix))
    }

    pub(super) fn identity(&self) -> Path {
        self.path(identity::NAME)
    }

    /// Where blobs, their names and records lie.
    pub(super) fn folders(&self) -> [Path; 3] {
        ["blobs", "names", "records"].map(|folder| self.path(folder))
    }

    pub(super) fn uploads(&self) -> Path {
        self.path("uploads")
    }

    pub(super) fn upload(&self, id: UploadId) -> Path {
        self.path(&format!("uploads/{id}"))
    }

    pub(super) fn segment(&self, id: UploadId, segment: &Segment) -> Path {
        self.path(&format!("uploads/{id}/tail.{}.{}", segment.offset, segment.random))
    }

    /// Holds the id of a multipart upload, so that it can be ended when nobody else knows of it any more.
    pub(super) fn note(&self, id: UploadId, multipart: &Multipart) -> Path {
        self.path(&format!("uploads/{id}/multipart.{}", multipart.random))
    }

    pub(super) fn blobs(&self, shard: Shard) -> Path {
        self.path(&format!("blobs/{shard}"))
    }

    pub(super) fn content(&self, key: UploadId) -> Path {
        self.path(&format!("blobs/{}/{key}", Shard::of_upload(key)))
    }

    pub(super) fn names(&self, shard: Shard) -> Path {
        self.path(&format!("names/{shard}"))
    }

    pub(super) fn name(&self, blob: &StoredBlob) -> Path {
        self.path(&format!("names/{}/{blob}", blob.shard()))
    }

    pub(super) fn manifest_records(&self, shard: Shard) -> Path {
        self.path(&format!("records/manifests/{shard}"))
    }

    pub(super) fn manifest_record(&self, id: RecordId) -> Path {
        self.path(&format!("records/manifests/{}/{id}", id.shard()))
    }

    pub(super) fn tag_records(&self, shard: Shard) -> Path {
        self.path(&format!("records/tags/{shard}"))
    }

    pub(super) fn tag_record(&self, name: TagRecordName) -> Path {
        self.path(&format!("records/tags/{}/{name}", name.shard()))
    }

    /// All objects of an entry; a blob's bytes go before its name, so that a name without bytes can be told from a loss.
    pub(super) fn entry(&self, entry: &StoreEntry) -> Vec<Path> {
        match entry {
            StoreEntry::Blob(blob) => vec![self.content(blob.key), self.name(blob)],
            StoreEntry::Bytes(key) => vec![self.content(*key)],
            StoreEntry::ManifestRecord(id) => vec![self.manifest_record(*id)],
            StoreEntry::TagRecord(name) => vec![self.tag_record(*name)],
        }
    }

    /// A key relative to the store, for people.
    pub(super) fn relative<'p>(&self, path: &'p Path) -> &'p str {
        path.as_ref().strip_prefix(&self.prefix).unwrap_or_else(|| path.as_ref())
    }
}
