//! Need: what a task of a template asks of a node. Pure.

use std::collections::BTreeMap;

use rota_api::names::RESOURCE_PORTS;
use rota_api::{
    Placement, Quantity, QueueOrder, ReclaimPolicy, Resources, TaintEffect, Task, TaskSpec,
    TolerationOperator, WithinQueue,
};
use rota_scheduler::{
    Backfill, Class, ClassSpec, Effect, Order, Policy, QueueSpec, Reclaim, Toleration,
};

use super::rules::{self, Whose};

/// Requests where neither the template nor the Queue says anything.
const CPU_DEFAULT_MILLI: i64 = 100;
const MEMORY_DEFAULT_BYTES: i64 = 64 << 20;

/// What is set aside for a task: requests, else limits, else the Queue's defaults, else ours;
/// and one `rota.dev/ports` for each dynamic port.
pub fn requests(spec: &TaskSpec, queue_defaults: Option<&Resources>) -> Resources {
    let resources = spec.resources.as_ref();
    let mut out = resources
        .and_then(|r| r.requests.clone())
        .unwrap_or_default();
    let mut default = |name: &String, amount: &Quantity| {
        out.entry(name.clone()).or_insert(*amount);
    };
    for (name, amount) in resources
        .and_then(|r| r.limits.as_ref())
        .into_iter()
        .flatten()
    {
        default(name, amount);
    }
    for (name, amount) in queue_defaults.into_iter().flatten() {
        default(name, amount);
    }
    default(&"cpu".into(), &Quantity::from_milli(CPU_DEFAULT_MILLI));
    default(
        &"memory".into(),
        &Quantity::from_bytes(MEMORY_DEFAULT_BYTES),
    );
    let dynamic = spec.ports.iter().flatten().filter(|p| p.port == 0).count();
    if dynamic > 0 {
        out.insert(
            RESOURCE_PORTS.into(),
            Quantity::from_units(i64::try_from(dynamic).unwrap_or(i64::MAX)),
        );
    }
    out
}

/// Requests in base units, rounded up.
pub fn base(resources: &Resources) -> BTreeMap<String, i64> {
    let amounts = resources.iter();
    amounts
        .map(|(name, q)| (name.clone(), q.base_ceil(name)))
        .collect()
}

/// The class of a Task that is bound already: what it holds, and what others see of it. Of its own
/// rules only those against others count from now on; they are in its revision, if that is known.
pub fn bound(task: &Task, template: Option<&TaskSpec>) -> Class {
    let spec = &task.spec;
    let mut class = ClassSpec {
        requests: base(&spec.requests),
        ports: fixed(spec.ports.iter().flatten().map(|p| p.port)),
        ..ClassSpec::default()
    };
    let bare = TaskSpec::default();
    let whose = Whose {
        namespace: task.metadata.namespace.as_deref().unwrap_or(""),
        job: &spec.job_name,
        labels: task.metadata.labels.as_ref(),
    };
    rules::write(&mut class, template.unwrap_or(&bare), whose);
    Class::new(class)
}

/// The class of a template's tasks.
pub fn class(spec: &TaskSpec, requests: &Resources, whose: Whose<'_>) -> Class {
    let tolerations = spec.tolerations.iter().flatten();
    let mut class = ClassSpec {
        requests: base(requests),
        node_selector: spec.node_selector.clone().unwrap_or_default(),
        tolerations: tolerations
            .map(|t| Toleration {
                key: t.key.clone().filter(|k| !k.is_empty()),
                value: match t.operator {
                    Some(TolerationOperator::Exists) => None,
                    Some(TolerationOperator::Equal) | None => {
                        Some(t.value.clone().unwrap_or_default())
                    }
                },
                effect: t.effect.map(|e| match e {
                    TaintEffect::NoSchedule => Effect::NoSchedule,
                    TaintEffect::PreferNoSchedule => Effect::PreferNoSchedule,
                    TaintEffect::NoExecute => Effect::NoExecute,
                }),
            })
            .collect(),
        ports: fixed(spec.ports.iter().flatten().map(|p| p.port)),
        ..ClassSpec::default()
    };
    rules::write(&mut class, spec, whose);
    Class::new(class)
}

fn fixed(ports: impl Iterator<Item = i32>) -> Vec<u16> {
    ports
        .filter(|p| *p > 0)
        .filter_map(|p| u16::try_from(p).ok())
        .collect()
}

/// A Queue's rules as the scheduler takes them.
pub fn queue(spec: &rota_api::QueueSpec) -> QueueSpec {
    let amounts = |resources: &Option<Resources>| {
        let each = resources.iter().flatten();
        each.map(|(name, q)| (name.clone(), q.base_floor(name)))
            .collect()
    };
    QueueSpec {
        parent: spec.parent.clone(),
        weight: spec.weight.max(1) as u32,
        guarantee: amounts(&spec.guarantee),
        limit: amounts(&spec.limit),
        reclaim: match spec.reclaim_policy {
            ReclaimPolicy::PreemptBorrowers => Reclaim::PreemptBorrowers,
            ReclaimPolicy::PreemptToShare => Reclaim::PreemptToShare,
            ReclaimPolicy::WhenIdle => Reclaim::WhenIdle,
        },
        preempt_within: spec.preemption.within_queue == WithinQueue::LowerPriority,
        order: match spec.order {
            QueueOrder::Fifo => Order::Fifo,
            QueueOrder::Priority => Order::Priority,
            QueueOrder::ShortestJobFirst => Order::ShortestJobFirst,
            QueueOrder::ShortestRemainingTimeFirst => Order::ShortestRemainingTimeFirst,
            QueueOrder::Fair => Order::Fair,
        },
        policy: match spec.placement {
            Placement::BinPack => Policy::BinPack,
            Placement::Spread => Policy::Spread,
            Placement::Fragmentation => Policy::Fragmentation,
        },
        backfill: match spec.backfill {
            rota_api::Backfill::Off => Backfill::Off,
            rota_api::Backfill::Easy => Backfill::Easy,
            rota_api::Backfill::Conservative => Backfill::Conservative,
        },
        half_life: spec.usage_half_life_seconds.saturating_mul(1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_come_from_the_first_who_says_something() {
        let spec: TaskSpec = serde_json::from_value(json!({
            "command": ["true"],
            "resources": {"requests": {"gpu": 1}, "limits": {"cpu": "2"}},
            "ports": [{"name": "a", "port": 0}, {"name": "b", "port": 80}]
        }))
        .unwrap_or_default();
        let defaults = Resources::from([
            ("cpu".to_string(), Quantity::from_units(9)),
            ("memory".to_string(), Quantity::from_bytes(5)),
        ]);
        let expect = BTreeMap::from([
            ("cpu".to_string(), 2000),
            ("memory".to_string(), 5),
            ("gpu".to_string(), 1),
            (RESOURCE_PORTS.to_string(), 1),
        ]);
        assert_eq!(base(&requests(&spec, Some(&defaults))), expect);
        let bare = base(&requests(&TaskSpec::default(), None));
        assert_eq!(
            bare,
            BTreeMap::from([("cpu".into(), 100), ("memory".into(), 64 << 20)])
        );
    }
}
