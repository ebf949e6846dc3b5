//! SQLite: one file, one process, one connection that writes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sea_orm::DatabaseConnection;
use sqlx::pool::PoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

use super::{Db, STATEMENTS_CACHED, Writer};
use crate::alone::Alone;
use crate::migrate;
use crate::sql::Dialect;
use crate::{DbConfig, DbError};

/// Only programs that look at the file from outside can be in the way, such as `sqlite3` or a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Address space in which pages of the file are read without a copy.
const MMAP_BYTES: &str = "1073741824";
/// Pages that the writer keeps, negative in KiB.
const WRITER_CACHE: &str = "-65536";
/// Pages that each reader keeps; what it does not keep comes from the mapped file.
const READER_CACHE: &str = "-8192";
/// The log is written back once it has so many pages of 4 KiB: seldom enough that few commits pay for it.
const CHECKPOINT_PAGES: &str = "4000";
/// What the log's file may keep after it was written back.
const LOG_BYTES: &str = "67108864";

pub(super) async fn open(path: &Path, config: &DbConfig) -> Result<Db, DbError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        tokio::fs::create_dir_all(folder).await.map_err(|source| DbError::File { path: folder.to_owned(), source })?;
    }
    let lock = lock_soon(&canonical(path).map_err(|source| DbError::File { path: path.to_owned(), source })?).await?;
    let options = options(path);
    let writer = options.clone().pragma("cache_size", WRITER_CACHE);
    let first: DatabaseConnection = PoolOptions::<sqlx::Sqlite>::new()
        .max_connections(1)
        .acquire_timeout(config.acquire_timeout)
        .connect_with(writer.clone())
        .await
        .map_err(super::sqlx_error)?
        .into();
    migrate::up(&first).await?;
    first.close().await?;
    let reader = reader(options, config).await?;
    let alone = Alone::new(writer, lock);
    Ok(Db::new(Dialect::Sqlite, "sqlite", reader, Writer::Alone(alone), config))
}

/// Beside the process that owns the file, or without one.
pub(super) async fn open_to_read(path: &Path, config: &DbConfig) -> Result<Db, DbError> {
    tokio::fs::metadata(path).await.map_err(|source| DbError::File { path: path.to_owned(), source })?;
    let reader = reader(options(path).create_if_missing(false), config).await?;
    migrate::expect(&reader).await?;
    Ok(Db::new(Dialect::Sqlite, "sqlite", reader, Writer::Nobody, config))
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A commit is on disk when it returns.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(STATEMENTS_CACHED)
        .pragma("temp_store", "memory")
        .pragma("mmap_size", MMAP_BYTES)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        .pragma("journal_size_limit", LOG_BYTES)
}

/// Connections that change nothing.
async fn reader(options: SqliteConnectOptions, config: &DbConfig) -> Result<DatabaseConnection, DbError> {
    let pool = PoolOptions::<sqlx::Sqlite>::new()
        .max_connections(config.max_connections)
        .min_connections(config.min_connections)
        .acquire_timeout(config.acquire_timeout)
        .idle_timeout(config.idle_timeout)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_with(options.pragma("cache_size", READER_CACHE).pragma("query_only", "on"))
        .await
        .map_err(super::sqlx_error)?;
    Ok(pool.into())
}

/// The one name of a file that links may give others, as SQLite finds it. The file itself need not be there yet.
fn canonical(path: &Path) -> io::Result<PathBuf> {
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder =
                path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
            match (std::fs::read_link(path), path.file_name()) {
                // It will be made where the link points. Links in a circle are another error.
                (Ok(target), _) => canonical(&folder.join(target)),
                (Err(_), Some(name)) => Ok(std::fs::canonicalize(folder)?.join(name)),
                (Err(_), None) => Err(error),
            }
        }
        result => result,
    }
}

/// A predecessor that is just ending, or a process that was forked from it and has not begun its own program, lets go within this
/// time.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// [`lock`], with patience.
async fn lock_soon(path: &Path) -> Result<File, DbError> {
    let mut waited = Duration::ZERO;
    loop {
        match lock(path) {
            Err(DbError::InUse(_)) if waited < LOCK_PATIENCE => {
                tokio::time::sleep(LOCK_PAUSE).await;
                waited += LOCK_PAUSE;
            }
            result => return result,
        }
    }
}

/// Makes this process the only one. The lock goes with the process, the file stays.
fn lock(path: &Path) -> Result<File, DbError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let fail = |source| DbError::File { path: name.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DbError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(fail(source)),
    }
}
