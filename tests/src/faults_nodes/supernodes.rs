//! Supernodes and config-services killed in the middle of downloads.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    Cluster, Compression, Containerd, Content, Docker, DockerOptions, FileServer, HostsToml, Image, Net, Proc,
    Registry, RegistryAuth, Run, blob_bytes,
};
use proto::Digest;

use super::{digest_of, ends_well, files, net, output, proxied, random_file, ratio, wait_received};
use crate::runner::{Case, CaseResult, Outcome, rooted};

/// Some seconds at the origin's rate.
const ORIGIN_MBIT: u64 = 160;
const LAYERS: [u64; 3] = [45_000_000, 30_000_000, 15_000_000];
const FILE_BYTES: u64 = 90_000_000;
/// dfget, docker and containerd together 20 times.
const OF_20: [usize; 3] = [7, 7, 6];
/// The proxy read by curl, beyond those.
const PROXY_ROUNDS: usize = 5;
/// Share of the bytes after which something is killed: from the first in steps.
const FIRST_POINT: f64 = 0.12;
const POINT_STEP: f64 = 0.04;
/// How long a killed program stays away before it is started again.
const AWAY: Duration = Duration::from_millis(500);

pub(super) fn cases() -> Vec<Case> {
    vec![
        rooted("faults: supernode or config-service killed in mid-download, dfget, 7 of 20", |run| {
            under(run, Client::Dfget)
        }),
        rooted("faults: supernode or config-service killed in mid-download, proxy", |run| under(run, Client::Proxy)),
        rooted("faults: supernode or config-service killed in mid-download, docker, 7 of 20", |run| {
            under(run, Client::Docker)
        }),
        rooted("faults: supernode or config-service killed in mid-download, containerd, 6 of 20", |run| {
            under(run, Client::Containerd)
        }),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Dfget,
    Docker,
    Containerd,
    Proxy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The only supernode is killed and started again.
    SupernodeRestarts,
    /// The supernode that reads the origin is killed for good; the cluster has another.
    SecondTakesOver,
    /// config-service is killed and started again.
    ConfigServiceRestarts,
}

const FAULTS: [Fault; 5] = [
    Fault::SupernodeRestarts,
    Fault::SecondTakesOver,
    Fault::ConfigServiceRestarts,
    Fault::SupernodeRestarts,
    Fault::SecondTakesOver,
];

impl Client {
    /// How many times, and which of the points from 10 to 90 % each time is about.
    fn points(self) -> Vec<usize> {
        let turn = self as usize;
        match self {
            Self::Proxy => (0..PROXY_ROUNDS).map(|round| round * 4).collect(),
            _ => (0..OF_20[turn]).map(|round| round * OF_20.len() + turn).collect(),
        }
    }
}

/// What is downloaded, and where from.
enum Origin {
    Files(FileServer),
    Images(Registry),
}

/// What one round downloads.
enum Thing {
    File { name: String, digest: Digest },
    Image { image: Image, reference: String },
}

/// A download that runs.
enum Download {
    File { proc: Proc, output: PathBuf },
    Docker { proc: Proc, docker: Docker },
    Containerd { proc: Proc, containerd: Containerd, _hosts: HostsToml },
    Blobs { proc: Proc, outputs: Vec<(PathBuf, Digest)> },
}

fn under(run: &Run, client: Client) -> CaseResult {
    let net = net(ORIGIN_MBIT, &[("s0", 400), ("s1", 400), ("a", 200), ("b", 200)])?;
    let origin = match client {
        Client::Dfget | Client::Proxy => Origin::Files(files(&net, run)?),
        Client::Docker | Client::Containerd => {
            Origin::Images(Registry::start(&net.host("origin"), run, &RegistryAuth::Open, None)?)
        }
    };
    let mut problems = Vec::new();
    let numbers = client.points();
    let rounds = numbers.len();
    for (round, number) in numbers.into_iter().enumerate() {
        let fault = FAULTS[(round + client as usize) % FAULTS.len()];
        let point = FIRST_POINT + POINT_STEP * number as f64;
        let told = format!("{client:?} {fault:?} at {:.0} %", point * 100.0);
        match one(run, &net, &origin, client, fault, point, number as u64) {
            Ok(text) => run.note(format!("{told}: {text}")),
            Err(error) => {
                run.note(format!("{told}: FAILED: {error:#}"));
                problems.push(format!("{told}: {error:#}"));
            }
        }
    }
    ensure!(problems.is_empty(), "{} of {rounds} failed:\n{}", problems.len(), problems.join("\n"));
    Ok(Outcome::Passed)
}

/// One download by two hosts, with one fault in it.
fn one(run: &Run, net: &Net, origin: &Origin, client: Client, fault: Fault, point: f64, seed: u64) -> Result<String> {
    let thing = origin.make(run, seed)?;
    let bytes = thing.bytes()?;
    let mut builder = Cluster::builder(net, run).supernode("s0").daemon("a").daemon("b");
    if fault == Fault::SecondTakesOver {
        builder = builder.supernode("s1");
    }
    if fault == Fault::ConfigServiceRestarts {
        builder = builder.config_service("s1");
    }
    if let Origin::Images(registry) = origin {
        builder = builder.upstream(registry);
    }
    let mut cluster = builder.start()?;
    cluster.wait_sessions()?;
    let before = (origin.sent(&thing)?, net.host("origin").counters()?, net.host("a").counters()?);
    let mut downloads = [
        Download::start(run, origin, &thing, client, &cluster, "a")?,
        Download::start(run, origin, &thing, Client::Proxy, &cluster, "b")?,
    ];
    let share = wait_received(&net.host("a"), before.2, point, bytes)?;
    ensure!((0.1..0.9).contains(&share), "killed at {:.0} %, too late", share * 100.0);
    strike(&mut cluster, fault)?;
    for (download, host) in downloads.iter_mut().zip(["a", "b"]) {
        download.finish(&thing).with_context(|| format!("on {host}, killed at {:.1} %", share * 100.0))?;
    }
    // An answer is logged when it ended.
    std::thread::sleep(Duration::from_millis(200));
    let copies = ratio(origin.sent(&thing)? - before.0, bytes);
    let wire = ratio(net.host("origin").counters()?.since(before.1).sent_bytes, bytes);
    let limit = if fault == Fault::SecondTakesOver { 1.10 } else { 1.02 };
    let text = format!("killed at {:.1} %, origin copies {copies:.3} by its log, {wire:.3} on its link", share * 100.0);
    ensure!(copies <= limit, "{text}: more than {limit}");
    Ok(text)
}

fn strike(cluster: &mut Cluster, fault: Fault) -> Result<()> {
    match fault {
        Fault::SupernodeRestarts => {
            cluster.supernodes[0].process().kill()?;
            std::thread::sleep(AWAY);
            cluster.supernodes[0].restart()
        }
        Fault::SecondTakesOver => {
            let mut read = Vec::new();
            for supernode in &cluster.supernodes {
                read.push(supernode.metric("skimmer_peer_origin_bytes_total")?);
            }
            let owner = usize::from(read[1] > read[0]);
            cluster.supernodes[owner].process().kill().map(drop)
        }
        Fault::ConfigServiceRestarts => {
            let config_service = cluster.config_service.as_mut().context("a config-service was started")?;
            config_service.process().kill()?;
            std::thread::sleep(AWAY);
            config_service.restart()
        }
    }
}

// === impl Origin ===

impl Origin {
    fn make(&self, run: &Run, seed: u64) -> Result<Thing> {
        match self {
            Self::Files(files) => {
                let name = format!("p2p/{seed}");
                let digest = random_file(&files.root().join(&name), FILE_BYTES, seed + 1)?;
                Ok(Thing::File { name, digest })
            }
            Self::Images(registry) => {
                let mut builder = Image::builder().seed(seed + 1);
                for bytes in LAYERS {
                    builder = builder.layer(bytes, Compression::None, Content::Random);
                }
                let image = builder.build(run)?;
                let reference = image.push(registry, "team/app", &format!("v{seed}"))?;
                Ok(Thing::Image { image, reference })
            }
        }
    }

    /// Body bytes that it says it sent of this.
    fn sent(&self, thing: &Thing) -> Result<u64> {
        match (self, thing) {
            (Self::Files(files), Thing::File { name, .. }) => files.bytes_sent(name),
            (Self::Images(registry), _) => Ok(blob_bytes(&registry.access_log()?)),
            _ => unreachable!("files come from file servers"),
        }
    }
}

impl Thing {
    fn bytes(&self) -> Result<u64> {
        match self {
            Self::File { .. } => Ok(FILE_BYTES),
            Self::Image { image, .. } => image.pulled_bytes(),
        }
    }
}

// === impl Download ===

impl Download {
    fn start(run: &Run, origin: &Origin, thing: &Thing, client: Client, cluster: &Cluster, host: &str) -> Result<Self> {
        let daemon = cluster.daemon_on(host);
        match (thing, origin) {
            (Thing::File { name, .. }, Origin::Files(files)) => {
                let (url, output) = (files.url(name), output(run)?);
                let proc = match client {
                    Client::Dfget => daemon.dfget(&url, &output)?.start(run, "dfget")?,
                    _ => proxied(run, daemon, &url, &output)?,
                };
                Ok(Self::File { proc, output })
            }
            (Thing::Image { image, reference }, Origin::Images(registry)) => match client {
                Client::Docker => {
                    let options = DockerOptions {
                        insecure: vec![registry.name().to_owned()],
                        proxy: Some(format!("http://{}", daemon.addr())),
                        ..DockerOptions::default()
                    };
                    let docker = Docker::start(daemon.host(), run, &options)?;
                    Ok(Self::Docker { proc: docker.pulling(reference).start(run, "docker-pull")?, docker })
                }
                Client::Containerd => {
                    let containerd = Containerd::start(daemon.host(), run)?;
                    let mirror = format!("http://{}", daemon.addr());
                    let hosts = HostsToml::new(run)?.registry(registry.name(), &registry.url(""), &[&mirror], None)?;
                    let proc = containerd.pulling(reference, &hosts, None).start(run, "ctr-pull")?;
                    Ok(Self::Containerd { proc, containerd, _hosts: hosts })
                }
                _ => {
                    let folder = run.data_dir("blobs")?;
                    let mut curl = daemon.host().program("curl").args(["-sSf", "--noproxy", "*", "--fail-early"]);
                    let mut outputs = Vec::new();
                    for (number, layer) in image.platform().layers.iter().enumerate() {
                        let output = folder.join(number.to_string());
                        let url = format!("http://{}/v2/team/app/blobs/{layer}?ns={}", daemon.addr(), registry.name());
                        curl = curl.arg("-o").arg(&output).arg(url);
                        outputs.push((output, layer.clone()));
                    }
                    Ok(Self::Blobs { proc: curl.start(run, "curl")?, outputs })
                }
            },
            _ => unreachable!("files come from file servers"),
        }
    }

    fn finish(&mut self, thing: &Thing) -> Result<()> {
        match (self, thing) {
            (Self::File { proc, output }, Thing::File { digest, .. }) => {
                ends_well(proc, "the download")?;
                ensure!(digest_of(output)? == *digest, "the file is not the origin's");
            }
            (Self::Docker { proc, docker }, Thing::Image { image, reference }) => {
                ends_well(proc, "docker pull")?;
                docker.read_back(reference)?.verify(image)?;
            }
            (Self::Containerd { proc, containerd, .. }, Thing::Image { image, reference }) => {
                ends_well(proc, "ctr images pull")?;
                containerd.read_back(reference)?.verify(image)?;
            }
            (Self::Blobs { proc, outputs }, _) => {
                ends_well(proc, "curl of all blobs")?;
                for (output, digest) in outputs {
                    ensure!(digest_of(output)? == *digest, "a blob is not the registry's");
                }
            }
            _ => unreachable!("files come from file servers"),
        }
        Ok(())
    }
}
