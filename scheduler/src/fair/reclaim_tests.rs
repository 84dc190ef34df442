//! Random moves that are allowed, one after the other, come to an end.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::reclaim::may_reclaim;
use crate::cluster::{Cluster, TaskId};
use crate::spec::{Class, ClassSpec, NodeSpec, QueueSpec, Run};

/// Most moves that are looked at: far more than the tasks could make without coming back.
const MOVES_MAX: usize = 2_000;

fn amounts(cpu: i64, memory: i64) -> BTreeMap<String, i64> {
    BTreeMap::from([("cpu".to_string(), cpu), ("memory".to_string(), memory)])
}

type Rule = (prop::sample::Index, bool, u32, i64, i64);

fn cluster(rules: &[Rule], tasks: &[prop::sample::Index], shape: (i64, i64)) -> (Cluster, Vec<TaskId>) {
    let mut cluster = Cluster::new();
    let node = NodeSpec {
        allocatable: amounts(60, 90),
        ready: true,
        ..NodeSpec::default()
    };
    cluster.upsert_node("n", node);
    for (n, (parent, has_parent, weight, cpu, memory)) in rules.iter().enumerate() {
        let spec = QueueSpec {
            parent: (*has_parent && n > 0).then(|| format!("q{}", parent.index(n.max(1)))),
            weight: *weight,
            guarantee: amounts(*cpu, *memory),
            ..QueueSpec::default()
        };
        cluster.set_queue(&format!("q{n}"), Some(spec));
    }
    let class = class(shape);
    let ids = tasks
        .iter()
        .map(|of| {
            let queue = cluster.queue(&format!("q{}", of.index(rules.len())));
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

    /// Every queue always wants more. Whatever order the moves are tried in, they end, and nobody
    /// loses its guarantee on the way.
    #[test]
    fn moves_end(
        rules in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<bool>(), 1..4u32, 0..12i64, 0..12i64), 2..7),
        tasks in prop::collection::vec(any::<prop::sample::Index>(), 1..25),
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
        let (mut moves, mut refused, mut turn) = (0, 0, start % 1000);
        // One round over all pairs without a move: nothing is allowed any more.
        while refused < ids.len() * queues {
            turn += 1;
            let at = turn % ids.len();
            let to = ((turn / ids.len()) % queues) as u32;
            let from = cluster.tasks.slots[cluster.tasks.slot_of(ids[at])].queue;
            let (q, n) = (|q: u32| cluster.queues[q as usize].clone(), requests.iter());
            let short = |q: u32| n.clone().any(|(r, _)| {
                cluster.queues[q as usize].used[*r as usize]
                    < i128::from(cluster.queues[q as usize].guarantee[*r as usize])
            });
            let was_short = short(from);
            let _ = q;
            if !may_reclaim(&cluster, from, &requests, to, &requests) {
                refused += 1;
                continue;
            }
            prop_assert!(!was_short, "taken from who lacks its guarantee");
            (refused, moves) = (0, moves + 1);
            prop_assert!(moves < MOVES_MAX, "moves do not end");
            cluster.release(ids[at]);
            let queue = crate::cluster::QueueId(to);
            ids[at] = cluster.bind("n", queue, &class(shape), Run::since(0));
        }
    }
}
