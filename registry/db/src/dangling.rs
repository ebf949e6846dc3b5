//! Rows that hang in the air: what foreign keys would have forbidden, and what only a defect or a hand can leave behind.

use oci::{Digest, TagName};

use crate::blob::{self, BlobEntry, DeadBlob};
use crate::error::Fault;
use crate::sql::{Row, Run, db_size, sql, values};
use crate::{BlobId, Db, DbError, ManifestId, RepositoryId};

/// A row that hangs in the air.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dangling {
    /// A link to a blob that is not there.
    LinkWithoutBlob {
        /// Where the link is.
        repository: RepositoryId,
        /// What it says.
        blob: BlobId,
    },
    /// A blob that is not readable anywhere, and that no manifest needs.
    BlobWithoutLink {
        /// Which.
        blob: BlobId,
        /// Its digest.
        digest: Digest,
    },
    /// A manifest needs a blob that is not readable in its repository.
    ReferenceWithoutLink {
        /// Where the manifest is.
        repository: RepositoryId,
        /// The manifest.
        manifest: ManifestId,
        /// The blob.
        digest: Digest,
    },
    /// A reference from a manifest that is not there.
    ReferenceWithoutManifest {
        /// The manifest that is not there.
        manifest: ManifestId,
    },
    /// A link that is said to be referenced, and is not.
    LinkWithoutReference {
        /// Where the link is.
        repository: RepositoryId,
        /// Its blob.
        blob: BlobId,
    },
    /// A tag that points to nothing.
    TagWithoutManifest {
        /// Where the tag is.
        repository: RepositoryId,
        /// Which.
        tag: TagName,
    },
}

/// What `repair` needs to know.
struct Repair<'r> {
    now_ms: i64,
    leased_until_ms: i64,
    entry: &'r BlobEntry<'r>,
}

impl Db {
    /// Rows that hang in the air, up to `limit` of each sort. Reads all tables; while others write, what it finds may be
    /// something that is just being done.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn dangling_rows(&self, limit: u64) -> Result<Vec<Dangling>, DbError> {
        self.read(|run: Run| async move {
            let run = &run;
            let mut found = Vec::new();
            links_without_blob(run, limit, &mut found).await?;
            blobs_without_link(run, limit, &mut found).await?;
            references_without_link(run, limit, &mut found).await?;
            references_without_manifest(run, limit, &mut found).await?;
            links_without_reference(run, limit, &mut found).await?;
            tags_without_manifest(run, limit, &mut found).await?;
            Ok(found)
        })
        .await
    }

    /// Deletes rows that hang in the air, and makes the links that manifests need if the blob is there; leases of links end at
    /// `leased_until_ms`. Looks again before it does. Returns how many it repaired.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn repair(
        &self,
        dangling: &[Dangling],
        now_ms: i64,
        leased_until_ms: i64,
        entry: &BlobEntry<'_>,
    ) -> Result<u64, DbError> {
        let repair = Repair { now_ms, leased_until_ms, entry };
        let mut repaired = 0;
        for row in dangling {
            let repair = &repair;
            repaired += u64::from(self.transact(|run: Run| async move { repair.one(&run, row).await }).await?);
        }
        Ok(repaired)
    }
}

async fn links_without_blob(run: &Run, limit: u64, found: &mut Vec<Dangling>) -> Result<(), Fault> {
    let text = sql!(
        "select l.repository_id, l.blob_id from links l left join blobs b on b.id = l.blob_id \
         where b.id is null limit ?"
    );
    let dangling =
        |row: &Row| Ok(Dangling::LinkWithoutBlob { repository: RepositoryId(row.int(0)?), blob: BlobId(row.int(1)?) });
    add(&run.all(text, values![db_size(limit)]).await?, dangling, found)
}

async fn blobs_without_link(run: &Run, limit: u64, found: &mut Vec<Dangling>) -> Result<(), Fault> {
    let text = sql!(
        "select b.id, b.digest from blobs b \
         where (select 1 from links l where l.blob_id = b.id limit 1) is null \
         and (select 1 from manifest_blobs m join manifests n on n.id = m.manifest_id \
         where m.digest = b.digest and m.required = 1 limit 1) is null limit ?"
    );
    let dangling = |row: &Row| Ok(Dangling::BlobWithoutLink { blob: BlobId(row.int(0)?), digest: row.parse(1)? });
    add(&run.all(text, values![db_size(limit)]).await?, dangling, found)
}

async fn references_without_link(run: &Run, limit: u64, found: &mut Vec<Dangling>) -> Result<(), Fault> {
    let text = sql!(
        "select m.repository_id, m.manifest_id, m.digest from manifest_blobs m \
         join manifests n on n.id = m.manifest_id left join blobs b on b.digest = m.digest \
         left join links l on l.blob_id = b.id and l.repository_id = m.repository_id \
         where m.required = 1 and l.blob_id is null limit ?"
    );
    let dangling = |row: &Row| {
        Ok(Dangling::ReferenceWithoutLink {
            repository: RepositoryId(row.int(0)?),
            manifest: ManifestId(row.int(1)?),
            digest: row.parse(2)?,
        })
    };
    add(&run.all(text, values![db_size(limit)]).await?, dangling, found)
}

async fn references_without_manifest(run: &Run, limit: u64, found: &mut Vec<Dangling>) -> Result<(), Fault> {
    let text = sql!(
        "select manifest_id from manifest_blobs where manifest_id not in (select id from manifests) \
         union select manifest_id from manifest_children where manifest_id not in (select id from manifests) limit ?"
    );
    let dangling = |row: &Row| Ok(Dangling::ReferenceWithoutManifest { manifest: ManifestId(row.int(0)?) });
    add(&run.all(text, values![db_size(limit)]).await?, dangling, found)
}

async fn links_without_reference(run: &Run, limit: u64, found: &mut Vec<Dangling>) -> Result<(), Fault> {
    let text = sql!(
        "select l.repository_id, l.blob_id from links l join blobs b on b.id = l.blob_id \
         where l.leased_until is null and (select 1 from manifest_blobs m \
         where m.repository_id = l.repository_id and m.digest = b.digest limit 1) is null limit ?"
    );
    let dangling = |row: &Row| {
        Ok(Dangling::LinkWithoutReference { repository: RepositoryId(row.int(0)?), blob: BlobId(row.int(1)?) })
    };
    add(&run.all(text, values![db_size(limit)]).await?, dangling, found)
}

async fn tags_without_manifest(run: &Run, limit: u64, found: &mut Vec<Dangling>) -> Result<(), Fault> {
    let text = sql!(
        "select t.repository_id, t.name from tags t left join manifests m on m.id = t.manifest_id \
         where m.id is null limit ?"
    );
    let dangling =
        |row: &Row| Ok(Dangling::TagWithoutManifest { repository: RepositoryId(row.int(0)?), tag: row.parse(1)? });
    add(&run.all(text, values![db_size(limit)]).await?, dangling, found)
}

fn add(
    rows: &[Row],
    dangling: impl Fn(&Row) -> Result<Dangling, Fault>,
    found: &mut Vec<Dangling>,
) -> Result<(), Fault> {
    for row in rows {
        found.push(dangling(row)?);
    }
    Ok(())
}

impl Repair<'_> {
    async fn one(&self, run: &Run, row: &Dangling) -> Result<bool, Fault> {
        match row {
            Dangling::LinkWithoutBlob { repository, blob } => {
                if run.one(sql!("select 1 from blobs where id = ? for share"), values![blob.0]).await?.is_some() {
                    return Ok(false);
                }
                let delete = sql!("delete from links where repository_id = ? and blob_id = ?");
                Ok(run.execute(delete, values![repository.0, blob.0]).await? > 0)
            }
            Dangling::BlobWithoutLink { blob, .. } => self.bury(run, *blob).await,
            Dangling::ReferenceWithoutLink { repository, manifest, digest } => {
                self.link(run, *repository, *manifest, digest).await
            }
            Dangling::ReferenceWithoutManifest { manifest } => {
                if run.one(sql!("select 1 from manifests where id = ?"), values![manifest.0]).await?.is_some() {
                    return Ok(false);
                }
                let blobs = sql!("delete from manifest_blobs where manifest_id = ?");
                let children = sql!("delete from manifest_children where manifest_id = ?");
                Ok(run.execute(blobs, values![manifest.0]).await? + run.execute(children, values![manifest.0]).await?
                    > 0)
            }
            // The collector looks again and decides.
            Dangling::LinkWithoutReference { repository, blob } => {
                let lease = sql!(
                    "update links set leased_until = ? where repository_id = ? and blob_id = ? and leased_until is null"
                );
                Ok(run.execute(lease, values![self.leased_until_ms, repository.0, blob.0]).await? > 0)
            }
            Dangling::TagWithoutManifest { repository, tag } => {
                let delete = sql!(
                    "delete from tags where repository_id = ? and name = ? \
                     and manifest_id not in (select id from manifests)"
                );
                Ok(run.execute(delete, values![repository.0, tag.as_str()]).await? > 0)
            }
        }
    }

    async fn bury(&self, run: &Run, blob: BlobId) -> Result<bool, Fault> {
        let lock = sql!("select digest, store_key, size from blobs where id = ? for update");
        let Some(row) = run.one(lock, values![blob.0]).await? else { return Ok(false) };
        if run.one(sql!("select 1 from links where blob_id = ? limit 1"), values![blob.0]).await?.is_some() {
            return Ok(false);
        }
        let (digest, key, size): (Digest, _, _) = (row.parse(0)?, row.parse(1)?, row.size(2)?);
        // A link that a manifest needs is made again; its bytes are all there is of it.
        let needed = sql!(
            "select 1 from manifest_blobs m join manifests n on n.id = m.manifest_id \
             where m.digest = ? and m.required = 1 limit 1"
        );
        if run.one(needed, values![digest.to_string()]).await?.is_some() {
            return Ok(false);
        }
        let dead = DeadBlob { id: blob, key, size, entry: (self.entry)(key, &digest, size) };
        blob::bury(run, &[dead], self.now_ms).await?;
        Ok(true)
    }

    /// The repository had the right to read the blob when the manifest was pushed.
    async fn link(
        &self,
        run: &Run,
        repository: RepositoryId,
        manifest: ManifestId,
        digest: &Digest,
    ) -> Result<bool, Fault> {
        let digest = digest.to_string();
        let lock = sql!("select id, size from blobs where digest = ? for share");
        let Some(row) = run.one(lock, values![digest.as_str()]).await? else { return Ok(false) };
        let needed = sql!(
            "select 1 from manifest_blobs n join manifests m on m.id = n.manifest_id \
             where n.manifest_id = ? and n.digest = ? and n.required = 1"
        );
        if run.one(needed, values![manifest.0, digest.as_str()]).await?.is_none() {
            return Ok(false);
        }
        let insert =
            sql!("insert into links (repository_id, blob_id, leased_until) values (?, ?, ?) on conflict do nothing");
        run.insert_new(insert, values![repository.0, row.int(0)?, self.leased_until_ms]).await
    }
}
