//! The HTTP API.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode};
use ipnet::IpNet;
use proto::Kind;
use proto::api::{NearestAnswer, NearestRequest, Registered, SupernodeEntry};
use service::http::{ApiFailure, BodyLimits, Call, Response, Routes, empty, json};
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
/// Proxies in a row.
const FORWARDED_MAX: usize = 32;

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
    addresses
        .extend(call.peer.and_then(|peer| peer.ip()).map(|peer| client(peer, &call.headers, &config.trusted_proxies)));
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

/// The address a request comes from: the peer's, or, when the peer is a proxy we trust, the last one before it that is none.
fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let trusts = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
    let mut client = peer;
    if !trusts(&client) {
        return client;
    }
    let lines: Vec<&str> = headers.get_all("x-forwarded-for").iter().filter_map(|line| line.to_str().ok()).collect();
    for hop in lines.iter().rev().flat_map(|line| line.rsplit(',')).take(FORWARDED_MAX) {
        // What no longer parses was not written by a proxy we trust.
        let Ok(address) = hop.trim().parse::<IpAddr>() else { break };
        client = address.to_canonical();
        if !trusts(&client) {
            break;
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_for() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        for (peer, lines, expected) in [
            ("192.0.2.1", vec!["1.1.1.1"], "192.0.2.1"),
            ("10.0.0.1", vec![], "10.0.0.1"),
            ("10.0.0.1", vec!["1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", vec!["6.6.6.6, 1.1.1.1, 10.0.0.2"], "1.1.1.1"),
            ("10.0.0.1", vec!["6.6.6.6", "1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", vec!["1.1.1.1, nonsense, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", vec!["::ffff:1.1.1.1"], "1.1.1.1"),
        ] {
            let mut headers = HeaderMap::new();
            for line in &lines {
                headers.append("x-forwarded-for", line.parse().unwrap());
            }
            assert_eq!(client(address(peer), &headers, &trusted), address(expected), "{peer} {lines:?}");
        }
    }
}
