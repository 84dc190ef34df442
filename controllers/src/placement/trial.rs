//! Trial: what placement would do if some Jobs and Queues were applied now. It runs the scheduler's
//! own cycles on a copy of the cluster, with the supposed Jobs among those that wait, so that it
//! cannot tell anything else than what the next cycles would do. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use rota_api::names::API_VERSION;
use rota_api::{Job, JobType, Queue, WaitingFor};
use rota_scheduler::{Cause, Class, Cluster, Demand, QueueId, TaskId, Time, cycle, explain};
use serde_json::{Value, json};

use super::ask::millis;
use super::decide::OPTIONS;
use super::memory::{JobMem, Memory};
use super::rules::Whose;
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
}

/// A copy of what matters, ready to be tried out.
pub struct Trial {
    cluster: Cluster,
    demands: Vec<Demand>,
    jobs: Vec<Supposed>,
    evictions: Vec<TaskId>,
    /// Tasks that may be evicted, as people know them.
    names: HashMap<TaskId, Key>,
    now: Time,
    version: u64,
}

impl Memory {
    /// Copies what is needed to say what would happen if these were applied now. Jobs that exist
    /// already, by namespace and name, are supposed to change into these.
    pub fn plan(&mut self, jobs: &[Job], queues: &[Queue], version: u64, now: Timestamp) -> Trial {
        let mut cluster = self.cluster.clone();
        for queue in queues {
            let name = queue.metadata.name.as_deref().unwrap_or("");
            cluster.set_queue(name, Some(need::queue(&queue.spec)));
        }
        let mut replaced = BTreeSet::new();
        let mut supposed = Vec::new();
        let mut demands = Vec::new();
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
            };
            if it.held.is_none() && tasks > 0 {
                // The numbers that they would get.
                let id = serial.unwrap_or(self.serial + 1 + i as u64);
                let mut terms = self.terms(job, u64::from(tasks) + live);
                if fresh {
                    terms.created = millis(now);
                }
                it.together = terms.together(u32::try_from(live).unwrap_or(u32::MAX));
                if let Some(demand) = terms.demand(id, &class, queue, tasks, live) {
                    it.demand = Some(demands.len());
                    demands.push(demand);
                }
            }
            supposed.push(it);
        }
        for serial in self.hungry.difference(&replaced) {
            let Some(job) = self.jobs.get(serial) else {
                continue;
            };
            demands.extend(self.demand(*serial, job));
        }
        Trial {
            cluster,
            demands,
            jobs: supposed,
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
        let of: BTreeMap<usize, usize> = self
            .jobs
            .iter()
            .enumerate()
            .filter_map(|(i, job)| Some((job.demand?, i)))
            .collect();
        loop {
            let outcome = cycle(&mut self.cluster, &self.demands, self.now, OPTIONS);
            self.evictions
                .extend(outcome.evictions.iter().map(|e| e.task));
            for placement in &outcome.placements {
                let position = placement.demand as usize;
                self.demands[position].count -= 1;
                if let Some(i) = of.get(&position) {
                    let node = self.cluster.node_name(placement.node).to_string();
                    *self.jobs[*i].placed.entry(node).or_default() += 1;
                }
            }
            // What the limits of one cycle have held back, the next one decides.
            let goes_on = outcome.waiting.iter().any(|w| w.cause == Cause::Budget);
            if outcome.placements.is_empty() || !goes_on {
                break;
            }
        }
        let evictions: Vec<Value> = self
            .evictions
            .iter()
            .filter_map(|task| self.names.get(task))
            .map(|key| json!({"namespace": key.namespace(), "task": key.name()}))
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
        })
    }
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
            why::waiting_for(&why, &job.queue_name)
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
        let mut cluster = Cluster::new();
        let amounts = |n: i64| BTreeMap::from([("cpu".to_string(), n)]);
        let node = NodeSpec {
            allocatable: amounts(i64::from(OPTIONS.placements) * 2 + 1),
            ready: true,
            ..NodeSpec::default()
        };
        cluster.upsert_node("n", node);
        let queue = cluster.set_queue("q", Some(QueueSpec::default()));
        let class = Class::new(ClassSpec {
            requests: amounts(1),
            ..ClassSpec::default()
        });
        let tasks = OPTIONS.placements * 3;
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
        };
        let trial = Trial {
            cluster,
            demands: vec![Demand::new(1, class, queue, tasks)],
            jobs: vec![job],
            evictions: Vec::new(),
            names: HashMap::new(),
            now: 0,
            version: 7,
        };
        let told = trial.run();
        let job = &told["jobs"][0];
        assert_eq!(job["placed"], OPTIONS.placements * 2 + 1);
        assert_eq!(job["waiting"], OPTIONS.placements - 1);
        assert_eq!(
            job["waitingFor"]["reasons"][0]["reason"],
            "InsufficientResource"
        );
        assert_eq!(told["metadata"]["resourceVersion"], "7");
    }
}
