//! What people and scripts are told.

mod bar;
mod lines;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use url::Url;

use self::bar::Display;
use self::lines::{Event, Failed, Ok as Good, Sources, With};
use crate::args::Problem;
use crate::backend::{Counts, Started};
use crate::download::{FileJob, Finished};
use crate::exit::{Cause, Failure};
use crate::lister::ListedFile;
use crate::options::{Job, Show};
use crate::recursive::Folder;

/// Lines of progress in the JSON output come no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Says on stdout and stderr what happens.
#[derive(Debug)]
pub struct Reporter {
    json: bool,
    begin: Instant,
    state: Mutex<State>,
    /// Where lines of JSON and listings go; collected in tests.
    lines: Lines,
}

#[derive(Debug)]
enum Lines {
    Stdout,
    #[cfg(test)]
    Kept(Mutex<Vec<String>>),
}

#[derive(Debug)]
struct State {
    display: Display,
    /// Files under way: so far, and of how many.
    running: BTreeMap<usize, (Counts, Option<u64>)>,
    /// All files that are finished.
    finished: Counts,
    last_progress: Option<Instant>,
    reconnecting: bool,
}

/// A URL for people: no credentials, no query (a signature may be in it), no fragment.
#[must_use]
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

/// A URL to be used again, by somebody who has the user's password already.
fn without_user(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

/// A message on one line of a terminal, whatever an origin put into it.
fn one_line(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

// === impl Reporter ===

impl Reporter {
    /// Reports as the user wants it.
    #[must_use]
    pub fn new(show: Show) -> Self {
        Self::with_lines(show, Lines::Stdout)
    }

    fn with_lines(show: Show, lines: Lines) -> Self {
        let begin = Instant::now();
        let state = State {
            display: Display::new(show, begin),
            running: BTreeMap::new(),
            finished: Counts::default(),
            last_progress: None,
            reconnecting: false,
        };
        Self { json: show.json, begin, state: Mutex::new(state), lines }
    }

    fn line(&self, line: &str) {
        match &self.lines {
            Lines::Stdout => {
                // A reader that went away does not stop the download.
                let mut stdout = std::io::stdout().lock();
                let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
            }
            #[cfg(test)]
            Lines::Kept(kept) => kept.lock().push(line.to_owned()),
        }
    }

    fn event(&self, event: impl Serialize) {
        if self.json {
            // Plain structs with text as keys: nothing in them can fail.
            self.line(&serde_json::to_string(&event).unwrap_or_default());
        }
    }

    fn notice(&self, message: &str) {
        if !self.json {
            let line = format!("dfget: {}", one_line(message));
            self.state.lock().display.above(&line);
        }
    }

    /// The content of a file is known.
    pub fn started(&self, file: &FileJob, by: &str, started: &Started) {
        let mut state = self.state.lock();
        state.reconnecting = false;
        state.running.insert(file.number, (Counts::default(), started.length));
        drop(state);
        self.event(Event::Started {
            url: shown(&file.spec.url),
            output: file.output.to_string_lossy(),
            by,
            length: started.length,
            from_cache: started.from_cache,
        });
    }

    /// So far.
    pub fn progress(&self, number: usize, so_far: Counts) {
        let mut state = self.state.lock();
        if let Some((counts, _)) = state.running.get_mut(&number) {
            *counts = so_far;
        }
        let (sum, length) = state.sum();
        let now = Instant::now();
        if self.json {
            if state.last_progress.is_some_and(|last| now.duration_since(last) < PROGRESS_EVERY) {
                return;
            }
            state.last_progress = Some(now);
            drop(state);
            self.event(Event::Progress { bytes: sum.bytes, length, sources: Sources::of(sum) });
        } else {
            state.display.progress(sum, length, now);
        }
    }

    /// The daemon is lost and will be asked again; said once for each loss.
    pub fn reconnecting(&self, lost_for: Duration) {
        let first = !std::mem::replace(&mut self.state.lock().reconnecting, true);
        if first {
            self.event(Event::Reconnecting { lost_for_s: lost_for.as_secs_f64() });
            self.notice("the dfdaemon is gone, waiting for it to come back");
        }
    }

    /// The engine in this process takes over.
    pub fn fallback(&self, reason: &str) {
        self.event(Event::Fallback { message: reason });
        self.notice(&format!("{reason}; downloading in this process"));
    }

    /// A folder was listed.
    pub fn listed(&self, files: usize) {
        self.event(Event::Listed { files });
    }

    /// `--list`.
    pub fn list(&self, files: &[ListedFile]) {
        for file in files {
            if self.json {
                self.event(Event::Found { url: without_user(&file.url), path: file.path.to_string_lossy() });
            } else {
                self.line(&without_user(&file.url));
            }
        }
    }

    /// One file of several is finished.
    pub fn file(&self, file: &FileJob, result: &Result<Finished, Failure>) {
        let mut state = self.state.lock();
        state.running.remove(&file.number);
        if let Ok(finished) = result {
            state.finished = add(state.finished, finished.done.counts);
        }
        drop(state);
        let about = Event::File { url: shown(&file.spec.url), output: file.output.to_string_lossy() };
        match result {
            Ok(finished) => self.event(With { one: about, other: Good::new(finished.done.counts) }),
            Err(failure) => {
                self.event(With { one: about, other: Failed::new(failure) });
                self.notice(&format!("{}: {}", file.output.display(), failure.message));
            }
        }
    }

    fn seconds(&self) -> f64 {
        (self.begin.elapsed().as_secs_f64() * 1e6).round() / 1e6
    }

    /// The last line for one file.
    pub fn result(&self, output: &Path, result: &Result<Finished, Failure>) {
        self.state.lock().display.end();
        match result {
            Ok(finished) => self.event(Good {
                output: Some(output.to_string_lossy()),
                seconds: Some(self.seconds()),
                by: Some(finished.by),
                output_by: Some(&finished.done.output_by),
                ..Good::new(finished.done.counts)
            }),
            Err(failure) => self.failure(failure),
        }
    }

    /// The last line for a folder.
    pub fn folder_result(&self, job: &Job, folder: &Folder) -> Option<Failure> {
        self.state.lock().display.end();
        let sum = folder.finished.iter().fold(Counts::default(), |sum, finished| add(sum, finished.done.counts));
        let numbers = Good {
            output: Some(job.output.to_string_lossy()),
            seconds: Some(self.seconds()),
            files: Some(folder.finished.len() + folder.failures.len()),
            failed: Some(folder.failures.len()),
            ..Good::new(sum)
        };
        let Some(failure) = worst(folder) else {
            self.event(numbers);
            return None;
        };
        self.event(With { one: Failed::new(&failure), other: Good { ok: None, ..numbers } });
        self.notice(&failure.message);
        Some(failure)
    }

    /// The last line when nothing came to be.
    pub fn failure(&self, failure: &Failure) {
        self.state.lock().display.end();
        self.event(Failed::new(failure));
        self.notice(&failure.message);
    }

    /// The last lines when the command line makes no sense.
    pub fn usage(&self, problems: &[Problem]) {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let failure = Failure::new(Cause::Usage, problems.join("; "));
        self.event(Failed { problems: Some(&problems), ..Failed::new(&failure) });
        for problem in &problems {
            self.notice(problem);
        }
        self.notice("see dfget --help");
    }
}

impl State {
    /// All files, and their length as far as it is known of all that run.
    fn sum(&self) -> (Counts, Option<u64>) {
        let mut sum = self.finished;
        let mut length = Some(self.finished.bytes);
        for (counts, of) in self.running.values() {
            sum = add(sum, *counts);
            length = length.zip(*of).map(|(all, one)| all.saturating_add(one));
        }
        (sum, length)
    }
}

const fn add(a: Counts, b: Counts) -> Counts {
    Counts {
        bytes: a.bytes.saturating_add(b.bytes),
        from_peers: a.from_peers.saturating_add(b.from_peers),
        from_origin: a.from_origin.saturating_add(b.from_origin),
        from_cache: a.from_cache.saturating_add(b.from_cache),
    }
}

/// The failure of a folder: that of its files when they all failed for the same reason.
fn worst(folder: &Folder) -> Option<Failure> {
    let first = folder.failures.first()?;
    let of = folder.finished.len() + folder.failures.len();
    let same = folder.failures.iter().all(|failure| failure.exit() == first.exit());
    let cause = if same { first.cause } else { Cause::Several };
    let mut failure =
        Failure::new(cause, format!("{} of {of} files failed; the first: {}", folder.failures.len(), first.message));
    if same {
        failure.reason = first.reason;
        failure.origin_status = first.origin_status;
    }
    Some(failure)
}

#[cfg(test)]
mod tests;
