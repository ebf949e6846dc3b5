//! Who is there: the clusters of the configuration, and the leases of registered supernodes. No IO, no clock.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use proto::api::{ClusterView, SupernodeEntry};
use tokio::time::Instant;

use crate::config::ClusterConfig;
use crate::file::Registration;
use crate::nearest::{self, MatchedBy, Rules, Whereabouts};

/// All clusters.
#[derive(Debug)]
pub(crate) struct Directory {
    clusters: Vec<Cluster>,
    index: HashMap<String, usize>,
    lease: Duration,
    max_supernodes: usize,
}

#[derive(Debug)]
struct Cluster {
    config: ClusterConfig,
    rules: Rules,
    leases: BTreeMap<String, Lease>,
}

#[derive(Clone, Debug)]
struct Lease {
    endpoint: String,
    until: Instant,
}

/// A registration is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("there is no such cluster; clusters are made in the configuration")]
    UnknownCluster,
    #[error("the cluster has as many supernodes as max_supernodes allows")]
    Full,
}

impl Directory {
    pub(crate) fn new(clusters: Vec<ClusterConfig>, lease: Duration, max_supernodes: usize) -> Self {
        let index = clusters.iter().enumerate().map(|(index, cluster)| (cluster.name.clone(), index)).collect();
        let clusters = clusters
            .into_iter()
            .map(|config| Cluster { rules: config.rules(), config, leases: BTreeMap::new() })
            .collect();
        Self { clusters, index, lease, max_supernodes }
    }

    /// Takes over the leases of another directory, as far as their clusters still exist.
    pub(crate) fn inherit(&mut self, old: &mut Self) {
        for cluster in &mut old.clusters {
            if let Some(heir) = self.cluster_mut(&cluster.config.name) {
                heir.leases = std::mem::take(&mut cluster.leases);
            }
        }
    }

    /// Registers a supernode or renews its lease. Answers whether anything but the lease's end has changed.
    pub(crate) fn register(&mut self, now: Instant, cluster: &str, entry: SupernodeEntry) -> Result<bool, Refused> {
        let (lease, max) = (self.lease, self.max_supernodes);
        let cluster = self.cluster_mut(cluster).ok_or(Refused::UnknownCluster)?;
        let until = now + lease;
        if let Some(known) = cluster.leases.get_mut(&entry.id) {
            known.until = until;
            if known.endpoint == entry.endpoint {
                return Ok(false);
            }
        } else {
            // A supernode that lost its identity comes back under another one; at its address there is only one.
            cluster.leases.retain(|_, lease| lease.endpoint != entry.endpoint);
            if cluster.leases.len() >= max {
                return Err(Refused::Full);
            }
        }
        cluster.leases.insert(entry.id, Lease { endpoint: entry.endpoint, until });
        Ok(true)
    }

    /// Ends a lease. Answers whether there was one.
    pub(crate) fn leave(&mut self, cluster: &str, id: &str) -> Result<bool, Refused> {
        let cluster = self.cluster_mut(cluster).ok_or(Refused::UnknownCluster)?;
        Ok(cluster.leases.remove(id).is_some())
    }

    /// Forgets leases that have ended; answers whose.
    pub(crate) fn sweep(&mut self, now: Instant) -> Vec<Registration> {
        let mut ended = Vec::new();
        for cluster in &mut self.clusters {
            cluster.leases.retain(|id, lease| {
                let lives = lease.until > now;
                if !lives {
                    ended.push(registration(&cluster.config.name, id, lease));
                }
                lives
            });
        }
        ended
    }

    /// The live supernodes of a cluster, by id. A registration wins over the configuration.
    pub(crate) fn live(&self, now: Instant, cluster: &str) -> Result<Vec<SupernodeEntry>, Refused> {
        let index = self.index.get(cluster).ok_or(Refused::UnknownCluster)?;
        Ok(self.clusters[*index].live(now))
    }

    /// The nearest cluster with a live supernode.
    pub(crate) fn nearest(&self, now: Instant, host: &Whereabouts) -> Option<(&str, MatchedBy, Vec<SupernodeEntry>)> {
        let live: Vec<&Cluster> = self.clusters.iter().filter(|cluster| cluster.is_live(now)).collect();
        let (index, by) = nearest::nearest(live.iter().map(|cluster| &cluster.rules), host)?;
        Some((&live[index].config.name, by, live[index].live(now)))
    }

    /// Whether any cluster has a live supernode.
    pub(crate) fn any_live(&self, now: Instant) -> bool {
        self.clusters.iter().any(|cluster| cluster.is_live(now))
    }

    pub(crate) fn view(&self, now: Instant) -> Vec<ClusterView> {
        let view = |cluster: &Cluster| ClusterView {
            name: cluster.config.name.clone(),
            cidrs: cluster.config.cidrs.iter().map(ToString::to_string).collect(),
            idcs: cluster.config.idcs.clone(),
            locations: cluster.config.locations.clone(),
            default: cluster.config.default,
            supernodes: cluster.live(now),
        };
        self.clusters.iter().map(view).collect()
    }

    /// What a restart must not forget.
    pub(crate) fn registrations(&self) -> Vec<Registration> {
        let of = |cluster: &Cluster| {
            let name = cluster.config.name.clone();
            cluster.leases.iter().map(move |(id, lease)| registration(&name, id, lease)).collect::<Vec<_>>()
        };
        self.clusters.iter().flat_map(of).collect()
    }

    fn cluster_mut(&mut self, name: &str) -> Option<&mut Cluster> {
        self.index.get(name).map(|index| &mut self.clusters[*index])
    }
}

impl Cluster {
    fn is_live(&self, now: Instant) -> bool {
        !self.config.supernodes.is_empty() || self.leases.values().any(|lease| lease.until > now)
    }

    fn live(&self, now: Instant) -> Vec<SupernodeEntry> {
        let fixed = self.config.supernodes.iter().map(|entry| (entry.id.clone(), entry.endpoint.clone()));
        let leased = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.until > now)
            .map(|(id, lease)| (id.clone(), lease.endpoint.clone()));
        let by_id: BTreeMap<String, String> = fixed.chain(leased).collect();
        by_id.into_iter().map(|(id, endpoint)| SupernodeEntry { id, endpoint }).collect()
    }
}

fn registration(cluster: &str, id: &str, lease: &Lease) -> Registration {
    Registration { cluster: cluster.to_owned(), id: id.to_owned(), endpoint: lease.endpoint.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, port: u16) -> SupernodeEntry {
        SupernodeEntry { id: id.to_owned(), endpoint: format!("http://127.0.0.1:{port}") }
    }

    fn cluster(name: &str, default: bool, supernodes: Vec<SupernodeEntry>) -> ClusterConfig {
        ClusterConfig {
            name: name.to_owned(),
            default,
            idcs: vec![name.to_owned()],
            supernodes,
            ..ClusterConfig::default()
        }
    }

    const LEASE: Duration = Duration::from_secs(30);

    #[test]
    fn leases() {
        let mut directory = Directory::new(vec![cluster("a", true, vec![])], LEASE, 2);
        let start = Instant::now();
        assert_eq!(directory.register(start, "b", entry("1", 1)), Err(Refused::UnknownCluster));
        assert_eq!(directory.register(start, "a", entry("1", 1)), Ok(true));
        assert_eq!(directory.register(start + LEASE / 2, "a", entry("1", 1)), Ok(false), "a renewal changes nothing");
        assert_eq!(directory.register(start, "a", entry("2", 2)), Ok(true));
        assert_eq!(directory.register(start, "a", entry("3", 3)), Err(Refused::Full));
        assert_eq!(directory.register(start, "a", entry("3", 2)), Ok(true), "the same address under another id");
        assert_eq!(directory.live(start, "a").unwrap(), [entry("1", 1), entry("3", 2)]);
        assert_eq!(directory.live(start + LEASE, "a").unwrap(), [entry("1", 1)]);
        assert_eq!(directory.sweep(start + LEASE).len(), 1);
        assert_eq!(directory.registrations().len(), 1);
        assert_eq!(directory.leave("a", "1"), Ok(true));
        assert_eq!(directory.leave("a", "1"), Ok(false));
        assert!(!directory.any_live(start));
    }

    #[test]
    fn dead_clusters_are_passed_over() {
        let mut directory =
            Directory::new(vec![cluster("a", false, vec![]), cluster("b", true, vec![entry("s", 9)])], LEASE, 9);
        let now = Instant::now();
        let host = Whereabouts { idc: "a".to_owned(), ..Whereabouts::default() };
        assert_eq!(directory.nearest(now, &host), Some(("b", MatchedBy::Default, vec![entry("s", 9)])));
        directory.register(now, "a", entry("1", 1)).unwrap();
        assert_eq!(directory.nearest(now, &host), Some(("a", MatchedBy::Idc, vec![entry("1", 1)])));
        assert_eq!(directory.nearest(now + LEASE, &host).map(|found| found.1), Some(MatchedBy::Default));
    }

    #[test]
    fn a_reload_keeps_leases() {
        let mut old = Directory::new(vec![cluster("a", true, vec![]), cluster("b", false, vec![])], LEASE, 9);
        let now = Instant::now();
        old.register(now, "a", entry("1", 1)).unwrap();
        old.register(now, "b", entry("2", 2)).unwrap();
        let mut new = Directory::new(vec![cluster("c", true, vec![]), cluster("b", false, vec![])], LEASE, 9);
        new.inherit(&mut old);
        assert_eq!(new.live(now, "b").unwrap(), [entry("2", 2)]);
        assert_eq!(new.registrations().len(), 1);
    }
}
