//! The live view: what goes over each host's card, for people at a terminal. Quiet anywhere else.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use harness::{Counters, Host};
use parking_lot::Mutex;

/// Between two looks at the counters. Each look asks iproute2 once a host, so not more often.
const EVERY: Duration = Duration::from_millis(500);
/// A bar's length, in characters.
const BAR: usize = 24;

/// Shows lines that are rewritten in place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Live {
    rows: Arc<Mutex<Vec<Row>>>,
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Row {
    label: String,
    host: Host,
    note: String,
    /// What the bar is full at; no bar without.
    goal_bytes: Option<u64>,
    base: Counters,
    last: Counters,
    now: Counters,
}

/// A line of its own on a terminal; nothing anywhere else.
pub(crate) fn say(text: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("{text}");
    }
}

impl Live {
    /// Starts showing these hosts, by label, counted from now on.
    pub(crate) fn start(title: &str, hosts: &[(String, Host)], goal_bytes: Option<u64>) -> Self {
        let rows = hosts.iter().map(|(label, host)| {
            let base = host.counters().unwrap_or_default();
            let (label, host, note) = (label.clone(), host.clone(), String::new());
            Row { label, host, note, goal_bytes, base, last: base, now: base }
        });
        let rows = Arc::new(Mutex::new(rows.collect::<Vec<_>>()));
        if !std::io::stderr().is_terminal() {
            return Self { rows, stop: None, thread: None };
        }
        eprintln!("\n{title}");
        let (stop, stopped) = sync_channel(1);
        let shown = Arc::clone(&rows);
        let began = Instant::now();
        let show = move || {
            let mut lines = 0;
            loop {
                let end = !matches!(stopped.recv_timeout(EVERY), Err(RecvTimeoutError::Timeout));
                lines = draw(&mut shown.lock(), began.elapsed(), lines);
                if end {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("live".into()).spawn(show).ok();
        Self { rows, stop: Some(stop), thread }
    }

    /// Says something behind a host's line.
    pub(crate) fn note(&self, place: usize, text: impl Into<String>) {
        if let Some(row) = self.rows.lock().get_mut(place) {
            row.note = text.into();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Draws over what was drawn before; returns how many lines there are now.
fn draw(rows: &mut [Row], elapsed: Duration, before: usize) -> usize {
    // Long lines are cut off at the terminal's edge: a wrapped one would be two lines when it is drawn over.
    let mut text = "\x1b[?7l".to_owned();
    if before > 0 {
        text.push_str(&format!("\x1b[{before}A"));
    }
    let width = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
    for row in rows.iter_mut() {
        row.last = row.now;
        row.now = row.host.counters().unwrap_or(row.now);
        let line = row.line(width);
        text.push_str(&format!("\x1b[2K{line}\n"));
    }
    text.push_str(&format!("\x1b[2K{:>5.1} s\n\x1b[?7h", elapsed.as_secs_f64()));
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    rows.len() + 1
}

impl Row {
    fn line(&self, width: usize) -> String {
        let (sum, step) = (self.now.since(self.base), self.now.since(self.last));
        let rate = |bytes: u64| bytes as f64 * 8e-6 / EVERY.as_secs_f64();
        let bar = self.goal_bytes.map_or_else(String::new, |goal| {
            let share = sum.received_bytes as f64 / goal.max(1) as f64;
            let full = ((share * BAR as f64) as usize).min(BAR);
            format!(" {}{}", "█".repeat(full), "·".repeat(BAR - full))
        });
        format!(
            "{:<width$}{bar}  in {:>6.1} MB {:>4.0} Mb/s   out {:>6.1} MB {:>4.0} Mb/s  {}",
            self.label,
            sum.received_bytes as f64 / 1e6,
            rate(step.received_bytes),
            sum.sent_bytes as f64 / 1e6,
            rate(step.sent_bytes),
            self.note,
        )
    }
}
