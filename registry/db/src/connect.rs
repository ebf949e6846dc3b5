//! Opening a database.

mod mysql;
mod postgres;
mod sqlite;

use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::{ConnAcquireErr, DatabaseConnection, DbErr, RuntimeErr};
use sqlx::mysql::MySqlConnectOptions;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, Database, pool::PoolOptions};

use crate::alone::Alone;
use crate::guard::Guard;
use crate::repository::Known;
use crate::sql::Run;
use crate::sql::{Dialect, sql};
use crate::{DbConfig, DbError};

/// A connection that was not used for this time is tried before it is used: its server may have been restarted.
const TRY_AFTER_IDLE: Duration = Duration::from_secs(1);
/// Prepared statements of a connection; lists of different lengths are different statements.
const STATEMENTS_CACHED: usize = 256;

/// A database. Cheap to clone; all clones share its connections.
#[derive(Clone, Debug)]
pub struct Db {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) dialect: Dialect,
    name: &'static str,
    /// Where reads go, and for servers everything.
    pub(crate) pool: DatabaseConnection,
    pub(crate) writer: Writer,
    pub(crate) acquire_timeout: Duration,
    pub(crate) statement_timeout: Duration,
    /// Repositories are never removed.
    pub(crate) known: Known,
    pub(crate) guard: Guard,
}

/// Where transactions go.
#[derive(Debug)]
pub(crate) enum Writer {
    /// SQLite's one connection that writes.
    Alone(Alone),
    /// The pool.
    Pool,
    /// Nowhere: this database is only read.
    Nobody,
}

/// What a URL names.
#[derive(Debug)]
pub(crate) enum Target {
    Sqlite(PathBuf),
    MySql(Box<MySqlConnectOptions>),
    Postgres(Box<PgConnectOptions>),
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        const EXPECTED: &str =
            "expected sqlite:///folder/registry.db, mysql://user:password@host/database or postgres://…";
        // The drivers' own errors may quote the password.
        match url.split_once("://") {
            Some(("sqlite", path)) if !path.is_empty() && !path.contains('?') => Ok(Self::Sqlite(PathBuf::from(path))),
            Some(("sqlite", _)) => Err("a path of a file is expected after sqlite://, and nothing after it".to_owned()),
            Some(("mysql" | "mariadb", rest)) => match MySqlConnectOptions::from_str(&format!("mysql://{rest}")) {
                Ok(options) if options.get_database().is_some_and(|name| !name.is_empty()) => {
                    Ok(Self::MySql(Box::new(options)))
                }
                Ok(_) => Err("the name of the database is missing".to_owned()),
                Err(_) => Err(EXPECTED.to_owned()),
            },
            Some(("postgres" | "postgresql", _)) => match PgConnectOptions::from_str(url) {
                Ok(options) if options.get_database().is_some_and(|name| !name.is_empty()) => {
                    Ok(Self::Postgres(Box::new(options)))
                }
                Ok(_) => Err("the name of the database is missing".to_owned()),
                Err(_) => Err(EXPECTED.to_owned()),
            },
            _ => Err(EXPECTED.to_owned()),
        }
    }
}

/// What becomes of the tables when a server is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tables {
    /// They are brought up to date.
    Up,
    /// They must be up to date.
    AsTheyAre,
}

impl Db {
    /// Opens a database, and brings its tables up to date.
    ///
    /// # Errors
    /// When it cannot be reached, belongs to another process, does not suit, or was made by a newer program.
    pub async fn connect(config: &DbConfig) -> Result<Self, DbError> {
        match Target::parse(config.url.expose()).map_err(DbError::Config)? {
            Target::Sqlite(path) => sqlite::open(&path, config).await,
            Target::MySql(options) => mysql::open(*options, config, Tables::Up).await,
            Target::Postgres(options) => postgres::open(*options, config, Tables::Up).await,
        }
    }

    /// Opens a database to read it, also beside the process that a file belongs to, and leaves its tables as they are. What would change
    /// something fails, with a file.
    ///
    /// # Errors
    /// As [`Db::connect`], and when there is no such file, or the tables are those of an older program.
    pub async fn connect_to_read(config: &DbConfig) -> Result<Self, DbError> {
        match Target::parse(config.url.expose()).map_err(DbError::Config)? {
            Target::Sqlite(path) => sqlite::open_to_read(&path, config).await,
            Target::MySql(options) => mysql::open(*options, config, Tables::AsTheyAre).await,
            Target::Postgres(options) => postgres::open(*options, config, Tables::AsTheyAre).await,
        }
    }

    fn new(dialect: Dialect, name: &'static str, pool: DatabaseConnection, writer: Writer, config: &DbConfig) -> Self {
        let inner = Inner {
            dialect,
            name,
            pool,
            writer,
            acquire_timeout: config.acquire_timeout,
            statement_timeout: config.statement_timeout,
            known: Known::default(),
            guard: Guard::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Whether no other process can change it: what was read stays true until this process changes it.
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        matches!(self.inner.writer, Writer::Alone(_))
    }

    /// What it is, for logs and metrics: `sqlite`, `mariadb`, `mysql` or `postgres`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.inner.name
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), DbError> {
        self.read(|run: Run| async move { run.one(sql!("select count(*) from settings"), Vec::new()).await.map(drop) })
            .await
    }

    /// Closes all connections, after what they are doing. Whoever uses the database afterwards gets errors.
    pub async fn close(&self) {
        if let Writer::Alone(writer) = &self.inner.writer {
            writer.close().await;
        }
        if let Err(error) = self.inner.pool.close_by_ref().await {
            tracing::debug!(?error, "closing the database failed");
        }
    }
}

/// The pool of a server, as configured.
fn pool_options<D: Database>(config: &DbConfig) -> PoolOptions<D> {
    PoolOptions::new()
        .max_connections(config.max_connections)
        .min_connections(config.min_connections)
        .acquire_timeout(config.acquire_timeout)
        .idle_timeout(config.idle_timeout)
        .test_before_acquire(false)
        .before_acquire(|connection: &mut D::Connection, metadata| {
            Box::pin(async move {
                if metadata.idle_for >= TRY_AFTER_IDLE {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
}

/// An error from before there is a pool of SeaORM's.
fn sqlx_error(error: sqlx::Error) -> DbError {
    match error {
        sqlx::Error::PoolTimedOut => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout).into(),
        error => DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error))).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        assert!(matches!(Target::parse("sqlite:///a/b.db"), Ok(Target::Sqlite(path)) if path == *"/a/b.db"));
        assert!(matches!(Target::parse("mysql://u:p@h:1/d"), Ok(Target::MySql(_))));
        assert!(matches!(Target::parse("mariadb://u:p@h:1/d"), Ok(Target::MySql(_))));
        assert!(matches!(Target::parse("postgres://u:p@h/d"), Ok(Target::Postgres(_))));
        assert!(matches!(Target::parse("postgresql://u:p@h/d"), Ok(Target::Postgres(_))));
        for bad in [
            "",
            "registry.db",
            "sqlite::memory:",
            "sqlite://",
            "sqlite:///a.db?mode=memory",
            "mysql://h",
            "mysql://u:p@h/",
            "postgres://u:p@h",
            "oracle://u:p@h/d",
        ] {
            let error = Target::parse(bad).unwrap_err();
            assert!(!error.contains("u:p"), "{error}");
        }
    }
}
