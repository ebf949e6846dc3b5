//! The tables, and how they came about. Forward only.

mod m0001_tables;

use std::time::Duration;

use sea_orm::{DatabaseConnection, DbErr, DynIden};
use sea_orm_migration::sea_query::IntoIden as _;
use sea_orm_migration::{MigrationTrait, MigratorTrait};

use crate::DbError;

/// Another process that starts may take so long to change the tables.
const WAIT_MAX: Duration = Duration::from_secs(300);
const WAIT_STEP: Duration = Duration::from_millis(100);

struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m0001_tables::Migration)]
    }

    fn migration_table_name() -> DynIden {
        "registry_migrations".into_iden()
    }
}

/// Brings the tables up to date. The caller sees to it that nobody else does so at the same time.
pub(crate) async fn up(connection: &DatabaseConnection) -> Result<(), DbError> {
    let applied = Migrator::get_migration_models(connection).await?;
    let ours = Migrator::migrations();
    if let Some(unknown) = applied.iter().find(|applied| ours.iter().all(|ours| ours.name() != applied.version)) {
        return Err(DbError::TooNew(unknown.version.clone()));
    }
    if applied.len() < ours.len() {
        Migrator::up(connection, None).await?;
    }
    Ok(())
}

/// Waits a moment for another process to be done; for how long it waited altogether.
pub(crate) async fn wait(waited: Duration) -> Result<Duration, DbError> {
    if waited >= WAIT_MAX {
        return Err(DbError::TimedOut);
    }
    tokio::time::sleep(WAIT_STEP).await;
    Ok(waited + WAIT_STEP)
}

/// Executes statements that are separated by `;` at the ends of lines. Each must be harmless when it is done again: MySQL commits after
/// each, and a crash may come in between.
async fn execute(connection: &impl sea_orm::ConnectionTrait, statements: &str) -> Result<(), DbErr> {
    for statement in statements.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
        connection.execute_unprepared(statement).await?;
    }
    Ok(())
}
