//! The agent on every host: keeps and trades pieces, and is the registry mirror and HTTP(S) proxy that container
//! runtimes pull through.
//!
//! The HTTP side, from the client inwards: [`proxy::Server`] accepts and routes; [`mirror`] and [`rules`] say what a
//! request is about; [`serve`] turns a task of [`downloads`] into an answer; [`passthrough`] carries everything else to
//! its origin unread. [`setup`] points container runtimes at it.
//!
//! [`settings`] is the whole configuration, [`run`] the daemon; `socket.rs` is dfget's way in.
//!
//! Invariants: a body is whole or ends with an error; credentials go to the host they were meant for and are neither
//! stored nor logged; with this daemon gone, runtimes that `setup` configured pull directly.
//!
//! **Not here:** pieces, peers and the way of a task's bytes (crate `peer`).

#![forbid(unsafe_code)]

pub mod blob_path;
pub mod body;
pub mod ca;
mod carry_out;
pub mod config;
mod daemon;
pub mod dial;
pub mod downloads;
mod engine;
mod headers;
mod io;
pub mod metrics;
pub mod mirror;
pub mod passthrough;
pub mod pattern;
pub mod proxy;
pub mod rules;
pub mod serve;
pub mod settings;
pub mod setup;
mod socket;

pub use carry_out::{CALLER_KEY, Shares, carry_out};
pub use daemon::run;
