//! The bars of the scheduler core, run with `cargo bench -p rota-scheduler`:
//! a million tasks in arrays on 50,000 nodes (fresh, then after ten-fold turnover), and 50,000
//! singles on 5,000 nodes. Node names are written out, as a caller would. Prints one line each;
//! seconds are of processor time.

use std::collections::BTreeMap;

use rota_scheduler::{
    Class, ClassSpec, Cluster, Demand, NodeSpec, Options, Policy, QueueSpec, TaskId, cycle,
};

/// Small, fast, seeded: the bench must be the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// Seconds of processor time that this thread has used: on a shared machine the wall clock says
/// more about the neighbours. Falls back to 0 where the kernel does not tell.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos: f64 = text
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0.0);
    nanos / 1e9
}

const GIB: i64 = 1 << 30;

fn fleet(nodes: usize, policy: Policy) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.set_queue(
        "q",
        Some(QueueSpec {
            policy,
            ..QueueSpec::default()
        }),
    );
    // Eight shapes, four zones.
    for n in 0..nodes {
        let cores = [16, 24, 32, 48, 64, 96, 96, 128][n % 8];
        let spec = NodeSpec {
            labels: BTreeMap::from([
                ("kubernetes.io/hostname".into(), format!("node-{n}")),
                ("zone".into(), format!("z{}", n % 4)),
                ("rota.dev/agent".into(), "true".into()),
            ]),
            allocatable: BTreeMap::from([
                ("cpu".into(), cores * 1000),
                ("memory".into(), cores * (2 + (n as i64 / 8) % 3 * 2) * GIB),
                ("ephemeral-storage".into(), 200 * GIB),
                ("rota.dev/ports".into(), 12_000),
            ]),
            ready: true,
            ..NodeSpec::default()
        };
        cluster.upsert_node(&format!("node-{n}"), spec);
    }
    cluster
}

fn classes(count: u64, random: &mut Random) -> Vec<Class> {
    (0..count)
        .map(|i| {
            let cpu = 100 * (1 + random.next(40)) as i64;
            let mut spec = ClassSpec {
                requests: BTreeMap::from([
                    ("cpu".into(), cpu),
                    ("memory".into(), (1 + random.next(48)) as i64 * GIB / 8),
                ]),
                ..ClassSpec::default()
            };
            if i % 8 == 0 {
                spec.node_selector
                    .insert("zone".into(), format!("z{}", (i / 8) % 4));
            }
            Class::new(spec)
        })
        .collect()
}

/// One cycle; the node name of every task is written to `names`.
fn run(
    cluster: &mut Cluster,
    demands: &[Demand],
    names: &mut Vec<u8>,
    ids: &mut Vec<TaskId>,
) -> (f64, usize) {
    let start = cpu_seconds();
    let outcome = cycle(cluster, demands, 0, Options::default());
    names.clear();
    for p in &outcome.placements {
        names.extend_from_slice(cluster.node_name(p.node).as_bytes());
        names.push(b'\n');
    }
    let seconds = cpu_seconds() - start;
    ids.extend(outcome.placements.iter().map(|p| p.task));
    (seconds, outcome.placements.len())
}

fn arrays(
    classes: &[Class],
    queue: rota_scheduler::QueueId,
    arrays: u64,
    tasks: u32,
) -> Vec<Demand> {
    (0..arrays)
        .map(|i| Demand {
            created: i as i64,
            ..Demand::new(
                i,
                classes[(i % classes.len() as u64) as usize].clone(),
                queue,
                tasks,
            )
        })
        .collect()
}

fn main() {
    for (policy, kinds) in [
        (Policy::BinPack, 64),
        (Policy::BinPack, 1000),
        (Policy::Spread, 64),
    ] {
        let mut random = Random(7);
        let mut cluster = fleet(50_000, policy);
        let queue = cluster.queue("q");
        let demands = arrays(&classes(kinds, &mut random), queue, 1000, 1000);
        let (mut names, mut ids) = (Vec::new(), Vec::new());
        let (seconds, placed) = run(&mut cluster, &demands, &mut names, &mut ids);
        println!(
            "arrays {policy:?} {kinds} classes, fresh: {placed} placed in {seconds:.3} s, {} states",
            cluster.state_count()
        );
        // Ten-fold turnover: a tenth of all tasks leaves at random and as much work arrives, a hundred times.
        for round in 0..100u64 {
            for _ in 0..ids.len() / 10 {
                let at = random.next(ids.len() as u64) as usize;
                cluster.release(ids.swap_remove(at));
            }
            let some = arrays(&classes(kinds, &mut random), queue, 100, 1000);
            run(&mut cluster, &some, &mut names, &mut ids);
            if round == 99 {
                println!(
                    "  turnover done: {} tasks, {} states",
                    cluster.task_count(),
                    cluster.state_count()
                );
            }
        }
        for _ in 0..ids.len() / 2 {
            let at = random.next(ids.len() as u64) as usize;
            cluster.release(ids.swap_remove(at));
        }
        let (seconds, placed) = run(&mut cluster, &demands, &mut names, &mut ids);
        println!(
            "  after turnover, half of the tasks gone: {placed} placed in {seconds:.3} s, {} states",
            cluster.state_count()
        );
    }
    for (kinds, policy) in [
        (64, Policy::BinPack),
        (50_000, Policy::BinPack),
        (64, Policy::Spread),
    ] {
        let mut random = Random(11);
        let mut cluster = fleet(5_000, policy);
        let queue = cluster.queue("q");
        let kinds = classes(kinds, &mut random);
        let demands: Vec<Demand> = (0..50_000u64)
            .map(|i| Demand {
                priority: random.next(1000) as i32,
                created: random.next(1000) as i64,
                ..Demand::new(
                    i,
                    kinds[random.next(kinds.len() as u64) as usize].clone(),
                    queue,
                    1,
                )
            })
            .collect();
        let (mut names, mut ids) = (Vec::new(), Vec::new());
        let (seconds, placed) = run(&mut cluster, &demands, &mut names, &mut ids);
        println!(
            "singles {policy:?} {} classes: {placed} placed in {seconds:.3} s, {:.0}/s, {} states",
            kinds.len(),
            placed as f64 / seconds,
            cluster.state_count()
        );
    }
}
