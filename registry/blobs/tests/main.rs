//! The store over real backends: one suite for all of them, and what is special to each.

mod conformance;
mod filesystem;
mod object;
mod support;
