//! What `registry rebuild` writes.

use oci::upload::UploadId;
use oci::{Digest, Manifest, RepositoryName, TagName};

use crate::error::Fault;
use crate::manifest::{self, References};
use crate::sql::{Dialect, Run, db_size, sql, values};
use crate::{ChangeId, Db, DbError, ManifestId, RepositoryId, change, repository};

/// A blob that was found in the store.
#[derive(Clone, Debug)]
pub struct RestoredBlob {
    /// Its digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Their key.
    pub key: UploadId,
}

/// A manifest whose record was found in the store.
#[derive(Clone, Debug)]
pub struct RestoredManifest {
    /// Where it was pushed to.
    pub repository: RepositoryName,
    /// What was pushed.
    pub manifest: Manifest,
    /// The digest it was stored under.
    pub digest: Digest,
    /// The name of the record.
    pub record: String,
    /// When it was pushed, in ms since 1970.
    pub created_ms: i64,
    /// Blobs that it names without needing them, and that were readable in the repository.
    pub foreign: Vec<Digest>,
}

/// A tag whose record was found in the store.
#[derive(Clone, Debug)]
pub struct RestoredTag {
    /// Where it was.
    pub repository: RepositoryName,
    /// Its name.
    pub tag: TagName,
    /// Where it pointed.
    pub digest: Digest,
    /// It was deleted.
    pub gone: bool,
    /// The change that made or deleted it.
    pub change: ChangeId,
    /// When that was, in ms since 1970.
    pub at_ms: i64,
}

/// What became of one that was to be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// It is in the database now.
    New,
    /// It was there already.
    Known,
    /// Another one has its place: a blob of the same digest with another key, a record of the same manifest, a tag with a higher
    /// change. The entry of the store is superfluous.
    Superseded,
    /// A tag whose manifest is not in the database.
    Incomplete,
}

/// Whether the store still has the bytes of this key, or the record of this name.
pub type IsThere<'f, T> = dyn Fn(&T) -> bool + Send + Sync + 'f;

/// Entries restored by one transaction.
const BATCH: usize = 200;

impl Db {
    /// Restores blobs, without links: those come with the manifests that need them. The answers are in the order given. A blob whose bytes are no
    /// longer there gets those of the same digest that are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn restore_blobs(
        &self,
        blobs: &[RestoredBlob],
        is_there: &IsThere<'_, UploadId>,
        now_ms: i64,
    ) -> Result<Vec<Restored>, DbError> {
        let mut answers = Vec::with_capacity(blobs.len());
        for blobs in blobs.chunks(BATCH) {
            let some = self.transact(|run: Run| async move {
                let run = &run;
                let mut answers = Vec::with_capacity(blobs.len());
                for blob in blobs {
                    answers.push(restore_blob(run, blob, is_there, now_ms).await?);
                }
                Ok(answers)
            });
            answers.append(&mut some.await?);
        }
        Ok(answers)
    }

    /// Restores manifests, their references, and the links to those of their blobs that have to be there and are. Blobs come first. Not
    /// noted as changes: the numbers are those of tags, which come afterwards.
    ///
    /// Blobs that a manifest names without needing them get a link only if its record says that there was one: naming a digest gives no
    /// right to read it. A manifest whose record is no longer there gets the one that is.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn restore_manifests(
        &self,
        manifests: &[RestoredManifest],
        is_there: &IsThere<'_, str>,
    ) -> Result<Vec<Restored>, DbError> {
        let mut answers = Vec::with_capacity(manifests.len());
        for manifests in manifests.chunks(BATCH) {
            let some = self.transact(|run: Run| async move {
                let run = &run;
                let mut answers = Vec::with_capacity(manifests.len());
                for manifest in manifests {
                    answers.push(restore_manifest(run, manifest, is_there).await?);
                }
                Ok(answers)
            });
            answers.append(&mut some.await?);
        }
        Ok(answers)
    }

    /// Restores tags with the changes that made them, and deletions of tags; later changes get higher numbers. Manifests come first. Of
    /// several records of one tag, the one with the highest change stays, whatever the answers to those before it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn restore_tags(&self, tags: &[RestoredTag]) -> Result<Vec<Restored>, DbError> {
        let mut answers = Vec::with_capacity(tags.len());
        for tags in tags.chunks(BATCH) {
            let some = self.transact(|run: Run| async move {
                let run = &run;
                let mut answers = Vec::with_capacity(tags.len());
                for tag in tags {
                    answers.push(restore_tag(run, tag).await?);
                }
                if run.dialect() == Dialect::Postgres {
                    // Its numbers come from elsewhere than the table.
                    let text = sql!(
                        "select setval('changes_id_seq', greatest((select max(id) from changes), \
                         (select last_value from changes_id_seq)))"
                    );
                    run.one(text, Vec::new()).await?;
                }
                Ok(answers)
            });
            answers.append(&mut some.await?);
        }
        Ok(answers)
    }

    /// Whether nothing was ever pushed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn is_empty(&self) -> Result<bool, DbError> {
        self.read(|run: Run| async move {
            let run = &run;
            Ok(run.one(sql!("select 1 from repositories limit 1"), Vec::new()).await?.is_none()
                && run.one(sql!("select 1 from blobs limit 1"), Vec::new()).await?.is_none())
        })
        .await
    }
}

async fn restore_blob(
    run: &Run,
    blob: &RestoredBlob,
    is_there: &IsThere<'_, UploadId>,
    now_ms: i64,
) -> Result<Restored, Fault> {
    let (digest, key) = (blob.digest.to_string(), blob.key.to_string());
    // Bytes that are about to be removed.
    let ended = sql!("select 1 from uploads where id = ? and status <> 0");
    if run.one(ended, values![key.as_str()]).await?.is_some() {
        return Ok(Restored::Superseded);
    }
    let insert =
        sql!("insert into blobs (digest, size, store_key, created_at) values (?, ?, ?, ?) on conflict do nothing");
    let values = values![digest.as_str(), db_size(blob.size), key.as_str(), now_ms];
    if run.insert(insert, values).await?.is_some() {
        return Ok(Restored::New);
    }
    let lock = sql!("select store_key from blobs where digest = ? for update");
    let Some(row) = run.one(lock, values![digest.as_str()]).await? else {
        // The key is another blob's: a process that died may have left a second name beside the right one.
        return Ok(Restored::Superseded);
    };
    let had: UploadId = row.parse(0)?;
    if had == blob.key {
        return Ok(Restored::Known);
    }
    if is_there(&had) {
        return Ok(Restored::Superseded);
    }
    let taken = sql!("select 1 from blobs where store_key = ?");
    if run.one(taken, values![key.as_str()]).await?.is_some() {
        return Ok(Restored::Superseded);
    }
    let update = sql!("update blobs set store_key = ?, size = ? where digest = ?");
    run.execute(update, values![key, db_size(blob.size), digest]).await?;
    Ok(Restored::New)
}

async fn restore_manifest(
    run: &Run,
    restored: &RestoredManifest,
    is_there: &IsThere<'_, str>,
) -> Result<Restored, Fault> {
    let repository = repository::make(run, &restored.repository, restored.created_ms).await?;
    let digest = restored.digest.to_string();
    let references = References::of(&restored.manifest);
    let foreign: Vec<String> = restored.foreign.iter().map(ToString::to_string).collect();
    for digest in references.required_blobs().chain(foreign.iter().map(String::as_str)) {
        let lock = sql!("select id, size from blobs where digest = ? for share");
        if let Some(row) = run.one(lock, values![digest]).await? {
            let insert = sql!("insert into links (repository_id, blob_id) values (?, ?) on conflict do nothing");
            run.insert_new(insert, values![repository.0, row.int(0)?]).await?;
        }
    }
    let inserted =
        manifest::insert(run, repository, &digest, &restored.manifest, &restored.record, restored.created_ms).await?;
    if let Some(id) = inserted {
        manifest::insert_references(run, repository, id, &references, true).await?;
        return Ok(Restored::New);
    }
    let lock = sql!("select id, record from manifests where repository_id = ? and digest = ? for update");
    let Some(row) = run.one(lock, values![repository.0, digest]).await? else {
        // The record is another manifest's.
        return Ok(Restored::Superseded);
    };
    let had = row.text(1)?;
    if had == restored.record {
        return Ok(Restored::Known);
    }
    if is_there(&had) {
        return Ok(Restored::Superseded);
    }
    let update = sql!("update manifests set record = ? where id = ?");
    run.execute(update, values![restored.record.as_str(), row.int(0)?]).await?;
    Ok(Restored::New)
}

async fn restore_tag(run: &Run, restored: &RestoredTag) -> Result<Restored, Fault> {
    let repository = repository::make(run, &restored.repository, restored.at_ms).await?;
    if restored.gone {
        return restore_deletion(run, repository, restored).await;
    }
    let digest = restored.digest.to_string();
    let find = sql!("select id, size from manifests where repository_id = ? and digest = ? for share");
    let Some(row) = run.one(find, values![repository.0, digest.as_str()]).await? else {
        return Ok(Restored::Incomplete);
    };
    // It may have been deleted since.
    if change::latest(run, repository, &restored.tag).await? > restored.change {
        return Ok(Restored::Superseded);
    }
    let id = ManifestId(row.int(0)?);
    let (tag, change, at_ms) = (restored.tag.as_str(), restored.change.0, restored.at_ms);
    let lock = sql!("select change_id, manifest_id from tags where repository_id = ? and name = ? for update");
    match run.one(lock, values![repository.0, tag]).await? {
        Some(row) if row.int(0)? == change && row.int(1)? == id.0 => return Ok(Restored::Known),
        Some(row) if row.int(0)? >= change => return Ok(Restored::Superseded),
        Some(row) => {
            let update = sql!(
                "update tags set manifest_id = ?, change_id = ?, updated_at = ? where repository_id = ? and name = ?"
            );
            run.execute(update, values![id.0, change, at_ms, repository.0, tag]).await?;
            manifest::touch(run, ManifestId(row.int(1)?), at_ms).await?;
        }
        None => {
            let insert = sql!(
                "insert into tags (repository_id, name, manifest_id, change_id, updated_at) values (?, ?, ?, ?, ?) \
                 on conflict do nothing"
            );
            if !run.insert_new(insert, values![repository.0, tag, id.0, change, at_ms]).await? {
                return Err(Fault::Again("a tag was pushed while it was restored"));
            }
        }
    }
    change::restore(run, repository, restored).await?;
    Ok(Restored::New)
}

async fn restore_deletion(run: &Run, repository: RepositoryId, restored: &RestoredTag) -> Result<Restored, Fault> {
    let change = restored.change;
    match change::latest(run, repository, &restored.tag).await? {
        latest if latest == change => return Ok(Restored::Known),
        latest if latest > change => return Ok(Restored::Superseded),
        _ => {}
    }
    let delete = sql!("delete from tags where repository_id = ? and name = ? and change_id < ?");
    run.execute(delete, values![repository.0, restored.tag.as_str(), change.0]).await?;
    change::restore(run, repository, restored).await?;
    Ok(Restored::New)
}
