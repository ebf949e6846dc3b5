//! The registry while ten clients push a large blob each.

use anyhow::Result;
use harness::{LinkSpec, Net, Run, SkimmerRegistry};

use crate::{
    live::say,
    load::{self, Contents, Push, Target, Task},
    measure::round,
    registry::ours,
};

/// Clients, and blobs.
const CLIENTS: usize = 10;

/// The most that was ever resident of the registry, in MB, with files and SQLite.
pub(super) fn measure(megabytes: u64, run: &Run) -> Result<f64> {
    say(&format!("pushing {CLIENTS} blobs of {megabytes} MB to the registry"));
    let net = Net::new_or_loopback(&[("host", LinkSpec::default())])?;
    let host = net.host("host");
    let folder = run.data_dir("registry")?;
    let mut registry = ours(&host, run, &SkimmerRegistry::on_files(&folder))?;
    let target = Target::new(registry.addr());
    let length = megabytes * 1_000_000;
    let mut contents = Contents::new(rand::random(), length);
    let pushes: Vec<Task> = (0..CLIENTS)
        .map(|_| Task::Push(Push::new(target.start_upload("memory/pushed"), contents.blob(length), false)))
        .collect();
    host.inside(|| load::all(&target, CLIENTS, pushes.into_iter(), |done| done.result.map(drop)))?;
    Ok(round(registry.process().memory()?.peak_bytes as f64 / 1e6))
}
