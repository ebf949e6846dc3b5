//! What `registry fsck` and the scrub read.

use std::collections::{HashMap, HashSet};

use oci::upload::UploadId;
use oci::{Digest, RepositoryName, TagName};

use crate::error::Fault;
use crate::sql::{LIST_MAX, Row, Run, db_size, marks, padded, sql, values};
use crate::{BlobId, ChangeId, Db, DbError, ManifestId, RepositoryId, upload};

/// The row of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRow {
    /// Its number.
    pub id: BlobId,
    /// Its digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// The key of its bytes in the store.
    pub key: UploadId,
}

/// The row of a manifest, without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestRow {
    /// Its number.
    pub id: ManifestId,
    /// Where it is.
    pub repository: RepositoryId,
    /// Where it is.
    pub repository_name: RepositoryName,
    /// Its digest.
    pub digest: Digest,
    /// Its type.
    pub media_type: String,
    /// Bytes.
    pub size: u64,
    /// The name of its record in the store.
    pub record: String,
    /// When it was pushed, in ms since 1970.
    pub created_ms: i64,
}

/// The row of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRow {
    /// Where it is.
    pub repository: RepositoryId,
    /// Where it is.
    pub repository_name: RepositoryName,
    /// Its name.
    pub tag: TagName,
    /// Where it points.
    pub digest: Digest,
    /// The change that made it point there; part of the name of its record.
    pub change: ChangeId,
    /// When that was, in ms since 1970.
    pub at_ms: i64,
}

/// A manifest that needs a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeededBy {
    /// Where it is.
    pub repository: RepositoryName,
    /// Which it is.
    pub manifest: Digest,
}

const TAGS: &str = "select t.repository_id, r.name, t.name, m.digest, t.change_id, t.updated_at \
                    from tags t join repositories r on r.id = t.repository_id join manifests m on m.id = t.manifest_id";

impl TagRow {
    fn from_row(row: &Row) -> Result<Self, Fault> {
        Ok(Self {
            repository: RepositoryId(row.int(0)?),
            repository_name: row.parse(1)?,
            tag: row.parse(2)?,
            digest: row.parse(3)?,
            change: ChangeId(row.int(4)?),
            at_ms: row.int(5)?,
        })
    }
}

impl Db {
    /// Blobs after a number, in the order of their numbers.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn blobs_page(&self, after: BlobId, limit: u64) -> Result<Vec<BlobRow>, DbError> {
        let text = sql!("select id, digest, size, store_key from blobs where id > ? order by id limit ?");
        self.read(|run: Run| async move {
            let run = &run;
            let rows = run.all(text, values![after.0, db_size(limit)]).await?;
            rows.iter()
                .map(|row| {
                    Ok(BlobRow {
                        id: BlobId(row.int(0)?),
                        digest: row.parse(1)?,
                        size: row.size(2)?,
                        key: row.parse(3)?,
                    })
                })
                .collect()
        })
        .await
    }

    /// The digests of the blobs whose bytes have these keys.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn digests_of_keys(&self, keys: &[UploadId]) -> Result<HashMap<UploadId, Digest>, DbError> {
        self.read(|run: Run| async move {
            let run = &run;
            let mut digests = HashMap::with_capacity(keys.len());
            for keys in keys.chunks(LIST_MAX) {
                let keys = padded(keys.iter().map(ToString::to_string).collect());
                let text = format!("select store_key, digest from blobs where store_key in {}", marks(keys.len()));
                for row in run.all(text, keys.into_iter().map(Into::into).collect()).await? {
                    digests.insert(row.parse(0)?, row.parse(1)?);
                }
            }
            Ok(digests)
        })
        .await
    }

    /// Manifests after a number, in the order of their numbers.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn manifests_page(&self, after: ManifestId, limit: u64) -> Result<Vec<ManifestRow>, DbError> {
        let text = sql!(
            "select m.id, m.repository_id, r.name, m.digest, m.media_type, m.size, m.record, m.created_at \
             from manifests m join repositories r on r.id = m.repository_id where m.id > ? order by m.id limit ?"
        );
        self.read(|run: Run| async move {
            let run = &run;
            let rows = run.all(text, values![after.0, db_size(limit)]).await?;
            rows.iter()
                .map(|row| {
                    Ok(ManifestRow {
                        id: ManifestId(row.int(0)?),
                        repository: RepositoryId(row.int(1)?),
                        repository_name: row.parse(2)?,
                        digest: row.parse(3)?,
                        media_type: row.text(4)?,
                        size: row.size(5)?,
                        record: row.text(6)?,
                        created_ms: row.int(7)?,
                    })
                })
                .collect()
        })
        .await
    }

    /// Those of the names that are records of manifests.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn manifest_records_known(&self, records: &[String]) -> Result<HashSet<String>, DbError> {
        self.read(|run: Run| async move { known(&run, "select record from manifests where record", records).await })
            .await
    }

    /// Those of the entries that are due to be removed. Reads all removals.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn removals_known(&self, entries: &[String]) -> Result<HashSet<String>, DbError> {
        self.read(|run: Run| async move { known(&run, "select entry from removals where entry", entries).await }).await
    }

    /// Tags after one of a repository, in the order of repositories' numbers and names.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tags_page(&self, after: Option<(RepositoryId, &TagName)>, limit: u64) -> Result<Vec<TagRow>, DbError> {
        let text = format!(
            "{TAGS} where t.repository_id > ? or (t.repository_id = ? and t.name > ?) \
             order by t.repository_id, t.name limit ?"
        );
        let (repository, name) = after.map_or((0, ""), |(repository, tag)| (repository.0, tag.as_str()));
        let text = &text;
        self.read(|run: Run| async move {
            let run = &run;
            let rows = run.all(text.clone(), values![repository, repository, name, db_size(limit)]).await?;
            rows.iter().map(TagRow::from_row).collect()
        })
        .await
    }

    /// The row of a tag.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tag(&self, repository: RepositoryId, tag: &TagName) -> Result<Option<TagRow>, DbError> {
        let text = format!("{TAGS} where t.repository_id = ? and t.name = ?");
        let text = &text;
        self.read(|run: Run| async move {
            let row = run.one(text.clone(), values![repository.0, tag.as_str()]).await?;
            row.as_ref().map(TagRow::from_row).transpose()
        })
        .await
    }

    /// The tags that have their place from these changes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tags_of_changes(&self, changes: &[ChangeId]) -> Result<Vec<TagRow>, DbError> {
        self.read(|run: Run| async move {
            let run = &run;
            let mut found = HashMap::new();
            for changes in changes.chunks(LIST_MAX) {
                let changes = padded(changes.iter().map(|change| change.0).collect());
                let text = format!("{TAGS} where t.change_id in {}", marks(changes.len()));
                for row in run.all(text, changes.into_iter().map(Into::into).collect()).await? {
                    let tag = TagRow::from_row(&row)?;
                    found.insert((tag.repository, tag.tag.clone()), tag);
                }
            }
            Ok(found.into_values().collect())
        })
        .await
    }

    /// The manifests that need a blob, of repositories it is readable in.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn needed_by(&self, blob: BlobId, digest: &Digest) -> Result<Vec<NeededBy>, DbError> {
        self.read(|run: Run| async move { needed_by(&run, blob, &digest.to_string()).await }).await
    }

    /// Forgets a blob whose bytes are lost: its row and its links go, so that a HEAD says 404 and a new push heals. Returns the
    /// manifests that need it, of repositories it was readable in.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_blob(&self, blob: BlobId, now_ms: i64) -> Result<Vec<NeededBy>, DbError> {
        self.transact(|run: Run| async move {
            let run = &run;
            let lock = sql!("select digest, store_key from blobs where id = ? for update");
            let Some(row) = run.one(lock, values![blob.0]).await? else { return Ok(Vec::new()) };
            let needed = needed_by(run, blob, &row.text(0)?).await?;
            run.execute(sql!("delete from links where blob_id = ?"), values![blob.0]).await?;
            run.execute(sql!("delete from blobs where id = ?"), values![blob.0]).await?;
            upload::finish(run, &[row.parse(1)?], now_ms).await?;
            Ok(needed)
        })
        .await
    }
}

async fn needed_by(run: &Run, blob: BlobId, digest: &str) -> Result<Vec<NeededBy>, Fault> {
    let text = sql!(
        "select r.name, m.digest from links l \
         join manifest_blobs n on n.repository_id = l.repository_id and n.digest = ? \
         join manifests m on m.id = n.manifest_id join repositories r on r.id = l.repository_id \
         where l.blob_id = ? order by r.name, m.digest"
    );
    let needed = run.all(text, values![digest, blob.0]).await?;
    needed.iter().map(|row| Ok(NeededBy { repository: row.parse(0)?, manifest: row.parse(1)? })).collect()
}

/// Those of the texts that a `select … where column` finds.
async fn known(run: &Run, select: &str, texts: &[String]) -> Result<HashSet<String>, Fault> {
    let mut known = HashSet::new();
    for texts in texts.chunks(LIST_MAX) {
        let texts = padded(texts.to_vec());
        let text = format!("{select} in {}", marks(texts.len()));
        for row in run.all(text, texts.into_iter().map(Into::into).collect()).await? {
            known.insert(row.text(0)?);
        }
    }
    Ok(known)
}
