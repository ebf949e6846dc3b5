//! podman, which has no daemon.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;

use super::{ASK_DEADLINE, Pulled, digests, image_id};
use crate::{Host, ProcBuilder, Run, exec::Finished};

/// A registry as podman's `registries.conf` describes it.
#[derive(Debug, Clone)]
pub struct PodmanMirror {
    /// `address:port` as it stands in image references.
    pub registry: String,
    /// Whether the registry itself speaks plain HTTP.
    pub registry_plain: bool,
    /// `address:port` of mirrors that are asked first, and whether they speak plain HTTP.
    pub mirrors: Vec<(String, bool)>,
}

/// A podman with storage of its own.
#[derive(Debug)]
pub struct Podman {
    host: Host,
    folder: PathBuf,
    env: Vec<(String, String)>,
    binds: Vec<(PathBuf, PathBuf)>,
}

/// A `registries.conf` that says this and nothing else.
pub(super) fn registries_conf(registries: &[PodmanMirror]) -> Result<String> {
    let mut text = "unqualified-search-registries = []\n".to_owned();
    for PodmanMirror { registry, registry_plain, mirrors } in registries {
        writeln!(
            text,
            "[[registry]]\nprefix = \"{registry}\"\nlocation = \"{registry}\"\ninsecure = {registry_plain}"
        )?;
        for (mirror, plain) in mirrors {
            writeln!(text, "[[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = {plain}")?;
        }
    }
    Ok(text)
}

impl Podman {
    /// Sets up its folders.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn new(host: &Host, run: &Run, registries: &[PodmanMirror]) -> Result<Self> {
        let folder = run.data_dir("podman")?;
        fs::write(folder.join("registries.conf"), registries_conf(registries)?)?;
        fs::write(folder.join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        // podman wants the file it is told of to be there.
        fs::write(folder.join("auth.json"), "{}")?;
        Ok(Self { host: host.clone(), folder, env: Vec::new(), binds: Vec::new() })
    }

    /// One that reads its configuration where the machine's is, `/etc/containers`, and finds this folder there.
    ///
    /// # Errors
    /// As [`Podman::new`].
    pub fn with_etc(host: &Host, run: &Run, etc_containers: &Path) -> Result<Self> {
        let podman = Self::new(host, run, &[])?;
        fs::remove_file(podman.folder.join("registries.conf"))?;
        Ok(podman.bind(etc_containers, "/etc/containers"))
    }

    /// Lets it see a file or folder instead of the machine's.
    #[must_use]
    pub fn bind(mut self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Self {
        self.binds.push((from.into(), to.into()));
        self
    }

    /// Sets a variable of its environment: `HTTPS_PROXY`, `SSL_CERT_FILE`.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn podman(&self) -> ProcBuilder {
        let mut podman = self.host.program("podman").private_mounts();
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            podman = podman.arg(option).arg(self.folder.join(name));
        }
        podman =
            podman.args(["--storage-driver", "overlay", "--events-backend", "none", "--cgroup-manager", "cgroupfs"]);
        let registries = self.folder.join("registries.conf");
        if registries.is_file() {
            podman = podman.env("CONTAINERS_REGISTRIES_CONF", registries);
        }
        for (from, to) in &self.binds {
            podman = podman.bind(from, to);
        }
        podman = podman.env("REGISTRY_AUTH_FILE", self.folder.join("auth.json")).env("TMPDIR", &self.folder);
        podman = podman.env("HOME", &self.folder);
        for (name, value) in &self.env {
            podman = podman.env(name, value);
        }
        podman
    }

    /// `podman login`, at an address that speaks plain HTTP when `plain`.
    ///
    /// # Errors
    /// When the registry refuses.
    pub fn login(&self, registry: &str, plain: bool, user: &str, password: &str) -> Result<()> {
        let verify = format!("--tls-verify={}", !plain);
        self.podman().args(["login", &verify, "-u", user, "-p", password, registry]).run(ASK_DEADLINE).map(drop)
    }

    /// A `podman pull` to be started by the caller.
    #[must_use]
    pub fn pulling(&self, reference: &str, user: Option<(&str, &str)>) -> ProcBuilder {
        let mut podman = self.podman().args(["pull", "--signature-policy"]).arg(self.folder.join("policy.json"));
        if let Some((user, password)) = user {
            podman = podman.args(["--creds", &format!("{user}:{password}")]);
        }
        podman.arg(reference)
    }

    /// As [`Podman::pulling`], to its end, whatever comes of it.
    ///
    /// # Errors
    /// When it is not done by the deadline.
    pub fn try_pull(&self, reference: &str, user: Option<(&str, &str)>, deadline: Duration) -> Result<Finished> {
        self.pulling(reference, user).output(deadline)
    }

    /// Pulls, and says what its storage has afterwards.
    ///
    /// # Errors
    /// When the pull fails.
    pub fn pull(&self, reference: &str, user: Option<(&str, &str)>, deadline: Duration) -> Result<Pulled> {
        self.pulling(reference, user).run(deadline)?;
        self.read_back(reference)
    }

    /// What its storage has of an image; it keeps layers unpacked only.
    ///
    /// # Errors
    /// When there is none.
    pub fn read_back(&self, reference: &str) -> Result<Pulled> {
        let finished = self.podman().args(["image", "inspect", reference]).run(ASK_DEADLINE)?;
        let image: serde_json::Value = serde_json::from_slice(&finished.stdout)?;
        let config = image_id(image[0]["Id"].as_str().unwrap_or_default())?;
        Ok(Pulled { config, layers: Vec::new(), diff_ids: digests(&image[0]["RootFS"]["Layers"])? })
    }

    /// Forgets an image.
    ///
    /// # Errors
    /// When podman refuses.
    pub fn remove(&self, reference: &str) -> Result<()> {
        self.podman().args(["rmi", "-f", reference]).run(ASK_DEADLINE).map(drop)
    }
}
