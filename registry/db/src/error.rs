//! What can go wrong with a database.

use std::path::PathBuf;

use proto::Kind;
use sea_orm::{DbErr, RuntimeErr, SqlxError, SqlxMySqlError};

/// The database cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// It does not answer. It may do so later.
    #[error("the database cannot be reached")]
    Unavailable(#[source] DbErr),
    /// It did not answer within the time it has. Whether something was committed is not known.
    #[error("the database did not answer in time")]
    TimedOut,
    /// A commit failed in a way that does not tell whether it was done.
    #[error("it is not known whether the database committed")]
    InDoubt(#[source] Box<Self>),
    /// Other transactions kept getting in the way, however often it was tried again.
    #[error("the database was too busy with other transactions")]
    Busy(#[source] DbErr),
    /// No room on its disk.
    #[error("the database has no room left")]
    Full(#[source] DbErr),
    /// Another process owns this file.
    #[error("another process uses the database {}", .0.display())]
    InUse(PathBuf),
    /// It was opened to be read.
    #[error("the database was opened to be read, and cannot be changed")]
    ReadOnly,
    /// It is not what this process belongs to any more: see [`Db::belong`](crate::Db::belong).
    #[error("the database is being rebuilt, was set back, or is another one now")]
    NotOurs,
    /// A file beside the database cannot be opened or locked.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The URL does not fit.
    #[error("{0}")]
    Config(String),
    /// The server is too old, or set up in a way that would lose what was acknowledged.
    #[error("the database server does not suit: {0}")]
    Unsuitable(String),
    /// A newer program has changed the tables.
    #[error("the database was made by a newer program: it has the migration {0:?}")]
    TooNew(String),
    /// An older program has made the tables, and they may only be read.
    #[error("the database was made by an older program: start the registry once to bring it up to date")]
    TooOld,
    /// A column holds what nobody wrote there.
    #[error("the database holds something that cannot be: {0}")]
    Corrupt(String),
    /// A statement was refused: a defect of ours, or somebody changed the tables.
    #[error("the database refused a statement")]
    Refused(#[source] DbErr),
}

impl DbError {
    /// Which kind of failure it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::InDoubt(error) => error.kind(),
            Self::Unavailable(_) | Self::TimedOut | Self::Busy(_) | Self::NotOurs => Kind::Unavailable,
            Self::Full(_) => Kind::NoSpace,
            Self::InUse(_) | Self::ReadOnly => Kind::Conflict,
            Self::Config(_) | Self::Unsuitable(_) | Self::TooNew(_) | Self::TooOld => Kind::Invalid,
            Self::Corrupt(_) => Kind::Corrupt,
            Self::File { .. } | Self::Refused(_) => Kind::Internal,
        }
    }

    /// Whether what was to be written may have been written all the same.
    #[must_use]
    pub const fn is_in_doubt(&self) -> bool {
        matches!(self, Self::InDoubt(_) | Self::TimedOut)
    }
}

/// Why a statement, or what was made of its answer, failed. Becomes a [`DbError`] when it is not tried again.
#[derive(Debug)]
pub(crate) enum Fault {
    Sql(DbErr),
    Corrupt(String),
    /// What was read has changed meanwhile.
    Again(&'static str),
    /// This process must not write to it.
    NotOurs,
}

/// What can be done about a [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Another transaction was in the way: the whole transaction may be tried again at once.
    Conflict,
    /// The connection is gone, or none is to be had.
    Lost,
    /// The disk is full.
    Full,
    /// Trying again gives the same.
    Final,
}

impl From<DbErr> for Fault {
    fn from(error: DbErr) -> Self {
        Self::Sql(error)
    }
}

impl From<Fault> for DbError {
    fn from(fault: Fault) -> Self {
        let class = fault.class();
        match fault {
            Fault::Corrupt(what) => Self::Corrupt(what),
            Fault::Again(what) => Self::Busy(DbErr::Custom(what.to_owned())),
            Fault::NotOurs => Self::NotOurs,
            Fault::Sql(error) => match class {
                Class::Conflict => Self::Busy(error),
                Class::Lost => Self::Unavailable(error),
                Class::Full => Self::Full(error),
                Class::Final => Self::Refused(error),
            },
        }
    }
}

impl From<DbErr> for DbError {
    fn from(error: DbErr) -> Self {
        Fault::Sql(error).into()
    }
}

impl Fault {
    pub(crate) fn class(&self) -> Class {
        let error = match self {
            Self::Sql(error) => error,
            Self::Corrupt(_) | Self::NotOurs => return Class::Final,
            Self::Again(_) => return Class::Conflict,
        };
        match error {
            DbErr::ConnectionAcquire(_) | DbErr::Conn(RuntimeErr::Internal(_)) => Class::Lost,
            DbErr::Conn(RuntimeErr::SqlxError(error))
            | DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => class_of(error),
            _ => Class::Final,
        }
    }
}

fn class_of(error: &SqlxError) -> Class {
    match error {
        SqlxError::Io(_)
        | SqlxError::Tls(_)
        | SqlxError::Protocol(_)
        | SqlxError::PoolTimedOut
        | SqlxError::PoolClosed
        | SqlxError::WorkerCrashed => Class::Lost,
        SqlxError::Database(refusal) => {
            if let Some(refusal) = refusal.try_downcast_ref::<SqlxMySqlError>() {
                return mysql_class(refusal.number());
            }
            let code = refusal.code().unwrap_or_default();
            // PostgreSQL's codes have five characters, SQLite's are numbers.
            if code.len() == 5 { postgres_class(&code) } else { sqlite_class(&code) }
        }
        _ => Class::Final,
    }
}

fn mysql_class(number: u16) -> Class {
    match number {
        // ER_LOCK_WAIT_TIMEOUT, ER_LOCK_DEADLOCK; ER_CHECKREAD: a row changed since it was read (MariaDB).
        1205 | 1213 | 1020 => Class::Conflict,
        // ER_CON_COUNT, ER_SERVER_SHUTDOWN, ER_NORMAL_SHUTDOWN, ER_FORCING_CLOSE, ER_QUERY_INTERRUPTED, ER_NEW_ABORTING_CONNECTION,
        // ER_OPTION_PREVENTS_STATEMENT (read only), ER_CONNECTION_KILLED, ER_STATEMENT_TIMEOUT, ER_QUERY_TIMEOUT, CR_SERVER_GONE.
        1040 | 1053 | 1077 | 1080 | 1317 | 1184 | 1290 | 1927 | 1969 | 3024 | 2006 | 2013 => Class::Lost,
        // ER_DISK_FULL, ER_RECORD_FILE_FULL.
        1021 | 1114 => Class::Full,
        _ => Class::Final,
    }
}

fn postgres_class(code: &str) -> Class {
    match code {
        // serialization_failure, deadlock_detected, lock_not_available.
        "40001" | "40P01" | "55P03" => Class::Conflict,
        "53100" => Class::Full,
        // query_canceled (a timeout), read_only_sql_transaction (a standby).
        "57014" | "25006" => Class::Lost,
        // connection_exception, insufficient_resources, operator_intervention (shutdown, starting up).
        code if code.starts_with("08") || code.starts_with("53") || code.starts_with("57") => Class::Lost,
        _ => Class::Final,
    }
}

fn sqlite_class(code: &str) -> Class {
    let code = code.parse::<u32>();
    // SQLITE_IOERR_SHMSIZE: there is no room for the index of the log.
    if code == Ok(4874) {
        return Class::Full;
    }
    // The primary code is the lowest byte of the extended one.
    match code.map(|code| code & 0xff) {
        // SQLITE_BUSY, SQLITE_LOCKED.
        Ok(5 | 6) => Class::Conflict,
        Ok(13) => Class::Full,
        // SQLITE_INTERRUPT, SQLITE_IOERR, SQLITE_CANTOPEN.
        Ok(9 | 10 | 14) => Class::Lost,
        _ => Class::Final,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        assert_eq!(mysql_class(1213), Class::Conflict);
        assert_eq!(mysql_class(1053), Class::Lost);
        assert_eq!(mysql_class(1062), Class::Final);
        assert_eq!(postgres_class("40P01"), Class::Conflict);
        assert_eq!(postgres_class("57P03"), Class::Lost);
        assert_eq!(postgres_class("53100"), Class::Full);
        assert_eq!(postgres_class("23505"), Class::Final);
        assert_eq!(sqlite_class("517"), Class::Conflict);
        assert_eq!(sqlite_class("13"), Class::Full);
        assert_eq!(sqlite_class("4874"), Class::Full);
        assert_eq!(sqlite_class("778"), Class::Lost);
        assert_eq!(sqlite_class("2067"), Class::Final);
    }

    #[test]
    fn a_fault_becomes_what_the_caller_can_act_on() {
        let lost = Fault::Sql(DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::Timeout));
        assert_eq!(DbError::from(lost).kind(), Kind::Unavailable);
        assert_eq!(DbError::from(Fault::Corrupt("x".to_owned())).kind(), Kind::Corrupt);
    }
}
