//! `bench gc`: what pushes feel of the collector, and whether it removes what it should and nothing else.
//!
//! Images are pushed and deleted over the API; between windows with and without the collector nothing differs but one
//! line of the configuration. Blobs that are pushed meanwhile belong to no image: their leases run out, so that the
//! collector has work in every window of its own.

mod images;
mod pushes;

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{Host, LinkSpec, MariaDb, Net, Run, S3Kind, S3Server, Signal, SkimmerRegistry};
use serde::Serialize;

use crate::{
    live::say,
    load::{Contents, Target},
    measure::{DiskFolder, explain, median, round},
    registry::ours,
};
use images::Images;
use pushes::{Pushes, Window};

/// What may be lying on the disk at a time.
const DISK_BYTES: u64 = 20_000_000_000;
/// Everything that is let go is due soon.
const LEASE: Duration = Duration::from_secs(3);
/// From a change of the configuration until it has its effect for sure.
const SETTLE: Duration = Duration::from_secs(2);
/// How often the registry counts its backlog, and a little more.
const BACKLOG_INTERVAL: Duration = Duration::from_secs(6);
/// For the collector to finish after the last window.
const FINISH_DEADLINE: Duration = Duration::from_secs(900);
const STOP_DEADLINE: Duration = Duration::from_secs(60);
const FSCK_DEADLINE: Duration = Duration::from_secs(600);
/// What is promised: pushes are at most so much slower.
const RATIO_MAX: f64 = 1.3;

/// Arguments of `bench gc`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    /// The number of images, as a share of what the promise is about.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Length of a window, in seconds.
    #[arg(long, default_value_t = 30.0)]
    window: f64,
    /// Pairs of windows, one with and one without the collector.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    pairs: u16,
    /// Pushes of each client in a second at most, so that the disk does not fill.
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    /// Where data lies, on a disk; the cache of ./dev when not given.
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    runs: Vec<Outcome>,
}

#[derive(Debug, Serialize)]
struct Outcome {
    database: &'static str,
    storage: &'static str,
    /// Blobs of deleted images that are gone.
    deleted: usize,
    /// Blobs that should be.
    deletable: usize,
    pushes: usize,
    failed_pushes: usize,
    /// 99th percentile of the pushes' times with the collector over the one without: median of the pairs.
    push_p99_ratio: f64,
    /// Neither the store nor the database has what the other has not.
    rows_equal_files: bool,
    /// Images that were not deleted and came back whole.
    survivors_pulled: usize,
}

/// The registry, whose collector is switched on and off.
#[derive(Debug)]
struct Subject {
    registry: SkimmerRegistry,
    target: Target,
    /// The configuration it was started with.
    config: String,
}

/// Runs the bench and prints what came out.
///
/// # Errors
/// When something does not start, the collector does not finish, or an image that was not deleted is damaged.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(args.scale > 0.0 && args.scale <= 10.0, "a scale between 0 and 10 is expected");
    ensure!(args.window >= 1.0 && args.rate > 0.0, "a window has at least a second, and a rate is above 0");
    let disk = DiskFolder::take(args.folder.as_deref(), DISK_BYTES)?;
    say(&format!("data in {}", disk.path().display()));
    let run = Run::new()?;
    let net = Net::new_or_loopback(&[("host", LinkSpec::default())])?;
    let host = net.host("host");
    let report = explain(&run, host.inside(|| measure(args, &run, &host)))?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    let mut broken = Vec::new();
    for outcome in &report.runs {
        if !args.json {
            println!("{outcome}");
        }
        broken.extend(outcome.broken());
    }
    for what in &broken {
        eprintln!("broken promise: {what}");
    }
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(args: &Args, run: &Run, host: &Host) -> Result<Report> {
    let folder = run.data_dir("sqlite")?;
    let sections = SkimmerRegistry::on_files(&folder);
    let on_files = measure_on(args, run, host, ("sqlite", "filesystem"), &sections)?;
    fs::remove_dir_all(&folder)?;
    let database = MariaDb::start(host, run)?;
    let storage = S3Server::start(S3Kind::Minio, host, run)?;
    let sections = storage.store(&storage.bucket("registry")?) + &SkimmerRegistry::database(&database.url());
    let on_objects = measure_on(args, run, host, ("mariadb", "s3"), &sections)?;
    Ok(Report { runs: vec![on_files, on_objects] })
}

fn measure_on(
    args: &Args,
    run: &Run,
    host: &Host,
    (database, storage): (&'static str, &'static str),
    sections: &str,
) -> Result<Outcome> {
    let began = Instant::now();
    let tell = |text: &str| say(&format!("{:>4.0} s  {database} and {storage}: {text}", began.elapsed().as_secs_f64()));
    // Off while the images come: their blobs would be taken away before the manifests are there.
    let mut subject = Subject::start(host, run, sections)?;
    let target = subject.target.clone();
    let images = Images::new(args.scale, &mut Contents::new(rand::random(), pushes::BYTES));
    images.push(&target)?;
    tell(&format!("{} blobs pushed", images.deletable_blobs().count()));
    // It looks at the leases of the uploads, finds that all blobs are needed, and has nothing to do any more.
    subject.collect(true)?;
    subject.finish()?;
    tell("the collector has nothing to do");

    let pushes = Pushes::default();
    let stop = AtomicBool::new(false);
    let pairs: Result<Vec<[Window; 2]>> = thread::scope(|scope| {
        let pusher = scope.spawn(|| pushes.run(&target, args.rate, &stop));
        let pairs = (0..usize::from(args.pairs)).map(|pair| {
            tell(&format!("pair {} of {}", pair + 1, args.pairs));
            subject.pair(&images, pair, args)
        });
        let pairs = pairs.collect();
        stop.store(true, Ordering::Relaxed);
        pusher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        pairs
    });
    let mut ratios = Vec::new();
    // Only now, when the pushes that began in them are over.
    for [without, with] in pairs? {
        let (without, with) = (pushes.p99_ms(without)?, pushes.p99_ms(with)?);
        tell(&format!("p99 {without:.1} ms without the collector, {with:.1} with it"));
        ratios.push(with / without);
    }
    subject.collect(true)?;
    subject.finish()?;
    tell("the collector has finished");
    let (deleted, survivors_pulled) = (images.gone(&target)?, images.pull_survivors(&target)?);
    let rows_equal_files = subject.fsck()?;
    let (pushes, failed) = pushes.into_counts();
    if let Some(first) = failed.first() {
        eprintln!("the first push that failed: {first}");
    }
    Ok(Outcome {
        database,
        storage,
        deleted,
        deletable: images.deletable_blobs().count(),
        pushes,
        failed_pushes: failed.len(),
        push_p99_ratio: round(median(&ratios)),
        rows_equal_files,
        survivors_pulled,
    })
}

/// The collector's part of the configuration; everything else about it is as it comes.
fn gc_section(enabled: bool) -> String {
    format!("[gc]\nenabled = {enabled}\nlease = \"{}s\"\ninterval = \"1s\"\n", LEASE.as_secs())
}

// === impl Subject ===

impl Subject {
    /// Starts the registry with its collector switched off.
    fn start(host: &Host, run: &Run, sections: &str) -> Result<Self> {
        let registry = ours(host, run, &format!("{sections}{}", gc_section(false)))?;
        let config = fs::read_to_string(registry.config())?;
        Ok(Self { target: Target::new(registry.addr()), registry, config })
    }

    /// Switches the collector on or off while the registry runs.
    fn collect(&mut self, enabled: bool) -> Result<()> {
        let text = self.config.replace(&gc_section(false), &gc_section(enabled));
        fs::write(self.registry.config(), text).context("cannot change the configuration")?;
        self.registry.process().signal(Signal::HUP)?;
        thread::sleep(SETTLE);
        Ok(())
    }

    /// Deletes a part of the images, and opens a window without and one with the collector, in this order or the other.
    fn pair(&mut self, images: &Images, number: usize, args: &Args) -> Result<[Window; 2]> {
        // What is let go now waits for the window with the collector, whichever comes first.
        self.collect(false)?;
        images.delete(&self.target, number, args.pairs.into())?;
        thread::sleep(LEASE);
        let mut order = [false, true];
        if number % 2 == 1 {
            order.reverse();
        }
        let mut both = [Window::open(args.window); 2];
        for enabled in order {
            self.collect(enabled)?;
            both[usize::from(enabled)] = Window::open(args.window);
            thread::sleep(Duration::from_secs_f64(args.window));
        }
        Ok(both)
    }

    /// Waits until nothing is due any more.
    fn finish(&self) -> Result<()> {
        thread::sleep(LEASE);
        let end = Instant::now() + FINISH_DEADLINE;
        let mut quiet = 0;
        while quiet < 2 {
            let due = self.registry.metric("skimmer_registry_gc_links_due")?;
            let removals = self.registry.metric("skimmer_registry_gc_removals")?;
            quiet = if due + removals == 0.0 { quiet + 1 } else { 0 };
            let left = Instant::now() < end;
            ensure!(left, "the collector has not finished: {due} leases and {removals} removals are left");
            thread::sleep(BACKLOG_INTERVAL);
        }
        Ok(())
    }

    /// Stops the registry, and lets it compare store and database.
    fn fsck(&mut self) -> Result<bool> {
        self.registry.terminate(STOP_DEADLINE)?;
        let finished = self.registry.command("fsck").args(["--json", "--grace", "0s"]).output(FSCK_DEADLINE)?;
        let text = String::from_utf8_lossy(&finished.stdout);
        let line = text.lines().last().with_context(|| format!("fsck said nothing: {}", finished.stderr.trim()))?;
        let found: serde_json::Value = serde_json::from_str(line).context("fsck printed something else than JSON")?;
        let findings = found["findings"].as_array().context("fsck printed no findings")?;
        for finding in findings.iter().take(5) {
            eprintln!("fsck: {finding}");
        }
        let counts = found["blobs"].as_u64().zip(found["files"].as_u64()).context("fsck printed no counts")?;
        Ok(findings.is_empty() && counts.0 == counts.1)
    }
}

// === impl Outcome ===

impl Outcome {
    /// The promises that it breaks.
    fn broken(&self) -> Vec<String> {
        let on = format!("{} and {}", self.database, self.storage);
        let mut broken = Vec::new();
        if self.deleted < self.deletable {
            broken.push(format!(
                "on {on} {} of {} blobs are still there",
                self.deletable - self.deleted,
                self.deletable
            ));
        }
        if self.failed_pushes > 0 {
            broken.push(format!("on {on} {} pushes failed", self.failed_pushes));
        }
        if self.push_p99_ratio > RATIO_MAX {
            broken.push(format!("push_p99_ratio on {on} is {}, more than {RATIO_MAX}", self.push_p99_ratio));
        }
        if !self.rows_equal_files {
            broken.push(format!("on {on} store and database differ"));
        }
        broken
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} and {}: {} of {} blobs removed, {} of {} pushes failed, p99 with the collector {:.2} times that without, rows {} files, {} survivors pulled",
            self.database,
            self.storage,
            self.deleted,
            self.deletable,
            self.failed_pushes,
            self.pushes,
            self.push_p99_ratio,
            if self.rows_equal_files { "equal" } else { "do not equal" },
            self.survivors_pulled,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_broken_promise_is_told() {
        let good = Outcome {
            database: "sqlite",
            storage: "filesystem",
            deleted: 10,
            deletable: 10,
            pushes: 5,
            failed_pushes: 0,
            push_p99_ratio: 1.3,
            rows_equal_files: true,
            survivors_pulled: 3,
        };
        assert_eq!(good.broken(), Vec::<String>::new());
        let bad = Outcome { deleted: 9, failed_pushes: 1, push_p99_ratio: 1.31, rows_equal_files: false, ..good };
        assert_eq!(bad.broken().len(), 4);
    }
}
