//! What the cluster looks like at one moment, for measures of space.

use std::collections::{BTreeMap, HashMap};

use rota_scheduler::{Class, ClassSpec, NodeId};

use super::Sim;
use crate::fragmentation::{View, share};

impl Sim<'_> {
    /// The fragmentation of devices now, for the mix of tasks that the trace is made of.
    pub(super) fn fragmentation(&self) -> Option<f64> {
        if self.devices.is_empty() {
            return None;
        }
        let mut ids: HashMap<NodeId, usize> = HashMap::new();
        let mut views: Vec<View<'_>> = Vec::new();
        for (name, spec) in &self.specs {
            if let Some(id) = self.cluster.node(name) {
                ids.insert(id, views.len());
                let free: BTreeMap<&str, i64> = self.cluster.free(id).collect();
                views.push(View::new(spec, free));
            }
        }
        for (id, task) in &self.tasks {
            let requests = &self.trace.jobs[task.job].class.spec().requests;
            let Some(view) = ids.get(&task.node) else {
                continue;
            };
            for (resource, mask) in self.cluster.devices_of(*id) {
                let asked = requests.get(resource).copied().unwrap_or(0);
                views[*view].hold(resource, mask, asked);
            }
        }
        // In order of first appearance, so that sums are the same in every run.
        let mut numbers: HashMap<&Class, usize> = HashMap::new();
        let mut mix: Vec<(&ClassSpec, u64)> = Vec::new();
        for job in &self.trace.jobs {
            let number = *numbers.entry(&job.class).or_insert(mix.len());
            if number == mix.len() {
                mix.push((job.class.spec(), 0));
            }
            mix[number].1 += u64::from(job.count);
        }
        share(&views, &mix)
    }
}
