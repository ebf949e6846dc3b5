//! Progress for people: a bar on a terminal, lines elsewhere when they were asked for, otherwise nothing.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};

use crate::backend::Counts;
use crate::options::Show;

/// What is done sooner needs no bar, and should not pay for one.
const BAR_AFTER: Duration = Duration::from_millis(300);
/// One line each second.
const LINE_EVERY: Duration = Duration::from_secs(1);

const WITH_LENGTH: &str = "{bar:30} {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left  {msg}";
const WITHOUT_LENGTH: &str = "{spinner} {binary_bytes}  {binary_bytes_per_sec}  {msg}";

/// Where progress goes.
#[derive(Debug)]
pub(super) enum Display {
    Nothing,
    /// A bar, made when it is worth it.
    Terminal {
        begin: Instant,
        bar: Option<(ProgressBar, bool)>,
    },
    Lines {
        begin: Instant,
        last: Instant,
    },
}

impl Display {
    pub(super) fn new(show: Show, begin: Instant) -> Self {
        if show.json {
            Self::Nothing
        } else if show.bar && std::io::stderr().is_terminal() {
            Self::Terminal { begin, bar: None }
        } else if show.lines {
            Self::Lines { begin, last: begin }
        } else {
            Self::Nothing
        }
    }

    pub(super) fn progress(&mut self, sum: Counts, length: Option<u64>, now: Instant) {
        match self {
            Self::Nothing => {}
            Self::Terminal { begin, bar } => {
                if now.duration_since(*begin) < BAR_AFTER {
                    return;
                }
                let (bar, styled_with_length) = bar.get_or_insert_with(|| {
                    (ProgressBar::new(0).with_elapsed(now.duration_since(*begin)), length.is_none())
                });
                if *styled_with_length != length.is_some() {
                    *styled_with_length = length.is_some();
                    let template = if length.is_some() { WITH_LENGTH } else { WITHOUT_LENGTH };
                    bar.set_style(
                        ProgressStyle::with_template(template)
                            .unwrap_or_else(|_| ProgressStyle::default_bar())
                            .progress_chars("=> "),
                    );
                }
                bar.set_length(length.unwrap_or(0));
                bar.set_message(share(sum));
                bar.set_position(sum.bytes);
            }
            Self::Lines { begin, last } => {
                if now.duration_since(*last) < LINE_EVERY {
                    return;
                }
                *last = now;
                let line = line(sum, length, now.duration_since(*begin));
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
    }

    /// A message; the bar, if there is one, stays below it.
    pub(super) fn above(&self, line: &str) {
        let print = || {
            // Nobody is left to tell when stderr is gone.
            let _ = writeln!(std::io::stderr(), "{line}");
        };
        match self {
            Self::Terminal { bar: Some((bar, _)), .. } => bar.suspend(print),
            _ => print(),
        }
    }

    pub(super) fn end(&mut self) {
        if let Self::Terminal { bar, .. } = self
            && let Some((bar, _)) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

/// Whence the bytes come.
fn share(sum: Counts) -> String {
    if sum.bytes == 0 {
        return String::new();
    }
    format!("{} % from peers", u128::from(sum.from_peers) * 100 / u128::from(sum.bytes))
}

fn line(sum: Counts, length: Option<u64>, time: Duration) -> String {
    let of = length.map(|length| format!(" of {}", BinaryBytes(length))).unwrap_or_default();
    let rate = sum.bytes as f64 / time.as_secs_f64().max(0.001);
    format!("{}{of}  {}/s  {}", BinaryBytes(sum.bytes), BinaryBytes(rate as u64), share(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_far_how_fast_and_whence() {
        let sum = Counts { bytes: 50 << 20, from_peers: 40 << 20, from_origin: 10 << 20, from_cache: 0 };
        assert_eq!(
            line(sum, Some(100 << 20), Duration::from_secs(5)),
            "50.00 MiB of 100.00 MiB  10.00 MiB/s  80 % from peers"
        );
        assert_eq!(line(Counts::default(), None, Duration::ZERO), "0 B  0 B/s  ");
    }

    #[test]
    fn the_templates_are_valid() {
        for template in [WITH_LENGTH, WITHOUT_LENGTH] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
