//! The servers that are compared, each over an empty folder on the same disk.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{Host, Proc, Run, SkimmerRegistry, go_tool};
use proto::Digest;

use super::stock::{MANIFEST_TYPE, Stock};
use crate::load::{self, Blob, Keep, Kept, Push, Request, Target, Task};

const PEER_CONFIG: &str = include_str!("../../registry/distribution.yml");
const LIMIT_CONFIG: &str = include_str!("../../registry/nginx.conf");
/// All start in well under a second, on a busy machine in a few.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Each hashes what it pulls, and so needs a core.
const VERIFIERS: usize = 2;

/// One of the servers.
#[derive(Debug)]
pub(super) struct Side {
    server: Server,
    target: Target,
    /// Everything it said 201 to: where to get it, and what it has to be.
    uploaded: BTreeSet<(String, String)>,
}

#[derive(Debug)]
enum Server {
    Ours(SkimmerRegistry),
    Other(Proc),
}

/// Our registry and Distribution, and nginx over Distribution's files where it is wanted.
#[derive(Debug)]
pub(super) struct Bed {
    pub(super) ours: Side,
    pub(super) peer: Side,
    pub(super) limit: Option<Side>,
    folder: PathBuf,
}

impl Bed {
    /// Starts the servers.
    ///
    /// # Errors
    /// When one does not start.
    pub(super) fn start(host: &Host, run: &Run, with_limit: bool) -> Result<Self> {
        let folder = run.data_dir("bed")?;
        let (ours_folder, peer_folder) = (folder.join("ours"), folder.join("distribution"));
        for folder in [&ours_folder, &peer_folder] {
            fs::create_dir(folder)?;
        }
        let ours = Side::ours(host, run, &ours_folder)?;
        let peer = Side::peer(host, run, &peer_folder)?;
        let limit = with_limit.then(|| Side::limit(host, run, &folder, &peer_folder)).transpose()?;
        Ok(Self { ours, peer, limit, folder })
    }

    /// Puts into both what tests read.
    ///
    /// # Errors
    /// When one refuses.
    pub(super) fn fill(&mut self, stock: &Stock) -> Result<()> {
        self.ours.fill(stock)?;
        self.peer.fill(stock)
    }

    /// Pulls back what was acknowledged, stops the servers and removes their files. Returns how many uploads were there
    /// and right; of Distribution's, those that were not are told and not counted.
    ///
    /// # Errors
    /// When one of ours was not.
    pub(super) fn finish(self) -> Result<usize> {
        let (ours, wrong) = self.ours.verify()?;
        ensure!(wrong.is_empty(), "acknowledged, and not there afterwards: {}", wrong.join("; "));
        let (peer, wrong) = self.peer.verify()?;
        for what in wrong {
            eprintln!("Distribution acknowledged, and had not afterwards: {what}");
        }
        let Self { folder, .. } = &self;
        let folder = folder.clone();
        drop(self);
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        Ok(ours + peer)
    }
}

// === impl Side ===

impl Side {
    fn ours(host: &Host, run: &Run, folder: &Path) -> Result<Self> {
        let server = ours(host, run, &SkimmerRegistry::on_files(folder))?;
        Ok(Self::new(Target::new(server.addr()), Server::Ours(server)))
    }

    fn peer(host: &Host, run: &Run, folder: &Path) -> Result<Self> {
        let addr = host.addr(host.free_port()?);
        let config = fill(PEER_CONFIG, &[("addr", &addr.to_string()), ("root", &folder.display().to_string())]);
        let path = folder.with_extension("yml");
        fs::write(&path, config)?;
        let program =
            host.program(go_tool("distribution")?).arg("serve").arg(&path).env("OTEL_TRACES_EXPORTER", "none");
        let mut proc = program.start(run, "distribution")?;
        proc.wait_port(addr, START_DEADLINE)?;
        Ok(Self::new(Target::new(addr), Server::Other(proc)))
    }

    fn limit(host: &Host, run: &Run, folder: &Path, files: &Path) -> Result<Self> {
        let addr = host.addr(host.free_port()?);
        // As root, nginx would otherwise switch to a user that cannot read the run's folder.
        let user = if harness::is_root() { "user root;" } else { "" };
        let values = [
            ("addr", addr.to_string()),
            ("root", files.display().to_string()),
            ("folder", folder.display().to_string()),
            ("user", user.to_owned()),
        ];
        let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let path = folder.join("nginx.conf");
        fs::write(&path, fill(LIMIT_CONFIG, &values))?;
        let program = host.program("nginx").arg("-p").arg(folder).args(["-e", "stderr", "-c"]).arg(&path);
        let mut proc = program.start(run, "nginx")?;
        proc.wait_port(addr, START_DEADLINE)?;
        Ok(Self::new(Target::new(addr), Server::Other(proc)))
    }

    const fn new(target: Target, server: Server) -> Self {
        Self { server, target, uploaded: BTreeSet::new() }
    }

    /// Where it listens.
    pub(super) const fn target(&self) -> &Target {
        &self.target
    }

    /// Processor time so far. nginx's is not asked for: its workers are other processes.
    ///
    /// # Errors
    /// When the server is gone.
    pub(super) fn cpu(&mut self) -> Result<Duration> {
        match &mut self.server {
            Server::Ours(server) => server.process().cpu(),
            Server::Other(proc) => proc.cpu(),
        }
    }

    /// An upload.
    pub(super) fn push(&self, repository: &str, blob: Blob, chunked: bool) -> Task {
        Task::Push(Push::new(self.target.start_upload(repository), blob, chunked))
    }

    /// The request for a blob.
    pub(super) fn pull(&self, repository: &str, digest: &Digest) -> Request {
        self.target.request("GET", &format!("/v2/{repository}/blobs/{digest}"), "")
    }

    /// The request for a blob of Distribution's, as a file.
    pub(super) fn pull_file(&self, digest: &Digest) -> Request {
        let hex = digest.hex();
        let path = format!("/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        self.target.request("GET", &path, "")
    }

    /// Remembers that it acknowledged a blob.
    pub(super) fn has_blob(&mut self, repository: &str, digest: &Digest) {
        self.uploaded.insert((format!("/v2/{repository}/blobs/{digest}"), digest.to_string()));
    }

    fn fill(&mut self, stock: &Stock) -> Result<()> {
        let blobs: Vec<(&str, &Blob)> = stock.blobs().collect();
        let pushes = blobs.iter().map(|(repository, blob)| self.push(repository, (*blob).clone(), false));
        load::all(&self.target, VERIFIERS, pushes, |done| done.result.map(drop))?;
        for (repository, blob) in blobs {
            self.has_blob(repository, blob.digest());
        }
        let manifests = stock.manifests().map(|(path, body)| {
            let headers = format!("Content-Type: {MANIFEST_TYPE}\r\n");
            Task::Request(self.target.upload("PUT", path, &headers, body.as_bytes()))
        });
        load::all(&self.target, VERIFIERS, manifests, |done| done.result.map(drop))?;
        for (path, body) in stock.manifests() {
            let digest = Digest::of(proto::Algorithm::Sha256, body.as_bytes());
            self.uploaded.insert((path.to_owned(), digest.to_string()));
        }
        Ok(())
    }

    /// Pulls back everything it acknowledged: how much was right, and what was not.
    fn verify(&self) -> Result<(usize, Vec<String>)> {
        let all: Vec<&(String, String)> = self.uploaded.iter().collect();
        let share = all.len().div_ceil(VERIFIERS).max(1);
        let wrong: Result<Vec<Vec<String>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = all.chunks(share).map(|part| scope.spawn(|| self.verify_part(part))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<String>>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect::<Vec<_>>().into_iter().collect()
        });
        let wrong = wrong?.concat();
        Ok((all.len() - wrong.len(), wrong))
    }

    fn verify_part(&self, part: &[&(String, String)]) -> Result<Vec<String>> {
        let requests = part.iter().map(|(path, _)| {
            let headers = format!("Accept: {MANIFEST_TYPE}\r\n");
            Task::Request(self.target.request("GET", path, &headers).keep(Keep::Digest))
        });
        let mut wrong = Vec::new();
        load::all(&self.target, 1, requests, |done| {
            let (path, digest) = part[done.job.id];
            match done.result {
                Ok(answer) if matches!(&answer.kept, Kept::Digest(found) if found.to_string() == *digest) => {}
                Ok(answer) => wrong.push(format!("{path} is {:?}", answer.kept)),
                Err(error) => wrong.push(format!("{error:#}")),
            }
            Ok(())
        })?;
        Ok(wrong)
    }
}

/// Our registry as the benches measure it: as it comes, without a line for each request.
///
/// # Errors
/// When it does not start.
pub(crate) fn ours(host: &Host, run: &Run, sections: &str) -> Result<SkimmerRegistry> {
    // The address is the namespace's own, which only this machine reaches.
    SkimmerRegistry::start(host, run, &format!("access_log = false\n[auth]\nallow_anonymous = true\n{sections}"))
}

fn fill(template: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("{{{{{name}}}}}"), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_have_no_places_left() {
        let peer = fill(PEER_CONFIG, &[("addr", "a"), ("root", "r")]);
        let limit = fill(LIMIT_CONFIG, &[("addr", "a"), ("root", "r"), ("folder", "f"), ("user", "")]);
        for text in [peer, limit] {
            let left = text.lines().find(|line| !line.starts_with('#') && line.contains("{{"));
            assert_eq!(left, None);
        }
    }
}
