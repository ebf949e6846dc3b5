//! The tokio runtime of a binary.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{ByteSize, Problems, Validate};

/// `[runtime]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Threads that run tasks; 0 = one per processor, at most [`WORKERS_AUTO_MAX`].
    pub worker_threads: usize,
    /// Threads for blocking work (files, RocksDB), started on demand.
    pub blocking_threads: usize,
    /// Stack of each thread.
    pub thread_stack: ByteSize,
    /// How long a shutdown may take before connections and downloads are cut.
    #[serde(with = "crate::config::duration")]
    pub drain_timeout: Duration,
}

/// More workers than that do not make a network-bound program faster, but cost memory on large machines.
pub const WORKERS_AUTO_MAX: usize = 8;
const WORKERS_MAX: usize = 1024;
const BLOCKING_MAX: usize = 4096;
const STACK_MIN: ByteSize = ByteSize::kib(256);
const STACK_MAX: ByteSize = ByteSize::mib(64);

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            worker_threads: 0,
            // tokio's own 512 would let a burst of disk work take 512 stacks.
            blocking_threads: 32,
            thread_stack: ByteSize::mib(2),
            drain_timeout: Duration::from_secs(20),
        }
    }
}

impl RuntimeConfig {
    /// The number of workers this configuration means on this machine.
    #[must_use]
    pub fn workers(&self) -> usize {
        match self.worker_threads {
            0 => std::thread::available_parallelism().map_or(2, usize::from).clamp(1, WORKERS_AUTO_MAX),
            n => n,
        }
    }
}

impl Validate for RuntimeConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.check(
            self.worker_threads <= WORKERS_MAX,
            "worker_threads",
            format!("at most {WORKERS_MAX} are allowed, 0 = automatic"),
        );
        problems.check(
            (1..=BLOCKING_MAX).contains(&self.blocking_threads),
            "blocking_threads",
            format!("1 to {BLOCKING_MAX} are allowed"),
        );
        problems.check(
            (STACK_MIN..=STACK_MAX).contains(&self.thread_stack),
            "thread_stack",
            format!("{STACK_MIN} to {STACK_MAX} are allowed"),
        );
    }
}

/// Builds the runtime.
///
/// # Errors
/// When threads or the event queue of the system cannot be had.
pub fn build(config: &RuntimeConfig) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.workers())
        .max_blocking_threads(config.blocking_threads)
        .thread_stack_size(config.thread_stack.as_usize())
        .thread_name("skimmer")
        .enable_all()
        .build()
}
