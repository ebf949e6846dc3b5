//! gRPC stubs of the control protocol (`Cluster`) and of dfget's socket (`Daemon`).

<<<<<<< HEAD
#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::pedantic, clippy::all, reason = "generated code")]
=======
#![allow(missing_docs, unreachable_pub, rustdoc::all, clippy::pedantic, clippy::all, reason = "generated code")]
>>>>>>> harness

include!(concat!(env!("OUT_DIR"), "/skimmer.v1.rs"));
