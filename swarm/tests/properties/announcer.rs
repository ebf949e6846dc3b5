use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use proto::{HostId, PieceIndex, PieceSet};
use swarm::{AnnounceAction, AnnounceConfig, AnnounceEvent, Announcer, Time, invariants};

const PIECES: u32 = 30;

#[derive(Clone, Debug)]
enum Op {
    Subscribed(u128),
    Unsubscribed(u128),
    Stored(u32),
    PeerHas(u128, Vec<u32>),
    Uploaded(u128, u32),
    Idle,
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0u128..6).prop_map(Op::Subscribed),
        1 => (0u128..6).prop_map(Op::Unsubscribed),
        8 => (0..PIECES).prop_map(Op::Stored),
        3 => (0u128..6, proptest::collection::vec(0..PIECES, 0..6)).prop_map(|(h, p)| Op::PeerHas(h, p)),
        3 => (0u128..6, 0..PIECES).prop_map(|(h, p)| Op::Uploaded(h, p)),
        1 => Just(Op::Idle),
        5 => (0u64..200).prop_map(Op::Pass),
    ]
}

struct World {
    announcer: Announcer,
    now: Time,
    stored: BTreeSet<u32>,
    /// What each subscriber was told or told of itself.
    knows: BTreeMap<HostId, BTreeSet<u32>>,
    fresh: BTreeSet<HostId>,
}

impl World {
    fn new(config: AnnounceConfig) -> Self {
        Self {
            announcer: Announcer::new(config),
            now: Time::default(),
            stored: BTreeSet::new(),
            knows: BTreeMap::new(),
            fresh: BTreeSet::new(),
        }
    }

    fn handle(&mut self, event: AnnounceEvent) -> Vec<(HostId, PieceSet)> {
        match &event {
            AnnounceEvent::Subscribed { peer } => {
                self.knows.insert(*peer, BTreeSet::new());
                self.fresh.insert(*peer);
            }
            AnnounceEvent::Unsubscribed { peer } => {
                self.knows.remove(peer);
            }
            AnnounceEvent::Stored { piece } => {
                self.stored.insert(piece.0);
            }
            AnnounceEvent::PeerHas { peer, added } => {
                if let Some(knows) = self.knows.get_mut(peer) {
                    knows.extend(added.iter().map(|p| p.0));
                }
            }
            AnnounceEvent::Uploaded { peer, piece } => {
                if let Some(knows) = self.knows.get_mut(peer) {
                    knows.insert(piece.0);
                }
            }
            _ => {}
        }
        let mut actions = Vec::new();
        self.announcer.handle(self.now, event, &mut actions);
        assert_eq!(invariants::announcer(&self.announcer), Ok(()));
        let mut told = Vec::new();
        for action in actions {
            match action {
                AnnounceAction::Have { peer, added, replaces } => {
                    let knows = self.knows.get_mut(&peer).expect("only subscribers are told");
                    assert_eq!(replaces, self.fresh.remove(&peer), "the first message replaces, no other");
                    assert!(added.iter().all(|p| self.stored.contains(&p.0)), "told of what is not here");
                    knows.extend(added.iter().map(|p| p.0));
                    told.push((peer, added));
                }
                AnnounceAction::WakeAt(at) => assert!(at > self.now),
            }
        }
        told
    }
}

fn play(world: &mut World, ops: Vec<Op>) {
    for op in ops {
        let event = match op {
            Op::Subscribed(host) => AnnounceEvent::Subscribed { peer: HostId::new(host) },
            Op::Unsubscribed(host) => AnnounceEvent::Unsubscribed { peer: HostId::new(host) },
            Op::Stored(piece) => AnnounceEvent::Stored { piece: PieceIndex(piece) },
            Op::PeerHas(host, pieces) => {
                AnnounceEvent::PeerHas { peer: HostId::new(host), added: pieces.into_iter().map(PieceIndex).collect() }
            }
            Op::Uploaded(host, piece) => AnnounceEvent::Uploaded { peer: HostId::new(host), piece: PieceIndex(piece) },
            Op::Idle => AnnounceEvent::Idle,
            Op::Pass(ms) => {
                world.now = world.now + Duration::from_millis(ms);
                AnnounceEvent::Tick
            }
        };
        world.handle(event);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn in_the_end_everybody_knows_everything(ops in proptest::collection::vec(op(), 1..150), seed: bool, seed_bits: u64) {
        let mut world = World::new(AnnounceConfig { seed, seed_bits, ..AnnounceConfig::default() });
        play(&mut world, ops);
        world.handle(AnnounceEvent::Count { pieces: PIECES });
        for piece in 0..PIECES {
            world.handle(AnnounceEvent::Stored { piece: PieceIndex(piece) });
        }
        // The link idles, nobody fetches, time passes.
        for _ in 0..400 {
            world.now = world.now + Duration::from_millis(100);
            world.handle(AnnounceEvent::Idle);
            world.handle(AnnounceEvent::Tick);
        }
        for (peer, knows) in &world.knows {
            prop_assert_eq!(knows.len(), PIECES as usize, "{:?}", peer);
        }
    }
}

#[test]
fn news_are_gathered() {
    let mut world = World::new(AnnounceConfig::default());
    world.handle(AnnounceEvent::Subscribed { peer: HostId::new(1) });
    world.now = world.now + Duration::from_secs(1);
    let messages: usize = (0..20).map(|p| world.handle(AnnounceEvent::Stored { piece: PieceIndex(p) }).len()).sum();
    assert_eq!(messages, 1, "the first after a quiet time goes at once, the others wait");
    world.now = world.now + Duration::from_millis(40);
    let told = world.handle(AnnounceEvent::Tick);
    assert_eq!(told.iter().map(|(_, added)| added.len()).collect::<Vec<_>>(), [19]);
}

#[test]
fn a_seed_puts_each_piece_into_one_hand_first() {
    let mut world = World::new(AnnounceConfig { seed: true, ..AnnounceConfig::default() });
    for host in 0..8 {
        world.handle(AnnounceEvent::Subscribed { peer: HostId::new(host) });
    }
    let mut hands = BTreeMap::<u32, Vec<HostId>>::new();
    for piece in 0..100 {
        let mut told = world.handle(AnnounceEvent::Stored { piece: PieceIndex(piece) });
        world.now = world.now + Duration::from_millis(50);
        told.extend(world.handle(AnnounceEvent::Tick));
        for (peer, added) in told {
            for piece in added.iter() {
                hands.entry(piece.0).or_default().push(peer);
                world.handle(AnnounceEvent::Uploaded { peer, piece });
                world.handle(AnnounceEvent::PeerHas { peer, added: [piece].into_iter().collect() });
            }
        }
    }
    // Some were told again after their time was up, because they did not spread; at first there was one hand.
    let mut firsts = BTreeMap::<HostId, u32>::new();
    for peers in hands.values() {
        *firsts.entry(peers[0]).or_default() += 1;
    }
    assert_eq!(hands.len(), 100);
    assert_eq!(firsts.len(), 8, "{firsts:?}");
    assert!(firsts.values().all(|n| (4..=30).contains(n)), "{firsts:?}");
}

#[test]
fn a_lone_listener_is_told_everything_at_once() {
    let mut world = World::new(AnnounceConfig { seed: true, ..AnnounceConfig::default() });
    for piece in 0..200 {
        world.handle(AnnounceEvent::Stored { piece: PieceIndex(piece) });
    }
    let told = world.handle(AnnounceEvent::Subscribed { peer: HostId::new(1) });
    let told: u32 = told.iter().map(|(_, added)| added.len()).sum();
    assert_eq!(told, 200);
}
