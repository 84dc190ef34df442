//! The shared order finds what a look at every state finds.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::Finder;
use crate::cluster::{Cluster, TaskId};
use crate::place::{Budget, Rater, scan};
use crate::score;
use crate::spec::{Class, ClassSpec, Demand, NodeSpec, Policy, QueueSpec};
use crate::{Options, cycle};

fn amounts(cpu: i64, memory: i64) -> BTreeMap<String, i64> {
    BTreeMap::from([("cpu".to_string(), cpu), ("memory".to_string(), memory)])
}

fn add_node(cluster: &mut Cluster, number: usize, (cpu, memory): (i64, i64)) {
    let spec = NodeSpec {
        allocatable: amounts(cpu, memory),
        labels: BTreeMap::from([("half".to_string(), (number % 2).to_string())]),
        ready: true,
        ..NodeSpec::default()
    };
    cluster.upsert_node(&format!("n{number}"), spec);
}

fn class(number: usize, (cpu, memory): (i64, i64)) -> Class {
    let mut spec = ClassSpec {
        requests: amounts(cpu, memory),
        ..ClassSpec::default()
    };
    if number.is_multiple_of(3) {
        spec.node_selector.insert("half".into(), "1".into());
    }
    Class::new(spec)
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// So many tasks of a class (modulo) come.
    Come(usize, u32),
    /// One task (modulo) leaves.
    Leave(usize),
    /// A node comes, or one of the first changes its size.
    Node(usize, (i64, i64)),
}

fn step() -> impl Strategy<Value = Step> {
    let size = (1..400i64, 1..4000i64);
    prop_oneof![
        4 => (any::<usize>(), 1..40u32).prop_map(|(class, count)| Step::Come(class, count)),
        4 => any::<usize>().prop_map(Step::Leave),
        1 => (0..400usize, size).prop_map(|(n, size)| Step::Node(n, size)),
    ]
}

/// The shared order's answer and the scan's, for a class.
fn both(cluster: &mut Cluster, class: &Class) -> (Option<u32>, Option<u32>) {
    let id = cluster.class(class);
    cluster.learn_profiles(id);
    let policy = score::of(Policy::BinPack);
    let mut finder = Finder::take(cluster, id, Policy::BinPack, policy);
    assert!(matches!(finder, Finder::Shared { .. }));
    let shape = cluster.classes.all[id as usize].shape;
    let shape = cluster.tasks.shapes.get(shape).clone();
    let rater = Rater::new(cluster, id, &shape, policy);
    let mut budget = Budget {
        left: u64::MAX,
        spent: 0,
    };
    let found = finder.best(&rater, &mut budget).map(|state| state.id);
    let scanned = scan(&rater);
    finder.give_back(&mut cluster.classes.all[id as usize], Policy::BinPack);
    (found, scanned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn the_shared_order_finds_what_a_scan_finds(
        nodes in prop::collection::vec((1..400i64, 1..4000i64), 1..300),
        sizes in prop::collection::vec((0..60i64, 0..900i64), 1..6),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut cluster = Cluster::new();
        let queue = cluster.set_queue("q", Some(QueueSpec::default()));
        for (n, size) in nodes.iter().enumerate() {
            add_node(&mut cluster, n, *size);
        }
        let classes: Vec<Class> = sizes.iter().enumerate().map(|(n, s)| class(n, *s)).collect();
        let mut running: Vec<TaskId> = Vec::new();
        for (id, step) in steps.into_iter().enumerate() {
            match step {
                Step::Come(class, count) => {
                    let class = &classes[class % classes.len()];
                    let (found, scanned) = both(&mut cluster, class);
                    prop_assert_eq!(found, scanned);
                    let demand = Demand::new(id as u64, class.clone(), queue, count);
                    let outcome = cycle(&mut cluster, &[demand], 0, Options::default());
                    running.extend(outcome.placements.iter().map(|p| p.task));
                }
                Step::Leave(task) if !running.is_empty() => {
                    let task = running.swap_remove(task % running.len());
                    cluster.release(task);
                }
                Step::Leave(_) => {}
                Step::Node(n, size) => add_node(&mut cluster, n, size),
            }
            prop_assert_eq!(crate::check::check(&cluster), Vec::<String>::new());
        }
    }
}
