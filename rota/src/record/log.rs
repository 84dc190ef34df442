//! [`Log`]: from what is seen of a cluster to the lines of an event log. Pure; the same conversions
//! as placement's decide what a node, a queue or a task is.
//!
//! A job of the log is a Job from the moment at which it may start (not suspended, nothing before it)
//! until it has finished. What the log has no words for is left out: how many tasks may run at once,
//! gangs of several Jobs, affinity beyond one list of values per label, and changes of a Job.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use rota_api::index_set::IndexSet;
use rota_api::{Job, JobPhase, JobType, Queue, Resources, Task};
use rota_controllers::lifecycle;
use rota_controllers::placement::fold::{End, end_of};
use rota_controllers::placement::need;
use rota_controllers::placement::node::node_spec;
use rota_controllers::placement::rules::Whose;
use rota_scheduler::{Class, NEVER, Operator, Time};
use rota_simulate::trace::events::{self, Event, Kind};
use rota_simulate::trace::{self, Change};

/// What a watch tells of one kind.
pub enum Seen<K> {
    /// All that there is; what is not in it is gone.
    All(Vec<K>),
    /// It came or was changed.
    Is(K),
    /// It is gone; how it was last.
    Gone(K),
}

/// A Job in the log.
struct Recorded {
    /// Its name there.
    id: String,
    tasks: u32,
    /// Indexes that were done before it came into the log; the others are counted from 0.
    before: IndexSet,
    /// Numbers of indexes where some were done before.
    numbers: HashMap<u32, u32>,
    /// Numbers of tasks that run, by name.
    running: HashMap<String, u32>,
    /// Tasks that ended for good.
    ended: HashSet<u32>,
    /// Nothing of it is told any more.
    closed: bool,
}

impl Recorded {
    fn number(&mut self, index: u32) -> u32 {
        if self.before.is_empty() {
            return index;
        }
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        *self.numbers.entry(index).or_insert(next)
    }
}

/// The log as far as it is written, and what has to be known to go on.
#[derive(Default)]
pub struct Log {
    last: Time,
    nodes: BTreeMap<String, Kind>,
    queues: BTreeMap<String, Kind>,
    /// Default requests by Queue.
    defaults: BTreeMap<String, Option<Resources>>,
    /// By uid.
    jobs: HashMap<String, Recorded>,
    /// Tasks whose Job is not known (yet), by its uid.
    early: HashMap<String, BTreeMap<String, Task>>,
    /// Names of jobs that are in the log.
    taken: HashSet<String>,
    lines: Vec<Event>,
}

impl Log {
    /// Goes on after what is in a file: jobs that it leaves open are given up, since what became of
    /// them was not seen; those that still run come anew under another name.
    pub fn after(text: &str, now: Time) -> Result<Log, serde_json::Error> {
        let mut log = Log::default();
        let mut open: BTreeMap<String, u32> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let event: Event = serde_json::from_str(line)?;
            log.last = log.last.max(event.time);
            match &event.kind {
                Kind::Node(node) if node.gone => drop(log.nodes.remove(&node.name)),
                Kind::Node(node) => drop(log.nodes.insert(node.name.clone(), event.kind)),
                Kind::Queue(queue) if queue.gone => drop(log.queues.remove(&queue.name)),
                Kind::Queue(queue) => drop(log.queues.insert(queue.name.clone(), event.kind)),
                Kind::Submit(job) => {
                    log.taken.insert(job.job.clone());
                    open.insert(job.job.clone(), job.tasks.unwrap_or(1));
                }
                Kind::End { job, .. } => {
                    if let Some(left) = open.get_mut(job) {
                        *left = left.saturating_sub(1);
                    }
                }
                Kind::Cancel { job } => drop(open.remove(job)),
                Kind::Start { .. } | Kind::Evict { .. } => {}
            }
        }
        open.retain(|_, left| *left > 0);
        for job in open.into_keys() {
            log.push(now, Kind::Cancel { job });
        }
        Ok(log)
    }

    /// Lines that are new since the last call.
    pub fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.lines)
    }

    /// A clock that is set back does not bring the log out of order.
    fn push(&mut self, now: Time, kind: Kind) {
        self.last = self.last.max(now);
        let time = self.last;
        self.lines.push(Event { time, kind });
    }

    /// Nodes.
    pub fn nodes(&mut self, now: Time, seen: Seen<Node>) {
        match seen {
            Seen::Is(node) => {
                let name = node.name_any();
                let change = Change::Node(name.clone(), node_spec(&node));
                if let Some(kind) = events::changed(&change)
                    && self.nodes.get(&name) != Some(&kind)
                {
                    self.nodes.insert(name, kind.clone());
                    self.push(now, kind);
                }
            }
            Seen::Gone(node) => self.node_gone(now, &node.name_any()),
            Seen::All(nodes) => {
                let there: BTreeSet<String> = nodes.iter().map(ResourceExt::name_any).collect();
                let gone = self.nodes.keys().filter(|name| !there.contains(*name));
                for name in gone.cloned().collect::<Vec<_>>() {
                    self.node_gone(now, &name);
                }
                nodes.into_iter().for_each(|n| self.nodes(now, Seen::Is(n)));
            }
        }
    }

    fn node_gone(&mut self, now: Time, name: &str) {
        if self.nodes.remove(name).is_some()
            && let Some(kind) = events::changed(&Change::NodeGone(name.into()))
        {
            self.push(now, kind);
        }
    }

    /// Queues.
    pub fn queues(&mut self, now: Time, seen: Seen<Queue>) {
        match seen {
            Seen::Is(queue) => {
                let name = queue.name_any();
                let change = Change::Queue(name.clone(), Some(need::queue(&queue.spec)));
                self.defaults
                    .insert(name.clone(), queue.spec.default_resources);
                if let Some(kind) = events::changed(&change)
                    && self.queues.get(&name) != Some(&kind)
                {
                    self.queues.insert(name, kind.clone());
                    self.push(now, kind);
                }
            }
            Seen::Gone(queue) => self.queue_gone(now, &queue.name_any()),
            Seen::All(queues) => {
                let there: BTreeSet<String> = queues.iter().map(ResourceExt::name_any).collect();
                let gone = self.queues.keys().filter(|name| !there.contains(*name));
                for name in gone.cloned().collect::<Vec<_>>() {
                    self.queue_gone(now, &name);
                }
                for queue in queues {
                    self.queues(now, Seen::Is(queue));
                }
            }
        }
    }

    fn queue_gone(&mut self, now: Time, name: &str) {
        if self.queues.remove(name).is_some()
            && let Some(kind) = events::changed(&Change::Queue(name.into(), None))
        {
            self.push(now, kind);
        }
    }

    /// Jobs.
    pub fn jobs(&mut self, now: Time, seen: Seen<Job>) {
        match seen {
            Seen::Is(job) => self.job(now, &job),
            Seen::Gone(job) => self.job_gone(now, &job.uid().unwrap_or_default()),
            Seen::All(jobs) => {
                let there: HashSet<String> = jobs.iter().filter_map(ResourceExt::uid).collect();
                let gone = self.jobs.keys().filter(|uid| !there.contains(*uid));
                for uid in gone.cloned().collect::<Vec<_>>() {
                    self.job_gone(now, &uid);
                }
                jobs.iter().for_each(|job| self.job(now, job));
            }
        }
    }

    fn job(&mut self, now: Time, job: &Job) {
        let uid = job.uid().unwrap_or_default();
        let ends = job.spec.suspend || job.metadata.deletion_timestamp.is_some();
        let phase = job.status.as_ref().and_then(|s| s.phase);
        if self.jobs.contains_key(&uid) {
            if ends || phase == Some(JobPhase::Failed) {
                self.close(now, &uid);
            } else if phase == Some(JobPhase::Succeeded) {
                self.succeeded(now, &uid);
            }
            // A Job that is let go again comes anew, with what is left of it.
            if ends {
                self.jobs.remove(&uid);
            }
            return;
        }
        let waits = match phase {
            Some(JobPhase::Blocked) => true,
            None => job.spec.after.as_ref().is_some_and(|a| !a.is_empty()),
            Some(_) => false,
        };
        if ends || waits || lifecycle::is_finished(job) {
            return;
        }
        self.submit(now, uid.clone(), job);
        for task in self.early.remove(&uid).into_iter().flatten() {
            self.task(now, task.1);
        }
    }

    fn submit(&mut self, now: Time, uid: String, job: &Job) {
        let status = job.status.as_ref();
        let set = |text: Option<&String>| -> IndexSet {
            text.and_then(|t| t.parse().ok()).unwrap_or_default()
        };
        let before = set(status.and_then(|s| s.succeeded_indexes.as_ref()))
            .union(&set(status.and_then(|s| s.failed_indexes.as_ref())));
        let done = u32::try_from(before.len()).unwrap_or(u32::MAX);
        let tasks = match job.spec.type_ {
            JobType::Batch => lifecycle::completions(job).saturating_sub(done),
            JobType::Service => lifecycle::parallelism(job),
        };
        let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
        let id = self.free_id(&format!("{namespace}/{name}"));
        let together = job.spec.gang.as_ref().map_or(0, |gang| {
            let all = lifecycle::parallelism(job);
            let min = gang.min_available.and_then(|n| u32::try_from(n).ok());
            min.unwrap_or(all).min(tasks)
        });
        let expected = job.spec.expected_duration_seconds;
        let traced = trace::Job {
            min: together,
            queue: job.spec.queue.clone(),
            owner: namespace,
            // Jobs that run the same are the same kind of work.
            app: rota_api::names::short_hash(&[&job.spec.template.spec.command.join("\0")], 10),
            priority: job.spec.priority,
            limit: expected.map_or(NEVER, |s| s.saturating_mul(1000)),
            ..trace::Job::gang(id.clone(), now, NEVER, self.class(job), tasks)
        };
        self.push(now, Kind::Submit(events::submitted(&traced)));
        let recorded = Recorded {
            id,
            tasks,
            before,
            numbers: HashMap::new(),
            running: HashMap::new(),
            ended: HashSet::new(),
            closed: false,
        };
        self.jobs.insert(uid, recorded);
    }

    /// `name`, or with the next number where the log has that already.
    fn free_id(&mut self, name: &str) -> String {
        let mut id = name.to_string();
        let mut n = 1;
        while !self.taken.insert(id.clone()) {
            n += 1;
            id = format!("{name}#{n}");
        }
        id
    }

    fn class(&self, job: &Job) -> Class {
        let spec = &job.spec.template.spec;
        let defaults = self.defaults.get(&job.spec.queue).and_then(Option::as_ref);
        let whose = Whose {
            namespace: "",
            job: "",
            labels: None,
        };
        let class = need::class(spec, &need::requests(spec, defaults), whose);
        let mut plain = class.spec().clone();
        // One list of values per label is all that the log can say of nodes.
        let sayable = |term: &[rota_scheduler::Expression]| {
            term.iter().all(|e| matches!(e.operator, Operator::In))
        };
        if plain.required.len() != 1 || !plain.required.iter().all(|term| sayable(term)) {
            plain.required.clear();
        }
        Class::new(plain)
    }

    /// The user gave it up, or it failed.
    fn close(&mut self, now: Time, uid: &str) {
        let Some(job) = self.jobs.get_mut(uid).filter(|job| !job.closed) else {
            return;
        };
        job.closed = true;
        let cancel = Kind::Cancel {
            job: job.id.clone(),
        };
        self.push(now, cancel);
    }

    /// What was missed of a Job that is done, while the connection was lost, is told now.
    fn succeeded(&mut self, now: Time, uid: &str) {
        let Some(job) = self.jobs.get_mut(uid).filter(|job| !job.closed) else {
            return;
        };
        job.closed = true;
        let running: HashSet<u32> = job.running.values().copied().collect();
        let left = (0..job.tasks).filter(|n| !job.ended.contains(n));
        let mut missed = Vec::new();
        for index in left {
            if !running.contains(&index) {
                missed.push(Kind::Start {
                    job: job.id.clone(),
                    index,
                    node: String::new(),
                });
            }
            missed.push(Kind::End {
                job: job.id.clone(),
                index,
            });
        }
        for kind in missed {
            self.push(now, kind);
        }
    }

    fn job_gone(&mut self, now: Time, uid: &str) {
        self.early.remove(uid);
        // One that is done needs no word.
        self.close(now, uid);
        self.jobs.remove(uid);
    }

    /// Tasks.
    pub fn tasks(&mut self, now: Time, seen: Seen<Task>) {
        match seen {
            Seen::Is(task) => self.task(now, task),
            Seen::Gone(task) => self.task_gone(now, &task),
            Seen::All(tasks) => {
                let there: HashSet<String> = tasks.iter().map(ResourceExt::name_any).collect();
                let mut gone = Vec::new();
                for (uid, job) in &self.jobs {
                    let missed = job.running.keys().filter(|name| !there.contains(*name));
                    gone.extend(missed.map(|name| (uid.clone(), name.clone())));
                }
                gone.sort();
                for (uid, name) in gone {
                    self.stopped(now, &uid, &name, false);
                }
                tasks.into_iter().for_each(|task| self.task(now, task));
            }
        }
    }

    fn task(&mut self, now: Time, task: Task) {
        let uid = task.spec.job_uid.clone();
        let name = task.name_any();
        let Some(job) = self.jobs.get_mut(&uid) else {
            self.early.entry(uid).or_default().insert(name, task);
            return;
        };
        let Ok(index) = u32::try_from(task.spec.index) else {
            return;
        };
        let end = end_of(&task);
        if job.closed || job.before.contains(index) {
            return;
        }
        if !job.running.contains_key(&name) {
            // An attempt that ended before it was seen counts only if it was the last one.
            if end.is_some_and(|end| end != End::Succeeded) {
                return;
            }
            let number = job.number(index);
            if job.ended.contains(&number) {
                return;
            }
            job.running.insert(name.clone(), number);
            let start = Kind::Start {
                job: job.id.clone(),
                index: number,
                node: task.spec.node_name.clone(),
            };
            self.push(now, start);
        }
        if let Some(end) = end {
            self.stopped(now, &uid, &name, end == End::Succeeded);
        }
    }

    /// A task that runs has ended for good, or will run again.
    fn stopped(&mut self, now: Time, uid: &str, name: &str, for_good: bool) {
        let Some(job) = self.jobs.get_mut(uid).filter(|job| !job.closed) else {
            return;
        };
        let Some(index) = job.running.remove(name) else {
            return;
        };
        let id = job.id.clone();
        let kind = if for_good {
            job.ended.insert(index);
            Kind::End { job: id, index }
        } else {
            Kind::Evict { job: id, index }
        };
        self.push(now, kind);
    }

    fn task_gone(&mut self, now: Time, task: &Task) {
        let (uid, name) = (&task.spec.job_uid, task.name_any());
        if let Some(tasks) = self.early.get_mut(uid) {
            tasks.remove(&name);
            if tasks.is_empty() {
                self.early.remove(uid);
            }
        }
        let for_good = end_of(task) == Some(End::Succeeded);
        self.stopped(now, uid, &name, for_good);
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
