//! Joins the engine, the socket and the HTTP side into one service.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::{Method, StatusCode};
use peer::engine::{Engine, Limits};
use peer::locator::{Locator, LocatorConfig};
use peer::node::follow;
use proto::Kind;
use proto::api::{NearestRequest, SupernodeEntry};
use serde::{Deserialize, Serialize};
use service::config::Rate;
use service::http::{ApiFailure, BodyLimits, HttpMetrics, Listener, Readiness, Routes, Server, json};
use service::metrics::Metrics;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::engine::EngineDownloads;
use crate::passthrough::Passthrough;
use crate::settings::DfdaemonConfig;
use crate::{proxy, socket};

/// How long the engine may take to end what it does.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// The last answer of config-service, in the store's folder.
const NEAREST_FILE: &str = "nearest.json";

/// `GET` and `PUT /api/skimmer/v1/rates`: the host's rates, as in the configuration's `[rates]`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rates {
    download: Rate,
    upload: Rate,
}

/// Runs a dfdaemon until it is told to stop.
///
/// # Errors
/// When the store, a listener or a certificate cannot be opened.
pub async fn run(config: DfdaemonConfig, context: service::Context<DfdaemonConfig>) -> anyhow::Result<()> {
    let shutdown = context.shutdown.clone();
    let metrics = Metrics::new("dfdaemon", env!("CARGO_PKG_VERSION"));
    std::fs::create_dir_all(&config.store.dir)
        .with_context(|| format!("cannot make {}", config.store.dir.display()))?;
    let supernodes = supernodes(&config, &shutdown)?;
    let engine = config.node(supernodes).start().await.context("cannot start the peer")?;
    metrics.register("peer", |registry| engine.metrics().register(registry));

    let http_side = config.http_side();
    let proxy_metrics = crate::metrics::Metrics::default();
    metrics.register("proxy", |registry| proxy_metrics.register(registry));
    let passthrough = Passthrough::new(&http_side).context("cannot prepare the way to origins")?;
    let downloads = Arc::new(EngineDownloads(engine.clone()));
    let proxy =
        proxy::Server::new(http_side, downloads, passthrough, proxy_metrics).context("cannot start the proxy")?;
    let proxy_listeners = proxy.bind().await?;

    let socket = socket::bind(&config.socket.path)
        .with_context(|| format!("cannot listen on {} ([socket] path)", config.socket.path.display()))?;
    let listener = Listener::bind(&config.http.listen)
        .with_context(|| format!("cannot listen on {} ([http] listen)", config.http.listen))?;
    let http = Server::new(listener, config.http.limits.clone()).with_metrics(&HttpMetrics::new(&metrics), "http");
    let readiness = Readiness::default();
    let filters = [service::http::standard(&readiness, &metrics), routes(&engine).into_filter("api")];

    info!(host = %engine.store().host_id(), peer = ?engine.host().addresses, proxy = %config.proxy.listen, "dfdaemon is up");
    context.ready();
    let limits = engine.limits().clone();
    tokio::spawn(context.reloads.apply(shutdown.clone(), move |config: &DfdaemonConfig| config.rates.apply(&limits)));
    let proxies = proxy_listeners.into_iter().map(|(listener, registry)| {
        let (proxy, cancel) = (proxy.clone(), shutdown.clone());
        async move {
            match registry {
                None => proxy.serve(listener, cancel).await,
                Some(registry) => proxy.serve_registry(listener, &registry, cancel).await,
            }
        }
    });
    let listeners = futures_util::future::join3(
        socket::serve(socket, engine.clone(), shutdown.clone()),
        http.serve(service::http::service(filters), shutdown.clone()),
        futures_util::future::join_all(proxies),
    );
    // Some downloads last longer than anybody waits for a daemon to stop.
    let drained = async {
        shutdown.cancelled().await;
        tokio::time::sleep(config.runtime.drain_timeout).await;
    };
    let socket = tokio::select! {
        (socket, (), _) = listeners => socket,
        () = drained => {
            warn!("cutting off what still runs");
            Ok(())
        }
    };
    // The path is ours until the next daemon binds it.
    let _ = std::fs::remove_file(&config.socket.path);
    engine.stop(STOP_DEADLINE).await;
    socket.context("the socket broke")
}

fn routes(engine: &Engine) -> Routes {
    let (get, put) = (engine.limits().clone(), engine.limits().clone());
    Routes::new(BodyLimits::default())
        .on(&Method::GET, "/api/skimmer/v1/rates", move |_call| {
            let rates = rates(&get);
            async move { json(StatusCode::OK, &rates) }
        })
        .on(&Method::PUT, "/api/skimmer/v1/rates", move |mut call| {
            let limits = put.clone();
            async move {
                let rates: Rates = call.json().await?;
                limits.download.set(rates.download.limit_bytes_per_s());
                limits.upload.set(rates.upload.limit_bytes_per_s());
                info!(download = %rates.download, upload = %rates.upload, "rates changed");
                json(StatusCode::OK, &rates)
            }
        })
        .on(&Method::GET, "/api/skimmer/v1/host", {
            let engine = engine.clone();
            move |_call| {
                let host = engine.host().clone();
                let supernode = engine.has_supernode();
                let usage = engine.store().usage();
                async move {
                    let host_id = host.id().map_err(|_| ApiFailure::new(Kind::Internal, "this host has no id"))?;
                    json(
                        StatusCode::OK,
                        &serde_json::json!({
                            "host_id": host_id,
                            "hostname": host.hostname,
                            "addresses": host.addresses,
                            "supernode": supernode,
                            "store_used_bytes": usage.used_bytes,
                            "store_capacity_bytes": usage.capacity_bytes,
                            "tasks": usage.tasks,
                        }),
                    )
                }
            }
        })
}

fn rates(limits: &Limits) -> Rates {
    let rate = |limit: Option<u64>| limit.map_or(Rate::UNLIMITED, Rate::bytes_per_s);
    Rates { download: rate(limits.download.rate()), upload: rate(limits.upload.rate()) }
}

/// The cluster's supernodes as they become known; `None` for a host that works alone.
fn supernodes(
    config: &DfdaemonConfig,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<watch::Receiver<Vec<SupernodeEntry>>>> {
    let cluster = &config.cluster;
    if cluster.supernodes.is_empty() && cluster.config_services.is_empty() {
        return Ok(None);
    }
    let locator = Locator::new(LocatorConfig {
        endpoints: cluster.config_services.clone(),
        cache_file: Some(config.store.dir.join(NEAREST_FILE)),
        supernodes: cluster.supernodes.clone(),
        refresh: cluster.refresh,
        host: NearestRequest {
            idc: config.host.idc.clone(),
            location: config.host.location.clone(),
            hostname: config.host.hostname.clone(),
            ..NearestRequest::default()
        },
        ..LocatorConfig::default()
    })
    .context("cannot look for supernodes")?;
    Ok(Some(follow(locator, shutdown.clone())))
}
