//! What the registry counts.

use std::time::Duration;

use http::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use service::metrics::Metrics;

type Labels = Vec<(&'static str, &'static str)>;

/// Bounds of the buckets of durations, in seconds: from a manifest out of memory to a layer over a slow link.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];

/// Counters of a registry process.
#[derive(Clone, Debug)]
pub(crate) struct RegistryMetrics {
    answers: Family<Labels, Counter>,
    durations: Family<Labels, Histogram>,
    blobs_stored: Counter,
    blob_bytes_stored: Counter,
    bytes_rehashed: Counter,
    manifests_pushed: Counter,
    links_looked_at: Counter,
    blobs_removed: Counter,
    bytes_freed: Counter,
    removals_failed: Counter,
    pub(crate) links_due: Gauge,
    pub(crate) links_leased: Gauge,
    pub(crate) removals: Gauge,
    pub(crate) removal_bytes: Gauge,
    pub(crate) uploads_open: Gauge,
    strays_removed: Counter,
}

impl RegistryMetrics {
    /// Registers them; once per process.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let new = Self {
            answers: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            blobs_stored: Counter::default(),
            blob_bytes_stored: Counter::default(),
            bytes_rehashed: Counter::default(),
            manifests_pushed: Counter::default(),
            links_looked_at: Counter::default(),
            blobs_removed: Counter::default(),
            bytes_freed: Counter::default(),
            removals_failed: Counter::default(),
            links_due: Gauge::default(),
            links_leased: Gauge::default(),
            removals: Gauge::default(),
            removal_bytes: Gauge::default(),
            uploads_open: Gauge::default(),
            strays_removed: Counter::default(),
        };
        metrics.register("registry", |registry| {
            registry.register("answers", "Answers, by operation and class of status", new.answers.clone());
            registry.register(
                "answer_seconds",
                "From a request's header to its answer's, by operation",
                new.durations.clone(),
            );
            registry.register("blobs_stored", "Uploads that ended well", new.blobs_stored.clone());
            registry.register("blob_bytes_stored", "Their bytes", new.blob_bytes_stored.clone());
            registry.register(
                "upload_bytes_rehashed",
                "Bytes read back because another hash ran than the digest names",
                new.bytes_rehashed.clone(),
            );
            registry.register("manifests_pushed", "Manifests pushed", new.manifests_pushed.clone());
            registry.register(
                "gc_links_looked_at",
                "Leases that ran out and were looked at",
                new.links_looked_at.clone(),
            );
            registry.register("gc_blobs_removed", "Blobs that nothing needed", new.blobs_removed.clone());
            registry.register("gc_bytes_freed", "Bytes freed in the store", new.bytes_freed.clone());
            registry.register("gc_removals_failed", "Entries the store could not remove", new.removals_failed.clone());
            registry.register("gc_links_due", "Leases that ran out and wait", new.links_due.clone());
            registry.register("gc_links_leased", "Blobs in repositories that hold a lease", new.links_leased.clone());
            registry.register("gc_removals", "Entries of the store that wait to be removed", new.removals.clone());
            registry.register("gc_removal_bytes", "Their bytes", new.removal_bytes.clone());
            registry.register("uploads_open", "Uploads that are not finished", new.uploads_open.clone());
            registry.register(
                "strays_removed",
                "Entries of the store that the database did not know",
                new.strays_removed.clone(),
            );
        });
        new
    }

    pub(crate) fn answered(&self, operation: &'static str, status: StatusCode, duration: Duration) {
        let class = match status.as_u16() {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        self.answers.get_or_create(&vec![("operation", operation), ("status", class)]).inc();
        self.durations.get_or_create(&vec![("operation", operation)]).observe(duration.as_secs_f64());
    }

    pub(crate) fn stored(&self, bytes: u64) {
        self.blobs_stored.inc();
        self.blob_bytes_stored.inc_by(bytes);
    }

    pub(crate) fn rehashed(&self, bytes: u64) {
        self.bytes_rehashed.inc_by(bytes);
    }

    pub(crate) fn pushed(&self) {
        self.manifests_pushed.inc();
    }

    pub(crate) fn collected(&self, links: u64, blobs: u64) {
        self.links_looked_at.inc_by(links);
        self.blobs_removed.inc_by(blobs);
    }

    pub(crate) fn freed(&self, bytes: u64) {
        self.bytes_freed.inc_by(bytes);
    }

    pub(crate) fn removal_failed(&self) {
        self.removals_failed.inc();
    }

    pub(crate) fn strays(&self, count: u64) {
        self.strays_removed.inc_by(count);
    }
}
