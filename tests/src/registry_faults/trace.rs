//! What a process asks of the kernel, in which order, as strace tells it.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{Host, Proc, Run};

use super::http::Client;
use crate::faults_data::probe::wait_until;

/// It attaches to some twenty threads.
const ATTACH: Duration = Duration::from_secs(30);
const DETACH: Duration = Duration::from_secs(20);
/// A line of the trace is written after the call, and so after its effect.
const WRITTEN: Duration = Duration::from_secs(20);
const CALLS: &str = "trace=write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,msync,rename,renameat,\
                     renameat2,link,linkat,unlink,unlinkat,sendto,sendmsg,sendfile";

/// A strace that is attached to a running process.
#[derive(Debug)]
pub(crate) struct Strace {
    proc: Proc,
    output: PathBuf,
}

/// One call. Of two, the one whose `end` is before the other's `begin` was over before the other began.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The line on which it begins.
    pub(crate) begin: usize,
    /// The line on which it returns.
    pub(crate) end: usize,
    pub(crate) name: String,
    /// Arguments, with the paths of files and the addresses of sockets beside their numbers.
    pub(crate) args: String,
    pub(crate) result: String,
}

// === impl Strace ===

impl Strace {
    /// Watches a process with all its threads, and returns when it sees what this client asks.
    pub(crate) fn watch(run: &Run, host: &Host, pid: u32, client: &mut Client) -> Result<Self> {
        let strace = Self::attach(run, host, pid, &["-s", "48", "-e", CALLS])?;
        wait_until("strace sees the process", ATTACH, || {
            client.get("/v2/")?;
            Ok(fs::read_to_string(&strace.output)?.contains("HTTP/1.1 200"))
        })?;
        Ok(strace)
    }

    /// Lets calls fail: `inject` as strace takes it, only those on one of these paths, if there are any.
    pub(crate) fn inject(run: &Run, host: &Host, pid: u32, inject: &str, paths: &[PathBuf]) -> Result<Self> {
        let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        let mut args = vec!["-e", "trace=openat,pwrite64,fsync,fdatasync", "-e", inject];
        args.extend(paths.iter().flat_map(|path| ["-P", path.as_str()]));
        let mut strace = Self::attach(run, host, pid, &args)?;
        // Said once it has all threads.
        strace.proc.wait_log(" attached", ATTACH)?;
        Ok(strace)
    }

    fn attach(run: &Run, host: &Host, pid: u32, args: &[&str]) -> Result<Self> {
        let output = run.data_dir("strace")?.join("calls");
        fs::write(&output, "")?;
        let program = host.program("strace").args(["-f", "-yy"]).args(args);
        let program = program.arg("-o").arg(&output).args(["-p", &pid.to_string()]);
        let proc = program.start(run, "strace").context("strace is needed, from Debian's package of that name")?;
        Ok(Self { proc, output })
    }

    /// How many lines there are: what comes later, came later.
    pub(crate) fn mark(&self) -> Result<usize> {
        Ok(fs::read_to_string(&self.output)?.lines().count())
    }

    /// The calls that began after a mark, up to the answer of this status, which is the last one.
    pub(crate) fn until_answer(&self, mark: usize, status: u16) -> Result<Vec<Call>> {
        let answer = format!("HTTP/1.1 {status} ");
        let mut found = Vec::new();
        wait_until(&format!("an answer {status} in the trace"), WRITTEN, || {
            let text = fs::read_to_string(&self.output)?;
            let mut calls = parse(&text);
            calls.retain(|call| call.begin >= mark);
            calls.sort_by_key(|call| call.begin);
            let at = calls.iter().position(|call| call.args.contains(&answer) && call.args.contains("<TCP"));
            let Some(at) = at else { return Ok(false) };
            calls.truncate(at + 1);
            found = calls;
            Ok(true)
        })?;
        Ok(found)
    }

    /// How many calls were made to fail.
    pub(crate) fn injected(&self) -> Result<usize> {
        Ok(fs::read_to_string(&self.output)?.matches("(INJECTED)").count())
    }

    /// Lets the process alone.
    pub(crate) fn detach(mut self) -> Result<()> {
        self.proc.terminate(DETACH).map(drop)
    }
}

// === impl Call ===

impl Call {
    pub(crate) fn is(&self, names: &[&str], text: &str) -> bool {
        names.contains(&self.name.as_str()) && self.args.contains(text)
    }

    /// Brings a file or a folder of this path to the disk, and says that it did.
    pub(crate) fn syncs(&self, path: &str) -> bool {
        // `-yy` writes the path as `7</a/b>`.
        self.is(&["fsync", "fdatasync"], &format!("{path}>")) && self.result == "0"
    }

    pub(crate) fn writes(&self, path: &str) -> bool {
        let first = self.args.split(',').next().unwrap_or_default();
        ["write", "pwrite64", "writev", "pwritev", "pwritev2"].contains(&self.name.as_str()) && first.contains(path)
    }
}

/// What a call is for, and how it is known.
type Step<'s> = (&'s str, &'s dyn Fn(&Call) -> bool);

/// Finds, one after the other, calls of which each began after the one before was over.
pub(crate) fn in_order<'c>(calls: &'c [Call], steps: &[Step<'_>]) -> Result<Vec<&'c Call>> {
    let mut found: Vec<&Call> = Vec::new();
    for (what, is_it) in steps {
        let after = found.last().map_or(0, |call| call.end + 1);
        let next = calls.iter().find(|call| call.begin >= after && is_it(call));
        let told = || {
            let lines: Vec<String> = calls
                .iter()
                .map(|call| format!("{}-{} {}({}) = {}", call.begin, call.end, call.name, call.args, call.result))
                .collect();
            format!("no {what} after line {after} of\n{}", lines.join("\n"))
        };
        found.push(next.with_context(told)?);
    }
    ensure!(found.windows(2).all(|pair| pair[0].end < pair[1].begin), "calls overlap");
    Ok(found)
}

/// Reads `PID name(args) = result`, where another thread may come between the two ends.
fn parse(text: &str) -> Vec<Call> {
    let mut open: Vec<(String, usize, String)> = Vec::new();
    let mut calls = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(beginning) = rest.strip_suffix("<unfinished ...>") {
            open.push((pid.to_owned(), number, beginning.to_owned()));
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some((_, end)) = resumed.split_once(" resumed>") else { continue };
            let Some(at) = open.iter().position(|(of, _, _)| of == pid) else { continue };
            let (_, begin, beginning) = open.swap_remove(at);
            calls.extend(call(begin, number, &format!("{beginning}{end}")));
        } else {
            calls.extend(call(number, number, rest));
        }
    }
    calls
}

fn call(begin: usize, end: usize, text: &str) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (args, result) = rest.rsplit_once(" = ")?;
    let args = args.trim_end().strip_suffix(')')?;
    Some(Call { begin, end, name: name.to_owned(), args: args.to_owned(), result: result.trim().to_owned() })
}
