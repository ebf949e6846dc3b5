//! Entries of the store that nothing needs any more.

use crate::error::Fault;
use crate::sql::{LIST_MAX, Run, db_size, marks, padded, repeat, sql, values};
use crate::{Db, DbError, RemovalId};

/// An entry of the store that nothing needs any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// For [`Db::removed`].
    pub id: RemovalId,
    /// The text of the entry, as it was given.
    pub entry: String,
    /// Bytes that become free.
    pub bytes: u64,
}

impl Db {
    /// Takes up to `limit` removals; until `claimed_until_ms` nobody else gets them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn removals(&self, now_ms: i64, claimed_until_ms: i64, limit: u32) -> Result<Vec<Removal>, DbError> {
        let text = sql!(
            "select id, entry, size from removals where claimed_until <= ? order by id limit ? for update skip locked"
        );
        self.transact(|run: Run| async move {
            let run = &run;
            let rows = run.all(text, values![now_ms, i64::from(limit)]).await?;
            let removals = rows
                .iter()
                .map(|row| Ok(Removal { id: RemovalId(row.int(0)?), entry: row.text(1)?, bytes: row.size(2)? }))
                .collect::<Result<Vec<_>, Fault>>()?;
            for some in removals.chunks(LIST_MAX) {
                let ids = padded(some.iter().map(|removal| removal.id.0).collect());
                let text = format!("update removals set claimed_until = ? where id in {}", marks(ids.len()));
                let claim = std::iter::once(claimed_until_ms.into()).chain(ids.into_iter().map(Into::into));
                run.execute(text, claim.collect()).await?;
            }
            Ok(removals)
        })
        .await
    }

    /// Their entries are gone from the store.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn removed(&self, ids: &[RemovalId]) -> Result<(), DbError> {
        if ids.is_empty() {
            return Ok(());
        }
        self.transact(|run: Run| async move {
            let run = &run;
            for ids in ids.chunks(LIST_MAX) {
                let ids = padded(ids.iter().map(|id| id.0).collect());
                let text = format!("delete from removals where id in {}", marks(ids.len()));
                run.execute(text, ids.into_iter().map(Into::into).collect()).await?;
            }
            Ok(())
        })
        .await
    }
}

/// Notes entries and their bytes.
pub(crate) async fn add(run: &Run, entries: &[(String, u64)], now_ms: i64) -> Result<(), Fault> {
    for entries in entries.chunks(LIST_MAX) {
        let text = format!(
            "insert into removals (entry, size, created_at, claimed_until) values {}",
            repeat("(?, ?, ?, 0)", ", ", entries.len())
        );
        let values = entries.iter().flat_map(|(entry, bytes)| values![entry.as_str(), db_size(*bytes), now_ms]);
        run.execute(text, values.collect()).await?;
    }
    Ok(())
}
