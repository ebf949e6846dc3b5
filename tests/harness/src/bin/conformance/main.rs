//! `./dev conformance`: the official OCI suite against our registry, and what it found.
//!
//! The suite is somebody else's program: it runs in an empty folder without any of our environment, so that what a
//! version of the specification has on by default stays on. Each run gets a registry of its own, with nothing in it.
//!
//! **Not here:** the suite itself, which `dev.d/conformance.sh` finds and builds.

#![forbid(unsafe_code)]

mod report;
mod setups;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use harness::{Host, Run};
use serde::Serialize;

use report::Report;
use setups::{Servers, Setup};

const USAGE: &str = "usage: conformance --suite PROGRAM [--json] [--registry ADDRESS:PORT] [FILTER]

  --suite     the built suite
  --json      the last line is JSON
  --registry  runs it against this registry (plain HTTP, whose content it changes) instead of ours
  FILTER      part of a run's name, as in \"dev on mariadb\"";

/// Of the specification: the last one published, and what has been added to it since.
const VERSIONS: [&str; 2] = ["1.1", "dev"];
/// A run takes some ten seconds; one that waits for a registry that hangs, a few minutes.
const SUITE_DEADLINE: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, Default)]
struct Arguments {
    suite: PathBuf,
    json: bool,
    registry: Option<String>,
    filter: String,
}

/// One row of the outcome.
#[derive(Debug, Serialize)]
struct Row {
    version: &'static str,
    database: &'static str,
    storage: &'static str,
    processes: usize,
    pass: u64,
    fail: u64,
    skip: u64,
}

#[derive(Debug, Serialize)]
struct Outcome {
    runs: Vec<Row>,
    pass: u64,
    fail: u64,
}

fn main() -> ExitCode {
    let arguments = match arguments(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("conformance: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let setups = match &arguments.registry {
        None => vec![Setup::Alone, Setup::Balanced],
        Some(addr) => vec![Setup::Given(addr.clone())],
    };
    let rows: Vec<Row> = setups.iter().flat_map(|setup| rows(setup, &arguments)).collect();
    if rows.is_empty() {
        eprintln!("conformance: no run has {:?} in its name", arguments.filter);
        return ExitCode::from(2);
    }
    let outcome = Outcome {
        pass: rows.iter().map(|row| row.pass).sum(),
        fail: rows.iter().map(|row| row.fail).sum(),
        runs: rows,
    };
    print(&outcome, arguments.json);
    ExitCode::from(u8::from(outcome.fail > 0))
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut parsed = Arguments::default();
    while let Some(argument) = given.next() {
        let mut value = || given.next().with_context(|| format!("{argument} wants a value"));
        match argument.as_str() {
            "--suite" => parsed.suite = value()?.into(),
            "--json" => parsed.json = true,
            "--registry" => parsed.registry = Some(value()?),
            option if option.starts_with('-') => bail!("no such option: {option}"),
            _ if !parsed.filter.is_empty() => bail!("at most one filter"),
            _ => parsed.filter = argument,
        }
    }
    if parsed.suite.as_os_str().is_empty() {
        bail!("--suite is missing");
    }
    // It is started in another folder.
    parsed.suite = std::path::absolute(&parsed.suite)?;
    Ok(parsed)
}

/// All versions on one setup, one after another on the same servers.
fn rows(setup: &Setup, arguments: &Arguments) -> Vec<Row> {
    let named = VERSIONS.iter().map(|version| (*version, format!("{version} on {}", setup.name())));
    let wanted: Vec<_> = named.filter(|(_, name)| name.contains(&arguments.filter)).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let (host, mut rows) = (Host::local(), Vec::new());
    let run = match Run::new() {
        Ok(run) => run,
        Err(error) => {
            return wanted.iter().map(|(version, name)| row(setup, version, name, Err(error_of(&error)))).collect();
        }
    };
    let servers = setup.start(&host, &run);
    for (version, name) in &wanted {
        let started = Instant::now();
        let report = match &servers {
            Ok(servers) => once(&arguments.suite, version, servers, &host, &run).map_err(|error| error_of(&error)),
            Err(error) => Err(error_of(error)),
        };
        if report.is_err() {
            eprintln!("{}", run.log_ends());
        }
        rows.push(row(setup, version, name, report));
        eprintln!("conformance: {name} took {:.0} s", started.elapsed().as_secs_f64());
    }
    rows
}

fn error_of(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

/// Says how a run went; one that could not be done counts as a failure.
fn row(setup: &Setup, version: &'static str, name: &str, report: Result<Report, String>) -> Row {
    let report = report.unwrap_or_else(|problem| {
        eprintln!("conformance: {name}: {problem}");
        Report { fail: 1, ..Report::default() }
    });
    for skipped in &report.skipped {
        eprintln!("conformance: {name}: skipped: {skipped}");
    }
    for failure in &report.failures {
        eprintln!("conformance: {name}: FAILED: {}: {}", failure.test, failure.why);
    }
    let Report { pass, fail, skip, .. } = report;
    eprintln!("conformance: {name}: {pass} passed, {fail} failed, {skip} skipped");
    let (database, storage) = (setup.database(), setup.storage());
    Row { version, database, storage, processes: setup.processes(), pass, fail, skip }
}

/// One run of the suite against a fresh registry.
fn once(suite: &Path, version: &str, servers: &Servers, host: &Host, run: &Run) -> Result<Report> {
    let target = servers.registry(host, run)?;
    let folder = run.data_dir("suite")?;
    let finished = host
        .program("env")
        .arg("-i")
        .args([
            format!("OCI_REGISTRY={}", target.name),
            "OCI_TLS=disabled".to_owned(),
            format!("OCI_VERSION={version}"),
            format!("OCI_RESULTS_DIR={}", folder.display()),
        ])
        .arg(suite)
        .dir(&folder)
        .output(SUITE_DEADLINE)?;
    // It ends with 0 when it could not even begin, so only what it wrote counts.
    let written = std::fs::read_to_string(folder.join("junit.xml"))
        .with_context(|| format!("the suite left no results ({}): {}", finished.status, finished.stderr.trim()))?;
    let report = Report::read(&written)?;
    if finished.status.success() != (report.fail == 0) {
        bail!("the suite ended with {}, and its results have {} failures", finished.status, report.fail);
    }
    target.check()?;
    Ok(report)
}

fn print(outcome: &Outcome, json: bool) {
    if json {
        // Text and numbers only.
        println!("{}", serde_json::to_string(outcome).expect("a row is json"));
        return;
    }
    println!("{:>8} {:>8} {:>8}  run", "passed", "failed", "skipped");
    for Row { version, database, storage, processes, pass, fail, skip } in &outcome.runs {
        println!("{pass:>8} {fail:>8} {skip:>8}  {version} on {database} and {storage}, processes: {processes}");
    }
    let skip: u64 = outcome.runs.iter().map(|row| row.skip).sum();
    println!("\n{} passed, {} failed, {skip} skipped", outcome.pass, outcome.fail);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Arguments> {
        arguments(text.split_whitespace().map(ToOwned::to_owned))
    }

    #[test]
    fn arguments_are_read() {
        let read = parse("--suite /s --json dev --registry a:1").unwrap();
        assert_eq!((read.suite, read.json, read.filter.as_str()), (PathBuf::from("/s"), true, "dev"));
        assert_eq!(read.registry.as_deref(), Some("a:1"));
        for wrong in ["", "--json", "--suite", "--suite /s --what", "--suite /s a b", "--suite /s --registry"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_last_line_is_what_was_promised() {
        let row = row(&Setup::Balanced, "dev", "x", Ok(Report { pass: 3, skip: 2, ..Report::default() }));
        let outcome = Outcome { runs: vec![row], pass: 3, fail: 0 };
        assert_eq!(
            serde_json::to_string(&outcome).unwrap(),
            r#"{"runs":[{"version":"dev","database":"mariadb","storage":"s3","processes":2,"pass":3,"fail":0,"skip":2}],"pass":3,"fail":0}"#
        );
    }

    #[test]
    fn a_run_that_could_not_be_done_is_a_failure() {
        assert_eq!(row(&Setup::Alone, "dev", "x", Err("no such program".into())).fail, 1);
    }
}
