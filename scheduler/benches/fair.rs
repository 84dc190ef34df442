//! What shares cost, run with `cargo bench -p rota-scheduler --bench fair`: a million tasks in a
//! thousand arrays of a thousand queues, flat and as a tree, and a small cycle among many queues
//! that have nothing to do. Prints one line each; seconds are of processor time.

use std::collections::BTreeMap;

use rota_scheduler::{
    Class, ClassSpec, Cluster, Demand, NodeSpec, Options, QueueId, QueueSpec, cycle,
};

/// Seconds of processor time that this thread has used. 0 where the kernel does not tell.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split(' ').next();
    first.and_then(|n| n.parse().ok()).unwrap_or(0.0) / 1e9
}

fn fleet(nodes: usize) -> Cluster {
    let mut cluster = Cluster::new();
    for n in 0..nodes {
        let cores = [16, 24, 32, 48, 64, 96, 96, 128][n % 8];
        let spec = NodeSpec {
            allocatable: BTreeMap::from([
                ("cpu".into(), cores * 1000),
                ("memory".into(), cores << 32),
            ]),
            ready: true,
            ..NodeSpec::default()
        };
        cluster.upsert_node(&format!("node-{n}"), spec);
    }
    cluster
}

/// `groups` queues with `each` queues below every one of them; one group: no level in between.
fn queues(cluster: &mut Cluster, groups: usize, each: usize) -> Vec<QueueId> {
    let mut out = Vec::new();
    for g in 0..groups {
        let parent = (groups > 1).then(|| format!("g{g}"));
        if let Some(name) = &parent {
            cluster.set_queue(name, Some(QueueSpec::default()));
        }
        for i in 0..each {
            let spec = QueueSpec {
                parent: parent.clone(),
                weight: 1 + (i % 3) as u32,
                ..QueueSpec::default()
            };
            out.push(cluster.set_queue(&format!("q{g}-{i}"), Some(spec)));
        }
    }
    out
}

fn class(i: usize) -> Class {
    Class::new(ClassSpec {
        requests: BTreeMap::from([
            ("cpu".into(), 500 + 100 * (i % 8) as i64),
            ("memory".into(), (1 + i as i64 / 8 % 8) << 29),
        ]),
        ..ClassSpec::default()
    })
}

/// Small cycles measured together.
const ROUNDS: usize = 200;

fn main() {
    for (groups, each, count) in [
        (1, 1000, 1000),
        (30, 33, 1000),
        (2, 500, 1000),
        (1, 10_000, 100),
        (2, 5_000, 100),
    ] {
        let mut cluster = fleet(50_000);
        let queues = queues(&mut cluster, groups, each);
        let demands: Vec<Demand> = queues
            .iter()
            .enumerate()
            .map(|(i, q)| Demand::new(i as u64, class(i), *q, count))
            .collect();
        let start = cpu_seconds();
        let outcome = cycle(&mut cluster, &demands, 0, Options::default());
        println!(
            "{groups} x {each} queues, {count} tasks each: {} placed in {:.3} s",
            outcome.placements.len(),
            cpu_seconds() - start
        );
    }
    for (groups, each) in [(1, 1_000), (1, 10_000), (100, 100)] {
        let mut cluster = fleet(5_000);
        let start = cpu_seconds();
        let queues = queues(&mut cluster, groups, each);
        let told = cpu_seconds() - start;
        let small = |from: usize, step: usize, count: u32| -> Vec<Demand> {
            let some = queues.iter().skip(from).step_by(step).enumerate();
            some.map(|(i, q)| Demand::new(i as u64, class(i), *q, count))
                .collect()
        };
        cycle(&mut cluster, &small(0, 1, 3), 0, Options::default());
        let step = queues.len() / 100;
        // The kernel counts in steps of some milliseconds: many cycles together.
        let start = cpu_seconds();
        for round in 0..ROUNDS {
            let demands = small(round % step, step, 1);
            cycle(&mut cluster, &demands, round as i64, Options::default());
        }
        println!(
            "{} queues told in {told:.3} s; a cycle of 100 changes: {:.3} ms",
            queues.len(),
            (cpu_seconds() - start) * 1e3 / ROUNDS as f64
        );
    }
}
