//! SQLite's one connection that writes.
//!
//! Transactions take turns, and those that wait for their turn are committed together: each runs inside a savepoint of one
//! transaction, then queues up again to commit. Whoever's turn it is then finds that everybody who was waiting has run, and commits for
//! all. Alone, a transaction is committed at once; together, they share one fsync.
//!
//! A message to SQLite's thread and back costs more than most statements. So what begins a transaction or a savepoint goes with the first
//! statement inside, and what ends a savepoint with the first of the next one.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use sea_orm::{DbErr, RuntimeErr, Statement, Value};
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Connection as _, Executor as _};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::error::{Class, Fault};
use crate::sql::{Run, apart};
use crate::transact::{Failed, in_commit};

/// The connection, and the lock that makes it the only one.
#[derive(Debug)]
pub(crate) struct Alone {
    /// Fair: whoever asks first gets it first. The batches depend on it.
    slot: Arc<Mutex<Slot>>,
    _lock: File,
}

/// What the one whose turn it is may use.
#[derive(Debug)]
struct Slot {
    options: SqliteConnectOptions,
    /// `None`: there was none yet, or nobody knew any more in which state it is. One stays the same throughout a batch.
    connection: Option<SqliteConnection>,
    batch: Option<Batch>,
    /// Somebody went away in the middle of a turn.
    left: Option<Undo>,
    closed: bool,
}

/// Transactions that are committed together.
#[derive(Debug, Default)]
struct Batch {
    outcome: Outcome,
    /// That of whoever ran last, which is not released yet.
    savepoint: Option<Savepoint>,
}

/// How the commit of a batch ended, for everybody in it.
type Outcome = Arc<OnceLock<Result<(), DbErr>>>;

/// Two that follow each other have different names: what is meant for one that could not be made never hits the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Savepoint {
    A,
    B,
}

/// How far a turn that failed is undone.
#[derive(Clone, Copy, Debug)]
enum Undo {
    /// It was the first of its batch, and nobody else is in it.
    Batch,
    Savepoint(Savepoint),
}

/// A transaction that runs. Whoever drops one before its end has it undone.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Goes before its first statement.
    begin: &'static str,
    begun: AtomicBool,
    undo: Undo,
    ended: bool,
    /// Back in the slot when it ended.
    connection: Mutex<Option<SqliteConnection>>,
    slot: OwnedMutexGuard<Slot>,
}

// === impl Savepoint ===

impl Savepoint {
    /// The one after, and what begins it.
    const fn next(before: Option<Self>) -> (Self, &'static str) {
        match before {
            None => (Self::A, "savepoint a; "),
            Some(Self::A) => (Self::B, "release a; savepoint b; "),
            Some(Self::B) => (Self::A, "release b; savepoint a; "),
        }
    }

    const fn undo(self) -> &'static str {
        match self {
            Self::A => "rollback to a; release a",
            Self::B => "rollback to b; release b",
        }
    }
}

// === impl Alone ===

impl Alone {
    pub(crate) fn new(options: SqliteConnectOptions, lock: File) -> Self {
        let slot = Slot { options, connection: None, batch: None, left: None, closed: false };
        Self { slot: Arc::new(Mutex::new(slot)), _lock: lock }
    }

    pub(crate) async fn transact<T, F>(&self, work: &impl Fn(Run) -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let slot = Slot::lock(&self.slot).await.map_err(|error| Failed::Before(error.into()))?;
        // Whoever is cancelled from here on may leave a batch that nobody else commits.
        let finish = Finish(Some(Arc::clone(&self.slot)));
        let (turn, outcome) = Turn::new(slot);
        let turn = Arc::new(turn);
        let result = work(Run::in_turn(&turn)).await;
        let turn = Arc::into_inner(turn)
            .ok_or_else(|| Failed::Before(Fault::Corrupt("a transaction is still used after its end".to_owned())))?;
        let result = match result {
            Ok(done) => {
                turn.keep();
                Ok(done)
            }
            Err(fault) => {
                // A full or failing disk makes SQLite undo the whole transaction, not only the savepoint.
                let spoilt = match &fault {
                    Fault::Sql(error) if matches!(fault.class(), Class::Full | Class::Lost) => Some(error.clone()),
                    _ => None,
                };
                let undone = apart(async move {
                    turn.undo(spoilt).await;
                    Ok(())
                });
                undone.await.map_err(|error| Failed::Before(error.into()))?;
                Err(fault)
            }
        };
        finish.now(&outcome).await;
        let done = result.map_err(Failed::Before)?;
        match outcome.get() {
            Some(Ok(())) => Ok(done),
            Some(Err(error)) => Err(in_commit(error.clone().into())),
            None => Err(in_commit(DbErr::Custom("the commit was interrupted".to_owned()).into())),
        }
    }

    pub(crate) async fn close(&self) {
        let mut slot = Arc::clone(&self.slot).lock_owned().await;
        slot.commit().await;
        slot.closed = true;
        slot.close().await;
    }
}

// === impl Slot ===

impl Slot {
    /// Waits for its turn, and for a connection.
    async fn lock(slot: &Arc<Mutex<Self>>) -> Result<OwnedMutexGuard<Self>, DbErr> {
        let mut slot = Arc::clone(slot).lock_owned().await;
        if slot.left.is_none() && slot.connection.is_some() {
            return Ok(slot);
        }
        apart(async move {
            slot.clean().await;
            if slot.closed {
                return Err(DbErr::Conn(RuntimeErr::Internal("the database is closed".to_owned())));
            }
            if slot.connection.is_none() {
                slot.connection = Some(SqliteConnection::connect_with(&slot.options).await.map_err(refused)?);
            }
            Ok(slot)
        })
        .await
    }

    async fn execute(&mut self, text: &'static str) -> Result<(), DbErr> {
        match &mut self.connection {
            Some(connection) => connection.execute(text).await.map(drop).map_err(refused),
            None => Err(refused(sqlx::Error::WorkerCrashed)),
        }
    }

    /// Undoes what somebody left who went away.
    async fn clean(&mut self) {
        if let Some(undo) = self.left.take() {
            self.undo(undo, None).await;
        }
    }

    /// With an error, everybody of the batch is undone.
    async fn undo(&mut self, undo: Undo, spoilt: Option<DbErr>) {
        if let Some(error) = spoilt {
            return self.spoil(error).await;
        }
        let undone = match undo {
            Undo::Batch => {
                // The next one begins another.
                self.batch = None;
                self.execute("rollback").await
            }
            Undo::Savepoint(savepoint) => {
                if let Some(batch) = &mut self.batch {
                    batch.savepoint = None;
                }
                self.execute(savepoint.undo()).await
            }
        };
        if let Err(error) = undone {
            self.spoil(error).await;
        }
    }

    /// Gives up a batch, of which everybody in it is told, and the connection.
    async fn spoil(&mut self, error: DbErr) {
        if let Some(batch) = self.batch.take() {
            // Only set by whoever took the batch.
            let _ = batch.outcome.set(Err(error));
        }
        self.close().await;
    }

    /// The next one has a new connection. What was not committed on this one never is.
    async fn close(&mut self) {
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::debug!(?error, "closing the database's connection failed");
        }
    }

    async fn commit(&mut self) {
        self.clean().await;
        if let Some(batch) = self.batch.take() {
            let result = self.execute("commit").await;
            let failed = result.is_err();
            // Only set by whoever took the batch.
            let _ = batch.outcome.set(result);
            if failed {
                // When a disk fails in a commit, SQLite may have ended the transaction or not.
                self.close().await;
            }
        }
    }
}

// === impl Turn ===

impl Turn {
    fn new(mut slot: OwnedMutexGuard<Slot>) -> (Self, Outcome) {
        let (begin, undo) = match &slot.batch {
            None => ("begin immediate; ", Undo::Batch),
            Some(batch) => {
                let (savepoint, begin) = Savepoint::next(batch.savepoint);
                (begin, Undo::Savepoint(savepoint))
            }
        };
        let outcome = Arc::clone(&slot.batch.get_or_insert_default().outcome);
        let connection = Mutex::new(slot.connection.take());
        (Self { begin, begun: AtomicBool::new(false), undo, ended: false, connection, slot }, outcome)
    }

    /// Executes a statement, and gives the rows it returns.
    pub(crate) async fn all(&self, statement: Statement) -> Result<Vec<SqliteRow>, DbErr> {
        let mut connection = self.connection.lock().await;
        let connection = connection.as_mut().ok_or_else(|| refused(sqlx::Error::WorkerCrashed))?;
        let query = sqlx::query_with(AssertSqlSafe(statement.sql), arguments(statement.values.map(|v| v.0))?);
        query.fetch_all(connection).await.map_err(refused)
    }

    /// Executes a statement; how many rows it changed, and the number of the last that was inserted.
    pub(crate) async fn execute(&self, statement: Statement) -> Result<(u64, i64), DbErr> {
        let mut connection = self.connection.lock().await;
        let connection = connection.as_mut().ok_or_else(|| refused(sqlx::Error::WorkerCrashed))?;
        let query = sqlx::query_with(AssertSqlSafe(statement.sql), arguments(statement.values.map(|v| v.0))?);
        let done = query.execute(connection).await.map_err(refused)?;
        Ok((done.rows_affected(), done.last_insert_rowid()))
    }

    /// What goes before the next statement.
    pub(crate) fn begin(&self) -> Option<&'static str> {
        (!self.begun.swap(true, Ordering::Relaxed)).then_some(self.begin)
    }

    fn keep(mut self) {
        self.end();
        if !*self.begun.get_mut() {
            return self.was_nothing();
        }
        if let (Undo::Savepoint(savepoint), Some(batch)) = (self.undo, &mut self.slot.batch) {
            batch.savepoint = Some(savepoint);
        }
    }

    /// With an error, everybody of the batch is undone.
    async fn undo(mut self, spoilt: Option<DbErr>) {
        self.end();
        if !*self.begun.get_mut() {
            return self.was_nothing();
        }
        let undo = self.undo;
        self.slot.undo(undo, spoilt).await;
    }

    fn end(&mut self) {
        self.ended = true;
        self.slot.connection = self.connection.get_mut().take();
    }

    /// It executed nothing.
    fn was_nothing(&mut self) {
        if matches!(self.undo, Undo::Batch)
            && let Some(batch) = self.slot.batch.take()
        {
            let _ = batch.outcome.set(Ok(()));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.end();
        if *self.begun.get_mut() {
            self.slot.left = Some(self.undo);
        } else {
            self.was_nothing();
        }
    }
}

fn refused(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error)))
}

/// The values of a statement, as SQLite's driver takes them.
fn arguments(values: Option<Vec<Value>>) -> Result<SqliteArguments, DbErr> {
    let mut arguments = SqliteArguments::default();
    for value in values.unwrap_or_default() {
        let added = match value {
            Value::BigInt(number) => arguments.add(number),
            Value::Int(number) => arguments.add(number),
            Value::String(text) => arguments.add(text),
            Value::Bytes(bytes) => arguments.add(bytes),
            other => return Err(DbErr::Custom(format!("no value of ours: {other:?}"))),
        };
        added.map_err(|error| DbErr::Custom(error.to_string()))?;
    }
    Ok(arguments)
}

/// Sees to it that what was begun is committed, also when nobody waits for it any more.
struct Finish(Option<Arc<Mutex<Slot>>>);

impl Finish {
    /// Waits for the commit of the batch, or does it.
    async fn now(mut self, outcome: &Outcome) {
        let Some(slot) = self.0.take() else { return };
        let outcome = Arc::clone(outcome);
        // In a task of its own, for a commit must not be cancelled in the middle.
        let task = tokio::spawn(async move {
            let mut slot = slot.lock_owned().await;
            if outcome.get().is_none() {
                slot.commit().await;
            }
        });
        if let Err(error) = task.await {
            tracing::error!(?error, "a commit ended early");
        }
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let (Some(slot), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) else { return };
        runtime.spawn(async move { slot.lock_owned().await.commit().await });
    }
}
