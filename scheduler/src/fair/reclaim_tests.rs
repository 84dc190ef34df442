//! Random moves that are allowed, one after the other, come to an end.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::reclaim::may_reclaim;
use crate::cluster::{Cluster, QueueId, TaskId};
use crate::spec::{Class, ClassSpec, NodeSpec, QueueSpec, Reclaim, Run};

/// Most moves that are looked at: far more than the tasks could make without coming back.
const MOVES_MAX: usize = 2_000;

fn amounts(cpu: i64, memory: i64) -> BTreeMap<String, i64> {
    BTreeMap::from([("cpu".to_string(), cpu), ("memory".to_string(), memory)])
}

/// Parent (an earlier one, modulo), weight, guarantee of CPU and memory.
type Rule = (Option<usize>, u32, i64, i64);

fn cluster(rules: &[Rule], tasks: &[usize], shape: (i64, i64)) -> (Cluster, Vec<TaskId>) {
    let mut cluster = Cluster::new();
    let node = NodeSpec {
        allocatable: amounts(60, 90),
        ready: true,
        ..NodeSpec::default()
    };
    cluster.upsert_node("n", node);
    for (n, (parent, weight, cpu, memory)) in rules.iter().enumerate() {
        let spec = QueueSpec {
            parent: parent.filter(|_| n > 0).map(|p| format!("q{}", p % n)),
            weight: *weight,
            guarantee: amounts(*cpu, *memory),
            reclaim: Reclaim::PreemptToShare,
            ..QueueSpec::default()
        };
        cluster.set_queue(&format!("q{n}"), Some(spec));
    }
    let class = class(shape);
    let ids = tasks
        .iter()
        .map(|of| {
            let queue = cluster.queue(&format!("q{}", of % rules.len()));
            cluster.bind("n", queue, &class, Run::since(0))
        })
        .collect();
    (cluster, ids)
}

fn class((cpu, memory): (i64, i64)) -> Class {
    Class::new(ClassSpec {
        requests: amounts(cpu, memory),
        ..ClassSpec::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Every queue always wants more. Whatever order the moves are tried in, they end.
    #[test]
    fn moves_end(
        rules in prop::collection::vec(
            (prop::option::of(0..60usize), 1..4u32, 0..12i64, 0..12i64), 2..7),
        tasks in prop::collection::vec(0..60usize, 1..25),
        shape in (1..4i64, 0..4i64),
        start in any::<usize>(),
    ) {
        let (mut cluster, mut ids) = cluster(&rules, &tasks, shape);
        let requests: Vec<(u32, i64)> = [("cpu", shape.0), ("memory", shape.1)]
            .iter()
            .filter(|(_, amount)| *amount > 0)
            .map(|(name, amount)| (cluster.resources.get(name).unwrap(), *amount))
            .collect();
        let queues = rules.len();
        let mut of: Vec<u32> = tasks.iter().map(|t| (t % queues) as u32).collect();
        let (mut moves, mut refused, mut turn) = (0, 0, start % 1000);
        // One round over all pairs without a move: nothing is allowed any more.
        while refused < ids.len() * queues {
            turn += 1;
            let task = turn % ids.len();
            let (from, to) = (of[task], ((turn / ids.len()) % queues) as u32);
            if !may_reclaim(&cluster, from, &requests, to, &requests) {
                refused += 1;
                continue;
            }
            (refused, moves) = (0, moves + 1);
            prop_assert!(moves < MOVES_MAX, "moves do not end");
            cluster.release(ids[task]);
            ids[task] = cluster.bind("n", QueueId(to), &class(shape), Run::since(0));
            of[task] = to;
        }
    }
}

#[test]
fn a_guarantee_is_taken_back_and_kept() {
    let rule = |cpu| (None, 1, cpu, 0);
    let (mut cluster, ids) = cluster(&[rule(2), rule(1)], &[], (1, 0));
    assert!(ids.is_empty());
    let (a, b) = (cluster.queue("q0"), cluster.queue("q1"));
    let task = class((1, 0));
    let mut bind = |queue| cluster.bind("n", queue, &task, Run::since(0));
    let held: Vec<TaskId> = (0..3).map(|_| bind(b)).collect();
    let one = [(cluster.resources.get("cpu").unwrap(), 1)];
    for id in held.iter().take(2) {
        assert!(may_reclaim(&cluster, b.0, &one, a.0, &one));
        cluster.leave(*id);
        cluster.bind("n", a, &task, Run::since(0));
    }
    // What is left is b's guarantee.
    assert!(!may_reclaim(&cluster, b.0, &one, a.0, &one));
    assert!(!may_reclaim(&cluster, a.0, &one, b.0, &one));
}

#[test]
fn weights_alone_level_out_and_past_use_evicts_nobody() {
    let rule = || (None, 1, 0, 0);
    let (mut cluster, _) = cluster(&[rule(), rule()], &[], (1, 0));
    let (a, b) = (cluster.queue("q0"), cluster.queue("q1"));
    let task = class((1, 0));
    for _ in 0..5 {
        cluster.bind("n", b, &task, Run::since(0));
    }
    let one = [(cluster.resources.get("cpu").unwrap(), 1)];
    assert!(may_reclaim(&cluster, b.0, &one, a.0, &one));
    // 5 - 3 is less than 0 + 3.
    let (gain, loss) = ([(one[0].0, 3)], [(one[0].0, 3)]);
    assert!(!may_reclaim(&cluster, b.0, &loss, a.0, &gain));
    // a held much until now: it would not come before b by its turn either.
    let spec = QueueSpec {
        half_life: 1000,
        reclaim: Reclaim::PreemptToShare,
        ..QueueSpec::default()
    };
    cluster.set_queue("q0", Some(spec));
    let ids: Vec<TaskId> = (0..40)
        .map(|_| cluster.bind("n", a, &task, Run::since(0)))
        .collect();
    cluster.advance(10_000);
    for id in ids {
        cluster.release(id);
    }
    assert!(!may_reclaim(&cluster, b.0, &one, a.0, &one));
}
