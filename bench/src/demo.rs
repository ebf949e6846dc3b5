//! `bench demo`: hosts pull a real image and a file through each other, and the origin is read once.
//!
//! Each promise is checked with what is counted outside our programs, and any broken one makes the exit code 1.

mod clients;

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    Cluster, Compression, Content, FileServer, FileServerOptions, Host, Image, LinkSpec, Net, Registry, RegistryAuth,
    Run, blob_bytes,
};
use serde::Serialize;

use self::clients::Client;
use crate::{
    fleet::{Job, Laps, at_once},
    live::{Live, say},
    measure::{counter, explain, random_file, round},
};

/// Every link, each way.
const BITS_PER_S: u64 = 200_000_000;
/// The image is at least this large, as it travels.
const IMAGE_BYTES_MIN: u64 = 200_000_000;
/// The file that follows it.
const FILE_BYTES: u64 = 100_000_000;
/// A pull; with everything from one origin over one link, one after another, it would take less than a minute.
const DEADLINE: Duration = Duration::from_secs(300);
/// What the origin may send, in copies of the content.
const ORIGIN_COPIES_MAX: f64 = 1.02;
/// What the seed may send, in copies of the image.
const SEED_COPIES_MAX: f64 = 2.0;
/// A host that sent this share of the image has uploaded: acknowledgements and requests are a tenth of it.
const UPLOAD_SHARE_MIN: f64 = 0.03;
/// As clients name it; docker takes it for one of docker.io's.
const REPOSITORY: &str = "library/demo";

/// Arguments of `bench demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print one line of JSON at the end.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    hosts: usize,
    image_bytes: u64,
    origin_bytes: u64,
    origin_copies: f64,
    seed_copies: f64,
    uploaded_bytes: Vec<u64>,
    seconds: f64,
    verified: bool,
}

/// Everything that runs.
struct Stage {
    net: Net,
    registry: Registry,
    image: Image,
    files: FileServer,
    cluster: Cluster,
    clients: Vec<Client>,
}

/// Runs the demo and prints what came out; the exit code says whether every promise was kept.
///
/// # Errors
/// When something does not start, or a client fails.
pub fn run(args: &Args) -> Result<ExitCode> {
    let run = Run::new()?;
    if !harness::is_root() {
        eprintln!(
            "no root: hosts are loopback addresses without a rate, skopeo stands in for docker, containerd and podman, and what nodes send is their own word"
        );
    }
    let (report, broken) = explain(&run, play(&run))?;
    for promise in &broken {
        eprintln!("broken promise: {promise}");
    }
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn play(run: &Run) -> Result<(Report, Vec<String>)> {
    let stage = Stage::build(run)?;
    let mut broken = Vec::new();
    let image_bytes = stage.image.pulled_bytes()?;

    let log_length = stage.registry.access_log()?.len();
    let before = stage.sent()?;
    let laps = stage.pull(image_bytes)?;
    let after = stage.sent()?;
    let origin_bytes = blob_bytes(&stage.registry.access_log()?[log_length..]);
    let sent: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after.saturating_sub(*before)).collect();
    let (seed_sent, uploaded) = sent.split_first().context("there is a seed")?;

    say("reading the image back from every runtime");
    for client in &stage.clients {
        if let Err(error) = client.read_back().and_then(|pulled| pulled.verify(&stage.image)) {
            broken.push(format!("{} has another image: {error:#}", client.name()));
        }
    }
    let file_copies = stage.file(run, &mut broken)?;
    let verified = broken.is_empty();
    if file_copies > ORIGIN_COPIES_MAX {
        broken.push(format!("the file was read {file_copies:.3} times from its origin"));
    }

    let copies = |bytes: u64| round(bytes as f64 / image_bytes as f64);
    let report = Report {
        hosts: stage.clients.len(),
        image_bytes,
        origin_bytes,
        origin_copies: copies(origin_bytes),
        seed_copies: copies(*seed_sent),
        uploaded_bytes: uploaded.to_vec(),
        seconds: round(laps.last().as_secs_f64()),
        verified,
    };
    broken.extend(report.broken(&stage.clients));
    Ok((report, broken))
}

// === impl Stage ===

impl Stage {
    fn build(run: &Run) -> Result<Self> {
        let names: Vec<String> = (1..=clients::COUNT).map(|number| format!("host{number}")).collect();
        let link = LinkSpec::both(BITS_PER_S);
        let mut links = vec![("origin", link), ("seed", link)];
        links.extend(names.iter().map(|name| (name.as_str(), link)));
        let net = if harness::is_root() {
            Net::new(&links)?
        } else {
            Net::loopback(&links.iter().map(|(name, _)| *name).collect::<Vec<_>>())
        };
        say("making an image of real files");
        let image = image(run)?;
        let registry = Registry::start(&net.host("origin"), run, &RegistryAuth::Open, None)?;
        image.push(&registry, REPOSITORY, "v1")?;
        let files = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
        say("starting a seed, and a dfdaemon and a container runtime on every host");
        let builder = Cluster::builder(&net, run).supernode("seed").upstream(&registry);
        let cluster = names.iter().fold(builder, |builder, name| builder.daemon(name)).start()?;
        cluster.wait_sessions()?;
        let clients = clients::start(run, &registry, &cluster, REPOSITORY, "v1")?;
        Ok(Self { net, registry, image, files, cluster, clients })
    }

    /// What the seed and then each host has sent: by its interface, or by its own word where it has none.
    fn sent(&self) -> Result<Vec<u64>> {
        let nodes = self.cluster.supernodes.iter().chain(&self.cluster.daemons);
        let sent = nodes.map(|node| match self.net.is_real() {
            true => Ok(node.host().counters()?.sent_bytes),
            false => counter(node, "skimmer_peer_uploaded_bytes_total"),
        });
        sent.collect()
    }

    fn live(&self, title: &str, bytes: u64) -> Live {
        let label = |client: &Client| (client.name().to_owned(), client.host().clone());
        let others = ["seed", "origin"].map(|name| (name.to_owned(), self.net.host(name)));
        let shown: Vec<(String, Host)> = self.clients.iter().map(label).chain(others).collect();
        Live::start(title, &shown, Some(bytes))
    }

    /// All clients pull the image at the same time.
    fn pull(&self, bytes: u64) -> Result<Laps> {
        let jobs = self
            .clients
            .iter()
            .map(|client| Job { name: client.name().to_owned(), program: client.pulling() })
            .collect();
        let title = format!("{} hosts pull an image of {} MB at the same time", self.clients.len(), bytes / 1_000_000);
        let (live, began) = (self.live(&title, bytes), Instant::now());
        at_once(jobs, DEADLINE, |place| {
            live.note(place, format!("pulled and unpacked in {:.1} s", began.elapsed().as_secs_f64()));
        })
    }

    /// All hosts download a file by dfget; says which have something else, and returns how often the origin was read.
    fn file(&self, run: &Run, broken: &mut Vec<String>) -> Result<f64> {
        let wanted = random_file(&self.files.root().join("file"), FILE_BYTES, 2)?;
        let folder = run.data_dir("downloads")?;
        let outputs: Vec<PathBuf> = (0..self.clients.len()).map(|number| folder.join(number.to_string())).collect();
        let url = self.files.url("file");
        let jobs = self.cluster.daemons.iter().zip(&outputs).map(|(daemon, output)| -> Result<Job> {
            Ok(Job {
                name: format!("dfget on {}", daemon.host().name()),
                program: daemon.dfget(&url, output)?.arg("--json"),
            })
        });
        let jobs: Vec<Job> = jobs.collect::<Result<_>>()?;
        let title = format!("they download a file of {} MB by dfget", FILE_BYTES / 1_000_000);
        let (live, began) = (self.live(&title, FILE_BYTES), Instant::now());
        at_once(jobs, DEADLINE, |place| {
            live.note(place, format!("downloaded in {:.1} s", began.elapsed().as_secs_f64()));
        })?;
        drop(live);
        for (client, output) in self.clients.iter().zip(&outputs) {
            let sum = client.host().program("sha256sum").arg(output).run(DEADLINE)?;
            let found = String::from_utf8_lossy(&sum.stdout).split(' ').next().unwrap_or_default().to_owned();
            if found != wanted.hex() {
                broken.push(format!("dfget on {} wrote {found}, not {}", client.host().name(), wanted.hex()));
            }
            fs::remove_file(output)?;
        }
        Ok(self.files.bytes_sent("file")? as f64 / FILE_BYTES as f64)
    }
}

/// Three layers of programs, libraries and texts of this machine, and of bytes that cannot be compressed.
fn image(run: &Run) -> Result<Image> {
    let image = Image::builder()
        .layer(130_000_000, Compression::Gzip, Content::Mixed)
        .layer(110_000_000, Compression::Gzip, Content::Mixed)
        .layer(70_000_000, Compression::None, Content::Random)
        .build(run)?;
    let bytes = image.pulled_bytes()?;
    ensure!(bytes >= IMAGE_BYTES_MIN, "the image has only {bytes} bytes");
    Ok(image)
}

// === impl Report ===

impl Report {
    /// What is not as promised.
    fn broken(&self, clients: &[Client]) -> Vec<String> {
        let mut broken = Vec::new();
        if self.origin_copies > ORIGIN_COPIES_MAX {
            broken.push(format!(
                "the origin sent {} copies of the image, more than {ORIGIN_COPIES_MAX}",
                self.origin_copies
            ));
        }
        if self.seed_copies > SEED_COPIES_MAX {
            broken.push(format!("the seed sent {} copies of the image, more than {SEED_COPIES_MAX}", self.seed_copies));
        }
        for (client, &sent) in clients.iter().zip(&self.uploaded_bytes) {
            let share = sent as f64 / self.image_bytes as f64;
            if share < UPLOAD_SHARE_MIN {
                broken.push(format!("{} sent only {sent} bytes: it did not upload", client.name()));
            }
        }
        broken
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let uploaded: Vec<String> =
            self.uploaded_bytes.iter().map(|bytes| format!("{:.0} MB", *bytes as f64 / 1e6)).collect();
        write!(
            f,
            "{} hosts have the image of {:.0} MB after {:.1} s; the origin sent {:.3} copies, the seed {:.2}; the hosts sent {}; {}",
            self.hosts,
            self.image_bytes as f64 / 1e6,
            self.seconds,
            self.origin_copies,
            self.seed_copies,
            uploaded.join(", "),
            if self.verified { "everything verified" } else { "NOT what the origin has" },
        )
    }
}
