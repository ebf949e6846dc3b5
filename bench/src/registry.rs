//! `bench registry`: our registry beside Distribution, on the same disk, in the same run.
//!
//! All requests come from one thread (`load`) and go over the loopback device of one network namespace, so
//! that all sockets have the same congestion control. Tests that only read share one pair of servers; each row that
//! writes has its own, whose folders are removed when everything that was acknowledged has been pulled back.

mod bed;
mod plan;
mod report;
mod row;
mod stock;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use harness::{Host, LinkSpec, Net, Run};

use bed::Bed;
pub(crate) use bed::ours;
use plan::{CLIENTS, SIZES_MB, Test, tests};
use report::Report;
use row::{Bench, Pace};
pub(crate) use stock::MANIFEST_TYPE;
use stock::{Stock, bytes_of};

use crate::{
    live::say,
    load::Contents,
    measure::{DiskFolder, explain},
};

/// What lies on the disk at any time, at most.
const DISK_BYTES: u64 = 20_000_000_000;

/// Arguments of `bench registry`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    /// Shorter rounds: 4 minutes instead of 12.
    #[arg(long)]
    quick: bool,
    /// Rounds of each row; 7, or 5 when it has to be quick.
    #[arg(long, value_parser = clap::value_parser!(u16).range(5..=1000))]
    rounds: Option<u16>,
    /// Only tests whose names contain this.
    #[arg(long)]
    test: Option<String>,
    /// Where data lies, on a disk; the cache of ./dev when not given.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// Runs the bench and prints what came out.
///
/// # Errors
/// When something does not start, a request fails, or an acknowledged blob is not there afterwards.
pub fn run(args: &Args) -> Result<ExitCode> {
    let disk = DiskFolder::take(args.folder.as_deref(), DISK_BYTES)?;
    let run = Run::new()?;
    let net = Net::new_or_loopback(&[("host", LinkSpec::default())])?;
    let host = net.host("host");
    let report = explain(&run, host.inside(|| measure(args, &disk, &run, &host)))?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}", Report::TITLE);
        report.tests.iter().for_each(|row| println!("{row}"));
        println!("{} uploads were pulled back", report.verified);
    }
    for missed in &report.missed {
        eprintln!("broken promise: {missed}");
    }
    Ok(if report.missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(args: &Args, disk: &DiskFolder, run: &Run, host: &Host) -> Result<Report> {
    let began = Instant::now();
    let wanted = |test: &Test| args.test.as_ref().is_none_or(|part| test.name.contains(part.as_str()));
    let (writing, reading): (Vec<Test>, Vec<Test>) = tests().into_iter().filter(wanted).partition(Test::writes);
    ensure!(!(writing.is_empty() && reading.is_empty()), "there is no such test");
    let pace = pace(args);
    let largest = SIZES_MB.iter().copied().max().unwrap_or_default();
    // Another seed each time: no store has seen these blobs.
    let mut contents = Contents::new(rand::random(), bytes_of(largest));
    let (mut rows, mut verified) = (Vec::new(), 0);
    let mut tell = |row: report::Row| {
        say(&format!("{:>4.0} s  {row}", began.elapsed().as_secs_f64()));
        rows.push(row);
    };
    say(&format!("data in {}\n        {}", disk.path().display(), Report::TITLE));
    if !reading.is_empty() {
        let stock = Stock::for_reading(&mut contents, pace.unique);
        let mut bed = Bed::start(host, run, true)?;
        bed.fill(&stock)?;
        disk.settle()?;
        let bench = Bench { disk, pace, stock: &stock };
        for test in &reading {
            for clients in CLIENTS {
                tell(bench.row(&mut bed, test, clients, &mut contents)?);
            }
        }
        verified += bed.finish()?;
    }
    for test in &writing {
        for clients in CLIENTS {
            let stock = Stock::for_writing(&mut contents, &test.actions);
            let mut bed = Bed::start(host, run, false)?;
            bed.fill(&stock)?;
            let bench = Bench { disk, pace, stock: &stock };
            tell(bench.row(&mut bed, test, clients, &mut contents)?);
            verified += bed.finish()?;
        }
    }
    let missed = rows.iter().flat_map(|row| row.missed.clone()).collect();
    Ok(Report { tests: rows, verified, missed })
}

fn pace(args: &Args) -> Pace {
    let ms = Duration::from_millis;
    let pace = if args.quick {
        Pace { rounds: 5, read: ms(150), write: ms(250), unique: 300 }
    } else {
        Pace { rounds: 7, read: ms(600), write: ms(700), unique: 600 }
    };
    Pace { rounds: args.rounds.map_or(pace.rounds, usize::from), ..pace }
}
