//! Writing only to the database that a process belongs to.
//!
//! A server's database can be dropped, rebuilt, or replaced by an older state under the processes that use it. What they remember, such as the numbers of
//! repositories, is wrong of it then. So each of their transactions looks first, unless another has just done so, and once more before its end if it
//! took long.

use std::time::{Duration, Instant};

use parking_lot::RwLock;

use crate::Db;
use crate::change::{self, Mark};
use crate::error::Fault;
use crate::sql::Run;

/// What a process expects of its database; nothing at first.
#[derive(Debug, Default)]
pub(crate) struct Guard(RwLock<Option<Expected>>);

/// What was seen by any transaction is good for so long. A rebuild waits many times longer before it writes.
const FRESH: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
struct Expected {
    /// When it was found to be so.
    seen: Option<Instant>,
    setting: &'static str,
    value: String,
    mark: Mark,
}

impl Guard {
    /// The first thing in a transaction on a server.
    pub(crate) async fn check(&self, run: &Run) -> Result<(), Fault> {
        let Some(expected) = self.0.read().clone() else { return Ok(()) };
        if expected.seen.is_some_and(|seen| seen.elapsed() < FRESH) {
            return Ok(());
        }
        // The answer may be as old as the question.
        let asked = Instant::now();
        let state = change::state(run, expected.setting, &expected.mark).await?;
        let is_ours = state.reached && state.value.is_some_and(|value| value == expected.value);
        if !is_ours {
            return Err(Fault::NotOurs);
        }
        // Unless something else is expected by now.
        if let Some(now) =
            self.0.write().as_mut().filter(|now| now.mark == expected.mark && now.value == expected.value)
        {
            now.seen = Some(asked);
        }
        Ok(())
    }
}

impl Db {
    /// From now on, what would change a server's database fails unless the setting has this value and the mark is still there.
    pub fn belong(&self, setting: &'static str, value: &str, mark: &Mark) {
        let expected = Expected { seen: None, setting, value: value.to_owned(), mark: mark.clone() };
        *self.inner.guard.0.write() = Some(expected);
    }
}
