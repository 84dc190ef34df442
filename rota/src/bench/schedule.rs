//! `rota bench schedule`: the scheduler core alone, one thread, no API: tasks of many arrays onto
//! nodes of many shapes, node names written out. Every placement by name is counted again
//! afterwards, node by node, without the scheduler's help.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use anyhow::bail;
use rota_scheduler::{
    Class, ClassSpec, Cluster, Demand, Expression, NodeSpec, Operator, Options, Policy, QueueSpec,
    TaskId, TaskTerm, cycle,
};
use serde_json::json;

use super::report::{Report, round};

/// Label by which the tasks of one array know each other.
const ARRAY: &str = "array";
const HOSTNAME: &str = "kubernetes.io/hostname";
const GIB: i64 = 1 << 30;

/// Flags of `rota bench schedule`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Nodes, of 24 shapes.
    #[arg(long, default_value_t = 50_000)]
    nodes: usize,
    /// Arrays, each of its own class.
    #[arg(long, default_value_t = 1000)]
    arrays: u32,
    /// Tasks in each array.
    #[arg(long, default_value_t = 1000)]
    tasks_per_array: u32,
    /// Every task is a demand of its own, with a priority and an age of its own.
    #[arg(long)]
    singles: bool,
    /// No two tasks of an array may be on one node.
    #[arg(long)]
    affinity: bool,
    /// End every task and place as many again this many times first, so that nodes become different.
    #[arg(long, default_value_t = 0)]
    turnover: u32,
    /// No two nodes have the same memory.
    #[arg(long)]
    unlike: bool,
    /// How nodes are chosen.
    #[arg(long, default_value = "binpack", value_parser = ["binpack", "spread", "fragmentation"])]
    placement: String,
    /// Seed of shapes, orders and ends.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Output format.
    #[arg(short, long, default_value = "json", value_parser = ["json"])]
    output: String,
}

/// Small, fast and seeded: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n.max(1)
    }
}

/// A task that runs: its node's name, its class, and what it holds.
struct Running {
    node: String,
    class: usize,
    task: TaskId,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> anyhow::Result<Report> {
    if args.nodes == 0 || args.arrays == 0 || args.tasks_per_array == 0 {
        bail!("--nodes, --arrays and --tasks-per-array must be above 0");
    }
    let mut random = Random(args.seed.wrapping_mul(2).wrapping_add(0x9E37_79B9));
    let nodes = nodes(args, &mut random);
    let classes = classes(args, &mut random);
    let mut cluster = Cluster::new();
    let policy = match args.placement.as_str() {
        "spread" => Policy::Spread,
        "fragmentation" => Policy::Fragmentation,
        _ => Policy::BinPack,
    };
    let spec = QueueSpec {
        policy,
        ..QueueSpec::default()
    };
    cluster.set_queue("bench", Some(spec));
    for (name, spec) in &nodes {
        cluster.upsert_node(name, spec.clone());
    }
    let mut running: Vec<Running> = Vec::new();
    for _ in 0..args.turnover {
        // Random departures of nine in ten, so that what stays is scattered.
        let keep = running.len() / 10;
        while running.len() > keep {
            let at = random.below(running.len() as u64) as usize;
            cluster.release(running.swap_remove(at).task);
        }
        let more = demands(args, &classes, &mut cluster, &mut random, running.len());
        place(&mut cluster, &more, &mut running);
    }
    if args.turnover > 0 {
        let keep = running.len() / 2;
        while running.len() > keep {
            let at = random.below(running.len() as u64) as usize;
            cluster.release(running.swap_remove(at).task);
        }
    }
    let waiting = demands(args, &classes, &mut cluster, &mut random, running.len());
    let tasks: u64 = waiting.iter().map(|(d, _)| u64::from(d.count)).sum();
    let before = running.len();
    let (wall, cpu) = (Instant::now(), cpu_seconds());
    let units = place(&mut cluster, &waiting, &mut running);
    let (wall, cpu) = (wall.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let placed = running.len() - before;
    // Where the kernel does not tell the time of the processor, that of the clock is an upper bound.
    let seconds = if cpu > 0.0 { cpu } else { wall };
    let wrong = recount(args, &nodes, &classes, &running);
    for sentence in wrong.iter().take(10) {
        eprintln!("error: {sentence}");
    }
    Ok(Report {
        json: json!({
            "tasks": tasks, "placed": placed, "seconds": round(seconds),
            "wall_seconds": round(wall),
            "decisions_per_s": (placed as f64 / seconds.max(1e-9)).round(),
            "rss_bytes": resident_bytes(), "work_units": units,
            "nodes": args.nodes, "arrays": args.arrays, "singles": args.singles,
            "affinity": args.affinity, "turnover": args.turnover, "unlike": args.unlike,
            "placement": args.placement, "seed": args.seed,
            "node_states": cluster.state_count(),
            "recounted": running.len(), "wrong": wrong.len(),
        }),
        sound: wrong.is_empty(),
    })
}

fn nodes(args: &Args, random: &mut Random) -> Vec<(String, NodeSpec)> {
    let one = |n: usize| {
        let cores = [16, 24, 32, 48, 64, 96, 96, 128][n % 8];
        let memory = cores * (2 + (n as i64 / 8) % 3 * 2) * GIB;
        let slip = if args.unlike {
            random.below(1 << 28) as i64
        } else {
            0
        };
        let name = format!("node-{n}");
        let spec = NodeSpec {
            labels: BTreeMap::from([
                (HOSTNAME.into(), name.clone()),
                // Every shape is in every zone.
                ("zone".into(), format!("z{}", n / 24 % 4)),
            ]),
            allocatable: BTreeMap::from([
                ("cpu".into(), cores * 1000),
                ("memory".into(), memory - slip),
            ]),
            ready: true,
            ..NodeSpec::default()
        };
        (name, spec)
    };
    (0..args.nodes).map(one).collect()
}

/// One class per array: 100m to 4 cpu, 256 MiB to 8 GiB; every eighth asks for a zone.
fn classes(args: &Args, random: &mut Random) -> Vec<Class> {
    let one = |i: u32| {
        let mut spec = ClassSpec {
            requests: BTreeMap::from([
                ("cpu".into(), 100 * (1 + random.below(40)) as i64),
                ("memory".into(), (GIB / 4) * (1 + random.below(32)) as i64),
            ]),
            ..ClassSpec::default()
        };
        if i % 8 == 7 {
            let zone = format!("z{}", random.below(4));
            spec.node_selector.insert("zone".into(), zone);
        }
        if args.affinity {
            let array = i.to_string();
            spec.labels.insert(ARRAY.into(), array.clone());
            spec.anti_affinity.push(TaskTerm {
                topology_key: HOSTNAME.into(),
                selector: vec![Expression {
                    key: ARRAY.into(),
                    operator: Operator::In,
                    values: vec![array],
                }],
            });
        }
        Class::new(spec)
    };
    (0..args.arrays).map(one).collect()
}

/// What waits, with the number of its class: all tasks that are asked for, less those that run.
fn demands(
    args: &Args,
    classes: &[Class],
    cluster: &mut Cluster,
    random: &mut Random,
    running: usize,
) -> Vec<(Demand, usize)> {
    let queue = cluster.queue("bench");
    let all = u64::from(args.arrays) * u64::from(args.tasks_per_array);
    let mut left = all.saturating_sub(running as u64);
    let mut out = Vec::new();
    for (i, class) in classes.iter().enumerate() {
        let count = u64::from(args.tasks_per_array).min(left) as u32;
        left -= u64::from(count);
        let each = if args.singles { 1 } else { count };
        let mut rest = count;
        while rest > 0 {
            let demand = Demand {
                priority: random.below(1000) as i32,
                created: random.below(1000) as i64,
                ..Demand::new(out.len() as u64, class.clone(), queue, each.min(rest))
            };
            rest -= demand.count;
            out.push((demand, i));
        }
    }
    out
}

/// One cycle; answers its work units.
fn place(cluster: &mut Cluster, waiting: &[(Demand, usize)], running: &mut Vec<Running>) -> u64 {
    let demands: Vec<Demand> = waiting.iter().map(|(d, _)| d.clone()).collect();
    let outcome = cycle(cluster, &demands, 0, Options::default());
    running.extend(outcome.placements.iter().map(|p| Running {
        node: cluster.node_name(p.node).to_string(),
        class: waiting[p.demand as usize].1,
        task: p.task,
    }));
    outcome.units
}

/// What is wrong with the placements, from names and requests alone.
fn recount(
    args: &Args,
    nodes: &[(String, NodeSpec)],
    classes: &[Class],
    running: &[Running],
) -> Vec<String> {
    let specs: HashMap<&str, &NodeSpec> = nodes.iter().map(|(n, s)| (n.as_str(), s)).collect();
    let mut used: HashMap<(&str, &str), i64> = HashMap::new();
    let mut of_array: HashMap<(&str, usize), u32> = HashMap::new();
    let mut wrong = Vec::new();
    for task in running {
        let class = classes[task.class].spec();
        for (resource, amount) in &class.requests {
            *used.entry((&task.node, resource)).or_default() += amount;
        }
        *of_array.entry((&task.node, task.class)).or_default() += 1;
        let labels = specs.get(task.node.as_str()).map(|s| &s.labels);
        let meets = |(k, v): (&String, &String)| labels.is_some_and(|l| l.get(k) == Some(v));
        if !class.node_selector.iter().all(meets) {
            wrong.push(format!(
                "a task is on {}, which has not its labels",
                task.node
            ));
        }
    }
    for ((node, resource), amount) in used {
        let has = specs.get(node).and_then(|s| s.allocatable.get(resource));
        if has.is_none_or(|has| amount > *has) {
            wrong.push(format!("{node} is given {amount} of {resource}"));
        }
    }
    if args.affinity {
        let twice = of_array.iter().filter(|(_, n)| **n > 1);
        wrong.extend(twice.map(|((node, _), n)| format!("{n} tasks of one array are on {node}")));
    }
    wrong
}

/// Processor time of this thread; 0 where the kernel does not tell.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    nanos.unwrap_or(0.0) / 1e9
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(change: impl Fn(&mut Args)) -> Args {
        let mut args = Args {
            nodes: 80,
            arrays: 20,
            tasks_per_array: 10,
            singles: false,
            affinity: false,
            turnover: 0,
            unlike: false,
            placement: "binpack".into(),
            seed: 3,
            output: "json".into(),
        };
        change(&mut args);
        args
    }

    #[test]
    fn every_form_places_all_that_fits_and_is_recounted() {
        for change in [
            |_: &mut Args| {},
            |a: &mut Args| a.singles = true,
            |a: &mut Args| a.affinity = true,
            |a: &mut Args| (a.turnover, a.unlike) = (3, true),
            |a: &mut Args| a.placement = "spread".into(),
        ] {
            let report = run(&args(change)).unwrap_or_else(|e| panic!("{e}"));
            assert!(report.sound);
            assert_eq!(
                report.json["tasks"], report.json["placed"],
                "{}",
                report.json
            );
        }
    }
}
