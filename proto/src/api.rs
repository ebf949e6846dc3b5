//! Bodies of the HTTP APIs of config-service and supernode.

use serde::{Deserialize, Serialize};

use crate::{Generation, HostId, TaskId};

/// `POST /api/skimmer/v1/nearest`: where a host is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NearestRequest {
    /// The host's addresses; the address the request comes from is used too.
    #[serde(default)]
    pub addresses: Vec<core::net::IpAddr>,
    /// Data centre.
    #[serde(default)]
    pub idc: String,
    /// `a|b|c`, from the widest to the narrowest.
    #[serde(default)]
    pub location: String,
    /// For logs.
    #[serde(default)]
    pub hostname: String,
}

/// The answer: a cluster, and its supernodes, nearest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearestAnswer {
    /// Name of the cluster.
    pub cluster: String,
    /// Why this cluster: `cidr`, `idc`, `location` or `default`.
    pub matched_by: String,
    /// Its supernodes.
    pub supernodes: Vec<SupernodeEntry>,
    /// How long the answer may be used before it is asked for again, in seconds.
    pub ttl_s: u64,
}

/// One supernode of a cluster. Also the body of `PUT /api/skimmer/v1/clusters/{cluster}/supernodes`,
/// by which a supernode registers and renews its lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupernodeEntry {
    /// Its identity; hosts rank supernodes of a cluster by a rendezvous hash over it.
    pub id: String,
    /// `http://host:port` of its gRPC listener.
    pub endpoint: String,
}

/// The answer to a registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Renew within this time, in seconds, or be forgotten.
    pub ttl_s: u64,
    /// All supernodes of the cluster, the registered one among them.
    pub siblings: Vec<SupernodeEntry>,
}

/// One cluster in the answer to `GET /api/skimmer/v1/clusters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Its name.
    pub name: String,
    /// Networks whose hosts belong to it, as `10.0.0.0/8`.
    pub cidrs: Vec<String>,
    /// Data centres whose hosts belong to it.
    pub idcs: Vec<String>,
    /// Locations whose hosts belong to it, as `a|b|c`.
    pub locations: Vec<String>,
    /// It takes the hosts that no rule assigns.
    pub default: bool,
    /// Its live supernodes.
    pub supernodes: Vec<SupernodeEntry>,
}

/// An error of any of our HTTP APIs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// [`crate::Kind::label`].
    pub kind: String,
    /// For people.
    pub message: String,
}

/// One task as the supernode sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskView {
    /// Its id.
    pub task_id: TaskId,
    /// Its current generation, once known.
    pub generation: Option<Generation>,
    /// Where it comes from, without credentials and signed parameters.
    pub url: String,
    /// Length in bytes, once known.
    pub length: Option<u64>,
    /// Piece length in bytes.
    pub piece_len: u32,
    /// Pieces hashed by the seed.
    pub pieces_seeded: u32,
    /// `pending`, `running`, `complete`, `failed` or `quarantined`.
    pub state: String,
    /// Bytes read from the origin for it.
    pub origin_bytes: u64,
    /// Hosts that hold or fetch it.
    pub peers: u32,
}

/// One host as the supernode sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    /// Its id.
    pub host_id: HostId,
    /// Its name.
    pub hostname: String,
    /// Peer listener addresses, best first.
    pub addresses: Vec<String>,
    /// Data centre.
    pub idc: String,
    /// Location.
    pub location: String,
    /// Tasks it holds or fetches.
    pub tasks: u32,
    /// It belongs to the supernode itself.
    pub seed: bool,
    /// Bad pieces it was reported for.
    pub bad_pieces: u32,
}
