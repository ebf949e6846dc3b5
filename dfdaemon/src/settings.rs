//! The daemon's whole configuration: the HTTP side's ([`crate::config`]), the node's (`peer::node`), and what joins them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use peer::node::{HostConfig, NodeConfig, PeerConfig, RatesConfig, StoreSection, TasksConfig};
use peer::source::{Guard, HostOptions, SourceConfig};
use proto::api::SupernodeEntry;
use serde::{Deserialize, Serialize};
use service::config::{Config, Problems, Validate, duration};
use service::http::{HttpLimits, ListenAddr};
use service::log::LogConfig;
use service::runtime::RuntimeConfig;
use tokio::sync::watch;
use url::Url;

use crate::config::{Limits, MirrorConfig, OriginsConfig, ProxyConfig};
use crate::passthrough::upstream_url;

/// A dfdaemon's configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DfdaemonConfig {
    /// `[cluster]`: where the supernodes are.
    pub cluster: ClusterConfig,
    /// `[socket]`: dfget's way in.
    pub socket: SocketConfig,
    /// `[http]`: health, metrics and rates.
    pub http: HttpConfig,
    /// `[proxy]`
    pub proxy: ProxyConfig,
    /// `[mirror]`
    pub mirror: MirrorConfig,
    /// `[origins]`
    pub origins: OriginsConfig,
    /// `[limits]`: of mirror and proxy.
    pub limits: Limits,
    /// `[host]`
    pub host: HostConfig,
    /// `[peer]`
    pub peer: PeerConfig,
    /// `[store]`
    pub store: StoreSection,
    /// `[rates]`
    pub rates: RatesConfig,
    /// `[tasks]`
    pub tasks: TasksConfig,
    /// `[source]`
    pub source: SourceConfig,
    /// `[guard]`: addresses that an origin may have when this host reads it itself.
    pub guard: Guard,
    /// `[log]`
    pub log: LogConfig,
    /// `[runtime]`
    pub runtime: RuntimeConfig,
}

/// `[cluster]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// config-services to ask for the nearest supernodes, in order.
    pub config_services: Vec<Url>,
    /// Supernodes, when there is no config-service. With neither, the host works alone.
    pub supernodes: Vec<SupernodeEntry>,
    /// How often the answer is asked for again, unless config-service says otherwise.
    #[serde(with = "duration")]
    pub refresh: Duration,
}

/// `[socket]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SocketConfig {
    /// The socket's path.
    pub path: PathBuf,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Where health, metrics and the rates are.
    pub listen: ListenAddr,
    /// `[http.limits]`
    pub limits: HttpLimits,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self { config_services: Vec::new(), supernodes: Vec::new(), refresh: Duration::from_secs(60) }
    }
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self { path: PathBuf::from("/run/skimmer/dfdaemon.sock") }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: ListenAddr::Tcp(SocketAddr::from(([127, 0, 0, 1], 65003))), limits: HttpLimits::default() }
    }
}

impl DfdaemonConfig {
    /// The HTTP side's part.
    #[must_use]
    pub fn http_side(&self) -> crate::config::Config {
        crate::config::Config {
            proxy: self.proxy.clone(),
            mirror: self.mirror.clone(),
            origins: self.origins.clone(),
            limits: self.limits.clone(),
        }
    }

    /// The node's part.
    #[must_use]
    pub fn node(&self, supernodes: Option<watch::Receiver<Vec<SupernodeEntry>>>) -> NodeConfig {
        // What was said of a registry for the mirror holds when its blobs are read by the engine, too.
        let mut source = self.source.clone();
        for upstream in &self.mirror.upstreams {
            let url = upstream_url(upstream);
            let Some(host) = url.host_str() else { continue };
            let place = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
            source.hosts.entry(place).or_insert_with(|| HostOptions {
                ca: upstream.ca.clone(),
                insecure: upstream.insecure,
                plain_http: upstream.plain_http,
                ..HostOptions::default()
            });
        }
        let mut guard = self.guard.clone();
        guard.allow_cidrs.extend(&self.origins.allow_addresses);
        NodeConfig {
            host: self.host.clone(),
            peer: self.peer.clone(),
            store: self.store.clone(),
            rates: self.rates,
            tasks: self.tasks,
            source,
            guard,
            seed: false,
            supernodes,
        }
    }
}

impl Validate for DfdaemonConfig {
    fn validate(&self, problems: &mut Problems) {
        for problem in self.http_side().validate() {
            problems.push(&problem.path, problem.message);
        }
        problems.within("http", |problems| problems.within("limits", |problems| self.http.limits.validate(problems)));
        problems.within("cluster", |problems| self.cluster.validate(problems));
        problems.within("socket", |problems| {
            problems.check(self.socket.path.is_absolute(), "path", "must be an absolute path");
        });
        problems.within("peer", |problems| self.peer.validate(problems));
        problems.within("store", |problems| self.store.validate(problems));
        problems.within("tasks", |problems| self.tasks.validate(problems));
        problems.within("log", |problems| self.log.validate(problems));
        problems.within("runtime", |problems| self.runtime.validate(problems));
        for problem in self.source.problems() {
            problems.push("source", problem.to_string());
        }
    }
}

impl Validate for ClusterConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.each("supernodes", &self.supernodes, |entry, problems| {
            problems.check(!entry.id.is_empty(), "id", "must not be empty");
            let good = Url::parse(&entry.endpoint).is_ok_and(|url| url.scheme() == "http" && url.port().is_some());
            problems.check(good, "endpoint", "expected http://host:port");
        });
        problems.check(!self.refresh.is_zero(), "refresh", "must be longer than zero");
    }
}

impl Config for DfdaemonConfig {
    const BINARY: &'static str = "dfdaemon";

    fn default_toml() -> String {
        include_str!("../../docs/config/dfdaemon.toml").to_owned()
    }

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }
}

#[cfg(test)]
mod documented;
