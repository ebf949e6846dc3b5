//! The HTTP side in one process, over loopback, with real clients where it matters.

mod clients;
mod connections;
mod proxying;
mod support;
mod tasks;
