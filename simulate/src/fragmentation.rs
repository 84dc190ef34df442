//! Fragmentation of GPUs: how much of what is free a typical task cannot use.
//!
//! After "Beware of Fragmentation" (Weng et al., USENIX ATC 2023): a task that fits a node finds
//! those of its devices of no use whose free part is smaller than what it asks of one device; a
//! task that does not fit finds none of them of use. The measure is the mean over the GPU tasks of
//! the workload.

use std::collections::BTreeMap;

use rota_scheduler::{ClassSpec, DEVICE, NodeSpec};

/// Devices of one resource on a node that are told apart, as in the scheduler.
const DEVICES_MAX: usize = 64;

/// A node at one moment.
#[derive(Clone, Debug)]
pub(crate) struct View<'a> {
    pub spec: &'a NodeSpec,
    /// What is free, by resource; absent is none.
    pub free: BTreeMap<&'a str, i64>,
    /// Per resource that comes as devices: the free part of each.
    pub devices: BTreeMap<&'a str, Vec<i64>>,
}

impl<'a> View<'a> {
    /// A node with nothing on its devices.
    pub fn new(spec: &'a NodeSpec, free: BTreeMap<&'a str, i64>) -> Self {
        let count = |name: &String| {
            let amount = spec.allocatable.get(name).copied().unwrap_or(0);
            usize::try_from(amount / DEVICE)
                .unwrap_or(0)
                .min(DEVICES_MAX)
        };
        let devices = spec.devices.iter();
        View {
            spec,
            free,
            devices: devices
                .map(|name| (name.as_str(), vec![DEVICE; count(name)]))
                .collect(),
        }
    }

    /// A task with this request holds these devices (bit `i` is device `i`).
    pub fn hold(&mut self, resource: &str, mask: u64, asked: i64) {
        if let Some(devices) = self.devices.get_mut(resource) {
            for (i, free) in devices.iter_mut().enumerate() {
                if mask >> i & 1 == 1 {
                    *free = (*free - asked.min(DEVICE)).max(0);
                }
            }
        }
    }
}

/// Free device units that a task drawn from the mix (class, how often) cannot use, as a part of
/// all device units; `None` without devices or without tasks that ask for them.
pub(crate) fn share(nodes: &[View<'_>], mix: &[(&ClassSpec, u64)]) -> Option<f64> {
    let all = |node: &View<'_>| {
        let each = node.devices.values();
        each.map(|d| d.len() as i64 * DEVICE).sum::<i64>()
    };
    let total: i64 = nodes.iter().map(all).sum();
    let mut tasks = 0u64;
    let mut lost = 0.0;
    for (class, times) in mix {
        let asks = |node: &View<'_>| {
            let mut names = node.devices.keys();
            names.any(|name| class.requests.contains_key(*name))
        };
        if !nodes.iter().any(asks) {
            continue;
        }
        tasks += times;
        let sum: i64 = nodes.iter().map(|node| unusable(node, class)).sum();
        lost += sum as f64 * *times as f64;
    }
    (tasks > 0 && total > 0).then(|| lost / tasks as f64 / total as f64)
}

/// Free device units of the node that a task of the class cannot use.
fn unusable(node: &View<'_>, class: &ClassSpec) -> i64 {
    let fits = fits(node, class);
    node.devices
        .iter()
        .map(|(name, devices)| {
            let asked = class.requests.get(*name).copied().unwrap_or(0);
            let small = |free: &&i64| !fits || asked == 0 || **free < asked.min(DEVICE);
            devices.iter().filter(small).sum::<i64>()
        })
        .sum()
}

fn fits(node: &View<'_>, class: &ClassSpec) -> bool {
    let labels = &node.spec.labels;
    let selected = class
        .node_selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value));
    let term = |term: &Vec<rota_scheduler::Expression>| term.iter().all(|e| e.holds(labels));
    let allowed = class.required.is_empty() || class.required.iter().any(term);
    selected
        && allowed
        && class.requests.iter().all(|(name, asked)| {
            let free = node.free.get(name.as_str()).copied().unwrap_or(0);
            free >= *asked
                && node.devices.get(name.as_str()).is_none_or(|devices| {
                    if *asked < DEVICE {
                        devices.iter().any(|free| free >= asked)
                    } else {
                        let whole = devices.iter().filter(|free| **free == DEVICE).count();
                        whole as i64 * DEVICE >= *asked
                    }
                })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GPU;

    #[test]
    fn parts_that_are_too_small_and_nodes_without_cpu_are_lost() {
        let spec = NodeSpec::default();
        let node = |cpu: i64, devices: &[i64]| View {
            spec: &spec,
            free: BTreeMap::from([("cpu", cpu), (GPU, devices.iter().sum())]),
            devices: BTreeMap::from([(GPU, devices.to_vec())]),
        };
        let class = |cpu: i64, gpu: i64| ClassSpec {
            requests: BTreeMap::from([("cpu".into(), cpu), (GPU.into(), gpu)]),
            ..ClassSpec::default()
        };
        let nodes = [node(4, &[1000, 300]), node(0, &[500, 0])];
        let (whole, part) = (class(1, 1000), class(1, 200));
        // The whole one cannot use 300 and, without CPU there, 500; the part only not the 500.
        assert_eq!(share(&nodes, &[(&whole, 1)]), Some(0.2));
        assert_eq!(share(&nodes, &[(&part, 1)]), Some(0.125));
        assert_eq!(share(&nodes, &[(&whole, 1), (&part, 3)]), Some(0.14375));
        let cpu_only = ClassSpec::default();
        assert_eq!(share(&nodes, &[(&cpu_only, 5)]), None);
    }
}
