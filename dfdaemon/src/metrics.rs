//! What is counted on the HTTP side.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters of the HTTP side. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    bytes: Family<BytesLabels, Counter>,
    fallbacks: Counter,
    refused_connections: Counter,
    connections: Gauge,
}

/// Which way a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Way {
    /// A blob through the mirror, from peers.
    MirrorBlob,
    /// Anything else through the mirror.
    MirrorDirect,
    /// Through the proxy or interception, from peers.
    ProxyP2p,
    /// Through the proxy or interception, to the origin.
    ProxyDirect,
    /// `CONNECT`, passed through unread.
    Tunnel,
    /// `CONNECT`, read by us.
    Intercept,
    /// Answered without an origin: refused by a rule, malformed, health.
    Own,
}

/// How it ended, as far as the status tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// 1xx to 3xx.
    Ok,
    /// 4xx.
    Refused,
    /// 5xx.
    Failed,
    /// The body broke off after the status was sent.
    Broken,
    /// The client went away before it had everything.
    Abandoned,
}

/// Where bytes that clients read came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum BytesFrom {
    /// A task that was here before.
    Cache,
    /// A task that came meanwhile.
    Swarm,
    /// Straight from the origin.
    Origin,
    /// To and fro in tunnels.
    Tunnel,
    /// Sent by clients to origins.
    Client,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    way: Way,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BytesLabels {
    from: BytesFrom,
}

impl Metrics {
    /// Names the metrics in a registry, usually one with the prefix `skimmer_dfdaemon`. All series are there from the
    /// beginning, with 0: what appears only later looks like an increase to nobody.
    pub fn register(&self, registry: &mut Registry) {
        for way in Way::ALL {
            for outcome in Outcome::ALL {
                drop(self.requests.get_or_create(&RequestLabels { way, outcome }));
            }
        }
        for from in BytesFrom::ALL {
            drop(self.bytes.get_or_create(&BytesLabels { from }));
        }
        registry.register("http_requests", "Requests by way and outcome", self.requests.clone());
        registry.register("http_served_bytes", "Bytes of bodies by where they came from", self.bytes.clone());
        registry.register(
            "http_fallbacks",
            "Requests that went directly because the P2P side could not serve",
            self.fallbacks.clone(),
        );
        registry.register("http_refused_connections", "Connections over the limit", self.refused_connections.clone());
        registry.register("http_connections", "Open connections", self.connections.clone());
    }

    /// Requests that went this way and ended so.
    #[must_use]
    pub fn requests(&self, way: Way, outcome: Outcome) -> u64 {
        self.requests.get_or_create(&RequestLabels { way, outcome }).get()
    }

    /// Bytes served from there.
    #[must_use]
    pub fn bytes(&self, from: BytesFrom) -> u64 {
        self.bytes_counter(from).get()
    }

    /// Requests that went directly because the P2P side could not serve.
    #[must_use]
    pub fn fallbacks(&self) -> u64 {
        self.fallbacks.get()
    }

    /// Open connections.
    #[must_use]
    pub fn connections(&self) -> i64 {
        self.connections.get()
    }

    pub(crate) fn count(&self, way: Way, outcome: Outcome) {
        self.requests.get_or_create(&RequestLabels { way, outcome }).inc();
    }

    pub(crate) fn bytes_counter(&self, from: BytesFrom) -> Counter {
        self.bytes.get_or_create(&BytesLabels { from }).clone()
    }

    pub(crate) fn fell_back(&self) {
        self.fallbacks.inc();
    }

    pub(crate) fn refused_connection(&self) {
        self.refused_connections.inc();
    }

    /// Counts a connection as open until the guard is dropped.
    pub(crate) fn connection(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }
}

impl Way {
    const ALL: [Self; 7] = [
        Self::MirrorBlob,
        Self::MirrorDirect,
        Self::ProxyP2p,
        Self::ProxyDirect,
        Self::Tunnel,
        Self::Intercept,
        Self::Own,
    ];
}

impl BytesFrom {
    const ALL: [Self; 5] = [Self::Cache, Self::Swarm, Self::Origin, Self::Tunnel, Self::Client];
}

impl Outcome {
    const ALL: [Self; 5] = [Self::Ok, Self::Refused, Self::Failed, Self::Broken, Self::Abandoned];

    pub(crate) fn of(status: http::StatusCode) -> Self {
        match status.as_u16() {
            ..400 => Self::Ok,
            400..500 => Self::Refused,
            _ => Self::Failed,
        }
    }
}

#[derive(Debug)]
pub(crate) struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
