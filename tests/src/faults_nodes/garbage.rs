//! Garbage, oversized and slow frames on every port, while others are served.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{Cluster, Daemon, DaemonSpec, Host, Run};

use super::{digest_of, ends_well, files, net, output, proxied, random_file};
use crate::runner::{Case, CaseResult, Outcome, rooted};

const FILE_BYTES: u64 = 60_000_000;
/// What one endless sender tries to get rid of.
const FLOOD_BYTES: usize = 256 << 20;
/// Slow connections to one port at a time.
const SLOW: usize = 100;
/// Longer than every time limit of the configuration below, and the ones that are fixed.
const PATIENCE: Duration = Duration::from_secs(45);
/// What a node may need at most while it serves and is attacked: what it may need for a pull.
const MEMORY_MAX: u64 = 150 << 20;
const DATAGRAMS: usize = 20_000;
/// Ports whose server would wait for the first byte for ever by itself.
const GRPC: [&str; 2] = ["daemon's socket", "supernode's grpc"];
/// Whoever says nothing to them for so long has been closed.
const SILENCE: Duration = Duration::from_secs(8);

pub(super) fn cases() -> Vec<Case> {
    vec![rooted(
        "faults: garbage, oversized and slow frames on every port: refused, memory bounded, others served",
        every_port,
    )]
}

/// A port of ours.
#[derive(Debug, Clone)]
enum Port {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug)]
struct Target {
    what: &'static str,
    host: Host,
    port: Port,
}

/// A connection to either kind.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn open(port: &Port) -> io::Result<Self> {
        let timeout = Some(Duration::from_millis(500));
        Ok(match port {
            Port::Tcp(addr) => {
                let stream = TcpStream::connect_timeout(addr, Duration::from_secs(5))?;
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)?;
                Self::Tcp(stream)
            }
            Port::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)?;
                Self::Unix(stream)
            }
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }

    /// True when the other side has closed.
    fn is_closed(&mut self) -> bool {
        let mut scratch = [0; 4096];
        loop {
            match self.read(&mut scratch) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }
}

/// What is sent first, and what for ever after.
struct Attack {
    what: &'static str,
    first: &'static [u8],
    then: fn(&mut [u8]),
}

fn noise(buffer: &mut [u8]) {
    let mut state = 0x2545_f491_4f6c_dd1d_u64 ^ buffer.len() as u64;
    for byte in buffer {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
}

fn letters(buffer: &mut [u8]) {
    buffer.fill(b'a');
}

fn header_lines(buffer: &mut [u8]) {
    for (byte, line) in buffer.iter_mut().zip(b"x-a: b\r\n".iter().cycle()) {
        *byte = *line;
    }
}

const ATTACKS: [Attack; 7] = [
    Attack { what: "noise", first: b"", then: noise },
    Attack { what: "a frame of 4 GiB", first: b"\xff\xff\xff\xff", then: letters },
    Attack { what: "an endless varint", first: b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", then: letters },
    Attack { what: "an endless request line", first: b"GET /", then: letters },
    Attack { what: "an endless header", first: b"GET / HTTP/1.1\r\nhost: x\r\n", then: header_lines },
    Attack {
        what: "an endless body",
        first: b"PUT /api/skimmer/v1/rates HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 4000000000\r\n\r\n",
        then: letters,
    },
    Attack { what: "http/2 and then noise", first: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", then: noise },
];

/// Sends until the other side closes, takes no more for long, or has taken everything; says which.
fn flood(port: &Port, attack: &Attack) -> Result<usize> {
    let mut stream = Stream::open(port).with_context(|| format!("cannot connect to {port:?}"))?;
    let mut chunk = vec![0; 64 << 10];
    (attack.then)(&mut chunk);
    let mut sent = 0;
    let end = Instant::now() + PATIENCE;
    let mut pending: &[u8] = attack.first;
    while sent < FLOOD_BYTES {
        if pending.is_empty() {
            pending = &chunk;
        }
        match stream.write(pending) {
            Ok(count) => {
                sent += count;
                pending = &pending[count..];
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                ensure!(Instant::now() < end, "{}: {sent} bytes taken, then neither read nor closed", attack.what);
                if stream.is_closed() {
                    return Ok(sent);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Closed, which is what we want.
            Err(_) => return Ok(sent),
        }
    }
    while Instant::now() < end {
        if stream.is_closed() {
            return Ok(sent);
        }
    }
    anyhow::bail!("{}: took {sent} bytes and did not close", attack.what)
}

/// Opens many connections that say one byte at a time; gives how many were closed by the other side in time.
fn slow(port: &Port, prefix: &[u8]) -> Result<usize> {
    let mut streams = Vec::new();
    for _ in 0..SLOW {
        // A full listener may refuse, which is as good.
        if let Ok(stream) = Stream::open(port) {
            streams.push(stream);
        }
    }
    let opened = streams.len();
    let end = Instant::now() + PATIENCE;
    let mut round = 0;
    while !streams.is_empty() && Instant::now() < end {
        let byte = prefix.get(round).copied().unwrap_or(b'a');
        // Those that do not answer cost a read timeout each, so that only one is looked at for the pace.
        streams.retain_mut(|stream| stream.write(&[byte]).is_ok());
        thread::sleep(Duration::from_secs(1));
        round += 1;
    }
    Ok(opened - streams.len())
}

/// Opens connections that say nothing; gives how many the other side closed.
fn silent(port: &Port) -> usize {
    let mut streams: Vec<Stream> = (0..SLOW).filter_map(|_| Stream::open(port).ok()).collect();
    let refused = SLOW - streams.len();
    let opened = streams.len();
    thread::sleep(SILENCE);
    // The first byte to a closed connection is answered by a reset, which the next one hits.
    for _ in 0..3 {
        streams.retain_mut(|stream| stream.write(b"x").is_ok());
        thread::sleep(Duration::from_millis(200));
    }
    refused + opened - streams.len()
}

/// Datagrams of all lengths, some of which look like the first of a QUIC connection.
fn datagrams(target: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut packet = vec![0; 1400];
    for number in 0..DATAGRAMS {
        let length = 1 + number * 7 % 1400;
        noise(&mut packet[..length]);
        match number % 3 {
            // A long header, version 1, connection ids of 8 bytes, and nonsense: an Initial packet that cannot be read.
            0 if length > 8 => packet[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]),
            // A version nobody knows.
            1 if length > 8 => packet[..5].copy_from_slice(&[0xc0, 0xba, 0xba, 0xba, 0xba]),
            _ => {}
        }
        // An answer of "port unreachable" would be an error here; it is looked at by the download that goes on.
        let _ = socket.send_to(&packet[..length], target);
        if number % 200 == 0 {
            thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

fn targets(cluster: &Cluster, other: &Host) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut add = |what, host: &Host, port| targets.push(Target { what, host: host.clone(), port });
    let daemon = cluster.daemon_on("a");
    let supernode = &cluster.supernodes[0];
    add("daemon's peer port", other, Port::Tcp(daemon.peer()));
    add("daemon's proxy", daemon.host(), Port::Tcp(daemon.addr()));
    add("daemon's http", daemon.host(), Port::Tcp(daemon.http()));
    add("daemon's socket", daemon.host(), Port::Unix(daemon.socket()));
    add("supernode's peer port", other, Port::Tcp(supernode.peer()));
    add("supernode's grpc", other, Port::Tcp(supernode.addr()));
    add("supernode's http", other, Port::Tcp(supernode.http()));
    if let Some(config_service) = &cluster.config_service {
        add("config-service", other, Port::Tcp(config_service.addr()));
    }
    targets
}

fn every_port(run: &Run) -> CaseResult {
    let net = net(200, &[("s0", 400), ("c", 400), ("a", 400), ("b", 400), ("x", 1000)])?;
    let files = files(&net, run)?;
    // Short limits, as an operator may set them; what cannot be set is shorter than our patience.
    let limits = "\n[limits]\nheader_timeout = \"5s\"\nbody_timeout = \"10s\"\n[http.limits]\nheader_timeout = \"5s\"\nstall_timeout = \"10s\"\n";
    let spec = |host: &str| DaemonSpec { host: host.into(), extra: limits.into(), ..DaemonSpec::default() };
    let http = limits.split_once("[http").map(|(_, rest)| format!("\n[http{rest}")).unwrap_or_default();
    let mut cluster = Cluster::builder(&net, run)
        .config_service("c")
        .supernode_with(DaemonSpec { host: "s0".into(), extra: http, ..DaemonSpec::default() })
        .daemon_with(spec("a"))
        .daemon_with(spec("b"))
        .start()?;
    cluster.wait_sessions()?;
    let targets = targets(&cluster, &net.host("x"));
    let over = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    let problems = thread::scope(|scope| {
        let floods: Vec<_> = targets.iter().map(|target| (target, scope.spawn(|| attack(target)))).collect();
        let udp: Vec<_> = [cluster.daemon_on("a").peer(), cluster.supernodes[0].peer()]
            .map(|peer| {
                let host = net.host("x");
                scope.spawn(move || host.inside(|| datagrams(peer)))
            })
            .into_iter()
            .collect();
        let (cluster, files, over, served, net) = (&cluster, &files, &over, &served, &net);
        let serving = scope.spawn(move || -> Result<()> {
            // Others are served: fresh files, again and again, through both daemons.
            for number in 0.. {
                if over.load(Ordering::Relaxed) && number > 0 {
                    break;
                }
                let name = format!("p2p/{number}");
                let digest = random_file(&files.root().join(&name), FILE_BYTES, 400 + number)?;
                let mut downloads = Vec::new();
                for host in ["a", "b"] {
                    let output = output(run)?;
                    downloads.push((proxied(run, cluster.daemon_on(host), &files.url(&name), &output)?, output));
                }
                for (curl, output) in &mut downloads {
                    ends_well(curl, "a download during the attacks")?;
                    ensure!(digest_of(output)? == digest, "wrong bytes during the attacks");
                }
                served.fetch_add(2, Ordering::Relaxed);
            }
            ensure!(net.is_real(), "needs namespaces");
            Ok(())
        });
        let mut problems = Vec::new();
        for (target, flood) in floods {
            match flood.join() {
                Ok(found) => problems.extend(found.into_iter().map(|problem| format!("{}: {problem}", target.what))),
                Err(_) => problems.push(format!("{}: the attacker panicked", target.what)),
            }
        }
        for udp in udp {
            if let Ok(Err(error)) = udp.join() {
                problems.push(format!("datagrams: {error:#}"));
            }
        }
        over.store(true, Ordering::Relaxed);
        match serving.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => problems.push(format!("{error:#}")),
            Err(_) => problems.push("the downloads panicked".into()),
        }
        problems
    });
    let mut problems = problems;
    run.note(format!("{} downloads of {FILE_BYTES} bytes finished meanwhile", served.load(Ordering::Relaxed)));
    let mut nodes: Vec<(&str, &mut Daemon)> = Vec::new();
    nodes.extend(cluster.config_service.as_mut().map(|daemon| ("config-service", daemon)));
    nodes.extend(cluster.supernodes.iter_mut().map(|daemon| ("supernode", daemon)));
    nodes.extend(cluster.daemons.iter_mut().map(|daemon| ("dfdaemon", daemon)));
    for (what, node) in nodes {
        let host = node.host().name().to_owned();
        if !node.process().is_running()? {
            problems.push(format!("{what} on {host} is gone"));
            continue;
        }
        let peak = node.process().memory()?.peak_bytes;
        run.note(format!("{what} on {host}: at most {} MiB", peak >> 20));
        if peak > MEMORY_MAX {
            problems.push(format!("{what} on {host} needed {} MiB", peak >> 20));
        }
        if node.log()?.contains("panicked at") {
            problems.push(format!("{what} on {host} panicked"));
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(Outcome::Passed)
}

/// All attacks on one port, one after another; then the slow ones. Gives what went wrong.
fn attack(target: &Target) -> Vec<String> {
    let mut problems = Vec::new();
    let inside = target.host.inside(|| {
        for attack in &ATTACKS {
            if let Err(error) = flood(&target.port, attack) {
                problems.push(format!("{error:#}"));
            }
        }
        if GRPC.contains(&target.what) {
            let closed = silent(&target.port);
            if closed < SLOW {
                problems.push(format!("only {closed} of {SLOW} silent connections were closed"));
            }
        }
        for (what, prefix) in [("slow letters", &b""[..]), ("a slow request", b"GET / HTTP/1.1\r\nx-a: ")] {
            match slow(&target.port, prefix) {
                Ok(closed) if closed == SLOW => {}
                Ok(closed) => problems.push(format!("{what}: only {closed} of {SLOW} slow connections were closed")),
                Err(error) => problems.push(format!("{what}: {error:#}")),
            }
        }
        Ok(())
    });
    if let Err(error) = inside {
        problems.push(format!("{error:#}"));
    }
    problems
}
