//! Writing only to the database that a process belongs to.
//!
//! A server's database can be dropped, rebuilt, or replaced by an older state under the processes that use it. What they remember, such as the numbers of
//! repositories, is wrong of it then. So each of their transactions looks first, and once more before its end if it took long.

use parking_lot::RwLock;

use crate::Db;
use crate::change::{self, Mark};
use crate::error::Fault;
use crate::sql::Run;

/// What a process expects of its database; nothing at first.
#[derive(Debug, Default)]
pub(crate) struct Guard(RwLock<Option<Expected>>);

#[derive(Clone, Debug)]
struct Expected {
    setting: &'static str,
    value: String,
    mark: Mark,
}

impl Guard {
    /// The first thing in a transaction on a server.
    pub(crate) async fn check(&self, run: &Run) -> Result<(), Fault> {
        let Some(expected) = self.0.read().clone() else { return Ok(()) };
        let state = change::state(run, expected.setting, &expected.mark).await?;
        let is_ours = state.reached && state.value.is_some_and(|value| value == expected.value);
        if is_ours { Ok(()) } else { Err(Fault::NotOurs) }
    }
}

impl Db {
    /// From now on, what would change a server's database fails unless the setting has this value and the mark is still there.
    pub fn belong(&self, setting: &'static str, value: &str, mark: &Mark) {
        let expected = Expected { setting, value: value.to_owned(), mark: mark.clone() };
        *self.inner.guard.0.write() = Some(expected);
    }
}
