//! The bar of rules between tasks, run with `cargo bench -p rota-scheduler --bench affinity`: tasks
//! of 10,000 distinct Jobs on 5,000 nodes that have all become different, some that keep their own
//! tasks on different hosts, some that stay in one zone with others, some that keep another Job's
//! tasks away. Every placement is checked by plain counting. Prints one line each; seconds are of
//! processor time.

use std::collections::BTreeMap;

use rota_scheduler::{
    Class, ClassSpec, Cluster, Demand, Expression, NodeSpec, Operator, Options, QueueId, QueueSpec,
    Spread, TaskId, TaskTerm, cycle,
};

const NODES: usize = 5_000;
const ZONES: usize = 10;
const JOBS: u64 = 10_000;
const GIB: i64 = 1 << 30;
const HOST: &str = "kubernetes.io/hostname";

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

/// Seconds of processor time that this thread has used; 0 where the kernel does not tell.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos: Option<f64> = text.split(' ').next().and_then(|n| n.parse().ok());
    nanos.unwrap_or(0.0) / 1e9
}

/// What a Job asks of other tasks.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// Nothing.
    None,
    /// At most one of its own per host.
    RepelSelf,
    /// In a zone with tasks of this Job.
    Attract(u64),
    /// On no host with tasks of this Job.
    Repel(u64),
    /// Over zones, with a skew of at most 1.
    Even,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    id: u64,
    rule: Rule,
    tasks: u32,
}

fn term(key: &str, job: u64) -> TaskTerm {
    TaskTerm {
        topology_key: key.into(),
        selector: vec![Expression {
            key: "job".into(),
            operator: Operator::In,
            values: vec![format!("j{job}")],
        }],
    }
}

fn class(job: &Job, random: &mut Random) -> Class {
    let mut spec = ClassSpec {
        requests: BTreeMap::from([
            ("cpu".into(), 100 * (1 + random.next(40)) as i64),
            ("memory".into(), (1 + random.next(48)) as i64 * GIB / 8),
        ]),
        ..ClassSpec::default()
    };
    if !matches!(job.rule, Rule::None) {
        spec.namespace = "default".into();
        spec.labels.insert("job".into(), format!("j{}", job.id));
    }
    match job.rule {
        Rule::None => {}
        Rule::RepelSelf => spec.anti_affinity.push(term(HOST, job.id)),
        Rule::Attract(other) => spec.affinity.push(term("zone", other)),
        Rule::Repel(other) => spec.anti_affinity.push(term(HOST, other)),
        Rule::Even => spec.spread.push(Spread {
            term: term("zone", job.id),
            max_skew: 1,
            required: true,
        }),
    }
    Class::new(spec)
}

/// Jobs that get numbers from `from` on.
fn jobs(from: u64, count: u64, random: &mut Random) -> Vec<Job> {
    (from..from + count)
        .map(|id| {
            let earlier = |random: &mut Random| id.saturating_sub(1 + random.next(100));
            let rule = match random.next(10) {
                0..=5 => Rule::RepelSelf,
                6 => Rule::Attract(id),
                7 => Rule::Attract(earlier(random)),
                8 => Rule::Repel(earlier(random)),
                _ => Rule::Even,
            };
            Job {
                id,
                rule,
                tasks: 1 + random.next(10) as u32,
            }
        })
        .collect()
}

/// What runs, by plain counting: per Job the tasks per host.
#[derive(Default)]
struct Truth {
    on: BTreeMap<u64, BTreeMap<usize, u32>>,
    rules: BTreeMap<u64, Rule>,
    /// Jobs that keep this one away.
    repelled_by: BTreeMap<u64, Vec<u64>>,
}

impl Truth {
    fn is_on(&self, job: u64, node: usize) -> bool {
        self.on.get(&job).is_some_and(|n| n.contains_key(&node))
    }

    fn in_zones(&self, job: u64) -> [u32; ZONES] {
        let mut zones = [0; ZONES];
        for (node, count) in self.on.get(&job).into_iter().flatten() {
            zones[node % ZONES] += count;
        }
        zones
    }

    fn meet(&mut self, job: &Job) {
        self.rules.insert(job.id, job.rule);
        if let Rule::Repel(other) = job.rule {
            self.repelled_by.entry(other).or_default().push(job.id);
        }
    }

    fn place(&mut self, job: u64, node: usize) {
        if matches!(self.rules[&job], Rule::None) {
            return; // Has no label, so nobody sees it.
        }
        let legal = match self.rules[&job] {
            Rule::None => true,
            Rule::RepelSelf => !self.is_on(job, node),
            Rule::Repel(other) => !self.is_on(other, node),
            Rule::Attract(other) => {
                let zones = self.in_zones(other);
                zones[node % ZONES] > 0 || (other == job && zones.iter().all(|n| *n == 0))
            }
            Rule::Even => {
                let zones = self.in_zones(job);
                let least = zones.iter().min().copied().unwrap_or(0);
                zones[node % ZONES] <= least
            }
        };
        assert!(legal, "job {job} breaks its rule on node {node}");
        for other in self.repelled_by.get(&job).into_iter().flatten() {
            assert!(
                !self.is_on(*other, node),
                "job {job} is where {other} does not want it"
            );
        }
        *self.on.entry(job).or_default().entry(node).or_insert(0) += 1;
    }

    fn release(&mut self, job: u64, node: usize) {
        let nodes = self.on.entry(job).or_default();
        if let Some(count) = nodes.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                nodes.remove(&node);
            }
        }
    }
}

struct Bench {
    cluster: Cluster,
    queue: QueueId,
    random: Random,
    truth: Truth,
    running: Vec<(TaskId, u64, usize)>,
    next_job: u64,
}

impl Bench {
    fn new() -> Self {
        let mut cluster = Cluster::new();
        let queue = cluster.set_queue("q", Some(QueueSpec::default()));
        for n in 0..NODES {
            let cores = [16, 24, 32, 48, 64, 96, 96, 128][n % 8];
            let spec = NodeSpec {
                labels: BTreeMap::from([
                    (HOST.into(), format!("node-{n}")),
                    ("zone".into(), format!("z{}", n % ZONES)),
                ]),
                allocatable: BTreeMap::from([
                    ("cpu".into(), cores * 1000),
                    ("memory".into(), cores * (2 + (n as i64 / 8) % 3 * 2) * GIB),
                ]),
                ready: true,
                ..NodeSpec::default()
            };
            cluster.upsert_node(&format!("node-{n}"), spec);
        }
        Bench {
            cluster,
            queue,
            random: Random(5),
            truth: Truth::default(),
            running: Vec::new(),
            next_job: 1,
        }
    }

    /// Places Jobs in one cycle, with the node names written out as a caller would; processor
    /// seconds and tasks placed.
    fn run(&mut self, jobs: &[Job]) -> (f64, usize) {
        let demands: Vec<Demand> = jobs
            .iter()
            .map(|job| Demand {
                created: job.id as i64,
                ..Demand::new(job.id, class(job, &mut self.random), self.queue, job.tasks)
            })
            .collect();
        for job in jobs {
            self.truth.meet(job);
        }
        let start = cpu_seconds();
        let outcome = cycle(&mut self.cluster, &demands, 0, Options::default());
        let mut names = Vec::new();
        for p in &outcome.placements {
            names.extend_from_slice(self.cluster.node_name(p.node).as_bytes());
            names.push(b'\n');
        }
        let seconds = cpu_seconds() - start;
        for p in &outcome.placements {
            let name = self.cluster.node_name(p.node);
            let node = name.trim_start_matches("node-").parse().unwrap_or(0);
            let job = jobs[p.demand as usize].id;
            self.truth.place(job, node);
            self.running.push((p.task, job, node));
        }
        (seconds, outcome.placements.len())
    }

    fn release(&mut self, count: usize) -> f64 {
        let mut picks = Vec::with_capacity(count);
        for _ in 0..count {
            let at = self.random.next(self.running.len() as u64) as usize;
            picks.push(self.running.swap_remove(at));
        }
        let start = cpu_seconds();
        for (task, ..) in &picks {
            self.cluster.release(*task);
        }
        let seconds = cpu_seconds() - start;
        for (_, job, node) in picks {
            self.truth.release(job, node);
        }
        seconds
    }

    fn jobs(&mut self, count: u64) -> Vec<Job> {
        let from = self.next_job;
        self.next_job += count;
        jobs(from, count, &mut self.random)
    }

    /// Arrays of tasks without rules, to fill the nodes.
    fn plain(&mut self, arrays: u64, tasks: u32) -> Vec<Job> {
        let from = self.next_job;
        self.next_job += arrays;
        let ids = from..from + arrays;
        ids.map(|id| Job {
            id,
            rule: Rule::None,
            tasks,
        })
        .collect()
    }
}

fn main() {
    let mut bench = Bench::new();
    let fill = bench.plain(60, 1000);
    bench.run(&fill);
    let first = bench.jobs(JOBS / 2);
    bench.run(&first);
    // Ten-fold turnover: a tenth of all tasks leaves at random and about as many arrive.
    for _ in 0..100 {
        bench.release(bench.running.len() / 10);
        let fill = bench.plain(6, 1000);
        bench.run(&fill);
        let some = bench.jobs(JOBS / 20);
        bench.run(&some);
    }
    println!(
        "after turnover: {} tasks, {} states",
        bench.running.len(),
        bench.cluster.state_count()
    );
    let count = bench.running.len() / 2;
    let seconds = bench.release(count);
    println!(
        "releases: {count} in {seconds:.3} s, {:.0}/s",
        count as f64 / seconds
    );
    let all = bench.jobs(JOBS);
    let asked: u32 = all.iter().map(|j| j.tasks).sum();
    let (seconds, placed) = bench.run(&all);
    println!(
        "{JOBS} Jobs with rules: {placed} of {asked} tasks placed in {seconds:.3} s, {:.0}/s, {} states",
        placed as f64 / seconds,
        bench.cluster.state_count()
    );
    // The same as single tasks, a Job each.
    let count = bench.running.len() / 3;
    bench.release(count);
    let mut singles = bench.jobs(JOBS);
    for job in &mut singles {
        job.tasks = 1;
    }
    let (seconds, placed) = bench.run(&singles);
    println!(
        "{JOBS} Jobs of one task: {placed} placed in {seconds:.3} s, {:.0}/s",
        placed as f64 / seconds
    );
    // One class that repels itself, task by task, until no host is left.
    let id = bench.next_job;
    bench.next_job += 1;
    let job = Job {
        id,
        rule: Rule::RepelSelf,
        tasks: 1,
    };
    bench.truth.meet(&job);
    let demand = {
        let class = class(&job, &mut Random(3));
        Demand::new(id, class, bench.queue, 1)
    };
    let demands = vec![demand; NODES];
    let start = cpu_seconds();
    let outcome = cycle(&mut bench.cluster, &demands, 0, Options::default());
    let seconds = cpu_seconds() - start;
    for p in &outcome.placements {
        let name = bench.cluster.node_name(p.node);
        let node = name.trim_start_matches("node-").parse().unwrap_or(0);
        bench.truth.place(id, node);
    }
    println!(
        "{NODES} single tasks of one class that repels itself: {} placed in {seconds:.3} s, {:.0}/s",
        outcome.placements.len(),
        outcome.placements.len() as f64 / seconds
    );
}
