//! SQLite's one connection that writes.
//!
//! Transactions take turns, and those that wait for their turn are committed together: each runs inside a savepoint of one
//! transaction, then queues up again to commit. Whoever's turn it is then finds that everybody who was waiting has run, and commits for
//! all. Alone, a transaction is committed at once; together, they share one fsync.

use std::fs::File;
use std::sync::{Arc, OnceLock};

use sea_orm::{
    DatabaseConnection, DatabaseTransaction, DbErr, SqliteTransactionMode, TransactionOptions, TransactionTrait as _,
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::error::{Class, Fault};
use crate::sql::{Run, apart};
use crate::transact::{Failed, in_commit};

/// The connection, and the lock that makes it the only one.
#[derive(Debug)]
pub(crate) struct Alone {
    /// Fair: whoever asks first gets it first. The batches depend on it.
    slot: Arc<Mutex<Slot>>,
    pool: DatabaseConnection,
    _lock: File,
}

/// What the one whose turn it is may use.
#[derive(Debug, Default)]
struct Slot {
    batch: Option<Batch>,
}

/// Transactions that are committed together.
#[derive(Debug)]
struct Batch {
    transaction: DatabaseTransaction,
    outcome: Outcome,
}

/// How the commit of a batch ended, for everybody in it.
type Outcome = Arc<OnceLock<Result<(), DbErr>>>;

/// A transaction that runs. Whoever drops one has it rolled back, and only then it is the next one's turn: savepoints are
/// counted by the driver, and somebody else's would be hit.
#[derive(Debug)]
pub(crate) struct Turn {
    // Dropped in this order.
    /// `None`: the first of its batch. Nobody else is in it yet, so that it is undone as a whole.
    savepoint: Option<DatabaseTransaction>,
    /// What it did is to be committed.
    kept: bool,
    slot: OwnedMutexGuard<Slot>,
}

const IMMEDIATE: TransactionOptions = TransactionOptions {
    isolation_level: None,
    access_mode: None,
    sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
};

impl Alone {
    pub(crate) fn new(pool: DatabaseConnection, lock: File) -> Self {
        Self { slot: Arc::default(), pool, _lock: lock }
    }

    pub(crate) async fn transact<T, F>(&self, work: &impl Fn(Run) -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let before = |error: DbErr| Failed::Before(error.into());
        let slot = Arc::clone(&self.slot).lock_owned().await;
        // Whoever is cancelled from here on may leave a batch that nobody else commits.
        let finish = Finish(Some(Arc::clone(&self.slot)));
        let (turn, outcome) = apart(Turn::begin(slot, self.pool.clone())).await.map_err(before)?;
        let turn = Arc::new(turn);
        let result = work(Run::in_turn(&turn)).await;
        let turn = Arc::into_inner(turn)
            .ok_or_else(|| Failed::Before(Fault::Corrupt("a transaction is still used after its end".to_owned())))?;
        let result = match result {
            Ok(done) => apart(turn.keep()).await.map(|()| done).map_err(Fault::from),
            Err(fault) => {
                // A full or failing disk makes SQLite undo the whole transaction, not only the savepoint.
                let spoilt = match &fault {
                    Fault::Sql(error) if matches!(fault.class(), Class::Full | Class::Lost) => Some(error.clone()),
                    _ => None,
                };
                match apart(turn.undo(spoilt)).await {
                    Ok(()) => Err(fault),
                    Err(error) => Err(error.into()),
                }
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
        let slot = Arc::clone(&self.slot).lock_owned().await;
        commit(slot).await;
        if let Err(error) = self.pool.close_by_ref().await {
            tracing::debug!(?error, "closing the database failed");
        }
    }
}

impl Turn {
    async fn begin(mut slot: OwnedMutexGuard<Slot>, pool: DatabaseConnection) -> Result<(Self, Outcome), DbErr> {
        let Some(batch) = &slot.batch else {
            let transaction = pool.begin_with_options(IMMEDIATE).await?;
            let outcome = Outcome::default();
            slot.batch = Some(Batch { transaction, outcome: Arc::clone(&outcome) });
            return Ok((Self { savepoint: None, kept: false, slot }, outcome));
        };
        let outcome = Arc::clone(&batch.outcome);
        match batch.transaction.begin().await {
            Ok(savepoint) => Ok((Self { savepoint: Some(savepoint), kept: false, slot }, outcome)),
            Err(error) => {
                spoil(&mut slot, &error);
                Err(error)
            }
        }
    }

    /// Where its statements are executed.
    pub(crate) fn executor(&self) -> Result<&DatabaseTransaction, DbErr> {
        let whole = || self.slot.batch.as_ref().map(|batch| &batch.transaction);
        self.savepoint.as_ref().or_else(whole).ok_or_else(|| DbErr::Custom("the transaction is over".to_owned()))
    }

    async fn keep(mut self) -> Result<(), DbErr> {
        self.kept = true;
        let Some(savepoint) = self.savepoint.take() else { return Ok(()) };
        let kept = savepoint.commit().await;
        if let Err(error) = &kept {
            spoil(&mut self.slot, error);
        }
        kept
    }

    /// With an error, everybody of the batch is undone.
    async fn undo(mut self, spoilt: Option<DbErr>) -> Result<(), DbErr> {
        let Some(savepoint) = self.savepoint.take() else {
            // The next one begins another.
            return match self.slot.batch.take() {
                Some(batch) => batch.transaction.rollback().await,
                None => Ok(()),
            };
        };
        let undone = savepoint.rollback().await;
        if let Some(error) = spoilt.as_ref().or_else(|| undone.as_ref().err()) {
            spoil(&mut self.slot, error);
        }
        self.kept = true;
        undone
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.kept && self.savepoint.is_none() {
            // Cancelled, and alone in its batch: dropped, that is rolled back.
            self.slot.batch = None;
        }
    }
}

/// Gives up a batch; everybody in it is told.
fn spoil(slot: &mut Slot, error: &DbErr) {
    if let Some(batch) = slot.batch.take() {
        // Only set here and in `commit`, each of which takes the batch.
        let _ = batch.outcome.set(Err(error.clone()));
        // Dropped, it is rolled back.
    }
}

async fn commit(mut slot: OwnedMutexGuard<Slot>) {
    if let Some(batch) = slot.batch.take() {
        let result = batch.transaction.commit().await;
        // Only set here and in `spoil`, each of which takes the batch.
        let _ = batch.outcome.set(result);
    }
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
            let slot = slot.lock_owned().await;
            if outcome.get().is_none() {
                commit(slot).await;
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
        runtime.spawn(async move { commit(slot.lock_owned().await).await });
    }
}
