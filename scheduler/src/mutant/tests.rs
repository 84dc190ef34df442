//! Every seeded defect makes at least one probe fail; without any, all probes pass.

#[path = "../../tests/it/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use self::world::{Job, class, cluster, cpu, live};
use super::on::{ALL, with};
use crate::check::{check, snapshot};
use crate::*;

/// Worlds that a defect has to get through.
const WORLDS: usize = 12;

/// Decides once, with every checker; answers the number of placements and of evictions.
fn decide(c: &mut Cluster, demands: &[Demand]) -> (usize, usize) {
    let outcome = cycle(c, demands, 100, Options::default());
    assert_eq!(check(c), Vec::<String>::new());
    let of_gangs = demands.iter().filter(|d| d.gang != 0);
    let min: BTreeMap<u64, u32> = of_gangs.map(|d| (d.gang, d.min)).collect();
    assert_eq!(snapshot(c, &min), Vec::<String>::new());
    for eviction in &outcome.evictions {
        let for_it = |p: &Placement| p.demand == eviction.demand;
        assert!(outcome.placements.iter().any(for_it), "evicted for nobody");
    }
    (outcome.placements.len(), outcome.evictions.len())
}

fn one_queue(nodes: &[i64], spec: QueueSpec) -> (Cluster, QueueId) {
    let mut c = cluster(nodes, &[("q", spec)]);
    let q = c.queue("q");
    (c, q)
}

fn runs(start: Time) -> Run {
    Run {
        preemptible: true,
        ..Run::since(start)
    }
}

fn a_limit_is_kept() {
    let spec = QueueSpec {
        limit: cpu(2),
        ..QueueSpec::default()
    };
    let (mut c, q) = one_queue(&[8], spec);
    assert_eq!(decide(&mut c, &[Demand::new(1, class(1), q, 5)]).0, 2);
}

fn a_gang_is_whole() {
    let (mut c, q) = one_queue(&[4], QueueSpec::default());
    let gang = Demand {
        gang: 1,
        min: 5,
        ..Demand::new(1, class(1), q, 5)
    };
    let after = Demand::new(2, class(4), q, 1);
    assert_eq!(decide(&mut c, &[gang, after]).0, 1);
    assert_eq!(c.task_count(), 1);
}

fn ports_and_taints_keep_tasks_away() {
    let (mut c, q) = one_queue(&[8], QueueSpec::default());
    let web = Class::new(ClassSpec {
        requests: cpu(1),
        ports: vec![80],
        ..ClassSpec::default()
    });
    c.bind("n0", q, &web, Run::since(0));
    assert_eq!(decide(&mut c, &[Demand::new(1, web, q, 1)]).0, 0);
    let tainted = NodeSpec {
        allocatable: cpu(8),
        ready: true,
        taints: vec![Taint {
            key: "gpu".into(),
            value: String::new(),
            effect: Effect::NoSchedule,
        }],
        ..NodeSpec::default()
    };
    let (mut c, q) = one_queue(&[], QueueSpec::default());
    c.upsert_node("t", tainted);
    assert_eq!(decide(&mut c, &[Demand::new(1, class(1), q, 1)]).0, 0);
}

fn tasks_that_repel_each_other_part() {
    let (mut c, q) = one_queue(&[], QueueSpec::default());
    let spec = NodeSpec {
        labels: BTreeMap::from([("host".to_string(), "a".to_string())]),
        allocatable: cpu(8),
        ready: true,
        ..NodeSpec::default()
    };
    c.upsert_node("a", spec);
    let app = Expression {
        key: "app".into(),
        operator: Operator::Exists,
        values: Vec::new(),
    };
    let alone = Class::new(ClassSpec {
        requests: cpu(1),
        labels: BTreeMap::from([("app".to_string(), "x".to_string())]),
        anti_affinity: vec![TaskTerm {
            topology_key: "host".into(),
            selector: vec![app],
        }],
        ..ClassSpec::default()
    });
    assert_eq!(decide(&mut c, &[Demand::new(1, alone, q, 2)]).0, 1);
}

fn sisters_get_the_same() {
    let queues = [("a", QueueSpec::default()), ("b", QueueSpec::default())];
    let mut c = cluster(&[4], &queues);
    let demands = ["a", "b"].map(|name| Demand::new(1, class(1), c.queue(name), 4));
    decide(&mut c, &demands);
    for name in ["a", "b"] {
        let queue = c.queue(name);
        assert_eq!(c.queue_running(queue), 2, "queue {name}");
    }
}

fn a_reservation_is_not_delayed() {
    let (mut c, q) = one_queue(&[4], QueueSpec::default());
    let ends = Run {
        end: 150,
        end_max: 150,
        ..Run::since(0)
    };
    c.bind("n0", q, &class(3), ends);
    let large = Demand::new(1, class(4), q, 1);
    let long = Demand {
        created: 1,
        ..Demand::new(2, class(1), q, 1)
    };
    assert_eq!(decide(&mut c, &[large, long]).0, 0);
}

fn victims_are_those_who_may_be() {
    let guarded = QueueSpec {
        preempt_within: false,
        ..QueueSpec::default()
    };
    for (spec, priority, evicted) in [
        (QueueSpec::default(), 1, 1),
        (QueueSpec::default(), 0, 0),
        (guarded, 1, 0),
    ] {
        let (mut c, q) = one_queue(&[4], spec);
        c.bind("n0", q, &class(4), runs(10));
        let demand = Demand {
            priority,
            ..Demand::new(1, class(2), q, 1)
        };
        assert_eq!(decide(&mut c, &[demand]), (evicted, evicted));
    }
}

fn a_queue_takes_back_what_it_is_owed() {
    let owed = QueueSpec {
        guarantee: cpu(2),
        ..QueueSpec::default()
    };
    let mut c = cluster(&[4], &[("a", owed.clone()), ("b", owed)]);
    let (a, b) = (c.queue("a"), c.queue("b"));
    for _ in 0..4 {
        c.bind("n0", a, &class(1), runs(10));
    }
    assert_eq!(decide(&mut c, &[Demand::new(1, class(1), b, 4)]), (2, 2));
}

fn the_cheapest_leave_and_only_once() {
    let (mut c, q) = one_queue(&[4, 4], QueueSpec::default());
    let gang = Run {
        gang: 7,
        ..runs(90)
    };
    let old = c.bind("n0", q, &class(4), runs(10));
    c.bind("n1", q, &class(2), gang);
    c.bind("n1", q, &class(2), gang);
    let urgent = |id, amount| Demand {
        priority: 1,
        ..Demand::new(id, class(amount), q, 1)
    };
    assert_eq!(decide(&mut c, &[urgent(1, 2)]), (1, 2), "the gang, whole");
    assert_eq!(decide(&mut c, &[urgent(2, 2)]), (1, 0), "its other half");
    assert_eq!(decide(&mut c, &[urgent(3, 2)]), (1, 1));
    assert!(!c.leave(old), "it leaves already");
    c.release(old);
    assert_eq!(check(&c), Vec::<String>::new());
}

/// Worlds from a fixed seed.
fn worlds() {
    let mut runner = TestRunner::deterministic();
    for _ in 0..WORLDS {
        let jobs = prop::collection::vec(job(), 6..14);
        live(&jobs.new_tree(&mut runner).unwrap().current());
    }
}

fn job() -> impl Strategy<Value = Job> {
    (
        0..4usize,
        1..5i64,
        1..4u32,
        0..4i32,
        1..20i64,
        any::<bool>(),
    )
        .prop_map(|(queue, amount, count, priority, run, gang)| Job {
            queue,
            amount,
            count,
            priority,
            run: run * 20,
            gang,
            arrives: run * 7 % 100,
        })
}

const PROBES: [fn(); 10] = [
    a_limit_is_kept,
    a_gang_is_whole,
    ports_and_taints_keep_tasks_away,
    tasks_that_repel_each_other_part,
    sisters_get_the_same,
    a_reservation_is_not_delayed,
    victims_are_those_who_may_be,
    a_queue_takes_back_what_it_is_owed,
    the_cheapest_leave_and_only_once,
    worlds,
];

#[test]
fn every_mutant_is_caught() {
    with(None, || PROBES.iter().for_each(|probe| probe()));
    let survivors: Vec<_> = ALL
        .into_iter()
        .filter(|mutant| {
            let caught = |probe: &fn()| {
                with(Some(*mutant), || catch_unwind(AssertUnwindSafe(probe))).is_err()
            };
            !PROBES.iter().any(caught)
        })
        .collect();
    assert_eq!(survivors, []);
}
