//! The configuration.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use blobs::StoreConfig;
use db::DbConfig;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use service::config::{ByteSize, Problems, Validate};
use service::http::{HttpLimits, ListenAddr};
use service::log::LogConfig;
use service::runtime::RuntimeConfig;
use service::tls::TlsConfig;
use url::Url;

use crate::access::Htpasswd;

/// `registry.toml`; the fields are described in `docs/config/registry.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Addresses of the registry.
    pub listen: Vec<ListenAddr>,
    /// Addresses of `/healthz`, `/readyz` and `/metrics`.
    pub metrics_listen: Vec<ListenAddr>,
    /// What clients call this registry, if answers should name it; otherwise their paths are relative.
    pub external_url: Option<Url>,
    /// Proxies whose `X-Forwarded-*` is believed.
    #[serde(with = "service::config::networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// One line for each request.
    pub access_log: bool,
    /// Serve HTTPS.
    pub tls: Option<TlsConfig>,
    /// Who is who.
    pub auth: AuthConfig,
    /// Where bytes lie.
    pub store: StoreConfig,
    /// Where everything else lies.
    pub database: DbConfig,
    /// Uploads.
    pub uploads: UploadConfig,
    /// Manifests.
    pub manifests: ManifestConfig,
    /// Lists.
    pub lists: ListConfig,
    /// Removal of what nothing needs.
    pub gc: GcConfig,
    /// What is kept in memory.
    pub cache: CacheConfig,
    /// Limits of connections.
    pub http: HttpLimits,
    /// Logs.
    pub log: LogConfig,
    /// Threads and shutdown.
    pub runtime: RuntimeConfig,
}

/// `[auth]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// A file of `name:bcrypt` lines; without one everybody may do everything.
    pub htpasswd: Option<PathBuf>,
    /// What clients are told they log in to.
    pub realm: String,
    /// Let everybody in although other machines can reach an address.
    pub allow_anonymous: bool,
}

/// `[uploads]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UploadConfig {
    /// Most bytes of a blob.
    pub max_size: ByteSize,
    /// Most bytes of one request's body; many clients send a whole layer in one.
    pub max_chunk: ByteSize,
    /// A client that sends nothing for this time is cut off.
    #[serde(with = "service::config::duration")]
    pub stall_timeout: Duration,
    /// An upload that is not continued for this time is forgotten.
    #[serde(with = "service::config::duration")]
    pub expiry: Duration,
    /// During a long request, what has arrived is made durable each time so much more has.
    pub checkpoint_every: ByteSize,
    /// Uploads that one client may send at a time.
    pub max_active_per_client: u32,
    /// Unfinished uploads of one client of which something is kept.
    pub max_open_per_client: u64,
    /// Those of all clients.
    pub max_open: u64,
}

/// `[manifests]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ManifestConfig {
    /// Most bytes of a manifest.
    pub max_size: ByteSize,
    /// Most descriptors in one.
    pub max_descriptors: usize,
    /// Most tags in one request.
    pub max_tags: usize,
    /// For a whole manifest to arrive.
    #[serde(with = "service::config::duration")]
    pub body_timeout: Duration,
    /// Memory for all manifests that are being sent; whoever comes when there is none is told to come back.
    pub max_receiving: ByteSize,
}

/// `[lists]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListConfig {
    /// Entries of a page when the client does not say, and the most it may ask for.
    pub page_max: u64,
}

/// `[gc]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GcConfig {
    /// Whether this process removes anything.
    pub enabled: bool,
    /// A blob that no manifest needs stays at least this long after it was pushed, mounted or asked for.
    #[serde(with = "service::config::duration")]
    pub lease: Duration,
    /// How often is looked for work, when there was none.
    #[serde(with = "service::config::duration")]
    pub interval: Duration,
    /// Blobs looked at in a second at most.
    pub rate: u32,
    /// Manifests without a tag are removed after this time; not set: never.
    #[serde(with = "service::config::duration_option")]
    pub untagged_after: Option<Duration>,
    /// How often the whole store is compared with the database, one of its 256 folders at a time; 0 = never.
    #[serde(with = "service::config::duration")]
    pub scrub_interval: Duration,
}

/// `[cache]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Memory for manifests and lists.
    pub size: ByteSize,
    /// Names and rights kept.
    pub entries: u64,
}

const LEASE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const MANIFEST_MAX: ByteSize = ByteSize::mib(64);
/// Each is a parameter of the query, which may have others, too.
const TAGS_MAX: usize = oci::PARAMS_MAX - 6;
/// What has just been pushed or asked for has to be there for the next request.
const KEPT_MIN: Duration = Duration::from_secs(1);
const PAGE_MAX: u64 = 100_000;
const RATE_MAX: u32 = 1_000_000;

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![ListenAddr::Tcp(([127, 0, 0, 1], 5000).into())],
            metrics_listen: vec![ListenAddr::Tcp(([127, 0, 0, 1], 5001).into())],
            external_url: None,
            trusted_proxies: Vec::new(),
            access_log: true,
            tls: None,
            auth: AuthConfig::default(),
            store: StoreConfig::default(),
            database: DbConfig::default(),
            uploads: UploadConfig::default(),
            manifests: ManifestConfig::default(),
            lists: ListConfig::default(),
            gc: GcConfig::default(),
            cache: CacheConfig::default(),
            http: HttpLimits {
                stall_timeout: Duration::from_secs(60),
                // The buffer of a connection, too: uploads come in pieces of it.
                max_header: ByteSize::kib(256),
                ..HttpLimits::default()
            },
            log: LogConfig::default(),
            runtime: RuntimeConfig { blocking_threads: 64, ..RuntimeConfig::default() },
        }
    }
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self { htpasswd: None, realm: "Skimmer registry".to_owned(), allow_anonymous: false }
    }
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self {
            max_size: ByteSize::gib(1024),
            max_chunk: ByteSize::gib(1024),
            stall_timeout: Duration::from_secs(60),
            expiry: Duration::from_secs(24 * 3600),
            checkpoint_every: ByteSize::mib(256),
            max_active_per_client: 256,
            max_open_per_client: 1000,
            max_open: 100_000,
        }
    }
}

impl Default for ManifestConfig {
    fn default() -> Self {
        Self {
            // The least a registry has to take, and what others take at most.
            max_size: ByteSize::mib(4),
            max_descriptors: 10_000,
            max_tags: 100,
            body_timeout: Duration::from_secs(30),
            max_receiving: ByteSize::mib(128),
        }
    }
}

impl Default for ListConfig {
    fn default() -> Self {
        Self { page_max: 1000 }
    }
}

impl Default for GcConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            // docker puts an image's manifest minutes after it looked for its layers.
            lease: Duration::from_secs(2 * 3600),
            interval: Duration::from_secs(10),
            rate: 1000,
            untagged_after: None,
            scrub_interval: Duration::from_secs(24 * 3600),
        }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { size: ByteSize::mib(64), entries: 100_000 }
    }
}

impl service::Config for Config {
    const BINARY: &'static str = "registry";

    fn default_toml() -> String {
        include_str!("../../../docs/config/registry.toml").to_owned()
    }

    fn check_files(&self, problems: &mut Problems) {
        if let Some(tls) = &self.tls {
            tls.check_files("tls", problems);
        }
        if let Some(Err(error)) = self.auth.htpasswd.as_deref().map(Htpasswd::read) {
            problems.failed("auth.htpasswd", &error);
        }
    }

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }
}

impl Validate for Config {
    fn validate(&self, problems: &mut Problems) {
        problems.check(!self.listen.is_empty(), "listen", "at least one address is needed");
        let lists = [("listen", &*self.listen), ("metrics_listen", &*self.metrics_listen)];
        ListenAddr::check_distinct(&lists, problems);
        let open = self.listen.iter().find(|address| !is_private(address));
        if let (Some(address), None, false) = (open, &self.auth.htpasswd, self.auth.allow_anonymous) {
            problems.push(
                "listen",
                format!(
                    "{address} can be reached by other machines: set auth.htpasswd, or auth.allow_anonymous = true"
                ),
            );
        }
        if let Some(url) = &self.external_url {
            let good = matches!(url.scheme(), "http" | "https") && url.has_host();
            problems.check(good, "external_url", "expected for example \"https://registry.example\"");
            // Paths are written after it, and it stands in every answer.
            let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
            let bare = bare && url.fragment().is_none();
            problems.check(bare, "external_url", "must have no user, no password, no query and no fragment");
        }
        if let Some(tls) = &self.tls {
            problems.within("tls", |problems| tls.validate(problems));
        }
        problems.within("auth", |problems| self.auth.validate(problems));
        problems.within("store", |problems| self.store.validate(problems));
        problems.within("database", |problems| self.database.validate(problems));
        problems.within("uploads", |problems| self.uploads.validate(problems));
        problems.within("manifests", |problems| self.manifests.validate(problems));
        problems.check(
            (1..=PAGE_MAX).contains(&self.lists.page_max),
            "lists.page_max",
            format!("1 to {PAGE_MAX} are allowed"),
        );
        problems.within("gc", |problems| self.gc.validate(problems));
        problems.check(self.cache.entries > 0, "cache.entries", "must be above zero");
        problems.within("http", |problems| self.http.validate(problems));
        problems.within("log", |problems| self.log.validate(problems));
        problems.within("runtime", |problems| self.runtime.validate(problems));
    }
}

impl Validate for AuthConfig {
    fn validate(&self, problems: &mut Problems) {
        // It stands between quotes in a header.
        let good =
            !self.realm.is_empty() && self.realm.chars().all(|c| (' '..='~').contains(&c) && c != '"' && c != '\\');
        problems.check(good, "realm", "printable ASCII without quotes and backslashes is expected");
    }
}

impl Validate for UploadConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.check(self.max_size.as_u64() > 0, "max_size", "must be above zero");
        problems.check(self.max_chunk.as_u64() > 0, "max_chunk", "must be above zero");
        for (name, value) in [("stall_timeout", self.stall_timeout), ("expiry", self.expiry)] {
            problems.check(value >= Duration::from_secs(1), name, "must be at least 1s");
        }
        problems.check(self.checkpoint_every >= ByteSize::mib(1), "checkpoint_every", "must be at least 1MiB");
        problems.check(self.max_active_per_client > 0, "max_active_per_client", "must be above zero");
        problems.check(self.max_open_per_client > 0, "max_open_per_client", "must be above zero");
        problems.check(self.max_open > 0, "max_open", "must be above zero");
    }
}

impl Validate for ManifestConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.check(
            (ByteSize::kib(4)..=MANIFEST_MAX).contains(&self.max_size),
            "max_size",
            format!("4KiB to {MANIFEST_MAX} are allowed"),
        );
        problems.check(self.max_descriptors > 0, "max_descriptors", "must be above zero");
        problems.check((1..=TAGS_MAX).contains(&self.max_tags), "max_tags", format!("1 to {TAGS_MAX} are allowed"));
        problems.check(!self.body_timeout.is_zero(), "body_timeout", "must be longer than zero");
        // Large ones grow by doubling, and leave a quarter of it to small ones.
        let least = ByteSize::bytes(self.max_size.as_u64().saturating_mul(4));
        problems.check(
            self.max_receiving >= least,
            "max_receiving",
            format!("must be at least {least}, four times max_size"),
        );
    }
}

impl Validate for GcConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.check((KEPT_MIN..=LEASE_MAX).contains(&self.lease), "lease", "1s to 30 days are allowed");
        let long = self.untagged_after.is_none_or(|after| after >= KEPT_MIN);
        problems.check(long, "untagged_after", "must be at least 1s; leave it out to keep manifests without a tag");
        problems.check(!self.interval.is_zero(), "interval", "must be longer than zero");
        problems.check((1..=RATE_MAX).contains(&self.rate), "rate", format!("1 to {RATE_MAX} are allowed"));
    }
}

/// Only this machine can reach it.
fn is_private(address: &ListenAddr) -> bool {
    match address {
        ListenAddr::Tcp(address) => match address.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.is_loopback(),
        },
        ListenAddr::Unix(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use blobs::{S3Config, StoreKind};
    use service::Config as _;

    use super::*;

    fn load(text: &str) -> Result<Config, service::config::ConfigError> {
        service::config::load_from("c.toml", text, "X", [])
    }

    #[test]
    fn the_documented_file_is_the_default_and_names_every_field() {
        let documented = Config::default_toml();
        assert_eq!(load(&documented).unwrap(), Config::default());
        let full = Config {
            external_url: Some("https://r.example".parse().unwrap()),
            tls: Some(TlsConfig::default()),
            auth: AuthConfig { htpasswd: Some("/x".into()), ..AuthConfig::default() },
            store: StoreConfig {
                s3: Some(S3Config {
                    endpoint: Some("https://s3.example".parse().unwrap()),
                    redirect_endpoint: Some("https://s3.example".parse().unwrap()),
                    ..S3Config::default()
                }),
                ..StoreConfig::default()
            },
            gc: GcConfig { untagged_after: Some(Duration::from_secs(1)), ..GcConfig::default() },
            ..Config::default()
        };
        for key in keys(&serde_json::to_value(full).unwrap()) {
            let named = documented.lines().any(|line| {
                let line = line.trim_start_matches(['#', ' ']);
                line.starts_with(&format!("{key} ="))
                    || line.starts_with('[') && line.trim_end_matches(']').ends_with(&key)
            });
            assert!(named, "{key} is not documented");
        }
        assert_eq!(Config::default().store.kind, StoreKind::Filesystem);
    }

    fn keys(value: &serde_json::Value) -> Vec<String> {
        match value {
            serde_json::Value::Object(map) => {
                map.iter().flat_map(|(key, value)| std::iter::once(key.clone()).chain(keys(value))).collect()
            }
            _ => Vec::new(),
        }
    }

    #[test]
    fn other_machines_are_let_in_only_when_somebody_says_so() {
        for open in ["0.0.0.0:5000", "[::]:5000", "10.0.0.1:5000"] {
            let error = load(&format!("listen = [\"{open}\"]")).unwrap_err();
            assert!(error.to_string().contains("allow_anonymous"), "{error}");
            load(&format!("listen = [\"{open}\"]\n[auth]\nallow_anonymous = true")).unwrap();
            load(&format!("listen = [\"{open}\"]\n[auth]\nhtpasswd = \"/x\"")).unwrap();
        }
        load("listen = [\"[::1]:5000\", \"unix:/run/x.sock\"]").unwrap();
    }

    #[test]
    fn no_address_is_listened_on_twice() {
        load("listen = ['127.0.0.1:0', '127.0.0.1:0']\nmetrics_listen = ['127.0.0.1:0']").unwrap();
        for (twice, place) in [
            ("listen = ['127.0.0.1:5000', '[::1]:5000', '127.0.0.1:5000']", "listen[2]"),
            ("listen = ['127.0.0.1:5007']\nmetrics_listen = ['127.0.0.1:5007']", "metrics_listen[0]"),
            ("listen = ['unix:/run/x']\nmetrics_listen = ['unix:/run/x']", "metrics_listen[0]"),
        ] {
            let error = load(twice).unwrap_err();
            assert_eq!(error.problems()[0].path.to_string(), place, "{error}");
        }
    }

    #[test]
    fn the_url_in_answers_has_nothing_but_a_place() {
        for good in ["https://r.example", "http://r.example:5000/", "https://r.example/under/a/path"] {
            load(&format!("external_url = \"{good}\"")).unwrap();
        }
        for bad in ["https://ann@r.example", "https://:x@r.example", "https://r.example/?a", "https://r.example/#a"] {
            let error = load(&format!("external_url = \"{bad}\"")).unwrap_err();
            assert!(error.to_string().contains("no user"), "{bad}: {error}");
        }
    }

    #[test]
    fn nothing_is_removed_at_once() {
        for key in ["lease", "untagged_after"] {
            load(&format!("[gc]\n{key} = \"1s\"")).unwrap();
            for short in ["0s", "999ms"] {
                let error = load(&format!("[gc]\n{key} = \"{short}\"")).unwrap_err();
                assert_eq!(error.problems()[0].path.to_string(), format!("gc.{key}"), "{error}");
            }
        }
    }

    #[test]
    fn no_more_tags_than_a_query_can_have() {
        load(&format!("[manifests]\nmax_tags = {TAGS_MAX}")).unwrap();
        let error = load(&format!("[manifests]\nmax_tags = {}", TAGS_MAX + 1)).unwrap_err();
        assert_eq!(error.problems()[0].path.to_string(), "manifests.max_tags");
    }

    #[test]
    fn some_of_the_largest_manifests_can_be_received() {
        load("[manifests]\nmax_size = \"8MiB\"\nmax_receiving = \"32MiB\"").unwrap();
        let error = load("[manifests]\nmax_size = \"8MiB\"\nmax_receiving = \"31MiB\"").unwrap_err();
        assert!(error.to_string().contains("manifests.max_receiving: must be at least 32MiB"), "{error}");
    }

    #[test]
    fn files_that_are_named_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let (file, people) = (folder.path().join("c.toml"), folder.path().join("people"));
        let check = |text: String| {
            std::fs::write(&file, text).unwrap();
            service::config::check::<Config>(Some(&file), "X")
        };
        let auth = format!("[auth]\nhtpasswd = \"{}\"\n", people.display());
        let tls = "[tls]\ncert = \"/nowhere/cert.pem\"\nkey = \"/nowhere/key.pem\"\n";
        let error = check(format!("{auth}{tls}")).unwrap_err();
        let paths: Vec<_> = error.problems().iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, ["auth.htpasswd", "tls"]);
        assert!(error.to_string().contains("cert.pem: ") && error.to_string().contains("c.toml:2:"), "{error}");
        std::fs::write(&people, "ann:secret\n").unwrap();
        assert!(check(auth.clone()).unwrap_err().to_string().contains("people:1: expected name:hash"));
        std::fs::write(&people, "").unwrap();
        check(auth).unwrap();
    }

    #[test]
    fn problems_are_named_with_their_places() {
        let error = load(
            "external_url = \"ftp://x\"\n[lists]\npage_max = 0\n[gc]\nrate = 0\n[uploads]\nexpiry = \"1ms\"\n[auth]\nrealm = 'a\"b'\n",
        )
        .unwrap_err();
        let paths: Vec<_> = error.problems().iter().map(|problem| problem.path.to_string()).collect();
        for path in ["external_url", "lists.page_max", "gc.rate", "uploads.expiry", "auth.realm"] {
            assert!(paths.iter().any(|found| found == path), "{path} is not in {paths:?}");
        }
    }
}
