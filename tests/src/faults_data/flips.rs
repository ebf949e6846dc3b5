//! The origin flips one byte of the first piece of a content whose digest is known.

use std::fs;

use anyhow::{bail, ensure};
use harness::{Cluster, Curl, Net, Reply, RogueOrigin, Run};
use proto::Digest;

use super::probe::{self, SETTLE, mirroring, proxied, same, sha256};
use crate::runner::{CaseResult, Outcome};

/// The blob, in bytes: 64 pieces of 64 KiB.
const LENGTH: usize = 4 << 20;
/// Its last piece must never reach a reader.
const LAST_PIECE: usize = 64 * 1024;
/// The origin takes about a second, so that the beginning is on its way to the reader before the end is known.
const RATE_BYTES_PER_S: u64 = 4 << 20;
/// Inside the first piece.
const FLIPPED_AT: u64 = 1234;

struct Bed {
    origin: RogueOrigin,
    content: Vec<u8>,
    digest: Digest,
    cluster: Cluster,
    // Dropped last.
    _net: Net,
}

impl Bed {
    fn new(run: &Run) -> anyhow::Result<Self> {
        let net = probe::net(&["h1", "h2"])?;
        let content = probe::content(LENGTH, 21);
        let origin = RogueOrigin::start(&net.host("origin"), content.clone())?;
        origin.behave(|b| b.rate_bytes_per_s = Some(RATE_BYTES_PER_S));
        let upstream = probe::plain_upstream(&origin.addr().to_string());
        let cluster = probe::cluster(&net, run, &["h1", "h2"], "", &upstream)?;
        Ok(Self { digest: sha256(&content), origin, content, cluster, _net: net })
    }

    fn flip_next(&self) {
        self.origin.behave(|b| (b.flip_at, b.flips_left) = (Some(FLIPPED_AT), 1));
    }

    fn gets(&self) -> usize {
        self.origin.requests().iter().filter(|request| request.method == "GET").count()
    }

    /// Neither whole nor in part is it in a store or known to the supernode as good.
    fn nobody_keeps_it(&self) -> anyhow::Result<()> {
        let nodes = || self.cluster.supernodes.iter().chain(&self.cluster.daemons);
        let clean = || Ok(nodes().all(|node| probe::stored(node).is_empty()));
        if let Err(error) = probe::wait_until("all stores are empty", SETTLE, clean) {
            let kept: Vec<_> =
                nodes().filter(|n| !probe::stored(n).is_empty()).map(|n| n.host().name().to_owned()).collect();
            bail!("{error}: {kept:?} keep it");
        }
        for task in probe::tasks(&self.cluster.supernodes[0])? {
            ensure!(task.state != "complete", "the supernode still offers it: {task:?}");
        }
        Ok(())
    }

    /// Broken for the reader, and without the last piece.
    fn broke(&self, reply: anyhow::Result<Reply>) -> anyhow::Result<()> {
        // No answer at all is as good.
        let Ok(reply) = reply else { return Ok(()) };
        let told = probe::told(&reply);
        if reply.status >= 500 {
            return Ok(());
        }
        ensure!(reply.status == 200, "neither a server's error nor a broken 200: {told}");
        // 18: the transfer was shorter than announced; 56: the connection broke.
        ensure!([18, 56].contains(&reply.exit), "the client takes it for whole: {told}");
        ensure!(reply.body.len() <= LENGTH - LAST_PIECE, "the reader got some of the last piece: {told}");
        Ok(())
    }
}

pub(super) fn by_mirror(run: &Run) -> CaseResult {
    let bed = Bed::new(run)?;
    let registry = bed.origin.addr().to_string();
    blob(&bed, |host| {
        let daemon = &bed.cluster.daemons[host];
        mirroring(daemon).get(&probe::mirror_url(daemon, &registry, "team/app", &bed.digest))
    })
}

pub(super) fn by_proxy(run: &Run) -> CaseResult {
    let bed = Bed::new(run)?;
    let url = probe::blob_url(&bed.origin.addr().to_string(), "team/app", &bed.digest);
    blob(&bed, |host| proxied(&bed.cluster.daemons[host]).get(&url))
}

/// As above, with an origin that tells no length, and a client that knows no chunks: only a reset tells it.
pub(super) fn without_length(run: &Run) -> CaseResult {
    let bed = Bed::new(run)?;
    bed.origin.behave(|b| b.hide_length = true);
    let url = probe::blob_url(&bed.origin.addr().to_string(), "team/app", &bed.digest);
    blob(&bed, |host| proxied(&bed.cluster.daemons[host]).get(&url))?;
    let bed = Bed::new(run)?;
    bed.origin.behave(|b| b.hide_length = true);
    let registry = bed.origin.addr().to_string();
    blob(&bed, |host| {
        let daemon = &bed.cluster.daemons[host];
        let old = mirroring(daemon).args(["--http1.0"]);
        old.get(&probe::mirror_url(daemon, &registry, "team/app", &bed.digest))
    })
}

fn blob(bed: &Bed, get: impl Fn(usize) -> anyhow::Result<Reply>) -> CaseResult {
    for host in [0, 1] {
        bed.flip_next();
        let asked = bed.gets();
        bed.broke(get(host))?;
        ensure!(bed.gets() > asked, "the origin was not asked: something spoilt was kept");
        bed.nobody_keeps_it()?;
    }
    // Nothing is spoilt any more: the next try asks the origin again, and succeeds.
    bed.origin.behave(|b| b.flips_left = 0);
    let asked = bed.gets();
    let reply = get(1)?;
    ensure!(reply.status == 200 && reply.exit == 0, "the next try fails: {}", probe::told(&reply));
    same(&reply.body, &bed.content)?;
    ensure!(bed.gets() > asked, "the origin was not asked again");
    same(&get(0)?.body, &bed.content)?;
    Ok(Outcome::Passed)
}

pub(super) fn by_dfget(run: &Run) -> CaseResult {
    let bed = Bed::new(run)?;
    let folder = run.data_dir("output")?;
    let (fresh, existing) = (folder.join("fresh"), folder.join("existing"));
    let before = b"what was here before".to_vec();
    fs::write(&existing, &before)?;
    let url = bed.origin.url("file");
    let digest = bed.digest.to_string();
    for (host, output) in [(0, &fresh), (1, &existing), (0, &existing)] {
        bed.flip_next();
        let asked = bed.gets();
        let finished = probe::dfget(&bed.cluster.daemons[host], &url, output, &["--digest", &digest])?;
        let result = probe::dfget_result(&finished)?;
        ensure!(probe::code(&finished)? == 3 && result["kind"] == "corrupt", "exit {}, {result}", finished.status);
        ensure!(bed.gets() > asked, "the origin was not asked: something spoilt was kept");
        bed.nobody_keeps_it()?;
    }
    ensure!(!fresh.try_exists()?, "there is an output");
    ensure!(fs::read(&existing)? == before, "the existing file was touched");
    let left = fs::read_dir(&folder)?.flatten().map(|entry| entry.file_name()).collect::<Vec<_>>();
    ensure!(left == ["existing"], "temporary files are left: {left:?}");

    bed.origin.behave(|b| b.flips_left = 0);
    for (host, output) in [(0, &existing), (1, &fresh)] {
        let finished = probe::dfget(&bed.cluster.daemons[host], &url, output, &["--digest", &digest])?;
        ensure!(finished.status.success(), "the next try fails: {}", probe::said(&finished));
        same(&fs::read(output)?, &bed.content)?;
    }
    Ok(Outcome::Passed)
}

/// dfget alone, with the engine inside it.
pub(super) fn by_lone_dfget(run: &Run) -> CaseResult {
    let net = probe::net(&["h1"])?;
    let content = probe::content(LENGTH, 22);
    let origin = RogueOrigin::start(&net.host("origin"), content.clone())?;
    let folder = run.data_dir("output")?;
    let output = folder.join("existing");
    fs::write(&output, "before")?;
    let digest = sha256(&content).to_string();
    let get = || {
        let dfget = net.host("h1").program(harness::bin_dir()?.join("dfget")).arg("--no-daemon").arg("--json");
        let dfget = dfget.env("HOME", &folder).env("XDG_CACHE_HOME", folder.join("cache"));
        dfget.arg(origin.url("file")).arg("-O").arg(&output).args(["--digest", &digest]).output(probe::TRANSFER)
    };
    origin.behave(|b| (b.flip_at, b.flips_left) = (Some(FLIPPED_AT), 1));
    let finished = get()?;
    ensure!(probe::code(&finished)? == 3, "exit {}: {}", finished.status, finished.stderr);
    ensure!(fs::read(&output)? == b"before", "the existing file was touched");
    let finished = get()?;
    ensure!(finished.status.success(), "the next try fails: {}", probe::said(&finished));
    same(&fs::read(&output)?, &content)?;
    // The testbed: curl sees the same.
    ensure!(Curl::new(&net.host("h1")).get(&origin.url("file"))?.body == content, "the origin is not right");
    Ok(Outcome::Passed)
}
