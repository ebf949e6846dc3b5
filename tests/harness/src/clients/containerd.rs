//! containerd and ctr.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proto::{Algorithm, Digest};

use super::{ASK_DEADLINE, Pulled, digests};
use crate::{Host, Proc, ProcBuilder, Run, exec::Finished};

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// A folder of `hosts.toml` files, one per registry, as containerd and ctr read it.
#[derive(Debug)]
pub struct HostsToml {
    folder: PathBuf,
}

/// A containerd of its own.
#[derive(Debug)]
pub struct Containerd {
    proc: Proc,
    socket: PathBuf,
}

// === impl HostsToml ===

impl HostsToml {
    /// An empty folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(run: &Run) -> Result<Self> {
        Ok(Self { folder: run.data_dir("hosts.d")? })
    }

    /// Registry `name` is reached at `server`, after these mirrors. All are URLs; certificates of `ca` are trusted.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn registry(self, name: &str, server: &str, mirrors: &[&str], ca: Option<&Path>) -> Result<Self> {
        let mut text = format!("server = \"{server}\"\n");
        let ca = ca.map(|ca| format!("ca = \"{}\"\n", ca.display())).unwrap_or_default();
        text.push_str(&ca);
        // ctr 1.6 refuses a file without any host, and so the server is named as the last of them.
        for mirror in mirrors.iter().chain([&server]) {
            writeln!(text, "[host.\"{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n{ca}")?;
        }
        // The colon of a port stays in the folder's name.
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("hosts.toml"), text)?;
        Ok(self)
    }

    /// The folder, as in `--hosts-dir`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

// === impl Containerd ===

impl Containerd {
    /// Starts it on the host, without its CRI plugin.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(host: &Host, run: &Run) -> Result<Self> {
        let folder = run.data_dir("containerd")?;
        let socket = folder.join("sock");
        let config = format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\n  address = \"{socket}\"\n[plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{opt}\"\n",
            root = folder.join("root").display(),
            state = folder.join("state").display(),
            opt = folder.join("opt").display(),
            socket = socket.display(),
        );
        fs::write(folder.join("config.toml"), config)?;
        let program = host.program("containerd").private_mounts().arg("--config").arg(folder.join("config.toml"));
        let proc = program.start(run, "containerd")?;
        let mut containerd = Self { proc, socket };
        let (host, socket) = (containerd.proc.host().clone(), containerd.socket.clone());
        containerd.proc.wait_until("answer to ctr version", START_DEADLINE, |_| {
            host.program("ctr").arg("-a").arg(&socket).arg("version").run(Duration::from_secs(10)).is_ok()
        })?;
        Ok(containerd)
    }

    fn ctr(&self) -> ProcBuilder {
        self.proc.host().program("ctr").arg("-a").arg(&self.socket)
    }

    /// A `ctr images pull` to be started by the caller. It downloads in ctr's own process and unpacks in containerd's,
    /// and so has a private mount namespace only if containerd does.
    #[must_use]
    pub fn pulling(&self, reference: &str, hosts: &HostsToml, user: Option<(&str, &str)>) -> ProcBuilder {
        self.pulling_with(reference, hosts.folder(), user)
    }

    /// As [`Containerd::pulling`], with a folder that is there already.
    #[must_use]
    pub fn pulling_with(&self, reference: &str, hosts: &Path, user: Option<(&str, &str)>) -> ProcBuilder {
        let mut ctr = self.ctr().args(["images", "pull", "--hosts-dir"]).arg(hosts);
        if let Some((user, password)) = user {
            ctr = ctr.args(["--user", &format!("{user}:{password}")]);
        }
        ctr.arg(reference)
    }

    /// As [`Containerd::pulling`], to its end, whatever comes of it.
    ///
    /// # Errors
    /// When it is not done by the deadline.
    pub fn try_pull(
        &self,
        reference: &str,
        hosts: &HostsToml,
        user: Option<(&str, &str)>,
        deadline: Duration,
    ) -> Result<Finished> {
        self.pulling(reference, hosts, user).output(deadline)
    }

    /// Pulls, and says what containerd has afterwards.
    ///
    /// # Errors
    /// When the pull fails.
    pub fn pull(
        &self,
        reference: &str,
        hosts: &HostsToml,
        user: Option<(&str, &str)>,
        deadline: Duration,
    ) -> Result<Pulled> {
        self.pulling(reference, hosts, user).run(deadline)?;
        self.read_back(reference)
    }

    /// What containerd has of an image; every blob is read and hashed.
    ///
    /// # Errors
    /// When something is missing or not what its digest says.
    pub fn read_back(&self, reference: &str) -> Result<Pulled> {
        let listed = self.ctr().args(["images", "ls", &format!("name=={reference}")]).run(ASK_DEADLINE)?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let top = listed
            .split_whitespace()
            .find(|word| word.starts_with("sha256:"))
            .context("containerd has no such image")?;
        let mut manifest: serde_json::Value = serde_json::from_slice(&self.content(&top.parse()?)?)?;
        if let Some(manifests) = manifest["manifests"].as_array() {
            let wanted = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
            let ours = manifests.iter().find(|entry| entry["platform"]["architecture"] == wanted);
            let digest =
                ours.context("the index has no manifest for this machine")?["digest"].as_str().unwrap_or_default();
            manifest = serde_json::from_slice(&self.content(&digest.parse()?)?)?;
        }
        let config: Digest = manifest["config"]["digest"].as_str().unwrap_or_default().parse()?;
        let diff_ids =
            digests(&serde_json::from_slice::<serde_json::Value>(&self.content(&config)?)?["rootfs"]["diff_ids"])?;
        let layers: Vec<Digest> = manifest["layers"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .map(|layer| Ok(layer["digest"].as_str().unwrap_or_default().parse()?))
            .collect::<Result<_>>()?;
        for layer in &layers {
            self.content(layer)?;
        }
        Ok(Pulled { config, layers, diff_ids })
    }

    fn content(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bytes = self.ctr().args(["content", "get", &digest.to_string()]).run(ASK_DEADLINE)?.stdout;
        let found = Digest::of(Algorithm::Sha256, &bytes);
        ensure!(found == *digest, "containerd keeps {found} as {digest}");
        Ok(bytes)
    }

    /// Forgets an image and its blobs.
    ///
    /// # Errors
    /// When containerd refuses.
    pub fn remove(&self, reference: &str) -> Result<()> {
        self.ctr().args(["images", "rm", "--sync", reference]).run(ASK_DEADLINE).map(drop)
    }

    /// The daemon's process.
    pub const fn process(&mut self) -> &mut Proc {
        &mut self.proc
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.proc.terminate(STOP_DEADLINE);
    }
}
