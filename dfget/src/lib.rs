//! Downloads a URL through the host's dfdaemon, or with the same engine in its own process.

#![forbid(unsafe_code)]
