//! The store in a folder of a local filesystem.
//!
//! An upload is a file in `uploads/`, locked while somebody writes to it. To commit it: the file is synced, renamed into
//! `blobs/XX/`, and that folder is synced. What was written is never read back.
//!
//! A crash loses what came after an upload's last checkpoint. It may leave files in `uploads/`, and a blob of which nobody
//! was told; [`crate::Inventory`] finds both.

mod claim;
mod layout;
mod listing;
mod upload;
mod writer;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use oci::upload::UploadId;
use proto::{ByteRange, Digest};
use url::Url;

use self::layout::Layout;
use self::writer::FileWriter;
use crate::error::StoreError;
use crate::identity::StoreIdentity;
use crate::name::{RecordId, Shard, StoreEntry, StoredBlob, TagRecordName};
use crate::record::{ManifestRecord, TagRecord};
use crate::store::{
    Backend, BlobBody, BlobRead, BlobRemove, BlobWrite, BlobWriter, FoundBlob, FoundRecord, FoundUpload, Identity,
    Inventory, Listing, Records, WriterState,
};

/// The backend.
pub(crate) struct Filesystem {
    layout: Arc<Layout>,
    claim: OnceLock<File>,
}

impl Filesystem {
    /// Opens the store in this folder, which is made if need be.
    pub(crate) async fn open(root: &Path) -> Result<Self, StoreError> {
        let layout = Layout::new(root);
        let layout = blocking(move || layout.prepare().map(|()| layout)).await?;
        Ok(Self { layout: Arc::new(layout), claim: OnceLock::new() })
    }

    async fn with_layout<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Layout) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let layout = Arc::clone(&self.layout);
        blocking(move || job(&layout)).await
    }
}

/// Runs something that may wait for the disk where it keeps nobody else waiting.
async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(job).await.map_err(|_| StoreError::Interrupted)?
}

impl fmt::Debug for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filesystem").field(&self.layout.root()).finish()
    }
}

impl Backend for Filesystem {}

#[async_trait]
impl BlobRead for Filesystem {
    async fn open(&self, blob: &StoredBlob, range: Option<ByteRange>) -> Result<BlobBody, StoreError> {
        let path = self.layout.blob(blob);
        let (offset, len) = range.map_or((0, blob.size), |range| (range.start(), range.len()));
        debug_assert!(offset + len <= blob.size, "the range was resolved against the blob's size");
        let size = blob.size;
        blocking(move || {
            let file = File::open(&path).map_err(|error| StoreError::opening(&path, error))?;
            let found = file.metadata().map_err(|error| StoreError::io("look at", &path, error))?.len();
            if found != size {
                let why = format!("there are {found} bytes instead of {size}");
                return Err(StoreError::Corrupt { what: path.display().to_string(), why });
            }
            Ok(BlobBody::File { file: Arc::new(file), offset, len })
        })
        .await
    }

    async fn presign(&self, _: &StoredBlob, _: &Method, _: Duration) -> Result<Option<Url>, StoreError> {
        Ok(None)
    }

    async fn stat(&self, blob: &StoredBlob) -> Result<Option<u64>, StoreError> {
        let path = self.layout.blob(blob);
        blocking(move || match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("look at", path, error)),
        })
        .await
    }
}

#[async_trait]
impl BlobWrite for Filesystem {
    async fn begin(&self, id: UploadId) -> Result<Box<dyn BlobWriter>, StoreError> {
        Ok(Box::new(FileWriter::begin(Arc::clone(&self.layout), id)))
    }

    async fn resume(&self, id: UploadId, state: &WriterState) -> Result<Box<dyn BlobWriter>, StoreError> {
        let WriterState::File { offset } = *state else {
            return Err(StoreError::Checkpoint("it is of another kind of store"));
        };
        Ok(Box::new(FileWriter::resume(Arc::clone(&self.layout), id, offset).await?))
    }

    async fn discard(&self, id: UploadId, _: Option<&WriterState>) -> Result<(), StoreError> {
        upload::discard(Arc::clone(&self.layout), id).await
    }

    async fn is_committed(&self, id: UploadId, digest: &Digest, size: u64) -> Result<bool, StoreError> {
        let blob = StoredBlob { key: id, digest: digest.clone(), size };
        Ok(self.stat(&blob).await? == Some(size))
    }
}

#[async_trait]
impl BlobRemove for Filesystem {
    async fn remove(&self, entries: &[StoreEntry]) -> Vec<(StoreEntry, Result<u64, StoreError>)> {
        let (layout, batch) = (Arc::clone(&self.layout), entries.to_vec());
        let removed = blocking(move || Ok(remove(&layout, batch))).await;
        removed.unwrap_or_else(|error| entries.iter().map(|entry| (entry.clone(), Err(error.clone()))).collect())
    }
}

/// Removes files, then syncs each folder once, so that no crash brings one back after its row is gone.
fn remove(layout: &Layout, entries: Vec<StoreEntry>) -> Vec<(StoreEntry, Result<u64, StoreError>)> {
    let mut removed: Vec<(StoreEntry, Option<PathBuf>, Result<u64, StoreError>)> = entries
        .into_iter()
        .map(|entry| {
            let path = layout.entry(&entry);
            let freed = path.as_deref().map_or(Ok(0), remove_file);
            (entry, path, freed)
        })
        .collect();
    let changed = removed.iter().filter(|(_, _, freed)| matches!(freed, Ok(bytes) if *bytes > 0));
    let folders: BTreeSet<PathBuf> =
        changed.filter_map(|(_, path, _)| Some(path.as_deref()?.parent()?.to_owned())).collect();
    for folder in folders {
        if let Err(error) = layout::sync_folder(&folder) {
            for (_, path, freed) in &mut removed {
                if path.as_deref().and_then(Path::parent) == Some(&folder) {
                    *freed = Err(error.clone());
                }
            }
        }
    }
    removed.into_iter().map(|(entry, _, freed)| (entry, freed)).collect()
}

fn remove_file(path: &Path) -> Result<u64, StoreError> {
    let removed = fs::metadata(path).and_then(|metadata| fs::remove_file(path).map(|()| metadata.len()));
    match removed {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(StoreError::io("remove", path, error)),
    }
}

#[async_trait]
impl Records for Filesystem {
    async fn put_manifest_record(&self, record: &ManifestRecord) -> Result<(), StoreError> {
        let (path, content) = (self.layout.manifest_record(record.id), record.encode());
        self.with_layout(move |layout| layout.put(&path, &content)).await
    }

    async fn put_tag_record(&self, record: &TagRecord) -> Result<(), StoreError> {
        let (path, content) = (self.layout.tag_record(record.name()), record.encode());
        self.with_layout(move |layout| layout.put(&path, &content)).await
    }

    async fn put_blob_name(&self, _: &StoredBlob) -> Result<(), StoreError> {
        Ok(())
    }
}

#[async_trait]
impl Identity for Filesystem {
    async fn identity(&self) -> Result<Option<StoreIdentity>, StoreError> {
        self.with_layout(|layout| match fs::read(layout.identity()) {
            Ok(content) => StoreIdentity::decode(&content).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", layout.identity(), error)),
        })
        .await
    }

    async fn put_identity(&self, identity: &StoreIdentity) -> Result<(), StoreError> {
        let content = identity.encode();
        self.with_layout(move |layout| layout.put(&layout.identity(), &content)).await
    }

    async fn claim(&self, alone: bool) -> Result<(), StoreError> {
        if let Some(lock) = claim::lock(self.layout.root(), alone).await? {
            let _ = self.claim.set(lock);
        }
        Ok(())
    }

    async fn is_empty(&self) -> Result<bool, StoreError> {
        self.with_layout(listing::is_empty).await
    }
}

#[async_trait]
impl Inventory for Filesystem {
    async fn list_blobs(&self, shard: Shard) -> Result<Listing<FoundBlob>, StoreError> {
        self.with_layout(move |layout| listing::blobs(layout, shard)).await
    }

    async fn list_manifest_records(
        &self,
        shard: Shard,
    ) -> Result<Listing<FoundRecord<RecordId, ManifestRecord>>, StoreError> {
        self.with_layout(move |layout| {
            listing::records(layout, &layout.manifest_records(shard), ManifestRecord::decode)
        })
        .await
    }

    async fn list_tag_records(
        &self,
        shard: Shard,
    ) -> Result<Listing<FoundRecord<TagRecordName, TagRecord>>, StoreError> {
        self.with_layout(move |layout| listing::records(layout, &layout.tag_records(shard), TagRecord::decode)).await
    }

    async fn list_uploads(&self) -> Result<Listing<FoundUpload>, StoreError> {
        self.with_layout(listing::uploads).await
    }
}
