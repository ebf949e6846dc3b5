//! What `registry` does besides serving: looking after store and database while nobody serves from them, or beside it.

pub(crate) mod fsck;
pub(crate) mod gc;
pub(crate) mod rebuild;

pub use fsck::FsckArgs;
pub use gc::GcArgs;
pub use rebuild::RebuildArgs;

use std::io::Write as _;

/// One line of output; a reader that goes away early is no failure.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
