//! Rota's own event log: a JSON object per line, in order of time.
//!
//! It is what a cluster records and what a simulation can write, so that a run can be replayed with
//! other rules. Times are integer milliseconds from any origin. How long a task really ran comes
//! from its start and its end; a task without them runs for the job's `run`, else for ever.
//! `docs/designs/simulate.md` lists the fields.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rota_scheduler::{
    Backfill, Class, ClassSpec, Expression, NEVER, NodeSpec, Operator, Order, Policy, QueueSpec,
    Reclaim, Taint, Time, Toleration,
};
use serde::{Deserialize, Serialize};

use super::{Change, Job, Machine, QUEUE, ReadError, TASKS_MAX, TIME_MAX, Trace};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds.
    pub time: Time,
    /// What.
    #[serde(flatten)]
    pub kind: Kind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Kind {
    /// A node came or was changed.
    Node(Node),
    /// A queue came or was changed.
    Queue(Queue),
    /// A job came.
    Submit(Submit),
    /// A task got a node.
    Start {
        /// Its job.
        job: String,
        /// Which of the job's tasks.
        #[serde(default)]
        index: u32,
        /// Where.
        node: String,
    },
    /// A task ended and will not run again.
    End {
        /// Its job.
        job: String,
        /// Which of the job's tasks.
        #[serde(default)]
        index: u32,
    },
    /// A task was stopped for others, or lost with its node; it waits again.
    Evict {
        /// Its job.
        job: String,
        /// Which of the job's tasks.
        #[serde(default)]
        index: u32,
    },
    /// A job was given up by its user.
    Cancel {
        /// Which.
        job: String,
    },
}

/// A node as logged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// It went away.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// It takes nothing new.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unschedulable: bool,
    /// What it has, in base units.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub allocatable: BTreeMap<String, i64>,
    /// Which of these come as whole devices.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub devices: BTreeSet<String>,
    /// Its labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Taints that keep tasks away, as `key` or `key=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<String>,
}

/// A queue as logged; absent fields are a queue's defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)] // The fields are those of `QueueSpec`.
pub struct Queue {
    pub name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub guarantee: BTreeMap<String, i64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limit: BTreeMap<String, i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reclaim: Option<ReclaimName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preempt_within: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backfill: Option<BackfillName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_life: Option<Time>,
}

/// A job as logged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Submit {
    /// Its name, of which there is one in a log.
    pub job: String,
    /// Its queue.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub queue: String,
    /// Whose it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// What kind of work, for learning run times.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub app: String,
    /// Higher goes first.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// Number of tasks; absent: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u32>,
    /// How many must start together; 0: none.
    #[serde(skip_serializing_if = "is_zero_u32")]
    pub min: u32,
    /// What each task asks for, in base units.
    pub requests: BTreeMap<String, i64>,
    /// Labels that its nodes must have, each with the values of which one must be there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<String, Vec<String>>,
    /// Taints that it accepts, as `key` or `key=value`; `*` is all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<String>,
    /// Milliseconds within which its user promised its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Time>,
    /// Milliseconds that tasks run whose start and end are not logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Time>,
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

fn is_zero_u32(n: &u32) -> bool {
    *n == 0
}

/// Names of the enums of a queue's rules, as the Queue kind writes them.
macro_rules! names {
    ($name:ident for $of:ident: $($variant:ident),+) => {
        #[doc = concat!("Names of [`", stringify!($of), "`].")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[allow(missing_docs)]
        pub enum $name { $($variant),+ }
        impl From<$name> for $of {
            fn from(name: $name) -> Self {
                match name { $($name::$variant => $of::$variant),+ }
            }
        }
        impl From<$of> for $name {
            fn from(of: $of) -> Self {
                match of { $($of::$variant => $name::$variant),+ }
            }
        }
    };
}
names!(OrderName for Order: Fifo, Priority, ShortestJobFirst, ShortestRemainingTimeFirst, Fair);
names!(PolicyName for Policy: BinPack, Spread, Fragmentation);
names!(BackfillName for Backfill: Off, Easy, Conservative);
names!(ReclaimName for Reclaim: PreemptBorrowers, PreemptToShare, WhenIdle);

/// Reads a log.
pub fn read(text: &str) -> Result<Trace, ReadError> {
    let mut trace = Trace::default();
    let mut numbers: HashMap<String, usize> = HashMap::new();
    let mut started: HashMap<(usize, u32), Time> = HashMap::new();
    let mut ran: HashMap<(usize, u32), Time> = HashMap::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let bad = |found: String, expected: &str| ReadError::new(at + 1, found, expected);
        let event: Event = serde_json::from_str(line).map_err(|e| {
            bad(
                e.to_string(),
                "an event: {\"time\": ms, \"kind\": node|queue|submit|start|end|evict|cancel, ...}",
            )
        })?;
        let time = event.time;
        if !(0..=TIME_MAX).contains(&time) {
            return Err(bad(
                format!("time {time}"),
                "milliseconds of at least 0 and at most 2^50",
            ));
        }
        let number = |job: &str| {
            let number = numbers.get(job).copied();
            number.ok_or_else(|| bad(format!("job {job}"), "a job submitted on a line before"))
        };
        match event.kind {
            Kind::Node(node) => trace.changes.push((time, node_change(node))),
            Kind::Queue(queue) => trace.changes.push((time, queue_change(queue))),
            Kind::Submit(submit) => {
                if numbers.contains_key(&submit.job) {
                    return Err(bad(
                        format!("job {} a second time", submit.job),
                        "one submit per job",
                    ));
                }
                numbers.insert(submit.job.clone(), trace.jobs.len());
                trace.jobs.push(job(time, submit));
            }
            Kind::Start { job, index, .. } => {
                started.insert((number(&job)?, index), time);
            }
            Kind::End { job, index } => {
                let key = (number(&job)?, index);
                if let Some(start) = started.remove(&key) {
                    *ran.entry(key).or_default() += (time - start).max(0);
                }
            }
            // What it did until then is done again.
            Kind::Evict { job, index } => {
                started.remove(&(number(&job)?, index));
            }
            Kind::Cancel { job } => trace.changes.push((time, Change::Cancel(number(&job)?))),
        }
    }
    for (number, job) in trace.jobs.iter_mut().enumerate() {
        let fallback = job.runs[0];
        // One entry is enough while all that is known is the same.
        let known = (0..job.count.min(TASKS_MAX))
            .rev()
            .find(|i| ran.contains_key(&(number, *i)));
        if let Some(last) = known {
            job.runs = (0..=last)
                .map(|i| ran.get(&(number, i)).copied().unwrap_or(fallback))
                .collect();
            if last + 1 < job.count {
                job.runs.push(fallback);
            }
            let first = job.runs[0];
            if job.runs.iter().all(|run| *run == first) {
                job.runs.truncate(1);
            }
        }
    }
    drop_impossible(&mut trace);
    Ok(trace)
}

/// Takes out jobs whose size makes no sense, and keeps the numbers of the others right.
fn drop_impossible(trace: &mut Trace) {
    let mut moved = Vec::with_capacity(trace.jobs.len());
    let mut kept = Vec::new();
    for job in std::mem::take(&mut trace.jobs) {
        if job.count == 0 || job.count > TASKS_MAX || job.min > job.count {
            trace.reject("its number of tasks is out of range");
            moved.push(None);
        } else {
            moved.push(Some(kept.len()));
            kept.push(job);
        }
    }
    // Sorting keeps the order of equals; a log is sorted already, so numbers rarely change.
    let mut order: Vec<usize> = (0..kept.len()).collect();
    order.sort_by_key(|i| kept[*i].submit);
    let mut position = vec![0; kept.len()];
    for (new, old) in order.iter().enumerate() {
        position[*old] = new;
    }
    let mut slots: Vec<Option<Job>> = kept.into_iter().map(Some).collect();
    trace.jobs = order.iter().filter_map(|i| slots[*i].take()).collect();
    trace.changes.retain_mut(|(_, change)| match change {
        Change::Cancel(number) => match moved[*number] {
            Some(new) => {
                *number = position[new];
                true
            }
            None => false,
        },
        _ => true,
    });
    trace.changes.sort_by_key(|(time, _)| *time);
}

/// A node for `--nodes N`: 16 CPUs and 64 GiB.
pub fn node(_: u64, _: Machine) -> NodeSpec {
    NodeSpec {
        allocatable: BTreeMap::from([("cpu".into(), 16_000), ("memory".into(), 64 << 30)]),
        ready: true,
        ..NodeSpec::default()
    }
}

fn node_change(node: Node) -> Change {
    if node.gone {
        return Change::NodeGone(node.name);
    }
    let taints = node.taints.iter().map(|text| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        Taint {
            key: key.into(),
            value: value.into(),
            effect: rota_scheduler::Effect::NoSchedule,
        }
    });
    let spec = NodeSpec {
        taints: taints.collect(),
        labels: node.labels,
        allocatable: node.allocatable,
        devices: node.devices,
        unschedulable: node.unschedulable,
        ready: true,
    };
    Change::Node(node.name, spec)
}

fn queue_change(queue: Queue) -> Change {
    if queue.gone {
        return Change::Queue(queue.name, None);
    }
    let usual = QueueSpec::default();
    let spec = QueueSpec {
        parent: queue.parent,
        weight: queue.weight.unwrap_or(usual.weight).max(1),
        guarantee: queue.guarantee,
        limit: queue.limit,
        reclaim: queue.reclaim.map_or(usual.reclaim, Into::into),
        preempt_within: queue.preempt_within.unwrap_or(usual.preempt_within),
        order: queue.order.map_or(usual.order, Into::into),
        policy: queue.policy.map_or(usual.policy, Into::into),
        backfill: queue.backfill.map_or(usual.backfill, Into::into),
        half_life: queue.half_life.unwrap_or(usual.half_life).max(0),
    };
    Change::Queue(queue.name, Some(spec))
}

fn job(time: Time, submit: Submit) -> Job {
    let tolerations = submit.tolerations.iter().map(|text| match text.as_str() {
        "*" => Toleration {
            key: None,
            value: None,
            effect: None,
        },
        text => {
            let (key, value) = text
                .split_once('=')
                .map_or((text, None), |(k, v)| (k, Some(v)));
            Toleration {
                key: Some(key.into()),
                value: value.map(Into::into),
                effect: None,
            }
        }
    });
    let mut spec = ClassSpec {
        tolerations: tolerations.collect(),
        requests: submit.requests,
        ..ClassSpec::default()
    };
    let mut term = Vec::new();
    for (key, mut values) in submit.nodes {
        values.sort();
        values.dedup();
        if let [one] = values.as_slice() {
            spec.node_selector.insert(key, one.clone());
        } else {
            term.push(Expression {
                key,
                operator: Operator::In,
                values,
            });
        }
    }
    if !term.is_empty() {
        spec.required.push(term);
    }
    let bounded = |time: Option<Time>| time.map_or(NEVER, |t| t.clamp(0, TIME_MAX));
    Job {
        runs: vec![bounded(submit.run)],
        limit: bounded(submit.limit.filter(|l| *l > 0)),
        min: submit.min,
        queue: if submit.queue.is_empty() {
            QUEUE.into()
        } else {
            submit.queue
        },
        owner: submit.owner,
        app: submit.app,
        priority: submit.priority,
        ..Job::gang(
            submit.job,
            time,
            0,
            Class::new(spec),
            submit.tasks.unwrap_or(1),
        )
    }
}

/// What a log says of a job's submission. Rules that no trace can hold are left out.
pub fn submitted(job: &Job) -> Submit {
    let spec = job.class.spec();
    let mut nodes: BTreeMap<String, Vec<String>> = spec
        .node_selector
        .iter()
        .map(|(key, value)| (key.clone(), vec![value.clone()]))
        .collect();
    for expression in spec.required.iter().flatten() {
        nodes.insert(expression.key.clone(), expression.values.clone());
    }
    let tolerations = spec.tolerations.iter().map(|t| match (&t.key, &t.value) {
        (None, _) => "*".to_string(),
        (Some(key), None) => key.clone(),
        (Some(key), Some(value)) => format!("{key}={value}"),
    });
    Submit {
        job: job.id.clone(),
        queue: job.queue.clone(),
        owner: job.owner.clone(),
        app: job.app.clone(),
        priority: job.priority,
        tasks: (job.count != 1).then_some(job.count),
        min: job.min,
        requests: spec.requests.clone(),
        nodes,
        tolerations: tolerations.collect(),
        limit: (job.limit != NEVER).then_some(job.limit),
        run: None,
    }
}

/// What a log says of a change of the cluster; a job given up is told by its own event.
pub fn changed(change: &Change) -> Option<Kind> {
    match change {
        Change::Node(name, spec) => Some(Kind::Node(Node {
            name: name.clone(),
            gone: false,
            unschedulable: spec.unschedulable || !spec.ready,
            allocatable: spec.allocatable.clone(),
            devices: spec.devices.clone(),
            labels: spec.labels.clone(),
            taints: spec
                .taints
                .iter()
                .map(|t| match t.value.as_str() {
                    "" => t.key.clone(),
                    value => format!("{}={value}", t.key),
                })
                .collect(),
        })),
        Change::NodeGone(name) => Some(Kind::Node(Node {
            name: name.clone(),
            gone: true,
            ..Node::default()
        })),
        Change::Queue(name, None) => Some(Kind::Queue(Queue {
            name: name.clone(),
            gone: true,
            ..Queue::default()
        })),
        Change::Queue(name, Some(spec)) => Some(Kind::Queue(Queue {
            name: name.clone(),
            gone: false,
            parent: spec.parent.clone(),
            weight: Some(spec.weight),
            guarantee: spec.guarantee.clone(),
            limit: spec.limit.clone(),
            reclaim: Some(spec.reclaim.into()),
            preempt_within: Some(spec.preempt_within),
            order: Some(spec.order.into()),
            policy: Some(spec.policy.into()),
            backfill: Some(spec.backfill.into()),
            half_life: Some(spec.half_life),
        })),
        Change::Cancel(_) => None,
    }
}
