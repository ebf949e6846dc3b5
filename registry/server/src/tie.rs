//! That store and database belong to each other.
//!
//! Both keep the same random name. Without that, a database that is new, restored from yesterday or simply another one would have everything
//! in the store taken for what a crash left behind, and removed; and a store that is not mounted would have every blob taken for lost. The
//! store also notes how far its database has come, to tell one that is older than it.
//!
//! Processes on a server look again and again: while the name is gone, because the database is being rebuilt, or it is older than they saw it,
//! because a backup was restored, they answer nothing, and what they remember of it is worth nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use blobs::{Store, StoreIdentity};
use db::{ChangeId, Db, Mark};
use parking_lot::Mutex;

/// The name of the setting that holds the store's name.
const SETTING: &str = "store";
/// And of the one that is there while the database is being rebuilt.
const REBUILD: &str = "rebuild";
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
        "the database is older than the store, or was: it is at change {database}, and lacks change {store}, which was seen; \
         `registry rebuild --merge` adds what it has missed"
    )]
    Older { store: i64, database: i64 },
}

/// What is to be judged.
#[derive(Clone, Debug, Default)]
struct Facts {
    store: Option<StoreIdentity>,
    database: Option<String>,
    /// How far the database has come.
    change: i64,
    /// Whether it has the change that the store has seen.
    reached: bool,
    store_is_empty: bool,
    database_is_empty: bool,
}

impl Facts {
    async fn of(db: &Db, store: &Store) -> anyhow::Result<Self> {
        let identity = store.identity().await.context("cannot read the store's name")?;
        let seen = identity.as_ref().map(mark_of).unwrap_or_default();
        let state = db.state(SETTING, &seen).await.context("cannot read the name of the database's store")?;
        Ok(Self {
            store: identity,
            database: state.value,
            change: state.latest.change.0,
            reached: state.reached,
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
            (Some(store), Some(_)) if !self.reached => {
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

    /// Whether a rebuild may begin.
    fn judge_rebuild(&self) -> Result<(), Untied> {
        match (&self.store, &self.database) {
            (Some(store), Some(database)) if store.id != *database => {
                Err(Untied::Other { store: store.id.clone(), database: database.clone() })
            }
            _ if self.store_is_empty && !self.database_is_empty => Err(Untied::Stranger),
            _ => Ok(()),
        }
    }
}

/// How far the store has seen its database come.
fn mark_of(identity: &StoreIdentity) -> Mark {
    Mark { change: ChangeId(identity.change), made: identity.made.clone() }
}

fn identity(id: String, mark: Mark) -> StoreIdentity {
    StoreIdentity::new(id, mark.change.0, mark.made)
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

/// Fails if a rebuild would bring together what does not belong together, or add to a database that nobody said it should.
///
/// The database has no name from here on, so that one that is not rebuilt to its end is not served. Processes that still run may remember
/// another state of it than it is in, and what one of them deletes meanwhile would be brought back: waits until they have noticed.
pub(crate) async fn begin_rebuild(db: &Db, store: &Store, merge: bool) -> anyhow::Result<Rebuild> {
    let facts = Facts::of(db, store).await?;
    facts.judge_rebuild()?;
    anyhow::ensure!(
        merge || facts.database_is_empty,
        "the database is not empty; --merge adds to it what only the store has"
    );
    db.remove_setting(SETTING).await?;
    let rebuild = Rebuild { name: random_name() };
    db.remove_setting(REBUILD).await?;
    db.setting_or_insert(REBUILD, &rebuild.name).await?;
    if !db.is_exclusive() {
        tracing::info!("waiting until processes that still run have noticed");
        tokio::time::sleep(NOTICED).await;
    }
    Ok(rebuild)
}

/// A rebuild that goes on.
#[derive(Debug)]
pub(crate) struct Rebuild {
    /// What tells it from one that was begun later.
    name: String,
}

impl Rebuild {
    /// From now on they belong to each other. The database gets its name last: whoever sees it finds the store as it should be.
    pub(crate) async fn end(self, db: &Db, store: &Store) -> anyhow::Result<()> {
        let state = db.state(REBUILD, &Mark::default()).await?;
        anyhow::ensure!(
            state.value.as_ref() == Some(&self.name),
            "another rebuild was begun meanwhile; when that has ended, all is well"
        );
        let id = store.identity().await?.map_or_else(random_name, |identity| identity.id);
        store.put_identity(&identity(id.clone(), state.latest)).await.context("cannot write the store's name")?;
        let named = db.setting_or_insert(SETTING, &id).await?;
        anyhow::ensure!(named == id, "somebody else has given the database a name");
        db.remove_setting(REBUILD).await?;
        Ok(())
    }
}

/// Two that are new belong to each other from now on.
async fn tie(db: &Db, store: &Store) -> anyhow::Result<()> {
    let ours = match store.identity().await? {
        Some(identity) => identity.id,
        None => random_name(),
    };
    let id = db.setting_or_insert(SETTING, &ours).await?;
    let latest = db.state(SETTING, &Mark::default()).await?.latest;
    store.put_identity(&identity(id, latest)).await.context("cannot write the store's name")
}

fn random_name() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

/// What a process that serves knows of it.
#[derive(Debug)]
pub(crate) struct Tie {
    /// The one process of a database need not look: nobody else can change it.
    exclusive: bool,
    id: String,
    /// When the process looked last and found it so.
    seen: Mutex<Instant>,
    gone: AtomicBool,
    /// How far the database was seen to have come.
    reached: Mutex<Mark>,
    /// The change that the store was told.
    told: Mutex<ChangeId>,
}

/// What a look shows.
#[derive(Debug)]
pub(crate) enum Look {
    /// All is as it was.
    Holds,
    /// The database is not the store's, or not as far as it was: nothing is to be answered, or remembered.
    Lost,
    /// It is the store's again. What is remembered of it is to be forgotten, and then [`Tie::accept`] called.
    Back(Back),
}

/// A database that is the store's again.
#[derive(Debug)]
pub(crate) struct Back {
    asked: Instant,
    latest: Mark,
    told: ChangeId,
}

impl Tie {
    /// Of two that were just found to belong together. Only this database is written to from now on.
    ///
    /// # Errors
    /// When they do not any more.
    pub(crate) async fn of(db: &Db, store: &Store) -> anyhow::Result<Self> {
        let tie = Self::untied(db, store).await?;
        anyhow::ensure!(!tie.id.is_empty(), Untied::Unknown);
        db.belong(SETTING, &tie.id, &tie.reached.lock());
        Ok(tie)
    }

    /// Of two that need not belong together yet.
    pub(crate) async fn untied(db: &Db, store: &Store) -> anyhow::Result<Self> {
        let told = store.identity().await?.as_ref().map(mark_of).unwrap_or_default();
        Ok(Self {
            exclusive: db.is_exclusive(),
            id: db.setting(SETTING).await?.unwrap_or_default(),
            seen: Mutex::new(Instant::now()),
            gone: AtomicBool::new(false),
            told: Mutex::new(told.change),
            reached: Mutex::new(told),
        })
    }

    /// Whether it is still so, as far as anybody can know.
    pub(crate) fn holds(&self) -> bool {
        self.exclusive || (!self.gone.load(Ordering::Acquire) && self.seen.lock().elapsed() < SEEN_MAX)
    }

    /// Looks.
    pub(crate) async fn look(&self, db: &Db, store: &Store) -> anyhow::Result<Look> {
        if self.exclusive {
            return Ok(Look::Holds);
        }
        // The answer may be as old as the question.
        let asked = Instant::now();
        let before = self.reached.lock().clone();
        let state = db.state(SETTING, &before).await?;
        if state.value.as_ref() != Some(&self.id) {
            return Ok(self.lose("the database is being rebuilt, or is another one now"));
        }
        if state.reached && self.holds() {
            self.set(asked, state.latest, db);
            return Ok(Look::Holds);
        }
        // What was seen before does not count: a rebuild may have come to other numbers, and a backup may be half restored. How far it
        // has to have come, the store says.
        let told = store.identity().await?.filter(|identity| identity.id == self.id).as_ref().map(mark_of);
        let Some(told) = told else {
            return Ok(self.lose("the store is another one now"));
        };
        let state = db.state(SETTING, &told).await?;
        if state.value.as_ref() != Some(&self.id) || !state.reached {
            let (store, database) = (told.change.0, state.latest.change.0);
            return Ok(self.lose(&Untied::Older { store, database }.to_string()));
        }
        Ok(Look::Back(Back { asked, latest: state.latest, told: told.change }))
    }

    fn lose(&self, why: &str) -> Look {
        if !self.gone.swap(true, Ordering::AcqRel) {
            tracing::error!("{why}; nothing is answered until it is back");
        }
        Look::Lost
    }

    /// Nothing is remembered of what was before.
    pub(crate) fn accept(&self, back: Back, db: &Db) {
        *self.told.lock() = back.told;
        self.set(back.asked, back.latest, db);
        self.gone.store(false, Ordering::Release);
        tracing::info!("the database is back");
    }

    fn set(&self, asked: Instant, latest: Mark, db: &Db) {
        db.belong(SETTING, &self.id, &latest);
        *self.reached.lock() = latest;
        *self.seen.lock() = asked;
    }

    /// Lets the store know how far the database was seen to have come.
    pub(crate) async fn note(&self, db: &Db, store: &Store) -> anyhow::Result<()> {
        let reached = match self.exclusive {
            true => db.state(SETTING, &Mark::default()).await?.latest,
            false => self.reached.lock().clone(),
        };
        let change = reached.change;
        if !self.holds() || change <= *self.told.lock() {
            return Ok(());
        }
        store.put_identity(&identity(self.id.clone(), reached)).await?;
        *self.told.lock() = change;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(store: Option<(&str, i64)>, database: Option<(&str, i64)>) -> Facts {
        Facts {
            store: store.map(|(id, change)| StoreIdentity::new(id.to_owned(), change, String::new())),
            database: database.map(|(id, _)| id.to_owned()),
            change: database.map_or(0, |(_, change)| change),
            reached: store.is_none_or(|(_, seen)| database.is_some_and(|(_, change)| change >= seen)),
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
        for facts in [facts(Some(("a", 5)), Some(("a", 4))), facts(Some(("a", 5)), None), facts(None, Some(("a", 4)))] {
            assert_eq!(facts.judge_rebuild(), Ok(()));
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
