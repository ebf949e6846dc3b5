//! Repositories.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use oci::RepositoryName;

use crate::error::Fault;
use crate::sql::{Run, db_size, sql, values};
use crate::{Db, DbError, RepositoryId};

/// Names whose ids are remembered. When there are more, all are forgotten and learned again.
const KNOWN_MAX: usize = 100_000;

/// Ids of repositories, which never change. Only of those whose row is committed.
#[derive(Debug, Default)]
pub(crate) struct Known(RwLock<HashMap<RepositoryName, RepositoryId>>);

impl Known {
    fn get(&self, name: &RepositoryName) -> Option<RepositoryId> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    fn put(&self, name: &RepositoryName, id: RepositoryId) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(name.clone(), id);
    }

    fn clear(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Where a push goes.
pub(crate) struct Place {
    pub(crate) id: RepositoryId,
    /// It was made for this push.
    is_new: bool,
}

impl Place {
    /// The first thing in the transaction of a push: finds the repository, or makes it. It comes to be with what is pushed first, or not at all.
    pub(crate) async fn enter(
        run: &Run,
        known: Option<RepositoryId>,
        name: &RepositoryName,
        now_ms: i64,
    ) -> Result<Self, Fault> {
        if let Some(id) = known {
            return Ok(Self { id, is_new: false });
        }
        Ok(match insert(run, name, now_ms).await? {
            Some(id) => Self { id, is_new: true },
            None => Self { id: find_again(run, name).await?, is_new: false },
        })
    }

    /// The push was refused. Nobody else has seen what was made for it.
    pub(crate) async fn leave(&self, run: &Run) -> Result<(), Fault> {
        if self.is_new {
            run.execute(sql!("delete from repositories where id = ?"), values![self.id.0]).await?;
        }
        Ok(())
    }
}

impl Db {
    /// Forgets the ids of repositories: the tables may be others by now.
    pub fn forget_ids(&self) {
        self.inner.known.clear();
    }

    /// The id of a repository that something was pushed to.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn repository_id(&self, name: &RepositoryName) -> Result<Option<RepositoryId>, DbError> {
        if let Some(id) = self.inner.known.get(name) {
            return Ok(Some(id));
        }
        let found = self.read(|run: Run| async move { find(&run, name).await }).await?;
        if let Some(id) = found {
            self.inner.known.put(name, id);
        }
        Ok(found)
    }

    /// What is remembered at this moment: whoever tries a transaction again asks again.
    pub(crate) fn known(&self, name: &RepositoryName) -> Option<RepositoryId> {
        self.inner.known.get(name)
    }

    /// A push to it was committed.
    pub(crate) fn remember(&self, name: &RepositoryName, id: RepositoryId) {
        self.inner.known.put(name, id);
    }

    /// Names of repositories that hold a manifest, after the given text, in the order of their bytes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn catalog(&self, after: Option<&str>, limit: u64) -> Result<Vec<String>, DbError> {
        let values = values![after.unwrap_or_default(), db_size(limit)];
        // One lookup for each name. As an `exists`, MariaDB may rather read all manifests first.
        let text = sql!(
            "select name from repositories r where name > ? \
             and (select 1 from manifests m where m.repository_id = r.id limit 1) = 1 order by name limit ?"
        );
        let values = &values;
        self.read(
            |run: Run| async move { run.all(text, values.clone()).await?.iter().map(|row| row.text(0)).collect() },
        )
        .await
    }
}

async fn find(run: &Run, name: &RepositoryName) -> Result<Option<RepositoryId>, Fault> {
    let row = run.one(sql!("select id from repositories where name = ?"), values![name.as_str()]).await?;
    row.map(|row| row.int(0).map(RepositoryId)).transpose()
}

/// Finds or makes a repository; in a transaction of several steps, its id must not be remembered before the commit.
pub(crate) async fn make(run: &Run, name: &RepositoryName, now_ms: i64) -> Result<RepositoryId, Fault> {
    match insert(run, name, now_ms).await? {
        Some(id) => Ok(id),
        None => find_again(run, name).await,
    }
}

/// Makes a repository, unless it is there. Waits for whoever is about to make it.
async fn insert(run: &Run, name: &RepositoryName, now_ms: i64) -> Result<Option<RepositoryId>, Fault> {
    let text = sql!("insert into repositories (name, created_at) values (?, ?) on conflict do nothing");
    Ok(run.insert(text, values![name.as_str(), now_ms]).await?.map(RepositoryId))
}

async fn find_again(run: &Run, name: &RepositoryName) -> Result<RepositoryId, Fault> {
    find(run, name).await?.ok_or(Fault::Again("a repository was there and is gone"))
}
