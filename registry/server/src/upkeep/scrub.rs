//! The scrub: compares one of the store's 256 folders with the database at a time, and removes what the database does not know.
//!
//! Nothing of the kind comes to be unless a process dies between making bytes durable and telling the database so.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use blobs::{Shard, StoreEntry, StoreError, StoreKind, TagRecordName};
use db::{ChangeId, DbError};

use crate::app::App;

/// Names asked of the database at a time.
const BATCH: usize = 500;
/// What is younger may belong to a push that is being committed at this moment.
const GRACE: Duration = Duration::from_secs(3600);
/// While the scrub is switched off, how often is looked whether it still is.
const OFF: Duration = Duration::from_secs(60);

/// A folder could not be compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScrubError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Db(#[from] DbError),
}

pub(super) async fn run(app: Arc<App>) {
    loop {
        for shard in Shard::all() {
            let gc = app.gc();
            if !gc.enabled || gc.scrub_interval.is_zero() {
                tokio::time::sleep(OFF).await;
                continue;
            }
            tokio::time::sleep(gc.scrub_interval / 256).await;
            match strays(&app, shard, GRACE).await {
                Ok(strays) if strays.is_empty() => {}
                Ok(strays) => remove(&app, &strays).await,
                Err(error) => tracing::warn!(%shard, %error, "a folder of the store cannot be compared"),
            }
        }
    }
}

/// Entries of a shard that are older than `grace` and that the database does not know.
pub(crate) async fn strays(app: &App, shard: Shard, grace: Duration) -> Result<Vec<StoreEntry>, ScrubError> {
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let before = app.now_ms().unsigned_abs().saturating_sub(grace_ms);
    let mut strays = Vec::new();
    let own_bytes = app.config.store.kind == StoreKind::Filesystem;

    let mut blobs = app.store.list_blobs(shard).await?.entries;
    blobs.retain(|blob| blob.modified_ms <= before);
    for page in blobs.chunks(BATCH) {
        let keys: Vec<_> = page.iter().map(|blob| blob.key).collect();
        let known = app.db.digests_of_keys(&keys).await?;
        for blob in page {
            let is_blob = known.get(&blob.key).is_some_and(|digest| match &blob.name {
                // In a folder each name has bytes of its own: a process that died may have left one beside the blob's. In object storage
                // they are the blob's.
                Some(name) if own_bytes => name.digest == *digest,
                _ => true,
            });
            if !is_blob {
                strays.push(blob.name.clone().map_or(StoreEntry::Bytes(blob.key), StoreEntry::Blob));
            }
        }
    }

    let mut manifests = app.store.list_manifest_records(shard).await?.entries;
    manifests.retain(|record| record.modified_ms <= before);
    for page in manifests.chunks(BATCH) {
        let names: Vec<_> = page.iter().map(|record| record.name.to_string()).collect();
        let known = app.db.manifest_records_known(&names).await?;
        let unknown = page.iter().zip(&names).filter(|(_, name)| !known.contains(*name));
        strays.extend(unknown.map(|(record, _)| StoreEntry::ManifestRecord(record.name)));
    }

    let mut tags = app.store.list_tag_records(shard).await?.entries;
    tags.retain(|record| record.modified_ms <= before);
    for page in tags.chunks(BATCH) {
        let change = |number: u64| ChangeId(i64::try_from(number).unwrap_or(i64::MAX));
        let changes: Vec<_> = page.iter().map(|record| change(record.name.change())).collect();
        let rows = app.db.tags_of_changes(&changes).await?;
        let known: HashSet<TagRecordName> = rows
            .iter()
            .map(|row| TagRecordName::new(&row.repository_name, &row.tag, row.change.0.unsigned_abs()))
            .collect();
        let unknown = page.iter().filter(|record| !known.contains(&record.name));
        strays.extend(unknown.map(|record| StoreEntry::TagRecord(record.name)));
    }
    Ok(strays)
}

/// Removes strays.
pub(crate) async fn remove(app: &App, strays: &[StoreEntry]) {
    for (entry, result) in app.store.remove(strays).await {
        match result {
            Ok(bytes) => {
                app.metrics.strays(1);
                app.metrics.freed(bytes);
                tracing::info!(%entry, bytes, "removed what the database does not know");
            }
            Err(error) => tracing::warn!(%entry, %error, "a stray cannot be removed"),
        }
    }
}
