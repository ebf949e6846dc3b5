//! Logs that cannot be written.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{Curl, Host, Net, Proc, Run, Signal, SkimmerRegistry, SmallDisk, bin_dir};

use super::{
    content::{Blob, Manifest},
    http::Client,
    site::Site,
};
use crate::runner::{Case, CaseResult, Outcome, anywhere, rooted};

const START: Duration = Duration::from_secs(60);
/// SIGTERM with nothing to drain.
const STOP: Duration = Duration::from_secs(15);
const ANSWER: Duration = Duration::from_secs(5);

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere("registry logs: their reader goes away: requests are answered, SIGTERM ends it", reader_gone),
        anywhere("registry logs: stderr takes nothing from the start: requests are answered, SIGTERM ends it", never),
        rooted(
            "registry logs: their disk is full: requests are answered, SIGTERM ends it, lines come again",
            disk_full,
        ),
        anywhere("registry logs: a configuration that is not usable any more is told with its places", not_usable),
    ]
}

/// A registry whose stderr goes to some file.
struct Logging {
    proc: Proc,
    host: Host,
    addr: SocketAddr,
    metrics: SocketAddr,
}

impl Logging {
    fn start(run: &Run, stderr: &Path) -> Result<Self> {
        let host = Net::loopback(&["registry"]).host("registry");
        let folder = run.data_dir("logging")?;
        let (addr, metrics) = (host.addr(host.free_port()?), host.addr(host.free_port()?));
        let config = folder.join("registry.toml");
        let files = SkimmerRegistry::on_files(&folder);
        fs::write(&config, format!("listen = [\"{addr}\"]\nmetrics_listen = [\"{metrics}\"]\n{files}"))?;
        // A shell opens it, so that the program has it from its first line on.
        let shell = host.program("sh").args(["-c", r#"log=$1; shift; exec "$@" 2>>"$log""#, "sh"]).arg(stderr);
        let proc = shell.arg(bin_dir()?.join("registry")).args(["serve", "--config"]).arg(&config);
        Ok(Self { proc: proc.start(run, "logging")?, host, addr, metrics })
    }

    fn wait(&mut self) -> Result<()> {
        self.proc.wait_http(&format!("http://{}/readyz", self.metrics), START)?;
        self.proc.wait_port(self.addr, START)
    }

    /// All sorts of requests, over connections of their own and over one.
    fn answers(&self, seed: u64) -> Result<()> {
        let image = Manifest::image(&format!("image {seed}"), &[Blob::random(100_000, seed)]);
        for _ in 0..20 {
            Client::new(self.addr).get("/v2/")?.is(200, "a ping")?;
        }
        let mut client = Client::new(self.addr);
        let tag = format!("t{seed}");
        client.push_image("a/b", &tag, &image)?;
        client.pulls("a/b", &tag, &image)?;
        client.manifest("a/b", "none")?.refuses(404, "MANIFEST_UNKNOWN", "a manifest that is not there")?;
        let ready = Curl::new(&self.host).max_time(ANSWER).get(&format!("http://{}/readyz", self.metrics))?;
        ensure!(ready.status == 200, "/readyz says {}", ready.status);
        Ok(())
    }

    fn ends(mut self) -> Result<()> {
        let status = self.proc.terminate(STOP)?;
        ensure!(status.success(), "it ends with {status}");
        Ok(())
    }
}

fn reader_gone(run: &Run) -> CaseResult {
    let pipe = fifo(&run.data_dir("pipe")?)?;
    let mut registry = Logging::start(run, &pipe)?;
    let mut reader = BufReader::new(fs::File::open(&pipe)?);
    let mut line = String::new();
    while !line.contains("starting") {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "the log ends before the start");
    }
    registry.wait()?;
    registry.answers(1).context("while somebody reads the log")?;
    drop(reader);
    registry.answers(2).context("after the reader went away")?;
    registry.ends()?;
    Ok(Outcome::Passed)
}

fn fifo(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("log");
    let made = Command::new("mkfifo").arg(&path).status().context("mkfifo")?;
    ensure!(made.success(), "mkfifo: {made}");
    Ok(path)
}

fn never(run: &Run) -> CaseResult {
    let mut registry = Logging::start(run, Path::new("/dev/full"))?;
    registry.wait()?;
    registry.answers(1)?;
    registry.ends()?;
    Ok(Outcome::Passed)
}

fn disk_full(run: &Run) -> CaseResult {
    let disk = SmallDisk::new(run, "disk", 1 << 20)?;
    let log = disk.path().join("log");
    let mut registry = Logging::start(run, &log)?;
    registry.wait()?;
    registry.answers(1).context("with room for the log")?;
    disk.fill()?;
    // What was begun of a page goes on being written.
    while Client::new(registry.addr).get("/v2/").map(|response| response.status == 200)? {
        let before = fs::metadata(&log)?.len();
        registry.answers(2)?;
        if fs::metadata(&log)?.len() == before {
            break;
        }
    }
    registry.answers(3).context("while the log's disk is full")?;
    disk.make_room()?;
    let before = fs::metadata(&log)?.len();
    registry.answers(4).context("with room again")?;
    ensure!(fs::metadata(&log)?.len() > before, "the log stays as it is although it has room again");
    registry.ends()?;
    Ok(Outcome::Passed)
}

fn not_usable(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, "[gc]\nrate = 10\n")?;
    let path = site.registries[0].config().to_owned();
    let good = fs::read_to_string(&path)?;
    fs::write(&path, good.replace("rate = 10", "rate = 0\nsweep = true"))?;
    let process = site.registries[0].process();
    process.signal(Signal::HUP)?;
    process.wait_log("keeping the old one", ANSWER)?;
    let log = process.log()?;
    for (place, problem) in [("gc.rate", "1 to 1000000 are allowed"), ("gc.sweep", "unknown")] {
        // In a line of its own: what takes lines apart sees each of them.
        let tells = |line: &str| ["ERROR", "registry.toml:", place, problem].iter().all(|text| line.contains(text));
        ensure!(log.lines().any(tells), "{place} is not told: {log}");
    }
    fs::remove_file(&path)?;
    process.signal(Signal::HUP)?;
    process.wait_log("cannot read the configuration file", ANSWER)?;
    process.wait_log("No such file or directory", ANSWER)?;
    site.client().get("/v2/")?.is(200, "a ping")?;
    site.stop()?;
    Ok(Outcome::Passed)
}
