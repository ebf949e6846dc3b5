//! What several suites look at: contents, answers by every way, logs, metrics, folders.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{Cluster, ClusterBuilder, Curl, Daemon, DaemonSpec, Finished, LinkSpec, Net, Reply, Run};
use proto::{Algorithm, Digest, api::HostView, api::TaskView};

/// One transfer of some MiB on a busy machine.
pub(crate) const TRANSFER: Duration = Duration::from_secs(120);
/// For what a node does by itself, a moment later.
pub(crate) const SETTLE: Duration = Duration::from_secs(30);

/// Bytes that no two seeds have in common and that do not compress; the same for the same seed.
pub(crate) fn content(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn sha256(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

/// Hosts `origin`, `seed` and these.
pub(crate) fn net(hosts: &[&str]) -> Result<Net> {
    let all = ["origin", "seed"].iter().chain(hosts);
    Net::new(&all.map(|name| (*name, LinkSpec::default())).collect::<Vec<_>>())
}

/// A supernode on `seed` and a daemon on each of these hosts; with TOML for the supernode and for each daemon.
pub(crate) fn cluster(net: &Net, run: &Run, hosts: &[&str], supernode: &str, daemons: &str) -> Result<Cluster> {
    described(net, run, hosts, supernode, daemons).start()
}

pub(crate) fn described<'a>(
    net: &'a Net,
    run: &'a Run,
    hosts: &[&str],
    supernode: &str,
    daemons: &str,
) -> ClusterBuilder<'a> {
    let spec = |host: &str, extra: &str| DaemonSpec { host: host.into(), extra: extra.into(), ..DaemonSpec::default() };
    let builder = Cluster::builder(net, run).supernode_with(spec("seed", supernode));
    hosts.iter().fold(builder, |builder, host| builder.daemon_with(spec(host, daemons)))
}

/// TOML that lets the mirror read this registry by plain HTTP.
pub(crate) fn plain_upstream(registry: &str) -> String {
    format!("[[mirror.upstreams]]\nhost = \"{registry}\"\nplain_http = true\n")
}

// === the ways to a content ===

/// curl on the daemon's host, through its proxy.
pub(crate) fn proxied(daemon: &Daemon) -> Curl {
    Curl::new(daemon.host()).proxy(&format!("http://{}", daemon.addr())).max_time(TRANSFER)
}

/// curl on the daemon's host, for its mirror.
pub(crate) fn mirroring(daemon: &Daemon) -> Curl {
    Curl::new(daemon.host()).max_time(TRANSFER)
}

/// A blob's URL at the daemon's mirror.
pub(crate) fn mirror_url(daemon: &Daemon, registry: &str, repository: &str, digest: &Digest) -> String {
    format!("http://{}/v2/{repository}/blobs/{digest}?ns={registry}", daemon.addr())
}

/// A blob's URL at a registry without TLS.
pub(crate) fn blob_url(registry: &str, repository: &str, digest: &Digest) -> String {
    format!("http://{registry}/v2/{repository}/blobs/{digest}")
}

/// dfget through this daemon.
pub(crate) fn dfget(daemon: &Daemon, url: &str, output: &Path, args: &[&str]) -> Result<Finished> {
    daemon.dfget(url, output)?.arg("--json").args(args).output(TRANSFER)
}

/// The last line of what `dfget --json` printed.
pub(crate) fn dfget_result(finished: &Finished) -> Result<serde_json::Value> {
    let text = String::from_utf8_lossy(&finished.stdout);
    let last = text.lines().last().with_context(|| format!("dfget printed nothing; {}", finished.stderr))?;
    serde_json::from_str(last).with_context(|| format!("dfget printed {last:?}"))
}

/// All that it printed.
pub(crate) fn said(finished: &Finished) -> String {
    format!("{}: {}{}", finished.status, String::from_utf8_lossy(&finished.stdout), finished.stderr)
}

/// The exit code; a signal is an error.
pub(crate) fn code(finished: &Finished) -> Result<i32> {
    finished.status.code().with_context(|| format!("ended by a signal: {}", finished.status))
}

/// One of the ways, all of which lead to the same outcomes: bytes, or an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Proxy,
    Dfget,
}

/// What came of a download.
#[derive(Debug)]
pub(crate) enum Got {
    /// The client believes that it has everything.
    Whole(Vec<u8>),
    /// The client knows that it has not; as much as it has, and what it was told.
    Broken(Vec<u8>, String),
}

impl Way {
    pub(crate) fn get(self, run: &Run, daemon: &Daemon, url: &str) -> Result<Got> {
        match self {
            Self::Proxy => match proxied(daemon).get(url) {
                Ok(reply) if reply.exit == 0 && (200..300).contains(&reply.status) => Ok(Got::Whole(reply.body)),
                Ok(reply) => Ok(Got::Broken(reply.body.clone(), told(&reply))),
                Err(error) => Ok(Got::Broken(Vec::new(), format!("{error:#}"))),
            },
            Self::Dfget => {
                let output = run.data_dir("output")?.join("file");
                let finished = dfget(daemon, url, &output, &[])?;
                if finished.status.success() {
                    return Ok(Got::Whole(fs::read(&output)?));
                }
                ensure!(!output.try_exists()?, "a failed dfget left an output");
                Ok(Got::Broken(Vec::new(), String::from_utf8_lossy(&finished.stdout).into_owned() + &finished.stderr))
            }
        }
    }
}

impl Got {
    pub(crate) fn whole(self) -> Result<Vec<u8>> {
        match self {
            Self::Whole(bytes) => Ok(bytes),
            Self::Broken(bytes, told) => bail!("broken after {} bytes: {told}", bytes.len()),
        }
    }
}

/// An answer that was refused or broke, in a line.
pub(crate) fn told(reply: &Reply) -> String {
    let body = String::from_utf8_lossy(&reply.body[..reply.body.len().min(300)]).into_owned();
    let body = if reply.status >= 400 { body } else { String::new() };
    format!("status {}, {} bytes, curl's exit {}, {body}", reply.status, reply.body.len(), reply.exit)
}

/// The same bytes; says where they differ and how, without printing them.
pub(crate) fn same(found: &[u8], expected: &[u8]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).position(|(a, b)| a != b);
    bail!("{} bytes instead of {}, the first difference at {at:?}", found.len(), expected.len())
}

// === what nodes say ===

/// The value of a counter or gauge; the sum when it has labels.
pub(crate) fn metric(node: &Daemon, name: &str) -> Result<u64> {
    let text = Curl::new(node.host()).get(&format!("http://{}/metrics", node.http()))?.body;
    let text = String::from_utf8(text)?;
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{')))
        .collect();
    ensure!(!lines.is_empty(), "{} has no metric {name}", node.host().name());
    let values = lines.iter().map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<f64>());
    Ok(values.sum::<Result<f64, _>>()? as u64)
}

/// The tasks a supernode knows.
pub(crate) fn tasks(supernode: &Daemon) -> Result<Vec<TaskView>> {
    let reply = Curl::new(supernode.host()).get(&format!("http://{}/api/skimmer/v1/tasks", supernode.http()))?;
    Ok(serde_json::from_value(reply.json()?)?)
}

/// The hosts a supernode knows.
pub(crate) fn hosts(supernode: &Daemon) -> Result<Vec<HostView>> {
    let reply = Curl::new(supernode.host()).get(&format!("http://{}/api/skimmer/v1/hosts", supernode.http()))?;
    Ok(serde_json::from_value(reply.json()?)?)
}

/// The task of this URL.
pub(crate) fn task_of(supernode: &Daemon, url: &str) -> Result<TaskView> {
    let all = tasks(supernode)?;
    let found = all.iter().find(|task| task.url == url).cloned();
    found.with_context(|| format!("the supernode knows no task of {url}, but {all:?}"))
}

/// Waits until it is so; an error says what.
pub(crate) fn wait_until(what: &str, deadline: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        if is_so()? {
            return Ok(());
        }
        ensure!(Instant::now() < end, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

// === what is on disk ===

/// All files below a folder; those that go away while it is read are left out.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for entry in entries.flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&path)),
            Ok(kind) if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    found
}

/// Bytes on disk of everything below a folder, as `du` counts.
pub(crate) fn disk_usage(folder: &Path) -> u64 {
    files(folder).iter().filter_map(|path| fs::metadata(path).ok()).map(|data| data.blocks() * 512).sum()
}

/// The content files of a node's store.
pub(crate) fn stored(node: &Daemon) -> Vec<PathBuf> {
    files(&node.store().join("content"))
}

/// Files below a folder that hold these bytes.
pub(crate) fn holding(folder: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        fs::read(path).is_ok_and(|bytes| {
            let first = needle[0];
            let mut from = 0;
            while let Some(at) = bytes[from..].iter().position(|byte| *byte == first) {
                if bytes[from + at..].starts_with(needle) {
                    return true;
                }
                from += at + 1;
            }
            false
        })
    };
    files(folder).into_iter().filter(holds).collect()
}
