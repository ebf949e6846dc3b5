//! Which client an upload is of, so that each client's can be counted.

use sea_orm::{ConnectionTrait as _, DbBackend, DbErr, DeriveMigrationName};
use sea_orm_migration::{MigrationTrait, SchemaManager, async_trait};

/// Its name is this file's.
#[derive(DeriveMigrationName)]
pub(super) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    // As the trait has it: `async_trait` tells a lifetime that is written from one that is not.
    #[expect(elided_lifetimes_in_paths)]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        // Processes of the version before go on: they leave it empty. An earlier attempt may have come half way.
        if !manager.has_column("uploads", "client").await? {
            let sort = if connection.get_database_backend() == DbBackend::MySql { "varchar(64)" } else { "text" };
            connection.execute_unprepared(&format!("alter table uploads add column client {sort}")).await?;
        }
        if !manager.has_index("uploads", "uploads_by_client").await? {
            connection.execute_unprepared("create index uploads_by_client on uploads (client, status)").await?;
        }
        Ok(())
    }
}
