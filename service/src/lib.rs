//! What every long-running binary of ours needs: configuration, logs, metrics, shutdown, an HTTP accept loop, readiness.

#![forbid(unsafe_code)]
