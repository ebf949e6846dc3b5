//! The tables, and how they came about. Forward only.

mod m0001_tables;
mod m0002_upload_clients;
mod m0003_referrers_by_digest;

use std::time::Duration;

use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbErr, DynIden, Statement};
use sea_orm_migration::sea_query::IntoIden as _;
use sea_orm_migration::{MigrationTrait, MigratorTrait};

use crate::DbError;

/// Another process that starts may take so long to change the tables.
const WAIT_MAX: Duration = Duration::from_secs(300);
const WAIT_STEP: Duration = Duration::from_millis(100);

struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_tables::Migration),
            Box::new(m0002_upload_clients::Migration),
            Box::new(m0003_referrers_by_digest::Migration),
        ]
    }

    fn migration_table_name() -> DynIden {
        "registry_migrations".into_iden()
    }
}

/// Brings the tables up to date. The caller sees to it that nobody else does so at the same time.
pub(crate) async fn up(connection: &DatabaseConnection) -> Result<(), DbError> {
    let applied = Migrator::get_migration_models(connection).await?;
    if is_complete(applied.iter().map(|applied| &applied.version))? {
        return Ok(());
    }
    Ok(Migrator::up(connection, None).await?)
}

/// Fails unless the tables are as this program makes them; changes nothing.
pub(crate) async fn expect(connection: &DatabaseConnection) -> Result<(), DbError> {
    let text = "select version from registry_migrations";
    let rows = connection.query_all_raw(Statement::from_string(connection.get_database_backend(), text)).await?;
    let applied = rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<Vec<String>, _>>()?;
    if is_complete(applied.iter())? { Ok(()) } else { Err(DbError::TooOld) }
}

/// Whether all was done that this program does.
fn is_complete<'v>(applied: impl ExactSizeIterator<Item = &'v String>) -> Result<bool, DbError> {
    let ours = Migrator::migrations();
    let count = applied.len();
    for version in applied {
        if ours.iter().all(|ours| ours.name() != version) {
            return Err(DbError::TooNew(version.clone()));
        }
    }
    Ok(count == ours.len())
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
