//! docker-registry as image origin.

use std::{fmt::Write as _, fs, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{AccessEntry, TokenServer};
use crate::{Certificate, Curl, Host, Proc, Run, basic_auth};

/// It starts in a tenth of a second, on a busy machine in a few.
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

/// A running docker-registry with an empty store.
#[derive(Debug)]
pub struct Registry {
    proc: Proc,
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
        let folder = run.data_dir("registry")?;
        let mut config = format!(
            "version: 0.1\nlog: {{level: info, formatter: json, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}, maintenance: {{uploadpurging: {{enabled: false}}}}}}\n\
             http:\n  addr: {addr}\n  secret: of-one-test-run\n",
            root = folder.join("store").display(),
            addr = host.addr(port),
        );
        if let Some((tls, _)) = tls {
            writeln!(config, "  tls: {{certificate: {}, key: {}}}", tls.cert.display(), tls.key.display())?;
        }
        let mut credentials = None;
        match auth {
            RegistryAuth::Open => {}
            RegistryAuth::Password { user, password } => {
                // docker-registry knows bcrypt only; the lowest cost keeps the tests quick.
                let file =
                    host.program("htpasswd").args(["-nbB", "-C", "4", user, password]).run(Duration::from_secs(10))?;
                let path = folder.join("htpasswd");
                fs::write(&path, file.stdout)?;
                writeln!(config, "auth: {{htpasswd: {{realm: origin, path: {}}}}}", path.display())?;
                credentials = Some(((*user).to_owned(), (*password).to_owned()));
            }
            RegistryAuth::Token(server) => {
                writeln!(
                    config,
                    "auth: {{token: {{realm: \"{}\", service: \"{}\", issuer: \"{}\", rootcertbundle: {}}}}}",
                    server.realm(),
                    TokenServer::SERVICE,
                    TokenServer::ISSUER,
                    server.trust().display()
                )?;
                credentials = Some(server.credentials());
            }
        }
        let path = folder.join("config.yml");
        fs::write(&path, config)?;
        let proc = host
            .program("docker-registry")
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .start(run, "registry")?;
        let mut registry = Self {
            proc,
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
    pub fn ca(&self) -> Option<&std::path::Path> {
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
        Ok(self.proc.log()?.lines().filter_map(access_entry).collect())
    }
}

/// Body bytes of blobs among these, of answers to GET.
#[must_use]
pub fn blob_bytes(entries: &[AccessEntry]) -> u64 {
    let blobs = entries.iter().filter(|entry| entry.method == "GET" && entry.uri.contains("/blobs/sha256:"));
    blobs.map(|entry| entry.body_bytes).sum()
}

fn access_entry(line: &str) -> Option<AccessEntry> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let text = |name: &str| line[name].as_str().map(ToOwned::to_owned);
    // Two lines tell of an answer; only this one has its size. Failed writes are told with another message.
    line.get("http.response.written")?;
    line.get("http.response.status")?;
    Some(AccessEntry {
        method: text("http.request.method")?,
        uri: text("http.request.uri")?,
        status: line["http.response.status"].as_u64().and_then(|status| status.try_into().ok())?,
        body_bytes: line["http.response.written"].as_u64()?,
        range: String::new(),
        from: text("http.request.remoteaddr").unwrap_or_default(),
    })
}
