//! What an operator may set for the HTTP side. Plain data; all defaults are in the `Default` implementations here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::pattern::HostPattern;

mod duration;

/// The HTTP side of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The listener, and the HTTP proxy on it.
    pub proxy: ProxyConfig,
    /// The registry mirror on the same listener.
    pub mirror: MirrorConfig,
    /// Which addresses requests may be sent to.
    pub origins: OriginsConfig,
    /// Limits of connections, headers and waits.
    pub limits: Limits,
}

/// The listener, and the HTTP proxy on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyConfig {
    /// Address of the mirror and the proxy. Whoever reaches it can use this host's network: keep it on loopback, or
    /// set `auth`.
    pub listen: SocketAddr,
    /// Blobs of any registry (`GET /v2/<name>/blobs/<digest>`) come from peers, when no rule says otherwise.
    pub registry_blobs: bool,
    /// When the P2P side cannot serve at all, ask the origin directly.
    pub fallback_direct: bool,
    /// What happens to a request: the first rule that matches decides, and without one the request goes directly.
    pub rules: Vec<Rule>,
    /// `CONNECT`.
    pub connect: ConnectConfig,
    /// Reading HTTPS of named hosts.
    pub intercept: InterceptConfig,
    /// Asked of users of the proxy (not of the mirror) when set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<ProxyAuth>,
}

/// One rule of the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Searched for in the whole URL, `https://host:port/path?query`, in its normal form (default port left out).
    pub regex: String,
    /// What happens.
    pub action: Action,
    /// For `redirect`: what the matched part becomes (`$1` is the first group), or just a host to take its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
    /// Ask the origin over HTTPS though the client said `http://`.
    #[serde(default)]
    pub use_https: bool,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A `GET` comes from peers; other methods go directly.
    P2p,
    /// To the origin.
    Direct,
    /// The URL is rewritten, and the rules after this one decide.
    Redirect,
    /// 403.
    Refuse,
}

/// `CONNECT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectConfig {
    /// Hosts that may be named: `name`, `*.domain`, `*`, each with `:port` if wanted.
    pub hosts: Vec<String>,
    /// Ports that may be named.
    pub ports: Vec<u16>,
}

/// Reading HTTPS of named hosts, with certificates of our own CA, which the clients must trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InterceptConfig {
    /// Hosts, as in `connect.hosts`. Empty: nothing is intercepted, and no CA is made.
    pub hosts: Vec<String>,
    /// The CA's certificate, PEM. Generated at the first start if neither file is there.
    pub ca_cert: PathBuf,
    /// Its private key, PEM, made readable for the owner only.
    pub ca_key: PathBuf,
}

/// Basic authentication of proxy users.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyAuth {
    /// The user's name, without a colon.
    pub user: String,
    /// The password.
    pub password: String,
}

/// The registry mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MirrorConfig {
    /// Where requests without `?ns=` go.
    pub default: Url,
    /// Hosts that `?ns=` may name (patterns as in `connect.hosts`), besides those in `upstreams`. Addresses on
    /// loopback and link-local are refused in any case unless `origins.allow_addresses` has them.
    pub allow: Vec<String>,
    /// Registries that need more than a name.
    pub upstreams: Vec<Upstream>,
}

/// A registry that needs more than a name. Its TLS settings hold for the proxy and interception too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Name as in image references and `?ns=`: `host` or `host:port`.
    pub host: String,
    /// Where it is, when that is not `https://<host>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<Url>,
    /// Certificates trusted for it besides the system's, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Its certificate is not checked. For tests.
    #[serde(default)]
    pub insecure: bool,
    /// It speaks HTTP without TLS.
    #[serde(default)]
    pub plain_http: bool,
    /// A mirror address of its own, for clients that send no `?ns=` (podman, CRI-O).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
}

/// Which addresses requests may be sent to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OriginsConfig {
    /// Networks that are allowed though they are loopback, link-local or a cloud's metadata service. Hosts in
    /// `mirror.default` and `mirror.upstreams` are always allowed.
    pub allow_addresses: Vec<IpNet>,
}

/// Limits of connections, headers and waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections at the same time; further ones are answered 503 and closed, so that clients fall back at once.
    pub connections_max: usize,
    /// Bytes of a request's headers.
    pub header_bytes_max: usize,
    /// Fields in a request's headers.
    pub header_fields_max: usize,
    /// Requests at the same time on one HTTP/2 connection.
    pub streams_max: u32,
    /// For a client to send all headers of a request; also how long a connection may rest between two requests.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// For a TLS handshake with a client.
    #[serde(with = "duration")]
    pub handshake_timeout: Duration,
    /// A connection on which nothing moved for so long is closed.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// Between two parts of a body that is passed through.
    #[serde(with = "duration")]
    pub body_timeout: Duration,
    /// To reach an origin, over all its addresses.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// For an origin to answer with its headers; an upload's last request may take long.
    #[serde(with = "duration")]
    pub origin_timeout: Duration,
    /// The headers of a P2P answer wait for its first bytes so long, so that an early failure still gets a status.
    #[serde(with = "duration")]
    pub first_byte_wait: Duration,
    /// At shutdown, for running requests to end.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,
}

/// Something wrong in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, as `proxy.rules[0].regex`.
    pub path: String,
    /// What.
    pub message: String,
}

// === impl Default ===

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 65001),
            registry_blobs: true,
            fallback_direct: true,
            rules: Vec::new(),
            connect: ConnectConfig::default(),
            intercept: InterceptConfig::default(),
            auth: None,
        }
    }
}

impl Default for ConnectConfig {
    fn default() -> Self {
        Self { hosts: vec!["*".into()], ports: vec![443] }
    }
}

impl Default for InterceptConfig {
    fn default() -> Self {
        Self { hosts: Vec::new(), ca_cert: "/var/lib/skimmer/ca.crt".into(), ca_key: "/var/lib/skimmer/ca.key".into() }
    }
}

impl Default for MirrorConfig {
    fn default() -> Self {
        Self {
            default: Url::parse("https://registry-1.docker.io").expect("a constant that a test parses"),
            allow: vec!["*".into()],
            upstreams: Vec::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            header_bytes_max: 64 * 1024,
            header_fields_max: 128,
            streams_max: 128,
            header_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(10 * 60),
            body_timeout: Duration::from_secs(2 * 60),
            connect_timeout: Duration::from_secs(10),
            origin_timeout: Duration::from_secs(5 * 60),
            first_byte_wait: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(15),
        }
    }
}

// === impl Config ===

impl Config {
    /// Everything that is wrong, with its place; empty when the configuration can be used.
    #[must_use]
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        for (i, rule) in self.proxy.rules.iter().enumerate() {
            rule.validate(&format!("proxy.rules[{i}]"), &mut problems);
        }
        patterns(&self.proxy.connect.hosts, "proxy.connect.hosts", &mut problems);
        patterns(&self.proxy.intercept.hosts, "proxy.intercept.hosts", &mut problems);
        patterns(&self.mirror.allow, "mirror.allow", &mut problems);
        if let Some(auth) = &self.proxy.auth {
            if auth.user.is_empty() || auth.user.contains(':') {
                problems.add("proxy.auth.user", "must not be empty and not contain a colon");
            }
            if auth.password.is_empty() {
                problems.add("proxy.auth.password", "must not be empty");
            }
        }
        base_url(&self.mirror.default, "mirror.default", &mut problems);
        for (i, upstream) in self.mirror.upstreams.iter().enumerate() {
            let path = format!("mirror.upstreams[{i}]");
            upstream.validate(&path, &mut problems);
            if self.mirror.upstreams[..i].iter().any(|other| other.host.eq_ignore_ascii_case(&upstream.host)) {
                problems.add(&format!("{path}.host"), &format!("{} is there twice", upstream.host));
            }
        }
        let mut listens: Vec<SocketAddr> = vec![self.proxy.listen];
        for (i, upstream) in self.mirror.upstreams.iter().enumerate() {
            if let Some(listen) = upstream.listen {
                if listen.port() != 0 && listens.contains(&listen) {
                    problems.add(&format!("mirror.upstreams[{i}].listen"), &format!("{listen} is used already"));
                }
                listens.push(listen);
            }
        }
        self.limits.validate(&mut problems);
        problems.0
    }
}

impl Rule {
    fn validate(&self, path: &str, problems: &mut Problems) {
        if let Err(error) = regex::Regex::new(&self.regex) {
            problems.add(&format!("{path}.regex"), &error.to_string());
        }
        match (self.action, &self.redirect) {
            (Action::Redirect, None) => {
                problems.add(&format!("{path}.redirect"), "is needed for action = \"redirect\"")
            }
            (Action::Redirect, Some(to)) if to.is_empty() => {
                problems.add(&format!("{path}.redirect"), "must not be empty")
            }
            (Action::Redirect, Some(_)) | (_, None) => {}
            (_, Some(_)) => problems.add(&format!("{path}.redirect"), "has a meaning only with action = \"redirect\""),
        }
    }
}

impl Upstream {
    fn validate(&self, path: &str, problems: &mut Problems) {
        if crate::pattern::split_authority(&self.host).is_none() {
            problems.add(&format!("{path}.host"), &format!("{:?} is not host or host:port", self.host));
        }
        if let Some(url) = &self.url {
            base_url(url, &format!("{path}.url"), problems);
            if self.plain_http && url.scheme() != "http" {
                problems.add(&format!("{path}.plain_http"), "contradicts the scheme of url");
            }
        }
        if self.insecure && self.ca.is_some() {
            problems.add(&format!("{path}.insecure"), "with a ca is a contradiction: choose one");
        }
    }
}

impl Limits {
    fn validate(&self, problems: &mut Problems) {
        for (name, value) in [
            ("header_timeout", self.header_timeout),
            ("handshake_timeout", self.handshake_timeout),
            ("idle_timeout", self.idle_timeout),
            ("body_timeout", self.body_timeout),
            ("connect_timeout", self.connect_timeout),
            ("origin_timeout", self.origin_timeout),
        ] {
            if value.is_zero() {
                problems.add(&format!("limits.{name}"), "must be longer than zero");
            }
        }
        if self.connections_max == 0 {
            problems.add("limits.connections_max", "must be at least 1");
        }
        if self.streams_max == 0 {
            problems.add("limits.streams_max", "must be at least 1");
        }
        if self.header_fields_max == 0 {
            problems.add("limits.header_fields_max", "must be at least 1");
        }
        // hyper's smallest buffer.
        if self.header_bytes_max < 8192 {
            problems.add("limits.header_bytes_max", "must be at least 8192");
        }
    }
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, path: &str, message: &str) {
        self.0.push(Problem { path: path.into(), message: message.into() });
    }
}

fn patterns(list: &[String], path: &str, problems: &mut Problems) {
    for (i, pattern) in list.iter().enumerate() {
        if let Err(error) = pattern.parse::<HostPattern>() {
            problems.add(&format!("{path}[{i}]"), &error.to_string());
        }
    }
}

fn base_url(url: &Url, path: &str, problems: &mut Problems) {
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        problems.add(path, "must be an http or https url");
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        problems.add(path, "must not hold a query, a fragment or credentials");
    }
}

// === text ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Without the password.
impl fmt::Debug for ProxyAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyAuth").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_survive_toml() {
        let config = Config::default();
        assert_eq!(config.validate(), Vec::new());
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
        assert_eq!(toml::from_str::<Config>("").unwrap(), config);
    }

    #[test]
    fn all_problems_are_told_with_their_places() {
        let config: Config = toml::from_str(
            r#"
            [proxy]
            rules = [{ regex = "(", action = "p2p" }, { regex = "a", action = "redirect" }, { regex = "a", action = "direct", redirect = "b" }]
            connect.hosts = ["a*b"]
            auth = { user = "a:b", password = "" }
            [mirror]
            default = "ftp://x"
            upstreams = [{ host = "a/b" }, { host = "c", insecure = true, ca = "/x" }, { host = "C", url = "https://u:p@x", plain_http = true, listen = "127.0.0.1:65001" }]
            [limits]
            header_bytes_max = 1
            idle_timeout = "0s"
            "#,
        )
        .unwrap();
        let paths: Vec<String> = config.validate().into_iter().map(|p| p.path).collect();
        assert_eq!(
            paths,
            [
                "proxy.rules[0].regex",
                "proxy.rules[1].redirect",
                "proxy.rules[2].redirect",
                "proxy.connect.hosts[0]",
                "proxy.auth.user",
                "proxy.auth.password",
                "mirror.default",
                "mirror.upstreams[0].host",
                "mirror.upstreams[1].insecure",
                "mirror.upstreams[2].url",
                "mirror.upstreams[2].plain_http",
                "mirror.upstreams[2].host",
                "mirror.upstreams[2].listen",
                "limits.idle_timeout",
                "limits.header_bytes_max",
            ]
        );
        assert!(toml::from_str::<Config>("[proxy]\nlissten = 1").is_err());
    }

    #[test]
    fn the_password_is_not_printed() {
        let auth = ProxyAuth { user: "u".into(), password: "secret".into() };
        assert!(!format!("{auth:?}").contains("secret"));
    }
}
