//! The HTTP side in one process, over loopback, with real clients where it matters.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod clients;
mod connections;
mod proxying;
mod support;
mod tasks;
