//! The change log.

use oci::{Digest, RepositoryName, TagName};

use crate::error::Fault;
use crate::sql::{LIST_MAX, Row, Run, db_size, repeat, sql, values};
use crate::{ChangeId, Db, DbError, RepositoryId, RestoredTag};

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// A manifest is new in a repository.
    Push,
    /// A tag points to another manifest, or is new.
    Tag,
    /// A tag is gone.
    Untag,
    /// A manifest is gone. The changes of its tags come before.
    Delete,
}

/// An entry of the change log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its number.
    pub id: ChangeId,
    /// When, in ms since 1970, by the clock of the process that made it.
    pub at_ms: i64,
    /// What.
    pub kind: ChangeKind,
    /// Where.
    pub repository: RepositoryName,
    /// The tag, of `Tag` and `Untag`.
    pub tag: Option<TagName>,
    /// The manifest: what was pushed, pointed to from now on, no longer pointed to, or deleted.
    pub digest: Digest,
    /// What the tag pointed to before, of `Tag`.
    pub previous: Option<Digest>,
}

/// A point that a database had reached: its latest change then. One that does not have it any more was set back, or is another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The number; 0 before the first change.
    pub change: ChangeId,
    /// What tells it from a change that got the same number later: when it was made, and the manifest. Empty if that is not known.
    pub made: String,
}

/// A database at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// What the setting says.
    pub value: Option<String>,
    /// Whether it has the change that was asked for; of one that is known by its number alone, whether it has come as far.
    pub reached: bool,
    /// How far it has come.
    pub latest: Mark,
}

const PUSH: i64 = 1;
const TAG: i64 = 2;
const UNTAG: i64 = 3;
const DELETE: i64 = 4;

const CHANGES: &str = "select c.id, c.made_at, c.kind, r.name, c.tag, c.digest, c.previous \
                       from changes c join repositories r on r.id = c.repository_id";

impl ChangeKind {
    const fn number(self) -> i64 {
        match self {
            Self::Push => PUSH,
            Self::Tag => TAG,
            Self::Untag => UNTAG,
            Self::Delete => DELETE,
        }
    }

    fn of_number(number: i64) -> Result<Self, Fault> {
        match number {
            PUSH => Ok(Self::Push),
            TAG => Ok(Self::Tag),
            UNTAG => Ok(Self::Untag),
            DELETE => Ok(Self::Delete),
            other => Err(Fault::Corrupt(format!("{other} where the kind of a change should be"))),
        }
    }
}

impl Change {
    fn from_row(row: &Row) -> Result<Self, Fault> {
        Ok(Self {
            id: ChangeId(row.int(0)?),
            at_ms: row.int(1)?,
            kind: ChangeKind::of_number(row.int(2)?)?,
            repository: row.parse(3)?,
            tag: row.parse_option(4)?,
            digest: row.parse(5)?,
            previous: row.parse_option(6)?,
        })
    }
}

impl Db {
    /// Changes after a number, in the order of their numbers.
    ///
    /// On a server, a change can become visible after one with a higher number: transactions that ran at the same time. Whoever must
    /// not miss any reads the last seconds again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn changes(&self, after: ChangeId, limit: u64) -> Result<Vec<Change>, DbError> {
        let text = format!("{CHANGES} where c.id > ? order by c.id limit ?");
        let text = &text;
        self.read(|run: Run| async move {
            let run = &run;
            let rows = run.all(text.clone(), values![after.0, db_size(limit)]).await?;
            rows.iter().map(Change::from_row).collect()
        })
        .await
    }

    /// The highest number of a change; 0 when there was none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn latest_change(&self) -> Result<ChangeId, DbError> {
        self.read(|run: Run| async move {
            let row = run.one(sql!("select coalesce(max(id), 0) from changes"), Vec::new()).await?;
            row.map_or(Ok(ChangeId(0)), |row| row.int(0).map(ChangeId))
        })
        .await
    }

    /// What a setting says, and whether the database has come as far as it was seen once, of one moment.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn state(&self, setting: &str, before: &Mark) -> Result<State, DbError> {
        self.read(|run: Run| async move { state(&run, setting, before).await }).await
    }

    /// The changes of a tag, the latest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tag_history(
        &self,
        repository: RepositoryId,
        tag: &TagName,
        limit: u64,
    ) -> Result<Vec<Change>, DbError> {
        let text = format!("{CHANGES} where c.repository_id = ? and c.tag = ? order by c.id desc limit ?");
        let text = &text;
        self.read(|run: Run| async move {
            let run = &run;
            let rows = run.all(text.clone(), values![repository.0, tag.as_str(), db_size(limit)]).await?;
            rows.iter().map(Change::from_row).collect()
        })
        .await
    }
}

pub(crate) async fn state(run: &Run, setting: &str, before: &Mark) -> Result<State, Fault> {
    let text = sql!(
        "select s.content, b.made_at, b.digest, l.made_at, l.digest, l.id \
         from (select max(id) as id from changes) m left join changes l on l.id = m.id \
         left join changes b on b.id = ? left join settings s on s.name = ?"
    );
    let row = run.one(text, values![before.change.0, setting]).await?;
    let row = row.ok_or_else(|| Fault::Corrupt("a count has no row".to_owned()))?;
    let made = |column: usize| -> Result<Option<String>, Fault> {
        Ok(row.int_option(column)?.zip(row.text_option(column + 1)?).map(|(at_ms, digest)| format!("{at_ms} {digest}")))
    };
    let latest = Mark { change: ChangeId(row.int_option(5)?.unwrap_or(0)), made: made(3)?.unwrap_or_default() };
    let reached = match before.made.is_empty() {
        true => latest.change >= before.change,
        false => made(1)?.as_ref() == Some(&before.made),
    };
    Ok(State { value: row.text_option(0)?, reached, latest })
}

/// A change that is to be noted.
pub(crate) struct NewChange<'c> {
    pub(crate) kind: ChangeKind,
    pub(crate) repository: RepositoryId,
    pub(crate) tag: Option<&'c TagName>,
    pub(crate) digest: &'c str,
    pub(crate) previous: Option<&'c str>,
    pub(crate) now_ms: i64,
}

/// Notes a change. Of a tag, its row must be locked: then of two changes the later has the higher number.
pub(crate) async fn add(run: &Run, new: &NewChange<'_>) -> Result<ChangeId, Fault> {
    let text =
        sql!("insert into changes (made_at, kind, repository_id, tag, digest, previous) values (?, ?, ?, ?, ?, ?)");
    let values = values![
        new.now_ms,
        new.kind.number(),
        new.repository.0,
        new.tag.map(TagName::as_str),
        new.digest,
        new.previous
    ];
    let id = run.insert(text, values).await?;
    id.map(ChangeId).ok_or_else(|| Fault::Corrupt("a change got no number".to_owned()))
}

/// The number of the latest change of a tag; 0 when there was none.
pub(crate) async fn latest(run: &Run, repository: RepositoryId, tag: &TagName) -> Result<ChangeId, Fault> {
    let text = sql!("select id from changes where repository_id = ? and tag = ? order by id desc limit 1");
    let row = run.one(text, values![repository.0, tag.as_str()]).await?;
    row.map_or(Ok(ChangeId(0)), |row| row.int(0).map(ChangeId))
}

/// Notes that tags are gone which pointed to a manifest that is about to be deleted.
pub(crate) async fn add_untags(
    run: &Run,
    repository: RepositoryId,
    tags: &[TagName],
    digest: &str,
    now_ms: i64,
) -> Result<(), Fault> {
    for tags in tags.chunks(LIST_MAX) {
        let text = format!(
            "insert into changes (made_at, kind, repository_id, tag, digest) values {}",
            repeat("(?, ?, ?, ?, ?)", ", ", tags.len())
        );
        let rows = tags.iter().flat_map(|tag| values![now_ms, UNTAG, repository.0, tag.as_str(), digest]);
        run.execute(text, rows.collect()).await?;
    }
    Ok(())
}

/// Notes a change again that made or deleted a tag, under its old number. If something else has the number by now, the log goes without it.
pub(crate) async fn restore(run: &Run, repository: RepositoryId, restored: &RestoredTag) -> Result<(), Fault> {
    let text = sql!(
        "insert into changes (id, made_at, kind, repository_id, tag, digest) values (?, ?, ?, ?, ?, ?) \
         on conflict do nothing"
    );
    let values = values![
        restored.change.0,
        restored.at_ms,
        if restored.gone { UNTAG } else { TAG },
        repository.0,
        restored.tag.as_str(),
        restored.digest.to_string()
    ];
    run.insert_new(text, values).await.map(drop)
}
