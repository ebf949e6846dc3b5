//! `bench memory`: what a dfdaemon keeps in memory, idle and while it pulls an image and uploads it; and what the
//! registry keeps while large blobs are pushed to it.

mod pushes;

use std::{fs, path::PathBuf, process::ExitCode, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    Cluster, Compression, Content, Daemon, Host, Image, LinkSpec, Net, ProcBuilder, Registry, RegistryAuth, Run,
};
use proto::Digest;
use serde::Serialize;

use crate::{
    fleet::{Job, at_once},
    live::{Live, say},
    measure::{counter, explain, hold, round},
};

/// The seed's way up: narrow enough that the second host gets most of its bytes from the first.
const SEED_BITS_PER_S: u64 = 800_000_000;
/// A daemon that has had nothing to do for so long, a session with its supernode aside, is idle.
const IDLE: Duration = Duration::from_secs(5);
/// The whole pull; on an idle machine it takes less than a minute.
const DEADLINE: Duration = Duration::from_secs(900);
/// Layers of the image: docker, containerd and podman fetch three at a time.
const LAYERS: u64 = 3;
/// What the host has to upload of the image for the figure to count.
const UPLOAD_SHARE_MIN: f64 = 0.2;
/// The image's name.
const REPOSITORY: &str = "library/big";

/// Arguments of `bench memory`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    /// Size of the image, in megabytes of 10^6 bytes.
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(30..=100_000))]
    megabytes: u64,
    /// Size of each of ten blobs that are pushed to the registry at the same time, in megabytes of 10^6 bytes.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    push_megabytes: u64,
    /// Where data lies; the folder for temporary files when not given. It needs room for six images.
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    idle_mb: f64,
    pull_peak_mb: f64,
    registry_push_mb: f64,
}

/// Runs the bench and prints what came out.
///
/// # Errors
/// When something does not start, a pull fails, or the host did not upload.
pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(folder) = &args.folder {
        crate::measure::data_folder(Some(folder), 0)?;
    }
    let run = Run::new()?;
    let (idle_mb, pull_peak_mb) = explain(&run, measure(args, &run))?;
    // Its files go before the next ones come.
    drop(run);
    let run = Run::new()?;
    let registry_push_mb = explain(&run, pushes::measure(args.push_megabytes, &run))?;
    let report = Report { idle_mb, pull_peak_mb, registry_push_mb };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!(
            "a dfdaemon has {:.1} MB when idle, and at most {:.1} MB while it pulls and uploads; the registry has at most {:.1} MB while ten blobs are pushed",
            report.idle_mb, report.pull_peak_mb, report.registry_push_mb
        );
    }
    Ok(hold(&[
        ("idle_mb", report.idle_mb, 40.0),
        ("pull_peak_mb", report.pull_peak_mb, 150.0),
        ("registry_push_mb", report.registry_push_mb, 150.0),
    ]))
}

/// Idle, and at the peak of the pull, in MB.
fn measure(args: &Args, run: &Run) -> Result<(f64, f64)> {
    let seed = LinkSpec { up_bits_per_s: Some(SEED_BITS_PER_S), down_bits_per_s: None };
    let net = Net::new_or_loopback(&[
        ("origin", LinkSpec::default()),
        ("seed", seed),
        ("first", LinkSpec::default()),
        ("second", LinkSpec::default()),
    ])?;
    let registry = Registry::start(&net.host("origin"), run, &RegistryAuth::Open, None)?;
    say(&format!("making an image of {} MB", args.megabytes));
    let bytes = args.megabytes * 1_000_000;
    let layers = push(bytes, &registry, run)?;
    let builder = Cluster::builder(&net, run).supernode("seed").upstream(&registry);
    let mut cluster = builder.daemon("first").daemon("second").start()?;
    cluster.wait_sessions()?;
    thread::sleep(IDLE);
    let idle = cluster.daemon("first").process().memory()?.peak_bytes;

    let jobs: Vec<Job> = cluster
        .daemons
        .iter()
        .flat_map(|daemon| layers.iter().map(|layer| pulling(daemon, &registry, layer)))
        .collect();
    let shown: Vec<(String, Host)> =
        ["first", "second", "seed", "origin"].map(|name| (name.to_owned(), net.host(name))).into();
    let live = Live::start("two hosts pull it through each other", &shown, Some(bytes));
    at_once(jobs, DEADLINE, |_| ())?;
    drop(live);

    let uploaded = counter(cluster.daemon_on("first"), "skimmer_peer_uploaded_bytes_total")?;
    ensure!(
        uploaded as f64 >= bytes as f64 * UPLOAD_SHARE_MIN,
        "the host uploaded only {uploaded} bytes of {bytes}, so its memory while uploading is not known"
    );
    let peak = cluster.daemon("first").process().memory()?.peak_bytes;
    Ok((round(idle as f64 / 1e6), round(peak as f64 / 1e6)))
}

/// Puts an image into the registry, keeping nothing else of it; returns its layers.
fn push(bytes: u64, registry: &Registry, run: &Run) -> Result<Vec<Digest>> {
    let builder = (0..LAYERS)
        .fold(Image::builder(), |builder, _| builder.layer(bytes / LAYERS, Compression::None, Content::Random));
    let image = builder.build(run)?;
    image.push(registry, REPOSITORY, "v1")?;
    fs::remove_dir_all(image.folder()).context("cannot remove the image's files")?;
    Ok(image.platform().layers.clone())
}

/// A client of the daemon's mirror that pulls one layer as runtimes do, as one stream. curl checks its length.
fn pulling(daemon: &Daemon, registry: &Registry, layer: &Digest) -> Job {
    let url = format!("http://{}/v2/{REPOSITORY}/blobs/{layer}", daemon.mirror_of(registry.name()));
    let curl: ProcBuilder = daemon.host().program("curl").args(["-sSf", "--noproxy", "*", "-o", "/dev/null"]).arg(url);
    Job { name: format!("{layer} on {}", daemon.host().name()), program: curl }
}
