//! The wget-like command: downloads a URL through the host's dfdaemon, or with the same engine in its own process.
//!
//! A command line is taken apart by the table of [`flags`] ([`args`]), checked as a whole ([`options`]), and carried
//! out ([`run()`]): one file ([`download`]) or a folder ([`recursive`]), by a [`backend::Backend`].
//!
//! A warm download is a matter of milliseconds, so nothing is made before it is needed: no clap command, no regular
//! expression, no TLS roots, no engine, no bar, no thread.
//!
//! **Invariants.** An output is complete and verified or what it was before. Whatever ends a download (an error, a
//! signal, the timeout) drops its future, and dropping removes what was temporary. A killed dfget may leave a
//! `.dfget-*.part` beside the output; nothing reads it.
//!
//! **Not here:** fetching, verifying and storing content (crate `peer`), reading listings (`peer::source`).

#![forbid(unsafe_code)]

pub mod args;
pub mod backend;
pub mod cli;
pub mod download;
pub mod exit;
pub mod flags;
pub mod lister;
mod log;
pub mod options;
pub mod output;
pub mod recursive;
pub mod report;
mod run;

pub use run::{Parts, execute, run};
