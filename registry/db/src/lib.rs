//! What the registry knows, in SQL: SQLite, MariaDB/MySQL or PostgreSQL.
//!
//! Which digest's bytes lie under which key, in which repositories a blob may be read, what manifests need, where tags point and pointed,
//! how far uploads are, and what of the store is to be removed. `docs/design/registry.md` has the tables and the reasons.
//!
//! Read first: [`Db`] (everything is a method of it), [`Db::commit_blob`] and [`Db::put_manifest`] (how things come in),
//! [`Db::collect`] (how they go). The methods are sorted by who calls them, a file each: requests (`repository`, `blob`, `manifest`,
//! `upload`, `setting`), the collector (`collect`, `removal`), replication and history (`change`), and the tools `fsck` (`inspect`, `dangling`)
//! and `rebuild` (`restore`).
//!
//! **Not here:** bytes of blobs, HTTP, rights, a clock (times are arguments, in ms since 1970), a cache of anything that can change. Names of
//! entries in the store are texts that callers give.
//!
//! # Invariants
//! - A link in a repository is either referenced by a manifest of that repository, or has a lease: `leased_until`. A blob without a link does
//!   not exist. [`Db::dangling_rows`] looks for what does not fit.
//! - What becomes superfluous in the store is noted in `removals` by the transaction that makes it so.
//! - Bytes that were given up are never a blob again: their upload is marked as finished.
//! - Of two changes of one tag the later has the higher number, whatever process made it.
//! - Rows are locked in one order: a repository that is new, blobs, links, manifests, tags. A deadlock that happens nevertheless is found by the database, and the
//!   transaction is run again.
//!
//! # What is acknowledged is durable
//! A method that changes something returns after the commit, and commits are on disk: SQLite with `synchronous = full`, PostgreSQL with
//! `synchronous_commit = on`, MariaDB and MySQL only if `innodb_flush_log_at_trx_commit` is 1. A crash loses what was not acknowledged, or it
//! leaves it done: nobody knows which, and doing it again is harmless. When a connection breaks during a commit, that is the same.
//!
//! # How it runs
//! SQLite has one connection that writes, on which transactions take turns and are committed together (`alone.rs`), and a pool that reads. A lock
//! on `<file>.lock` makes the process the only one. A server has one pool, `READ COMMITTED`, and as many processes as there are. SeaORM gives
//! connections, transactions and migrations; statements are written by hand (`sql.rs`), for they lock rows in ways that its builder has no words
//! for.
//!
//! # Limits
//! Connections and times are [`DbConfig`]'s. A step of the collector looks at 512 links. Names are at most 255 bytes, tags 128, as crate `oci`
//! has it; a manifest is as large as the server's `max_allowed_packet` (at least 8 MiB) allows.

#![forbid(unsafe_code)]

mod alone;
mod blob;
mod change;
mod collect;
mod config;
mod connect;
mod dangling;
mod error;
mod guard;
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
pub use change::{Change, ChangeKind, Mark, State};
pub use collect::{Backlog, Collected, Untagged};
pub use config::DbConfig;
pub use connect::Db;
pub use dangling::Dangling;
pub use error::DbError;
pub use id::{BlobId, ChangeId, ManifestId, RemovalId, RepositoryId};
pub use inspect::{BlobRow, ManifestRow, NeededBy, TagRow};
pub use manifest::{
    DeleteManifest, DeletedManifest, DeletedTag, Expected, ManifestHead, ManifestPut, NewManifest, NewRecord,
    PutManifestError, RecordEntry, Referrer, StoredManifest, TagEntry, TagMove,
};
pub use removal::Removal;
pub use restore::{IsThere, Restored, RestoredBlob, RestoredManifest, RestoredTag};
pub use upload::{CheckpointError, Follows, OpenUploads, UploadRow, UploadStatus};
