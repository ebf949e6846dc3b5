use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use proto::{HostId, PieceIndex, PieceSet};
use swarm::{Outcome, Picker, PickerAction, PickerConfig, PickerEvent, Time, invariants};

const PIECES: u32 = 40;
const HOSTS: u128 = 6;

#[derive(Clone, Debug)]
enum Op {
    Count,
    Verifiable(Vec<u32>),
    Stored(u32),
    Joined(u128, bool),
    Left(u128),
    Have(u128, Vec<u32>, bool, u64),
    End(usize, u8),
    Stray(u128, u32, u8),
    Reader(Option<u32>),
    Wanted(Option<(u32, u32)>),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let pieces = || proptest::collection::vec(0..PIECES + 3, 0..20);
    prop_oneof![
        1 => Just(Op::Count),
        3 => pieces().prop_map(Op::Verifiable),
        1 => (0..PIECES).prop_map(Op::Stored),
        3 => (0..HOSTS, any::<bool>()).prop_map(|(h, s)| Op::Joined(h, s)),
        1 => (0..HOSTS).prop_map(Op::Left),
        6 => (0..HOSTS, pieces(), any::<bool>(), 0u64..10_000_000).prop_map(|(h, p, r, q)| Op::Have(h, p, r, q)),
        10 => (any::<usize>(), 0u8..12).prop_map(|(i, o)| Op::End(i, o)),
        1 => (0..HOSTS, 0..PIECES, 0u8..12).prop_map(|(h, p, o)| Op::Stray(h, p, o)),
        1 => proptest::option::of(0..PIECES).prop_map(Op::Reader),
        1 => proptest::option::of((0..PIECES, 0..PIECES)).prop_map(Op::Wanted),
        6 => (0u64..3_000_000).prop_map(Op::Pass),
    ]
}

fn outcome(code: u8) -> Outcome {
    match code {
        0 => Outcome::Bad,
        1 => Outcome::Busy { queued_bytes: 1_000_000 },
        2 => Outcome::Missing,
        3 => Outcome::Failed,
        _ => Outcome::Good { bytes: 65_536 },
    }
}

/// What a picker was told and what it asked for.
#[derive(Default)]
struct Model {
    verifiable: BTreeSet<u32>,
    stored: BTreeSet<u32>,
    joined: BTreeSet<HostId>,
    have: BTreeMap<HostId, BTreeSet<u32>>,
    distrusted: BTreeSet<HostId>,
    seeds: BTreeSet<HostId>,
    seed_faults: u32,
    asked: BTreeSet<(u32, HostId)>,
    count: Option<u32>,
    wanted: Option<(u32, u32)>,
    requests: usize,
    duplicates: usize,
}

impl Model {
    fn before(&mut self, event: &PickerEvent) {
        match event {
            PickerEvent::Count { pieces } => self.count = Some(*pieces),
            PickerEvent::Verifiable { pieces } => {
                self.verifiable.extend(pieces.iter().map(|p| p.0).filter(|p| self.count.is_none_or(|c| *p < c)));
            }
            PickerEvent::Stored { piece } => {
                self.stored.insert(piece.0);
            }
            PickerEvent::Joined { peer, seed } if !self.distrusted.contains(peer) => {
                let is_new = self.joined.insert(*peer);
                self.seeds.extend((is_new && *seed).then_some(*peer));
            }
            PickerEvent::Left { peer } => self.leave(*peer),
            PickerEvent::Have { peer, added, replaces, .. } if self.joined.contains(peer) => {
                let have = self.have.entry(*peer).or_default();
                if *replaces {
                    have.clear();
                }
                have.extend(added.iter().map(|p| p.0));
            }
            PickerEvent::Ended { peer, piece, outcome } => {
                self.asked.remove(&(piece.0, *peer));
                match outcome {
                    Outcome::Good { .. } => {
                        self.stored.insert(piece.0);
                    }
                    Outcome::Bad => {
                        let is_seed = self.joined.contains(peer) && self.seeds.contains(peer);
                        self.seed_faults += u32::from(is_seed);
                        // A seed gets another chance, twice.
                        if !is_seed || self.seed_faults >= 3 {
                            self.distrusted.insert(*peer);
                        }
                        self.leave(*peer);
                    }
                    Outcome::Missing => {
                        self.have.entry(*peer).or_default().remove(&piece.0);
                    }
                    _ => {}
                }
            }
            PickerEvent::Wanted { pieces } => self.wanted = pieces.map(|(a, b)| (a.0, b.0)),
            _ => {}
        }
    }

    fn leave(&mut self, peer: HostId) {
        self.joined.remove(&peer);
        self.seeds.remove(&peer);
        self.have.remove(&peer);
        self.asked.retain(|(_, p)| *p != peer);
    }

    fn wants(&self, piece: u32) -> bool {
        self.wanted.is_none_or(|(a, b)| (a..=b).contains(&piece)) && self.count.is_none_or(|c| piece < c)
    }

    fn after(&mut self, actions: &[PickerAction], config: &PickerConfig) -> Result<(), TestCaseError> {
        for action in actions {
            match action {
                PickerAction::Request { peer, piece, expires } => {
                    let p = piece.0;
                    prop_assert!(self.verifiable.contains(&p), "{piece} cannot be verified");
                    prop_assert!(!self.stored.contains(&p), "{piece} is stored");
                    prop_assert!(self.wants(p), "{piece} is not wanted");
                    prop_assert!(
                        self.joined.contains(peer) && !self.distrusted.contains(peer),
                        "{peer:?} is no neighbour"
                    );
                    prop_assert!(self.have.get(peer).is_some_and(|h| h.contains(&p)), "{peer:?} does not have {piece}");
                    prop_assert!(*expires >= config.request_expiry);
                    if self.asked.iter().any(|(q, _)| *q == p) {
                        self.duplicates += 1;
                        let all_asked = (0..self.count.unwrap_or(0))
                            .filter(|q| self.wants(*q) && !self.stored.contains(q))
                            .all(|q| self.asked.iter().any(|(r, _)| *r == q));
                        prop_assert!(all_asked, "{piece} is asked for twice outside the endgame");
                    }
                    prop_assert!(self.asked.insert((p, *peer)), "{piece} is asked for twice at {peer:?}");
                    self.requests += 1;
                }
                PickerAction::Cancel { peer, piece } => {
                    prop_assert!(self.asked.remove(&(piece.0, *peer)), "{piece} was not asked for at {peer:?}");
                }
                PickerAction::Complete => {
                    let all = (0..self.count.unwrap_or(PIECES)).all(|p| !self.wants(p) || self.stored.contains(&p));
                    prop_assert!(all, "not complete");
                }
                _ => {}
            }
        }
        prop_assert!(self.asked.len() <= config.outstanding_max as usize);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_rules_hold_under_any_events(ops in proptest::collection::vec(op(), 1..150), seed: u64, few in any::<bool>()) {
        let config = PickerConfig {
            piece_len_bytes: 65_536,
            window_pieces: 8,
            outstanding_max: if few { 5 } else { 64 },
            outstanding_per_peer_max: 4,
            seed,
            ..PickerConfig::default()
        };
        let mut picker = Picker::new(config.clone());
        let mut model = Model::default();
        let mut now = Time::default();
        let set = |pieces: Vec<u32>| -> PieceSet { pieces.into_iter().map(PieceIndex).collect() };
        for op in ops {
            now = now + Duration::from_millis(1);
            let event = match op {
                Op::Count => PickerEvent::Count { pieces: PIECES },
                Op::Verifiable(pieces) => PickerEvent::Verifiable { pieces: set(pieces) },
                Op::Stored(piece) => PickerEvent::Stored { piece: PieceIndex(piece) },
                Op::Joined(host, seed) => PickerEvent::Joined { peer: HostId::new(host), seed },
                Op::Left(host) => PickerEvent::Left { peer: HostId::new(host) },
                Op::Have(host, pieces, replaces, queued_bytes) => PickerEvent::Have {
                    peer: HostId::new(host),
                    added: set(pieces.into_iter().filter(|p| *p < PIECES).collect()),
                    replaces,
                    queued_bytes,
                    upload_bytes_per_s: queued_bytes,
                },
                Op::End(which, code) => {
                    let Some((piece, peer)) = model.asked.iter().nth(which % model.asked.len().max(1)).copied() else { continue };
                    PickerEvent::Ended { peer, piece: PieceIndex(piece), outcome: outcome(code) }
                }
                Op::Stray(host, piece, code) => {
                    PickerEvent::Ended { peer: HostId::new(host), piece: PieceIndex(piece), outcome: outcome(code) }
                }
                Op::Reader(next) => PickerEvent::Reader { next: next.map(PieceIndex) },
                Op::Wanted(range) => {
                    PickerEvent::Wanted { pieces: range.map(|(a, b)| (PieceIndex(a.min(b)), PieceIndex(a.max(b)))) }
                }
                Op::Pass(us) => {
                    now = now + Duration::from_micros(us);
                    PickerEvent::Tick
                }
            };
            // A stray "missing" for a piece that is not outstanding is not believed; neither does the model.
            let stray_missing = matches!(&event, PickerEvent::Ended { peer, piece, outcome: Outcome::Missing }
                if !model.asked.contains(&(piece.0, *peer)));
            if !stray_missing {
                model.before(&event);
            }
            let mut actions = Vec::new();
            picker.handle(now, event, &mut actions);
            model.after(&actions, &config)?;
            prop_assert_eq!(invariants::picker(&picker), Ok(()));
            prop_assert_eq!(picker.outstanding() as usize, model.asked.len());
        }
        let budget = PIECES.div_ceil(64).max(1) as usize;
        prop_assert!(model.duplicates <= budget, "{} of {} twice", model.duplicates, model.requests);
    }

    /// With one honest neighbour that has everything, and whatever others do, the download ends.
    #[test]
    fn one_honest_neighbour_suffices(seed: u64, codes in proptest::collection::vec(0u8..6, 1..40)) {
        let mut picker = Picker::new(PickerConfig { piece_len_bytes: 65_536, seed, ..PickerConfig::default() });
        let mut now = Time::default();
        let honest = HostId::new(0);
        let mut queue = Vec::new();
        let mut events = vec![
            PickerEvent::Count { pieces: PIECES },
            PickerEvent::Verifiable { pieces: PieceSet::full(PIECES) },
        ];
        for host in 0..4 {
            let peer = HostId::new(host);
            events.push(PickerEvent::Joined { peer, seed: false });
            events.push(PickerEvent::Have { peer, added: PieceSet::full(PIECES), replaces: true, queued_bytes: 0, upload_bytes_per_s: 0 });
        }
        let mut codes = codes.into_iter().cycle();
        let mut complete = false;
        for _ in 0..4_000 {
            now = now + Duration::from_millis(20);
            let event = if events.is_empty() { PickerEvent::Tick } else { events.remove(0) };
            let mut actions = Vec::new();
            picker.handle(now, event, &mut actions);
            for action in actions {
                match action {
                    PickerAction::Request { peer, piece, .. } => queue.push((peer, piece)),
                    PickerAction::Cancel { peer, piece } => queue.retain(|q| *q != (peer, piece)),
                    PickerAction::Complete => complete = true,
                    _ => {}
                }
            }
            if events.is_empty() && !queue.is_empty() {
                let (peer, piece) = queue.remove(0);
                // The others are bad, busy, empty, failing, or say nothing at all.
                match codes.next() {
                    Some(code) if peer != honest && code < 4 => events.push(PickerEvent::Ended { peer, piece, outcome: outcome(code) }),
                    _ if peer != honest => {}
                    _ => events.push(PickerEvent::Ended { peer, piece, outcome: Outcome::Good { bytes: 65_536 } }),
                }
            }
        }
        prop_assert!(complete);
    }
}

#[test]
fn hosts_break_ties_differently() {
    let first_of = |seed| {
        let mut picker = Picker::new(PickerConfig { seed, ..PickerConfig::default() });
        let mut actions = Vec::new();
        let peer = HostId::new(1);
        picker.handle(Time::default(), PickerEvent::Verifiable { pieces: PieceSet::full(500) }, &mut actions);
        picker.handle(Time::default(), PickerEvent::Joined { peer, seed: false }, &mut actions);
        let have = PickerEvent::Have {
            peer,
            added: PieceSet::full(500),
            replaces: true,
            queued_bytes: 0,
            upload_bytes_per_s: 0,
        };
        picker.handle(Time::default(), have, &mut actions);
        actions.iter().find_map(|a| match a {
            PickerAction::Request { piece, .. } => Some(piece.0),
            _ => None,
        })
    };
    let firsts: BTreeSet<_> = (0..50).map(first_of).collect();
    assert!(firsts.len() > 35, "{firsts:?}");
    assert_eq!(first_of(7), first_of(7));
}

#[test]
fn the_rarest_comes_first_and_within_the_window() {
    let mut picker = Picker::new(PickerConfig { window_pieces: 4, outstanding_max: 1, ..PickerConfig::default() });
    let mut actions = Vec::new();
    let peers = [HostId::new(1), HostId::new(2)];
    for peer in peers {
        picker.handle(Time::default(), PickerEvent::Joined { peer, seed: false }, &mut actions);
    }
    let have = |peer, pieces: &[u32]| PickerEvent::Have {
        peer,
        added: pieces.iter().copied().map(PieceIndex).collect(),
        replaces: true,
        queued_bytes: 0,
        upload_bytes_per_s: 0,
    };
    // Piece 9 is rarest but outside the window; of those inside, piece 2.
    picker.handle(Time::default(), have(peers[0], &[0, 1, 2, 3, 8, 9]), &mut actions);
    picker.handle(Time::default(), have(peers[1], &[0, 1, 3, 8]), &mut actions);
    picker.handle(Time::default(), PickerEvent::Reader { next: Some(PieceIndex(0)) }, &mut actions);
    picker.handle(Time::default(), PickerEvent::Joined { peer: peers[0], seed: false }, &mut actions);
    assert!(!actions.iter().any(|a| matches!(a, PickerAction::Request { .. })));
    picker.handle(Time::default(), PickerEvent::Left { peer: peers[1] }, &mut actions);
    picker.handle(Time::default(), PickerEvent::Joined { peer: peers[1], seed: true }, &mut actions);
    picker.handle(Time::default(), PickerEvent::Verifiable { pieces: PieceSet::full(10) }, &mut actions);
    let asked = actions.iter().find_map(|a| match a {
        PickerAction::Request { piece, .. } => Some(piece.0),
        _ => None,
    });
    assert!(asked.is_some_and(|p| p < 4), "{asked:?}");
}

#[test]
fn starving_and_need_peers_are_said_again() {
    let mut picker = Picker::new(PickerConfig::default());
    let mut now = Time::default();
    let (mut starving, mut needs) = (0, 0);
    picker.handle(now, PickerEvent::Count { pieces: 3 }, &mut Vec::new());
    for _ in 0..600 {
        now = now + Duration::from_millis(100);
        let mut actions = Vec::new();
        picker.handle(now, PickerEvent::Tick, &mut actions);
        starving += actions.iter().filter(|a| **a == PickerAction::Starving).count();
        needs += actions.iter().filter(|a| matches!(a, PickerAction::NeedPeers { .. })).count();
    }
    // 60 s: starving every 10 s; neighbours after 1, 2, 4, 8, 16 and then every 30 s.
    assert_eq!((starving, needs), (6, 5));
}

#[test]
fn an_empty_content_is_complete() {
    let mut actions = Vec::new();
    Picker::new(PickerConfig::default()).handle(Time::default(), PickerEvent::Count { pieces: 0 }, &mut actions);
    assert!(actions.contains(&PickerAction::Complete));
}
