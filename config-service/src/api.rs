//! The HTTP API.

use std::sync::Arc;

use http::{Method, StatusCode};
use proto::Kind;
use proto::api::{NearestAnswer, NearestRequest, Registered, SupernodeEntry};
use service::http::{ApiFailure, BodyLimits, Call, Response, Routes, client_address, empty, json};
use tokio::time::Instant;
use tracing::{debug, info};

use crate::app::State;
use crate::config::check_entry;
use crate::directory::Refused;
use crate::nearest::Whereabouts;

/// A host with more addresses than that gives those that matter.
const ADDRESSES_MAX: usize = 64;
/// Bytes of a data centre's, location's or host's name.
const NAME_BYTES_MAX: usize = 256;

pub(crate) fn routes(state: &Arc<State>, limits: BodyLimits) -> Routes {
    let (nearest_state, clusters_state, register_state, leave_state) =
        (state.clone(), state.clone(), state.clone(), state.clone());
    Routes::new(limits)
        .on(&Method::POST, "/api/skimmer/v1/nearest", move |call| nearest(nearest_state.clone(), call))
        .on(&Method::GET, "/api/skimmer/v1/clusters", move |_| {
            let view = clusters_state.directory.lock().view(Instant::now());
            async move { json(StatusCode::OK, &view) }
        })
        .on(&Method::PUT, "/api/skimmer/v1/clusters/{cluster}/supernodes", move |call| {
            register(register_state.clone(), call)
        })
        .on(&Method::DELETE, "/api/skimmer/v1/clusters/{cluster}/supernodes/{id}", move |call| {
            leave(leave_state.clone(), call)
        })
}

async fn nearest(state: Arc<State>, mut call: Call) -> Result<Response, ApiFailure> {
    let request: NearestRequest = call.json().await?;
    if request.addresses.len() > ADDRESSES_MAX {
        return Err(ApiFailure::new(Kind::Invalid, format!("at most {ADDRESSES_MAX} addresses are allowed")));
    }
    for (name, text) in [("idc", &request.idc), ("location", &request.location), ("hostname", &request.hostname)] {
        if text.len() > NAME_BYTES_MAX {
            return Err(ApiFailure::new(Kind::Invalid, format!("{name}: at most {NAME_BYTES_MAX} bytes are allowed")));
        }
    }
    let config = Arc::clone(&state.config.lock());
    let mut addresses = request.addresses;
    let peer = call.peer.and_then(|peer| peer.ip());
    addresses.extend(peer.map(|peer| client_address(peer, &call.headers, &config.trusted_proxies)));
    let host = Whereabouts { addresses, idc: request.idc, location: request.location };
    let now = Instant::now();
    let answer = {
        let directory = state.directory.lock();
        match directory.nearest(now, &host) {
            Some((cluster, by, supernodes)) => Ok(NearestAnswer {
                cluster: cluster.to_owned(),
                matched_by: by.label().to_owned(),
                supernodes,
                ttl_s: config.answer_ttl.as_secs(),
            }),
            None if directory.any_live(now) => {
                Err(ApiFailure::new(Kind::NotFound, "no cluster is near this host, and there is no default cluster"))
            }
            None => Err(ApiFailure::new(Kind::Unavailable, "no cluster has a live supernode")),
        }
    };
    let label =
        answer.as_ref().map_or_else(|failure| failure.kind().label(), |answer| answer.matched_by.as_str()).to_owned();
    debug!(hostname = request.hostname, ?host, answer = label, "nearest");
    state.counters.answers.get_or_create(&vec![("by", label)]).inc();
    json(StatusCode::OK, &answer?)
}

async fn register(state: Arc<State>, mut call: Call) -> Result<Response, ApiFailure> {
    let cluster = call.param("cluster")?.to_owned();
    let entry: SupernodeEntry = call.json().await?;
    check_entry(&entry).map_err(|(field, message)| ApiFailure::new(Kind::Invalid, format!("{field}: {message}")))?;
    let now = Instant::now();
    let changed = state.directory.lock().register(now, &cluster, entry.clone()).map_err(refused)?;
    state.counters.registrations.inc();
    if changed {
        info!(cluster, id = entry.id, endpoint = entry.endpoint, "supernode registered");
        state.changed().await;
    }
    let siblings = state.directory.lock().live(now, &cluster).map_err(refused)?;
    let ttl_s = state.config.lock().lease.as_secs();
    json(StatusCode::OK, &Registered { ttl_s, siblings })
}

async fn leave(state: Arc<State>, call: Call) -> Result<Response, ApiFailure> {
    let (cluster, id) = (call.param("cluster")?, call.param("id")?);
    if !state.directory.lock().leave(cluster, id).map_err(refused)? {
        return Err(ApiFailure::new(Kind::NotFound, "no such supernode is registered"));
    }
    info!(cluster, id, "supernode left");
    state.changed().await;
    Ok(empty(StatusCode::NO_CONTENT))
}

fn refused(reason: Refused) -> ApiFailure {
    let kind = match reason {
        Refused::UnknownCluster => Kind::NotFound,
        Refused::Full => Kind::Conflict,
    };
    ApiFailure::new(kind, reason.to_string())
}
