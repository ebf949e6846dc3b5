//! The collector's work, and what waits for it.

use std::collections::{HashMap, HashSet};

use oci::upload::UploadId;
use oci::{Digest, RepositoryName};

use crate::blob::{self, BlobEntry, DeadBlob};
use crate::error::Fault;
use crate::sql::{Row, Run, db_size, marks, padded, repeat, sql, values};
use crate::{BlobId, Db, DbError, ManifestId, RepositoryId};

/// What a step of the collector did, or in a dry run would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Links whose lease was over.
    pub looked_at: u64,
    /// Links that are referenced; they need no lease any more.
    pub cleared: u64,
    /// Links that are gone.
    pub unlinked: u64,
    /// Blobs that are gone. Their entries are removals now.
    pub blobs: u64,
    /// Bytes of those.
    pub bytes: u64,
}

/// What waits for the collector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Links whose lease is over.
    pub links_due: u64,
    /// Links with a lease that is not.
    pub links_leased: u64,
    /// Entries of the store that wait for their removal.
    pub removals: u64,
    /// Bytes of those.
    pub removal_bytes: u64,
}

/// A manifest that nothing holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untagged {
    /// For the next page.
    pub id: ManifestId,
    /// Where it is.
    pub repository: RepositoryId,
    /// Where it is.
    pub repository_name: RepositoryName,
    /// Which it is.
    pub digest: Digest,
}

/// Links that one transaction looks at.
const BATCH_MAX: u32 = 512;
/// Pairs of repository and blob in one statement.
const PAIRS_MAX: usize = 64;

/// A link: repository and blob.
type Pair = (i64, i64);

impl Db {
    /// Looks at up to `batch` links whose lease is over, at most 512, and removes what is not needed. `looked_at` = 0: there are none
    /// at the moment that nobody else works with. A dry run changes nothing, and looks at all of them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn collect(
        &self,
        now_ms: i64,
        batch: u32,
        dry_run: bool,
        entry: &BlobEntry<'_>,
    ) -> Result<Collected, DbError> {
        if dry_run {
            return self.read(|run: Run| async move { foresee(&run, now_ms).await }).await;
        }
        let due = sql!("select blob_id from links where leased_until <= ? order by leased_until limit ?");
        let batch = i64::from(batch.clamp(1, BATCH_MAX));
        // Mostly there is nothing to do, and then nobody shall wait.
        let blobs = self.read(|run: Run| async move { ints(&run.all(due, values![now_ms, batch]).await?) }).await?;
        if blobs.is_empty() {
            return Ok(Collected::default());
        }
        let blobs = &blobs;
        self.transact(|run: Run| async move { step(&run, blobs, now_ms, batch, entry).await }).await
    }

    /// What waits for the collector.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn backlog(&self, now_ms: i64) -> Result<Backlog, DbError> {
        self.read(|run: Run| async move {
            let run = &run;
            let due = sql!("select count(*) from links where leased_until <= ?");
            let leased = sql!("select count(*) from links where leased_until > ?");
            let removals = sql!("select count(*), cast(coalesce(sum(size), 0) as bigint) from removals");
            let (mut backlog, now) = (Backlog::default(), || values![now_ms]);
            if let Some(row) = run.one(due, now()).await? {
                backlog.links_due = row.size(0)?;
            }
            if let Some(row) = run.one(leased, now()).await? {
                backlog.links_leased = row.size(0)?;
            }
            if let Some(row) = run.one(removals, Vec::new()).await? {
                (backlog.removals, backlog.removal_bytes) = (row.size(0)?, row.size(1)?);
            }
            Ok(backlog)
        })
        .await
    }

    /// Manifests that have had no tag since `before_ms`, that no index names, and whose subject, if they have one, is gone.
    /// For [`Db::delete_untagged`], which looks again. `after` = the last of the page before, or zero.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn untagged_manifests(
        &self,
        before_ms: i64,
        after: ManifestId,
        limit: u64,
    ) -> Result<Vec<Untagged>, DbError> {
        let text = sql!(
            "select m.id, m.repository_id, r.name, m.digest from manifests m join repositories r on r.id = m.repository_id \
             where m.id > ? and m.idle_since < ? \
             and (select 1 from tags t where t.manifest_id = m.id limit 1) is null \
             and (select 1 from manifest_children c where c.repository_id = m.repository_id and c.digest = m.digest \
             limit 1) is null \
             and (m.subject is null or (select 1 from manifests s where s.repository_id = m.repository_id \
             and s.digest = m.subject limit 1) is null) \
             order by m.id limit ?"
        );
        self.read(|run: Run| async move {
            let run = &run;
            let rows = run.all(text, values![after.0, before_ms, db_size(limit)]).await?;
            rows.iter()
                .map(|row| {
                    Ok(Untagged {
                        id: ManifestId(row.int(0)?),
                        repository: RepositoryId(row.int(1)?),
                        repository_name: row.parse(2)?,
                        digest: row.parse(3)?,
                    })
                })
                .collect()
        })
        .await
    }
}

/// Looks at the links of blobs some of which are due.
async fn step(run: &Run, due: &[i64], now_ms: i64, batch: i64, entry: &BlobEntry<'_>) -> Result<Collected, Fault> {
    let mut due = due.to_vec();
    due.sort_unstable();
    due.dedup();
    // Blobs before links. What somebody else works with is left for the next time.
    let ids = padded(due);
    let text = format!(
        "select id, digest, store_key, size from blobs where id in {} order by id for update skip locked",
        marks(ids.len())
    );
    let mut blobs = HashMap::new();
    for row in run.all(text, ids.into_iter().map(Into::into).collect()).await? {
        let (digest, key, size): (Digest, UploadId, u64) = (row.parse(1)?, row.parse(2)?, row.size(3)?);
        blobs.insert(row.int(0)?, (digest, key, size));
    }
    if blobs.is_empty() {
        return Ok(Collected::default());
    }
    let ids = padded(blobs.keys().copied().collect::<Vec<_>>());
    let text = format!(
        "select repository_id, blob_id from links where blob_id in {} and leased_until <= ? \
         order by blob_id, repository_id limit ? for update skip locked",
        marks(ids.len())
    );
    let values = ids.iter().map(|id| (*id).into()).chain(values![now_ms, batch]).collect();
    let looked_at = pairs(&run.all(text, values).await?)?;
    // A statement of its own: only now it is certain that it sees the references of everybody who had locked these links.
    let text = format!(
        "select l.repository_id, l.blob_id from links l join blobs b on b.id = l.blob_id \
         where l.blob_id in {} and l.leased_until <= ? and {REFERENCED}",
        marks(ids.len())
    );
    let values = ids.iter().map(|id| (*id).into()).chain(values![now_ms]).collect();
    let referenced: HashSet<_> = pairs(&run.all(text, values).await?)?.into_iter().collect();
    let (cleared, unlinked): (Vec<_>, Vec<_>) = looked_at.iter().partition(|pair| referenced.contains(pair));
    for_pairs(run, "update links set leased_until = null where", &cleared).await?;
    for_pairs(run, "delete from links where", &unlinked).await?;
    let dead = dead_blobs(run, &unlinked, &mut blobs, entry).await?;
    blob::bury(run, &dead, now_ms).await?;
    Ok(Collected {
        looked_at: looked_at.len() as u64,
        cleared: cleared.len() as u64,
        unlinked: unlinked.len() as u64,
        blobs: dead.len() as u64,
        bytes: dead.iter().map(|dead| dead.size).sum(),
    })
}

/// Whether a manifest of the repository of `l` needs the blob `b`.
const REFERENCED: &str =
    "(select 1 from manifest_blobs m where m.repository_id = l.repository_id and m.digest = b.digest limit 1) = 1";

/// Those of the blobs that lost a link and have none left. They are locked, so nobody adds one.
async fn dead_blobs(
    run: &Run,
    unlinked: &[Pair],
    blobs: &mut HashMap<i64, (Digest, UploadId, u64)>,
    entry: &BlobEntry<'_>,
) -> Result<Vec<DeadBlob>, Fault> {
    let mut ids: Vec<i64> = unlinked.iter().map(|(_, blob)| *blob).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ids = padded(ids);
    let text = format!(
        "select b.id from blobs b where b.id in {} and (select 1 from links l where l.blob_id = b.id limit 1) is null",
        marks(ids.len())
    );
    let dead = ints(&run.all(text, ids.into_iter().map(Into::into).collect()).await?)?;
    let dead = dead.into_iter().filter_map(|id| blobs.remove(&id).map(|blob| (id, blob)));
    Ok(dead
        .map(|(id, (digest, key, size))| DeadBlob { id: BlobId(id), key, size, entry: entry(key, &digest, size) })
        .collect())
}

/// What the collector would do if nothing happened meanwhile.
async fn foresee(run: &Run, now_ms: i64) -> Result<Collected, Fault> {
    let links = format!(
        "select count(*), count(case when {REFERENCED} then 1 end) from links l join blobs b on b.id = l.blob_id \
         where l.leased_until <= ?"
    );
    let blobs = format!(
        "select count(*), cast(coalesce(sum(b.size), 0) as bigint) from blobs b \
         join (select distinct blob_id from links where leased_until <= ?) d on d.blob_id = b.id \
         where not exists (select 1 from links l where l.blob_id = b.id \
         and (l.leased_until is null or l.leased_until > ? or {REFERENCED}))"
    );
    let mut collected = Collected::default();
    if let Some(row) = run.one(links, values![now_ms]).await? {
        (collected.looked_at, collected.cleared) = (row.size(0)?, row.size(1)?);
        collected.unlinked = collected.looked_at.saturating_sub(collected.cleared);
    }
    if let Some(row) = run.one(blobs, values![now_ms, now_ms]).await? {
        (collected.blobs, collected.bytes) = (row.size(0)?, row.size(1)?);
    }
    Ok(collected)
}

/// Executes a statement for links.
async fn for_pairs(run: &Run, statement: &str, links: &[Pair]) -> Result<(), Fault> {
    for links in links.chunks(PAIRS_MAX) {
        let links = padded(links.to_vec());
        let text = format!("{statement} {}", repeat("(repository_id = ? and blob_id = ?)", " or ", links.len()));
        run.execute(text, links.into_iter().flat_map(|(repository, blob)| values![repository, blob]).collect()).await?;
    }
    Ok(())
}

fn ints(rows: &[Row]) -> Result<Vec<i64>, Fault> {
    rows.iter().map(|row| row.int(0)).collect()
}

fn pairs(rows: &[Row]) -> Result<Vec<Pair>, Fault> {
    rows.iter().map(|row| Ok((row.int(0)?, row.int(1)?))).collect()
}
