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

    /// The id of a repository, which is made if it is new. In a transaction of its own, so that first pushes do not wait for each other.
    pub(crate) async fn repository_for_push(
        &self,
        name: &RepositoryName,
        now_ms: i64,
    ) -> Result<RepositoryId, DbError> {
        if let Some(id) = self.repository_id(name).await? {
            return Ok(id);
        }
        let id = self.transact(|run: Run| async move { make(&run, name, now_ms).await }).await?;
        self.inner.known.put(name, id);
        Ok(id)
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
    let text = sql!("insert into repositories (name, created_at) values (?, ?) on conflict do nothing");
    if let Some(id) = run.insert(text, values![name.as_str(), now_ms]).await? {
        return Ok(RepositoryId(id));
    }
    find(run, name).await?.ok_or_else(|| Fault::Corrupt(format!("repository {name} is there and cannot be found")))
}
