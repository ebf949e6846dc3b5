//! What the registry knows, in SQL: SQLite, MariaDB/MySQL or PostgreSQL.
#![forbid(unsafe_code)]

mod alone;
mod blob;
mod change;
mod collect;
mod config;
mod connect;
mod dangling;
mod error;
mod id;
mod inspect;
mod lock;
mod manifest;
mod migrate;
mod removal;
mod repository;
mod restore;
mod setting;
mod sql;
mod transact;
mod upload;

pub use blob::{BlobCommit, BlobEntry, Link, Linked, NewBlob, Renewal, Unlink};
pub use change::{Change, ChangeKind};
pub use collect::{Backlog, Collected, Untagged};
pub use config::DbConfig;
pub use connect::Db;
pub use dangling::Dangling;
pub use error::DbError;
pub use id::{BlobId, ChangeId, ManifestId, RemovalId, RepositoryId};
pub use inspect::{BlobRow, ManifestRow, NeededBy, TagRow};
pub use manifest::{
    DeleteManifest, DeletedManifest, DeletedTag, ManifestHead, ManifestPut, NewManifest, PutManifestError, RecordEntry,
    Referrer, StoredManifest, TagEntry, TagMove,
};
pub use removal::Removal;
pub use restore::{Restored, RestoredBlob, RestoredManifest, RestoredTag};
pub use upload::{CheckpointError, UploadRow, UploadStatus};
