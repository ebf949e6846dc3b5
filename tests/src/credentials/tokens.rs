//! Tokens that end before the download does.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::{
    Cluster, Compression, Containerd, Content, HostsToml, Image, LinkSpec, Net, Registry, RegistryAuth, RogueOrigin,
    Run, TokenServer,
};

use crate::{
    faults_data::probe::{self, proxied, same},
    runner::{CaseResult, Outcome},
};

/// In bytes: 64 pieces.
const LENGTH: usize = 4 << 20;

pub(super) fn short_lived(run: &Run) -> CaseResult {
    // 60 MB at 8 Mb/s take 60 s.
    let origin_link = LinkSpec { up_bits_per_s: Some(8_000_000), down_bits_per_s: None };
    let unshaped = LinkSpec::default();
    let net = Net::new(&[
        ("origin", origin_link),
        ("tokens", unshaped),
        ("seed", unshaped),
        ("h1", unshaped),
        ("h2", unshaped),
    ])?;
    let lifetime = Duration::from_secs(20);
    let tokens = TokenServer::start(&net.host("tokens"), run, "ann", "secret", Duration::from_secs(600))?;
    let registry = Registry::start(&net.host("origin"), run, &RegistryAuth::Token(&tokens), None)?;
    let layers = [12_000_000_u64; 5];
    let image =
        layers.iter().fold(Image::builder(), |image, bytes| image.layer(*bytes, Compression::None, Content::Random));
    let image = image.build(run)?;
    let reference = image.push(&registry, "team/app", "v1")?;
    tokens.set_lifetime(lifetime);
    let pushed = harness::blob_bytes(&registry.access_log()?);
    let cluster = probe::described(&net, run, &["h1", "h2"], "", "").upstream(&registry).start()?;
    let started = Instant::now();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let pulls = ["h1", "h2"].map(|name| {
            let (cluster, net, registry, image, reference) = (&cluster, &net, &registry, &image, &reference);
            scope.spawn(move || -> anyhow::Result<()> {
                let daemon = cluster.daemons.iter().find(|daemon| daemon.host().name() == name).context("no daemon")?;
                let containerd = Containerd::start(&net.host(name), run)?;
                let mirror = format!("http://{}", daemon.addr());
                let hosts = HostsToml::new(run)?.registry(registry.name(), &registry.url(""), &[&mirror], None)?;
                let user = Some(("ann", "secret"));
                containerd.pull(reference, &hosts, user, Duration::from_secs(240))?.verify(image)
            })
        });
        for (number, pull) in pulls.into_iter().enumerate() {
            let done = pull.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            done.with_context(|| format!("host {}", number + 1))?;
        }
        Ok(())
    })?;
    let took = started.elapsed();
    ensure!(took > Duration::from_secs(55), "it took {took:?}: the tokens were not put to the test");
    let read = harness::blob_bytes(&registry.access_log()?) - pushed;
    let copies = read as f64 / image.pulled_bytes()? as f64;
    ensure!(copies < 1.02, "{copies:.3} copies were read from the origin");
    Ok(Outcome::Passed)
}

struct Bed {
    origin: RogueOrigin,
    content: Vec<u8>,
    cluster: Cluster,
    // Dropped last.
    _net: Net,
}

/// An origin that breaks off in the middle of what it sends with the first token, and takes only the second by then.
fn bed(run: &Run, seed: u64) -> anyhow::Result<Bed> {
    let net = probe::net(&["h1", "h2"])?;
    let content = probe::content(LENGTH, seed);
    let origin = RogueOrigin::start(&net.host("origin"), content.clone())?;
    origin.behave(|b| {
        b.authorization = Some("Bearer one".into());
        b.rate_bytes_per_s = Some(1 << 20);
        (b.drop_after, b.drops_left) = (Some(LENGTH as u64 * 3 / 4), 1);
    });
    let cluster = probe::cluster(&net, run, &["h1", "h2"], "", "")?;
    Ok(Bed { origin, content, cluster, _net: net })
}

impl Bed {
    fn first_runs(&self) -> anyhow::Result<()> {
        probe::wait_until("the first download runs", probe::SETTLE, || {
            Ok(self.origin.requests().iter().any(|request| request.sent_bytes > 300_000))
        })?;
        self.origin.behave(|b| b.authorization = Some("Bearer two".into()));
        Ok(())
    }
}

pub(super) fn handed_over(run: &Run) -> CaseResult {
    let bed = bed(run, 7)?;
    let url = bed.origin.url("p2p/layer");
    let get = |host: usize, token: &str| proxied(&bed.cluster.daemons[host]).header("Authorization", token).get(&url);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let one = scope.spawn(|| get(0, "Bearer one"));
        bed.first_runs()?;
        let two = scope.spawn(|| get(1, "Bearer two"));
        for (name, reply) in [("the second", two), ("the first", one)] {
            let reply = reply.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            same(&reply.body, &bed.content).with_context(|| format!("{name}: {}", probe::told(&reply)))?;
        }
        Ok(())
    })?;
    let gone_on = bed.origin.requests().into_iter().any(|request| {
        request.method == "GET"
            && request.status == 206
            && request.headers.get("authorization").is_some_and(|v| v == "Bearer two")
    });
    ensure!(gone_on, "nobody went on with the second token");
    ensure!(bed.origin.sent_bytes() <= LENGTH as u64 * 11 / 10, "{} bytes were read", bed.origin.sent_bytes());
    Ok(Outcome::Passed)
}

pub(super) fn none_left(run: &Run) -> CaseResult {
    let bed = bed(run, 8)?;
    let url = bed.origin.url("p2p/layer");
    let get = |host: usize, token: &str| proxied(&bed.cluster.daemons[host]).header("Authorization", token).get(&url);
    let first = std::thread::scope(|scope| -> anyhow::Result<_> {
        let one = scope.spawn(|| get(0, "Bearer one"));
        bed.first_runs()?;
        one.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })?;
    ensure!(first.exit != 0 && first.exit != 28, "neither broken nor in time: {}", probe::told(&first));
    ensure!(first.body.len() < LENGTH, "all bytes came");
    bed.origin.behave(|b| b.rate_bytes_per_s = None);
    for host in [0, 1] {
        let reply = get(host, "Bearer two")?;
        same(&reply.body, &bed.content).with_context(|| format!("with a fresh token: {}", probe::told(&reply)))?;
    }
    // What was there already is not read again, but for a piece or so.
    ensure!(bed.origin.sent_bytes() <= LENGTH as u64 * 11 / 10, "{} bytes were read", bed.origin.sent_bytes());
    Ok(Outcome::Passed)
}
