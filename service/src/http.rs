//! Serving HTTP: listeners, an accept loop in which everything has a limit, and a route table behind a few warp filters.
//!
//! ```text
//! Listener ─▶ Server (slots, TLS, timeouts, drain) ─▶ service ([filters]) ─▶ /healthz /readyz /metrics
//!                                                                       └─▶ Routes: (method, pattern) ─▶ handler
//! ```
//!
//! [`Server`] takes any hyper service, so a proxy that needs whole requests and upgrades does without filters and routes.

mod connection;
mod edge;
mod listener;
mod proxies;
mod routes;
mod sendfile;
mod server;
mod stall;

pub use connection::serve_stream;
pub use edge::{Readiness, service, standard};
pub use listener::{InvalidListenAddr, ListenAddr, Listener, Peer};
pub use proxies::client_address;
pub use routes::{ApiFailure, BodyLimits, Call, Response, Routes, empty, json};
pub use sendfile::{Chunk, FileChunk, Meter, SendFile};
pub use server::{HttpLimits, HttpMetrics, Server};
