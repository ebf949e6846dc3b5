//! PostgreSQL.

use std::time::Duration;

use sea_orm::DatabaseConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use tracing::warn;

use super::{Db, STATEMENTS_CACHED, Tables, Writer, pool_options, sqlx_error};
use crate::migrate;
use crate::sql::Dialect;
use crate::{DbConfig, DbError};

/// `server_version_num` of the oldest that is still maintained somewhere.
const VERSION_MIN: i64 = 12_00_00;
/// Any number that nothing else in the database uses.
const MIGRATION_LOCK: i64 = 0x736b_696d_6d65_7200;

pub(super) async fn open(options: PgConnectOptions, config: &DbConfig, tables: Tables) -> Result<Db, DbError> {
    let options = options.statement_cache_capacity(STATEMENTS_CACHED).application_name("skimmer-registry");
    // Tables may take longer to change than a statement may take otherwise.
    let few = PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(config.acquire_timeout)
        .connect_with(options.clone())
        .await
        .map_err(sqlx_error)?;
    let opened = prepare(&few, config, tables).await;
    few.close().await;
    opened?;
    let session = session(config);
    let pool = pool_options::<sqlx::Postgres>(config)
        .after_connect(move |connection, _| {
            let session = session.clone();
            Box::pin(async move { connection.execute(AssertSqlSafe(session)).await.map(drop) })
        })
        .connect_with(options)
        .await
        .map_err(sqlx_error)?;
    Ok(Db::new(Dialect::Postgres, "postgres", pool.into(), Writer::Pool, config))
}

async fn prepare(pool: &PgPool, config: &DbConfig, tables: Tables) -> Result<(), DbError> {
    let query = "select current_setting('server_version_num')::bigint, current_setting('server_version'), \
                 current_setting('fsync')";
    let row = sqlx::query(query).fetch_one(pool).await.map_err(sqlx_error)?;
    let (number, version, fsync): (i64, String, String) =
        (row.try_get(0).map_err(sqlx_error)?, row.try_get(1).map_err(sqlx_error)?, row.try_get(2).map_err(sqlx_error)?);
    if number < VERSION_MIN {
        return Err(DbError::Unsuitable(format!("postgresql {version} is older than 12")));
    }
    if fsync != "on" {
        let message = "fsync is off, so that commits are lost with a crash".to_owned();
        if !config.allow_lossy {
            return Err(DbError::Unsuitable(message));
        }
        warn!("{message}");
    }
    match tables {
        Tables::Up => migrate_alone(pool).await,
        Tables::AsTheyAre => migrate::expect(&pool.clone().into()).await,
    }
}

/// Several processes may start at the same time.
async fn migrate_alone(pool: &PgPool) -> Result<(), DbError> {
    let mut holder = pool.acquire().await.map_err(sqlx_error)?;
    let mut waited = Duration::ZERO;
    loop {
        let row = sqlx::query("select pg_try_advisory_lock($1)")
            .bind(MIGRATION_LOCK)
            .fetch_one(&mut *holder)
            .await
            .map_err(sqlx_error)?;
        if row.try_get::<bool, _>(0).map_err(sqlx_error)? {
            break;
        }
        waited = migrate::wait(waited).await?;
    }
    let connection: DatabaseConnection = pool.clone().into();
    let done = migrate::up(&connection).await;
    // Closing the connection gives the lock back.
    holder.close().await.map_err(sqlx_error)?;
    done
}

fn session(config: &DbConfig) -> String {
    let ms = config.statement_timeout.as_millis();
    // A process that vanished in the middle must not hold rows for ever.
    let idle = ms * 2;
    format!(
        "set session characteristics as transaction isolation level read committed; \
         set synchronous_commit = on; set statement_timeout = {ms}; set lock_timeout = {}; \
         set idle_in_transaction_session_timeout = {idle}; set client_min_messages = warning",
        (ms / 2).max(1)
    )
}
