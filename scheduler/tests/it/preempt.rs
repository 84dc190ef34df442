//! Preemption as the cycle does it: stories, and worlds in which evicted tasks come back.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rota_scheduler::check::{check, over_allocated};
use rota_scheduler::*;

use crate::world::{Job, class, cluster, cpu, live};

/// A task that may be evicted, started at this time.
fn runs(start: Time) -> Run {
    Run {
        preemptible: true,
        ..Run::since(start)
    }
}

fn urgent(c: &mut Cluster, queue: &str, amount: i64, count: u32) -> Demand {
    Demand {
        priority: 5,
        ..Demand::new(99, class(amount), c.queue(queue), count)
    }
}

/// One cycle at time 100: who is evicted, and how many are placed.
fn decide(c: &mut Cluster, demands: &[Demand]) -> (BTreeSet<TaskId>, usize) {
    let options = Options {
        restart: 30,
        ..Options::default()
    };
    let outcome = cycle(c, demands, 100, options);
    assert_eq!(check(c), Vec::<String>::new());
    assert_eq!(over_allocated(c), []);
    let evicted = outcome.evictions.iter().map(|e| e.task).collect();
    (evicted, outcome.placements.len())
}

#[test]
fn a_gang_leaves_whole_and_all_its_room_is_used() {
    let mut c = cluster(&[4, 4], &[("q", QueueSpec::default())]);
    let q = c.queue("q");
    let gang = Run {
        gang: 7,
        ..runs(10)
    };
    let members: BTreeSet<TaskId> = ["n0", "n1"]
        .map(|node| c.bind(node, q, &class(4), gang))
        .into();
    let demand = urgent(&mut c, "q", 4, 2);
    assert_eq!(decide(&mut c, &[demand]), (members, 2));
}

#[test]
fn a_gang_with_one_protected_member_stays() {
    let mut c = cluster(&[4, 4], &[("q", QueueSpec::default())]);
    let q = c.queue("q");
    let gang = Run {
        gang: 7,
        ..runs(10)
    };
    c.bind("n0", q, &class(4), gang);
    let kept = Run {
        preemptible: false,
        ..gang
    };
    c.bind("n1", q, &class(4), kept);
    let demand = urgent(&mut c, "q", 4, 1);
    assert_eq!(decide(&mut c, &[demand]), (BTreeSet::new(), 0));
}

#[test]
fn a_gang_evicts_for_all_its_members_or_for_none() {
    let mut c = cluster(&[4, 4], &[("q", QueueSpec::default())]);
    let q = c.queue("q");
    c.bind("n0", q, &class(4), runs(10));
    let kept = Run {
        preemptible: false,
        ..runs(10)
    };
    c.bind("n1", q, &class(4), kept);
    let mut gang = urgent(&mut c, "q", 4, 2);
    (gang.gang, gang.min) = (3, 2);
    assert_eq!(
        decide(&mut c, std::slice::from_ref(&gang)),
        (BTreeSet::new(), 0)
    );
    (gang.count, gang.min) = (1, 1);
    assert_eq!(decide(&mut c, &[gang]).1, 1);
}

#[test]
fn nobody_is_evicted_twice_for_the_same_room() {
    let mut c = cluster(&[4, 4], &[("q", QueueSpec::default())]);
    let q = c.queue("q");
    let young = c.bind("n0", q, &class(4), runs(90));
    let old = c.bind("n1", q, &class(4), runs(10));
    let half = urgent(&mut c, "q", 2, 1);
    assert_eq!(
        decide(&mut c, std::slice::from_ref(&half)),
        ([young].into(), 1)
    );
    let second = Demand {
        id: 98,
        ..half.clone()
    };
    assert_eq!(decide(&mut c, &[second]), (BTreeSet::new(), 1));
    let third = Demand { id: 97, ..half };
    assert_eq!(decide(&mut c, &[third]), ([old].into(), 1));
}

#[test]
fn evictions_stay_below_what_a_cycle_may_do() {
    let mut c = cluster(&[4], &[("q", QueueSpec::default())]);
    let q = c.queue("q");
    for _ in 0..4 {
        c.bind("n0", q, &class(1), runs(10));
    }
    let demand = urgent(&mut c, "q", 1, 4);
    let options = Options {
        evictions: 3,
        ..Options::default()
    };
    let outcome = cycle(&mut c, &[demand], 100, options);
    assert_eq!((outcome.evictions.len(), outcome.placements.len()), (3, 3));
}

#[test]
fn only_what_comes_later_in_the_order_of_the_queue_is_evicted() {
    let evicts = |order, run, victim_end, preempt_within| {
        let spec = QueueSpec {
            order,
            preempt_within,
            ..QueueSpec::default()
        };
        let mut c = cluster(&[4], &[("q", spec)]);
        let q = c.queue("q");
        let victim = Run {
            end: victim_end,
            ..runs(90)
        };
        c.bind("n0", q, &class(4), victim);
        let demand = Demand {
            run,
            ..urgent(&mut c, "q", 4, 1)
        };
        decide(&mut c, &[demand]).1 == 1
    };
    assert!(evicts(Order::Priority, 500, 200, true));
    assert!(!evicts(Order::Priority, 500, 200, false));
    assert!(!evicts(Order::Fifo, 500, 200, true));
    assert!(!evicts(Order::ShortestJobFirst, 1, 900, true));
    let srtf = Order::ShortestRemainingTimeFirst;
    assert!(evicts(srtf, 10, 900, true));
    // 10 s are lost and a restart takes its time: not for a gain that small.
    assert!(!evicts(srtf, 90, 200, true));
    assert!(!evicts(srtf, NEVER, 900, true), "nobody knows");
}

#[test]
fn tasks_that_repel_each_other_get_room_on_nodes_of_their_own() {
    let mut c = cluster(&[], &[("q", QueueSpec::default())]);
    let q = c.queue("q");
    for name in ["a", "b"] {
        let spec = NodeSpec {
            labels: BTreeMap::from([("host".to_string(), name.to_string())]),
            allocatable: cpu(4),
            ready: true,
            ..NodeSpec::default()
        };
        c.upsert_node(name, spec);
        c.bind(name, q, &class(4), runs(10));
    }
    let alone = TaskTerm {
        topology_key: "host".into(),
        selector: vec![Expression {
            key: "app".into(),
            operator: Operator::Exists,
            values: Vec::new(),
        }],
    };
    let repelling = Class::new(ClassSpec {
        requests: cpu(2),
        labels: BTreeMap::from([("app".to_string(), "x".to_string())]),
        anti_affinity: vec![alone],
        ..ClassSpec::default()
    });
    let demand = Demand {
        priority: 5,
        ..Demand::new(1, repelling, q, 2)
    };
    let (evicted, placed) = decide(&mut c, &[demand]);
    assert_eq!((evicted.len(), placed), (2, 2));
}

#[test]
fn a_whole_device_needs_all_its_parts_back() {
    let gpu = |amount| BTreeMap::from([("gpu".to_string(), amount)]);
    let part = |amount| {
        Class::new(ClassSpec {
            requests: gpu(amount),
            ..ClassSpec::default()
        })
    };
    let mut c = cluster(&[], &[("q", QueueSpec::default())]);
    let q = c.queue("q");
    let spec = NodeSpec {
        allocatable: gpu(3 * DEVICE),
        devices: BTreeSet::from(["gpu".to_string()]),
        ready: true,
        ..NodeSpec::default()
    };
    c.upsert_node("a", spec);
    let tasks = [10, 90, 20].map(|start| c.bind("a", q, &part(600), runs(start)));
    // 1,200 are free, but no device is.
    let demand = Demand {
        priority: 5,
        ..Demand::new(1, part(DEVICE), q, 1)
    };
    assert_eq!(decide(&mut c, &[demand]), ([tasks[1]].into(), 1));
}

#[test]
fn a_limit_of_the_queue_is_room_too() {
    let spec = QueueSpec {
        limit: cpu(4),
        ..QueueSpec::default()
    };
    let mut c = cluster(&[4, 4], &[("q", spec)]);
    let q = c.queue("q");
    let low = c.bind("n0", q, &class(4), runs(10));
    let demand = urgent(&mut c, "q", 4, 1);
    // A node is free, but not the queue.
    let outcome = cycle(&mut c, &[demand], 100, Options::default());
    assert_eq!(outcome.evictions.len(), 1);
    assert_eq!(&**c.node_name(outcome.placements[0].node), "n1");
    assert!(!c.may_start(outcome.placements[0].task));
    c.release(low);
    assert!(c.may_start(outcome.placements[0].task));
}

#[test]
fn a_guarantee_is_taken_back_from_borrowers_and_no_more() {
    let owed = |guarantee, reclaim| QueueSpec {
        guarantee: cpu(guarantee),
        reclaim,
        ..QueueSpec::default()
    };
    for (reclaim, evicted) in [(Reclaim::PreemptBorrowers, 2), (Reclaim::WhenIdle, 0)] {
        let queues = [("lender", owed(2, reclaim)), ("borrower", owed(2, reclaim))];
        let mut c = cluster(&[4], &queues);
        let borrower = c.queue("borrower");
        for _ in 0..4 {
            c.bind("n0", borrower, &class(1), runs(10));
        }
        let lender = c.queue("lender");
        let demand = Demand::new(1, class(1), lender, 4);
        assert_eq!(decide(&mut c, &[demand]).0.len(), evicted);
    }
}

fn job() -> impl Strategy<Value = Job> {
    (
        0..4usize,
        1..5i64,
        1..4u32,
        0..4i32,
        1..30i64,
        any::<bool>(),
        0..40i64,
    )
        .prop_map(|(queue, amount, count, priority, run, gang, arrives)| Job {
            queue,
            amount,
            count,
            priority,
            run: run * 20,
            gang,
            arrives: arrives * 10,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn evicted_tasks_come_back_and_everything_gets_done(
        jobs in prop::collection::vec(job(), 1..14)
    ) {
        live(&jobs);
    }
}
