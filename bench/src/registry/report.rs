//! What is printed.

use std::fmt;

use serde::Serialize;

use super::plan::{Blobs, Kind};

/// The figures of one test with so many clients. Rates are operations per second, medians of the rounds; times are over
/// all operations of all rounds.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) size_mb: f64,
    pub(super) blobs: Blobs,
    pub(super) clients: usize,
    pub(super) ours_rps: f64,
    pub(super) peer_rps: f64,
    pub(super) ratio: f64,
    pub(super) ratio_min: f64,
    pub(super) ratio_max: f64,
    pub(super) limit_rps: Option<f64>,
    pub(super) floor_ms: Option<f64>,
    pub(super) ours_p50_ms: f64,
    pub(super) ours_p99_ms: f64,
    #[serde(skip)]
    pub(super) peer_p50_ms: f64,
    pub(super) peer_p99_ms: f64,
    pub(super) ours_cpu_s_per_gb: Option<f64>,
    pub(super) peer_cpu_s_per_gb: Option<f64>,
    /// The promises that it breaks; they are told for all rows together.
    #[serde(skip)]
    pub(super) missed: Vec<String>,
}

/// All rows.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) tests: Vec<Row>,
    /// Uploads that were acknowledged, and afterwards pulled back with the right digest.
    pub(super) verified: usize,
    pub(super) missed: Vec<String>,
}

impl Report {
    /// The columns' names, as wide as [`Row`]'s figures.
    pub(super) const TITLE: &'static str = "test                c     ours/s  Distribution/s  ratio (min to max)      limit/s  floor ms   p50 ms   p99 ms  its p50  its p99  CPU-s/GB  its";
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f64>, decimals| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.decimals$}"));
        write!(
            f,
            "{:<18} {:>2} {:>10.1} {:>15.1} {:>6.2} ({:>6.2} to {:>6.2}) {:>8} {:>9} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>9} {:>6}",
            self.name,
            self.clients,
            self.ours_rps,
            self.peer_rps,
            self.ratio,
            self.ratio_min,
            self.ratio_max,
            number(self.limit_rps, 0),
            number(self.floor_ms, 2),
            self.ours_p50_ms,
            self.ours_p99_ms,
            self.peer_p50_ms,
            self.peer_p99_ms,
            number(self.ours_cpu_s_per_gb, 3),
            number(self.peer_cpu_s_per_gb, 3),
        )
    }
}
