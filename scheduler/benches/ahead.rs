//! What a reservation costs a cycle: `cargo bench -p rota-scheduler --bench ahead`.
//!
//! 10,000 nodes of 40 CPUs with ten tasks each, all with a known end. A head that does not fit waits
//! for whole nodes. Between two cycles one task ends and one more comes. Milliseconds of processor
//! time of the first cycle, and the mean of those that follow in the best of five rounds.

use std::collections::BTreeMap;

use rota_scheduler::{
    Class, ClassSpec, Cluster, Demand, NodeSpec, Options, Order, QueueSpec, Run, TaskId, Time,
    cycle,
};

const NODES: usize = 10_000;
const TASKS: usize = 10;
const ROUNDS: usize = 5;
/// Per round: the kernel counts processor time in steps of some milliseconds.
const CYCLES: usize = 100;

/// Milliseconds of processor time that this thread has used: see the bench `cycle`.
fn cpu_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    nanos.unwrap_or(0.0) / 1e6
}

fn class(cpu: i64) -> Class {
    Class::new(ClassSpec {
        requests: BTreeMap::from([("cpu".to_string(), cpu), ("memory".to_string(), cpu)]),
        ..ClassSpec::default()
    })
}

fn main() {
    println!("| order | head's nodes | first cycle ms | next ones ms |");
    println!("|---|---|---|---|");
    for order in [Order::Fifo, Order::Priority] {
        for wide in [1, 100, 5_000] {
            measure(order, wide);
        }
    }
}

fn measure(order: Order, wide: u32) {
    let mut cluster = Cluster::new();
    let spec = QueueSpec {
        order,
        ..QueueSpec::default()
    };
    let queue = cluster.set_queue("q", Some(spec));
    let mut running: Vec<TaskId> = Vec::new();
    for n in 0..NODES {
        let name = n.to_string();
        let spec = NodeSpec {
            allocatable: BTreeMap::from([("cpu".to_string(), 40), ("memory".to_string(), 40)]),
            ready: true,
            ..NodeSpec::default()
        };
        cluster.upsert_node(&name, spec);
        for t in 0..TASKS {
            let run = Run {
                // Spread over about ten hours, none alike.
                end_max: 1_000_000 + ((n * TASKS + t) * 7919 % (NODES * TASKS)) as Time * 379,
                ..Run::since(0)
            };
            running.push(cluster.bind(&name, queue, &class(4), run));
        }
    }
    let head = Demand {
        run: 3_600_000,
        run_max: 3_600_000,
        gang: 1,
        min: wide,
        ..Demand::new(1, class(40), queue, wide)
    };
    let mut now = 1000;
    let mut one = || {
        let i = now as usize / 5;
        now += 5;
        cluster.release(running[i * 487 % running.len()]);
        let next = Demand {
            created: now,
            run: 600_000,
            run_max: 600_000,
            ..Demand::new(i as u64 + 2, class(4), queue, 1)
        };
        let outcome = cycle(&mut cluster, &[head.clone(), next], now, Options::default());
        assert_eq!(outcome.reservations.len(), 1);
        assert_eq!(outcome.placements.len(), 1);
    };
    let mut timed = |cycles: usize| {
        let before = cpu_ms();
        (0..cycles).for_each(|_| one());
        (cpu_ms() - before) / cycles as f64
    };
    let first = timed(1);
    let next = (0..ROUNDS).map(|_| timed(CYCLES)).fold(f64::MAX, f64::min);
    println!("| {order:?} | {wide} | {first:.2} | {next:.2} |");
}
