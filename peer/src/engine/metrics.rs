//! What the engine counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Counters of one engine.
#[derive(Clone, Debug, Default)]
pub struct EngineMetrics {
    /// Bytes of pieces received from other hosts and stored.
    pub bytes_from_peers: Counter,
    /// Bytes read from origins.
    pub bytes_from_origin: Counter,
    /// Bytes of pieces received that were here already or not wanted any more.
    pub bytes_duplicate: Counter,
    /// Bytes of pieces sent to other hosts.
    pub bytes_uploaded: Counter,
    /// Pieces that were not what their hash says.
    pub bad_pieces: Counter,
    /// Times a peer was cut off for serving a bad piece.
    pub distrusted_peers: Counter,
    /// Contents that were not what their digest says.
    pub corrupt_tasks: Counter,
    /// Contents of this host's store that were found spoilt after somebody complained.
    pub spoilt_tasks: Counter,
}

impl EngineMetrics {
    /// Makes the counters visible.
    pub fn register(&self, registry: &mut Registry) {
        let rows: [(&str, &str, &Counter); 8] = [
            ("received_bytes", "Bytes of pieces received from other hosts and stored", &self.bytes_from_peers),
            ("origin_bytes", "Bytes read from origins", &self.bytes_from_origin),
            ("duplicate_bytes", "Bytes of pieces received that were not needed any more", &self.bytes_duplicate),
            ("uploaded_bytes", "Bytes of pieces sent to other hosts", &self.bytes_uploaded),
            ("bad_pieces", "Pieces received that were not what their hash says", &self.bad_pieces),
            ("distrusted_peers", "Peers cut off for serving a bad piece", &self.distrusted_peers),
            ("corrupt_tasks", "Contents that were not what their digest says", &self.corrupt_tasks),
            ("spoilt_tasks", "Contents of this host's own store that were found spoilt", &self.spoilt_tasks),
        ];
        for (name, help, counter) in rows {
            registry.register(name, help, counter.clone());
        }
    }
}
