//! gRPC stubs of the control protocol (`Cluster`) and of dfget's socket (`Daemon`).

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::pedantic,
    clippy::all,
    reason = "generated code"
)]

include!(concat!(env!("OUT_DIR"), "/skimmer.v1.rs"));
