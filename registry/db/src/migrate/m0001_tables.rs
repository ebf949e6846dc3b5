//! The first tables.

use sea_orm::{DbBackend, DbErr, DeriveMigrationName};
use sea_orm_migration::{MigrationTrait, SchemaManager, async_trait};

/// Its name is this file's.
#[derive(DeriveMigrationName)]
pub(super) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    // As the trait has it: `async_trait` tells a lifetime that is written from one that is not.
    #[expect(elided_lifetimes_in_paths)]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let statements = match manager.get_database_backend() {
            DbBackend::Sqlite => include_str!("m0001_sqlite.sql"),
            DbBackend::MySql => include_str!("m0001_mysql.sql"),
            DbBackend::Postgres => include_str!("m0001_postgres.sql"),
            other => return Err(DbErr::Migration(format!("no tables for {other:?}"))),
        };
        super::execute(manager.get_connection(), statements).await
    }
}
