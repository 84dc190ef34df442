//! A Node as the scheduler takes it. Pure.

use k8s_openapi::api::core::v1::Node;
use rota_scheduler::{NodeSpec, Taint};

/// The node: labels, taints, what tasks may use, devices, cordon and readiness.
pub fn node_spec(node: &Node) -> NodeSpec {
    let spec = node.spec.as_ref();
    let status = node.status.as_ref();
    let ready = status
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    let taints = spec.and_then(|s| s.taints.as_ref()).into_iter().flatten();
    let allocatable = status.and_then(|s| s.allocatable.as_ref());
    NodeSpec {
        labels: node.metadata.labels.clone().unwrap_or_default(),
        taints: taints
            .filter_map(|t| {
                Some(Taint {
                    key: t.key.clone(),
                    value: t.value.clone().unwrap_or_default(),
                    effect: match t.effect.as_str() {
                        "NoSchedule" => rota_scheduler::Effect::NoSchedule,
                        "PreferNoSchedule" => rota_scheduler::Effect::PreferNoSchedule,
                        "NoExecute" => rota_scheduler::Effect::NoExecute,
                        _ => return None,
                    },
                })
            })
            .collect(),
        allocatable: allocatable
            .into_iter()
            .flatten()
            .filter_map(|(name, quantity)| {
                let quantity: rota_api::Quantity = quantity.0.parse().ok()?;
                Some((name.clone(), quantity.base_floor(name)))
            })
            .collect(),
        devices: allocatable
            .into_iter()
            .flatten()
            .filter(|(name, _)| rota_api::quantity::is_shared_device(name))
            .map(|(name, _)| name.clone())
            .collect(),
        unschedulable: spec.and_then(|s| s.unschedulable).unwrap_or(false),
        // Being deleted takes nothing new either.
        ready: ready && node.metadata.deletion_timestamp.is_none(),
    }
}
