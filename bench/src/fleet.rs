//! Programs on several hosts at the same time.

use std::{
    sync::Barrier,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{Finished, ProcBuilder};

/// A program to run beside others.
#[derive(Debug)]
pub(crate) struct Job {
    /// What it is called in messages.
    pub(crate) name: String,
    /// What runs.
    pub(crate) program: ProcBuilder,
}

/// What became of a [`Job`].
#[derive(Debug)]
pub(crate) struct Lap {
    /// As given.
    pub(crate) name: String,
    /// How it ran.
    pub(crate) finished: Finished,
}

/// Laps of jobs that were started together, in the order given.
#[derive(Debug)]
pub(crate) struct Laps(Vec<Lap>);

/// Starts all at once and waits for their ends; `done` hears of each as it ends, by its place.
///
/// # Errors
/// When one does not start, is not done by the deadline, or exits with another code than 0.
pub(crate) fn at_once(jobs: Vec<Job>, deadline: Duration, done: impl Fn(usize) + Sync) -> Result<Laps> {
    let (gate, done) = (Barrier::new(jobs.len()), &done);
    let laps: Result<Vec<Lap>> = std::thread::scope(|scope| {
        let threads: Vec<_> = jobs
            .into_iter()
            .enumerate()
            .map(|(place, job)| {
                let gate = &gate;
                scope.spawn(move || -> Result<Lap> {
                    gate.wait();
                    let finished = job.program.output(deadline).with_context(|| job.name.clone())?;
                    done(place);
                    let (status, stderr) = (finished.status, finished.stderr.trim());
                    let stdout = String::from_utf8_lossy(&finished.stdout);
                    ensure!(status.success(), "{}: {status}: {stderr} {}", job.name, stdout.trim());
                    Ok(Lap { name: job.name, finished })
                })
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Lap>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // All are waited for, also when the first has failed.
        threads.into_iter().map(join).collect::<Vec<_>>().into_iter().collect()
    });
    let laps = Laps(laps?);
    ensure!(!laps.0.is_empty(), "there was nothing to run");
    Ok(laps)
}

impl Laps {
    fn first_start(&self) -> Instant {
        let first = self.0.iter().map(|lap| lap.finished.started).min();
        first.expect("there is at least one: checked when they were made")
    }

    /// From the first start that was asked for until the last program ran.
    pub(crate) fn spread(&self) -> Duration {
        let last = self.0.iter().map(|lap| lap.finished.started + lap.finished.starting).max();
        last.map_or(Duration::ZERO, |last| last - self.first_start())
    }

    /// From the first start to each end, in the order of the jobs.
    pub(crate) fn since_first_start(&self) -> impl Iterator<Item = (&str, Duration)> {
        let first = self.first_start();
        self.0.iter().map(move |lap| (lap.name.as_str(), lap.finished.started - first + lap.finished.elapsed))
    }

    /// From the first start to the last end.
    pub(crate) fn last(&self) -> Duration {
        self.since_first_start().map(|(_, took)| took).max().unwrap_or_default()
    }

    /// Processor time of all.
    pub(crate) fn cpu(&self) -> Duration {
        self.0.iter().map(|lap| lap.finished.cpu).sum()
    }
}
