//! Prometheus metrics of a process.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// The content type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A cheap handle on the registry of a process. All names start with `skimmer_`, but for the usual `process_…`.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// A registry with `skimmer_build_info` and the state of the process.
    #[must_use]
    pub fn new(binary: &str, version: &str) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        let labels = vec![("binary", binary.to_owned()), ("version", version.to_owned())];
        registry.sub_registry_with_prefix("skimmer").register("build", "What this process is", Info::new(labels));
        Self { registry: Arc::new(Mutex::new(registry)) }
    }

    /// Lets `register` add metrics; their names get the prefix `skimmer_<part>_`.
    pub fn register<R>(&self, part: &str, register: impl FnOnce(&mut Registry) -> R) -> R {
        let mut registry = self.registry.lock();
        register(registry.sub_registry_with_prefix("skimmer").sub_registry_with_prefix(part))
    }

    /// All metrics in the OpenMetrics text format.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock();
        // Writing to a String does not fail; a collector of ours might.
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &registry) {
            tracing::error!(%error, "metrics could not be encoded");
        }
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// The state of this process as the kernel tells it.
#[derive(Debug)]
struct Process;

/// Clock ticks per second in `/proc/self/stat`; the kernel's ABI fixes it at 100 on all our platforms.
const TICKS_PER_S: f64 = 100.0;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, unit: Option<Unit>, value: Option<u64>| match value {
            Some(value) => {
                let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
                gauge.encode(encoder.encode_descriptor(name, help, unit.as_ref(), gauge.metric_type())?)
            }
            None => Ok(()),
        };
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |field| status_field(&status, field).map(|kib| kib * 1024);
        gauge("process_resident_memory", "Memory in use", Some(Unit::Bytes), kib("VmRSS:"))?;
        gauge("process_resident_memory_peak", "Most memory ever in use", Some(Unit::Bytes), kib("VmHWM:"))?;
        gauge("process_threads", "Threads", None, status_field(&status, "Threads:"))?;
        let open = std::fs::read_dir("/proc/self/fd").map(|entries| entries.count() as u64).ok();
        gauge("process_open_fds", "Open file descriptors", None, open)?;
        gauge("process_max_fds", "File descriptors it may open", None, max_fds())?;
        if let Some(seconds) = cpu_seconds() {
            let counter = ConstCounter::new(seconds);
            counter.encode(encoder.encode_descriptor(
                "process_cpu",
                "Processor time used",
                Some(&Unit::Seconds),
                counter.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

fn status_field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

fn max_fds() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    status_field(&limits, "Max open files")
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may hold anything; the fields after it are fixed.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS_PER_S)
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn text_of_a_process() {
        let metrics = Metrics::new("config-service", "0.1.0");
        let counter: Counter = metrics.register("part", |registry| {
            let counter = Counter::default();
            registry.register("things", "Things", counter.clone());
            counter
        });
        counter.inc();
        let text = metrics.encode();
        for line in [
            "skimmer_build_info{binary=\"config-service\",version=\"0.1.0\"} 1",
            "skimmer_part_things_total 1",
            "process_resident_memory_bytes ",
            "process_open_fds ",
            "process_cpu_seconds_total ",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
