//! The bodies of all fuzz targets.
//!
//! Each file stands for itself, because the tests of one crate include it, and those of `proto` know nothing of the
//! registry.

#[path = "lib.rs"]
mod peers;
pub mod registry;

pub use peers::{frames, messages, texts};
