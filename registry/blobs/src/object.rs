//! The store in S3-compatible object storage.
//!
//! An upload that fits one part is a single object when it ends. A longer one is a multipart upload of the blob's object: nothing
//! is copied or renamed. A checkpoint ends with a segment, an object that holds what does not fill a part yet.
//!
//! A blob's object never changes: it is only made if there is none. So of two requests that end one upload
//! with different contents, one is refused.
//!
//! A crash loses what came after an upload's last checkpoint. It may leave segments and a multipart upload, which a note
//! in `uploads/ID/` knows of, and an object without a name; [`crate::Inventory`] finds them.

mod cache;
mod client;
mod keys;
mod listing;
mod shared;
mod state;
mod tail;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use object_store::path::Path;
use oci::upload::UploadId;
use proto::{ByteRange, Digest};
use url::Url;

use self::shared::Shared;
pub use self::state::ObjectState;
use self::writer::ObjectWriter;
use crate::config::S3Config;
use crate::error::StoreError;
use crate::identity::StoreIdentity;
use crate::name::{RecordId, Shard, StoreEntry, StoredBlob, TagRecordName};
use crate::record::{ManifestRecord, TagRecord};
use crate::store::{
    Backend, BlobBody, BlobRead, BlobRemove, BlobWrite, BlobWriter, FoundBlob, FoundRecord, FoundUpload, Identity,
    Inventory, Listing, Records, WriterState,
};

/// The backend.
pub(crate) struct ObjectStorage {
    shared: Arc<Shared>,
}

/// Objects that one request may remove.
const REMOVE_MAX: usize = 1000;

impl ObjectStorage {
    /// Opens the store in this bucket, and looks whether it answers.
    pub(crate) async fn open(config: &S3Config) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared::new(config)?);
        shared.probe().await?;
        Ok(Self { shared })
    }
}

impl fmt::Debug for ObjectStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ObjectStorage").field(&self.shared).finish()
    }
}

impl Backend for ObjectStorage {}

#[async_trait]
impl BlobRead for ObjectStorage {
    async fn open(&self, blob: &StoredBlob, range: Option<ByteRange>) -> Result<BlobBody, StoreError> {
        debug_assert!(
            range.is_none_or(|range| range.end() <= blob.size),
            "the range was resolved against the blob's size"
        );
        self.shared.get_content(blob, range).await
    }

    async fn presign(&self, blob: &StoredBlob, method: &Method, expires: Duration) -> Result<Option<Url>, StoreError> {
        self.shared.presign(blob, method, expires).await
    }

    async fn stat(&self, blob: &StoredBlob) -> Result<Option<u64>, StoreError> {
        self.shared.size(&self.shared.keys.content(blob.key)).await
    }
}

#[async_trait]
impl BlobWrite for ObjectStorage {
    async fn begin(&self, id: UploadId) -> Result<Box<dyn BlobWriter>, StoreError> {
        Ok(Box::new(ObjectWriter::begin(Arc::clone(&self.shared), id)))
    }

    async fn resume(&self, id: UploadId, state: &WriterState) -> Result<Box<dyn BlobWriter>, StoreError> {
        let WriterState::S3(state) = state else {
            return Err(StoreError::Checkpoint("it is of another kind of store"));
        };
        Ok(Box::new(ObjectWriter::resume(Arc::clone(&self.shared), id, state.clone())?))
    }

    async fn discard(&self, id: UploadId, state: Option<&WriterState>) -> Result<(), StoreError> {
        let multipart = match state {
            Some(WriterState::S3(state)) => state.multipart.as_ref(),
            _ => None,
        };
        self.shared.discard(id, multipart).await
    }

    async fn is_committed(&self, id: UploadId, digest: &Digest, size: u64) -> Result<bool, StoreError> {
        let blob = StoredBlob { key: id, digest: digest.clone(), size };
        let name = self.shared.size(&self.shared.keys.name(&blob)).await?;
        Ok(name.is_some() && self.stat(&blob).await? == Some(size))
    }
}

#[async_trait]
impl BlobRemove for ObjectStorage {
    async fn remove(&self, entries: &[StoreEntry]) -> Vec<(StoreEntry, Result<u64, StoreError>)> {
        let mut removed = Vec::with_capacity(entries.len());
        // An entry is two objects at most.
        for batch in entries.chunks(REMOVE_MAX / 2) {
            let paths: Vec<Vec<Path>> = batch.iter().map(|entry| self.shared.keys.entry(entry)).collect();
            let mut outcomes = self.shared.remove(paths.concat()).await.into_iter();
            for (entry, paths) in batch.iter().zip(paths) {
                let outcome: Result<(), StoreError> = outcomes.by_ref().take(paths.len()).collect();
                let freed = match entry {
                    StoreEntry::Blob(blob) => blob.size,
                    StoreEntry::Bytes(_) | StoreEntry::ManifestRecord(_) | StoreEntry::TagRecord(_) => 0,
                };
                removed.push((entry.clone(), outcome.map(|()| freed)));
            }
        }
        removed
    }
}

#[async_trait]
impl Records for ObjectStorage {
    async fn put_manifest_record(&self, record: &ManifestRecord) -> Result<(), StoreError> {
        self.shared.put(&self.shared.keys.manifest_record(record.id), record.encode().into()).await
    }

    async fn put_tag_record(&self, record: &TagRecord) -> Result<(), StoreError> {
        self.shared.put(&self.shared.keys.tag_record(record.name()), record.encode().into()).await
    }

    async fn put_blob_name(&self, blob: &StoredBlob) -> Result<(), StoreError> {
        self.shared.put_name(blob).await
    }
}

#[async_trait]
impl Identity for ObjectStorage {
    async fn identity(&self) -> Result<Option<StoreIdentity>, StoreError> {
        match self.shared.get(&self.shared.keys.identity()).await {
            Ok(content) => StoreIdentity::decode(&content).map(Some),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn claim(&self, _: bool) -> Result<(), StoreError> {
        Ok(())
    }

    async fn put_identity(&self, identity: &StoreIdentity) -> Result<(), StoreError> {
        self.shared.put(&self.shared.keys.identity(), identity.encode().into()).await
    }

    async fn is_empty(&self) -> Result<bool, StoreError> {
        for folder in self.shared.keys.folders() {
            if self.shared.has_any(&folder).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[async_trait]
impl Inventory for ObjectStorage {
    async fn list_blobs(&self, shard: Shard) -> Result<Listing<FoundBlob>, StoreError> {
        listing::blobs(&self.shared, shard).await
    }

    async fn list_manifest_records(
        &self,
        shard: Shard,
    ) -> Result<Listing<FoundRecord<RecordId, ManifestRecord>>, StoreError> {
        listing::records(&self.shared, &self.shared.keys.manifest_records(shard), ManifestRecord::decode).await
    }

    async fn list_tag_records(
        &self,
        shard: Shard,
    ) -> Result<Listing<FoundRecord<TagRecordName, TagRecord>>, StoreError> {
        listing::records(&self.shared, &self.shared.keys.tag_records(shard), TagRecord::decode).await
    }

    async fn list_uploads(&self) -> Result<Listing<FoundUpload>, StoreError> {
        listing::uploads(&self.shared).await
    }
}
