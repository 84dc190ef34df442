//! Forecasts of small clusters whose future is plain to a reader.

use std::collections::BTreeMap;

use super::*;
use crate::spec::{Class, ClassSpec, NodeSpec, QueueSpec, Run};

/// So many nodes of one CPU, and a task on each of the first that is expected to end and has ended
/// by these moments.
fn cluster(nodes: usize, running: &[(Time, Time)]) -> Cluster {
    let mut cluster = Cluster::new();
    let queue = cluster.set_queue("q", Some(QueueSpec::default()));
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
    for (n, (end, end_max)) in running.iter().enumerate() {
        let run = Run {
            end: *end,
            end_max: *end_max,
            ..Run::since(0)
        };
        cluster.bind(&n.to_string(), queue, &class(), run);
    }
    cluster
}

fn class() -> Class {
    Class::new(ClassSpec {
        requests: BTreeMap::from([("cpu".to_string(), 1)]),
        ..ClassSpec::default()
    })
}

fn demand(cluster: &mut Cluster, id: u64, count: u32, run: (Time, Time)) -> Demand {
    Demand {
        created: id as Time,
        run: run.0,
        run_max: run.1,
        ..Demand::new(id, class(), cluster.queue("q"), count)
    }
}

fn starts(cluster: &mut Cluster, demands: &[Demand]) -> Vec<(Time, Time)> {
    let forecasts = forecast(cluster, demands, 10, u64::MAX);
    forecasts.iter().map(|f| (f.p50, f.p90)).collect()
}

#[test]
fn each_waits_for_what_runs_and_for_those_before_it() {
    let mut c = cluster(1, &[(20, 50)]);
    let demands = [
        demand(&mut c, 1, 1, (5, 100)),
        demand(&mut c, 2, 1, (5, 100)),
    ];
    assert_eq!(starts(&mut c, &demands), [(20, 50), (25, 150)]);
    assert!(deadline_feasible(25, 5, 30));
    assert!(!deadline_feasible(25, 5, 29));
}

#[test]
fn a_gang_waits_for_its_last_node_and_an_array_for_its_first() {
    let mut c = cluster(2, &[(20, 20), (40, 40)]);
    let array = demand(&mut c, 1, 100, (5, 5));
    let gang = Demand {
        gang: 1,
        min: 2,
        ..demand(&mut c, 1, 2, (5, 5))
    };
    assert_eq!(starts(&mut c, &[array]), [(20, 20)]);
    assert_eq!(starts(&mut c, &[gang]), [(40, 40)]);
}

#[test]
fn nothing_is_said_of_what_waits_for_tasks_without_an_end() {
    let mut c = cluster(1, &[(NEVER, NEVER)]);
    let demands = [demand(&mut c, 1, 1, (5, 5))];
    assert_eq!(starts(&mut c, &demands), [(NEVER, NEVER)]);
}
