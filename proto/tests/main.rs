//! What the wire looks like, and what any bytes from it may do.

mod fuzzed;
mod golden;
mod samples;
