//! Blobs, and the links that make them readable.

use std::collections::HashSet;

use oci::upload::UploadId;
use oci::{Digest, RepositoryName};

use crate::error::Fault;
use crate::repository::Place;
use crate::sql::{Dialect, LIST_MAX, Row, Run, db_size, marks, padded, sql, values};
use crate::{BlobId, Db, DbError, RepositoryId, removal, upload};

/// Makes the text of a blob's entry in the store, for `removals`.
pub type BlobEntry<'f> = dyn Fn(UploadId, &Digest, u64) -> String + Send + Sync + 'f;

/// The right to read a blob in a repository, and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The blob.
    pub blob: BlobId,
    /// The key of its bytes in the store.
    pub key: UploadId,
    /// Bytes.
    pub size: u64,
    /// When the collector will look whether it is needed, in ms since 1970; `None`: it was needed when the collector looked.
    pub leased_until: Option<i64>,
}

/// What became of a lease that was to be renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It lasts until the time asked for, or longer.
    Renewed,
    /// The link needs no lease: a manifest needs the blob.
    Referenced,
    /// There is no such link any more.
    Gone,
}

/// A blob whose bytes are durable in the store and whose digest was verified.
#[derive(Clone, Copy, Debug)]
pub struct NewBlob<'b> {
    /// Where it shall be readable. Made if it is new.
    pub repository: &'b RepositoryName,
    /// The digest of the bytes.
    pub digest: &'b Digest,
    /// How many there are.
    pub size: u64,
    /// Their key: the id of the upload.
    pub key: UploadId,
    /// The text of their entry in the store, should they turn out to be superfluous.
    pub entry: &'b str,
    /// Now, in ms since 1970.
    pub now_ms: i64,
    /// End of the lease of its link, in ms since 1970.
    pub leased_until_ms: i64,
}

/// How the commit of an upload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobCommit {
    /// Our bytes are the blob now, or were already.
    Stored(Linked),
    /// The digest was there before, under the key in the link. Our bytes are due to be removed.
    Existed(Linked),
    /// Nothing was committed: the upload was cancelled, or these bytes were the end of an upload before and are due to be removed,
    /// or they are a blob of another digest.
    Over,
}

/// A link that an upload or a mount made or found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// The repository it is in.
    pub repository: RepositoryId,
    /// The link.
    pub link: Link,
}

/// What became of a link that was to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlink {
    /// It is gone.
    Unlinked,
    /// There is none.
    NotFound,
    /// A manifest of the repository needs the blob.
    Referenced,
}

impl Db {
    /// The link to a blob in a repository.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn link(&self, repository: RepositoryId, digest: &Digest) -> Result<Option<Link>, DbError> {
        let text = sql!(
            "select b.id, b.store_key, b.size, l.leased_until from blobs b join links l on l.blob_id = b.id \
             where b.digest = ? and l.repository_id = ?"
        );
        let digest = digest.to_string();
        let digest = &digest;
        self.read(|run: Run| async move {
            let run = &run;
            let row = run.one(text, values![digest.as_str(), repository.0]).await?;
            row.map(|row| {
                Ok(Link {
                    blob: BlobId(row.int(0)?),
                    key: row.parse(1)?,
                    size: row.size(2)?,
                    leased_until: row.int_option(3)?,
                })
            })
            .transpose()
        })
        .await
    }

    /// Those of the digests that can be read in a repository.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn readable(&self, repository: RepositoryId, digests: &[Digest]) -> Result<HashSet<Digest>, DbError> {
        self.read(|run: Run| async move {
            let run = &run;
            let mut found = HashSet::with_capacity(digests.len());
            for digests in digests.chunks(LIST_MAX) {
                let digests = padded(digests.iter().map(ToString::to_string).collect());
                let text = format!(
                    "select b.digest from blobs b join links l on l.blob_id = b.id \
                     where l.repository_id = ? and b.digest in {}",
                    marks(digests.len())
                );
                let values = values![repository.0].into_iter().chain(digests.into_iter().map(Into::into)).collect();
                for row in run.all(text, values).await? {
                    found.insert(row.parse(0)?);
                }
            }
            Ok(found)
        })
        .await
    }

    /// Keeps a link for somebody who was told that it is there. A lease is never shortened.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn renew_lease(&self, repository: RepositoryId, blob: BlobId, until_ms: i64) -> Result<Renewal, DbError> {
        self.transact(|run: Run| async move {
            let run = &run;
            let text =
                sql!("update links set leased_until = ? where repository_id = ? and blob_id = ? and leased_until < ?");
            if run.execute(text, values![until_ms, repository.0, blob.0, until_ms]).await? > 0 {
                return Ok(Renewal::Renewed);
            }
            // It was not changed, but it is what the answer depends on: the collector must not be about to remove it.
            let text = sql!("select leased_until from links where repository_id = ? and blob_id = ? for share");
            Ok(match run.one(text, values![repository.0, blob.0]).await? {
                None => Renewal::Gone,
                Some(row) if row.int_option(0)?.is_some() => Renewal::Renewed,
                Some(_) => Renewal::Referenced,
            })
        })
        .await
    }

    /// Ends an upload: blob, link and the end of the upload's row, in one transaction. Doing it again is harmless.
    ///
    /// # Errors
    /// When the database fails. When that happens while it commits, it is not known whether it did.
    pub async fn commit_blob(&self, new: &NewBlob<'_>) -> Result<BlobCommit, DbError> {
        // Remembered from here on, if it is there.
        self.repository_id(new.repository).await?;
        let commit = self
            .transact(|run: Run| async move {
                let place = Place::enter(&run, self.known(new.repository), new.repository, new.now_ms).await?;
                let commit = commit(&run, place.id, new).await?;
                if matches!(commit, BlobCommit::Over) {
                    place.leave(&run).await?;
                }
                Ok(commit)
            })
            .await?;
        if let BlobCommit::Stored(linked) | BlobCommit::Existed(linked) = &commit {
            self.remember(new.repository, linked.repository);
        }
        Ok(commit)
    }

    /// Makes a blob that is there readable in `to`, or renews the lease of the link there. `from` must have a link to it;
    /// `None`: wherever it lies.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn mount(
        &self,
        digest: &Digest,
        from: Option<&RepositoryName>,
        to: &RepositoryName,
        now_ms: i64,
        leased_until_ms: i64,
    ) -> Result<Option<Linked>, DbError> {
        let from = match from {
            Some(name) => match self.repository_id(name).await? {
                Some(id) => Some(id),
                None => return Ok(None),
            },
            None => None,
        };
        self.repository_id(to).await?;
        let digest = digest.to_string();
        let digest = &digest;
        let linked = self
            .transact(|run: Run| async move {
                let run = &run;
                let place = Place::enter(run, self.known(to), to, now_ms).await?;
                let Some(blob) = find_to_mount(run, digest, from).await? else {
                    place.leave(run).await?;
                    return Ok(None);
                };
                let leased_until = link(run, place.id, blob.id, leased_until_ms).await?;
                Ok(Some(blob.linked(place.id, leased_until)))
            })
            .await?;
        if let Some(linked) = &linked {
            self.remember(to, linked.repository);
        }
        Ok(linked)
    }

    /// Takes a blob out of a repository. With its last link the blob itself becomes a removal.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unlink(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        now_ms: i64,
        entry: &BlobEntry<'_>,
    ) -> Result<Unlink, DbError> {
        let text = digest.to_string();
        let text = &text;
        self.transact(|run: Run| async move {
            let run = &run;
            let lock = sql!("select id, store_key, size from blobs where digest = ? for update");
            let Some(row) = run.one(lock, values![text.as_str()]).await? else { return Ok(Unlink::NotFound) };
            let blob = Blob { id: BlobId(row.int(0)?), key: row.parse(1)?, size: row.size(2)? };
            let lock = sql!("select 1 from links where repository_id = ? and blob_id = ? for update");
            if run.one(lock, values![repository.0, blob.id.0]).await?.is_none() {
                return Ok(Unlink::NotFound);
            }
            let needed = sql!("select 1 from manifest_blobs where repository_id = ? and digest = ? limit 1");
            if run.one(needed, values![repository.0, text.as_str()]).await?.is_some() {
                return Ok(Unlink::Referenced);
            }
            let delete = sql!("delete from links where repository_id = ? and blob_id = ?");
            run.execute(delete, values![repository.0, blob.id.0]).await?;
            let other = sql!("select 1 from links where blob_id = ? limit 1");
            if run.one(other, values![blob.id.0]).await?.is_none() {
                let dead =
                    DeadBlob { id: blob.id, key: blob.key, size: blob.size, entry: entry(blob.key, digest, blob.size) };
                bury(run, &[dead], now_ms).await?;
            }
            Ok(Unlink::Unlinked)
        })
        .await
    }
}

/// The row of a blob.
struct Blob {
    id: BlobId,
    key: UploadId,
    size: u64,
}

impl Blob {
    const fn linked(self, repository: RepositoryId, leased_until: Option<i64>) -> Linked {
        Linked { repository, link: Link { blob: self.id, key: self.key, size: self.size, leased_until } }
    }
}

async fn commit(run: &Run, repository: RepositoryId, new: &NewBlob<'_>) -> Result<BlobCommit, Fault> {
    let (digest, key) = (new.digest.to_string(), new.key.to_string());
    if run.dialect() == Dialect::Sqlite
        && let Some(blob) = commit_new(run, repository, new, &digest, &key).await?
    {
        return Ok(BlobCommit::Stored(blob.linked(repository, Some(new.leased_until_ms))));
    }
    let insert =
        sql!("insert into blobs (digest, size, store_key, created_at) values (?, ?, ?, ?) on conflict do nothing");
    let values = values![digest.as_str(), db_size(new.size), key.as_str(), new.now_ms];
    let (blob, inserted) = match run.insert(insert, values).await? {
        Some(id) => (Blob { id: BlobId(id), key: new.key, size: new.size }, true),
        None => match lock_shared(run, &digest).await? {
            Some(blob) => (blob, false),
            None if is_key_known(run, &key).await? => return Ok(BlobCommit::Over),
            None => return Err(Fault::Again("a blob was removed while it was pushed")),
        },
    };
    let ours = blob.key == new.key;
    // Only now: whoever gave these bytes up did so while holding the blob.
    let ended = sql!("select status from uploads where id = ?");
    if let Some(row) = run.one(ended, values![key.as_str()]).await? {
        if row.int(0)? != upload::OPEN {
            if inserted {
                run.execute(sql!("delete from blobs where id = ?"), values![blob.id.0]).await?;
            }
            return Ok(BlobCommit::Over);
        }
        if ours {
            run.execute(sql!("delete from uploads where id = ?"), values![key.as_str()]).await?;
        }
    }
    if !ours {
        removal::add(run, &[(new.entry.to_owned(), new.size)], new.now_ms).await?;
        upload::finish(run, &[new.key], new.now_ms).await?;
    }
    let leased_until = link(run, repository, blob.id, new.leased_until_ms).await?;
    let linked = blob.linked(repository, leased_until);
    Ok(if ours { BlobCommit::Stored(linked) } else { BlobCommit::Existed(linked) })
}

/// Commits a blob that is new, as nearly all are, in one message to SQLite's thread; each costs more than what it does there. `None`: it is
/// not new, or its upload has ended, and nothing was done.
async fn commit_new(
    run: &Run,
    repository: RepositoryId,
    new: &NewBlob<'_>,
    digest: &str,
    key: &str,
) -> Result<Option<Blob>, Fault> {
    // The only rows are those of the first: the number of a blob that is new.
    let text = sql!(
        "insert into blobs (digest, size, store_key, created_at) select ?, ?, ?, ? \
         where not exists (select 1 from uploads where id = ? and status <> 0) on conflict do nothing returning id; \
         insert into links (repository_id, blob_id, leased_until) select ?, last_insert_rowid(), ? where changes() = 1; \
         delete from uploads where id = ? and changes() = 1"
    );
    let values = values![digest, db_size(new.size), key, new.now_ms, key, repository.0, new.leased_until_ms, key];
    let blob = |row: &Row| Ok(Blob { id: BlobId(row.int(0)?), key: new.key, size: new.size });
    run.all(text, values).await?.first().map(blob).transpose()
}

/// As [`lock_shared`], if it can be mounted from there.
async fn find_to_mount(run: &Run, digest: &str, from: Option<RepositoryId>) -> Result<Option<Blob>, Fault> {
    let Some(blob) = lock_shared(run, digest).await? else { return Ok(None) };
    if let Some(from) = from {
        let text = sql!("select 1 from links where repository_id = ? and blob_id = ?");
        if run.one(text, values![from.0, blob.id.0]).await?.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(blob))
}

/// Keeps a blob from being removed until the end of the transaction.
async fn lock_shared(run: &Run, digest: &str) -> Result<Option<Blob>, Fault> {
    let row =
        run.one(sql!("select id, store_key, size from blobs where digest = ? for share"), values![digest]).await?;
    row.map(|row| Ok(Blob { id: BlobId(row.int(0)?), key: row.parse(1)?, size: row.size(2)? })).transpose()
}

async fn is_key_known(run: &Run, key: &str) -> Result<bool, Fault> {
    Ok(run.one(sql!("select 1 from blobs where store_key = ?"), values![key]).await?.is_some())
}

/// Makes a link, or renews its lease. The blob is locked. Returns until when it is leased.
async fn link(run: &Run, repository: RepositoryId, blob: BlobId, leased_until_ms: i64) -> Result<Option<i64>, Fault> {
    let insert =
        sql!("insert into links (repository_id, blob_id, leased_until) values (?, ?, ?) on conflict do nothing");
    if run.insert_new(insert, values![repository.0, blob.0, leased_until_ms]).await? {
        return Ok(Some(leased_until_ms));
    }
    // Those that are referenced have none and need none.
    let renew = sql!("update links set leased_until = ? where repository_id = ? and blob_id = ? and leased_until < ?");
    if run.execute(renew, values![leased_until_ms, repository.0, blob.0, leased_until_ms]).await? > 0 {
        return Ok(Some(leased_until_ms));
    }
    let found = sql!("select leased_until from links where repository_id = ? and blob_id = ?");
    match run.one(found, values![repository.0, blob.0]).await? {
        Some(row) => row.int_option(0),
        None => Err(Fault::Corrupt("a link vanished although its blob is locked".to_owned())),
    }
}

/// A blob without links, which is locked.
pub(crate) struct DeadBlob {
    pub(crate) id: BlobId,
    pub(crate) key: UploadId,
    pub(crate) size: u64,
    pub(crate) entry: String,
}

/// Deletes blobs, whose bytes become removals. Uploads they came from can never be committed again: a retry that comes late would find
/// bytes that are about to go.
pub(crate) async fn bury(run: &Run, dead: &[DeadBlob], now_ms: i64) -> Result<(), Fault> {
    for dead in dead.chunks(LIST_MAX) {
        let ids = padded(dead.iter().map(|dead| dead.id.0).collect());
        let text = format!("delete from blobs where id in {}", marks(ids.len()));
        run.execute(text, ids.into_iter().map(Into::into).collect()).await?;
        let entries: Vec<_> = dead.iter().map(|dead| (dead.entry.clone(), dead.size)).collect();
        removal::add(run, &entries, now_ms).await?;
        let keys: Vec<_> = dead.iter().map(|dead| dead.key).collect();
        upload::finish(run, &keys, now_ms).await?;
    }
    Ok(())
}
