//! Where the registry's bytes lie: a folder of a local filesystem, or S3-compatible object storage.
//!
//! Read first: [`open()`] and [`Store`] (what the registry holds), [`Receiver`] (an upload on its way in), [`StoredBlob`] and
//! [`StoreEntry`] (what things are called), [`Inventory`] (what is there). The layout is in `docs/design/registry.md`.
//!
//! **Not here:** who may see a blob, which upload belongs to whom, when something may be removed: the database knows. HTTP.
//!
//! Invariants:
//! - A blob's bytes stay under the key they were uploaded to, and never change. They are durable, and have the digest
//!   in their name, before [`Receiver::finish`] returns.
//! - What passes through is hashed on its way and not read back; [`Finished::bytes_rehashed`] tells of the exceptions.
//! - A [`Checkpoint`] is enough to go on in any process, and nothing it covers is received twice.
//! - Memory does not depend on the length of a blob: two fixed buffers of 1 MiB for each upload, and up to three parts with
//!   object storage.
//! - Whatever may wait for a disk runs on a blocking thread; whatever may wait for the network has a deadline.
//!
//! A crash loses what came after an upload's last checkpoint, and nothing that was acknowledged. It may leave unfinished
//! uploads, and blobs that no database knows of; [`Inventory`] finds both.

#![forbid(unsafe_code)]

mod clock;
mod config;
mod error;
mod filesystem;
mod hash;
mod identity;
mod name;
mod object;
mod pool;
mod receiver;
mod record;
mod store;

use std::sync::Arc;

pub use config::{S3Config, StoreConfig, StoreKind};
pub use error::{Cause, FinishError, StoreError};
pub use hash::{HashState, InvalidHashState, RunningHash};
pub use identity::StoreIdentity;
pub use name::{InvalidName, RecordId, Shard, StoreEntry, StoredBlob, TagRecordName};
pub use object::ObjectState;
pub use receiver::{Checkpoint, Receiver};
pub use record::{InvalidRecord, ManifestRecord, TagRecord};
pub use store::{
    Backend, BlobBody, BlobRead, BlobRemove, BlobWrite, BlobWriter, Finished, FoundBlob, FoundRecord, FoundUpload,
    Identity, Inventory, Listing, Records, Store, WriterState,
};

/// Opens the store that is configured: folders are made, a bucket must be there.
///
/// The process must have a TLS provider (`service::tls::install_provider`) before an S3 store is opened.
///
/// # Errors
/// When it cannot be used as it is configured, or does not answer.
pub async fn open(config: &StoreConfig) -> Result<Store, StoreError> {
    match (config.kind, &config.s3) {
        (StoreKind::Filesystem, _) => Ok(Arc::new(filesystem::Filesystem::open(&config.path).await?)),
        (StoreKind::S3, Some(s3)) => Ok(Arc::new(object::ObjectStorage::open(s3).await?)),
        (StoreKind::S3, None) => Err(StoreError::Setup { why: "its section s3 is missing".to_owned(), source: None }),
    }
}
