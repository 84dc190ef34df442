//! What preemption costs on 50,000 full nodes with a million tasks, run with
//! `cargo bench -p rota-scheduler --bench preempt`: a cycle with one demand that does not fit, when
//! nobody may be evicted, and for 1, 100 and 10,000 tasks when everybody may. Seconds are of
//! processor time.

use std::collections::BTreeMap;

use rota_scheduler::{Class, ClassSpec, Cluster, Demand, NodeSpec, Options, QueueSpec, Run, cycle};

const NODES: usize = 50_000;
const TASKS_PER_NODE: usize = 20;

/// Seconds of processor time that this thread has used. Falls back to 0 where the kernel does not tell.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    nanos.unwrap_or(0.0) / 1e9
}

fn class(cpu: i64, memory: i64) -> Class {
    Class::new(ClassSpec {
        requests: BTreeMap::from([("cpu".into(), cpu), ("memory".into(), memory)]),
        ..ClassSpec::default()
    })
}

/// Every node differs, and is nearly full.
fn full(preemptible: bool) -> Cluster {
    let mut cluster = Cluster::new();
    let queue = cluster.set_queue("q", Some(QueueSpec::default()));
    for n in 0..NODES {
        let name = format!("n{n}");
        let spec = NodeSpec {
            allocatable: BTreeMap::from([
                ("cpu".into(), 64_000),
                ("memory".into(), 256_000 + n as i64),
            ]),
            ready: true,
            ..NodeSpec::default()
        };
        cluster.upsert_node(&name, spec);
        for t in 0..TASKS_PER_NODE {
            let run = Run {
                preemptible,
                priority: (t % 3) as i32,
                ..Run::since(((n * 7 + t * 13) % 3600) as i64)
            };
            cluster.bind(&name, queue, &class(3_000, 10_000), run);
        }
    }
    cluster
}

fn main() {
    for preemptible in [false, true] {
        let mut cluster = full(preemptible);
        let queue = cluster.queue("q");
        for (id, count) in [(1, 1), (2, 1), (3, 100), (4, 10_000)] {
            let demand = Demand {
                priority: 5,
                ..Demand::new(id, class(8_000, 30_000), queue, count)
            };
            let before = cpu_seconds();
            let outcome = cycle(&mut cluster, &[demand], 4000, Options::default());
            println!(
                "preemptible {preemptible}, wanted {count}: placed {}, evicted {}, {:.6} s, {} units",
                outcome.placements.len(),
                outcome.evictions.len(),
                cpu_seconds() - before,
                outcome.units,
            );
        }
    }
}
