//! The agent on every host: keeps and trades pieces, and is the registry mirror and proxy of container runtimes.

#![forbid(unsafe_code)]
