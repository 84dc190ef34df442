//! Small queues whose best order is plain to a reader.

use std::collections::BTreeMap;

use crate::spec::{Backfill, Class, ClassSpec, NodeSpec, Order, QueueSpec, Run};
use crate::{Cluster, Demand, Options, Time, cycle};

use super::profile::Profile;

fn class() -> Class {
    Class::new(ClassSpec {
        requests: BTreeMap::from([("cpu".to_string(), 1)]),
        ..ClassSpec::default()
    })
}

/// Nodes of one CPU; the first ones are taken until these moments.
fn cluster(nodes: usize, busy: &[Time], spec: QueueSpec) -> Cluster {
    let mut cluster = Cluster::new();
    let queue = cluster.set_queue("q", Some(spec));
    for n in 0..nodes {
        cluster.upsert_node(
            &n.to_string(),
            NodeSpec {
                allocatable: BTreeMap::from([("cpu".to_string(), 1)]),
                ready: true,
                ..NodeSpec::default()
            },
        );
    }
    for (n, end) in busy.iter().enumerate() {
        let run = Run {
            end: *end,
            end_max: *end,
            ..Run::since(0)
        };
        cluster.bind(&n.to_string(), queue, &class(), run);
    }
    cluster
}

/// Demands (nodes, run), in order of arrival; answers which start now.
fn started(cluster: &mut Cluster, jobs: &[(u32, Time)]) -> Vec<u32> {
    let queue = cluster.queue("q");
    let demands: Vec<Demand> = jobs
        .iter()
        .zip(1..)
        .map(|((count, run), id)| Demand {
            created: id as Time,
            run: *run,
            run_max: *run,
            gang: id,
            min: *count,
            ..Demand::new(id, class(), queue, *count)
        })
        .collect();
    let outcome = cycle(cluster, &demands, 100, Options::default());
    let mut started: Vec<u32> = outcome.placements.iter().map(|p| p.demand).collect();
    started.dedup();
    started.sort_unstable();
    started.dedup();
    started
}

#[test]
fn many_short_ones_go_before_a_long_one_that_would_block_them() {
    // By arrival the first would take both nodes for 1000 and all others wait for it.
    let jobs = [(2, 1000), (2, 10), (2, 10), (2, 10)];
    let mut ours = cluster(2, &[], QueueSpec::default());
    assert_eq!(started(&mut ours, &jobs), [1]);
    let mut fifo = QueueSpec {
        order: Order::Fifo,
        ..QueueSpec::default()
    };
    assert_eq!(started(&mut cluster(2, &[], fifo.clone()), &jobs), [0]);
    fifo.order = Order::Priority;
    fifo.backfill = Backfill::Off;
    assert_eq!(started(&mut cluster(2, &[], fifo), &jobs), [0]);
}

#[test]
fn what_is_planned_for_later_leaves_a_free_node_alone() {
    // One node is free now and one from 110 on. The long one would take the free node until 600;
    // with it held back, the wide short ones go first.
    let jobs = [(1, 500), (2, 5), (2, 5), (2, 5), (2, 5)];
    let mut c = cluster(2, &[110], QueueSpec::default());
    assert_eq!(started(&mut c, &jobs), [0u32; 0]);
    // If all fits, nothing is held back.
    let mut c = cluster(3, &[], QueueSpec::default());
    assert_eq!(started(&mut c, &jobs[..2]), [0, 1]);
}

#[test]
fn a_unit_of_unknown_run_time_makes_no_plans() {
    let jobs = [(2, 1000), (2, 10), (2, 10), (2, crate::NEVER)];
    let mut c = cluster(2, &[], QueueSpec::default());
    assert_eq!(started(&mut c, &jobs), [0]);
}

#[test]
fn a_profile_books_the_earliest_gap_that_is_long_enough() {
    let mut profile = Profile::new(0, vec![1, 10]);
    profile.release(10, [1, 0].into_iter());
    profile.release(10, [1, 0].into_iter());
    assert_eq!(profile.book(&[2, 1], 5), Some(10));
    assert_eq!(profile.book(&[1, 1], 10), Some(0));
    // One of three is free from 10 to 15, all from then on.
    assert_eq!(profile.book(&[2, 1], 5), Some(15));
    assert_eq!(profile.book(&[1, 1], 5), Some(10));
    assert_eq!(profile.book(&[1, 7], 30), Some(15));
    assert_eq!(profile.book(&[1, 4], crate::NEVER), Some(45));
    assert_eq!(profile.book(&[4, 1], 1), None);
}
