//! Clients that push all the time.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use parking_lot::Mutex;

use crate::{
    load::{Contents, Done, Job, Next, Push, Request, Target, Task, Work, drive},
    measure::percentile,
};

/// The size of each blob.
pub(super) const BYTES: u64 = 1024 * 1024;
/// Clients that push.
const CLIENTS: usize = 10;
/// Fewer pushes have no 99th percentile.
const PUSHES_MIN: usize = 100;
const REPOSITORY: &str = "gc/pushed";

/// What became of all pushes.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    done: Mutex<Vec<(Instant, f64)>>,
    failed: Mutex<Vec<String>>,
}

/// A time of measuring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    from: Instant,
    to: Instant,
}

struct Pusher<'a> {
    contents: Contents,
    start: Request,
    /// Of each client: not before.
    next: [Instant; CLIENTS],
    every: Duration,
    pushes: &'a Pushes,
    stop: &'a AtomicBool,
}

impl Window {
    /// From now on, for so many seconds.
    pub(super) fn open(seconds: f64) -> Self {
        let from = Instant::now();
        Self { from, to: from + Duration::from_secs_f64(seconds) }
    }
}

impl Pushes {
    /// Pushes until it is told to stop.
    ///
    /// # Errors
    /// When the registry cannot be reached any more; pushes that are refused are counted.
    pub(super) fn run(&self, target: &Target, rate: f64, stop: &AtomicBool) -> Result<()> {
        let now = Instant::now();
        let mut pusher = Pusher {
            contents: Contents::new(rand::random(), BYTES),
            start: target.start_upload(REPOSITORY),
            next: [now; CLIENTS],
            every: Duration::from_secs_f64(1.0 / rate),
            pushes: self,
            stop,
        };
        drive(target, CLIENTS, &mut pusher).map(drop)
    }

    /// The 99th percentile of the times of the pushes that began in a window, in milliseconds.
    ///
    /// # Errors
    /// When they were too few.
    pub(super) fn p99_ms(&self, window: Window) -> Result<f64> {
        let done = self.done.lock();
        let within = done.iter().filter(|(began, _)| (window.from..window.to).contains(began));
        let took_ms: Vec<f64> = within.map(|(_, took)| *took).collect();
        ensure!(took_ms.len() >= PUSHES_MIN, "only {} pushes in a window", took_ms.len());
        Ok(percentile(&took_ms, 0.99))
    }

    /// How many there were, and what was said of those that failed.
    pub(super) fn into_counts(self) -> (usize, Vec<String>) {
        let failed = self.failed.into_inner();
        (self.done.into_inner().len() + failed.len(), failed)
    }
}

impl Work for Pusher<'_> {
    fn next(&mut self, client: usize) -> Next {
        if self.stop.load(Ordering::Relaxed) {
            return Next::End;
        }
        let now = Instant::now();
        if now < self.next[client] {
            return Next::Wait(self.next[client]);
        }
        // Who is late does not catch up: the pushes that follow would be measured as a crowd.
        self.next[client] = now.max(self.next[client]) + self.every;
        let blob = self.contents.blob(BYTES);
        Next::Job(Job { id: client, task: Task::Push(Push::new(self.start.clone(), blob, false)) })
    }

    fn done(&mut self, _client: usize, done: Done) -> Result<()> {
        match done.result {
            Ok(_) => self.pushes.done.lock().push((done.began, done.took.as_secs_f64() * 1e3)),
            Err(error) => self.pushes.failed.lock().push(format!("{error:#}")),
        }
        Ok(())
    }
}
