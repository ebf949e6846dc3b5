//! The image origin: our own registry, or Debian's docker-registry where tokens are asked for.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{AccessEntry, SkimmerRegistry, TokenServer};
use crate::{Certificate, Curl, Host, Proc, Run, basic_auth, bin_dir};

/// Either starts in a tenth of a second, on a busy machine in a few.
const START_DEADLINE: Duration = Duration::from_secs(15);

/// Who may use the registry.
#[derive(Debug)]
pub enum RegistryAuth<'a> {
    /// Everybody.
    Open,
    /// Who knows the user and the password, at every request.
    Password {
        /// User name.
        user: &'a str,
        /// Password.
        password: &'a str,
    },
    /// Who has a token of this server.
    Token(&'a TokenServer),
}

/// Whose program an origin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Our own.
    Skimmer,
    /// Distribution's, as Debian has it.
    DockerRegistry,
}

/// A running registry with an empty store.
#[derive(Debug)]
pub struct Registry {
    proc: Proc,
    kind: Kind,
    name: String,
    scheme: &'static str,
    credentials: Option<(String, String)>,
    ca: Option<std::path::PathBuf>,
}

impl Registry {
    /// Starts it; with `tls` it speaks HTTPS only, and `ca` is what clients have to trust.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(
        host: &Host,
        run: &Run,
        auth: &RegistryAuth<'_>,
        tls: Option<(&Certificate, &crate::Authority)>,
    ) -> Result<Self> {
        Self::start_at(host, run, host.free_port()?, auth, tls)
    }

    /// As [`Registry::start`], on this port: 443, for clients that go by a name alone.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn start_at(
        host: &Host,
        run: &Run,
        port: u16,
        auth: &RegistryAuth<'_>,
        tls: Option<(&Certificate, &crate::Authority)>,
    ) -> Result<Self> {
        let kind = match auth {
            RegistryAuth::Open | RegistryAuth::Password { .. } => Kind::Skimmer,
            RegistryAuth::Token(_) => Kind::DockerRegistry,
        };
        Self::start_kind(kind, host, run, port, auth, tls)
    }

    /// As [`Registry::start`], but docker-registry whoever may use it.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn start_docker_registry(
        host: &Host,
        run: &Run,
        auth: &RegistryAuth<'_>,
        tls: Option<(&Certificate, &crate::Authority)>,
    ) -> Result<Self> {
        Self::start_kind(Kind::DockerRegistry, host, run, host.free_port()?, auth, tls)
    }

    fn start_kind(
        kind: Kind,
        host: &Host,
        run: &Run,
        port: u16,
        auth: &RegistryAuth<'_>,
        tls: Option<(&Certificate, &crate::Authority)>,
    ) -> Result<Self> {
        let folder = run.data_dir("registry")?;
        let htpasswd = match auth {
            RegistryAuth::Password { user, password } => {
                // Both know bcrypt only; the lowest cost keeps the tests quick.
                let file =
                    host.program("htpasswd").args(["-nbB", "-C", "4", user, password]).run(Duration::from_secs(10))?;
                let path = folder.join("htpasswd");
                fs::write(&path, file.stdout)?;
                Some(path)
            }
            RegistryAuth::Open | RegistryAuth::Token(_) => None,
        };
        let credentials = match auth {
            RegistryAuth::Open => None,
            RegistryAuth::Password { user, password } => Some(((*user).to_owned(), (*password).to_owned())),
            RegistryAuth::Token(server) => Some(server.credentials()),
        };
        let place = Place { host, folder: &folder, port, htpasswd: htpasswd.as_deref(), tls: tls.map(|(tls, _)| tls) };
        let proc = match kind {
            Kind::Skimmer => place.skimmer(run)?,
            Kind::DockerRegistry => place.docker_registry(run, auth)?,
        };
        let mut registry = Self {
            proc,
            kind,
            name: host.addr(port).to_string(),
            scheme: if tls.is_some() { "https" } else { "http" },
            credentials,
            ca: tls.map(|(_, authority)| authority.path().to_owned()),
        };
        registry.proc.wait_port(host.addr(port), START_DEADLINE)?;
        Ok(registry)
    }

    /// `address:port`, as it stands in an image reference.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URL of a path: `/v2/…`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.name)
    }

    /// Whether clients must be told that it speaks plain HTTP.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.scheme == "http"
    }

    /// User and password, when it asks for any.
    #[must_use]
    pub fn credentials(&self) -> Option<(&str, &str)> {
        self.credentials.as_ref().map(|(user, password)| (user.as_str(), password.as_str()))
    }

    /// The host it runs on.
    #[must_use]
    pub const fn host(&self) -> &Host {
        self.proc.host()
    }

    /// The process, to stop and start it.
    pub const fn process(&mut self) -> &mut Proc {
        &mut self.proc
    }

    /// The authority clients have to trust, when it speaks HTTPS.
    #[must_use]
    pub fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    /// Uploads one blob by itself, as POST and PUT; the way to get a blob of 0 bytes in. Not for token registries.
    ///
    /// # Errors
    /// When the registry refuses.
    pub fn push_blob(&self, repository: &str, content: &[u8]) -> Result<proto::Digest> {
        let digest = proto::Digest::of(proto::Algorithm::Sha256, content);
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("blob");
        fs::write(&file, content)?;
        let start = self.curl().args(["-X", "POST"]).get(&self.url(&format!("/v2/{repository}/blobs/uploads/")))?;
        ensure!(start.status == 202, "upload was not started: {}", start.status);
        let location = start.header("location").context("no location for the upload")?;
        let location = if location.starts_with('/') { self.url(location) } else { location.to_owned() };
        let mark = if location.contains('?') { '&' } else { '?' };
        let put = self.curl().header("Content-Type", "application/octet-stream");
        let put = put.args(["-X", "PUT", "--data-binary", &format!("@{}", file.display())]);
        let done = put.get(&format!("{location}{mark}digest={digest}"))?;
        ensure!(done.status == 201, "upload was refused: {} {}", done.status, String::from_utf8_lossy(&done.body));
        Ok(digest)
    }

    /// curl with what the registry asks for, from its own host.
    #[must_use]
    pub fn curl(&self) -> Curl {
        let mut curl = Curl::new(self.host());
        if let Some((user, password)) = &self.credentials {
            curl = curl.header("Authorization", &basic_auth(user, password));
        }
        if let Some(ca) = self.ca() {
            curl = curl.ca(ca);
        }
        curl
    }

    /// What it answered so far, from its log, oldest first. Ranges are not logged.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn access_log(&self) -> Result<Vec<AccessEntry>> {
        let entry = match self.kind {
            Kind::Skimmer => skimmer_entry,
            Kind::DockerRegistry => docker_registry_entry,
        };
        let log = self.proc.log()?;
        Ok(log.lines().filter_map(|line| entry(&serde_json::from_str(line).ok()?)).collect())
    }
}

/// Where an origin runs, and for whom.
struct Place<'p> {
    host: &'p Host,
    folder: &'p Path,
    port: u16,
    htpasswd: Option<&'p Path>,
    tls: Option<&'p Certificate>,
}

impl Place<'_> {
    fn skimmer(&self, run: &Run) -> Result<Proc> {
        let mut config = format!(
            "listen = [\"{}\"]\nmetrics_listen = [\"{}\"]\n",
            self.host.addr(self.port),
            self.host.addr(self.host.free_port()?),
        );
        if let Some(tls) = self.tls {
            writeln!(config, "[tls]\ncert = \"{}\"\nkey = \"{}\"", tls.cert.display(), tls.key.display())?;
        }
        match self.htpasswd {
            Some(path) => writeln!(config, "[auth]\nrealm = \"origin\"\nhtpasswd = \"{}\"", path.display())?,
            None => writeln!(config, "[auth]\nallow_anonymous = true")?,
        }
        write!(config, "{}[log]\nformat = \"json\"\n", SkimmerRegistry::on_files(self.folder))?;
        let path = self.folder.join("registry.toml");
        fs::write(&path, config)?;
        let program = self.host.program(bin_dir()?.join("registry"));
        program.args(["serve", "--config"]).arg(&path).start(run, "registry")
    }

    fn docker_registry(&self, run: &Run, auth: &RegistryAuth<'_>) -> Result<Proc> {
        let mut config = format!(
            "version: 0.1\nlog: {{level: info, formatter: json, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}, maintenance: {{uploadpurging: {{enabled: false}}}}}}\n\
             http:\n  addr: {addr}\n  secret: of-one-test-run\n",
            root = self.folder.join("store").display(),
            addr = self.host.addr(self.port),
        );
        if let Some(tls) = self.tls {
            writeln!(config, "  tls: {{certificate: {}, key: {}}}", tls.cert.display(), tls.key.display())?;
        }
        if let Some(path) = self.htpasswd {
            writeln!(config, "auth: {{htpasswd: {{realm: origin, path: {}}}}}", path.display())?;
        }
        if let RegistryAuth::Token(server) = auth {
            writeln!(
                config,
                "auth: {{token: {{realm: \"{}\", service: \"{}\", issuer: \"{}\", rootcertbundle: {}}}}}",
                server.realm(),
                TokenServer::SERVICE,
                TokenServer::ISSUER,
                server.trust().display()
            )?;
        }
        let path = self.folder.join("config.yml");
        fs::write(&path, config)?;
        let program = self.host.program("docker-registry").arg("serve").arg(&path);
        program.env("OTEL_TRACES_EXPORTER", "none").start(run, "registry")
    }
}

/// Bytes of blobs among these: bodies of answers to GET that are no errors.
#[must_use]
pub fn blob_bytes(entries: &[AccessEntry]) -> u64 {
    let is_blob = |entry: &&AccessEntry| entry.method == "GET" && entry.uri.contains("/blobs/sha256:");
    let blobs = entries.iter().filter(is_blob).filter(|entry| matches!(entry.status, 200 | 206));
    blobs.map(|entry| entry.body_bytes).sum()
}

fn skimmer_entry(line: &serde_json::Value) -> Option<AccessEntry> {
    if line["target"] != "access" {
        return None;
    }
    Some(AccessEntry {
        method: text(line, "method")?,
        uri: text(line, "uri")?,
        status: line["status"].as_u64().and_then(|status| status.try_into().ok())?,
        body_bytes: line["sent"].as_u64()?,
        range: String::new(),
        from: text(line, "from").unwrap_or_default(),
    })
}

fn docker_registry_entry(line: &serde_json::Value) -> Option<AccessEntry> {
    // Two lines tell of an answer; only this one has its size. Failed writes are told with another message.
    line.get("http.response.written")?;
    line.get("http.response.status")?;
    Some(AccessEntry {
        method: text(line, "http.request.method")?,
        uri: text(line, "http.request.uri")?,
        status: line["http.response.status"].as_u64().and_then(|status| status.try_into().ok())?,
        body_bytes: line["http.response.written"].as_u64()?,
        range: String::new(),
        from: text(line, "http.request.remoteaddr").unwrap_or_default(),
    })
}

fn text(line: &serde_json::Value, name: &str) -> Option<String> {
    line[name].as_str().map(ToOwned::to_owned)
}
