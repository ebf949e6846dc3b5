//! What every long-running binary of ours needs, so that each of them is only its own idea.
//!
//! - [`config`]: TOML and environment, all problems with their places, quantities and secrets.
//! - [`launch()`] and [`Args`]: `--config`, `--check-config`, `--print-default-config`, logs, TLS provider, runtime, signals, exit code.
//! - [`http`]: listeners, the accept loop with its limits and drain, the route table, `/healthz`, `/readyz`, `/metrics`.
//! - [`metrics`], [`log`], [`tls`], [`shutdown`], [`ready`], [`runtime`], [`exit`]: the parts `launch` is made of.
//!
//! **Not here:** anything that knows of tasks, pieces, clusters or images; the peer transport; gRPC.
//!
//! Nothing here outlives the process: a crash loses connections and counters, no data.

#![forbid(unsafe_code)]

pub mod config;
pub mod exit;
pub mod http;
mod launch;
pub mod log;
pub mod metrics;
pub mod ready;
pub mod runtime;
pub mod shutdown;
pub mod tls;

pub use config::{ByteSize, Config, Rate, Redacted, Validate};
pub use launch::{Args, Context, Reloads, launch};
