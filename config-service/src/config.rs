//! The configuration.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use ipnet::IpNet;
use proto::api::SupernodeEntry;
use serde::{Deserialize, Serialize};
use service::config::{Problems, Validate};
use service::http::{BodyLimits, HttpLimits, ListenAddr};
use service::log::LogConfig;
use service::runtime::RuntimeConfig;
use service::tls::TlsConfig;

use crate::nearest::Rules;

/// `config-service.toml`; the fields are described in `docs/config/config-service.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Addresses of the HTTP API.
    pub listen: Vec<ListenAddr>,
    /// Folder for what is remembered.
    pub data_dir: PathBuf,
    /// A supernode that has not registered again for this time is forgotten.
    #[serde(with = "service::config::duration")]
    pub lease: Duration,
    /// Hosts may use an answer for this time before they ask again.
    #[serde(with = "service::config::duration")]
    pub answer_ttl: Duration,
    /// Registered supernodes of one cluster.
    pub max_supernodes: usize,
    /// Proxies whose `X-Forwarded-For` is believed.
    #[serde(with = "service::config::networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// Serve HTTPS.
    pub tls: Option<TlsConfig>,
    /// Limits of connections.
    pub http: HttpLimits,
    /// Limits of request bodies.
    pub body: BodyLimits,
    /// Logs.
    pub log: LogConfig,
    /// Threads and shutdown.
    pub runtime: RuntimeConfig,
    /// The clusters, in the order in which ties are broken.
    #[serde(rename = "cluster")]
    pub clusters: Vec<ClusterConfig>,
}

/// `[[cluster]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// Its name.
    pub name: String,
    /// Networks whose hosts belong to it.
    #[serde(default)]
    pub cidrs: Vec<IpNet>,
    /// Data centres whose hosts belong to it.
    #[serde(default)]
    pub idcs: Vec<String>,
    /// Locations whose hosts belong to it, `a|b|c` from the widest to the narrowest.
    #[serde(default)]
    pub locations: Vec<String>,
    /// It takes the hosts that no rule assigns.
    #[serde(default)]
    pub default: bool,
    /// Supernodes that need not register.
    #[serde(default)]
    pub supernodes: Vec<SupernodeEntry>,
}

const CLUSTERS_MAX: usize = 10_000;
/// An identity longer than that is an accident.
const ID_BYTES_MAX: usize = 128;
const ENDPOINT_BYTES_MAX: usize = 512;
const LEASE_MIN: Duration = Duration::from_secs(1);
const LEASE_MAX: Duration = Duration::from_secs(24 * 3600);

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![ListenAddr::Tcp(([127, 0, 0, 1], 65010).into())],
            data_dir: PathBuf::from("/var/lib/skimmer/config-service"),
            lease: Duration::from_secs(30),
            answer_ttl: Duration::from_secs(60),
            max_supernodes: 256,
            trusted_proxies: Vec::new(),
            tls: None,
            http: HttpLimits::default(),
            body: BodyLimits::default(),
            log: LogConfig::default(),
            runtime: RuntimeConfig::default(),
            clusters: vec![ClusterConfig { name: "default".to_owned(), default: true, ..ClusterConfig::default() }],
        }
    }
}

impl service::Config for Config {
    const BINARY: &'static str = "config-service";

    fn default_toml() -> String {
        include_str!("../../docs/config/config-service.toml").to_owned()
    }

    fn check_files(&self, problems: &mut Problems) {
        if let Some(tls) = &self.tls {
            tls.check_files("tls", problems);
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
        ListenAddr::check_distinct(&[("listen", &*self.listen)], problems);
        problems.check(!self.data_dir.as_os_str().is_empty(), "data_dir", "must not be empty");
        for (name, value) in [("lease", self.lease), ("answer_ttl", self.answer_ttl)] {
            problems.check((LEASE_MIN..=LEASE_MAX).contains(&value), name, "1s to 24h are allowed");
        }
        problems.check(self.max_supernodes > 0, "max_supernodes", "must be above zero");
        if let Some(tls) = &self.tls {
            problems.within("tls", |problems| tls.validate(problems));
        }
        problems.within("http", |problems| self.http.validate(problems));
        problems.within("body", |problems| self.body.validate(problems));
        problems.within("log", |problems| self.log.validate(problems));
        problems.within("runtime", |problems| self.runtime.validate(problems));
        problems.check(
            (1..=CLUSTERS_MAX).contains(&self.clusters.len()),
            "cluster",
            format!("1 to {CLUSTERS_MAX} clusters are allowed"),
        );
        let mut names = HashSet::new();
        let mut default = None;
        problems.each("cluster", &self.clusters, |cluster, problems| {
            cluster.validate(problems);
            problems.check(
                names.insert(cluster.name.as_str()),
                "name",
                format!("{:?} is the name of another cluster already", cluster.name),
            );
            if cluster.default {
                match default {
                    Some(first) => problems.push("default", format!("{first:?} is the default cluster already")),
                    None => default = Some(cluster.name.as_str()),
                }
            }
        });
    }
}

impl Validate for ClusterConfig {
    fn validate(&self, problems: &mut Problems) {
        if let Err(message) = check_name(&self.name) {
            problems.push("name", message);
        }
        for (index, idc) in self.idcs.iter().enumerate() {
            problems.check(!idc.trim().is_empty(), &format!("idcs[{index}]"), "must not be empty");
        }
        for (index, location) in self.locations.iter().enumerate() {
            let good = location.split('|').all(|part| !part.trim().is_empty());
            problems.check(good, &format!("locations[{index}]"), "expected for example \"europe|de|frankfurt\"");
        }
        let mut ids = HashSet::new();
        problems.each("supernodes", &self.supernodes, |entry, problems| {
            if let Err((field, message)) = check_entry(entry) {
                problems.push(field, message);
            }
            problems.check(
                ids.insert(entry.id.as_str()),
                "id",
                format!("{:?} is the id of another supernode already", entry.id),
            );
        });
    }
}

impl ClusterConfig {
    pub(crate) fn rules(&self) -> Rules {
        Rules {
            cidrs: self.cidrs.clone(),
            idcs: self.idcs.clone(),
            locations: self.locations.clone(),
            default: self.default,
        }
    }
}

/// Names stand in paths and metrics.
fn check_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > ID_BYTES_MAX || !name.chars().all(good) {
        return Err(format!("{name:?} is not allowed, expected 1 to {ID_BYTES_MAX} letters, digits, '-', '_' or '.'"));
    }
    Ok(())
}

/// Whether a supernode may be listed; otherwise the field at fault and why.
pub(crate) fn check_entry(entry: &SupernodeEntry) -> Result<(), (&'static str, String)> {
    check_name(&entry.id).map_err(|message| ("id", message))?;
    let invalid =
        || ("endpoint", format!("{:?} is not allowed, expected for example \"http://10.0.0.1:65020\"", entry.endpoint));
    if entry.endpoint.len() > ENDPOINT_BYTES_MAX {
        return Err(("endpoint", format!("at most {ENDPOINT_BYTES_MAX} bytes are allowed")));
    }
    let uri: Uri = entry.endpoint.parse().map_err(|_| invalid())?;
    let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    let authority = uri.authority().is_some_and(|a| {
        !a.host().is_empty() && a.port_u16().is_some_and(|port| port > 0) && !a.as_str().contains('@')
    });
    let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
    if scheme && authority && bare { Ok(()) } else { Err(invalid()) }
}

#[cfg(test)]
mod tests {
    use service::Config as _;

    use super::*;

    fn load(text: &str) -> Result<Config, service::config::ConfigError> {
        service::config::load_from("c.toml", text, "X", [])
    }

    #[test]
    fn the_documented_file_is_the_default() {
        let documented = Config::default_toml();
        assert_eq!(load(&documented).unwrap(), Config::default());
        // Every field is there, if only in a comment.
        let all =
            toml_keys(&serde_json::to_value(Config { tls: Some(TlsConfig::default()), ..Config::default() }).unwrap());
        for key in all {
            assert!(
                documented.contains(&format!("{key} =")) || documented.contains(&format!("{key}]")),
                "{key} is not documented"
            );
        }
    }

    fn toml_keys(value: &serde_json::Value) -> Vec<String> {
        match value {
            serde_json::Value::Object(map) => {
                map.iter().flat_map(|(key, value)| std::iter::once(key.clone()).chain(toml_keys(value))).collect()
            }
            serde_json::Value::Array(items) => items.iter().flat_map(toml_keys).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn problems_with_places() {
        let error = load(
            r#"listen = []
lease = "1ms"
[[cluster]]
name = "a b"
default = true
[[cluster]]
name = "c"
default = true
locations = ["x||y"]
supernodes = [{ id = "s", endpoint = "tcp://x:1" }, { id = "s", endpoint = "http://x" }]
[[cluster]]
name = "c"
"#,
        )
        .unwrap_err();
        let found: Vec<_> = error.problems().iter().map(|p| format!("{} {}", p.place, p.path)).collect();
        assert_eq!(
            found,
            [
                "c.toml:1:10 listen",
                "c.toml:2:9 lease",
                "c.toml:4:8 cluster[0].name",
                "c.toml:8:11 cluster[1].default",
                "c.toml:9:14 cluster[1].locations[0]",
                "c.toml:10:38 cluster[1].supernodes[0].endpoint",
                "c.toml:10:60 cluster[1].supernodes[1].id",
                "c.toml:10:76 cluster[1].supernodes[1].endpoint",
                "c.toml:12:8 cluster[2].name",
            ],
            "{error}"
        );
    }

    #[test]
    fn endpoints() {
        let check = |endpoint: &str| check_entry(&SupernodeEntry { id: "s".to_owned(), endpoint: endpoint.to_owned() });
        for good in ["http://10.0.0.1:1", "https://[fd00::1]:65020/", "http://host.example:80"] {
            check(good).unwrap();
        }
        for bad in [
            "",
            "10.0.0.1:1",
            "http://x",
            "http://x:0",
            "http://u:p@x:1",
            "http://x:1/path",
            "http://x:1/?q",
            "ftp://x:1",
            "http://:1",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
