//! What comes from clients, and what any bytes from them may do.

mod fuzzed;
mod manifest;
mod properties;
mod uploads;
