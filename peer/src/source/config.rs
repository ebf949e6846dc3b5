//! How origins are reached: limits, timeouts, and what is special about single hosts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use service::config::Rate;
use url::Url;

use super::retry::RetryPolicy;

/// Settings of the way back to the origin (`[source]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// `User-Agent` of requests whose caller sends none.
    pub user_agent: String,
    /// How long resolving, connecting, a proxy's tunnel and the TLS handshake may take together.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// How long an origin may take from the request to the headers of its answer.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// How long an origin may send no byte of a body that is being waited for.
    #[serde(with = "duration")]
    pub body_timeout: Duration,
    /// How long a request may wait because too many are under way.
    #[serde(with = "duration")]
    pub slot_timeout: Duration,
    /// How long an unused connection is kept.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// Unused connections kept per origin.
    pub idle_connections_per_host_max: usize,
    /// Requests under way, their bodies included.
    pub requests_max: usize,
    /// Requests under way to one origin, their bodies included.
    pub requests_per_host_max: usize,
    /// Redirects followed for one request.
    pub redirects_max: u32,
    /// Whether a redirect may lead from https to http.
    pub allow_downgrade: bool,
    /// Whether HTTP/2 is offered over TLS.
    pub http2: bool,
    /// An HTTP proxy for all origins but those marked `direct`. Proxies named in the environment are not used.
    pub proxy: Option<ProxyUrl>,
    /// When no supernode answers, a host reads origins itself at this rate, over all tasks: slow, never a stampede.
    pub orphan_rate: Rate,
    /// It does so after a random time of at least this …
    #[serde(with = "duration")]
    pub orphan_delay_min: Duration,
    /// … and at most this.
    #[serde(with = "duration")]
    pub orphan_delay_max: Duration,
    /// When and how often a failed request is made again.
    pub retry: RetryPolicy,
    /// What is special about single hosts, by `host`, `host:port`, `*.suffix`, `*.suffix:port` or `*`; the most
    /// exact one that fits counts, and none is merged with another.
    pub hosts: BTreeMap<String, HostOptions>,
}

/// What is special about one origin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostOptions {
    /// A PEM file with certificates that are trusted for this host besides the system's.
    pub ca: Option<PathBuf>,
    /// Accept any certificate.
    pub insecure: bool,
    /// Fetch this host's https URLs by http, as registries without TLS need it.
    pub plain_http: bool,
    /// Reach this host without the proxy.
    pub direct: bool,
}

/// The URL of a proxy; its password is not shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProxyUrl(pub Url);

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Which setting, such as `hosts."reg.corp".ca`.
    pub place: String,
    /// What is wrong with it.
    pub problem: String,
}

/// A key of [`SourceConfig::hosts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPattern {
    name: Name,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Any,
    /// With its leading dot.
    Suffix(String),
    Exact(String),
}

/// A host's options, checked, with its certificates read.
#[derive(Debug)]
pub(super) struct HostRule {
    pattern: HostPattern,
    pub(super) options: HostOptions,
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct HostRules(Vec<HostRule>);

// === impl SourceConfig ===

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            user_agent: concat!("skimmer/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            slot_timeout: Duration::from_secs(60),
            // Below the 60 to 75 s after which the usual servers hang up, so that seldom a request meets a closed connection.
            idle_timeout: Duration::from_secs(45),
            idle_connections_per_host_max: 16,
            requests_max: 256,
            requests_per_host_max: 64,
            redirects_max: 10,
            allow_downgrade: false,
            http2: true,
            proxy: None,
            orphan_rate: Rate::bytes_per_s(10 * 1024 * 1024),
            orphan_delay_min: Duration::from_secs(10),
            orphan_delay_max: Duration::from_secs(30),
            retry: RetryPolicy::default(),
            hosts: BTreeMap::new(),
        }
    }
}

impl SourceConfig {
    /// Everything that is wrong with these settings, certificate files included. Empty when they can be used.
    #[must_use]
    pub fn problems(&self) -> Vec<ConfigProblem> {
        self.check().err().unwrap_or_default()
    }

    /// The rules for hosts, or everything that is wrong.
    pub(super) fn check(&self) -> Result<HostRules, Vec<ConfigProblem>> {
        let mut problems = Vec::new();
        let mut wrong = |place: String, problem: String| problems.push(ConfigProblem { place, problem });
        for (place, value) in [
            ("connect_timeout", self.connect_timeout),
            ("header_timeout", self.header_timeout),
            ("body_timeout", self.body_timeout),
            ("slot_timeout", self.slot_timeout),
        ] {
            if value.is_zero() {
                wrong(place.to_owned(), "must be longer than 0".to_owned());
            }
        }
        for (place, value) in
            [("requests_max", self.requests_max), ("requests_per_host_max", self.requests_per_host_max)]
        {
            // The upper bound is far above any use and below what a semaphore can hold.
            if !(1..=100_000).contains(&value) {
                wrong(place.to_owned(), format!("must be 1 to 100000, not {value}"));
            }
        }
        if self.orphan_delay_min > self.orphan_delay_max {
            wrong("orphan_delay_min".to_owned(), "must not be longer than orphan_delay_max".to_owned());
        }
        if http::HeaderValue::from_str(&self.user_agent).is_err() {
            wrong("user_agent".to_owned(), "holds characters that a header cannot".to_owned());
        }
        if let Some(ProxyUrl(url)) = &self.proxy
            && (url.scheme() != "http" || url.host_str().is_none())
        {
            wrong("proxy".to_owned(), format!("must be an http:// URL, not {}://", url.scheme()));
        }
        self.retry.problems(&mut |place, problem| wrong(format!("retry.{place}"), problem));
        let mut rules = Vec::new();
        for (key, options) in &self.hosts {
            let pattern = HostPattern::parse(key);
            if pattern.is_none() {
                wrong(format!("hosts.{key:?}"), "is no host, host:port, *.suffix or *".to_owned());
            }
            if options.insecure && options.ca.is_some() {
                wrong(format!("hosts.{key:?}"), "`insecure` makes `ca` pointless; give one of them".to_owned());
            }
            let certificates =
                options.ca.as_ref().map_or_else(|| Ok(Vec::new()), read_certificates).unwrap_or_else(|problem| {
                    wrong(format!("hosts.{key:?}.ca"), problem);
                    Vec::new()
                });
            if let Some(pattern) = pattern {
                rules.push(HostRule { pattern, options: options.clone(), certificates });
            }
        }
        if problems.is_empty() { Ok(HostRules(rules)) } else { Err(problems) }
    }
}

fn read_certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let pem = std::fs::read(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{shown} is no PEM file: {error}"))?;
    if certificates.is_empty() {
        return Err(format!("{shown} holds no certificate"));
    }
    let mut scratch = rustls::RootCertStore::empty();
    for (index, certificate) in certificates.iter().enumerate() {
        scratch
            .add(certificate.clone())
            .map_err(|error| format!("certificate {} in {shown} cannot be used: {error}", index + 1))?;
    }
    Ok(certificates)
}

// === impl HostPattern ===

impl HostPattern {
    fn parse(key: &str) -> Option<Self> {
        let key = key.to_ascii_lowercase();
        // An IPv6 address has colons of its own: `::1`, `[::1]`, `[::1]:5000`.
        if let Ok(v6) = key.parse::<std::net::Ipv6Addr>() {
            return Some(Self { name: Name::Exact(v6.to_string()), port: None });
        }
        if let Some(rest) = key.strip_prefix('[') {
            let (address, port) = rest.split_once(']')?;
            let address: std::net::Ipv6Addr = address.parse().ok()?;
            let port = if port.is_empty() { None } else { Some(parse_port(port.strip_prefix(':')?)?) };
            return Some(Self { name: Name::Exact(address.to_string()), port });
        }
        let (host, port) = match key.split_once(':') {
            Some((host, port)) => (host, Some(parse_port(port)?)),
            None => (key.as_str(), None),
        };
        let name = match host.strip_prefix('*') {
            Some("") => Name::Any,
            Some(suffix) if suffix.len() > 1 && suffix.starts_with('.') && is_host(&suffix[1..]) => {
                Name::Suffix(suffix.to_owned())
            }
            Some(_) => return None,
            None if is_host(host) => Name::Exact(host.to_owned()),
            None => return None,
        };
        Some(Self { name, port })
    }

    /// How exactly it fits, larger is better; `None` when it does not.
    fn fit(&self, host: &str, port: u16) -> Option<(u8, usize, bool)> {
        if self.port.is_some_and(|own| own != port) {
            return None;
        }
        let has_port = self.port.is_some();
        match &self.name {
            Name::Any => Some((0, 0, has_port)),
            Name::Suffix(suffix) if host.len() > suffix.len() && host.ends_with(suffix.as_str()) => {
                Some((1, suffix.len(), has_port))
            }
            Name::Exact(name) if name == host => Some((2, 0, has_port)),
            Name::Suffix(_) | Name::Exact(_) => None,
        }
    }
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

fn is_host(text: &str) -> bool {
    !text.is_empty() && matches!(url::Host::parse(text), Ok(host) if host.to_string() == text)
}

// === impl HostRules ===

impl HostRules {
    /// The rule for a host (lower case, no brackets, no trailing dot) and its number.
    pub(super) fn find(&self, host: &str, port: u16) -> Option<(usize, &HostRule)> {
        self.0
            .iter()
            .enumerate()
            .filter_map(|(index, rule)| Some((rule.pattern.fit(host, port)?, index, rule)))
            .max_by_key(|(fit, ..)| *fit)
            .map(|(_, index, rule)| (index, rule))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&super::redact_url(&self.0))
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "source.{} {}", self.place, self.problem)
    }
}

/// Durations as people write them: `30s`, `1m 30s`, `250ms`.
pub(super) mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|error| de::Error::custom(format!("{text:?} is no duration such as \"30s\": {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(keys: &[&str]) -> HostRules {
        let hosts = keys.iter().map(|key| ((*key).to_owned(), HostOptions::default())).collect();
        SourceConfig { hosts, ..SourceConfig::default() }.check().expect("valid")
    }

    fn chosen<'k>(keys: &[&'k str], host: &str, port: u16) -> Option<&'k str> {
        let mut sorted = keys.to_vec();
        sorted.sort_unstable();
        rules(keys).find(host, port).map(|(index, _)| sorted[index])
    }

    #[test]
    fn the_most_exact_rule_counts() {
        let keys = ["*", "*.corp", "*.reg.corp", "a.corp", "a.corp:5000", "*:5000", "::1", "[fd00::1]:80"];
        assert_eq!(chosen(&keys, "a.corp", 5000), Some("a.corp:5000"));
        assert_eq!(chosen(&keys, "a.corp", 443), Some("a.corp"));
        assert_eq!(chosen(&keys, "b.corp", 443), Some("*.corp"));
        assert_eq!(chosen(&keys, "x.reg.corp", 443), Some("*.reg.corp"));
        assert_eq!(chosen(&keys, "corp", 443), Some("*"));
        assert_eq!(chosen(&keys, "other", 5000), Some("*:5000"));
        assert_eq!(chosen(&keys, "::1", 1), Some("::1"));
        assert_eq!(chosen(&keys, "fd00::1", 80), Some("[fd00::1]:80"));
        assert_eq!(chosen(&["a.corp"], "xa.corp", 1), None);
        assert_eq!(chosen(&["*.corp"], "evilcorp", 1), None);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let junk = dir.path().join("junk.pem");
        std::fs::write(&junk, "hello").unwrap();
        let text = format!(
            "body_timeout = \"0s\"\nrequests_max = 0\nproxy = \"https://u:secret@p\"\n[retry]\nattempts_max = 0\n\
             [hosts.\"a b\"]\n[hosts.\"h:0\"]\n[hosts.\"*corp\"]\n[hosts.x]\nca = \"/nowhere/ca.pem\"\n[hosts.y]\nca = {junk:?}\n"
        );
        let config: SourceConfig = toml::from_str(&text).unwrap();
        let problems: Vec<String> = config.problems().iter().map(ToString::to_string).collect();
        let all = problems.join("\n");
        for part in [
            "source.body_timeout",
            "source.requests_max",
            "source.proxy",
            "source.retry.attempts_max",
            "source.hosts.\"a b\"",
            "source.hosts.\"h:0\"",
            "source.hosts.\"*corp\"",
            "source.hosts.\"x\".ca cannot read /nowhere/ca.pem",
            "junk.pem holds no certificate",
        ] {
            assert!(all.contains(part), "{part} in {all}");
        }
        assert!(!all.contains("secret") && !format!("{config:?}").contains("secret"));
        assert!(toml::from_str::<SourceConfig>("body_timeout = 3").is_err());
        assert!(toml::from_str::<SourceConfig>("bodytimeout = \"3s\"").is_err());
    }

    #[test]
    fn the_defaults_round_trip() {
        let text = toml::to_string(&SourceConfig::default()).unwrap();
        assert_eq!(toml::from_str::<SourceConfig>(&text).unwrap(), SourceConfig::default());
    }
}
