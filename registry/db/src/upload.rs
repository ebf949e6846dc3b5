//! Uploads of which something is durable.

use std::collections::HashSet;

use oci::RepositoryName;
use oci::upload::UploadId;

use crate::error::Fault;
use crate::sql::{Dialect, LIST_MAX, Row, Run, db_size, marks, padded, repeat, sql, values};
use crate::{Db, DbError};

/// Where an upload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadStatus {
    /// It can be continued.
    Open,
    /// The client does not want it any more.
    Cancelled,
    /// Its bytes were committed or given up; a retry of its last request must not commit them again.
    Finished,
}

/// The row of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadRow {
    /// Which.
    pub id: UploadId,
    /// Where it goes to; of a finished one that had no row, `None`.
    pub repository: Option<RepositoryName>,
    /// What is needed to go on, as it was given.
    pub state: String,
    /// Bytes that are durable.
    pub offset: u64,
    /// Number of checkpoints, from 1.
    pub version: i64,
    /// Whether it can be continued.
    pub status: UploadStatus,
    /// Time of the last change of the row, in ms since 1970.
    pub updated_ms: i64,
}

/// What a checkpoint follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows<'a> {
    /// Nothing: the upload becomes an open one, if its client has fewer than `most` of which something is kept. Without a client nobody
    /// counts.
    Nothing {
        /// Whose upload it is; at most 64 characters.
        client: Option<&'a str>,
        /// Open uploads the client may have.
        most: u64,
    },
    /// The checkpoint of this version.
    Version(i64),
}

/// Uploads that can be continued.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenUploads {
    /// All of them.
    pub count: u64,
    /// Clients that may not have more.
    pub full: HashSet<String>,
}

/// A checkpoint was not saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Somebody else has changed or ended the upload.
    #[error("another request has changed the upload")]
    Conflict,
    /// The client has as many open uploads as it may have.
    #[error("the client has too many unfinished uploads")]
    TooMany,
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

pub(crate) const OPEN: i64 = 0;
const CANCELLED: i64 = 1;
const FINISHED: i64 = 2;

const COLUMNS: &str = "id, repository, state, offset_bytes, version, status, updated_at";

impl UploadRow {
    fn from_row(row: &Row) -> Result<Self, Fault> {
        Ok(Self {
            id: row.parse(0)?,
            repository: row.parse_option(1)?,
            state: row.text(2)?,
            offset: row.size(3)?,
            version: row.int(4)?,
            status: match row.int(5)? {
                OPEN => UploadStatus::Open,
                CANCELLED => UploadStatus::Cancelled,
                FINISHED => UploadStatus::Finished,
                other => return Err(Fault::Corrupt(format!("{other} where an upload's status should be"))),
            },
            updated_ms: row.int(6)?,
        })
    }
}

impl Db {
    /// Saves how far an upload is, durable. Returns the new version.
    ///
    /// Of servers, transactions that count at the same moment may each find room for one more; SQLite has one at a time.
    ///
    /// # Errors
    /// When the row has another version or is not open, the client has too many, or the database fails.
    pub async fn save_checkpoint(
        &self,
        id: UploadId,
        repository: &RepositoryName,
        state: &str,
        offset: u64,
        follows: Follows<'_>,
        now_ms: i64,
    ) -> Result<i64, CheckpointError> {
        let id = id.to_string();
        let id = &id;
        self.transact(|run: Run| async move {
            let run = &run;
            let (saved, version) = match follows {
                Follows::Version(version) => {
                    let text = sql!(
                        "update uploads set state = ?, offset_bytes = ?, version = ?, updated_at = ? \
                         where id = ? and version = ? and status = 0"
                    );
                    let values = values![state, db_size(offset), version + 1, now_ms, id.as_str(), version];
                    (run.execute(text, values).await? > 0, version + 1)
                }
                Follows::Nothing { client, most } => {
                    // It may be a blob already: somebody else has ended it.
                    let text = sql!(
                        "select (select count(*) from uploads where id = ?), \
                         (select count(*) from blobs where store_key = ?), \
                         (select count(*) from uploads where client = ? and status = 0 and offset_bytes > 0)"
                    );
                    let Some(row) = run.one(text, values![id.as_str(), id.as_str(), client]).await? else {
                        return Err(Fault::Corrupt("a count without a number".to_owned()));
                    };
                    if row.size(0)? + row.size(1)? > 0 {
                        return Ok(Err(CheckpointError::Conflict));
                    }
                    if client.is_some() && row.size(2)? >= most {
                        return Ok(Err(CheckpointError::TooMany));
                    }
                    let text = sql!(
                        "insert into uploads (id, repository, client, state, offset_bytes, version, status, updated_at) \
                         values (?, ?, ?, ?, ?, 1, 0, ?) on conflict do nothing"
                    );
                    let values = values![id.as_str(), repository.as_str(), client, state, db_size(offset), now_ms];
                    (run.insert_new(text, values).await?, 1)
                }
            };
            Ok(if saved { Ok(version) } else { Err(CheckpointError::Conflict) })
        })
        .await?
    }

    /// The row of an upload; `None` is a fresh one, or one that does not exist. One that is a blob now has no row of its own any
    /// more, and is `Finished`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn upload(&self, id: UploadId) -> Result<Option<UploadRow>, DbError> {
        let text = format!(
            "select {COLUMNS} from uploads where id = ? \
             union all select store_key, null, '', size, 0, {FINISHED}, created_at from blobs where store_key = ?"
        );
        let text = &text;
        self.read(|run: Run| async move {
            let id = id.to_string();
            run.one(text.clone(), values![id.as_str(), id.as_str()])
                .await?
                .as_ref()
                .map(UploadRow::from_row)
                .transpose()
        })
        .await
    }

    /// Takes back a first checkpoint of no bytes, unless another has followed it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unsave_checkpoint(&self, id: UploadId) -> Result<(), DbError> {
        self.transact(|run: Run| async move {
            let text = sql!("delete from uploads where id = ? and version = 1 and offset_bytes = 0 and status = 0");
            run.execute(text, values![id.to_string()]).await.map(drop)
        })
        .await
    }

    /// Ends an upload. A row stays, so that nobody continues or commits it, until [`Db::forget_upload`]. Returns the row as it was
    /// before, so that the store can be told; `None`: there was none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn cancel_upload(
        &self,
        id: UploadId,
        repository: &RepositoryName,
        now_ms: i64,
    ) -> Result<Option<UploadRow>, DbError> {
        self.transact(|run: Run| async move {
            let run = &run;
            let key = id.to_string();
            let insert = sql!(
                "insert into uploads (id, repository, state, offset_bytes, version, status, updated_at) \
                 values (?, ?, '', 0, 0, 1, ?) on conflict do nothing"
            );
            if run.insert_new(insert, values![key.as_str(), repository.as_str(), now_ms]).await? {
                return Ok(None);
            }
            let before = find(run, id, " for update").await?;
            let cancel = sql!("update uploads set status = 1, updated_at = ? where id = ? and status = 0");
            run.execute(cancel, values![now_ms, key.as_str()]).await?;
            match before {
                Some(before) => Ok(Some(before)),
                None => Err(Fault::Again("an upload ended while it was cancelled")),
            }
        })
        .await
    }

    /// Ends uploads for good: nobody can commit them from then on, so that bytes under their keys may go. Returns those that were ended; the
    /// others are blobs.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn end_uploads(&self, ids: &[UploadId], now_ms: i64) -> Result<HashSet<UploadId>, DbError> {
        self.transact(|run: Run| async move {
            let run = &run;
            let mut ended = Vec::with_capacity(ids.len());
            for id in ids {
                if take_key(run, *id, now_ms).await? {
                    ended.push(*id);
                }
            }
            finish(run, &ended, now_ms).await?;
            Ok(ended.into_iter().collect())
        })
        .await
    }

    /// Uploads that are not finished and whose row was not changed since `before_ms`, the oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn expired_uploads(&self, before_ms: i64, limit: u64) -> Result<Vec<UploadRow>, DbError> {
        let text =
            format!("select {COLUMNS} from uploads where updated_at < ? and status <> 2 order by updated_at limit ?");
        let text = &text;
        self.read(|run: Run| async move {
            let run = &run;
            let rows = run.all(text.clone(), values![before_ms, db_size(limit)]).await?;
            rows.iter().map(UploadRow::from_row).collect()
        })
        .await
    }

    /// Deletes the row of an upload that nobody goes on with, unless it was changed since `before_ms`; whether it did. Nobody can save a
    /// checkpoint of it from then on, so that its bytes may go.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_upload(&self, id: UploadId, before_ms: i64) -> Result<bool, DbError> {
        self.transact(|run: Run| async move {
            let run = &run;
            let text = sql!("delete from uploads where id = ? and updated_at < ?");
            Ok(run.execute(text, values![id.to_string(), before_ms]).await? > 0)
        })
        .await
    }

    /// Deletes up to `limit` rows of finished uploads whose ids nobody accepts any more: those that ended before `before_ms`. Returns how
    /// many there were.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_finished_uploads(&self, before_ms: i64, limit: u32) -> Result<u64, DbError> {
        // Most of the time there are none, and nobody shall wait for that.
        let any = sql!("select 1 from uploads where status = 2 and updated_at < ? limit 1");
        if self.read(|run: Run| async move { run.one(any, values![before_ms]).await }).await?.is_none() {
            return Ok(0);
        }
        self.transact(|run: Run| async move {
            let run = &run;
            let text = sql!(
                "select id from uploads where status = 2 and updated_at < ? order by updated_at limit ? \
                 for update skip locked"
            );
            let rows = run.all(text, values![before_ms, i64::from(limit)]).await?;
            let ids = rows.iter().map(|row| row.text(0)).collect::<Result<Vec<_>, _>>()?;
            let mut forgotten = 0;
            for ids in ids.chunks(LIST_MAX) {
                let ids = padded(ids.to_vec());
                let text = format!("delete from uploads where id in {}", marks(ids.len()));
                forgotten += run.execute(text, ids.into_iter().map(Into::into).collect()).await?;
            }
            Ok(forgotten)
        })
        .await
    }

    /// Counts the uploads of which something is kept and that can be continued; a client with `most` of them is full.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn open_uploads(&self, most: u64) -> Result<OpenUploads, DbError> {
        self.read(|run: Run| async move {
            let run = &run;
            let text =
                sql!("select client, count(*) from uploads where status = 0 and offset_bytes > 0 group by client");
            let mut open = OpenUploads::default();
            for row in run.all(text, Vec::new()).await? {
                let count = row.size(1)?;
                open.count += count;
                if count >= most {
                    open.full.extend(row.text_option(0)?);
                }
            }
            Ok(open)
        })
        .await
    }

    /// Those of the ids that belong to an upload that can be continued.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn known_uploads(&self, ids: &[UploadId]) -> Result<HashSet<UploadId>, DbError> {
        self.read(|run: Run| async move {
            let run = &run;
            let mut known = HashSet::new();
            for ids in ids.chunks(LIST_MAX) {
                let ids = padded(ids.iter().map(ToString::to_string).collect());
                let text = format!("select id from uploads where status = 0 and id in {}", marks(ids.len()));
                for row in run.all(text, ids.into_iter().map(Into::into).collect()).await? {
                    known.insert(row.parse(0)?);
                }
            }
            Ok(known)
        })
        .await
    }
}

/// Makes sure that no blob has this key, and none gets it until the end of the transaction: a commit at the same time waits for the place
/// of the key, and looks for the end of the upload only once it has it.
async fn take_key(run: &Run, id: UploadId, now_ms: i64) -> Result<bool, Fault> {
    let (key, placeholder) = (id.to_string(), format!("ended:{id}"));
    let insert =
        sql!("insert into blobs (digest, size, store_key, created_at) values (?, 0, ?, ?) on conflict do nothing");
    if !run.insert_new(insert, values![placeholder.as_str(), key.as_str(), now_ms]).await? {
        return Ok(false);
    }
    run.execute(sql!("delete from blobs where digest = ?"), values![placeholder.as_str()]).await?;
    Ok(true)
}

async fn find(run: &Run, id: UploadId, lock: &str) -> Result<Option<UploadRow>, Fault> {
    let text = format!("select {COLUMNS} from uploads where id = ?{lock}");
    run.one(text, values![id.to_string()]).await?.as_ref().map(UploadRow::from_row).transpose()
}

/// Sees to it that these uploads are never committed again, whether they have a row or not.
pub(crate) async fn finish(run: &Run, ids: &[UploadId], now_ms: i64) -> Result<(), Fault> {
    for ids in ids.chunks(LIST_MAX) {
        let update = match run.dialect() {
            Dialect::MySql => "on duplicate key update status = 2, state = '', updated_at = values(updated_at)",
            _ => "on conflict (id) do update set status = 2, state = '', updated_at = excluded.updated_at",
        };
        let text = format!(
            "insert into uploads (id, state, offset_bytes, version, status, updated_at) values {} {update}",
            repeat("(?, '', 0, 0, 2, ?)", ", ", ids.len())
        );
        run.execute(text, ids.iter().flat_map(|id| values![id.to_string(), now_ms]).collect()).await?;
    }
    Ok(())
}
