//! Trial: what placement would do if some Jobs and Queues were applied now. It runs the scheduler's
//! own cycles on a copy of the cluster, with the supposed Jobs among those that wait, so that it
//! cannot tell anything else than what the next cycles would do. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use rota_api::names::API_VERSION;
use rota_api::{EstimatedStart, Job, JobType, Queue, WaitReason, WaitingFor};
use rota_scheduler::forecast::forecast;
use rota_scheduler::{
    Cause, Class, Cluster, Demand, QueueId, TaskId, Time, cycle, explain, standings,
};
use serde_json::{Value, json};

use super::ask::millis;
use super::decide::OPTIONS;
use super::memory::{JobMem, Memory};
use super::outlook;
use super::promise::Behind;
use super::rules::Whose;
use super::shares::decimal;
use super::status::only;
use super::{need, why};
use crate::lifecycle::{self, Edges};
use crate::runtime::Key;

/// A supposed Job.
struct Supposed {
    namespace: String,
    name: String,
    queue_name: String,
    class: Class,
    queue: QueueId,
    /// Tasks that it would want to start now.
    tasks: u32,
    /// How many of them must start together.
    together: u32,
    /// Why it would start none of them, whatever room there is.
    held: Option<WaitingFor>,
    /// Its position among the demands.
    demand: Option<usize>,
    /// What it got, by node.
    placed: BTreeMap<String, u32>,
    /// When the next of its tasks is likely to start.
    start: Option<EstimatedStart>,
    /// What stands in the way of the rest, beyond nodes and queue.
    behind: Option<WaitReason>,
}

/// A copy of what matters, ready to be tried out.
pub struct Trial {
    cluster: Cluster,
    demands: Vec<Demand>,
    jobs: Vec<Supposed>,
    /// Namespace and name of each demand's Job.
    of: Vec<String>,
    /// Who would have to leave, and for which of the supposed Jobs.
    evictions: Vec<(TaskId, usize)>,
    /// Tasks that may be evicted, as people know them.
    names: HashMap<TaskId, Key>,
    now: Time,
    version: u64,
}

impl Memory {
    /// Copies what is needed to say what would happen if these were applied now. Jobs that exist
    /// already, by namespace and name, are supposed to change into these.
    pub fn plan(&mut self, jobs: &[Job], queues: &[Queue], version: u64, now: Timestamp) -> Trial {
        self.allow_evictions(now);
        let mut cluster = self.cluster.clone();
        for queue in queues {
            let name = queue.metadata.name.as_deref().unwrap_or("");
            let id = cluster.set_queue(name, Some(need::queue(&queue.spec)));
            let used = self.queues.get(name).map_or(0, |q| q.evicted.len());
            let budget = queue.spec.preemption.budget_per_hour.max(0) as usize;
            let left = u32::try_from(budget.saturating_sub(used)).unwrap_or(u32::MAX);
            cluster.allow_evictions(id, left);
        }
        // Numbers for names that only the plan knows are given back.
        let known_names = (self.gangs.count(), self.namespaces.count());
        let mut replaced = BTreeSet::new();
        let mut supposed = Vec::new();
        let (mut demands, mut of) = (Vec::new(), Vec::new());
        for (i, job) in jobs.iter().enumerate() {
            let namespace = job.metadata.namespace.clone().unwrap_or_default();
            let name = job.metadata.name.clone().unwrap_or_default();
            let serial = self.serial_of(&namespace, &name);
            replaced.extend(serial);
            let known = serial.and_then(|serial| self.jobs.get(&serial));
            let find = |name: &str| {
                let here = |j: &&Job| {
                    j.metadata.name.as_deref() == Some(name)
                        && j.metadata.namespace.as_deref() == Some(&namespace)
                };
                let found = jobs.iter().find(here).cloned().map(Arc::new);
                found.or_else(|| self.job_named(&namespace, name))
            };
            let held = match lifecycle::edges(job, &find) {
                Edges::Open => None,
                Edges::Waiting(text) | Edges::Never(text) => Some(text),
                Edges::Cycle(names) => Some(format!("waits for itself: {}", names.join(" -> "))),
            };
            let spec = &job.spec.template.spec;
            let called = |q: &&Queue| q.metadata.name.as_ref() == Some(&job.spec.queue);
            let stored = self.queues.get(&job.spec.queue);
            let stored = stored.and_then(|q| q.queue.as_deref());
            let queue = queues.iter().find(called).or(stored);
            let priority_max = queue.and_then(|q| q.spec.max_priority);
            let defaults = queue.and_then(|q| q.spec.default_resources.as_ref());
            let meta = job.spec.template.metadata.as_ref();
            let whose = Whose {
                namespace: &namespace,
                job: &name,
                labels: meta.and_then(|m| m.labels.as_ref()),
            };
            let class = need::class(spec, &need::requests(spec, defaults), whose);
            let queue = cluster.queue(&job.spec.queue);
            let tasks = wanted(job, known);
            let live = known.map_or(0, |k| k.book.live());
            let fresh = known.is_none();
            let mut it = Supposed {
                namespace,
                name,
                queue_name: job.spec.queue.clone(),
                class: class.clone(),
                queue,
                tasks,
                together: 1,
                held: held.map(|text| only(why::plain("AfterJob", text))),
                demand: None,
                placed: BTreeMap::new(),
                start: None,
                behind: None,
            };
            if it.held.is_none() && tasks > 0 {
                // The numbers that they would get.
                let id = serial.unwrap_or(self.serial + 1 + i as u64);
                let mut terms = self.terms(job, u64::from(tasks) + live);
                terms.priority = job.spec.priority.min(priority_max.unwrap_or(i32::MAX));
                if fresh {
                    terms.created = millis(now);
                }
                it.together = terms.together(u32::try_from(live).unwrap_or(u32::MAX));
                if let Some(demand) = terms.demand(id, &class, queue, tasks, live) {
                    it.demand = Some(demands.len());
                    demands.push(demand);
                    of.push(format!("{}/{}", it.namespace, it.name));
                }
            }
            supposed.push(it);
        }
        for serial in self.hungry.difference(&replaced) {
            let Some(job) = self.jobs.get(serial) else {
                continue;
            };
            if let Some(demand) = self.demand(*serial, job) {
                demands.push(demand);
                of.push(format!("{}/{}", job.owner.namespace, job.owner.name));
            }
        }
        self.gangs.cut(known_names.0);
        self.namespaces.cut(known_names.1);
        Trial {
            cluster,
            demands,
            jobs: supposed,
            of,
            evictions: Vec::new(),
            names: self.holders.clone(),
            now: millis(now),
            version,
        }
    }
}

/// Tasks that a Job would want to start now, given what is known of it already.
fn wanted(job: &Job, known: Option<&JobMem>) -> u32 {
    if job.spec.suspend || lifecycle::is_finished(job) {
        return 0;
    }
    let most = u64::from(lifecycle::parallelism(job));
    let indexes = match job.spec.type_ {
        JobType::Batch => u64::from(lifecycle::completions(job)),
        JobType::Service => most,
    };
    let (live, ready) = known.map_or((0, indexes), |known| {
        let more = indexes.saturating_sub(u64::from(known.n));
        (known.book.live(), known.book.ready() + more)
    });
    let count = most.saturating_sub(live).min(ready);
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Trial {
    /// Runs cycles until nothing moves any more, and tells what became of the supposed Jobs.
    pub fn run(mut self) -> Value {
        let supposed: BTreeMap<u32, usize> = self
            .jobs
            .iter()
            .enumerate()
            .filter_map(|(i, job)| Some((job.demand? as u32, i)))
            .collect();
        let before = shares(&self.cluster, &self.demands);
        // A demand's number here is its position.
        let numbers: Vec<u64> = (0..self.demands.len() as u64).collect();
        loop {
            let outcome = cycle(&mut self.cluster, &self.demands, self.now, OPTIONS);
            for eviction in &outcome.evictions {
                if let Some(i) = supposed.get(&eviction.demand) {
                    self.evictions.push((eviction.task, *i));
                }
            }
            for placement in &outcome.placements {
                let demand = &mut self.demands[placement.demand as usize];
                demand.count -= 1;
                demand.min = demand.min.saturating_sub(1);
                if let Some(i) = supposed.get(&placement.demand) {
                    let node = self.cluster.node_name(placement.node).to_string();
                    *self.jobs[*i].placed.entry(node).or_default() += 1;
                }
            }
            for waiting in &outcome.waiting {
                if let Some(i) = supposed.get(&waiting.demand) {
                    let behind = Behind::of(waiting.cause, &outcome.reservations, &numbers);
                    let name = |at: u64| self.of[at as usize].clone();
                    self.jobs[*i].behind = behind.map(|b| b.words(&name));
                }
            }
            // What the limits of one cycle have held back, the next one decides.
            let goes_on = outcome.waiting.iter().any(|w| w.cause == Cause::Budget);
            if outcome.placements.is_empty() || !goes_on {
                break;
            }
        }
        let after = shares(&self.cluster, &self.demands);
        let queues: Vec<Value> = after
            .iter()
            .filter(|(name, share)| before.get(*name) != Some(share))
            .map(|(name, share)| {
                let before = before.get(name).map_or("0", String::as_str);
                json!({"name": name, "dominantShare": {"before": before, "after": share}})
            })
            .collect();
        self.foretell(&supposed);
        let evictions: Vec<Value> = self
            .evictions
            .iter()
            .filter_map(|(task, i)| Some((self.names.get(task)?, &self.jobs[*i])))
            .map(|(key, job)| {
                json!({
                    "namespace": key.namespace(), "task": key.name(),
                    "for": {"namespace": job.namespace, "name": job.name},
                })
            })
            .collect();
        let jobs: Vec<Value> = self
            .jobs
            .into_iter()
            .map(|job| told(&mut self.cluster, job))
            .collect();
        json!({
            "kind": "Plan", "apiVersion": API_VERSION,
            "metadata": {"resourceVersion": self.version.to_string()},
            "jobs": jobs,
            "evictions": evictions,
            "queues": queues,
        })
    }
}

impl Trial {
    /// When what still waits of the supposed Jobs is likely to start.
    fn foretell(&mut self, supposed: &BTreeMap<u32, usize>) {
        let waiting: Vec<u32> = (0..self.demands.len() as u32)
            .filter(|at| self.demands[*at as usize].count > 0)
            .collect();
        let demands: Vec<Demand> = waiting
            .iter()
            .map(|at| self.demands[*at as usize].clone())
            .collect();
        for one in forecast(&mut self.cluster, &demands, self.now, outlook::BUDGET) {
            let at = waiting[one.demand as usize];
            if let Some(i) = supposed.get(&at) {
                self.jobs[*i].start = outlook::estimated(one.p50, one.p90);
            }
        }
    }
}

/// Dominant shares of all queues, as their status tells them.
fn shares(cluster: &Cluster, demands: &[Demand]) -> BTreeMap<String, String> {
    let each = standings(cluster, demands).into_iter();
    each.map(|s| {
        let name = cluster.queue_name(s.queue).to_string();
        (name, decimal(s.dominant_share))
    })
    .collect()
}

fn told(cluster: &mut Cluster, job: Supposed) -> Value {
    let placed: u32 = job.placed.values().sum();
    let waiting = job.tasks.saturating_sub(placed);
    let placements: Vec<Value> = job
        .placed
        .iter()
        .map(|(node, tasks)| json!({"node": node, "tasks": tasks}))
        .collect();
    let mut answer = json!({
        "namespace": job.namespace, "name": job.name, "tasks": job.tasks,
        "placed": placed, "waiting": waiting, "placements": placements,
    });
    if waiting > 0 {
        let reasons = job.held.unwrap_or_else(|| {
            let why = explain(cluster, &job.class, job.queue, job.together);
            let mut waiting = why::after(job.behind, why::waiting_for(&why, &job.queue_name));
            waiting.estimated_start = job.start;
            waiting
        });
        answer["waitingFor"] = json!(reasons);
    }
    answer
}

#[cfg(test)]
mod tests {
    use rota_scheduler::{ClassSpec, NodeSpec, QueueSpec};

    use super::*;

    #[test]
    fn a_trial_goes_on_over_as_many_cycles_as_it_takes() {
        let most = OPTIONS.placements;
        let mut cluster = Cluster::new();
        let amounts = |n: i64| BTreeMap::from([("cpu".to_string(), n)]);
        let node = NodeSpec {
            allocatable: amounts(i64::from(most) * 2 + 1),
            ready: true,
            ..NodeSpec::default()
        };
        cluster.upsert_node("n", node);
        let queue = cluster.set_queue("q", Some(QueueSpec::default()));
        let class = Class::new(ClassSpec {
            requests: amounts(1),
            ..ClassSpec::default()
        });
        let tasks = most * 3;
        let job = Supposed {
            namespace: "a".into(),
            name: "j".into(),
            queue_name: "q".into(),
            class: class.clone(),
            queue,
            tasks,
            together: 1,
            held: None,
            demand: Some(0),
            placed: BTreeMap::new(),
            start: None,
            behind: None,
        };
        let trial = Trial {
            cluster,
            demands: vec![Demand::new(1, class, queue, tasks)],
            jobs: vec![job],
            of: vec!["a/j".into()],
            evictions: Vec::new(),
            names: HashMap::new(),
            now: 0,
            version: 7,
        };
        let told = trial.run();
        let job = &told["jobs"][0];
        assert_eq!(job["placed"], most * 2 + 1);
        assert_eq!(job["waiting"], most - 1);
        assert_eq!(
            job["waitingFor"]["reasons"][0]["reason"],
            "InsufficientResource"
        );
        assert_eq!(told["metadata"]["resourceVersion"], "7");
    }
}
