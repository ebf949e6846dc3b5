//! Rows that must stay as they are until the end of a transaction, always locked in this order: blobs, links, manifests, tags; of one
//! table by their numbers.

use crate::error::Fault;
use crate::sql::{Dialect, LIST_MAX, Run, marks, padded, values};
use crate::{BlobId, RepositoryId};

/// How a row is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    /// Others may lock it like that, too.
    Shared,
    /// Nobody else may.
    Alone,
}

impl Lock {
    const fn clause(self) -> &'static str {
        match self {
            Self::Shared => " for share",
            Self::Alone => " for update",
        }
    }
}

/// Locks the links of a repository to these blobs, as far as there are any; their digests and blobs.
pub(crate) async fn links(
    run: &Run,
    repository: RepositoryId,
    digests: &[&str],
    lock: Lock,
) -> Result<Vec<(String, BlobId)>, Fault> {
    let mut locked = Vec::with_capacity(digests.len());
    for digests in digests.chunks(LIST_MAX) {
        let digests = padded(digests.to_vec());
        if run.dialect() == Dialect::MySql {
            mysql_links(run, repository, digests, lock, &mut locked).await?;
            continue;
        }
        let of = if run.dialect() == Dialect::Postgres { " of l" } else { "" };
        let text = format!(
            "select b.digest, b.id from blobs b join links l on l.blob_id = b.id \
             where b.digest in {} and l.repository_id = ? order by b.id{}{of}",
            marks(digests.len()),
            lock.clause()
        );
        let values = digests.into_iter().map(Into::into).chain([repository.0.into()]).collect();
        for row in run.all(text, values).await? {
            locked.push((row.text(0)?, BlobId(row.int(1)?)));
        }
    }
    Ok(locked)
}

/// MariaDB cannot lock one table of a join only. A link that is locked keeps its blob.
///
/// InnoDB takes a shared lock on an index alone where the index has all that is selected, and whoever finds the row by another
/// index does not see it. So the index is the primary one here, and elsewhere a column is selected that the index lacks.
async fn mysql_links(
    run: &Run,
    repository: RepositoryId,
    digests: Vec<&str>,
    lock: Lock,
    locked: &mut Vec<(String, BlobId)>,
) -> Result<(), Fault> {
    let text = format!("select digest, id from blobs where digest in {}", marks(digests.len()));
    let mut named = Vec::with_capacity(digests.len());
    for row in run.all(text, digests.into_iter().map(Into::into).collect()).await? {
        named.push((row.text(0)?, BlobId(row.int(1)?)));
    }
    let ids = padded(named.iter().map(|(_, id)| id.0).collect());
    if ids.is_empty() {
        return Ok(());
    }
    let text = format!(
        "select blob_id from links force index (primary) where repository_id = ? and blob_id in {} order by blob_id{}",
        marks(ids.len()),
        lock.clause()
    );
    let values = values![repository.0].into_iter().chain(ids.into_iter().map(Into::into)).collect();
    let linked = run.all(text, values).await?.iter().map(|row| row.int(0)).collect::<Result<Vec<_>, _>>()?;
    locked.extend(named.into_iter().filter(|(_, id)| linked.contains(&id.0)));
    Ok(())
}
