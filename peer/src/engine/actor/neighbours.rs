//! The neighbours of one task: who is called, who listens, who tells of which pieces.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proto::wire::frame::Body;
use proto::{HostId, PieceIndex, PieceSet, wire};
use swarm::{AnnounceEvent, Outcome, PickerEvent};
use tracing::{debug, warn};

use super::super::link::Link;
use super::super::mesh;
use super::super::shared::Shared;
use super::{Actor, Event};

/// Hosts remembered for one task at most: as many as a picker takes for neighbours.
const NAMED_MAX: usize = 256;
/// A host that served a bad piece is asked for nothing for so long.
const DISTRUST_FOR: Duration = Duration::from_secs(3600);
/// The same of a seed.
const DISTRUST_SEED_FOR: Duration = Duration::from_secs(10);
/// Pieces that a neighbour may tell of while the length is not known: a tebibyte.
const PIECES_UNKNOWN_MAX: u32 = 1 << 20;

/// A neighbour of this task.
pub(super) struct Neighbour {
    pub(super) link: Arc<Link>,
    pub(super) requests: HashMap<PieceIndex, u64>,
    /// It wants to hear of our pieces.
    pub(super) subscribed: bool,
    /// We asked to hear of its pieces.
    pub(super) asked: bool,
    /// What it told of late; for the origin's turn.
    pub(super) have: PieceSet,
}

impl Actor {
    /// Links to hosts the authority named, unless they are neighbours already.
    pub(super) fn call(&mut self, peers: Vec<wire::HostInfo>) {
        if self.wants_no_neighbours() {
            return;
        }
        for info in peers {
            let Ok(host) = info.id() else { continue };
            if self.named.len() < NAMED_MAX || self.named.contains_key(&host) {
                self.named.insert(host, info.clone());
            }
            if host == self.inner.host_id
                || self.inner.mesh.is_distrusted(host)
                || (self.seed_only && !info.seed)
                || self.neighbours.get(&host).is_some_and(|neighbour| neighbour.asked)
                || !self.connecting.insert(host)
            {
                continue;
            }
            let (inner, events) = (Arc::clone(&self.inner), self.shared.events.clone());
            self.inner.tracker.spawn(async move {
                let event = match mesh::connect(&inner, &info).await {
                    Some(link) => Event::LinkUp { link },
                    None => Event::LinkFailed { peer: host },
                };
                let _ = events.send(event).await;
            });
        }
    }

    pub(super) fn link_up(&mut self, link: Arc<Link>) {
        let host = link.host;
        self.connecting.remove(&host);
        if self.wants_no_neighbours()
            || self.inner.mesh.is_distrusted(host)
            || link.gone.is_cancelled()
            || (self.seed_only && !link.info.seed)
        {
            return;
        }
        let neighbour = self.neighbours.entry(host).or_insert_with(|| Neighbour::new(Arc::clone(&link)));
        neighbour.link = link;
        if neighbour.asked {
            return;
        }
        neighbour.asked = true;
        neighbour.link.tell(subscribe(&self.shared));
        let seed = neighbour.link.info.seed;
        self.pick(PickerEvent::Joined { peer: host, seed });
    }

    /// A link broke. A pair of hosts may have two, and then the other one serves.
    pub(super) fn link_down(&mut self, peer: HostId) {
        let Some(neighbour) = self.neighbours.get_mut(&peer) else { return };
        if !neighbour.link.gone.is_cancelled() {
            return;
        }
        if let Some(link) = self.inner.mesh.get(peer) {
            neighbour.link = link;
            if neighbour.asked {
                neighbour.link.tell(subscribe(&self.shared));
            }
            return;
        }
        self.neighbours.remove(&peer);
        self.announce(AnnounceEvent::Unsubscribed { peer });
        self.pick(PickerEvent::Left { peer });
        self.cannot_reach(peer);
    }

    pub(super) fn cannot_reach(&mut self, peer: HostId) {
        if self.unreachable.len() < NAMED_MAX && !self.unreachable.contains(&peer) {
            self.unreachable.push(peer);
        }
    }

    /// Notices links that broke while the mailbox was too full for the news.
    pub(super) fn sweep(&mut self) {
        let gone: Vec<HostId> =
            self.neighbours.iter().filter(|(_, n)| n.link.gone.is_cancelled()).map(|(host, _)| *host).collect();
        for peer in gone {
            self.link_down(peer);
        }
    }

    /// Calls everybody who was ever named once more, and asks those who are there to tell of their pieces anew.
    pub(super) fn call_again(&mut self) {
        for neighbour in self.neighbours.values().filter(|neighbour| neighbour.asked) {
            neighbour.link.tell(subscribe(&self.shared));
        }
        let named = self.named.values().cloned().collect();
        self.call(named);
    }

    /// Nothing more is wanted of anybody. At once, not when the actor leaves: a later task of the same name may have
    /// subscribed by then, and a neighbour knows only one subscription.
    pub(super) fn want_nothing(&mut self) {
        let asked: Vec<HostId> = self.neighbours.iter().filter(|(_, n)| n.asked).map(|(host, _)| *host).collect();
        for peer in asked {
            if let Some(neighbour) = self.neighbours.get_mut(&peer) {
                neighbour.asked = false;
                for id in neighbour.requests.values() {
                    neighbour.link.cancel(*id);
                }
                neighbour.link.tell(Body::Unsubscribe(wire::Unsubscribe {
                    task_id: self.shared.task.to_bytes().to_vec().into(),
                    generation: self.shared.generation.to_bytes().to_vec().into(),
                }));
            }
            // What the picker would rather ask of somebody else now is not wanted either.
            self.picker.handle(self.inner.now(), PickerEvent::Left { peer }, &mut Vec::new());
        }
    }

    /// Tells those who listen that there is nothing here any more.
    pub(super) fn tell_gone(&self) {
        for neighbour in self.neighbours.values().filter(|neighbour| neighbour.subscribed) {
            neighbour.link.tell(Body::Have(wire::Have {
                task_id: self.shared.task.to_bytes().to_vec().into(),
                generation: self.shared.generation.to_bytes().to_vec().into(),
                gone: true,
                ..wire::Have::default()
            }));
        }
    }

    /// A task that failed, or that has everything. A seed listens on: what it handed out has spread when another host
    /// tells of it.
    fn wants_no_neighbours(&self) -> bool {
        self.finishing && self.shared.ended().is_none()
            || match self.shared.ended() {
                None => false,
                Some(Ok(())) => !self.inner.is_seed(),
                Some(Err(_)) => true,
            }
    }

    /// A host wants to hear of our pieces; while we lack some ourselves, we want to hear of its pieces too.
    pub(super) fn subscribed(&mut self, link: Arc<Link>) {
        let host = link.host;
        let neighbour = self.neighbours.entry(host).or_insert_with(|| Neighbour::new(Arc::clone(&link)));
        neighbour.link = Arc::clone(&link);
        neighbour.subscribed = true;
        self.unwanted_since = None;
        self.announce(AnnounceEvent::Subscribed { peer: host });
        self.link_up(link);
    }

    pub(super) fn peer_has(&mut self, peer: HostId, have: &wire::Have) {
        let Some(neighbour) = self.neighbours.get_mut(&peer) else { return };
        if have.gone {
            neighbour.asked = false;
            neighbour.have = PieceSet::new();
            return self.pick(PickerEvent::Left { peer });
        }
        let limit = self.shared.layout().count().unwrap_or(PIECES_UNKNOWN_MAX);
        let added = match have.added.as_ref().map(|runs| PieceSet::from_runs(runs, limit)).transpose() {
            Ok(added) => added.unwrap_or_default(),
            Err(error) => {
                debug!(peer = ?peer, %error, "have-map does not fit the content");
                return neighbour.link.gone.cancel();
            }
        };
        if have.replaces {
            neighbour.have = added.clone();
        } else {
            neighbour.have.union(&added);
        }
        self.announce(AnnounceEvent::PeerHas { peer, added: added.clone() });
        self.pick(PickerEvent::Have {
            peer,
            added,
            replaces: have.replaces,
            queued_bytes: u64::from(have.queued_bytes_kib) * 1024,
            upload_bytes_per_s: u64::from(have.upload_kib_per_s) * 1024,
        });
    }

    pub(super) fn request_ended(&mut self, peer: HostId, piece: PieceIndex, outcome: Outcome) {
        if let Some(neighbour) = self.neighbours.get_mut(&peer) {
            neighbour.requests.remove(&piece);
        }
        if matches!(outcome, Outcome::Good { .. }) {
            self.starving_since = None;
            self.announce(AnnounceEvent::Stored { piece });
            self.shared.changed();
        }
        self.pick(PickerEvent::Ended { peer, piece, outcome });
        if matches!(outcome, Outcome::Good { .. }) {
            self.after_store();
        }
    }

    /// A neighbour lied: named, reported, cut off.
    pub(super) fn distrust(&mut self, peer: HostId, piece: PieceIndex) {
        warn!(peer = %peer, task = ?self.shared.task, piece = piece.0, "peer is no longer used: it served a bad piece");
        self.inner.metrics.distrusted_peers.inc();
        self.authority.report_bad_piece(&self.inner, &self.shared, piece, peer);
        let Some(neighbour) = self.neighbours.remove(&peer) else {
            return self.inner.mesh.distrust(peer, DISTRUST_FOR);
        };
        self.announce(AnnounceEvent::Unsubscribed { peer });
        for id in neighbour.requests.values() {
            neighbour.link.cancel(*id);
        }
        if neighbour.link.info.seed {
            // Without the seed there may be nobody else: it is told to look at its own copy, and gets another chance.
            self.inner.mesh.distrust(peer, DISTRUST_SEED_FOR);
        } else {
            self.inner.mesh.distrust(peer, DISTRUST_FOR);
            // No other task asks it for anything either.
            neighbour.link.gone.cancel();
        }
    }
}

impl Neighbour {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link, requests: HashMap::new(), subscribed: false, asked: false, have: PieceSet::new() }
    }
}

fn subscribe(shared: &Shared) -> Body {
    Body::Subscribe(wire::Subscribe {
        task_id: shared.task.to_bytes().to_vec().into(),
        generation: shared.generation.to_bytes().to_vec().into(),
    })
}
