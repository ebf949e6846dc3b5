//! Services on the supernode's own host that no user's URL may reach.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use harness::{Host, RogueOrigin, Run};

use crate::{
    faults_data::probe::{self, proxied},
    runner::{CaseResult, Outcome},
};

const SECRET: &str = "metadata of the supernode's host";

/// A service on all addresses of a host, loopback and metadata among them, that counts who connects.
struct Private {
    port: u16,
    asked: Arc<AtomicUsize>,
}

impl Private {
    fn start(host: &Host) -> anyhow::Result<Self> {
        let add = |address: &str| {
            let ip = host.program("ip").args(["address", "add", address, "dev", "lo"]);
            ip.run(Duration::from_secs(5)).map(drop)
        };
        add("169.254.169.254/32")?;
        add("169.254.7.7/32")?;
        add("100.100.100.200/32")?;
        let listener = host.inside(|| Ok(TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))?))?;
        let port = listener.local_addr()?.port();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        // Ends with the process: it holds nothing but its socket.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                let _ = stream.read(&mut [0; 4096]);
                let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length";
                let _ = write!(stream, "{head}: {}\r\n\r\n{SECRET}", SECRET.len());
            }
        });
        Ok(Self { port, asked })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn url(&self, address: &str) -> String {
        format!("http://{address}:{}/p2p/secret", self.port)
    }
}

const FORBIDDEN: [&str; 12] = [
    "127.0.0.1",
    "127.8.9.10",
    "localhost",
    "[::1]",
    "0.0.0.0",
    "[::]",
    "[::ffff:127.0.0.1]",
    "2130706433",
    "0x7f.1",
    "169.254.169.254",
    "169.254.7.7",
    "100.100.100.200",
];

pub(super) fn refused(run: &Run) -> CaseResult {
    let net = probe::net(&["h1"])?;
    let private = Private::start(&net.host("seed"))?;
    let origin = RogueOrigin::start(&net.host("origin"), vec![1; 1000])?;
    let cluster = probe::cluster(&net, run, &["h1"], "", "")?;
    let daemon = &cluster.daemons[0];
    let mut problems = Vec::new();
    for address in FORBIDDEN {
        let url = private.url(address);
        origin.behave(|b| b.redirect = Some(url.clone()));
        let redirected = origin.url(&format!("p2p/to-{}", address.len()));
        for (how, url) in [("asked for", &url), ("redirected to", &redirected)] {
            let output = run.data_dir("output")?.join("file");
            let finished = probe::dfget(daemon, url, &output, &[])?;
            let result = probe::dfget_result(&finished)?;
            if finished.status.success() || private.asked() > 0 {
                problems.push(format!("dfget {how} {address}: {result}, {} connections", private.asked()));
            } else if probe::code(&finished)? != 5 {
                let code = probe::code(&finished)?;
                problems.push(format!("dfget {how} {address}: exit {code} instead of 5 (denied): {result}"));
            }
            if let Ok(reply) = proxied(daemon).max_time(Duration::from_secs(20)).get(url) {
                let body = String::from_utf8_lossy(&reply.body).into_owned();
                if (200..400).contains(&reply.status) || body.contains(SECRET) || private.asked() > 0 {
                    problems.push(format!("curl {how} {address}: {}", probe::told(&reply)));
                }
            }
        }
    }
    ensure!(private.asked() == 0, "{} connections came\n{}", private.asked(), problems.join("\n"));
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(Outcome::Passed)
}

pub(super) fn allowed(run: &Run) -> CaseResult {
    let net = probe::net(&["h1"])?;
    let private = Private::start(&net.host("seed"))?;
    let cluster = probe::cluster(&net, run, &["h1"], "[guard]\nallow_loopback = true\n", "")?;
    let output = run.data_dir("output")?.join("file");
    let finished = probe::dfget(&cluster.daemons[0], &private.url("127.0.0.1"), &output, &[])?;
    ensure!(finished.status.success() && private.asked() > 0, "{}", probe::said(&finished));
    ensure!(std::fs::read(&output)? == SECRET.as_bytes(), "another file came");
    // One class is allowed, and no other.
    let asked = private.asked();
    let finished = probe::dfget(&cluster.daemons[0], &private.url("169.254.169.254"), &output, &[])?;
    ensure!(!finished.status.success() && private.asked() == asked, "loopback's leave is taken for metadata's");
    Ok(Outcome::Passed)
}
