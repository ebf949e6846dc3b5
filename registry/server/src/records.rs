//! What the store is told besides bytes, so that the database can be rebuilt from it.

use std::collections::HashMap;

use blobs::{ManifestRecord, RecordId, Shard, StoreEntry, StoreError, TagRecord, TagRecordName};
use db::{ChangeId, ChangeKind, DbError, ManifestRow, RepositoryId, TagMove, TagRow};
use futures_util::{StreamExt as _, stream};
use oci::{Digest, Manifest, Reference, RepositoryName, TagName};

use crate::app::App;
use crate::http::Failure;

/// The record of a manifest that is about to be pushed.
pub(crate) struct Record {
    pub(crate) manifest: ManifestRecord,
    /// Its name, as the database keeps it.
    pub(crate) name: String,
    /// How a removal of it is written down.
    pub(crate) entry: String,
}

impl Record {
    /// # Errors
    /// When the database fails.
    pub(crate) async fn new(
        app: &App,
        repository: &RepositoryName,
        manifest: &Manifest,
        digest: &Digest,
    ) -> Result<Self, Failure> {
        let id = RecordId::random();
        let foreign = match has_foreign(manifest) {
            true => foreign(app, app.repository(repository).await?, manifest).await?,
            false => Vec::new(),
        };
        let manifest = ManifestRecord {
            id,
            repository: repository.clone(),
            digest: digest.clone(),
            media_type: manifest.media_type().to_owned(),
            time_ms: app.now_ms().unsigned_abs(),
            foreign,
            bytes: manifest.raw().clone(),
        };
        Ok(Self { manifest, name: id.to_string(), entry: StoreEntry::ManifestRecord(id).to_string() })
    }
}

/// Whether it names blobs without needing them.
fn has_foreign(manifest: &Manifest) -> bool {
    manifest.blobs().iter().any(|blob| !blob.required)
}

/// Those of them that can be read in the repository nevertheless.
async fn foreign(app: &App, repository: Option<RepositoryId>, manifest: &Manifest) -> Result<Vec<Digest>, DbError> {
    let Some(repository) = repository else { return Ok(Vec::new()) };
    let named: Vec<Digest> =
        manifest.blobs().iter().filter(|blob| !blob.required).map(|blob| blob.digest.clone()).collect();
    let mut foreign: Vec<Digest> = app.db.readable(repository, &named).await?.into_iter().collect();
    foreign.sort_by_cached_key(ToString::to_string);
    Ok(foreign)
}

/// Takes back the record of a manifest that was not accepted. If it stays, the scrub finds it.
pub(crate) async fn withdraw(app: &App, record: &Record) {
    for (entry, result) in app.store.remove(&[StoreEntry::ManifestRecord(record.manifest.id)]).await {
        if let Err(error) = result {
            tracing::warn!(%entry, %error, "a record could not be taken back");
        }
    }
}

/// Writes the records of tags that were set, so that the store alone tells where they point.
pub(crate) async fn write_tags(
    app: &App,
    repository: &RepositoryName,
    digest: &Digest,
    moves: &[TagMove],
) -> Result<(), StoreError> {
    // Also of those that did not move: whoever pushed it may have been killed before he wrote it.
    for moved in moves {
        let record = TagRecord {
            repository: repository.clone(),
            tag: moved.tag.clone(),
            digest: digest.clone(),
            gone: false,
            change: change_number(moved.change),
            time_ms: app.now_ms().unsigned_abs(),
        };
        if let Err(error) = app.store.put_tag_record(&record).await {
            // The database says already where they point.
            moves.iter().for_each(|moved| app.unsettled.tag(repository, &moved.tag));
            return Err(error);
        }
    }
    // Only now that there are higher ones: until then they are all that a rebuild has.
    let replaced = moves.iter().filter_map(|moved| {
        let change = moved.replaced?;
        Some(StoreEntry::TagRecord(TagRecordName::new(repository, &moved.tag, change_number(change))))
    });
    app.unsettled.replaced(replaced);
    if moves.iter().any(|moved| moved.replaced.is_some()) {
        app.removals_wanted();
    }
    Ok(())
}

/// Of the tags of one manifest.
const WRITTEN_AT_A_TIME: usize = 16;

/// What was deleted from the database and is to be forgotten by the store, too.
pub(crate) struct Gone<'g> {
    pub(crate) repository: &'g RepositoryName,
    /// Where the tags pointed.
    pub(crate) digest: &'g Digest,
    /// Tags, and the changes that say so.
    pub(crate) tags: &'g [(TagName, ChangeId)],
    /// Records that are due to be removed: those of the tags, and the manifest's.
    pub(crate) entries: &'g [String],
}

/// Sees to it that a rebuild does not bring back what was deleted: a record says that a tag is gone, whatever is written late by somebody
/// who moved it before, and a manifest's record is removed.
///
/// # Errors
/// When a rebuild might bring it back nevertheless. It goes on being tried.
pub(crate) async fn forget(app: &App, gone: &Gone<'_>) -> Result<(), StoreError> {
    let tell = async |(tag, change): &(TagName, ChangeId)| {
        let record = TagRecord {
            repository: gone.repository.clone(),
            tag: tag.clone(),
            digest: gone.digest.clone(),
            gone: true,
            change: change_number(*change),
            time_ms: app.now_ms().unsigned_abs(),
        };
        app.store.put_tag_record(&record).await.inspect_err(|_| app.unsettled.tag(gone.repository, tag))
    };
    let tell = stream::iter(gone.tags).map(tell).buffer_unordered(WRITTEN_AT_A_TIME);
    let told = tell.fold(Ok(()), async |told, one| told.and(one)).await;
    let removed = app.remove_now(gone.entries).await;
    match (&told, &removed) {
        // Where there is no room for another record, all of the tag's are gone instead.
        (Err(StoreError::Full(_)), Ok(())) => forget_older(app, gone).await,
        // The record that it is gone is the higher one.
        (Ok(()), Err(_)) if gone.entries.len() == gone.tags.len() => Ok(()),
        _ => told.and(removed),
    }
}

/// Removes all records of tags that are older than their deletion, also those that wait to be removed because higher ones replaced them.
async fn forget_older(app: &App, gone: &Gone<'_>) -> Result<(), StoreError> {
    let mut shards = HashMap::<Shard, Vec<TagRecordName>>::new();
    for (tag, change) in gone.tags {
        let name = TagRecordName::new(gone.repository, tag, change_number(*change));
        shards.entry(name.shard()).or_default().push(name);
    }
    for (shard, names) in shards {
        let found = app.store.list_tag_records(shard).await?.entries;
        let is_older =
            |found: &TagRecordName| names.iter().any(|name| name.of() == found.of() && found.change() < name.change());
        let older: Vec<_> =
            found.iter().map(|record| record.name).filter(is_older).map(StoreEntry::TagRecord).collect();
        for (_, result) in app.store.remove(&older).await {
            result?;
        }
    }
    Ok(())
}

/// Writes what the database says of a tag, now.
pub(crate) async fn settle(app: &App, repository: &RepositoryName, tag: &TagName) -> anyhow::Result<()> {
    let Some(id) = app.db.repository_id(repository).await? else { return Ok(()) };
    if let Some(row) = app.db.tag(id, tag).await? {
        return rewrite_tag(app, &row).await;
    }
    match app.db.tag_history(id, tag, 1).await?.pop() {
        Some(change) if change.kind == ChangeKind::Untag => {
            let record = TagRecord {
                repository: repository.clone(),
                tag: tag.clone(),
                digest: change.digest,
                gone: true,
                change: change_number(change.id),
                time_ms: change.at_ms.unsigned_abs(),
            };
            Ok(app.store.put_tag_record(&record).await?)
        }
        _ => Ok(()),
    }
}

/// Writes the record of a manifest that has none; the database has all it takes.
pub(crate) async fn rewrite_manifest(app: &App, row: &ManifestRow) -> anyhow::Result<()> {
    let reference = Reference::Digest(row.digest.clone());
    let Some(stored) = app.db.manifest(row.repository, &reference).await? else { return Ok(()) };
    let manifest = Manifest::parse(stored.content.clone(), Some(&row.media_type), &app.stored_manifest_limits())?;
    let record = ManifestRecord {
        id: row.record.parse()?,
        repository: row.repository_name.clone(),
        digest: row.digest.clone(),
        media_type: row.media_type.clone(),
        time_ms: row.created_ms.unsigned_abs(),
        foreign: foreign(app, Some(row.repository), &manifest).await?,
        bytes: stored.content,
    };
    Ok(app.store.put_manifest_record(&record).await?)
}

/// Writes the record of a tag that has none.
pub(crate) async fn rewrite_tag(app: &App, row: &TagRow) -> anyhow::Result<()> {
    let record = TagRecord {
        repository: row.repository_name.clone(),
        tag: row.tag.clone(),
        digest: row.digest.clone(),
        gone: false,
        change: change_number(row.change),
        time_ms: row.at_ms.unsigned_abs(),
    };
    Ok(app.store.put_tag_record(&record).await?)
}

/// The name of a tag's record.
pub(crate) fn tag_name(row: &TagRow) -> TagRecordName {
    TagRecordName::new(&row.repository_name, &row.tag, change_number(row.change))
}

/// How the removal of a tag's record is written down.
pub(crate) fn tag_entry(repository: &RepositoryName, tag: &TagName, change: ChangeId) -> String {
    StoreEntry::TagRecord(TagRecordName::new(repository, tag, change_number(change))).to_string()
}

/// How the removal of a manifest's record is written down, from the name the database keeps.
pub(crate) fn manifest_entry(name: &str) -> String {
    // A name we wrote; were it another, the removal would be logged as one that cannot be read.
    format!("manifest/{name}")
}

/// How the removal of a blob is written down.
pub(crate) fn blob_entry(key: oci::upload::UploadId, digest: &Digest, size: u64) -> String {
    StoreEntry::Blob(blobs::StoredBlob { key, digest: digest.clone(), size }).to_string()
}

/// Changes are numbered from 1 on.
const fn change_number(change: ChangeId) -> u64 {
    change.0.unsigned_abs()
}
