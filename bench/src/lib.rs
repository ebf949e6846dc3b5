//! The swarm simulator and the benches against real binaries.

#![forbid(unsafe_code)]

pub mod sim;
