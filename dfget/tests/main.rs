//! dfget against a dfdaemon made for the test: the binary as a script would start it, and the library where a test
//! must stand in for the engine or the reader of listings.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, which the policy for tests does not see as such"
)]

mod binary;
mod fake;
mod library;
mod page;
