//! Black-box tests of config-service.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api;
mod binary;
