//! MariaDB and MySQL.

use std::time::Duration;

use sea_orm::DatabaseConnection;
use sqlx::mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions};
use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use tracing::warn;

use super::{Db, STATEMENTS_CACHED, Tables, Writer, pool_options, sqlx_error};
use crate::migrate;
use crate::sql::Dialect;
use crate::{DbConfig, DbError};

/// `skip locked`.
const MARIADB_MIN: (u32, u32) = (10, 6);
/// `skip locked`.
const MYSQL_MIN: (u32, u32) = (8, 0);
/// Below that, the largest manifests and checkpoints would be refused.
const PACKET_BYTES_MIN: u64 = 8 << 20;

pub(super) async fn open(options: MySqlConnectOptions, config: &DbConfig, tables: Tables) -> Result<Db, DbError> {
    let options = options.charset("utf8mb4").collation("utf8mb4_bin").statement_cache_capacity(STATEMENTS_CACHED);
    // Tables may take longer to change than a statement may take otherwise.
    let few = MySqlPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(config.acquire_timeout)
        .after_connect(|connection, _| Box::pin(async move { connection.execute(ISOLATION).await.map(drop) }))
        .connect_with(options.clone())
        .await
        .map_err(sqlx_error)?;
    let opened = prepare(&few, config, tables).await;
    few.close().await;
    let (name, session) = opened?;
    let pool = pool_options::<sqlx::MySql>(config)
        .after_connect(move |connection, _| {
            let session = session.clone();
            Box::pin(async move {
                connection.execute(ISOLATION).await?;
                connection.execute(AssertSqlSafe(session)).await.map(drop)
            })
        })
        .connect_with(options)
        .await
        .map_err(sqlx_error)?;
    Ok(Db::new(Dialect::MySql, name, pool.into(), Writer::Pool, config))
}

/// Each statement sees what was committed before it, and locks only the rows it finds.
const ISOLATION: &str = "set session transaction isolation level read committed";

/// Looks at the server and brings the tables up to date; its name, and what each connection starts with.
async fn prepare(pool: &MySqlPool, config: &DbConfig, tables: Tables) -> Result<(&'static str, String), DbError> {
    let row = sqlx::query("select version(), cast(@@max_allowed_packet as signed)").fetch_one(pool).await;
    let row = row.map_err(sqlx_error)?;
    let version: String = row.try_get(0).map_err(sqlx_error)?;
    let packet: i64 = row.try_get(1).map_err(sqlx_error)?;
    let mariadb = version.to_ascii_lowercase().contains("mariadb");
    let (name, least) = if mariadb { ("mariadb", MARIADB_MIN) } else { ("mysql", MYSQL_MIN) };
    if parse_version(&version).is_none_or(|version| version < least) {
        return Err(DbError::Unsuitable(format!("{name} {version} is older than {}.{}", least.0, least.1)));
    }
    if u64::try_from(packet).is_ok_and(|packet| packet < PACKET_BYTES_MIN) {
        return Err(DbError::Unsuitable(format!(
            "max_allowed_packet is {packet}, at least {PACKET_BYTES_MIN} are needed"
        )));
    }
    check_durability(pool, config).await?;
    match tables {
        Tables::Up => migrate_alone(pool).await?,
        Tables::AsTheyAre => migrate::expect(&pool.clone().into()).await?,
    }
    Ok((name, session(mariadb, config.statement_timeout)))
}

/// A commit must be on disk when it returns.
async fn check_durability(pool: &MySqlPool, config: &DbConfig) -> Result<(), DbError> {
    let query = "select cast(@@global.innodb_flush_log_at_trx_commit as signed)";
    let row = sqlx::query(query).fetch_one(pool).await.map_err(sqlx_error)?;
    let flush: i64 = row.try_get(0).map_err(sqlx_error)?;
    // 3 is MariaDB's 1 with one more flush.
    if matches!(flush, 1 | 3) {
        return Ok(());
    }
    let message = format!(
        "innodb_flush_log_at_trx_commit is {flush}, so that the last commits are lost with a crash; 1 is needed"
    );
    if !config.allow_lossy {
        return Err(DbError::Unsuitable(message));
    }
    warn!("{message}");
    Ok(())
}

/// Several processes may start at the same time.
async fn migrate_alone(pool: &MySqlPool) -> Result<(), DbError> {
    let mut holder = pool.acquire().await.map_err(sqlx_error)?;
    let mut waited = Duration::ZERO;
    loop {
        // Names are the server's, not the database's.
        let row = sqlx::query("select cast(get_lock(concat('skimmer:', md5(database())), 0) as signed)")
            .fetch_one(&mut *holder)
            .await
            .map_err(sqlx_error)?;
        if row.try_get::<Option<i64>, _>(0).map_err(sqlx_error)? == Some(1) {
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

fn session(mariadb: bool, statement_timeout: Duration) -> String {
    let (seconds, ms) = (statement_timeout.as_secs_f64(), statement_timeout.as_millis());
    // Waiting for a row that somebody has locked ends earlier, so that it is known why.
    let lock = (statement_timeout.as_secs() / 2).max(1);
    if mariadb {
        format!("set session max_statement_time = {seconds}, innodb_lock_wait_timeout = {lock}")
    } else {
        format!("set session max_execution_time = {ms}, innodb_lock_wait_timeout = {lock}")
    }
}

/// `10.11.6-MariaDB-1` or `8.0.36`; some servers put `5.5.5-` before it.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("5.5.5-").unwrap_or(text).split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse_version("10.11.6-MariaDB-0+deb12u1"), Some((10, 11)));
        assert_eq!(parse_version("5.5.5-10.4.1-MariaDB"), Some((10, 4)));
        assert_eq!(parse_version("8.0.36"), Some((8, 0)));
        assert_eq!(parse_version("x"), None);
    }
}
