//! skopeo copy into a folder.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proto::{Algorithm, Digest};

use super::{ASK_DEADLINE, Pulled, podman::registries_conf};
use crate::{Host, PodmanMirror, ProcBuilder, Run, exec::Finished};

/// skopeo with a folder of its own; it needs neither root nor a daemon.
#[derive(Debug)]
pub struct Skopeo {
    host: Host,
    folder: PathBuf,
    plain: bool,
    /// Into an OCI layout instead of a plain folder.
    layout: bool,
    args: Vec<String>,
    env: Vec<(String, String)>,
    registries: Option<PathBuf>,
}

impl Skopeo {
    /// Sets up its folder; `plain` lets it speak HTTP and take any certificate.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(host: &Host, run: &Run, plain: bool) -> Result<Self> {
        let folder = run.data_dir("skopeo")?;
        Ok(Self {
            host: host.clone(),
            folder,
            plain,
            layout: false,
            args: Vec::new(),
            env: Vec::new(),
            registries: None,
        })
    }

    /// Adds arguments of `skopeo copy`: `--src-creds`, `--src-cert-dir`.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Tells it how registries are reached.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn registries(self, registries: &[PodmanMirror]) -> Result<Self> {
        let path = self.folder.with_extension("registries.conf");
        fs::write(&path, registries_conf(registries)?)?;
        Ok(Self { registries: Some(path), ..self })
    }

    /// `skopeo login`, at an address that speaks plain HTTP when `plain`.
    ///
    /// # Errors
    /// When the registry refuses.
    pub fn login(&self, registry: &str, plain: bool, user: &str, password: &str) -> Result<()> {
        let verify = format!("--tls-verify={}", !plain);
        let login = self.skopeo().args(["login", &verify, "-u", user, "-p", password, registry]);
        login.run(ASK_DEADLINE).map(drop)
    }

    /// Copies into an OCI layout, and so several layers at a time: into a plain folder skopeo writes one after another.
    #[must_use]
    pub fn at_once(self) -> Self {
        Self { layout: true, ..self }
    }

    /// The folder the image is copied to.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn skopeo(&self) -> ProcBuilder {
        let mut skopeo = self.host.program("skopeo").arg("--insecure-policy");
        // Nobody's own settings and passwords.
        skopeo = skopeo.env("REGISTRY_AUTH_FILE", self.folder.with_extension("auth")).env("HOME", &self.folder);
        if let Some(registries) = &self.registries {
            // skopeo has no variable for it, unlike podman.
            skopeo = skopeo.arg("--registries-conf").arg(registries);
        }
        for (name, value) in &self.env {
            skopeo = skopeo.env(name, value);
        }
        skopeo
    }

    /// A copy to be started by the caller.
    #[must_use]
    pub fn pulling(&self, reference: &str) -> ProcBuilder {
        let kind = if self.layout { "oci" } else { "dir" };
        self.copying(&format!("docker://{reference}"), &format!("{kind}:{}", self.folder.display()))
    }

    /// A copy from anywhere to anywhere, as skopeo names places.
    #[must_use]
    pub fn copying(&self, from: &str, to: &str) -> ProcBuilder {
        let mut skopeo = self.skopeo().arg("copy");
        if self.plain {
            skopeo = skopeo.arg("--src-tls-verify=false");
        }
        skopeo.args(&self.args).args([from, to])
    }

    /// As [`Skopeo::pulling`], to its end, whatever comes of it.
    ///
    /// # Errors
    /// When it is not done by the deadline.
    pub fn try_pull(&self, reference: &str, deadline: Duration) -> Result<Finished> {
        self.pulling(reference).output(deadline)
    }

    /// Copies, and says what is in the folder afterwards.
    ///
    /// # Errors
    /// When the copy fails.
    pub fn pull(&self, reference: &str, deadline: Duration) -> Result<Pulled> {
        self.pulling(reference).run(deadline)?;
        self.read_back()
    }

    /// What is in the folder; every file is hashed.
    ///
    /// # Errors
    /// When a file is missing or not what its name says.
    pub fn read_back(&self) -> Result<Pulled> {
        let json = |path: &Path| -> Result<serde_json::Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
        let blobs = if self.layout { self.folder.join("blobs/sha256") } else { self.folder.clone() };
        let manifest = if self.layout {
            let index = json(&self.folder.join("index.json"))?;
            let digest: Digest = index["manifests"][0]["digest"].as_str().unwrap_or_default().parse()?;
            json(&blobs.join(digest.hex()))?
        } else {
            json(&self.folder.join("manifest.json"))?
        };
        let checked = |entry: &serde_json::Value| -> Result<Digest> {
            let digest: Digest = entry["digest"].as_str().unwrap_or_default().parse()?;
            let bytes = fs::read(blobs.join(digest.hex())).with_context(|| format!("no file for {digest}"))?;
            let found = Digest::of(Algorithm::Sha256, &bytes);
            ensure!(found == digest, "skopeo wrote {found} as {digest}");
            Ok(digest)
        };
        let layers = manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let layers = layers.iter().map(checked).collect::<Result<Vec<_>>>()?;
        Ok(Pulled { config: checked(&manifest["config"])?, layers, diff_ids: Vec::new() })
    }
}
