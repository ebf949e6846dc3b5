//! Names and values that all processes share.

use crate::error::Fault;
use crate::sql::{Run, sql, values};
use crate::{Db, DbError};

impl Db {
    /// The value of a name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn setting(&self, name: &str) -> Result<Option<String>, DbError> {
        self.read(|run: Run| async move { find(&run, name).await }).await
    }

    /// The value of a name, which is `value` if it had none. Of several processes that do it at once, all get the same.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn setting_or_insert(&self, name: &str, value: &str) -> Result<String, DbError> {
        if let Some(stored) = self.setting(name).await? {
            return Ok(stored);
        }
        self.transact(|run: Run| async move {
            let run = &run;
            let text = sql!("insert into settings (name, content) values (?, ?) on conflict do nothing");
            run.insert_new(text, values![name, value]).await?;
            find(run, name).await?.ok_or_else(|| Fault::Corrupt(format!("setting {name} is there and cannot be found")))
        })
        .await
    }

    /// Takes a name's value away, if it has one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_setting(&self, name: &str) -> Result<(), DbError> {
        self.transact(|run: Run| async move {
            run.execute(sql!("delete from settings where name = ?"), values![name]).await.map(drop)
        })
        .await
    }
}

async fn find(run: &Run, name: &str) -> Result<Option<String>, Fault> {
    let row = run.one(sql!("select content from settings where name = ?"), values![name]).await?;
    row.map(|row| row.text(0)).transpose()
}
