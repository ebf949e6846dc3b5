//! The scrub: compares one of the store's 256 folders with the database at a time, and removes what the database does not know.
//!
//! Nothing of the kind comes to be unless a process dies between making bytes durable and telling the database so.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use blobs::{Shard, StoreEntry, StoreError, StoreKind, StoredBlob, TagRecordName};
use db::{ChangeId, DbError};
use oci::upload::UploadId;
use oci::{Digest, RepositoryName, TagName};

use crate::app::App;
use crate::records;

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
    #[error("the database is older than the store, which has records of later changes")]
    Older,
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
            if let Err(error) = scrub(&app, shard).await {
                tracing::warn!(%shard, %error, "a folder of the store cannot be compared");
            }
        }
    }
}

async fn scrub(app: &App, shard: Shard) -> Result<(), ScrubError> {
    let Strays { entries, unsettled } = strays(app, shard, GRACE).await?;
    unsettled.iter().for_each(|(repository, tag)| app.unsettled.tag(repository, tag));
    // It may have taken a while to list them.
    if app.tie.holds() {
        remove(app, &entries).await?;
    }
    Ok(())
}

/// What a shard has, and the database does not know.
#[derive(Debug, Default)]
pub(crate) struct Strays {
    pub(crate) entries: Vec<StoreEntry>,
    /// Tags of which there are only records that they had before.
    unsettled: Vec<(RepositoryName, TagName)>,
}

/// Entries of a shard that are older than `grace` and that the database does not know.
pub(crate) async fn strays(app: &App, shard: Shard, grace: Duration) -> Result<Strays, ScrubError> {
    let before = before_now(app, grace);
    let mut strays = Strays::default();

    let mut blobs = app.store.list_blobs(shard).await?.entries;
    blobs.retain(|blob| blob.modified_ms <= before);
    for page in blobs.chunks(BATCH) {
        let keys: Vec<_> = page.iter().map(|blob| blob.key).collect();
        let known = app.db.digests_of_keys(&keys).await?;
        for blob in page {
            if !is_blob(app, &known, blob.key, blob.name.as_ref()) {
                strays.entries.push(blob.name.clone().map_or(StoreEntry::Bytes(blob.key), StoreEntry::Blob));
            }
        }
    }

    let mut manifests = app.store.list_manifest_records(shard).await?.entries;
    manifests.retain(|record| record.modified_ms <= before);
    for page in manifests.chunks(BATCH) {
        let names: Vec<_> = page.iter().map(|record| record.name.to_string()).collect();
        let known = app.db.manifest_records_known(&names).await?;
        let unknown = page.iter().zip(&names).filter(|(_, name)| !known.contains(*name));
        strays.entries.extend(unknown.map(|(record, _)| StoreEntry::ManifestRecord(record.name)));
    }

    stray_tags(app, shard, before, &mut strays).await?;
    Ok(strays)
}

/// Adds records of tags that the database does not know, and the tags whose own record is not there.
///
/// The highest record of a tag is right. One that is gone has a record that says so, which outlives all others: who moved the tag before may
/// write his late.
async fn stray_tags(app: &App, shard: Shard, before: u64, all: &mut Strays) -> Result<(), ScrubError> {
    let replaced_before = before.min(before_now(app, GRACE));
    let mut found = app.store.list_tag_records(shard).await?.entries;
    let latest = app.db.latest_change().await?;
    if found.iter().any(|record| change(record.name) > latest) {
        return Err(ScrubError::Older);
    }
    let mut known = HashMap::new();
    for page in found.chunks(BATCH) {
        let changes: Vec<_> = page.iter().map(|record| change(record.name)).collect();
        let rows = app.db.tags_of_changes(&changes).await?;
        known.extend(rows.into_iter().map(|row| (records::tag_name(&row), row)));
    }
    found.sort_by_key(|record| (record.name.of(), Reverse(record.name.change())));
    let mut strays = Vec::new();
    for records in found.chunk_by(|one, other| one.name.of() == other.name.of()) {
        let Some((highest, lower)) = records.split_first() else { continue };
        if let (Some(row), Err(_)) = (known.get(&highest.name), &highest.record) {
            // It is written again before the others go.
            all.unsettled.push((row.repository_name.clone(), row.tag.clone()));
            continue;
        }
        strays.extend(lower.iter().filter(|record| record.modified_ms <= replaced_before).map(|record| record.name));
        if known.contains_key(&highest.name) || highest.modified_ms > before {
            continue;
        }
        let Ok(record) = &highest.record else {
            strays.push(highest.name);
            continue;
        };
        let row = match app.db.repository_id(&record.repository).await? {
            Some(repository) => app.db.tag(repository, &record.tag).await?,
            None => None,
        };
        match row {
            Some(row) if row.change != change(highest.name) => {
                all.unsettled.push((record.repository.clone(), record.tag.clone()));
            }
            Some(_) => {}
            None if !record.gone => strays.push(highest.name),
            None if lower.is_empty() && highest.modified_ms <= replaced_before => strays.push(highest.name),
            None => {}
        }
    }
    all.entries.extend(strays.into_iter().map(StoreEntry::TagRecord));
    Ok(())
}

fn change(name: TagRecordName) -> ChangeId {
    ChangeId(i64::try_from(name.change()).unwrap_or(i64::MAX))
}

/// The time so long ago, in ms since 1970.
fn before_now(app: &App, age: Duration) -> u64 {
    app.now_ms().unsigned_abs().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

/// Removes strays, unless the database has come to know them; how many are gone.
pub(crate) async fn remove(app: &App, strays: &[StoreEntry]) -> Result<u64, ScrubError> {
    let mut gone = 0;
    for strays in strays.chunks(BATCH) {
        for (entry, result) in app.store.remove(&unknown(app, strays).await?).await {
            match result {
                Ok(bytes) => {
                    gone += 1;
                    app.metrics.strays(1);
                    app.metrics.freed(bytes);
                    tracing::info!(%entry, bytes, "removed what the database does not know");
                }
                Err(error) => tracing::warn!(%entry, %error, "a stray cannot be removed"),
            }
        }
    }
    Ok(gone)
}

/// Those that the database still does not know. Bytes can be committed late, by a client that sends its last request again: whoever removes
/// them ends their upload first.
async fn unknown(app: &App, strays: &[StoreEntry]) -> Result<Vec<StoreEntry>, ScrubError> {
    let key = |entry: &StoreEntry| match entry {
        StoreEntry::Blob(blob) => Some(blob.key),
        StoreEntry::Bytes(key) => Some(*key),
        _ => None,
    };
    let keys: Vec<_> = strays.iter().filter_map(key).collect();
    let ended = app.db.end_uploads(&keys, app.now_ms()).await?;
    let kept: Vec<_> = keys.into_iter().filter(|key| !ended.contains(key)).collect();
    let digests = app.db.digests_of_keys(&kept).await?;
    let records: Vec<_> = strays
        .iter()
        .filter_map(|entry| match entry {
            StoreEntry::ManifestRecord(record) => Some(record.to_string()),
            _ => None,
        })
        .collect();
    let known = app.db.manifest_records_known(&records).await?;
    let is_unknown = |entry: &&StoreEntry| match entry {
        StoreEntry::Blob(blob) => ended.contains(&blob.key) || !is_blob(app, &digests, blob.key, Some(blob)),
        StoreEntry::Bytes(key) => ended.contains(key),
        StoreEntry::ManifestRecord(record) => !known.contains(&record.to_string()),
        _ => true,
    };
    Ok(strays.iter().filter(is_unknown).cloned().collect())
}

/// Whether the database has bytes of this key under this name.
fn is_blob(app: &App, digests: &HashMap<UploadId, Digest>, key: UploadId, name: Option<&StoredBlob>) -> bool {
    digests.get(&key).is_some_and(|digest| match name {
        // In a folder each name has bytes of its own: a process that died may have left one beside the blob's. In object storage they
        // are the blob's.
        Some(name) if app.config.store.kind == StoreKind::Filesystem => name.digest == *digest,
        _ => true,
    })
}
