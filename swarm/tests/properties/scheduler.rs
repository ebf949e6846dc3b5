use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use proto::{Generation, HostId, PieceIndex, TaskId};
use swarm::{
    HostFacts, InventoryItem, RefuseReason, Scheduler, SchedulerAction, SchedulerConfig, SchedulerEvent, Time,
    invariants,
};

const SEED: HostId = HostId::new(1_000);

fn task(number: u8) -> TaskId {
    TaskId::from_bytes(&[number; 32]).expect("32 bytes")
}

fn facts(seed: bool, idc: &str) -> HostFacts {
    HostFacts { seed, idc: idc.to_owned(), ..HostFacts::default() }
}

/// How a host asks for a task.
#[derive(Clone, Copy)]
struct Asks {
    content_addressed: bool,
    never_origin: bool,
    seed_lacks: bool,
}

const PLAINLY: Asks = Asks { content_addressed: true, never_origin: false, seed_lacks: false };

fn open(host: u128, number: u8) -> SchedulerEvent {
    open_as(host, number, PLAINLY)
}

fn open_as(host: u128, number: u8, asks: Asks) -> SchedulerEvent {
    SchedulerEvent::Open {
        host: HostId::new(host),
        task: task(number),
        have: None,
        have_pieces: 0,
        content_addressed: asks.content_addressed,
        never_origin: asks.never_origin,
        seed_lacks: asks.seed_lacks,
        priority: 6,
    }
}

/// A scheduler with a clock, whose invariants are checked after every event.
struct World {
    scheduler: Scheduler,
    now: Time,
}

impl World {
    fn new(config: SchedulerConfig, expected: Option<u32>) -> Self {
        let mut world = Self { scheduler: Scheduler::new(config, Time::default(), expected), now: Time::default() };
        world.join(SEED.bits(), true, "");
        world
    }

    fn handle(&mut self, event: SchedulerEvent) -> Vec<SchedulerAction> {
        let mut actions = Vec::new();
        self.scheduler.handle(self.now, event, &mut actions);
        assert_eq!(invariants::scheduler(&self.scheduler), Ok(()));
        for action in &actions {
            if let SchedulerAction::WakeAt(at) = action {
                assert!(*at > self.now, "a wake in the past");
            }
        }
        actions
    }

    fn join(&mut self, host: u128, seed: bool, idc: &str) {
        self.handle(SchedulerEvent::HostJoined {
            host: HostId::new(host),
            facts: facts(seed, idc),
            inventory_total: 0,
        });
    }

    fn pass(&mut self, time: Duration) -> Vec<SchedulerAction> {
        self.now = self.now + time;
        self.handle(SchedulerEvent::Tick)
    }

    fn seed_opened(&mut self, number: u8, generation: u128, complete: bool) -> Vec<SchedulerAction> {
        let generation = Generation::unique(generation);
        self.handle(SchedulerEvent::SeedOpened { task: task(number), generation, complete, pieces: Some(10) })
    }
}

/// A report on the first piece of the first generation of task 1.
fn bad_piece(reporter: u128, from: u128) -> SchedulerEvent {
    SchedulerEvent::BadPiece {
        reporter: HostId::new(reporter),
        task: task(1),
        generation: Generation::unique(1),
        piece: PieceIndex(0),
        from: HostId::new(from),
    }
}

fn started(actions: &[SchedulerAction]) -> Vec<(HostId, Vec<HostId>)> {
    let starts = actions.iter().filter_map(|a| match a {
        SchedulerAction::StartSeed { on_behalf_of, holders, .. } => Some((*on_behalf_of, holders.clone())),
        _ => None,
    });
    starts.collect()
}

fn refused(actions: &[SchedulerAction]) -> Vec<(HostId, RefuseReason)> {
    let refusals = actions.iter().filter_map(|a| match a {
        SchedulerAction::Refuse { host, why, .. } => Some((*host, *why)),
        _ => None,
    });
    refusals.collect()
}

#[derive(Clone, Debug)]
enum Op {
    Join(u128, u8),
    Leave(u128),
    Inventory(u128, u8, u128, bool, u32),
    Open(u128, u8, bool, bool),
    Close(u128, u8, bool),
    Progress(u128, u8, u128, u32),
    Need(u128, u8, u128, u32, Vec<u128>),
    Bad(u128, u8, u128),
    SeedOpened(u8, u128, bool),
    SeedFailed(u8, u128, bool),
    Quarantine(u8, u128),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let host = || 0u128..30;
    let number = || 0u8..3;
    let generation = || 0u128..2;
    prop_oneof![
        8 => (host(), 0u8..3).prop_map(|(h, i)| Op::Join(h, i)),
        2 => host().prop_map(Op::Leave),
        2 => (host(), number(), generation(), any::<bool>(), 0u32..11).prop_map(|(h, t, g, c, p)| Op::Inventory(h, t, g, c, p)),
        10 => (host(), number(), any::<bool>(), any::<bool>()).prop_map(|(h, t, a, n)| Op::Open(h, t, a, n)),
        2 => (host(), number(), any::<bool>()).prop_map(|(h, t, c)| Op::Close(h, t, c)),
        2 => (host(), number(), generation(), 0u32..11).prop_map(|(h, t, g, p)| Op::Progress(h, t, g, p)),
        3 => (host(), number(), generation(), 0u32..20, proptest::collection::vec(host(), 0..5)).prop_map(|(h, t, g, w, u)| Op::Need(h, t, g, w, u)),
        3 => (host(), number(), host()).prop_map(|(h, t, f)| Op::Bad(h, t, f)),
        4 => (number(), generation(), any::<bool>()).prop_map(|(t, g, c)| Op::SeedOpened(t, g, c)),
        1 => (number(), host(), any::<bool>()).prop_map(|(t, h, c)| Op::SeedFailed(t, h, c)),
        1 => (number(), generation()).prop_map(|(t, g)| Op::Quarantine(t, g)),
        3 => (0u64..20_000).prop_map(Op::Pass),
    ]
}

fn event_of(op: Op) -> Result<SchedulerEvent, u64> {
    let host = HostId::new;
    Ok(match op {
        Op::Join(h, idc) => {
            let idc = ["a", "b", ""][usize::from(idc)];
            SchedulerEvent::HostJoined {
                host: host(h),
                facts: facts(false, idc),
                inventory_total: u32::from(h % 2 == 0),
            }
        }
        Op::Leave(h) => SchedulerEvent::HostLeft { host: host(h) },
        Op::Inventory(h, t, g, complete, pieces) => {
            let item = InventoryItem {
                task: task(t),
                generation: Generation::unique(g),
                complete,
                downloading: !complete,
                pieces,
            };
            SchedulerEvent::Inventory { host: host(h), items: vec![item], last: true }
        }
        Op::Open(h, t, content_addressed, never_origin) => SchedulerEvent::Open {
            host: host(h),
            task: task(t),
            have: None,
            have_pieces: 0,
            content_addressed,
            never_origin,
            seed_lacks: h % 3 == 1,
            priority: u32::try_from(h % 7).expect("small"),
        },
        Op::Close(h, t, complete) => SchedulerEvent::Close { host: host(h), task: task(t), complete },
        Op::Progress(h, t, g, pieces) => SchedulerEvent::Progress {
            host: host(h),
            task: task(t),
            generation: Generation::unique(g),
            pieces,
            neighbours: 3,
        },
        Op::Need(h, t, g, wanted, unreachable) => SchedulerEvent::NeedPeers {
            host: host(h),
            task: task(t),
            generation: Generation::unique(g),
            wanted,
            unreachable: unreachable.into_iter().map(host).collect(),
        },
        Op::Bad(h, t, from) => SchedulerEvent::BadPiece {
            reporter: host(h),
            task: task(t),
            generation: Generation::unique(0),
            piece: PieceIndex(1),
            from: host(from),
        },
        Op::SeedOpened(t, g, complete) => {
            SchedulerEvent::SeedOpened { task: task(t), generation: Generation::unique(g), complete, pieces: Some(10) }
        }
        Op::SeedFailed(t, h, credentials_refused) => {
            SchedulerEvent::SeedFailed { task: task(t), on_behalf_of: host(h), credentials_refused }
        }
        Op::Quarantine(t, g) => SchedulerEvent::Quarantine { task: task(t), generation: Generation::unique(g) },
        Op::Pass(ms) => return Err(ms),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_rules_hold_under_any_events(ops in proptest::collection::vec(op(), 1..200), seed: u64, expected in proptest::option::of(0u32..10)) {
        let config = SchedulerConfig { neighbours: 4, neighbours_max: 6, seed_neighbours_max: 3, seed, ..SchedulerConfig::default() };
        let (grace, ttl) = (config.lease_grace, config.lease_ttl);
        let mut world = World::new(config, expected);
        let mut starting: BTreeMap<TaskId, Time> = BTreeMap::new();
        let mut joined = BTreeSet::from([SEED]);
        let mut held: BTreeSet<TaskId> = BTreeSet::new();
        for op in ops {
            let event = match event_of(op) {
                Ok(event) => event,
                Err(ms) => {
                    world.now = world.now + Duration::from_millis(ms);
                    SchedulerEvent::Tick
                }
            };
            match &event {
                SchedulerEvent::HostJoined { host, .. } => { joined.insert(*host); }
                SchedulerEvent::HostLeft { host } => { joined.remove(host); }
                SchedulerEvent::SeedOpened { task, .. } => {
                    held.insert(*task);
                    starting.remove(task);
                }
                SchedulerEvent::SeedFailed { task, .. } | SchedulerEvent::Quarantine { task, .. } => { starting.remove(task); }
                SchedulerEvent::Inventory { items, .. } => held.extend(items.iter().map(|i| i.task)),
                SchedulerEvent::Close { task, .. } => { held.insert(*task); }
                _ => {}
            }
            for action in world.handle(event) {
                match action {
                    SchedulerAction::StartSeed { task, on_behalf_of, holders } => {
                        let running = starting.get(&task).is_some_and(|since| world.now.since(*since) < ttl);
                        prop_assert!(!running, "started twice");
                        prop_assert!(joined.contains(&on_behalf_of) && holders.iter().all(|h| joined.contains(h)));
                        if expected.is_none() && !held.contains(&task) {
                            prop_assert!(world.now.since(Time::default()) >= grace, "a lease within the grace");
                        }
                        starting.insert(task, world.now);
                    }
                    SchedulerAction::Opened { host, .. } => prop_assert!(joined.contains(&host)),
                    SchedulerAction::Peers { host, peers, .. } => {
                        prop_assert!(joined.contains(&host) && !peers.contains(&host));
                        prop_assert!(peers.iter().all(|p| joined.contains(p) && !world.scheduler.is_excluded(*p)));
                    }
                    _ => {}
                }
            }
        }
        for host in joined {
            world.handle(SchedulerEvent::HostLeft { host });
        }
        world.pass(Duration::from_secs(700));
        prop_assert_eq!((world.scheduler.hosts(), world.scheduler.tasks()), (0, 0));
    }
}

#[test]
fn many_hosts_form_one_random_graph_of_bounded_degree() {
    let mut world = World::new(SchedulerConfig::default(), Some(0));
    let mut edges: BTreeMap<HostId, BTreeSet<HostId>> = BTreeMap::new();
    let mut note = |actions: Vec<SchedulerAction>| {
        for action in actions {
            if let SchedulerAction::Peers { host, peers, .. } = action {
                edges.entry(host).or_default().extend(peers);
            }
        }
    };
    for host in 0..600 {
        world.join(host, false, ["a", "a", "b", "c"][host as usize % 4]);
        note(world.handle(open(host, 1)));
        if host == 0 {
            note(world.seed_opened(1, 1, false));
        }
    }
    note(world.pass(Duration::from_secs(1)));
    let seeds = edges.values().filter(|peers| peers.contains(&SEED)).count();
    assert_eq!(seeds, 48);
    let degrees: Vec<usize> = edges.values().map(BTreeSet::len).collect();
    assert!(degrees.iter().all(|d| (16..=64).contains(d)), "{degrees:?}");
    for (host, peers) in &edges {
        assert!(peers.iter().all(|p| *p == SEED || edges[p].contains(host)), "both ends are told");
    }
    // From any host to all others in few steps: no chain in the order of arrival.
    for start in [0, 300, 599] {
        let mut reached = BTreeSet::from([HostId::new(start)]);
        for _ in 0..4 {
            let next: Vec<HostId> =
                reached.iter().filter_map(|h| edges.get(h)).flatten().copied().filter(|h| *h != SEED).collect();
            reached.extend(next);
        }
        assert_eq!(reached.len(), 600);
    }
}

#[test]
fn the_origin_is_read_for_one_host_and_with_the_next_ones_credentials_when_refused() {
    let mut world = World::new(SchedulerConfig::default(), Some(0));
    for host in 0..3 {
        world.join(host, false, "a");
    }
    assert_eq!(started(&world.handle(open(0, 1))), [(HostId::new(0), vec![])]);
    assert!(started(&world.handle(open(1, 1))).is_empty());
    assert!(started(&world.handle(open(2, 1))).is_empty());
    let failed = |host, credentials_refused| SchedulerEvent::SeedFailed {
        task: task(1),
        on_behalf_of: HostId::new(host),
        credentials_refused,
    };
    let actions = world.handle(failed(0, true));
    assert_eq!(refused(&actions), [(HostId::new(0), RefuseReason::SeedFailed)]);
    assert_eq!(started(&actions), [(HostId::new(1), vec![])]);
    let opened = world.seed_opened(1, 1, false);
    assert_eq!(opened.iter().filter(|a| matches!(a, SchedulerAction::Opened { .. })).count(), 2);
    // The token ran out in mid-layer: another's is used, nobody is refused.
    let actions = world.handle(failed(1, true));
    assert_eq!((refused(&actions).len(), started(&actions)), (0, vec![(HostId::new(2), vec![])]));
    // And when that does not do either, all are told.
    world.seed_opened(1, 1, false);
    assert_eq!(refused(&world.handle(failed(2, true))).len(), 2);
}

#[test]
fn a_restarted_scheduler_waits_for_those_who_hold_it() {
    let mut world = World::new(SchedulerConfig::default(), None);
    world.join(1, false, "a");
    assert!(started(&world.handle(open(1, 1))).is_empty());
    // A host comes back that holds all of it: the seed fetches from there, at once.
    world.join(2, false, "a");
    let item = InventoryItem {
        task: task(1),
        generation: Generation::unique(1),
        complete: true,
        downloading: false,
        pieces: 10,
    };
    let actions = world.handle(SchedulerEvent::Inventory { host: HostId::new(2), items: vec![item], last: true });
    assert_eq!(started(&actions), [(HostId::new(1), vec![HostId::new(2)])]);
    // Nobody holds the other: only when the time is up.
    world.handle(open(1, 2));
    assert!(started(&world.pass(Duration::from_millis(4_900))).is_empty());
    assert_eq!(started(&world.pass(Duration::from_millis(200))).len(), 1);
}

#[test]
fn most_of_the_expected_hosts_end_the_grace() {
    let mut world = World::new(SchedulerConfig::default(), Some(10));
    assert!(started(&world.handle(open(0, 1))).is_empty());
    for host in 0..8 {
        world.join(host, false, "a");
    }
    assert!(started(&world.handle(open(0, 1))).is_empty());
    let host = HostId::new(8);
    let actions = world.handle(SchedulerEvent::HostJoined { host, facts: facts(false, "a"), inventory_total: 1 });
    assert!(started(&actions).is_empty());
    let actions = world.handle(SchedulerEvent::Inventory { host, items: Vec::new(), last: true });
    assert_eq!(started(&actions).len(), 1);
}

#[test]
fn leases_are_rated() {
    let mut world = World::new(SchedulerConfig { leases_per_s: 10, ..SchedulerConfig::default() }, Some(0));
    world.join(0, false, "a");
    let at_once: usize = (0..200).map(|number| started(&world.handle(open(0, number))).len()).sum();
    assert!((10..=11).contains(&at_once), "{at_once}");
    let later: usize = (0..50).map(|_| started(&world.pass(Duration::from_millis(100))).len()).sum();
    assert!((49..=51).contains(&later), "{later}");
}

#[test]
fn one_liar_cannot_exclude_anybody_but_several_reports_can() {
    let mut world = World::new(SchedulerConfig::default(), Some(0));
    for host in 0..6 {
        world.join(host, false, "a");
        world.handle(open(host, 1));
    }
    world.seed_opened(1, 1, false);
    for _ in 0..10 {
        for from in 1..6 {
            world.handle(bad_piece(0, from));
        }
    }
    assert!((1..6).all(|host| !world.scheduler.is_excluded(HostId::new(host))));
    // A stranger to the task is not believed.
    world.join(99, false, "a");
    world.handle(bad_piece(99, 5));
    world.handle(bad_piece(1, 5));
    assert!(!world.scheduler.is_excluded(HostId::new(5)));
    world.handle(bad_piece(2, 5));
    assert!(world.scheduler.is_excluded(HostId::new(5)));
    world.join(7, false, "a");
    let given = world.handle(open(7, 1));
    let peers: Vec<HostId> = given
        .iter()
        .filter_map(|a| match a {
            SchedulerAction::Peers { host, peers, .. } if *host == HostId::new(7) => Some(peers.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    assert!(peers.len() > 4 && !peers.contains(&HostId::new(5)), "{peers:?}");
}

#[test]
fn never_origin_is_refused_unless_somebody_holds_it() {
    let mut world = World::new(SchedulerConfig::default(), Some(0));
    world.join(0, false, "a");
    let never = |host, number| open_as(host, number, Asks { never_origin: true, ..PLAINLY });
    let actions = world.handle(never(0, 1));
    assert_eq!(refused(&actions), [(HostId::new(0), RefuseReason::NeverOrigin)]);
    world.handle(open(0, 2));
    world.seed_opened(2, 1, true);
    world.join(1, false, "a");
    let actions = world.handle(never(1, 2));
    assert!(actions.iter().any(|a| matches!(a, SchedulerAction::Opened { host, .. } if *host == HostId::new(1))));
}

#[test]
fn a_quarantined_content_is_thrown_away_everywhere_and_asked_for_anew() {
    let mut world = World::new(SchedulerConfig::default(), Some(0));
    for host in 0..3 {
        world.join(host, false, "a");
        world.handle(open(host, 1));
    }
    world.seed_opened(1, 1, false);
    world.handle(SchedulerEvent::Close { host: HostId::new(2), task: task(1), complete: true });
    let actions = world.handle(SchedulerEvent::Quarantine { task: task(1), generation: Generation::unique(1) });
    assert_eq!(actions.iter().filter(|a| matches!(a, SchedulerAction::Discard { .. })).count(), 3);
    assert_eq!(refused(&actions).len(), 2);
    assert_eq!(started(&world.handle(open(0, 1))).len(), 1);
}

#[test]
fn a_url_is_confirmed_for_each_round_of_hosts_a_digest_is_not() {
    let mut world = World::new(SchedulerConfig::default(), Some(0));
    world.join(0, false, "a");
    world.join(1, false, "a");
    world.handle(open(0, 1));
    world.seed_opened(1, 1, true);
    assert!(started(&world.handle(open(1, 1))).is_empty());
    let url = open_as(1, 1, Asks { content_addressed: false, ..PLAINLY });
    assert_eq!(started(&world.handle(url)).len(), 1);
}

#[test]
fn what_the_seed_evicted_is_fetched_anew_when_nobody_has_it_or_nothing_comes() {
    let mut world = World::new(SchedulerConfig::default(), Some(0));
    world.join(0, false, "a");
    world.join(1, false, "a");
    let lacking = || open_as(1, 1, Asks { seed_lacks: true, ..PLAINLY });
    world.handle(open(0, 1));
    world.seed_opened(1, 1, true);
    assert_eq!(started(&world.handle(lacking())).len(), 1, "host 0 does not have it yet");
    world.seed_opened(1, 1, true);
    world.handle(SchedulerEvent::Close { host: HostId::new(0), task: task(1), complete: true });
    world.handle(SchedulerEvent::Close { host: HostId::new(1), task: task(1), complete: false });
    assert!(started(&world.handle(lacking())).is_empty(), "host 0 has it");
    assert_eq!(started(&world.handle(lacking())).len(), 1, "and has evicted it as well");
}

#[test]
fn a_host_that_evicted_its_copy_is_given_peers_again() {
    let mut world = World::new(SchedulerConfig::default(), Some(0));
    world.join(0, false, "a");
    world.handle(open(0, 1));
    world.seed_opened(1, 1, true);
    world.handle(SchedulerEvent::Close { host: HostId::new(0), task: task(1), complete: true });
    let actions = world.handle(open(0, 1));
    let of_host = |action: &&SchedulerAction| matches!(action, SchedulerAction::Peers { host, .. } if host.bits() == 0);
    assert_eq!(actions.iter().filter(of_host).count(), 1, "{actions:?}");
}

#[test]
fn a_lease_that_is_not_used_goes_to_the_next() {
    let mut world = World::new(SchedulerConfig::default(), Some(0));
    world.join(0, false, "a");
    world.join(1, false, "a");
    world.handle(open(0, 1));
    world.handle(open(1, 1));
    let again = world.pass(Duration::from_secs(31));
    assert_eq!(started(&again), [(HostId::new(1), vec![])]);
}

#[test]
fn whoever_is_reported_hashes_its_own_copy_again() {
    let mut world = World::new(SchedulerConfig::default(), Some(0));
    for host in 0..3 {
        world.join(host, false, "a");
        world.handle(open(host, 1));
    }
    world.seed_opened(1, 1, false);
    let verified = |actions: &[SchedulerAction]| {
        actions.iter().filter(|a| matches!(a, SchedulerAction::Verify { .. })).cloned().collect::<Vec<_>>()
    };
    let asked = SchedulerAction::Verify { host: HostId::new(1), task: task(1), generation: Generation::unique(1) };
    assert_eq!(verified(&world.handle(bad_piece(0, 1))), [asked]);
    assert_eq!(verified(&world.handle(bad_piece(0, 9))), [], "they never met");
}
