//! The store's interface, split by who calls.

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::Method;
use oci::upload::UploadId;
use proto::{ByteRange, Digest};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::{FinishError, StoreError};
use crate::hash::RunningHash;
use crate::identity::StoreIdentity;
use crate::name::{RecordId, Shard, StoreEntry, StoredBlob, TagRecordName};
use crate::object::ObjectState;
use crate::record::{InvalidRecord, ManifestRecord, TagRecord};

/// Everything a backend does. `Arc<dyn Backend>` is what the registry holds.
pub trait Backend: BlobRead + BlobWrite + BlobRemove + Records + Inventory + Identity + fmt::Debug {}

/// An open store.
pub type Store = Arc<dyn Backend>;

/// For those who serve blobs.
#[async_trait]
pub trait BlobRead: Send + Sync {
    /// Opens a blob, or a part of it. The range must lie within the blob.
    ///
    /// # Errors
    /// `NotFound` when the bytes are not there, `Corrupt` when there are more or fewer than the blob has.
    async fn open(&self, blob: &StoredBlob, range: Option<ByteRange>) -> Result<BlobBody, StoreError>;

    /// A URL from which the client itself may fetch the blob for this time, by GET or HEAD. `None` when this store has
    /// none, or is told not to give any.
    ///
    /// # Errors
    /// When signing fails. The store itself is not asked.
    async fn presign(&self, blob: &StoredBlob, method: &Method, expires: Duration) -> Result<Option<Url>, StoreError>;

    /// How many bytes the store has of it; `None` when there are none.
    ///
    /// # Errors
    /// When the store cannot be asked.
    async fn stat(&self, blob: &StoredBlob) -> Result<Option<u64>, StoreError>;
}

/// For uploads.
#[async_trait]
pub trait BlobWrite: Send + Sync {
    /// A writer for an upload of which nothing is durable yet. What an earlier request left behind is overwritten.
    ///
    /// # Errors
    /// When the store fails. `Busy` may also come from the first write.
    async fn begin(&self, id: UploadId) -> Result<Box<dyn BlobWriter>, StoreError>;

    /// A writer that goes on where a checkpoint was made, in whichever process that was. Bytes that came after the
    /// checkpoint are cut off.
    ///
    /// # Errors
    /// `Busy` when another request of this machine writes to it, `NotFound` or `Corrupt` when its bytes are gone,
    /// `Checkpoint` when the state is of another store.
    async fn resume(&self, id: UploadId, state: &WriterState) -> Result<Box<dyn BlobWriter>, StoreError>;

    /// Removes everything of an upload that is not committed. It is no error when there is nothing.
    ///
    /// # Errors
    /// `Busy` while another request of this machine writes to it, or when the store fails.
    async fn discard(&self, id: UploadId, state: Option<&WriterState>) -> Result<(), StoreError>;

    /// Whether this upload was committed as this blob: a process may have died before the database knew.
    ///
    /// # Errors
    /// When the store cannot be asked.
    async fn is_committed(&self, id: UploadId, digest: &Digest, size: u64) -> Result<bool, StoreError>;
}

/// One upload being written; [`crate::Receiver`] drives it.
///
/// A writer that is dropped removes what it wrote since the last checkpoint, as well as it can. After an error it must be
/// dropped.
#[async_trait]
pub trait BlobWriter: Send {
    /// Keeps other processes from writing the same bytes, where the store can, and changes nothing yet. Whoever holds them can find out
    /// whether they are still what he was told. `false`: this store cannot; there, what others write beside it is not read.
    ///
    /// # Errors
    /// `Busy` when another request holds them; when the store fails.
    async fn hold(&mut self) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Many bytes are coming: what can be done before they are there may begin.
    fn prepare(&mut self) {}

    /// Appends the bytes, and takes them into the hash.
    ///
    /// # Errors
    /// When the store fails.
    async fn write(&mut self, bytes: Bytes, hash: RunningHash) -> Result<RunningHash, StoreError>;

    /// Appends the bytes, makes everything durable, and says how to go on from here.
    ///
    /// # Errors
    /// When the store fails.
    async fn checkpoint(&mut self, bytes: Bytes, hash: RunningHash) -> Result<(RunningHash, WriterState), StoreError>;

    /// The last checkpoint is nobody's: what it made durable goes with the writer, as if there had been none.
    fn forget(&mut self);

    /// Appends the last bytes and makes the whole a blob, durable, if it has this digest.
    ///
    /// # Errors
    /// `Mismatch` when it has another: then there is no blob. What a checkpoint had made durable is for the caller to
    /// [`BlobWrite::discard`].
    async fn commit(self: Box<Self>, last: Bytes, hash: RunningHash, digest: &Digest) -> Result<Finished, FinishError>;
}

/// For the collector.
#[async_trait]
pub trait BlobRemove: Send + Sync {
    /// Removes entries, each by itself; what is not there is removed already. Answers in the same order, with the bytes
    /// that became free. Object storage does not tell the size of what it removes: there it is what the blob's name says,
    /// and 0 for records.
    async fn remove(&self, entries: &[StoreEntry]) -> Vec<(StoreEntry, Result<u64, StoreError>)>;
}

/// For what is needed when the database is gone.
#[async_trait]
pub trait Records: Send + Sync {
    /// Writes a manifest's record, durable when it returns.
    ///
    /// # Errors
    /// When the store fails.
    async fn put_manifest_record(&self, record: &ManifestRecord) -> Result<(), StoreError>;

    /// Writes a tag's record, durable when it returns.
    ///
    /// # Errors
    /// When the store fails.
    async fn put_tag_record(&self, record: &TagRecord) -> Result<(), StoreError>;

    /// Writes the name of a blob whose bytes are there, durable when it returns. Only object storage can lose one.
    ///
    /// # Errors
    /// When the store fails.
    async fn put_blob_name(&self, blob: &StoredBlob) -> Result<(), StoreError>;
}

/// For telling whether a database belongs to the store.
#[async_trait]
pub trait Identity: Send + Sync {
    /// What the store says of itself; `None`: nothing yet.
    ///
    /// # Errors
    /// When the store cannot be asked, or it cannot be read.
    async fn identity(&self) -> Result<Option<StoreIdentity>, StoreError>;

    /// Writes it, durable when it returns.
    ///
    /// # Errors
    /// When the store fails.
    async fn put_identity(&self, identity: &StoreIdentity) -> Result<(), StoreError>;

    /// Keeps others away for as long as this store is open: all of them if `alone`, otherwise those that want it alone. A folder is locked for it;
    /// object storage has nothing like that, and keeps nobody away.
    ///
    /// # Errors
    /// When somebody else has it.
    async fn claim(&self, alone: bool) -> Result<(), StoreError>;

    /// Whether there are neither blobs nor records.
    ///
    /// # Errors
    /// When the store cannot be listed.
    async fn is_empty(&self) -> Result<bool, StoreError>;
}

/// For scrub, fsck and rebuild.
#[async_trait]
pub trait Inventory: Send + Sync {
    /// The blobs of one of [`Shard::all`].
    ///
    /// # Errors
    /// When the store cannot be listed.
    async fn list_blobs(&self, shard: Shard) -> Result<Listing<FoundBlob>, StoreError>;

    /// The manifests' records of a shard, read and checked.
    ///
    /// # Errors
    /// When the store cannot be listed or read.
    async fn list_manifest_records(
        &self,
        shard: Shard,
    ) -> Result<Listing<FoundRecord<RecordId, ManifestRecord>>, StoreError>;

    /// The tags' records of a shard, read and checked.
    ///
    /// # Errors
    /// When the store cannot be listed or read.
    async fn list_tag_records(
        &self,
        shard: Shard,
    ) -> Result<Listing<FoundRecord<TagRecordName, TagRecord>>, StoreError>;

    /// Uploads that have left something behind; [`BlobWrite::discard`] removes it.
    ///
    /// # Errors
    /// When the store cannot be listed.
    async fn list_uploads(&self) -> Result<Listing<FoundUpload>, StoreError>;
}

/// The bytes of an opened blob, or of the part that was asked for.
pub enum BlobBody {
    /// A file and which of its bytes: for sendfile.
    File {
        /// Open for reading.
        file: Arc<File>,
        /// First byte.
        offset: u64,
        /// Number of bytes; 0 for an empty blob.
        len: u64,
    },
    /// Bytes as they come; an error, or exactly `len` bytes.
    Stream {
        /// Number of bytes.
        len: u64,
        /// They.
        stream: BoxStream<'static, Result<Bytes, StoreError>>,
    },
}

/// What a store needs to go on with an upload, as it stands in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "store", rename_all = "lowercase")]
#[non_exhaustive]
pub enum WriterState {
    /// A file of the local filesystem.
    File {
        /// Bytes that are durable.
        offset: u64,
    },
    /// Parts and segments in object storage.
    S3(ObjectState),
}

/// An upload became a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its length in bytes.
    pub size: u64,
    /// Bytes that were read back because another hash ran than the digest names: the whole blob, or 0.
    pub bytes_rehashed: u64,
}

/// What was found in a place, and what does not belong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing<T> {
    /// In no particular order.
    pub entries: Vec<T>,
    /// Paths, relative to the store, of what is no entry of ours.
    pub strangers: Vec<String>,
}

/// A blob that was found in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundBlob {
    /// The upload it came by.
    pub key: UploadId,
    /// What its name says it is; `None` when there are bytes without a name (object storage only).
    pub name: Option<StoredBlob>,
    /// How many bytes there are; `None` when there is a name without bytes (object storage only).
    pub size_found: Option<u64>,
    /// When it was last written, milliseconds since 1970.
    pub modified_ms: u64,
}

/// A record that was found in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRecord<N, R> {
    /// Its name.
    pub name: N,
    /// When it was written, milliseconds since 1970.
    pub modified_ms: u64,
    /// What it says, or why it cannot be read.
    pub record: Result<R, InvalidRecord>,
}

/// An upload that has left something behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundUpload {
    /// Its id.
    pub id: UploadId,
    /// When something was last written, milliseconds since 1970.
    pub modified_ms: u64,
}

// === impl BlobBody ===

impl BlobBody {
    /// Number of bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } | Self::Stream { len, .. } => *len,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, offset, len } => {
                f.debug_struct("File").field("file", file).field("offset", offset).field("len", len).finish()
            }
            Self::Stream { len, .. } => f.debug_struct("Stream").field("len", len).finish_non_exhaustive(),
        }
    }
}

// === impl WriterState ===

impl WriterState {
    /// Bytes of the upload that are durable.
    #[must_use]
    pub fn offset(&self) -> u64 {
        match self {
            Self::File { offset } => *offset,
            Self::S3(state) => state.offset(),
        }
    }
}

// === impl FoundBlob ===

impl FoundBlob {
    /// Whether name and bytes are there, and as many bytes as the name says.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.name.as_ref().is_some_and(|name| self.size_found == Some(name.size))
    }
}
