//! What every database must do.

pub mod blobs;
pub mod collecting;
pub mod concurrency;
pub mod lists;
pub mod manifests;
pub mod repairing;
pub mod uploads;
