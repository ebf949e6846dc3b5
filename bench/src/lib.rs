//! The swarm simulator, the demo, and the benches against real binaries.
//!
//! [`sim`] is arithmetic: the production scheduler and pickers on simulated links. The others start the programs that
//! are shipped, on hosts of the harness, and count outside of them: interface counters, access logs, `/proc`, clocks.
//! [`registry`], [`catalog`] and [`gc`] are about the registry, and drive it with a load tool of their own.
//! What each figure means and what it has to be is in `docs/benches.md`.
//!
//! Each module has `Args` and `run(&Args)`, which prints what people read, or with `--json` one line, to stdout. What is
//! shown meanwhile goes to stderr, and only when that is a terminal.

#![forbid(unsafe_code)]

mod fleet;
mod live;
mod load;
mod measure;

pub mod catalog;
pub mod demo;
pub mod gc;
pub mod memory;
pub mod registry;
pub mod sim;
pub mod single;
pub mod testbed;
