//! One simulated host: the production picker, announcer and uploader, and the wires between them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::{Generation, HostId, PieceIndex, PieceSet, TaskId};
use swarm::{
    AnnounceAction, AnnounceConfig, AnnounceEvent, Announcer, Outcome, Picker, PickerAction, PickerConfig, PickerEvent,
    Time, UploadAction, UploadConfig, UploadEvent, Uploader,
};

use super::message::{Body, Refused};
use super::net::{Done, Net};
use super::{SEED, host_id, index_of};

/// The speed a host publishes is an average over about so long.
const METER_FADE_S: f64 = 0.5;
/// Peers a host has sent to lately and whose answers it still waits for are remembered this long; bounds nothing real.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// What all hosts share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) task: TaskId,
    pub(super) generation: Generation,
    pub(super) pieces: u32,
    pub(super) piece_len: u32,
    pub(super) last_len: u32,
    /// Hosts read in order rather than write to disk in any order.
    pub(super) reader: bool,
}

/// What a run counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) received_bytes: u64,
    pub(super) duplicate_bytes: u64,
    pub(super) bad_accepted: u64,
    pub(super) bad_seen: u64,
    pub(super) trace: u64,
}

#[derive(Debug)]
pub(super) struct Host {
    pub(super) at: usize,
    pub(super) lies: bool,
    pub(super) alive: bool,
    pub(super) session: bool,
    pub(super) store: PieceSet,
    pub(super) finished_at: Option<Time>,
    pub(super) announcer: Announcer,
    pub(super) uploader: Uploader,
    pub(super) picker: Option<Picker>,
    peers: BTreeSet<usize>,
    distrusted: BTreeSet<usize>,
    known_hashes: PieceSet,
    requests: BTreeMap<u64, (usize, u32)>,
    next_id: u64,
    sent_bytes: f64,
    sent_at: Time,
    wakes: [Option<Time>; 4],
    reader_at: u32,
}

const PICKER: usize = 0;
const ANNOUNCER: usize = 1;
const UPLOADER: usize = 2;
const PROGRESS: usize = 3;

/// Folds a number into a running hash of all that happened (FNV-1a).
pub(super) fn fold(trace: &mut u64, values: [u64; 4]) {
    for value in values {
        *trace = (*trace ^ value).wrapping_mul(0x0100_0000_01b3);
    }
}

impl Host {
    pub(super) fn new(
        at: usize,
        shared: &Shared,
        picker: Option<PickerConfig>,
        announce: AnnounceConfig,
        upload: UploadConfig,
    ) -> Self {
        Self {
            at,
            lies: false,
            alive: false,
            session: false,
            store: PieceSet::new(),
            finished_at: None,
            announcer: Announcer::new(announce),
            uploader: Uploader::new(upload),
            picker: picker.map(Picker::new),
            peers: BTreeSet::new(),
            distrusted: BTreeSet::new(),
            known_hashes: PieceSet::new(),
            requests: BTreeMap::new(),
            next_id: shared.pieces.into(),
            sent_bytes: 0.0,
            sent_at: Time::default(),
            wakes: [None; 4],
            reader_at: 0,
        }
    }

    pub(super) fn neighbours(&self) -> &BTreeSet<usize> {
        &self.peers
    }

    pub(super) fn picker_event(&mut self, shared: &Shared, net: &mut Net, event: PickerEvent) {
        let Some(picker) = &mut self.picker else { return };
        let now = net.now();
        let mut actions = Vec::new();
        picker.handle(now, event, &mut actions);
        for action in actions {
            match action {
                PickerAction::Request { peer, piece, expires } => {
                    let to = index_of(peer);
                    self.next_id += 1;
                    self.requests.insert(self.next_id, (to, piece.0));
                    let expires_ms = u32::try_from(expires.as_millis()).unwrap_or(u32::MAX);
                    net.send(self.at, to, Body::Request { id: self.next_id, piece: piece.0, expires_ms });
                }
                PickerAction::Cancel { peer, piece } => {
                    let to = index_of(peer);
                    let found = self.requests.iter().find(|(_, r)| **r == (to, piece.0)).map(|(id, _)| *id);
                    if let Some(id) = found {
                        self.requests.remove(&id);
                        net.send(self.at, to, Body::Cancel { id });
                    }
                }
                PickerAction::Distrust { peer, piece } => {
                    let from = index_of(peer);
                    self.distrusted.insert(from);
                    net.send(self.at, SEED, Body::BadPiece { piece: piece.0, from: peer });
                    net.send(self.at, from, Body::Reset);
                    self.lose(shared, net, from);
                }
                PickerAction::NeedPeers { wanted } => {
                    if self.session {
                        net.send(self.at, SEED, Body::NeedPeers { wanted, unreachable: Vec::new() });
                    }
                }
                PickerAction::Starving => {}
                PickerAction::Complete => {
                    self.finished_at = Some(now);
                    net.send(self.at, SEED, Body::Close { complete: true });
                }
                PickerAction::WakeAt(at) => self.wake(net, PICKER, at),
            }
        }
    }

    pub(super) fn announce(&mut self, net: &mut Net, event: AnnounceEvent) {
        let now = net.now();
        let mut actions = Vec::new();
        self.announcer.handle(now, event, &mut actions);
        for action in actions {
            match action {
                AnnounceAction::Have { peer, added, replaces } => {
                    let queued_bytes = self.uploader.queued_bytes();
                    let upload_bytes_per_s = self.speed(now) as u64;
                    net.send(self.at, index_of(peer), Body::Have { added, replaces, queued_bytes, upload_bytes_per_s });
                }
                AnnounceAction::WakeAt(at) => self.wake(net, ANNOUNCER, at),
            }
        }
    }

    pub(super) fn upload(&mut self, shared: &Shared, net: &mut Net, event: UploadEvent) {
        let mut actions = Vec::new();
        self.uploader.handle(net.now(), event, &mut actions);
        for action in actions {
            match action {
                UploadAction::Send { to, id, piece, .. } => {
                    net.start(self.at, index_of(to), id, piece.0, shared.len_of(piece.0), self.lies);
                }
                UploadAction::Refuse { to, id, why } => {
                    let queued_bytes = self.uploader.queued_bytes();
                    net.send(self.at, index_of(to), Body::Refused { id, why: Refused::Uploader(why), queued_bytes });
                }
                UploadAction::WakeAt(at) => self.wake(net, UPLOADER, at),
            }
        }
    }

    fn wake(&mut self, net: &mut Net, what: usize, at: Time) {
        self.wakes[what] = Some(at);
        net.wake_at(self.at, at);
    }

    pub(super) fn woken(&mut self, shared: &Shared, net: &mut Net) {
        let now = net.now();
        for what in [PICKER, ANNOUNCER, UPLOADER, PROGRESS] {
            if self.wakes[what].is_none_or(|at| at > now) || !self.alive {
                continue;
            }
            self.wakes[what] = None;
            match what {
                PICKER => self.picker_event(shared, net, PickerEvent::Tick),
                ANNOUNCER => self.announce(net, AnnounceEvent::Tick),
                UPLOADER => self.upload(shared, net, UploadEvent::Tick),
                _ => self.progress(net),
            }
        }
    }

    pub(super) fn progress(&mut self, net: &mut Net) {
        if self.finished_at.is_some() {
            return;
        }
        if self.session {
            let neighbours = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
            net.send(self.at, SEED, Body::Progress { pieces: self.store.len(), neighbours });
        }
        let next = net.now() + PROGRESS_EVERY;
        self.wake(net, PROGRESS, next);
    }

    fn speed(&self, now: Time) -> f64 {
        let age = now.since(self.sent_at).as_secs_f64();
        self.sent_bytes * (-age / METER_FADE_S).exp() / METER_FADE_S
    }

    /// A transfer from here has ended.
    pub(super) fn sent(&mut self, shared: &Shared, net: &mut Net, done: &Done) {
        let now = net.now();
        if done.whole {
            let age = now.since(self.sent_at).as_secs_f64();
            self.sent_bytes =
                self.sent_bytes.mul_add((-age / METER_FADE_S).exp(), f64::from(shared.len_of(done.piece)));
            self.sent_at = now;
            self.announce(net, AnnounceEvent::Uploaded { peer: host_id(done.to), piece: PieceIndex(done.piece) });
        }
        self.upload(shared, net, UploadEvent::Sent { to: host_id(done.to), id: done.id });
    }

    /// A neighbour, whether it was given here or there.
    fn befriend(&mut self, shared: &Shared, net: &mut Net, other: usize) -> bool {
        if other == self.at || self.distrusted.contains(&other) || !self.peers.insert(other) {
            return false;
        }
        self.picker_event(shared, net, PickerEvent::Joined { peer: host_id(other), seed: other == SEED });
        true
    }

    /// A neighbour is gone.
    pub(super) fn lose(&mut self, shared: &Shared, net: &mut Net, other: usize) {
        if !self.peers.remove(&other) {
            return;
        }
        let peer = host_id(other);
        self.requests.retain(|_, (to, _)| *to != other);
        self.announce(net, AnnounceEvent::Unsubscribed { peer });
        self.upload(shared, net, UploadEvent::Left { peer });
        self.picker_event(shared, net, PickerEvent::Left { peer });
    }

    pub(super) fn message(&mut self, shared: &Shared, net: &mut Net, from: usize, body: Body, tally: &mut Tally) {
        let peer = host_id(from);
        match body {
            Body::Subscribe => {
                if self.befriend(shared, net, from) {
                    net.send(self.at, from, Body::Subscribe);
                }
                if self.peers.contains(&from) {
                    self.announce(net, AnnounceEvent::Subscribed { peer });
                }
            }
            Body::Have { added, replaces, queued_bytes, upload_bytes_per_s } if self.peers.contains(&from) => {
                self.announce(net, AnnounceEvent::PeerHas { peer, added: added.clone() });
                self.picker_event(
                    shared,
                    net,
                    PickerEvent::Have { peer, added, replaces, queued_bytes, upload_bytes_per_s },
                );
            }
            Body::Request { id, piece, expires_ms } => {
                if !self.peers.contains(&from) {
                    net.send(self.at, from, Body::Reset);
                } else if self.store.contains(PieceIndex(piece)) || self.lies {
                    let expires = Duration::from_millis(expires_ms.into());
                    let bytes = shared.len_of(piece);
                    let (task, generation, piece) = (shared.task, shared.generation, PieceIndex(piece));
                    self.upload(
                        shared,
                        net,
                        UploadEvent::Request { from: peer, id, task, generation, piece, bytes, expires },
                    );
                } else {
                    net.send(self.at, from, Body::Refused { id, why: Refused::Missing, queued_bytes: 0 });
                }
            }
            Body::Cancel { id } => self.upload(shared, net, UploadEvent::Cancel { from: peer, id }),
            Body::Refused { id, why, queued_bytes } => self.refused(shared, net, id, why, queued_bytes),
            Body::Piece { id, piece, bad } => self.piece(shared, net, from, (id, piece, bad), tally),
            Body::Reset => self.lose(shared, net, from),
            Body::Opened { hashes } => {
                self.picker_event(shared, net, PickerEvent::Count { pieces: shared.pieces });
                if shared.reader {
                    self.picker_event(shared, net, PickerEvent::Reader { next: Some(PieceIndex(self.reader_at)) });
                }
                self.verifiable(shared, net, hashes);
                if self.wakes[PROGRESS].is_none() {
                    let next = net.now() + PROGRESS_EVERY;
                    self.wake(net, PROGRESS, next);
                }
            }
            Body::Hashes { pieces } => self.verifiable(shared, net, pieces),
            Body::Peers { peers, seeds } => {
                for other in peers.into_iter().chain(seeds).map(index_of) {
                    if self.befriend(shared, net, other) {
                        net.send(self.at, other, Body::Subscribe);
                    }
                }
            }
            // The rest is for the supernode, for the world, or from a host that is no neighbour any more.
            _ => {}
        }
    }

    fn verifiable(&mut self, shared: &Shared, net: &mut Net, pieces: PieceSet) {
        self.known_hashes.union(&pieces);
        self.picker_event(shared, net, PickerEvent::Verifiable { pieces });
    }

    fn refused(&mut self, shared: &Shared, net: &mut Net, id: u64, why: Refused, queued_bytes: u64) {
        let Some((to, piece)) = self.requests.remove(&id) else { return };
        let outcome = match why {
            Refused::Uploader(swarm::RefuseUpload::Busy) => Outcome::Busy { queued_bytes },
            Refused::Uploader(_) => Outcome::Failed,
            Refused::Missing => Outcome::Missing,
        };
        self.picker_event(shared, net, PickerEvent::Ended { peer: host_id(to), piece: PieceIndex(piece), outcome });
    }

    fn piece(
        &mut self,
        shared: &Shared,
        net: &mut Net,
        from: usize,
        (id, piece, bad): (u64, u32, bool),
        tally: &mut Tally,
    ) {
        self.requests.remove(&id);
        let now = net.now();
        let bytes = shared.len_of(piece);
        tally.received_bytes += u64::from(bytes);
        fold(&mut tally.trace, [now.as_micros(), self.at as u64, from as u64, u64::from(piece)]);
        let (peer, index) = (host_id(from), PieceIndex(piece));
        // The hash of the piece is looked at before anything else, as in production.
        if bad && self.known_hashes.contains(index) {
            tally.bad_seen += 1;
            self.picker_event(shared, net, PickerEvent::Ended { peer, piece: index, outcome: Outcome::Bad });
            return;
        }
        // Without its hash a piece must never have been asked for.
        tally.bad_accepted += u64::from(bad || !self.known_hashes.contains(index));
        if !self.store.insert(index) {
            tally.duplicate_bytes += u64::from(bytes);
        }
        self.picker_event(shared, net, PickerEvent::Ended { peer, piece: index, outcome: Outcome::Good { bytes } });
        self.announce(net, AnnounceEvent::Stored { piece: index });
        if shared.reader && piece == self.reader_at {
            self.reader_at = self.store.first_absent(index).0;
            self.picker_event(shared, net, PickerEvent::Reader { next: Some(PieceIndex(self.reader_at)) });
        }
    }
}

impl Shared {
    pub(super) const fn len_of(&self, piece: u32) -> u32 {
        if piece + 1 == self.pieces { self.last_len } else { self.piece_len }
    }
}

/// The id of the host at a place of the simulation.
pub(super) fn id_of(at: usize) -> HostId {
    // Spread over the whole range, as drawn ids are; the place is kept in the low bits.
    let place = at as u128;
    HostId::new((place.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) << 32) | place)
}
