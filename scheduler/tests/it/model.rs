//! The model: nodes and tasks in plain maps, every question answered by looking at everything.

use std::collections::BTreeMap;

use rota_scheduler::{ClassSpec, Effect, NodeSpec, QueueSpec};

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub nodes: BTreeMap<String, NodeSpec>,
    pub queues: BTreeMap<String, QueueSpec>,
    /// (node, queue, class)
    pub tasks: Vec<(String, String, ClassSpec)>,
}

impl Model {
    pub fn used(&self, node: &str, resource: &str) -> i64 {
        let held = |c: &ClassSpec| c.requests.get(resource).copied().unwrap_or(0);
        self.tasks
            .iter()
            .filter(|t| t.0 == node)
            .map(|t| held(&t.2))
            .sum()
    }

    pub fn free(&self, node: &str, resource: &str) -> i64 {
        let has = self.nodes[node]
            .allocatable
            .get(resource)
            .copied()
            .unwrap_or(0);
        has - self.used(node, resource)
    }

    pub fn queue_used(&self, queue: &str, resource: &str) -> i64 {
        let held = |c: &ClassSpec| c.requests.get(resource).copied().unwrap_or(0);
        self.tasks
            .iter()
            .filter(|t| t.1 == queue)
            .map(|t| held(&t.2))
            .sum()
    }

    pub fn carries(&self, node: &str, class: &ClassSpec) -> bool {
        let labels = &self.nodes[node].labels;
        class
            .node_selector
            .iter()
            .all(|(k, v)| labels.get(k) == Some(v))
    }

    /// The required terms of node labels.
    pub fn affine(&self, node: &str, class: &ClassSpec) -> bool {
        let labels = &self.nodes[node].labels;
        let terms = &class.required;
        terms.is_empty() || terms.iter().any(|t| t.iter().all(|e| e.holds(labels)))
    }

    pub fn preference(&self, node: &str, class: &ClassSpec) -> i64 {
        let labels = &self.nodes[node].labels;
        let held = class.preferred.iter();
        held.filter(|(_, t)| t.iter().all(|e| e.holds(labels)))
            .map(|(weight, _)| i64::from(*weight))
            .sum()
    }

    pub fn tolerated(&self, node: &str, class: &ClassSpec) -> bool {
        self.nodes[node].taints.iter().all(|t| {
            t.effect == Effect::PreferNoSchedule || class.tolerations.iter().any(|s| s.accepts(t))
        })
    }

    pub fn open(&self, node: &str) -> bool {
        self.nodes[node].ready && !self.nodes[node].unschedulable
    }

    pub fn lacks(&self, node: &str, class: &ClassSpec) -> Vec<String> {
        let short = |(r, a): &(&String, &i64)| **a > 0 && self.free(node, r) < **a;
        class
            .requests
            .iter()
            .filter(short)
            .map(|(r, _)| r.clone())
            .collect()
    }

    pub fn ports_free(&self, node: &str, class: &ClassSpec) -> bool {
        let on = |p: &u16| {
            self.tasks
                .iter()
                .any(|t| t.0 == node && t.2.ports.contains(p))
        };
        !class.ports.iter().any(on)
    }

    pub fn eligible(&self, node: &str, class: &ClassSpec) -> bool {
        self.open(node)
            && self.carries(node, class)
            && self.affine(node, class)
            && self.tolerated(node, class)
    }

    pub fn fits(&self, node: &str, class: &ClassSpec) -> bool {
        self.eligible(node, class)
            && self.lacks(node, class).is_empty()
            && self.ports_free(node, class)
    }

    pub fn queue_allows(&self, queue: &str, class: &ClassSpec) -> bool {
        self.queues[queue].limit.iter().all(|(r, limit)| {
            let wants = class.requests.get(r).copied().unwrap_or(0);
            wants <= 0 || self.queue_used(queue, r) + wants <= *limit
        })
    }
}
