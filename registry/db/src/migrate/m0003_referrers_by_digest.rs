//! Referrers are listed in the order of their digests, page by page.

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
        let is_mysql = connection.get_database_backend() == DbBackend::MySql;
        // An earlier attempt may have come half way.
        if !manager.has_index("manifests", "manifests_by_referrer").await? {
            let only = if is_mysql { "" } else { " where subject is not null" };
            let text =
                format!("create index manifests_by_referrer on manifests (repository_id, subject, digest){only}");
            connection.execute_unprepared(&text).await?;
        }
        // In the order they came nobody lists them any more. Processes of the version before find them by the new index, too.
        if manager.has_index("manifests", "manifests_by_subject").await? {
            let on = if is_mysql { " on manifests" } else { "" };
            connection.execute_unprepared(&format!("drop index manifests_by_subject{on}")).await?;
        }
        Ok(())
    }
}
