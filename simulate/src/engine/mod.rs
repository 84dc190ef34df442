//! The event loop: ends, changes of the cluster, and submissions, in order of virtual time, with a
//! scheduling cycle after all that happens in one millisecond.

mod foretell;
mod life;
mod record;
mod scene;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use rota_scheduler::{
    Class, Cluster, Demand, NEVER, NodeId, NodeSpec, Options, QueueId, QueueSpec, TaskId, Time,
    cycle,
};

use self::foretell::Foresight;
pub use self::record::{Estimates, Fate, Record, Run, Settings};
use crate::account::{Account, dominant};
use crate::measures::{Measures, Totals};
use crate::nodes::Nodes;
use crate::order::Backfilling;
use crate::trace::events::{self, Event, Kind};
use crate::trace::{Change, Job, Trace};

/// Plays the trace.
pub fn run(trace: &Trace, nodes: &Nodes, settings: &Settings) -> Run {
    let mut sim = Sim::new(trace, nodes, settings);
    while let Some(now) = sim.next_time() {
        sim.step(now);
    }
    sim.finish()
}

/// A job's place in the simulation.
struct State {
    record: Record,
    queue: QueueId,
    owner: usize,
    /// Number of its owner and app together.
    kind: u64,
    /// Dominant share of one task.
    share: i64,
    /// Tasks from this index on have never started.
    fresh: u32,
    /// Tasks that wait again, and how much of their work is saved.
    again: BTreeMap<u32, Time>,
    running: u32,
    /// Since when it waits without any task running.
    since: Time,
    /// [`Account::load_time`] when it came.
    load_before: f64,
}

impl State {
    fn waiting(&self) -> u32 {
        self.record.tasks - self.fresh + self.again.len() as u32
    }
}

/// A task that runs.
struct Task {
    job: usize,
    index: u32,
    node: NodeId,
    start: Time,
    /// Work done before this start.
    done: Time,
}

struct Sim<'a> {
    trace: &'a Trace,
    settings: &'a Settings,
    cluster: Cluster,
    /// All nodes that there ever are, with nothing on them: what does not fit here never fits.
    empty: Cluster,
    fits: HashMap<(Class, u32, QueueId), bool>,
    queues: HashMap<String, QueueId>,
    owners: HashMap<&'a str, usize>,
    kinds: HashMap<(&'a str, &'a str), u64>,
    learnt: rota_scheduler::estimate::Estimates,
    foresight: Foresight,
    resources: Vec<String>,
    devices: BTreeSet<String>,
    /// The nodes that are there.
    specs: BTreeMap<String, NodeSpec>,
    states: Vec<State>,
    /// Numbers of jobs with tasks to start, in order of submission.
    waiting: Vec<usize>,
    tasks: BTreeMap<TaskId, Task>,
    ends: BinaryHeap<Reverse<(Time, TaskId)>>,
    next_job: usize,
    next_change: usize,
    account: Account,
    totals: Totals,
    log: Vec<Event>,
}

impl<'a> Sim<'a> {
    fn new(trace: &'a Trace, nodes: &Nodes, settings: &'a Settings) -> Self {
        let mut sim = Sim {
            trace,
            settings,
            cluster: Cluster::new(),
            empty: Cluster::new(),
            fits: HashMap::new(),
            queues: HashMap::new(),
            owners: HashMap::new(),
            kinds: HashMap::new(),
            learnt: rota_scheduler::estimate::Estimates::new(),
            foresight: Foresight::new(),
            resources: Vec::new(),
            devices: BTreeSet::new(),
            specs: BTreeMap::new(),
            states: Vec::with_capacity(trace.jobs.len()),
            waiting: Vec::new(),
            tasks: BTreeMap::new(),
            ends: BinaryHeap::new(),
            next_job: 0,
            next_change: 0,
            account: Account::default(),
            totals: Totals::default(),
            log: Vec::new(),
        };
        for (_, change) in &trace.changes {
            match change {
                Change::Node(name, spec) => {
                    sim.empty.upsert_node(name, spec.clone());
                }
                Change::Queue(name, Some(spec)) => {
                    sim.empty.set_queue(name, Some(spec.clone()));
                }
                _ => {}
            }
        }
        for (name, spec) in nodes {
            sim.empty.upsert_node(name, spec.clone());
            sim.change(0, &Change::Node(name.clone(), spec.clone()));
        }
        sim
    }

    fn next_time(&self) -> Option<Time> {
        let job = self.trace.jobs.get(self.next_job).map(|j| j.submit);
        let change = self.trace.changes.get(self.next_change).map(|c| c.0);
        let end = self.ends.peek().map(|Reverse((time, _))| *time);
        [job, change, end].into_iter().flatten().min()
    }

    fn step(&mut self, now: Time) {
        if self.next_job == 0 && self.tasks.is_empty() {
            self.account.begin(now);
        } else {
            self.account.advance(now);
        }
        while let Some(Reverse((time, id))) = self.ends.peek().copied()
            && time <= now
        {
            self.ends.pop();
            self.end(now, id);
        }
        while let Some((time, change)) = self.trace.changes.get(self.next_change)
            && *time <= now
        {
            self.next_change += 1;
            self.change(now, change);
        }
        while let Some(job) = self.trace.jobs.get(self.next_job)
            && job.submit <= now
        {
            self.submit(now, job);
            self.next_job += 1;
        }
        self.schedule(now);
        if self.next_job == self.trace.jobs.len() && self.totals.fragmentation.is_none() {
            self.totals.fragmentation = Some(self.fragmentation());
        }
    }

    fn submit(&mut self, now: Time, job: &'a Job) {
        let number = self.next_job;
        let queue = self.queue(now, &job.queue);
        let owners = self.owners.len();
        let owner = *self.owners.entry(&job.owner).or_insert(owners);
        let kinds = self.kinds.len() as u64;
        let kind = *self.kinds.entry((&job.owner, &job.app)).or_insert(kinds);
        let share = dominant(&self.cluster, job.class.spec());
        let longest = (0..job.runs.len() as u32).map(|i| job.run(i)).max();
        let mut state = State {
            record: Record {
                id: job.id.clone(),
                tasks: job.count,
                submit: job.submit,
                start: None,
                end: None,
                waited: 0,
                run: longest.unwrap_or(0),
                fate: Fate::Waiting,
                evictions: 0,
                nodes: Vec::new(),
                forecast: None,
                load: 1.0,
            },
            queue,
            owner,
            kind,
            share,
            fresh: 0,
            again: BTreeMap::new(),
            running: 0,
            since: now,
            load_before: self.account.load_time(),
        };
        if self.settings.log {
            let submit = events::submitted(job);
            self.tell(now, Kind::Submit(submit));
        }
        if job.impatient || self.ever_fits(job, queue) {
            self.account
                .want(owner, share.saturating_mul(i64::from(job.count)));
            self.waiting.push(number);
        } else {
            state.record.fate = Fate::Rejected;
        }
        self.states.push(state);
    }

    /// Whether the empty cluster would take the job (of one that need not start whole, one task).
    fn ever_fits(&mut self, job: &Job, queue: QueueId) -> bool {
        let need = job.min.max(1);
        let key = (job.class.clone(), need, queue);
        if let Some(fits) = self.fits.get(&key) {
            return *fits;
        }
        let queue = self.empty.queue(&job.queue);
        let demand = Demand {
            gang: 1,
            min: need,
            ..Demand::new(1, job.class.clone(), queue, need)
        };
        let placed = cycle(&mut self.empty, &[demand], 0, Options::default()).placements;
        for placement in &placed {
            self.empty.release(placement.task);
        }
        let fits = placed.len() >= need as usize;
        self.fits.insert(key, fits);
        fits
    }

    /// The queue of this name; one that the trace does not bring has the settings' rules.
    fn queue(&mut self, now: Time, name: &str) -> QueueId {
        if let Some(id) = self.queues.get(name) {
            return *id;
        }
        let mut spec = QueueSpec::default();
        self.rules(&mut spec);
        self.empty.set_queue(name, Some(spec.clone()));
        if self.settings.log {
            let kind = events::changed(&Change::Queue(name.into(), Some(spec.clone())));
            self.log.extend(kind.map(|kind| Event { time: now, kind }));
        }
        let id = self.cluster.set_queue(name, Some(spec));
        self.queues.insert(name.into(), id);
        id
    }

    fn rules(&self, spec: &mut QueueSpec) {
        self.settings.preset.apply(spec);
        spec.policy = self.settings.policy;
    }

    fn change(&mut self, now: Time, change: &Change) {
        match change {
            Change::Node(name, spec) => {
                let was = self.cluster.node(name);
                let id = self.cluster.upsert_node(name, spec.clone());
                debug_assert!(was.is_none_or(|was| was == id));
                for resource in spec.allocatable.keys() {
                    if !self.resources.contains(resource) {
                        self.resources.push(resource.clone());
                    }
                }
                self.devices.extend(spec.devices.iter().cloned());
                self.specs.insert(name.clone(), spec.clone());
            }
            Change::NodeGone(name) => {
                self.specs.remove(name);
                if let Some(node) = self.cluster.node(name) {
                    let lost: Vec<TaskId> = self.cluster.tasks_on(node).collect();
                    self.cluster.remove_node(name);
                    for id in lost {
                        self.lose(now, id);
                    }
                }
            }
            Change::Queue(name, spec) => {
                let mut spec = spec.clone();
                if let Some(spec) = &mut spec
                    && !self.settings.keep_queues
                {
                    self.rules(spec);
                }
                let id = self.cluster.set_queue(name, spec);
                self.queues.insert(name.clone(), id);
            }
            Change::Cancel(job) => self.cancel(now, *job),
        }
        for resource in &self.resources {
            let total = self.cluster.total(resource);
            self.account.set_capacity(resource, total);
        }
        if self.settings.log
            && let Some(kind) = events::changed(change)
        {
            self.tell(now, kind);
        }
    }

    fn schedule(&mut self, now: Time) {
        if self.settings.preset.backfilling == Backfilling::Strict {
            while let Some(first) = self.waiting.first().copied() {
                self.decide(now, &[first]);
                if self.waiting.first() == Some(&first) {
                    break;
                }
            }
            self.drop_impatient();
        } else if !self.waiting.is_empty() {
            let waiting = self.waiting.clone();
            self.decide(now, &waiting);
            self.drop_impatient();
            self.foretell(now);
        }
    }

    /// Of what a task did since its start, what an eviction now does not lose.
    fn kept(&self, task: &Task, now: Time) -> Time {
        let ran = now - task.start;
        match self.settings.checkpoint {
            0 => 0,
            every => ran - ran % every,
        }
    }

    /// Asks when those will start that wait since this cycle.
    fn foretell(&mut self, now: Time) {
        let waits = |job: &usize| self.states[*job].record.start.is_none();
        let waiting: Vec<usize> = self.waiting.iter().copied().filter(waits).collect();
        let new = |job: &usize| self.states[*job].record.forecast.is_none();
        if !waiting.iter().any(new) {
            return;
        }
        let demands: Vec<Demand> = waiting.iter().map(|job| self.demand(*job)).collect();
        let states = &mut self.states;
        self.foresight
            .look(&mut self.cluster, now, &waiting, &demands, states);
    }

    fn decide(&mut self, now: Time, jobs: &[usize]) {
        let demands: Vec<Demand> = jobs.iter().map(|job| self.demand(*job)).collect();
        let outcome = cycle(&mut self.cluster, &demands, now, Options::default());
        self.totals.units += outcome.units;
        // Evicted tasks are gone at once here, so whoever waits for them starts in the same moment.
        for eviction in &outcome.evictions {
            self.evict(now, eviction.task);
        }
        for placement in &outcome.placements {
            self.start(now, jobs[placement.demand as usize], placement);
        }
        self.waiting.retain(|job| {
            let state = &self.states[*job];
            state.record.fate == Fate::Waiting && state.waiting() > 0
        });
    }

    /// How long a task of the job runs likely and almost surely.
    fn predict(&self, job: &Job, kind: u64) -> (Time, Time) {
        let limit = (job.limit != NEVER).then_some(job.limit);
        let estimate = self.learnt.predict(kind, limit);
        estimate.map_or((job.limit, job.limit), |e| (e.p50, e.p95))
    }

    fn demand(&self, number: usize) -> Demand {
        let job = &self.trace.jobs[number];
        let state = &self.states[number];
        let (likely, surely) = match self.settings.estimates {
            Estimates::User => (job.limit, job.limit),
            Estimates::Learnt => self.predict(job, state.kind),
            Estimates::Exact => (state.record.run, state.record.run),
        };
        // What is left of the task that has most to do.
        let done = if state.fresh < job.count {
            0
        } else {
            state.again.values().copied().min().unwrap_or(0)
        };
        let left = |run: Time| {
            if run == NEVER {
                NEVER
            } else {
                (run - done).max(1)
            }
        };
        Demand {
            owner: state.owner as u64,
            priority: job.priority,
            created: job.submit,
            run: left(likely),
            run_max: left(surely),
            gang: if job.min > 0 { number as u64 + 1 } else { 0 },
            min: job.min.saturating_sub(state.running).min(state.waiting()),
            preemptible: self.settings.preset.preemptive,
            checkpoint: self.settings.checkpoint,
            ..Demand::new(
                number as u64 + 1,
                job.class.clone(),
                state.queue,
                state.waiting(),
            )
        }
    }

    fn tell(&mut self, time: Time, kind: Kind) {
        self.log.push(Event { time, kind });
    }

    fn finish(self) -> Run {
        let records: Vec<Record> = self.states.into_iter().map(|s| s.record).collect();
        let mut totals = self.totals;
        totals.unreadable = self.trace.rejected.values().sum();
        totals.utilization = self.account.utilization();
        totals.jain = self.account.jain();
        // Tasks that stay for ever have no mean over time: what they hold in the end counts.
        let stay = self.trace.jobs.iter().any(|j| j.impatient);
        totals.gpu = if stay {
            self.account.held_now(self.devices.into_iter())
        } else {
            let shares = self
                .devices
                .iter()
                .filter_map(|d| totals.utilization.get(d));
            shares.copied().reduce(f64::max)
        };
        let measures = Measures::of(&records, &totals);
        Run {
            records,
            measures,
            log: self.log,
        }
    }
}
