//! The messages of the .proto files, as `prost` generates them. Field meanings are documented there.

#![allow(missing_docs, unreachable_pub, rustdoc::all, clippy::pedantic, clippy::all, reason = "generated code")]

include!(concat!(env!("OUT_DIR"), "/skimmer.v1.rs"));
