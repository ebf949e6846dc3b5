//! Byte rates of a host: they hold, and they follow when they are changed.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{Cluster, Curl, Daemon, FileServer, FileServerOptions, Host, LinkSpec, Net, ProcBuilder, Run};

use crate::runner::{Case, CaseResult, Outcome, rooted};

const MBIT: u64 = 1_000_000;
/// Pieces of it are 512 KiB, so that none is long under way.
const FILE_BYTES: u64 = 250_000_000;
/// How long a rate is measured: the 10 s for the first, less for those that follow.
const HOLD: Duration = Duration::from_secs(10);
const FOLLOW: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(3);
const TOLERANCE: f64 = 0.05;
/// The link's own headers come on top of what is limited. At low rates packets are too small for them not to count.
const HEADERS: f64 = 0.045;
const LOW_MBIT: u64 = 50;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        rooted("limits: a host's download rate of 50 Mb/s holds within 5 % over 10 s and follows within 1 s", download)
            .alone(),
        rooted("limits: a host's upload rate of 50 Mb/s holds within 5 % over 10 s and follows within 1 s", upload)
            .alone(),
        rooted("limits: one download's own rate does not hold back others of the same file", own_rates),
    ]
}

#[derive(Clone, Copy)]
enum Way {
    Download,
    Upload,
}

struct Meter<'a> {
    host: Host,
    daemon: &'a Daemon,
    way: Way,
}

impl Meter<'_> {
    /// Bytes on the link.
    fn bytes(&self) -> Result<u64> {
        let counters = self.host.counters()?;
        Ok(match self.way {
            Way::Download => counters.received_bytes,
            Way::Upload => counters.sent_bytes,
        })
    }

    /// Bits per second on the link over this time.
    fn rate(&self, time: Duration) -> Result<f64> {
        let (before, started) = (self.bytes()?, Instant::now());
        std::thread::sleep(time);
        let bytes = self.bytes()? - before;
        Ok(bytes as f64 * 8.0 / started.elapsed().as_secs_f64())
    }

    /// Changes the rate; everything else stays unlimited.
    fn set(&self, mbit: u64) -> Result<()> {
        let rate = format!("{mbit}Mb/s");
        let (download, upload) = match self.way {
            Way::Download => (rate.as_str(), "unlimited"),
            Way::Upload => ("unlimited", rate.as_str()),
        };
        let body = serde_json::json!({"download": download, "upload": upload}).to_string();
        let put = Curl::new(&self.host).args(["-X", "PUT", "-d", &body]).header("Content-Type", "application/json");
        let reply = put.get(&format!("http://{}/api/skimmer/v1/rates", self.daemon.http()))?;
        ensure!(reply.status == 200, "rates were not taken: {} {}", reply.status, String::from_utf8_lossy(&reply.body));
        Ok(())
    }

    /// The first rate is measured long, the following ones from a second after the change on.
    fn measure(&self, run: &Run) -> Result<()> {
        let mut problems = Vec::new();
        std::thread::sleep(FOLLOW);
        for (number, mbit) in [50, 100, 20, 50].into_iter().enumerate() {
            if number > 0 {
                self.set(mbit)?;
                std::thread::sleep(FOLLOW);
            }
            let time = if number == 0 { HOLD } else { AFTER };
            let rate = self.rate(time)?;
            let error = rate / (mbit * MBIT) as f64 - 1.0;
            run.note(format!("{mbit} Mb/s over {time:?}: {:.2} Mb/s ({:+.1} %)", rate / MBIT as f64, error * 100.0));
            let above = if mbit < LOW_MBIT { TOLERANCE + HEADERS } else { TOLERANCE };
            if error < -TOLERANCE || error > above {
                problems.push(format!("{mbit} Mb/s is {:+.1} % off", error * 100.0));
            }
        }
        ensure!(problems.is_empty(), "{}", problems.join(", "));
        Ok(())
    }
}

fn bed(run: &Run) -> Result<(Net, FileServer)> {
    let fast = LinkSpec::both(1000 * MBIT);
    let net = Net::new(&[("origin", fast), ("s0", fast), ("a", fast), ("b", fast)])?;
    let files = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
    fs::create_dir(files.root().join("p2p"))?;
    // Holes are as good as bytes here: pieces are neither compressed nor compared by content.
    fs::File::create(files.root().join("p2p/file"))?.set_len(FILE_BYTES)?;
    Ok((net, files))
}

fn fetch(daemon: &Daemon, files: &FileServer) -> ProcBuilder {
    let curl = daemon.host().program("curl").args(["-sSf", "--noproxy", "", "-o", "/dev/null", "--proxy"]);
    curl.arg(format!("http://{}", daemon.addr())).arg(files.url("p2p/file"))
}

fn download(run: &Run) -> CaseResult {
    let (net, files) = bed(run)?;
    let cluster = Cluster::builder(&net, run).supernode("s0").daemon("a").start()?;
    cluster.wait_sessions()?;
    let daemon = cluster.daemon_on("a");
    let meter = Meter { host: net.host("a"), daemon, way: Way::Download };
    meter.set(50)?;
    let mut curl = fetch(daemon, &files).start(run, "curl")?;
    meter.measure(run)?;
    ensure!(curl.is_running()?, "the file was too short for the measurement");
    Ok(Outcome::Passed)
}

fn upload(run: &Run) -> CaseResult {
    let (net, files) = bed(run)?;
    let cluster = Cluster::builder(&net, run).supernode("s0").daemon("a").daemon("b").start()?;
    cluster.wait_sessions()?;
    let daemon = cluster.daemon_on("a");
    fetch(daemon, &files).run(Duration::from_secs(120)).context("the first download")?;
    // From now on the seed has little to give, and the host under test everything else.
    net.host("s0").set_link(LinkSpec { up_bits_per_s: Some(10 * MBIT), down_bits_per_s: Some(100 * MBIT) })?;
    let meter = Meter { host: net.host("a"), daemon, way: Way::Upload };
    meter.set(50)?;
    let mut curl = fetch(cluster.daemon_on("b"), &files).start(run, "curl")?;
    meter.measure(run)?;
    ensure!(curl.is_running()?, "the file was too short for the measurement");
    Ok(Outcome::Passed)
}

/// A download that its user limited, and another of the same file beside it.
fn own_rates(run: &Run) -> CaseResult {
    let (net, files) = bed(run)?;
    let cluster = Cluster::builder(&net, run).supernode("s0").daemon("a").start()?;
    cluster.wait_sessions()?;
    let daemon = cluster.daemon_on("a");
    let url = files.url("p2p/file");
    let mut slow = daemon.dfget(&url, &run.data_dir("slow")?.join("file"))?.args(["-s", "500K"]).start(run, "slow")?;
    std::thread::sleep(FOLLOW);
    let fast = daemon.dfget(&url, &run.data_dir("fast")?.join("file"))?.run(Duration::from_secs(60))?;
    run.note(format!("beside a download of 500 KiB/s: {:.1} s", fast.elapsed.as_secs_f64()));
    let alone = FILE_BYTES as f64 / 512_000.0;
    ensure!(fast.elapsed.as_secs_f64() < alone / 10.0, "it took {:?}", fast.elapsed);
    let status = slow.wait(Duration::from_secs(60)).context("the limited one")?;
    ensure!(status.success(), "the limited download ended with {status}");
    Ok(Outcome::Passed)
}
