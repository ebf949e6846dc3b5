//! The muscle every node runs: dfdaemon, supernode and dfget alike.
//!
//! - [`store`]: pieces on disk (RocksDB rows, one content file per task).
//! - [`transport`]: frames and piece bytes between hosts (TCP with sendfile, QUIC).
//! - [`source`]: back to the origin over HTTP and HTTPS.
//! - [`limit`]: byte rates, host → task → peer.
//! - [`engine`]: joins them with the decisions of crate `swarm`.
//! - [`locator`]: asks config-service for the nearest supernodes, and remembers the answer.
//! - [`rpc`]: gRPC stubs; [`admission`]: who may connect to their listeners.

#![deny(unsafe_code)]

pub mod admission;
pub mod engine;
pub mod limit;
pub mod locator;
pub mod node;
pub mod rpc;
pub mod source;
pub mod store;
pub mod transport;
