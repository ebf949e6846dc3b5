//! The supernode's configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use peer::node::{HostConfig, PeerConfig, RatesConfig, StoreSection, TasksConfig};
use peer::source::{Guard, SourceConfig};
use proto::api::SupernodeEntry;
use serde::{Deserialize, Serialize};
use service::config::{ByteSize, Config, Problems, Validate, duration};
use service::http::{HttpLimits, ListenAddr};
use service::log::LogConfig;
use service::runtime::RuntimeConfig;
use swarm::SchedulerConfig;
use url::Url;

/// A supernode's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SupernodeConfig {
    /// `[grpc]`: the listener for the cluster's hosts.
    pub grpc: GrpcConfig,
    /// `[http]`: health, metrics and the read-only API.
    pub http: HttpConfig,
    /// `[cluster]`: the cluster this supernode belongs to.
    pub cluster: ClusterConfig,
    /// `[scheduler]`: who may talk to whom.
    pub scheduler: SchedulerSection,
    /// `[host]`
    pub host: HostConfig,
    /// `[peer]`: the seed's own trading.
    pub peer: PeerConfig,
    /// `[store]`: the seed's pieces.
    pub store: StoreSection,
    /// `[rates]`
    pub rates: RatesConfig,
    /// `[tasks]`
    pub tasks: TasksConfig,
    /// `[source]`: the way to origins.
    pub source: SourceConfig,
    /// `[guard]`: addresses that origins may have.
    pub guard: Guard,
    /// `[log]`
    pub log: LogConfig,
    /// `[runtime]`
    pub runtime: RuntimeConfig,
}

/// `[grpc]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcConfig {
    /// Where the cluster's hosts open their sessions.
    pub listen: SocketAddr,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Where health, metrics and the read-only API are.
    pub listen: ListenAddr,
    /// `[http.limits]`
    pub limits: HttpLimits,
}

/// `[cluster]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// The cluster's name at config-service.
    pub name: String,
    /// config-services to register at, asked in order; none = not registered.
    pub config_services: Vec<Url>,
    /// `http://host:port` by which hosts reach `[grpc] listen`; empty = its address.
    pub advertise_endpoint: String,
    /// The cluster's supernodes, where there is no config-service.
    pub supernodes: Vec<SupernodeEntry>,
}

/// `[scheduler]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerSection {
    /// Neighbours a host is given for a task.
    pub neighbours: u32,
    /// Neighbours a host may have for a task at most, given and taken.
    pub neighbours_max: u32,
    /// Hosts that talk to the seed directly, for one task.
    pub seed_neighbours_max: u32,
    /// After a restart the origin is not read for so long, unless the hosts known before are back.
    #[serde(with = "duration")]
    pub lease_grace: Duration,
    /// Origin reads begun per second at most.
    pub leases_per_s: u32,
    /// A host that so many others report for bad pieces is given to nobody any more.
    pub bad_reports_max: u32,
    /// A task nobody opened or holds is forgotten after so long.
    #[serde(with = "duration")]
    pub task_idle: Duration,
}

impl Default for SupernodeConfig {
    fn default() -> Self {
        Self {
            grpc: GrpcConfig::default(),
            http: HttpConfig::default(),
            cluster: ClusterConfig::default(),
            scheduler: SchedulerSection::default(),
            host: HostConfig::default(),
            peer: PeerConfig { listen: vec![SocketAddr::from(([0, 0, 0, 0], 8001))], ..PeerConfig::default() },
            store: StoreSection {
                dir: PathBuf::from("/var/lib/skimmer/supernode"),
                capacity: ByteSize::gib(200),
                ..StoreSection::default()
            },
            rates: RatesConfig::default(),
            tasks: TasksConfig::default(),
            source: SourceConfig::default(),
            guard: Guard::default(),
            log: LogConfig::default(),
            runtime: RuntimeConfig::default(),
        }
    }
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([0, 0, 0, 0], 8002)) }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: ListenAddr::Tcp(SocketAddr::from(([127, 0, 0, 1], 8003))), limits: HttpLimits::default() }
    }
}

impl Default for SchedulerSection {
    fn default() -> Self {
        let config = SchedulerConfig::default();
        Self {
            neighbours: config.neighbours,
            neighbours_max: config.neighbours_max,
            seed_neighbours_max: config.seed_neighbours_max,
            lease_grace: config.lease_grace,
            leases_per_s: config.leases_per_s,
            bad_reports_max: config.bad_reports_max,
            task_idle: config.task_idle,
        }
    }
}

impl SchedulerSection {
    /// The scheduler's configuration, with random choices drawn from this seed.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> SchedulerConfig {
        SchedulerConfig {
            neighbours: self.neighbours,
            neighbours_max: self.neighbours_max,
            seed_neighbours_max: self.seed_neighbours_max,
            lease_grace: self.lease_grace,
            leases_per_s: self.leases_per_s,
            bad_reports_max: self.bad_reports_max,
            task_idle: self.task_idle,
            seed,
            ..SchedulerConfig::default()
        }
    }
}

impl Validate for SupernodeConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.within("http", |problems| problems.within("limits", |problems| self.http.limits.validate(problems)));
        problems.within("cluster", |problems| self.cluster.validate(problems));
        problems.within("scheduler", |problems| self.scheduler.validate(problems));
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
        problems.check(
            self.config_services.is_empty() || !self.name.is_empty(),
            "name",
            "the cluster's name is needed to register at a config-service",
        );
        let endpoint = &self.advertise_endpoint;
        let is_endpoint = |text: &str| Url::parse(text).is_ok_and(|url| url.scheme() == "http" && url.port().is_some());
        problems.check(endpoint.is_empty() || is_endpoint(endpoint), "advertise_endpoint", "expected http://host:port");
        problems.each("supernodes", &self.supernodes, |entry, problems| {
            problems.check(!entry.id.is_empty(), "id", "must not be empty");
            problems.check(is_endpoint(&entry.endpoint), "endpoint", "expected http://host:port");
        });
    }
}

impl Validate for SchedulerSection {
    fn validate(&self, problems: &mut Problems) {
        problems.check(self.neighbours > 0, "neighbours", "must be above zero");
        problems.check(self.neighbours_max >= self.neighbours, "neighbours_max", "must not be below neighbours");
        problems.check(self.seed_neighbours_max > 0, "seed_neighbours_max", "must be above zero");
        problems.check(self.leases_per_s > 0, "leases_per_s", "must be above zero");
        problems.check(self.bad_reports_max > 0, "bad_reports_max", "must be above zero");
    }
}

impl Config for SupernodeConfig {
    const BINARY: &'static str = "supernode";

    fn default_toml() -> String {
        include_str!("../../docs/config/supernode.toml").to_owned()
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
