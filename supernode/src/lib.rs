//! The cluster manager: fetches each file from its origin once, seeds it, and schedules who gets what from whom.
//!
//! - [`manager`]: the shell around [`swarm::Scheduler`]; all its state is soft.
//! - [`grpc`]: sessions with hosts, and news from sibling supernodes.
//! - [`replicate`]: news to sibling supernodes.
//! - [`api`]: health, metrics, and reading tasks and hosts over HTTP.
//! - `known`: how many hosts there were before a restart.
//!
//! The seed is an ordinary engine of crate `peer` that may read origins. A crash loses no piece that the store held;
//! hosts come back with hellos, and until most of those known before have, no origin is read.

#![forbid(unsafe_code)]

pub mod api;
mod config;
pub mod grpc;
mod known;
pub mod manager;
pub mod replicate;

use anyhow::Context as _;
use peer::engine::Engine;
use peer::locator::{Locator, LocatorConfig};
use peer::node::NodeConfig;
use proto::api::SupernodeEntry;
use service::metrics::Metrics;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use config::{ClusterConfig, GrpcConfig, HttpConfig, SchedulerSection, SupernodeConfig};
use manager::Manager;

/// How long the engine may take to end what it does.
const STOP_DEADLINE: std::time::Duration = std::time::Duration::from_secs(3);

/// Runs a supernode until it is told to stop.
///
/// # Errors
/// When the store or a listener cannot be opened.
pub async fn run(config: SupernodeConfig, context: service::Context<SupernodeConfig>) -> anyhow::Result<()> {
    let shutdown = context.shutdown.clone();
    let engine = node(&config).start().await.context("cannot start the seed")?;
    let id = engine.store().host_id();
    let metrics = Metrics::new("supernode", env!("CARGO_PKG_VERSION"));
    metrics.register("peer", |registry| engine.metrics().register(registry));
    let grpc = TcpListener::bind(config.grpc.listen)
        .await
        .with_context(|| format!("cannot listen on {} ([grpc] listen)", config.grpc.listen))?;
    let own = SupernodeEntry { id: id.to_string(), endpoint: endpoint(&config, &engine, grpc.local_addr()?.port()) };

    let known = known::KnownHosts::open(&config.store.dir);
    let (news, _) = broadcast::channel(replicate::NEWS_MAX);
    let scheduler =
        config.scheduler.with_seed(u64::from_le_bytes(id.to_bytes()[..8].try_into().expect("8 of 16 bytes")));
    let manager = Manager::start(scheduler, known.expected(), engine.clone(), news.clone(), shutdown.clone());
    tokio::spawn(known.keep(manager.clone(), shutdown.clone()));

    let siblings = siblings(&config, &own, &shutdown)?;
    tokio::spawn(replicate::run(own.clone(), siblings, news, manager.clone(), shutdown.clone()));
    let http = api::server(&config.http, &metrics, &manager)?;
    info!(id = %id, grpc = %grpc.local_addr()?, endpoint = own.endpoint, "supernode is up");
    context.ready();
    let limits = engine.limits().clone();
    tokio::spawn(context.reloads.apply(shutdown.clone(), move |config: &SupernodeConfig| config.rates.apply(&limits)));
    let (grpc, ()) = tokio::join!(grpc::serve(grpc, manager.clone(), shutdown.clone()), http.serve(shutdown.clone()));
    manager.stopped().await;
    engine.stop(STOP_DEADLINE).await;
    grpc.context("the gRPC listener broke")
}

fn node(config: &SupernodeConfig) -> NodeConfig {
    NodeConfig {
        host: config.host.clone(),
        peer: config.peer.clone(),
        store: config.store.clone(),
        rates: config.rates,
        tasks: config.tasks,
        source: config.source.clone(),
        guard: config.guard.clone(),
        seed: true,
        supernodes: None,
    }
}

/// How hosts reach us.
fn endpoint(config: &SupernodeConfig, engine: &Engine, port: u16) -> String {
    if !config.cluster.advertise_endpoint.is_empty() {
        return config.cluster.advertise_endpoint.clone();
    }
    let listen = config.grpc.listen.ip();
    let ip = if listen.is_unspecified() {
        // The address that the seed tells other hosts is one by which this machine is reached.
        engine
            .host()
            .addresses
            .iter()
            .find_map(|address| address.parse::<std::net::SocketAddr>().ok())
            .map_or(listen, |address| address.ip())
    } else {
        listen
    };
    format!("http://{}", std::net::SocketAddr::new(ip, port))
}

/// Registers at config-service, and learns of the cluster's other supernodes from it.
fn siblings(
    config: &SupernodeConfig,
    own: &SupernodeEntry,
    shutdown: &CancellationToken,
) -> anyhow::Result<watch::Receiver<Vec<SupernodeEntry>>> {
    let cluster = &config.cluster;
    if cluster.config_services.is_empty() {
        return Ok(watch::channel(cluster.supernodes.clone()).1);
    }
    let locator =
        Locator::new(LocatorConfig { endpoints: cluster.config_services.clone(), ..LocatorConfig::default() })
            .context("cannot register at config-service")?;
    let registration = locator.register(cluster.name.clone(), own.clone());
    let siblings = registration.siblings();
    tokio::spawn(registration.run(shutdown.clone()));
    Ok(siblings)
}
