//! What every database must do.

pub(crate) mod blobs;
pub(crate) mod collecting;
pub(crate) mod concurrency;
pub(crate) mod lists;
pub(crate) mod manifests;
pub(crate) mod repairing;
pub(crate) mod uploads;
