//! One text for three databases.
//!
//! Statements are written once, in the words of PostgreSQL with `?` for values, and rendered for each database when they are first
//! used. What differs in more than words has a text for each. SeaORM's builder is not used for them: it has no share lock that
//! MariaDB knows, and building a statement costs more than sending it to SQLite.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult, RuntimeErr, Statement,
    TryGetable, Value,
};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::alone::Turn;
use crate::error::Fault;

/// Which SQL a database speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    /// MariaDB, too.
    MySql,
    Postgres,
}

/// A statement's text, in all dialects.
pub(crate) struct Sql {
    sqlite: (&'static str, OnceLock<String>),
    mysql: (&'static str, OnceLock<String>),
    postgres: (&'static str, OnceLock<String>),
}

/// A [`Sql`] that is rendered once: `sql!("…")`, or `sql!(standard: "…", mysql: "…")` where MySQL has other words.
macro_rules! sql {
    (standard: $standard:expr, mysql: $mysql:expr $(,)?) => {{
        static SQL: $crate::sql::Sql = $crate::sql::Sql::new($standard, $mysql);
        &SQL
    }};
    ($text:expr) => {
        sql!(standard: $text, mysql: $text)
    };
}
pub(crate) use sql;

/// The values of a statement, each as the database's type: `values![id, name]`.
macro_rules! values {
    ($($value:expr),* $(,)?) => {
        vec![$(sea_orm::Value::from($value)),*]
    };
}
pub(crate) use values;

/// Rows of one `insert`, or elements of one `in`. SQLite takes 32,766 values in a statement, the others 65,535.
pub(crate) const LIST_MAX: usize = 512;

/// A row of a result; columns are named by their place.
pub(crate) enum Row {
    Orm(QueryResult),
    /// Of a transaction on SQLite.
    Sqlite(SqliteRow),
}

/// A connection, or a transaction on one.
///
/// Owned, not borrowed: a closure that takes a reference and returns a future cannot be shown to be `Send`.
pub(crate) struct Run {
    to: Executor,
    dialect: Dialect,
}

/// What became of a statement that changes rows.
#[derive(Default)]
struct Done {
    rows: u64,
    /// The automatic number of the last row that was inserted; 0 where a statement itself has to ask for it.
    last_id: i64,
}

#[derive(Clone)]
enum Executor {
    Pool(DatabaseConnection),
    Transaction(Arc<DatabaseTransaction>),
    /// SQLite's.
    Turn(Arc<Turn>),
}

// === impl Dialect ===

impl Dialect {
    const fn backend(self) -> DbBackend {
        match self {
            Self::Sqlite => DbBackend::Sqlite,
            Self::MySql => DbBackend::MySql,
            Self::Postgres => DbBackend::Postgres,
        }
    }

    /// A text with `?` for values, in the words of this database.
    pub(crate) fn render(self, text: &str) -> String {
        match self {
            // One writer at a time: nothing is locked row by row.
            Self::Sqlite => [" for update", " for share", " skip locked"]
                .iter()
                .fold(text.to_owned(), |text, lock| text.replace(lock, "")),
            Self::MySql => text
                .replace(" for share", " lock in share mode")
                .replace(" as bigint)", " as signed)")
                // Refused as a duplicate; see `Run::insert`.
                .replace(" on conflict do nothing", ""),
            Self::Postgres => {
                let mut number = 0;
                let mut numbered = String::with_capacity(text.len() + 16);
                for part in text.split_inclusive('?') {
                    match part.strip_suffix('?') {
                        Some(before) => {
                            number += 1;
                            numbered.push_str(before);
                            numbered.push('$');
                            numbered.push_str(&number.to_string());
                        }
                        None => numbered.push_str(part),
                    }
                }
                numbered
            }
        }
    }
}

// === impl Sql ===

impl Sql {
    pub(crate) const fn new(standard: &'static str, mysql: &'static str) -> Self {
        Self {
            sqlite: (standard, OnceLock::new()),
            mysql: (mysql, OnceLock::new()),
            postgres: (standard, OnceLock::new()),
        }
    }

    fn text(&self, dialect: Dialect) -> &str {
        let (text, rendered) = match dialect {
            Dialect::Sqlite => &self.sqlite,
            Dialect::MySql => &self.mysql,
            Dialect::Postgres => &self.postgres,
        };
        rendered.get_or_init(|| dialect.render(text))
    }
}

/// What can be executed: a [`Sql`], or a text that was made for its number of values.
pub(crate) trait Text {
    fn for_dialect(&self, dialect: Dialect) -> Cow<'_, str>;
}

impl Text for &Sql {
    fn for_dialect(&self, dialect: Dialect) -> Cow<'_, str> {
        Cow::Borrowed(self.text(dialect))
    }
}

impl Text for String {
    fn for_dialect(&self, dialect: Dialect) -> Cow<'_, str> {
        Cow::Owned(dialect.render(self))
    }
}

/// `(?, ?, …)` for `in`.
pub(crate) fn marks(count: usize) -> String {
    format!("({})", vec!["?"; count].join(", "))
}

/// `text` repeated with something between.
pub(crate) fn repeat(text: &str, between: &str, count: usize) -> String {
    vec![text; count].join(between)
}

/// Fills a list of values for `in` up to a power of two by repeating its last, so that a connection sees few different statements
/// and has them prepared.
pub(crate) fn padded<T: Clone>(mut list: Vec<T>) -> Vec<T> {
    if let Some(last) = list.last().cloned() {
        list.resize(list.len().next_power_of_two(), last);
    }
    list
}

// === impl Row ===

impl Row {
    fn get<T>(&self, column: usize) -> Result<T, Fault>
    where
        T: TryGetable + for<'r> sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
    {
        match self {
            Self::Orm(row) => Ok(row.try_get_by_index(column)?),
            Self::Sqlite(row) => row.try_get(column).map_err(|error| Fault::Corrupt(error.to_string())),
        }
    }

    pub(crate) fn int(&self, column: usize) -> Result<i64, Fault> {
        self.get(column)
    }

    pub(crate) fn int_option(&self, column: usize) -> Result<Option<i64>, Fault> {
        self.get(column)
    }

    pub(crate) fn text(&self, column: usize) -> Result<String, Fault> {
        self.get(column)
    }

    pub(crate) fn text_option(&self, column: usize) -> Result<Option<String>, Fault> {
        self.get(column)
    }

    pub(crate) fn bytes(&self, column: usize) -> Result<Bytes, Fault> {
        Ok(Bytes::from(self.get::<Vec<u8>>(column)?))
    }

    /// A number that is never negative.
    pub(crate) fn size(&self, column: usize) -> Result<u64, Fault> {
        let number = self.int(column)?;
        u64::try_from(number).map_err(|_| Fault::Corrupt(format!("{number} where a size should be")))
    }

    /// A text that was written from a value of this type.
    pub(crate) fn parse<T: std::str::FromStr>(&self, column: usize) -> Result<T, Fault> {
        parse(&self.text(column)?)
    }

    pub(crate) fn parse_option<T: std::str::FromStr>(&self, column: usize) -> Result<Option<T>, Fault> {
        self.text_option(column)?.as_deref().map(parse).transpose()
    }
}

/// A text of a column that was written from a value of this type.
pub(crate) fn parse<T: std::str::FromStr>(text: &str) -> Result<T, Fault> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        Fault::Corrupt(format!("{shown:?} where a {} should be", std::any::type_name::<T>()))
    })
}

/// A size as the databases have it. No store holds more than 2^63 bytes.
pub(crate) fn db_size(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

// === impl Run ===

impl Run {
    /// Outside a transaction.
    pub(crate) fn on(pool: &DatabaseConnection, dialect: Dialect) -> Self {
        Self { to: Executor::Pool(pool.clone()), dialect }
    }

    /// Inside one.
    pub(crate) fn inside(transaction: &Arc<DatabaseTransaction>, dialect: Dialect) -> Self {
        Self { to: Executor::Transaction(Arc::clone(transaction)), dialect }
    }

    /// Inside one of SQLite's.
    pub(crate) fn in_turn(turn: &Arc<Turn>) -> Self {
        Self { to: Executor::Turn(Arc::clone(turn)), dialect: Dialect::Sqlite }
    }

    async fn query_all(&self, mut statement: Statement) -> Result<Vec<Row>, DbErr> {
        let (to, lasts) = (self.to.clone(), self.lasts(&mut statement));
        let query = async move {
            let rows = match &to {
                Executor::Pool(pool) => pool.query_all_raw(statement).await?,
                Executor::Transaction(transaction) => transaction.query_all_raw(statement).await?,
                Executor::Turn(turn) => return Ok(turn.all(statement).await?.into_iter().map(Row::Sqlite).collect()),
            };
            Ok(rows.into_iter().map(Row::Orm).collect())
        };
        if lasts { query.await } else { apart(query).await }
    }

    async fn query_one(&self, mut statement: Statement) -> Result<Option<Row>, DbErr> {
        let (to, lasts) = (self.to.clone(), self.lasts(&mut statement));
        let query = async move {
            let row = match &to {
                Executor::Pool(pool) => pool.query_one_raw(statement).await?,
                Executor::Transaction(transaction) => transaction.query_one_raw(statement).await?,
                Executor::Turn(turn) => return Ok(turn.all(statement).await?.into_iter().next().map(Row::Sqlite)),
            };
            Ok(row.map(Row::Orm))
        };
        if lasts { query.await } else { apart(query).await }
    }

    async fn execute_one(&self, mut statement: Statement) -> Result<Done, DbErr> {
        let (to, lasts, dialect) = (self.to.clone(), self.lasts(&mut statement), self.dialect);
        let execute = async move {
            let done = match &to {
                Executor::Pool(pool) => pool.execute_raw(statement).await?,
                Executor::Transaction(transaction) => transaction.execute_raw(statement).await?,
                Executor::Turn(turn) if lasts => {
                    let (rows, last_id) = turn.execute(statement).await?;
                    return Ok(Done { rows, last_id });
                }
                Executor::Turn(turn) => {
                    // The driver would also count what was changed before the transaction began.
                    statement.sql.push_str("; select changes(), last_insert_rowid()");
                    let rows = turn.all(statement).await?;
                    let number = |column: usize| match rows.last() {
                        Some(row) => row.try_get::<i64, _>(column).map_err(|error| DbErr::Custom(error.to_string())),
                        None => Err(DbErr::Custom("a statement did not say what it did".to_owned())),
                    };
                    return Ok(Done { rows: number(0)?.unsigned_abs(), last_id: number(1)? });
                }
            };
            // PostgreSQL's driver has no such number and panics.
            let numbered = dialect != Dialect::Postgres;
            let last_id = if numbered { i64::try_from(done.last_insert_id()).unwrap_or_default() } else { 0 };
            Ok(Done { rows: done.rows_affected(), last_id })
        };
        if lasts { execute.await } else { apart(execute).await }
    }

    /// Whether a statement may be given up at any point. SQLite's may, for what follows on the connection waits for its end; but not one
    /// that begins a transaction, or nobody would know whether it did.
    fn lasts(&self, statement: &mut Statement) -> bool {
        if let Executor::Turn(turn) = &self.to
            && let Some(begin) = turn.begin()
        {
            statement.sql.insert_str(0, begin);
            return false;
        }
        self.dialect == Dialect::Sqlite
    }

    pub(crate) const fn dialect(&self) -> Dialect {
        self.dialect
    }

    fn statement(&self, text: &impl Text, values: Vec<Value>) -> Statement {
        Statement::from_sql_and_values(self.dialect.backend(), text.for_dialect(self.dialect), values)
    }

    pub(crate) async fn all(&self, text: impl Text + Send, values: Vec<Value>) -> Result<Vec<Row>, Fault> {
        let statement = self.statement(&text, values);
        Ok(self.query_all(statement).await?)
    }

    pub(crate) async fn one(&self, text: impl Text + Send, values: Vec<Value>) -> Result<Option<Row>, Fault> {
        let statement = self.statement(&text, values);
        Ok(self.query_one(statement).await?)
    }

    /// Returns how many rows were changed or, with MySQL too, matched.
    pub(crate) async fn execute(&self, text: impl Text + Send, values: Vec<Value>) -> Result<u64, Fault> {
        let statement = self.statement(&text, values);
        Ok(self.execute_one(statement).await?.rows)
    }

    /// Executes an `insert … on conflict do nothing` of one row; whether it was inserted.
    pub(crate) async fn insert_new(&self, text: impl Text + Send, values: Vec<Value>) -> Result<bool, Fault> {
        match self.execute(text, values).await {
            Ok(rows) => Ok(rows > 0),
            // Its `insert ignore` would also ignore values that do not fit.
            Err(Fault::Sql(error)) if self.dialect == Dialect::MySql && is_mysql_duplicate(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Executes an `insert … [on conflict do nothing]` of one row with an automatic number; the number, if it was inserted.
    pub(crate) async fn insert(&self, text: &Sql, values: Vec<Value>) -> Result<Option<i64>, Fault> {
        if self.dialect == Dialect::Postgres {
            let text = format!("{} returning id", text.text(self.dialect));
            let statement = Statement::from_sql_and_values(DbBackend::Postgres, text, values);
            return self.query_one(statement).await?.map(|row| row.int(0)).transpose();
        }
        let statement = self.statement(&text, values);
        match self.execute_one(statement).await {
            Ok(done) if done.rows > 0 => Ok(Some(done.last_id)),
            Ok(_) => Ok(None),
            Err(error) if self.dialect == Dialect::MySql && is_mysql_duplicate(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Lets something be done to its end, whether somebody waits for it or not.
///
/// A client that goes away, or a time that is up, drops the future that works for it, wherever that stands. The drivers of the servers lose count
/// then of which answer belongs to which statement, and SQLite's of its savepoints.
pub(crate) async fn apart<T: Send + 'static>(
    work: impl Future<Output = Result<T, DbErr>> + Send + 'static,
) -> Result<T, DbErr> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(DbErr::Conn(RuntimeErr::Internal("the process ends".to_owned()))),
        },
    }
}

/// `ER_DUP_ENTRY`. Only the statement was undone, the transaction goes on.
fn is_mysql_duplicate(error: &DbErr) -> bool {
    const ER_DUP_ENTRY: u16 = 1062;
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) = error else {
        return false;
    };
    let refused = error.as_database_error().and_then(|error| error.try_downcast_ref::<sea_orm::SqlxMySqlError>());
    refused.is_some_and(|error| error.number() == ER_DUP_ENTRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_each_database() {
        let text = "select cast(sum(a) as bigint) from t where b = ? and c in (?, ?) order by b for update skip locked";
        assert_eq!(
            Dialect::Sqlite.render(text),
            "select cast(sum(a) as bigint) from t where b = ? and c in (?, ?) order by b"
        );
        assert_eq!(
            Dialect::MySql.render(text),
            "select cast(sum(a) as signed) from t where b = ? and c in (?, ?) order by b for update skip locked"
        );
        assert_eq!(
            Dialect::Postgres.render(text),
            "select cast(sum(a) as bigint) from t where b = $1 and c in ($2, $3) order by b for update skip locked"
        );
        assert_eq!(Dialect::MySql.render("select 1 for share"), "select 1 lock in share mode");
        assert_eq!(
            Dialect::MySql.render("insert into t values (?) on conflict do nothing"),
            "insert into t values (?)"
        );
    }

    #[test]
    fn lists() {
        assert_eq!(marks(3), "(?, ?, ?)");
        assert_eq!(repeat("(?, ?)", ", ", 2), "(?, ?), (?, ?)");
        assert_eq!(padded(vec![1, 2, 3]), [1, 2, 3, 3]);
        assert_eq!(padded(vec![1, 2]), [1, 2]);
        assert!(padded(Vec::<i32>::new()).is_empty());
    }
}
