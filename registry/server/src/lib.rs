//! The registry: images and everything else that the OCI distribution protocol carries.
//!
//! ```text
//! http        a request becomes a Call; access decides; a handler answers
//!  ├─ uploads, manifests, blobs, lists, referrers
//!  ├─ db      what is where            (registry/db)
//!  └─ store   the bytes                (registry/blobs)
//! upkeep      removal, old uploads, scrub
//! commands    fsck, rebuild, gc
//! ```
//!
//! Read first: `docs/design/registry.md`, then `http.rs`.
//!
//! **Not here:** the protocol's grammar and rules (crate `oci`), where bytes lie (crate `blobs`), SQL (crate `db`), people and
//! roles (`access.rs` has the one question they will answer).
//!
//! **Invariants:** 201 is said after bytes and rows are durable. Bytes of a blob pass through fixed buffers. What this
//! process remembers of the database is never older than an acknowledged change.
//!
//! **What a crash may lose:** what was not acknowledged. What it leaves behind is taken back by `upkeep`.

#![forbid(unsafe_code)]

mod access;
mod active;
mod app;
mod cache;
mod client;
mod commands;
mod config;
mod http;
mod metrics;
mod open;
mod records;
mod sessions;
mod tie;
mod unsettled;
mod upkeep;

pub use app::run;
pub use commands::{FsckArgs, GcArgs, RebuildArgs};
pub use config::{AuthConfig, CacheConfig, Config, GcConfig, ListConfig, ManifestConfig, UploadConfig};

/// Compares store and database, and mends.
///
/// # Errors
/// When something is wrong that was not mended, or store or database cannot be read.
pub async fn fsck(config: Config, args: FsckArgs) -> anyhow::Result<()> {
    commands::fsck::run(config, args).await
}

/// Fills an empty database from the store.
///
/// # Errors
/// When the database is not empty, or store or database fail.
pub async fn rebuild(config: Config, args: RebuildArgs) -> anyhow::Result<()> {
    commands::rebuild::run(config, args).await
}

/// Prints what waits for the collector.
///
/// # Errors
/// When the database cannot be read.
pub async fn gc(config: Config, args: GcArgs) -> anyhow::Result<()> {
    commands::gc::run(config, args).await
}
