//! The bars of the scheduler core: `cargo bench -p rota-scheduler --bench cycle -- [--short] [--only TEXT] [-o json] [--seed N]`.
//!
//! A million tasks in arrays on 50,000 nodes, fresh and after ten-fold turnover, several policies,
//! numbers of classes and shapes; 50,000 singles on 5,000 nodes; small changes on 10,000 nodes and
//! 1,000 queues. Seconds are of processor time, node names written out included, as a caller would.
//! After each row every placement by name is counted again, node by node, without the scheduler's
//! help: none may be over-allocated and selectors must hold.

use std::collections::{BTreeMap, HashMap};

use rota_scheduler::{
    Class, ClassSpec, Cluster, DEVICE, Demand, NodeSpec, Options, Policy, QueueId, QueueSpec,
    TaskId, cycle,
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

/// Resident memory in MiB; 0 where the kernel does not tell.
fn resident_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

const GIB: i64 = 1 << 30;

/// How alike nodes and tasks are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Likeness {
    /// A few kinds of nodes.
    Alike,
    /// Memory of nodes in single bytes: no two are alike, not even when empty.
    Unlike,
    /// The same of tasks, and a GPU on some of both.
    Odd,
}

/// What is measured.
#[derive(Clone, Copy)]
struct Case {
    policy: Policy,
    nodes: usize,
    tasks: u32,
    arrays: u32,
    classes: u64,
    fleet: Likeness,
}

struct Fleet {
    cluster: Cluster,
    specs: Vec<NodeSpec>,
    queue: QueueId,
    random: Random,
    /// Tasks that run: node, class, id.
    running: Vec<(u32, Class, TaskId)>,
    names: Vec<u8>,
    serial: u64,
}

impl Fleet {
    fn new(case: Case, seed: u64) -> Self {
        let mut random = Random(seed * 2 + 7);
        let mut cluster = Cluster::new();
        let spec = QueueSpec {
            policy: case.policy,
            ..QueueSpec::default()
        };
        let queue = cluster.set_queue("q", Some(spec));
        // Eight shapes, four zones.
        let specs = (0..case.nodes).map(|n| {
            let cores = [16, 24, 32, 48, 64, 96, 96, 128][n % 8];
            let memory = cores * (2 + (n as i64 / 8) % 3 * 2) * GIB;
            let slip = if case.fleet != Likeness::Alike {
                random.next(1 << 28) as i64
            } else {
                0
            };
            let gpus = if case.fleet == Likeness::Odd && n % 4 == 0 {
                8 * DEVICE
            } else {
                0
            };
            NodeSpec {
                labels: BTreeMap::from([
                    ("kubernetes.io/hostname".into(), format!("node-{n}")),
                    ("zone".into(), format!("z{}", n % 4)),
                    ("rota.dev/agent".into(), "true".into()),
                ]),
                allocatable: BTreeMap::from([
                    ("cpu".into(), cores * 1000),
                    ("memory".into(), memory - slip),
                    ("ephemeral-storage".into(), 200 * GIB),
                    ("gpu".into(), gpus),
                ]),
                devices: ["gpu".to_string()].into(),
                ready: true,
                ..NodeSpec::default()
            }
        });
        let specs: Vec<NodeSpec> = specs.collect();
        for (n, spec) in specs.iter().enumerate() {
            cluster.upsert_node(&format!("node-{n}"), spec.clone());
        }
        Fleet {
            cluster,
            specs,
            queue,
            random,
            running: Vec::new(),
            names: Vec::new(),
            serial: 0,
        }
    }

    fn classes(&mut self, case: Case) -> Vec<Class> {
        let odd = case.fleet == Likeness::Odd;
        let random = &mut self.random;
        let class = |i: u64| {
            let cpu = 100 * (1 + random.next(40)) as i64;
            let slip = if odd { random.next(1 << 20) as i64 } else { 0 };
            let mut spec = ClassSpec {
                requests: BTreeMap::from([
                    ("cpu".into(), cpu),
                    (
                        "memory".into(),
                        (1 + random.next(48)) as i64 * GIB / 8 + slip,
                    ),
                ]),
                ..ClassSpec::default()
            };
            if i.is_multiple_of(8) {
                spec.node_selector
                    .insert("zone".into(), format!("z{}", (i / 8) % 4));
            }
            if odd && i % 16 == 1 {
                let gpu = [250, 500, 1000, 2000][random.next(4) as usize];
                spec.requests.insert("gpu".into(), gpu);
            }
            Class::new(spec)
        };
        (0..case.classes).map(class).collect()
    }

    fn demands(&mut self, classes: &[Class], arrays: u32, each: u32) -> Vec<Demand> {
        let demand = |_| {
            self.serial += 1;
            Demand {
                priority: self.random.next(1000) as i32,
                created: self.random.next(1000) as i64,
                ..Demand::new(
                    self.serial,
                    classes[(self.serial % classes.len() as u64) as usize].clone(),
                    self.queue,
                    each,
                )
            }
        };
        (0..arrays).map(demand).collect()
    }

    /// One cycle; the node name of every task is written out. Seconds and tasks placed.
    fn run(&mut self, demands: &[Demand]) -> (f64, usize) {
        let start = cpu_seconds();
        let outcome = cycle(&mut self.cluster, demands, 0, Options::default());
        self.names.clear();
        for p in &outcome.placements {
            let name = self.cluster.node_name(p.node);
            self.names.extend_from_slice(name.as_bytes());
            self.names.push(b'\n');
        }
        let seconds = cpu_seconds() - start;
        let text = String::from_utf8_lossy(&self.names);
        for (name, p) in text.lines().zip(&outcome.placements) {
            let node = name.trim_start_matches("node-").parse().unwrap_or(u32::MAX);
            let class = demands[p.demand as usize].class.clone();
            self.running.push((node, class, p.task));
        }
        (seconds, outcome.placements.len())
    }

    /// Releases this many tasks, chosen at random.
    fn depart(&mut self, count: usize) {
        for _ in 0..count.min(self.running.len()) {
            let at = self.random.next(self.running.len() as u64) as usize;
            let (_, _, task) = self.running.swap_remove(at);
            self.cluster.release(task);
        }
    }

    /// Counts everything again; what is wrong, if anything.
    fn verify(&self) -> Result<(), String> {
        let mut used: HashMap<(u32, &str), i64> = HashMap::new();
        for (node, class, _) in &self.running {
            let spec = &self.specs[*node as usize];
            let carries = |(k, v): (&String, &String)| spec.labels.get(k) == Some(v);
            if !class.spec().node_selector.iter().all(carries) {
                return Err(format!("node-{node} does not carry what was asked"));
            }
            for (resource, amount) in &class.spec().requests {
                *used.entry((*node, resource)).or_insert(0) += amount;
            }
        }
        for ((node, resource), used) in used {
            if self.specs[node as usize].allocatable[resource] < used {
                return Err(format!("node-{node} is over-allocated in {resource}"));
            }
        }
        Ok(())
    }
}

/// One line of the table.
struct Row {
    name: String,
    placed: usize,
    seconds: f64,
    states: usize,
    ok: bool,
}

struct Table {
    /// Only rows whose names have this in them.
    only: String,
    json: bool,
    rows: Vec<Row>,
}

impl Table {
    fn add(&mut self, name: String, fleet: &Fleet, (seconds, placed): (f64, usize)) {
        let checked = fleet.verify();
        if let Err(wrong) = &checked {
            eprintln!("{name}: {wrong}");
        }
        let row = Row {
            name,
            placed,
            seconds,
            states: fleet.cluster.state_count(),
            ok: checked.is_ok(),
        };
        let rate = row.placed as f64 / row.seconds.max(1e-9);
        if self.json {
            println!(
                "{{\"case\":\"{}\",\"placed\":{},\"seconds\":{:.4},\"per_second\":{rate:.0},\"states\":{},\"resident_mib\":{},\"valid\":{}}}",
                row.name,
                row.placed,
                row.seconds,
                row.states,
                resident_mib(),
                row.ok
            );
        } else {
            println!(
                "{:<58} {:>9} {:>9.4} s {rate:>11.0}/s {:>7} states {:>6} MiB {}",
                row.name,
                row.placed,
                row.seconds,
                row.states,
                resident_mib(),
                if row.ok { "ok" } else { "WRONG" }
            );
        }
        self.rows.push(row);
    }
}

/// A fresh cluster is filled; then, if asked, a tenth of the tasks leaves and as much comes, a
/// hundred times; then half leaves and everything comes again.
fn fill(table: &mut Table, case: Case, seed: u64, rounds: u32) {
    let name = format!(
        "{:?}, {} nodes, {} tasks in {}, {} classes{}",
        case.policy,
        case.nodes,
        case.tasks,
        case.arrays,
        case.classes,
        match case.fleet {
            Likeness::Alike => "",
            Likeness::Unlike => ", unlike",
            Likeness::Odd => ", odd",
        }
    );
    if !name.contains(&table.only) {
        return;
    }
    let mut fleet = Fleet::new(case, seed);
    let classes = fleet.classes(case);
    let each = case.tasks / case.arrays;
    let demands = fleet.demands(&classes, case.arrays, each);
    let result = fleet.run(&demands);
    table.add(format!("{name}: fresh"), &fleet, result);
    if rounds == 0 {
        return;
    }
    for _ in 0..rounds {
        fleet.depart(fleet.running.len() / 10);
        let classes = fleet.classes(case);
        let demands = fleet.demands(&classes, case.arrays.div_ceil(10), each);
        fleet.run(&demands);
    }
    fleet.depart(fleet.running.len() / 2);
    let demands = fleet.demands(&classes, case.arrays, each);
    let result = fleet.run(&demands);
    table.add(format!("{name}: after turnover"), &fleet, result);
}

/// Small cycles on a full cluster: 100 tasks leave and 100 come, of 1,000 queues.
fn changes(table: &mut Table, seed: u64) {
    let name = "20 times 100 changes on 10000 nodes, 1000 queues";
    if !name.contains(&table.only) {
        return;
    }
    let case = Case {
        policy: Policy::BinPack,
        nodes: 10_000,
        tasks: 200_000,
        arrays: 1000,
        classes: 200,
        fleet: Likeness::Alike,
    };
    let mut fleet = Fleet::new(case, seed);
    let queues: Vec<QueueId> = (0..1000)
        .map(|q| {
            fleet
                .cluster
                .set_queue(&format!("q{q}"), Some(QueueSpec::default()))
        })
        .collect();
    let classes = fleet.classes(case);
    let demands = fleet.demands(&classes, case.arrays, 200);
    fleet.run(&demands);
    let mut all = (0.0, 0);
    for _ in 0..20 {
        fleet.depart(100);
        let mut demands = fleet.demands(&classes, 100, 1);
        for demand in &mut demands {
            demand.queue = queues[fleet.random.next(1000) as usize];
        }
        let (seconds, placed) = fleet.run(&demands);
        all = (all.0 + seconds, all.1 + placed);
    }
    // Twenty together, since the kernel counts processor time in steps of milliseconds.
    table.add(name.into(), &fleet, all);
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let has = |flag: &str| args.iter().any(|a| a == flag);
    let after = |flag: &str| args.iter().position(|a| a == flag).map(|i| args.get(i + 1));
    let short = has("--short");
    let seed = after("--seed").flatten().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or(0);
    let mut table = Table {
        only: after("--only").flatten().cloned().unwrap_or_default(),
        json: after("-o").flatten().is_some_and(|o| o == "json"),
        rows: Vec::new(),
    };
    let million = Case {
        policy: Policy::BinPack,
        nodes: 50_000,
        tasks: 1_000_000,
        arrays: 1000,
        classes: 64,
        fleet: Likeness::Alike,
    };
    if short {
        let small = Case {
            nodes: 1000,
            tasks: 20_000,
            arrays: 100,
            classes: 50,
            ..million
        };
        for policy in [Policy::BinPack, Policy::Spread, Policy::Fragmentation] {
            for fleet in [Likeness::Alike, Likeness::Unlike, Likeness::Odd] {
                fill(
                    &mut table,
                    Case {
                        policy,
                        fleet,
                        ..small
                    },
                    seed,
                    10,
                );
            }
        }
    } else {
        for (nodes, tasks) in [(1000, 1000), (1000, 10_000), (10_000, 100_000)] {
            let arrays = (tasks / 1000).max(10);
            let case = Case {
                nodes,
                tasks,
                arrays,
                classes: 50,
                ..million
            };
            fill(&mut table, case, seed, 100);
        }
        let distinct = Case {
            classes: 1000,
            ..million
        };
        let spread = Case {
            policy: Policy::Spread,
            ..million
        };
        let fragmentation = Case {
            policy: Policy::Fragmentation,
            ..million
        };
        let odd = Case {
            fleet: Likeness::Odd,
            ..distinct
        };
        let unlike = Case {
            fleet: Likeness::Unlike,
            ..distinct
        };
        for case in [million, distinct, spread, unlike, odd] {
            fill(&mut table, case, seed, 100);
        }
        fill(
            &mut table,
            Case {
                fleet: Likeness::Odd,
                ..spread
            },
            seed,
            100,
        );
        fill(
            &mut table,
            Case {
                fleet: Likeness::Odd,
                ..fragmentation
            },
            seed,
            0,
        );
        for (policy, classes) in [
            (Policy::BinPack, 64),
            (Policy::BinPack, 50_000),
            (Policy::Spread, 64),
        ] {
            let case = Case {
                policy,
                nodes: 5000,
                tasks: 50_000,
                arrays: 50_000,
                classes,
                fleet: Likeness::Alike,
            };
            fill(&mut table, case, seed, 0);
        }
        changes(&mut table, seed);
    }
    if table.rows.iter().any(|row| !row.ok) {
        std::process::exit(1);
    }
}
