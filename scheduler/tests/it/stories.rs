//! Small clusters whose answer is plain to a reader.

use std::collections::BTreeMap;

use rota_scheduler::check::{self, check};
use rota_scheduler::*;

fn amounts(cpu: i64, memory: i64) -> BTreeMap<String, i64> {
    BTreeMap::from([("cpu".to_string(), cpu), ("memory".to_string(), memory)])
}

fn node(cpu: i64, memory: i64) -> NodeSpec {
    NodeSpec {
        allocatable: amounts(cpu, memory),
        ready: true,
        ..NodeSpec::default()
    }
}

fn class(cpu: i64, memory: i64) -> ClassSpec {
    ClassSpec {
        requests: amounts(cpu, memory),
        ..ClassSpec::default()
    }
}

fn cluster(policy: Policy, nodes: &[(&str, i64, i64)]) -> Cluster {
    let mut c = Cluster::new();
    c.set_queue(
        "q",
        Some(QueueSpec {
            policy,
            ..QueueSpec::default()
        }),
    );
    for (name, cpu, memory) in nodes {
        c.upsert_node(name, node(*cpu, *memory));
    }
    c
}

/// Runs one cycle; answers `node×tasks` per demand.
fn run(c: &mut Cluster, demands: &[(ClassSpec, i32, i64, u32)]) -> Vec<BTreeMap<String, u32>> {
    let queue = c.queue("q");
    let demands: Vec<Demand> = demands
        .iter()
        .enumerate()
        .map(|(i, (spec, priority, created, count))| Demand {
            priority: *priority,
            created: *created,
            ..Demand::new(i as u64, Class::new(spec.clone()), queue, *count)
        })
        .collect();
    let outcome = cycle(c, &demands, 0, Options::default());
    assert_eq!(check(c), Vec::<String>::new());
    let mut out = vec![BTreeMap::new(); demands.len()];
    for p in outcome.placements {
        let name = c.node_name(p.node).to_string();
        *out[p.demand as usize].entry(name).or_default() += 1;
    }
    out
}

fn on(pairs: &[(&str, u32)]) -> BTreeMap<String, u32> {
    pairs.iter().map(|(n, k)| (n.to_string(), *k)).collect()
}

#[test]
fn binpack_fills_the_smallest_hole_first() {
    let mut c = cluster(Policy::BinPack, &[("big", 16, 16), ("small", 4, 4)]);
    let placed = run(&mut c, &[(class(1, 1), 0, 0, 6)]);
    assert_eq!(placed[0], on(&[("small", 4), ("big", 2)]));
}

#[test]
fn spread_levels_shares() {
    let mut c = cluster(Policy::Spread, &[("a", 8, 8), ("b", 8, 8), ("c", 4, 4)]);
    let placed = run(&mut c, &[(class(1, 1), 0, 0, 5)]);
    assert_eq!(placed[0], on(&[("a", 2), ("b", 2), ("c", 1)]));
}

#[test]
fn priority_goes_first_then_age() {
    let mut c = cluster(Policy::BinPack, &[("a", 2, 2)]);
    let placed = run(
        &mut c,
        &[
            (class(1, 1), 0, 1, 1),
            (class(1, 1), 5, 9, 1),
            (class(1, 1), 0, 2, 1),
        ],
    );
    assert_eq!(placed, vec![on(&[("a", 1)]), on(&[("a", 1)]), on(&[])]);
}

#[test]
fn what_does_not_fit_does_not_hold_back_what_does() {
    let mut c = cluster(Policy::BinPack, &[("a", 2, 2)]);
    let placed = run(&mut c, &[(class(4, 1), 0, 0, 1), (class(2, 1), 0, 1, 1)]);
    assert_eq!(placed[1], on(&[("a", 1)]));
}

#[test]
fn a_soft_taint_comes_last() {
    let mut c = cluster(Policy::BinPack, &[("a", 8, 8)]);
    let mut soft = node(2, 2);
    soft.taints.push(Taint {
        key: "slow".into(),
        value: String::new(),
        effect: Effect::PreferNoSchedule,
    });
    c.upsert_node("soft", soft);
    let placed = run(&mut c, &[(class(1, 1), 0, 0, 9)]);
    assert_eq!(placed[0], on(&[("a", 8), ("soft", 1)]));
}

#[test]
fn the_nearest_fit_is_named() {
    let mut c = cluster(Policy::BinPack, &[("a", 16, 64), ("b", 4, 64)]);
    run(&mut c, &[(class(12, 1), 0, 0, 1)]);
    let queue = c.queue("q");
    let why = explain(&mut c, &Class::new(class(8, 8)), queue, 1);
    assert_eq!(
        why.blockers,
        vec![Blocker::InsufficientResource {
            resource: "cpu".into(),
            nodes: 2,
            request: 8,
            most_free: 4
        }]
    );
    assert_eq!(why.change, Some(Change::Lower(vec![("cpu".into(), 8, 4)])));
    assert!(!why.never);
}

#[test]
fn what_never_fits_is_said_and_what_would() {
    let mut c = cluster(Policy::BinPack, &[("a", 16, 64)]);
    let queue = c.queue("q");
    let why = explain(&mut c, &Class::new(class(100, 8)), queue, 1);
    assert!(why.never);
    assert_eq!(
        why.change,
        Some(Change::Lower(vec![("cpu".into(), 100, 16)]))
    );
}

#[test]
fn huge_requests_are_refused_without_overflow() {
    let mut c = cluster(
        Policy::Spread,
        &[("a", i64::MAX, i64::MAX), ("b", i64::MAX, 1)],
    );
    let placed = run(
        &mut c,
        &[
            (class(i64::MAX, i64::MAX), 0, 0, 3),
            (class(i64::MAX, 1), 0, 1, 3),
        ],
    );
    assert_eq!(placed, vec![on(&[("a", 1)]), on(&[("b", 1)])]);
    let queue = c.queue("q");
    for _ in 0..3 {
        c.bind(
            "a",
            queue,
            &Class::new(class(i64::MAX, i64::MAX)),
            Run::since(0),
        );
    }
    assert_eq!(check(&c), Vec::<String>::new());
    let why = explain(&mut c, &Class::new(class(1, 1)), queue, 1);
    assert!(!why.blockers.is_empty());
}

#[test]
fn a_task_of_a_vanished_node_is_charged_when_it_returns() {
    let mut c = cluster(Policy::BinPack, &[("a", 4, 4)]);
    run(&mut c, &[(class(3, 3), 0, 0, 1)]);
    assert!(c.remove_node("a"));
    assert_eq!(c.task_count(), 1);
    c.upsert_node("a", node(4, 4));
    let placed = run(&mut c, &[(class(2, 2), 0, 0, 1), (class(1, 1), 0, 1, 1)]);
    assert_eq!(placed, vec![on(&[]), on(&[("a", 1)])]);
}

/// `members` of a gang, each of one class with its minimum.
fn gang(c: &mut Cluster, gang: u64, members: &[(ClassSpec, u32, u32)]) -> Vec<Demand> {
    let queue = c.queue("q");
    let each = members.iter().enumerate();
    each.map(|(i, (spec, count, min))| Demand {
        gang,
        min: *min,
        ..Demand::new(
            gang * 100 + i as u64,
            Class::new(spec.clone()),
            queue,
            *count,
        )
    })
    .collect()
}

#[test]
fn a_gang_starts_whole_or_not_at_all() {
    let mut c = cluster(Policy::BinPack, &[("a", 4, 8), ("b", 4, 8)]);
    let small = (class(1, 0), 6, 6);
    let large = (class(3, 0), 1, 1);
    let demands = gang(&mut c, 7, &[small.clone(), large]);
    let outcome = cycle(&mut c, &demands, 0, Options::default());
    assert_eq!(outcome.placements, []);
    assert_eq!(c.task_count(), 0, "a failed trial leaves nothing behind");
    let causes: Vec<_> = outcome.waiting.iter().map(|w| w.cause).collect();
    assert_eq!(causes, [Cause::Gang(1), Cause::NoFit]);
    // What did fit on trial is free for others.
    let whole = gang(&mut c, 8, &[small, (class(2, 0), 1, 1)]);
    let outcome = cycle(&mut c, &whole, 0, Options::default());
    assert_eq!(outcome.placements.len(), 7);
    assert_eq!(check(&c), Vec::<String>::new());
}

#[test]
fn what_a_gang_has_beyond_its_minimum_follows_as_it_fits() {
    let mut c = cluster(Policy::BinPack, &[("a", 4, 8)]);
    let demands = gang(&mut c, 7, &[(class(1, 0), 10, 2)]);
    let outcome = cycle(&mut c, &demands, 0, Options::default());
    assert_eq!(outcome.placements.len(), 4);
    assert_eq!(outcome.waiting[0].count, 6);
}

#[test]
fn a_gang_larger_than_a_cycle_starts_when_its_turn_is_first() {
    let mut c = cluster(Policy::BinPack, &[("a", 9, 9)]);
    let small = Options {
        budget: 3,
        placements: 2,
        ..Options::default()
    };
    let demands = gang(&mut c, 7, &[(class(1, 0), 9, 9)]);
    assert_eq!(cycle(&mut c, &demands, 0, small).placements.len(), 9);
}

/// One running task per node, each with its end.
fn busy(c: &mut Cluster, ends: &[(&str, i64)]) {
    let queue = c.queue("q");
    for (node, end) in ends {
        let run = Run {
            end: *end,
            end_max: *end,
            ..Run::since(0)
        };
        c.bind(node, queue, &Class::new(class(4, 0)), run);
    }
}

/// A demand for whole nodes that runs for so long.
fn whole(c: &mut Cluster, id: u64, nodes: u32, run: i64) -> Demand {
    let queue = c.queue("q");
    Demand {
        gang: id,
        min: nodes,
        created: id as i64,
        run,
        run_max: run,
        ..Demand::new(id, Class::new(class(4, 0)), queue, nodes)
    }
}

#[test]
fn only_what_ends_in_time_passes_the_first_that_waits() {
    let mut c = cluster(Policy::BinPack, &[("a", 4, 8), ("b", 4, 8), ("c", 4, 8)]);
    let by_arrival = QueueSpec {
        order: Order::Fifo,
        ..QueueSpec::default()
    };
    c.set_queue("q", Some(by_arrival));
    busy(&mut c, &[("a", 100), ("b", 50)]);
    // Two whole nodes are free together at 50: b, and c, which is free already.
    let demands = [
        whole(&mut c, 1, 2, 500),
        whole(&mut c, 2, 1, 51),
        whole(&mut c, 3, 1, 50),
    ];
    let late = cycle(&mut c.clone(), &demands[..2], 0, Options::default());
    assert_eq!(late.waiting[1].cause, Cause::Reserved);
    let outcome = cycle(&mut c, &demands, 0, Options::default());
    let placed: Vec<u32> = outcome.placements.iter().map(|p| p.demand).collect();
    assert_eq!(placed, [2]);
    let at: Vec<_> = outcome.reservations.iter().map(|r| r.start).collect();
    assert_eq!(at, [50]);
    assert_eq!(check(&c), Vec::<String>::new());
}

#[test]
fn what_nobody_knows_the_end_of_is_waited_out_when_patience_ends() {
    let mut c = cluster(Policy::BinPack, &[("a", 4, 8), ("b", 4, 8)]);
    busy(&mut c, &[("a", NEVER)]);
    let options = Options {
        patience: 10,
        ..Options::default()
    };
    let demands = [whole(&mut c, 1, 2, NEVER), whole(&mut c, 2, 1, NEVER)];
    let early = cycle(&mut c.clone(), &demands, 11, options);
    assert_eq!(early.placements.len(), 1, "nobody is kept waiting yet");
    let late = cycle(&mut c, &demands, 12, options);
    assert_eq!(
        late.placements,
        [],
        "newcomers stay off what will be needed"
    );
    assert_eq!(late.reservations[0].start, NEVER);
}

#[test]
fn a_higher_priority_takes_the_place_of_what_loses_least() {
    let mut c = cluster(Policy::BinPack, &[("a", 4, 8), ("b", 4, 8)]);
    let queue = c.queue("q");
    let runs = [("a", 10), ("b", 90)].map(|(node, start)| {
        let run = Run {
            preemptible: true,
            ..Run::since(start)
        };
        c.bind(node, queue, &Class::new(class(4, 0)), run)
    });
    let urgent = Demand {
        priority: 1,
        ..Demand::new(1, Class::new(class(2, 0)), queue, 1)
    };
    let outcome = cycle(
        &mut c,
        std::slice::from_ref(&urgent),
        100,
        Options::default(),
    );
    assert_eq!(outcome.evictions.len(), 1);
    assert_eq!(outcome.evictions[0].task, runs[1], "the younger loses less");
    let placed = outcome.placements[0];
    assert!(placed.waits && !c.may_start(placed.task));
    assert_eq!(check(&c), Vec::<String>::new());
    assert_eq!(check::over_allocated(&c), []);
    c.release(runs[1]);
    assert!(c.may_start(placed.task));
    // An equal does not come back to push it out again.
    let equal = Demand::new(2, Class::new(class(4, 0)), queue, 1);
    let again = cycle(&mut c, &[equal], 101, Options::default());
    assert_eq!((again.placements.len(), again.evictions.len()), (0, 0));
}

#[test]
fn a_gang_that_fits_in_part_is_told_how_many_would() {
    let mut c = cluster(Policy::BinPack, &[("a", 4, 8), ("b", 4, 8)]);
    busy(&mut c, &[("a", 70)]);
    let queue = c.queue("q");
    let why = explain(&mut c, &Class::new(class(2, 0)), queue, 3);
    assert_eq!(
        why.blockers,
        [Blocker::TooFewTogether { needed: 3, fit: 2 }]
    );
    assert_eq!(why.change, Some(Change::LowerTogether { from: 3, to: 2 }));
    let holders: Vec<_> = why.holders.iter().map(|h| (h.tasks, h.end)).collect();
    assert_eq!(holders, [(1, 70)]);
}

#[test]
fn a_limit_above_is_told_with_the_queue_that_has_it() {
    let mut c = cluster(Policy::BinPack, &[("a", 4, 8)]);
    let below = QueueSpec {
        parent: Some("q".into()),
        ..QueueSpec::default()
    };
    let queue = c.set_queue("below", Some(below));
    let above = QueueSpec {
        limit: amounts(1, 8),
        ..QueueSpec::default()
    };
    c.set_queue("q", Some(above));
    let why = explain(&mut c, &Class::new(class(2, 0)), queue, 1);
    let raise = ("q".to_string(), "cpu".to_string(), 1, 2);
    assert_eq!(why.change, Some(Change::RaiseQueueLimit(vec![raise])));
}

#[test]
fn nobody_waits_for_the_place_of_what_stays() {
    let mut c = cluster(Policy::BinPack, &[("a", 4, 8), ("b", 4, 8)]);
    let queue = c.queue("q");
    for node in ["a", "b"] {
        let service = Run {
            stays: true,
            ..Run::since(0)
        };
        c.bind(node, queue, &Class::new(class(1, 0)), service);
    }
    let options = Options {
        patience: 10,
        ..Options::default()
    };
    let small = Demand::new(2, Class::new(class(1, 0)), queue, 6);
    let demands = [whole(&mut c, 1, 1, NEVER), small];
    let outcome = cycle(&mut c, &demands, 100, options);
    assert_eq!(outcome.reservations, []);
    assert_eq!(outcome.placements.len(), 6);
}
