//! Profiles: what does not change about nodes while tasks come and go.
//!
//! A profile is capacity, taints, cordon, readiness, and which of the label pairs *that some class
//! asks for* the node carries. Labels that nobody asks about do not split nodes. When a class asks
//! for a new pair, only the nodes that carry it move to other profiles.

use super::states::NONE;
use crate::intern::{FxMap, FxSet};
use crate::spec::{NodeSpec, Taint};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Profile {
    /// Amounts in all, as long as the stride.
    pub capacity: Box<[i64]>,
    /// Pairs that are asked for and carried, sorted.
    pub pairs: Box<[u32]>,
    /// Sorted.
    pub taints: Box<[Taint]>,
    pub ready: bool,
    pub unschedulable: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Profiles {
    pub all: Vec<Profile>,
    /// Nodes per profile.
    pub nodes: Vec<u32>,
    ids: FxMap<Profile, u32>,
    pairs: FxMap<(String, String), u32>,
    carriers: FxMap<(String, String), FxSet<u32>>,
}

impl Profiles {
    /// Number of a label pair that some class asks for; second is true when it was not known before.
    pub fn ask(&mut self, key: &str, value: &str) -> (u32, bool) {
        let known = self.pairs.len() as u32;
        let id = *self
            .pairs
            .entry((key.to_owned(), value.to_owned()))
            .or_insert(known);
        (id, id == known)
    }

    /// Number of a pair that some class asks for.
    pub fn pair(&self, key: &str, value: &str) -> Option<u32> {
        self.pairs.get(&(key.to_owned(), value.to_owned())).copied()
    }

    /// Nodes that carry a pair, in a fixed order.
    pub fn carriers(&self, key: &str, value: &str) -> Vec<u32> {
        let mut nodes: Vec<u32> = self
            .carriers
            .get(&(key.to_owned(), value.to_owned()))
            .into_iter()
            .flatten()
            .copied()
            .collect();
        nodes.sort_unstable();
        nodes
    }

    pub fn carry(&mut self, node: u32, labels: &std::collections::BTreeMap<String, String>) {
        for (k, v) in labels {
            self.carriers
                .entry((k.clone(), v.clone()))
                .or_default()
                .insert(node);
        }
    }

    pub fn drop_labels(&mut self, node: u32, labels: &std::collections::BTreeMap<String, String>) {
        for (k, v) in labels {
            let key = (k.clone(), v.clone());
            if let Some(set) = self.carriers.get_mut(&key) {
                set.remove(&node);
                if set.is_empty() {
                    self.carriers.remove(&key);
                }
            }
        }
    }

    /// The profile of a node; `capacity` is as long as the stride.
    pub fn of(&mut self, spec: &NodeSpec, capacity: Box<[i64]>) -> u32 {
        let mut pairs: Vec<u32> = if self.pairs.is_empty() {
            Vec::new()
        } else {
            spec.labels
                .iter()
                .filter_map(|(k, v)| self.pairs.get(&(k.clone(), v.clone())).copied())
                .collect()
        };
        pairs.sort_unstable();
        let mut taints = spec.taints.clone();
        taints.sort();
        taints.dedup();
        let profile = Profile {
            capacity,
            pairs: pairs.into(),
            taints: taints.into(),
            ready: spec.ready,
            unschedulable: spec.unschedulable,
        };
        if let Some(id) = self.ids.get(&profile) {
            return *id;
        }
        let id = self.all.len() as u32;
        debug_assert_ne!(id, NONE);
        self.all.push(profile.clone());
        self.nodes.push(0);
        self.ids.insert(profile, id);
        id
    }

    /// Forgets pairs and profiles (not who carries which label). Every node needs its profile again.
    pub fn forget(&mut self) {
        self.all.clear();
        self.nodes.clear();
        self.ids.clear();
        self.pairs.clear();
    }

    pub fn live(&self) -> usize {
        self.nodes.iter().filter(|n| **n > 0).count()
    }
}

impl Profiles {
    /// Gives every capacity room for more resources.
    pub fn widen(&mut self, stride: usize) {
        self.ids.clear();
        for (i, profile) in self.all.iter_mut().enumerate() {
            let mut capacity = std::mem::take(&mut profile.capacity).into_vec();
            capacity.resize(stride, 0);
            profile.capacity = capacity.into();
            self.ids.insert(profile.clone(), i as u32);
        }
    }
}
