//! Knows every cluster manager and tells each host which are nearest.

#![forbid(unsafe_code)]
