//! Links cut, programs told to stop, config-service away; hosts with several cards, or with IPv6 among them only.

use std::{
    os::unix::net::UnixDatagram,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{Cluster, Daemon, DaemonSpec, LinkSpec, Net, Run, Signal, bin_dir};

use super::daemons::report;
use super::{FINISH, MBIT, digest_of, ends_well, files, net, output, proxied, random_file, wait_received};
use crate::runner::{Case, CaseResult, Outcome, rooted};

const FILE_BYTES: u64 = 60_000_000;
const CUT: Duration = Duration::from_secs(10);
/// The drain of the default configuration, and a busy machine's slack.
const STOPS: Duration = Duration::from_secs(25);
const STARTS: Duration = Duration::from_secs(30);
/// Half a lease of the harness's config-service: no supernode has registered again by then.
const BEFORE_HEARTBEAT: Duration = Duration::from_secs(2);

pub(super) fn cases() -> Vec<Case> {
    vec![
        rooted("faults: a host's link is cut for 10 s in mid-download: it continues", cut),
        rooted("faults: SIGTERM in mid-download: every program stops in time, and says so to systemd", stop),
        rooted("faults: config-service is away when a daemon starts: it starts from the answer on disk", away),
        rooted("faults: config-service restarts: registrations are known at once", remembers),
        rooted("addresses: hosts with several cards, of which neighbours share one", several_cards),
        rooted("addresses: IPv6 only among peers", ipv6_only),
        rooted("addresses: an explicit advertise_address is what neighbours use", advertised),
    ]
}

fn cut(run: &Run) -> CaseResult {
    let net = net(80, &[("s0", 400), ("a", 100), ("b", 100)])?;
    let files = files(&net, run)?;
    let mut problems = Vec::new();
    for (number, (victim, point)) in [("a", 0.3), ("s0", 0.5), ("b", 0.7)].into_iter().enumerate() {
        let round = || -> Result<String> {
            let name = format!("p2p/{number}");
            let digest = random_file(&files.root().join(&name), FILE_BYTES, 500 + number as u64)?;
            let cluster = Cluster::builder(&net, run).supernode("s0").daemon("a").daemon("b").start()?;
            cluster.wait_sessions()?;
            let before = net.host("a").counters()?;
            let mut downloads = Vec::new();
            for host in ["a", "b"] {
                let output = output(run)?;
                downloads.push((proxied(run, cluster.daemon_on(host), &files.url(&name), &output)?, output));
            }
            let share = wait_received(&net.host("a"), before, point, FILE_BYTES)?;
            net.host(victim).cut()?;
            std::thread::sleep(CUT);
            net.host(victim).restore()?;
            let restored = Instant::now();
            for (curl, output) in &mut downloads {
                ends_well(curl, "curl")?;
                ensure!(digest_of(output)? == digest, "the file is not the origin's");
            }
            let took = restored.elapsed().as_secs_f64();
            Ok(format!("cut at {:.0} %, done {took:.1} s after the link was back", share * 100.0))
        };
        let result = round();
        net.host(victim).restore()?;
        report(run, &mut problems, &format!("link of {victim}"), result);
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(Outcome::Passed)
}

/// What systemd would hear.
struct Notified {
    socket: UnixDatagram,
    heard: String,
}

impl Notified {
    fn listen(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        socket.set_read_timeout(Some(STARTS))?;
        Ok(Self { socket, heard: String::new() })
    }

    fn hear(&mut self, word: &str) -> Result<()> {
        let mut buffer = [0; 4096];
        while !self.heard.lines().any(|line| line == word) {
            let length = self.socket.recv(&mut buffer).with_context(|| format!("{word} was not said"))?;
            self.heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
            self.heard.push('\n');
        }
        Ok(())
    }
}

fn stop(run: &Run) -> CaseResult {
    let net = net(40, &[("s0", 400), ("c", 400), ("a", 100)])?;
    let files = files(&net, run)?;
    random_file(&files.root().join("p2p/file"), FILE_BYTES, 510)?;
    let mut cluster = Cluster::builder(&net, run).config_service("c").supernode("s0").daemon("a").start()?;
    cluster.wait_sessions()?;
    // Each is started anew from the same configuration, with somebody listening to what it says of itself.
    let mut programs = Vec::new();
    let folder = run.data_dir("notify")?;
    {
        let config_service = cluster.config_service.as_mut().context("a config-service was started")?;
        programs.push(renewed(run, config_service, "config-service", &folder)?);
    }
    programs.push(renewed(run, &mut cluster.supernodes[0], "supernode", &folder)?);
    programs.push(renewed(run, cluster.daemon("a"), "dfdaemon", &folder)?);
    cluster.wait_sessions()?;
    let before = net.host("a").counters()?;
    let mut curl = proxied(run, cluster.daemon_on("a"), &files.url("p2p/file"), &output(run)?)?;
    wait_received(&net.host("a"), before, 0.2, FILE_BYTES)?;
    let mut problems = Vec::new();
    // The daemon last, so that the others stop under load.
    for (name, proc, notified) in &mut programs {
        let mut round = || -> Result<String> {
            let asked = Instant::now();
            proc.signal(Signal::TERM)?;
            notified.hear("STOPPING=1")?;
            let status = proc.wait(STOPS)?;
            ensure!(status.success(), "ended with {status}");
            Ok(format!("stopped after {:.2} s", asked.elapsed().as_secs_f64()))
        };
        report(run, &mut problems, name, round());
    }
    // A body that was cut short must not look whole.
    let status = curl.wait(FINISH)?;
    if status.success() {
        problems.push("curl took a body that was cut short for a whole one".into());
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(Outcome::Passed)
}

type Renewed = (&'static str, harness::Proc, Notified);

/// Stops a node, and starts its program anew as systemd would.
fn renewed(run: &Run, node: &mut Daemon, program: &'static str, folder: &Path) -> Result<Renewed> {
    let status = node.process().terminate(STOPS).with_context(|| format!("{program} idle"))?;
    ensure!(status.success(), "idle {program} ended with {status}");
    let path = folder.join(program);
    let mut notified = Notified::listen(&path)?;
    let started = node.host().program(bin_dir()?.join(program)).arg("--config").arg(node.config());
    let proc = started.env("NOTIFY_SOCKET", &path).start(run, program)?;
    notified.hear("READY=1")?;
    // Ready means that it answers.
    let addr = node.addr();
    let answers =
        node.host().inside(|| Ok(std::net::TcpStream::connect_timeout(&addr, Duration::from_secs(1)).is_ok()));
    ensure!(answers?, "{program} said that it is ready, and {addr} does not answer");
    Ok((program, proc, notified))
}

fn away(run: &Run) -> CaseResult {
    let net = net(200, &[("s0", 400), ("c", 400), ("a", 200)])?;
    let files = files(&net, run)?;
    let digest = random_file(&files.root().join("p2p/file"), FILE_BYTES, 520)?;
    let mut cluster = Cluster::builder(&net, run).config_service("c").supernode("s0").daemon("a").start()?;
    cluster.wait_sessions()?;
    cluster.daemon("a").process().kill()?;
    cluster.config_service.as_mut().context("a config-service was started")?.process().kill()?;
    cluster.daemon("a").restart()?;
    cluster.wait_sessions()?;
    let output = output(run)?;
    let mut curl = proxied(run, cluster.daemon_on("a"), &files.url("p2p/file"), &output)?;
    ends_well(&mut curl, "curl")?;
    ensure!(digest_of(&output)? == digest, "the file is not the origin's");
    let from_peers = cluster.daemon_on("a").metric("skimmer_peer_received_bytes_total")?;
    ensure!(from_peers >= FILE_BYTES as f64, "only {from_peers} bytes came from the seed");
    Ok(Outcome::Passed)
}

fn remembers(run: &Run) -> CaseResult {
    let net = net(200, &[("s0", 400), ("s1", 400), ("c", 400)])?;
    let mut cluster = Cluster::builder(&net, run).config_service("c").supernode("s0").supernode("s1").start()?;
    let known = |config_service: &Daemon| -> Result<usize> {
        let url = format!("http://{}/api/skimmer/v1/nearest", config_service.addr());
        let ask = harness::Curl::new(config_service.host()).header("Content-Type", "application/json");
        let answer = ask.args(["-d", "{}"]).get(&url)?.json()?;
        Ok(answer["supernodes"].as_array().map_or(0, Vec::len))
    };
    let config_service = cluster.config_service.as_mut().context("a config-service was started")?;
    let end = Instant::now() + STARTS;
    while known(config_service)? < 2 {
        ensure!(Instant::now() < end, "two supernodes run, {} registered", known(config_service)?);
        std::thread::sleep(Duration::from_millis(50));
    }
    for supernode in &mut cluster.supernodes {
        // So that nobody can register again: what is known is what was remembered.
        supernode.process().kill()?;
    }
    config_service.process().kill()?;
    let restarted = Instant::now();
    config_service.restart()?;
    let remembered = known(config_service)?;
    ensure!(restarted.elapsed() < BEFORE_HEARTBEAT, "the restart took {:?}", restarted.elapsed());
    ensure!(remembered == 2, "{remembered} of 2 registrations are known after a restart");
    Ok(Outcome::Passed)
}

// === addresses ===

/// Host a downloads from the seed, then the seed's link is choked, and b downloads from a; gives the shares.
fn from_neighbour(run: &Run, net: &Net, cluster: &Cluster) -> Result<String> {
    let files = files(net, run)?;
    let digest = random_file(&files.root().join("p2p/file"), FILE_BYTES, 530)?;
    let fetch = |host: &str| -> Result<()> {
        let output = output(run)?;
        ends_well(&mut proxied(run, cluster.daemon_on(host), &files.url("p2p/file"), &output)?, "curl")?;
        ensure!(digest_of(&output)? == digest, "the file on {host} is not the origin's");
        Ok(())
    };
    fetch("a")?;
    net.host("s0").set_link(LinkSpec { up_bits_per_s: Some(4 * MBIT), down_bits_per_s: Some(100 * MBIT) })?;
    fetch("b")?;
    let uploaded = cluster.daemon_on("a").metric("skimmer_peer_uploaded_bytes_total")?;
    let copies = files.bytes_sent("p2p/file")? as f64 / FILE_BYTES as f64;
    let text =
        format!("{:.0} % of b's bytes came from a, origin copies {copies:.3}", uploaded * 100.0 / FILE_BYTES as f64);
    ensure!(uploaded > FILE_BYTES as f64 * 0.7, "{text}");
    ensure!(copies <= 1.02, "{text}");
    Ok(text)
}

fn addresses(daemon: &Daemon) -> Result<Vec<String>> {
    let told = daemon.api("/api/skimmer/v1/host")?.json()?;
    let addresses = told["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(addresses.iter().filter_map(|address| address.as_str().map(ToOwned::to_owned)).collect())
}

fn node(host: &str, peer: String) -> DaemonSpec {
    DaemonSpec { host: host.to_owned(), peer: Some(peer), ..DaemonSpec::default() }
}

fn several_cards(run: &Run) -> CaseResult {
    let net = net(200, &[("s0", 400), ("a", 200), ("b", 200)])?;
    // a has a second and a third card in networks that b is not in; whoever dials must find the one they share.
    for card in [1, 2] {
        net.host("a").add_card(card)?;
    }
    let cluster = Cluster::builder(&net, run)
        .supernode("s0")
        .daemon_with(node("a", "listen = [\"0.0.0.0:PORT\", \"[::]:PORT\"]".into()))
        .daemon_with(node("b", "listen = [\"0.0.0.0:PORT\"]".into()))
        .start()?;
    cluster.wait_sessions()?;
    let told = addresses(cluster.daemon_on("a"))?;
    for card in 0..=2 {
        let prefix = format!("10.77.{card}.");
        ensure!(told.iter().any(|address| address.starts_with(&prefix)), "no address of eth{card} among {told:?}");
    }
    let text = from_neighbour(run, &net, &cluster)?;
    run.note(format!("a tells {told:?}: {text}"));
    Ok(Outcome::Passed)
}

fn ipv6_only(run: &Run) -> CaseResult {
    let net = net(200, &[("s0", 400), ("a", 200), ("b", 200)])?;
    let v6 = |host: &str| node(host, format!("listen = [\"[{}]:PORT\"]", net.host(host).ip6()));
    let cluster =
        Cluster::builder(&net, run).supernode_with(v6("s0")).daemon_with(v6("a")).daemon_with(v6("b")).start()?;
    cluster.wait_sessions()?;
    let told = addresses(cluster.daemon_on("a"))?;
    ensure!(told.iter().all(|address| address.starts_with("[fd00:")), "not only IPv6: {told:?}");
    let text = from_neighbour(run, &net, &cluster)?;
    run.note(format!("a tells {told:?}: {text}"));
    Ok(Outcome::Passed)
}

fn advertised(run: &Run) -> CaseResult {
    let net = net(200, &[("s0", 400), ("a", 200), ("b", 200)])?;
    for host in ["s0", "a", "b"] {
        net.host(host).add_card(1)?;
    }
    let second = |host: &str| {
        let last = net.host(host).ip().to_string().rsplit('.').next().unwrap_or_default().to_owned();
        format!("10.77.1.{last}")
    };
    let lines = |host: &str| format!("listen = [\"0.0.0.0:PORT\"]\nadvertise_address = [\"{}:0\"]", second(host));
    let cluster = Cluster::builder(&net, run)
        .supernode("s0")
        .daemon_with(node("a", lines("a")))
        .daemon_with(node("b", lines("b")))
        .start()?;
    cluster.wait_sessions()?;
    let told = addresses(cluster.daemon_on("a"))?;
    let wanted = format!("{}:{}", second("a"), cluster.daemon_on("a").peer().port());
    ensure!(told == [wanted.clone()], "a tells {told:?}, not {wanted}");
    let before = net.host("a").counters_of(1)?;
    let text = from_neighbour(run, &net, &cluster)?;
    let over_second = net.host("a").counters_of(1)?.since(before).sent_bytes;
    run.note(format!("a tells {told:?}: {text}, {over_second} bytes over its second card"));
    ensure!(over_second as f64 > FILE_BYTES as f64 * 0.7, "only {over_second} bytes went over the second card");
    Ok(Outcome::Passed)
}
