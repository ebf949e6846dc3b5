//! Running transactions, and running them again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sea_orm::{DatabaseTransaction, TransactionTrait as _};
use tracing::debug;

use crate::connect::Writer;
use crate::error::{Class, Fault};
use crate::sql::{Run, apart};
use crate::{Db, DbError};

/// Attempts of a transaction that others get in the way of.
const ATTEMPTS_MAX: u32 = 12;
/// Attempts of one whose connection breaks. After a restart of the server each connection of the pool may be a broken one, but for those
/// that were tried before they were handed out.
const LOST_ATTEMPTS_MAX: u32 = 3;
/// Longest pause before the second attempt; doubles with each.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// A transaction has so many times the time of a statement.
const STATEMENTS_PER_TRANSACTION: u32 = 4;

/// Of what took longer it is not certain that the database is still the one it began with.
const LONG: Duration = Duration::from_secs(3);

/// How often it was tried, and why it failed.
#[derive(Default)]
struct Attempts {
    conflicts: u32,
    lost: u32,
}

/// Whether a transaction that fails may have been committed.
pub(crate) enum Failed {
    /// It was not.
    Before(Fault),
    /// Nobody knows.
    InCommit(Fault),
}

impl Attempts {
    /// Waits before the next attempt, if there shall be one.
    async fn next(&mut self, fault: Fault) -> Result<(), DbError> {
        let more = match fault.class() {
            Class::Conflict => {
                self.conflicts += 1;
                self.conflicts < ATTEMPTS_MAX
            }
            Class::Lost => {
                self.lost += 1;
                self.lost < LOST_ATTEMPTS_MAX
            }
            Class::Full | Class::Final => false,
        };
        if !more {
            return Err(fault.into());
        }
        let doubled = PAUSE_MIN.saturating_mul(1 << (self.conflicts + self.lost).min(10)).min(PAUSE_MAX);
        // Two that met once shall not meet again.
        let pause = doubled.mul_f64(rand::random_range(0.1..1.0));
        debug!(?fault, conflicts = self.conflicts, lost = self.lost, ?pause, "transaction is tried again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Db {
    /// Runs `work` in a transaction and commits when it returns `Ok`. It is run again when another transaction was in the way, or the
    /// connection broke before the commit: so it must do nothing but execute statements.
    pub(crate) async fn transact<T, F>(&self, work: impl Fn(Run) -> F) -> Result<T, DbError>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let deadline = self.inner.acquire_timeout + self.inner.statement_timeout * STATEMENTS_PER_TRANSACTION;
        let mut attempts = Attempts::default();
        loop {
            let attempt = async {
                match &self.inner.writer {
                    Writer::Alone(writer) => Some(writer.transact(&work).await),
                    Writer::Pool => Some(self.attempt(&work).await),
                    Writer::Nobody => None,
                }
            };
            let fault = match tokio::time::timeout(deadline, attempt).await {
                Ok(None) => return Err(DbError::ReadOnly),
                Ok(Some(Ok(done))) => return Ok(done),
                Ok(Some(Err(Failed::Before(fault)))) => fault,
                Ok(Some(Err(Failed::InCommit(fault)))) => return Err(DbError::InDoubt(Box::new(fault.into()))),
                Err(_) => return Err(DbError::TimedOut),
            };
            attempts.next(fault).await?;
        }
    }

    async fn attempt<T, F>(&self, work: &impl Fn(Run) -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let pool = self.inner.pool.clone();
        let begun = apart(async move { pool.begin().await }).await;
        let transaction = Arc::new(begun.map_err(|error| Failed::Before(error.into()))?);
        let run = || Run::inside(&transaction, self.inner.dialect);
        let result = async {
            self.inner.guard.check(&run()).await?;
            let begun = Instant::now();
            let done = work(run()).await?;
            if begun.elapsed() > LONG {
                self.inner.guard.check(&run()).await?;
            }
            Ok::<T, Fault>(done)
        };
        let result = result.await;
        let transaction = Arc::into_inner(transaction)
            .ok_or_else(|| Failed::Before(Fault::Corrupt("a transaction is still used after its end".to_owned())))?;
        match result {
            Ok(done) => match apart(transaction.commit()).await {
                Ok(()) => Ok(done),
                Err(error) => Err(in_commit(error.into())),
            },
            Err(fault) => {
                roll_back(transaction, &fault).await;
                Err(Failed::Before(fault))
            }
        }
    }

    /// Reads outside a transaction: each statement sees what was committed when it began.
    pub(crate) async fn read<T, F>(&self, work: impl Fn(Run) -> F) -> Result<T, DbError>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let deadline = self.inner.acquire_timeout + self.inner.statement_timeout;
        let mut attempts = Attempts::default();
        loop {
            let run = Run::on(&self.inner.pool, self.inner.dialect);
            let fault = match tokio::time::timeout(deadline, work(run)).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(fault)) => fault,
                Err(_) => return Err(DbError::TimedOut),
            };
            attempts.next(fault).await?;
        }
    }
}

/// A commit that was refused was not done; one that was not answered may have been.
pub(crate) fn in_commit(fault: Fault) -> Failed {
    match fault.class() {
        Class::Conflict => Failed::Before(fault),
        _ => Failed::InCommit(fault),
    }
}

/// On a broken connection there is nothing to roll back.
async fn roll_back(transaction: DatabaseTransaction, fault: &Fault) {
    if let Err(error) = apart(transaction.rollback()).await {
        debug!(?error, ?fault, "rollback failed");
    }
}
