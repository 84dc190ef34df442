//! Between lines of an event log and what the scheduler understands.

use std::collections::BTreeMap;

use rota_scheduler::{
    Class, ClassSpec, Effect, Expression, NEVER, NodeSpec, Operator, QueueSpec, Taint, Time,
    Toleration,
};

use super::line::{Kind, Node, Queue, Submit};
use crate::trace::{Change, Job, QUEUE, TIME_MAX};

pub(super) fn node_change(node: Node) -> Change {
    if node.gone {
        return Change::NodeGone(node.name);
    }
    let taints = node.taints.iter().map(|text| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        Taint {
            key: key.into(),
            value: value.into(),
            effect: Effect::NoSchedule,
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

pub(super) fn queue_change(queue: Queue) -> Change {
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

pub(super) fn job(time: Time, submit: Submit) -> Job {
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
