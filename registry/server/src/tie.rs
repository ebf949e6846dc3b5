//! That store and database belong to each other.
//!
//! Both keep the same random name. Without that, a database that is new, restored from yesterday or simply another one would have everything
//! in the store taken for what a crash left behind, and removed; and a store that is not mounted would have every blob taken for lost. The
//! store also notes how far its database has come, to tell one that is older than it.
//!
//! Processes on a server look again and again: while the name is gone, because the database is being rebuilt, or it is older than they saw it,
//! because a backup was restored, they answer nothing, and what they remember of it is worth nothing.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use blobs::{Store, StoreIdentity};
use db::{Db, DbError};
use parking_lot::Mutex;

/// The name of the setting that holds the store's name.
const SETTING: &str = "store";
/// What was seen longer ago is not relied on.
const SEEN_MAX: Duration = Duration::from_secs(10);
/// After so long every process has noticed that the name is gone, or answers nothing because it could not look.
const NOTICED: Duration = Duration::from_secs(12);

/// Why store and database are not used together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Untied {
    #[error(
        "the database does not know what is in the store: it is new, another store's, or was not rebuilt to the end; \
         `registry rebuild` fills it from the store, with --merge if there is something in it"
    )]
    Unknown,
    #[error(
        "the store does not know the database: it is another one, or not mounted; if it is the right one, \
         `registry rebuild --merge` ties them together"
    )]
    Stranger,
    #[error("the database is that of store {database}, and this is store {store}")]
    Other { store: String, database: String },
    #[error(
        "the database is older than the store: it has come to change {database}, and there was a change {store}; \
         `registry rebuild --merge` adds what it has missed"
    )]
    Older { store: i64, database: i64 },
}

/// What is to be judged.
#[derive(Clone, Debug, Default)]
struct Facts {
    store: Option<StoreIdentity>,
    database: Option<String>,
    change: i64,
    store_is_empty: bool,
    database_is_empty: bool,
}

impl Facts {
    async fn of(db: &Db, store: &Store) -> anyhow::Result<Self> {
        Ok(Self {
            store: store.identity().await.context("cannot read the store's name")?,
            database: db.setting(SETTING).await.context("cannot read the name of the database's store")?,
            change: db.latest_change().await?.0,
            store_is_empty: store.is_empty().await?,
            database_is_empty: db.is_empty().await?,
        })
    }

    /// Whether they have to be tied first.
    fn judge(&self) -> Result<bool, Untied> {
        match (&self.store, &self.database) {
            (Some(store), Some(database)) if store.id != *database => {
                Err(Untied::Other { store: store.id.clone(), database: database.clone() })
            }
            (Some(store), Some(_)) if store.change > self.change => {
                Err(Untied::Older { store: store.change, database: self.change })
            }
            (Some(_), Some(_)) => Ok(false),
            (Some(_), None) => Err(Untied::Unknown),
            // New ones. A store that has a name may be served by somebody else already.
            (None, _) if self.store_is_empty && self.database_is_empty => Ok(true),
            (None, Some(_)) => Err(Untied::Stranger),
            // Neither was ever served by a version that gives names.
            (None, None) if !self.store_is_empty && !self.database_is_empty => Ok(true),
            (None, None) if self.database_is_empty => Err(Untied::Unknown),
            (None, None) => Err(Untied::Stranger),
        }
    }

    /// Whether a rebuild may begin, and whether processes that run may remember another state of the database than it is in.
    fn judge_rebuild(&self) -> Result<bool, Untied> {
        match (&self.store, &self.database) {
            (Some(store), Some(database)) if store.id != *database => {
                Err(Untied::Other { store: store.id.clone(), database: database.clone() })
            }
            _ if self.store_is_empty && !self.database_is_empty => Err(Untied::Stranger),
            (Some(store), Some(_)) if store.change > self.change => Ok(true),
            _ => Ok(self.database_is_empty || self.database.is_none()),
        }
    }
}

/// Fails unless they belong to each other; two that are new are tied.
pub(crate) async fn expect(db: &Db, store: &Store) -> anyhow::Result<()> {
    if Facts::of(db, store).await?.judge()? { tie(db, store).await } else { Ok(()) }
}

/// Fails unless they belong to each other; changes nothing.
pub(crate) async fn expect_to_read(db: &Db, store: &Store) -> anyhow::Result<()> {
    Facts::of(db, store).await?.judge()?;
    Ok(())
}

/// Fails if a rebuild would bring together what does not belong together, or add to a database that nobody said it should. What processes that
/// still run remember of one that was lost or set back would be wrong of the one that becomes of it: waits until they have noticed.
pub(crate) async fn expect_for_rebuild(db: &Db, store: &Store, merge: bool) -> anyhow::Result<()> {
    let facts = Facts::of(db, store).await?;
    let is_remembered_otherwise = facts.judge_rebuild()?;
    anyhow::ensure!(
        merge || facts.database_is_empty,
        "the database is not empty; --merge adds to it what only the store has"
    );
    if is_remembered_otherwise && !db.is_exclusive() {
        db.remove_setting(SETTING).await?;
        tracing::info!("waiting until processes that still run have noticed");
        tokio::time::sleep(NOTICED).await;
    }
    Ok(())
}

/// From now on they belong to each other, and the store has seen what the database knows.
pub(crate) async fn tie(db: &Db, store: &Store) -> anyhow::Result<()> {
    let ours = match store.identity().await? {
        Some(identity) => identity.id,
        None => hex::encode(rand::random::<[u8; 16]>()),
    };
    let id = db.setting_or_insert(SETTING, &ours).await?;
    let change = db.latest_change().await?.0;
    store.put_identity(&StoreIdentity::new(id, change)).await.context("cannot write the store's name")
}

/// What a process that serves knows of it.
#[derive(Debug)]
pub(crate) struct Tie {
    /// The one process of a database need not look: nobody else can change it.
    exclusive: bool,
    id: String,
    seen: Mutex<Instant>,
    gone: AtomicBool,
    /// The latest change that the database was seen to have.
    change: AtomicI64,
    /// The one that the store was told.
    noted: AtomicI64,
}

impl Tie {
    /// Of two that were just found to belong together.
    pub(crate) async fn of(db: &Db, store: &Store) -> anyhow::Result<Self> {
        let noted = store.identity().await?.map_or(0, |identity| identity.change);
        Ok(Self {
            exclusive: db.is_exclusive(),
            id: db.setting(SETTING).await?.unwrap_or_default(),
            seen: Mutex::new(Instant::now()),
            gone: AtomicBool::new(false),
            change: AtomicI64::new(noted),
            noted: AtomicI64::new(noted),
        })
    }

    /// Whether it is still so, as far as anybody can know.
    pub(crate) fn holds(&self) -> bool {
        self.exclusive || (!self.gone.load(Ordering::Acquire) && self.seen.lock().elapsed() < SEEN_MAX)
    }

    /// Looks. What is remembered of the database is forgotten before it counts again.
    pub(crate) async fn look(&self, db: &Db, forget: impl FnOnce()) -> Result<(), DbError> {
        let is_ours = db.setting(SETTING).await?.is_some_and(|id| id == self.id);
        let change = db.latest_change().await?.0;
        if !is_ours {
            self.lose(&"the database is being rebuilt, or is another one now");
            // Whatever it will have come to when it is back.
            self.change.store(0, Ordering::Release);
            self.noted.store(0, Ordering::Release);
            return Ok(());
        }
        let before = self.change.load(Ordering::Acquire);
        if change < before {
            self.lose(&Untied::Older { store: before, database: change });
            return Ok(());
        }
        if !self.holds() {
            forget();
            tracing::info!("the database is back");
        }
        self.change.store(change, Ordering::Release);
        *self.seen.lock() = Instant::now();
        self.gone.store(false, Ordering::Release);
        Ok(())
    }

    fn lose(&self, why: &dyn Display) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            tracing::error!("{why}; nothing is answered until it is back");
        }
    }

    /// Lets the store know how far the database has come.
    pub(crate) async fn note(&self, db: &Db, store: &Store) -> anyhow::Result<()> {
        let change = db.latest_change().await?.0;
        if !self.holds() || change <= self.noted.load(Ordering::Acquire) {
            return Ok(());
        }
        store.put_identity(&StoreIdentity::new(self.id.clone(), change)).await?;
        self.noted.store(change, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(store: Option<(&str, i64)>, database: Option<(&str, i64)>) -> Facts {
        Facts {
            store: store.map(|(id, change)| StoreIdentity::new(id.to_owned(), change)),
            database: database.map(|(id, _)| id.to_owned()),
            change: database.map_or(0, |(_, change)| change),
            ..Facts::default()
        }
    }

    #[test]
    fn two_that_do_not_belong_together_are_told_apart() {
        assert_eq!(facts(Some(("a", 5)), Some(("a", 5))).judge(), Ok(false));
        assert_eq!(facts(Some(("a", 5)), Some(("a", 9))).judge(), Ok(false));
        assert_eq!(facts(Some(("a", 5)), Some(("a", 4))).judge(), Err(Untied::Older { store: 5, database: 4 }));
        assert_eq!(facts(Some(("a", 5)), None).judge(), Err(Untied::Unknown));
        assert_eq!(facts(None, Some(("a", 5))).judge(), Err(Untied::Stranger));
        let other = Untied::Other { store: "a".to_owned(), database: "b".to_owned() };
        assert_eq!(facts(Some(("a", 5)), Some(("b", 5))).judge(), Err(other.clone()));
        assert_eq!(facts(Some(("a", 5)), Some(("b", 5))).judge_rebuild(), Err(other));
        // Yesterday's database, one that was broken off, and one whose store lost its name, are what a rebuild is for.
        let older = facts(Some(("a", 5)), Some(("a", 4)));
        let broken_off = Facts { database_is_empty: true, ..facts(Some(("a", 5)), None) };
        let nameless = facts(None, Some(("a", 4)));
        for (facts, is_remembered_otherwise) in [(older, true), (broken_off, true), (nameless, false)] {
            assert_eq!(facts.judge_rebuild(), Ok(is_remembered_otherwise));
        }
    }

    #[test]
    fn what_is_new_is_tied() {
        let both = |store_is_empty, database_is_empty| Facts { store_is_empty, database_is_empty, ..facts(None, None) };
        assert_eq!(both(true, true).judge(), Ok(true));
        let named =
            |database| Facts { store_is_empty: true, database_is_empty: true, ..facts(Some(("a", 0)), database) };
        assert_eq!(named(None).judge(), Err(Untied::Unknown));
        assert!(matches!(named(Some(("b", 0))).judge(), Err(Untied::Other { .. })));
        assert_eq!(both(false, false).judge(), Ok(true));
        assert_eq!(both(false, true).judge(), Err(Untied::Unknown));
        assert_eq!(both(true, false).judge(), Err(Untied::Stranger));
        assert_eq!(both(true, false).judge_rebuild(), Err(Untied::Stranger));
        // Tied, but the process died in between.
        let begun = Facts { store_is_empty: true, database_is_empty: true, ..facts(None, Some(("a", 0))) };
        assert_eq!(begun.judge(), Ok(true));
    }
}
