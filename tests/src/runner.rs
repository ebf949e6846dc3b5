//! Runs the cases, prints what happens, writes the rows.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
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
    /// Measures time or rates, so that nothing else may run beside it.
    pub(crate) alone: bool,
    /// Checks it. Gets a folder for logs and data that is removed afterwards.
    pub(crate) check: fn(&Run) -> CaseResult,
}

/// A case that needs network namespaces or a container runtime, and so root.
pub(crate) const fn rooted(what: &'static str, check: fn(&Run) -> CaseResult) -> Case {
    Case { what, needs_root: true, alone: false, check }
}

/// A case that runs anywhere.
pub(crate) const fn anywhere(what: &'static str, check: fn(&Run) -> CaseResult) -> Case {
    Case { what, needs_root: false, alone: false, check }
}

impl Case {
    /// Nothing else runs while this case does.
    pub(crate) const fn alone(self) -> Self {
        Self { alone: true, ..self }
    }
}

/// Cases that run at the same time, unless they have to be alone. Most of them wait most of the time: for tokens to
/// expire, links to come back, programs to stop.
const TOGETHER: usize = 3;

struct Arguments {
    json: bool,
    rows: Option<PathBuf>,
    filter: Option<String>,
    list: bool,
    repeat: u32,
}

const USAGE: &str = "usage: blackbox [--json] [--rows FILE] [--list] [--repeat N] [FILTER]";

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments { json: false, rows: None, filter: None, list: false, repeat: 1 };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--json" => parsed.json = true,
            "--list" => parsed.list = true,
            "--repeat" => {
                let times = given.next().and_then(|times| times.parse().ok());
                parsed.repeat = times.ok_or("--repeat wants a number")?;
            }
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
    let rows: Vec<serde_json::Value> = (0..arguments.repeat).flat_map(|_| run_all(&cases)).collect();
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

/// All cases: first those that bear others beside them, then the others one by one. The rows are in the order given.
fn run_all(cases: &[Case]) -> Vec<serde_json::Value> {
    let mut rows = vec![serde_json::Value::Null; cases.len()];
    let (next, done) = (AtomicUsize::new(0), Mutex::new(&mut rows));
    let finish = |number: usize| {
        let row = run(&cases[number]);
        done.lock().unwrap_or_else(PoisonError::into_inner)[number] = row;
    };
    let shared: Vec<usize> = (0..cases.len()).filter(|number| !cases[*number].alone).collect();
    std::thread::scope(|scope| {
        for _ in 0..TOGETHER {
            scope.spawn(|| {
                while let Some(number) = shared.get(next.fetch_add(1, Ordering::Relaxed)) {
                    finish(*number);
                }
            });
        }
    });
    (0..cases.len()).filter(|number| cases[*number].alone).for_each(finish);
    rows
}

fn run(case: &Case) -> serde_json::Value {
    let started = Instant::now();
    let (outcome, notes) = attempt(case);
    let why = outcome.as_ref().err().map(|report| beginning(report).to_owned());
    let (word, numbers) = match outcome {
        Ok(Outcome::Passed) => ("ok".to_owned(), (1, 0, 0)),
        Ok(Outcome::Skipped(why)) => (format!("skipped: {why}"), (0, 0, 1)),
        Err(report) => (format!("FAILED\n{report}"), (0, 1, 0)),
    };
    let notes: String = notes.iter().map(|note| format!("\n    {note}")).collect();
    eprintln!("{} ... {word} ({:.1} s){notes}", case.what, started.elapsed().as_secs_f64());
    let mut row =
        serde_json::json!({"what": case.what, "passed": numbers.0, "failed": numbers.1, "skipped": numbers.2});
    if let Some(why) = why {
        row["why"] = why.into();
    }
    row
}

/// Of a report, what goes into the row: what failed is said first, the logs' ends follow.
fn beginning(report: &str) -> &str {
    const MAX: usize = 4000;
    report.char_indices().nth(MAX).map_or(report, |(end, _)| &report[..end])
}

/// What came of a case, and the figures it kept.
fn attempt(case: &Case) -> (Result<Outcome, String>, Vec<String>) {
    if case.needs_root && !harness::is_root() {
        let why = "needs root for network namespaces and container runtimes".into();
        return (Ok(Outcome::Skipped(why)), Vec::new());
    }
    let run = match Run::new() {
        Ok(run) => run,
        Err(error) => return (Err(format!("{error:#}")), Vec::new()),
    };
    let problem = match catch_unwind(AssertUnwindSafe(|| (case.check)(&run))) {
        Ok(Ok(outcome)) => return (Ok(outcome), run.notes()),
        Ok(Err(error)) => format!("{error:#}{}", places(&error)),
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "panicked".into()),
    };
    (Err(format!("{problem}\n{}", run.log_ends())), run.notes())
}

/// Where in our own sources an error came from, innermost first; empty without `RUST_BACKTRACE`.
fn places(error: &anyhow::Error) -> String {
    let backtrace = error.backtrace().to_string();
    let ours = |line: &&str| line.starts_with("at ") && line.contains("/tests/") && !line.contains("/runner.rs");
    backtrace.lines().map(str::trim).filter(ours).map(|line| format!("\n  {line}")).collect()
}
