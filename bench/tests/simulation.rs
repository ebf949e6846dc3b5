//! The swarm under faults, simulated, and the figures the simulator must show to be believed.

use bench::sim::{Policy, SimConfig, SimResult, report, run, sim_last_over_limit};

/// 1,000 hosts, some of which come late, leave, stall or lie, and a supernode that restarts.
fn faulty(seed: u64) -> SimResult {
    run(SimConfig {
        hosts: 1_000,
        // 123 pieces of the shortest length: enough for several generations of copies, few enough for a test.
        size_bytes: 8_000_000,
        faults: true,
        seed,
        check_every_ticks: 500,
        ..SimConfig::default()
    })
}

#[test]
fn a_thousand_hosts_under_faults() {
    let first = faulty(1);
    println!(
        "seed 1: {} honest hosts, last after {:?} s, {:.3} origin copies, {} bad pieces seen",
        first.honest,
        first.finished_s.last(),
        first.origin_copies,
        first.bad_seen,
    );
    assert_eq!(first.finished_s.len(), first.honest, "every honest host finishes");
    assert_eq!(first.bad_accepted, 0, "none accepts a bad piece");
    assert!(first.bad_seen > 0, "the liars were met");
    assert!(first.origin_copies <= 1.02, "the origin is read once: {}", first.origin_copies);
    assert_eq!(first.overruns, 0, "no link exceeds its rate in any 100 ms");
    assert!(first.duplicate_ratio <= 0.03, "{}", first.duplicate_ratio);
    let again = faulty(1);
    assert_eq!((first.trace, first.finished_s), (again.trace, again.finished_s), "the same seed gives the same run");
}

#[test]
fn the_same_under_other_seeds_with_fewer_hosts() {
    let mut traces = Vec::new();
    for seed in 2..8 {
        let result = run(SimConfig {
            hosts: 60,
            size_bytes: 6_000_000,
            faults: true,
            seed,
            check_every_ticks: 50,
            ..SimConfig::default()
        });
        assert_eq!(result.finished_s.len(), result.honest, "seed {seed}");
        assert_eq!((result.bad_accepted, result.overruns), (0, 0), "seed {seed}");
        assert!(result.origin_copies <= 1.02, "seed {seed}: {}", result.origin_copies);
        traces.push(result.trace);
    }
    traces.dedup();
    assert_eq!(traces.len(), 6, "different seeds give different runs");
}

#[test]
fn few_hosts_come_near_the_limit() {
    for hosts in [1, 2, 4, 8, 16] {
        let last = sim_last_over_limit(SimConfig { hosts, ..SimConfig::default() });
        assert!(last <= 1.2, "{hosts} hosts: {last}");
    }
}

#[test]
fn readers_in_order_are_as_fast() {
    let last = sim_last_over_limit(SimConfig { hosts: 16, reader: true, ..SimConfig::default() });
    assert!(last <= 1.2, "{last}");
}

#[test]
fn the_seed_alone_takes_as_long_as_its_link_does() {
    let config = SimConfig { hosts: 16, policy: Policy::Direct, ..SimConfig::default() };
    let (limit_s, direct_s) = (config.limit_s(), config.direct_s());
    let last_s = report(config).last_over_limit * limit_s;
    assert!((last_s / direct_s - 1.0).abs() <= 0.05, "{last_s} against {direct_s}");
}

#[test]
fn four_neighbours_are_clearly_worse() {
    let with = |neighbours| sim_last_over_limit(SimConfig { hosts: 150, neighbours, ..SimConfig::default() });
    let (few, many) = (with(4), with(32));
    assert!(few > many * 1.15, "4 neighbours: {few}, 32: {many}");
}

#[test]
fn slow_and_long_links_get_there_too() {
    // 10 Mb/s: sixteen pieces at a time take most of a second.
    let slow = SimConfig {
        hosts: 6,
        size_bytes: 20_000_000,
        rate_bytes_per_s: 1.25e6,
        seed_rate_bytes_per_s: 2.5e6,
        origin_rate_bytes_per_s: 2.5e6,
        ..SimConfig::default()
    };
    let last = sim_last_over_limit(slow);
    assert!(last <= 1.3, "slow links: {last}");
    // 1 Gb/s with 50 ms each way.
    let long = SimConfig {
        hosts: 6,
        rate_bytes_per_s: 125e6,
        seed_rate_bytes_per_s: 125e6,
        origin_rate_bytes_per_s: 125e6,
        latency_us: 50_000,
        ..SimConfig::default()
    };
    let last = sim_last_over_limit(long);
    assert!(last <= 3.0, "long links: {last}");
}
