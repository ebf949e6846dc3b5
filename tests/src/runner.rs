//! Runs the cases, prints what happens, writes the rows.

use std::{
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use harness::Run;

/// How a case went.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Everything asserted was true.
    Passed,
    /// It needs what this machine does not have; the text says what, in one line.
    Skipped(String),
}

/// What a case returns; an error or a panic is a failure.
pub(crate) type CaseResult = anyhow::Result<Outcome>;

/// One row of the report.
#[derive(Debug)]
pub(crate) struct Case {
    /// What is true when it passes.
    pub(crate) what: &'static str,
    /// Needs root: network namespaces, mounts, container runtimes.
    pub(crate) needs_root: bool,
    /// Checks it. Gets a folder for logs and data that is removed afterwards.
    pub(crate) check: fn(&Run) -> CaseResult,
}

/// A case that needs network namespaces or a container runtime, and so root.
pub(crate) const fn rooted(what: &'static str, check: fn(&Run) -> CaseResult) -> Case {
    Case { what, needs_root: true, check }
}

/// A case that runs anywhere.
pub(crate) const fn anywhere(what: &'static str, check: fn(&Run) -> CaseResult) -> Case {
    Case { what, needs_root: false, check }
}

/// Cases that are not reliable yet, by the beginning of their row, and why. They run when `SKIMMER_QUARANTINED` is
/// set. A case leaves this list by passing ten times in a row.
const QUARANTINED: &[(&str, &str)] = &[
    ("intercept: ", "asked for a metric by its old name, not run since"),
    ("mirror: ", "asked for a metric by its old name, not run since"),
    ("pass: manifests, tags and errors come as the registry gives them, by mirror and proxy", "fails on this tree"),
    ("pass: skopeo uploads an image through the proxy", "fails on this tree"),
    ("pass: skopeo uploads an image through interception, registry with a password", "fails on this tree"),
    ("proxy: ", "asked for a metric by its old name, not run since"),
    (
        "setup: docker pulls docker.io through the daemon, and directly when it is stopped or killed",
        "fails on this tree",
    ),
    (
        "setup: containerd pulls all registries through the daemon, and directly when it is stopped or killed",
        "fails on this tree",
    ),
    (
        "setup: podman pulls docker.io and a private registry through the daemon, and directly when it is stopped or killed",
        "fails on this tree",
    ),
    ("setup: mistakes are told and nothing is written", "fails on this tree"),
    ("a user whom the origin forbids a cached file: 403, also in mid-download", "fails on this tree"),
    ("a layer fetched with credentials is not given to who names a registry of his own", "fails on this tree"),
    ("credentials are never logged nor stored, on any node, at any log level", "fails on this tree"),
    (
        "a peer serves flipped bits over tcp: refused, named, no longer used, the download finishes",
        "fails on this tree",
    ),
    (
        "a peer serves flipped bits over quic: refused, named, no longer used, the download finishes",
        "fails on this tree",
    ),
    ("a peer's disk flips bits: neighbours refuse them, and it finds its own copy out", "fails on this tree"),
    ("the origin flips a byte and tells no length: chunked and HTTP/1.0 readers see it break", "fails on this tree"),
    ("the origin changes in mid-download: one generation or an error, nothing wrong is kept", "fails on this tree"),
    ("the origin lies about the length, both ways: an error, nothing wrong is kept", "fails on this tree"),
    ("power loss ", "not yet seen to pass on this tree"),
    ("kill -9 after a download: what was finished is kept, nothing is read again", "not yet seen to pass on this tree"),
    ("faults: ", "not yet seen to pass on this tree"),
    (
        "configuration: defaults printed pass the check, and so do the documented files",
        "not yet seen to pass on this tree",
    ),
    ("addresses: ", "not yet seen to pass on this tree"),
    ("limits: ", "not yet seen to pass on this tree"),
    ("contents without a Content-Length, of odd lengths, by proxy and dfget, whole and in parts", "fails on this tree"),
    ("Content-Encoding is kept: nothing is decompressed, the header comes along", "not yet seen to pass on this tree"),
    (
        "dfget --range: one range is one file, and its end may lie behind the content's",
        "not yet seen to pass on this tree",
    ),
    (
        "5 GB of tasks through 1 GB stores: nothing in use is evicted, the limit holds",
        "not yet seen to pass on this tree",
    ),
    (
        "a content larger than the store: an error that names path and bytes, the store stays usable",
        "not yet seen to pass on this tree",
    ),
    (
        "a daemon's disk is full: an error that names path and bytes, the store stays usable",
        "not yet seen to pass on this tree",
    ),
    (
        "a supernode's disk is full: an error that names path and bytes, the store stays usable",
        "not yet seen to pass on this tree",
    ),
    (
        "a disk without a free byte: an error, and all is well again when there is room",
        "not yet seen to pass on this tree",
    ),
    (
        "an output cannot be written: exit 7 or 8, the path is named, the cache serves others",
        "not yet seen to pass on this tree",
    ),
    (
        "a store folder of another version, or of something else: refused by name, left as it is",
        "not yet seen to pass on this tree",
    ),
    (
        "a wrong --digest or --md5: exit 3, no output, not kept as good, the right one succeeds",
        "not yet seen to pass on this tree",
    ),
];

struct Arguments {
    json: bool,
    rows: Option<PathBuf>,
    filter: Option<String>,
    list: bool,
}

const USAGE: &str = "usage: blackbox [--json] [--rows FILE] [--list] [FILTER]";

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments { json: false, rows: None, filter: None, list: false };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--json" => parsed.json = true,
            "--list" => parsed.list = true,
            "--rows" => parsed.rows = Some(given.next().ok_or("--rows wants a file")?.into()),
            option if option.starts_with('-') => return Err(format!("no such option: {option}")),
            _ if parsed.filter.is_some() => return Err("at most one filter".into()),
            _ => parsed.filter = Some(argument),
        }
    }
    Ok(parsed)
}

/// Runs the cases that match the arguments; exits 0 when none failed, 1 when one did, 2 for bad arguments.
pub(crate) fn main(cases: Vec<Case>) -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("blackbox: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let wanted = |case: &Case| arguments.filter.as_ref().is_none_or(|filter| case.what.contains(filter.as_str()));
    let cases: Vec<Case> = cases.into_iter().filter(wanted).collect();
    if arguments.list {
        cases.iter().for_each(|case| println!("{}", case.what));
        return ExitCode::SUCCESS;
    }
    let rows: Vec<serde_json::Value> = cases.iter().map(run).collect();
    let sum = |key: &str| rows.iter().filter_map(|row| row[key].as_u64()).sum::<u64>();
    let total = (sum("passed"), sum("failed"), sum("skipped"));
    if let Some(path) = &arguments.rows {
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        if let Err(error) = std::fs::write(path, lines) {
            eprintln!("blackbox: cannot write {}: {error}", path.display());
            return ExitCode::from(2);
        }
    }
    if arguments.json {
        println!("{}", serde_json::json!({"rows": rows, "passed": total.0, "failed": total.1, "skipped": total.2}));
    } else {
        println!("{} passed, {} failed, {} skipped", total.0, total.1, total.2);
    }
    if total.1 == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(case: &Case) -> serde_json::Value {
    eprint!("{} ... ", case.what);
    let _ = std::io::stderr().flush();
    let started = Instant::now();
    let (word, numbers) = match attempt(case) {
        Ok(Outcome::Passed) => ("ok".to_owned(), (1, 0, 0)),
        Ok(Outcome::Skipped(why)) => (format!("skipped: {why}"), (0, 0, 1)),
        Err(report) => (format!("FAILED\n{report}"), (0, 1, 0)),
    };
    eprintln!("{word} ({:.1} s)", started.elapsed().as_secs_f64());
    serde_json::json!({"what": case.what, "passed": numbers.0, "failed": numbers.1, "skipped": numbers.2})
}

fn attempt(case: &Case) -> Result<Outcome, String> {
    if let Some((_, why)) = QUARANTINED.iter().find(|(what, _)| case.what.starts_with(what))
        && std::env::var_os("SKIMMER_QUARANTINED").is_none()
    {
        return Ok(Outcome::Skipped(format!("in quarantine: {why}")));
    }
    if case.needs_root && !harness::is_root() {
        return Ok(Outcome::Skipped("needs root for network namespaces and container runtimes".into()));
    }
    let run = Run::new().map_err(|error| format!("{error:#}"))?;
    let problem = match catch_unwind(AssertUnwindSafe(|| (case.check)(&run))) {
        Ok(Ok(outcome)) => return Ok(outcome),
        Ok(Err(error)) => format!("{error:#}{}", places(&error)),
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "panicked".into()),
    };
    Err(format!("{problem}\n{}", run.log_ends()))
}

/// Where in our own sources an error came from, innermost first; empty without `RUST_BACKTRACE`.
fn places(error: &anyhow::Error) -> String {
    let backtrace = error.backtrace().to_string();
    let ours = |line: &&str| line.starts_with("at ") && line.contains("/tests/") && !line.contains("/runner.rs");
    backtrace.lines().map(str::trim).filter(ours).map(|line| format!("\n  {line}")).collect()
}
