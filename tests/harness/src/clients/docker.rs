//! dockerd and docker pull.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;

use super::{ASK_DEADLINE, Pulled, digests, image_id};
use crate::{Host, Proc, ProcBuilder, Run, exec::Finished};

/// It starts containerd first; together a few seconds on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// How a dockerd reaches registries.
#[derive(Debug, Clone, Default)]
pub struct DockerOptions {
    /// URLs of mirrors of docker.io.
    pub mirrors: Vec<String>,
    /// `address:port` of registries that speak plain HTTP or have a certificate nobody knows.
    pub insecure: Vec<String>,
    /// Layers that are downloaded at the same time; 3, as docker has it, when absent.
    pub downloads_at_once: Option<u32>,
    /// URL of the proxy for both schemes.
    pub proxy: Option<String>,
    /// A PEM file of authorities to trust, instead of the machine's.
    pub ca: Option<PathBuf>,
    /// A `daemon.json` that is there already, instead of one made of the above mirrors and insecure registries.
    pub config: Option<PathBuf>,
    /// Files it sees instead of the machine's: from, to.
    pub binds: Vec<(PathBuf, PathBuf)>,
}

/// A dockerd of its own: own data, own socket, no bridge, no firewall rules.
#[derive(Debug)]
pub struct Docker {
    proc: Proc,
    socket: PathBuf,
    data: PathBuf,
    config: PathBuf,
}

impl Docker {
    /// Starts dockerd on the host.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(host: &Host, run: &Run, options: &DockerOptions) -> Result<Self> {
        let folder = run.data_dir("docker")?;
        let (data, socket, config) = (folder.join("data"), folder.join("sock"), folder.join("client"));
        fs::create_dir(&config)?;
        let daemon_json = options.config.clone().unwrap_or_else(|| folder.join("daemon.json"));
        if options.config.is_none() {
            let content = json!({
                "registry-mirrors": options.mirrors,
                "insecure-registries": options.insecure,
                "max-concurrent-downloads": options.downloads_at_once.unwrap_or(3),
            });
            fs::write(&daemon_json, content.to_string())?;
        }
        // Mounts of its own, so that its overlay mounts go away with it, however it ends.
        let mut program = host.program("dockerd").private_mounts().arg("--config-file").arg(daemon_json);
        for (from, to) in &options.binds {
            program = program.bind(from, to);
        }
        program = program.arg("--data-root").arg(&data).arg("--exec-root").arg(folder.join("exec"));
        program =
            program.arg("--pidfile").arg(folder.join("pid")).arg("-H").arg(format!("unix://{}", socket.display()));
        program = program.args([
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--ip-masq=false",
        ]);
        // Ours must be the only addresses it ever asks: docker.io itself cannot be reached from a host.
        program = program.env("NO_PROXY", "").env("no_proxy", "");
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            program = program.env(name, options.proxy.as_deref().unwrap_or_default());
        }
        if let Some(ca) = &options.ca {
            program = program.env("SSL_CERT_FILE", ca).env("SSL_CERT_DIR", "/nonexistent");
        }
        let proc = program.start(run, "dockerd")?;
        let mut docker = Self { proc, socket, data, config };
        let (host, socket) = (docker.proc.host().clone(), docker.socket.clone());
        docker.proc.wait_until("answer to docker version", START_DEADLINE, |_| {
            let ask = host.program("docker").arg("-H").arg(format!("unix://{}", socket.display())).arg("version");
            ask.run(Duration::from_secs(10)).is_ok()
        })?;
        Ok(docker)
    }

    fn docker(&self) -> ProcBuilder {
        let docker = self.proc.host().program("docker").arg("--config").arg(&self.config);
        docker.arg("-H").arg(format!("unix://{}", self.socket.display()))
    }

    /// `docker login`.
    ///
    /// # Errors
    /// When the registry refuses.
    pub fn login(&self, registry: &str, user: &str, password: &str) -> Result<()> {
        self.docker().args(["login", "-u", user, "-p", password, registry]).run(ASK_DEADLINE).map(drop)
    }

    /// Writes down a password for a registry without asking it: docker.io's cannot be asked here. Its name is
    /// `https://index.docker.io/v1/`, and docker gives the password to its mirrors, too.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn know(&self, registry: &str, user: &str, password: &str) -> Result<()> {
        let basic = crate::basic_auth(user, password);
        let auth = basic.trim_start_matches("Basic ");
        let content = json!({"auths": {registry: {"auth": auth}}});
        fs::write(self.config.join("config.json"), content.to_string()).context("cannot write docker's passwords")
    }

    /// `docker pull`, whatever comes of it.
    ///
    /// # Errors
    /// When it is not done by the deadline.
    pub fn try_pull(&self, reference: &str, deadline: Duration) -> Result<Finished> {
        self.docker().args(["pull", reference]).output(deadline)
    }

    /// `docker pull`, and what dockerd has afterwards.
    ///
    /// # Errors
    /// When the pull fails.
    pub fn pull(&self, reference: &str, deadline: Duration) -> Result<Pulled> {
        self.docker().args(["pull", reference]).run(deadline)?;
        self.read_back(reference)
    }

    /// A pull to be started by the caller, to run beside others.
    #[must_use]
    pub fn pulling(&self, reference: &str) -> ProcBuilder {
        self.docker().args(["pull", reference])
    }

    /// What dockerd has of an image. It gave the layers their unpacked digests when it read them; the digests they
    /// travelled under it keeps beside these.
    ///
    /// # Errors
    /// When it has none.
    pub fn read_back(&self, reference: &str) -> Result<Pulled> {
        let finished = self.docker().args(["image", "inspect", reference]).run(ASK_DEADLINE)?;
        let image: serde_json::Value = serde_json::from_slice(&finished.stdout)?;
        let diff_ids = digests(&image[0]["RootFS"]["Layers"])?;
        let known = self.data.join("image/overlay2/distribution/v2metadata-by-diffid/sha256");
        let mut layers = Vec::new();
        for diff_id in &diff_ids {
            let file = known.join(diff_id.hex());
            let text = fs::read(&file).with_context(|| format!("dockerd does not know where {diff_id} came from"))?;
            let metadata: serde_json::Value = serde_json::from_slice(&text)?;
            layers.push(metadata[0]["Digest"].as_str().unwrap_or_default().parse()?);
        }
        Ok(Pulled { config: image_id(image[0]["Id"].as_str().unwrap_or_default())?, layers, diff_ids })
    }

    /// Forgets an image, so that the next pull starts anew.
    ///
    /// # Errors
    /// When dockerd refuses.
    pub fn remove(&self, reference: &str) -> Result<()> {
        self.docker().args(["image", "rm", "-f", reference]).run(ASK_DEADLINE).map(drop)
    }

    /// The daemon's process.
    pub const fn process(&mut self) -> &mut Proc {
        &mut self.proc
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // So that it stops its containerd and unmounts; what it leaves is killed with its process.
        let _ = self.proc.terminate(STOP_DEADLINE);
    }
}
