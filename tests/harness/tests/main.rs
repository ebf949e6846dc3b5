//! The servers the harness starts, each asked by a client that is not ours.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod balancer;
mod databases;
mod storage;
