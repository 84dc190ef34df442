//! Profiles: what does not change about nodes while tasks come and go.
//!
//! A profile is a capacity and *traits*: taints, cordon, readiness, and which of the *atoms* the node
//! meets. Whether a class may use a node depends on its traits alone, of which there are few however
//! many capacities there are. An atom is a label pair or an expression over labels that some class
//! asks for. Labels that nobody asks about do not split nodes. When a class asks for a new atom, only
//! the nodes that meet it move to other profiles.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::devices::{self, Layout};
use super::states::NONE;
use crate::filter;
use crate::intern::{FxMap, FxSet};
use crate::spec::{DEVICE, Expression, NodeSpec, Operator, Taint};

/// What decides which classes may use a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Traits {
    /// Atoms that are asked for and met, sorted.
    pub atoms: Box<[u32]>,
    /// Sorted.
    pub taints: Box<[Taint]>,
    pub ready: bool,
    pub unschedulable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Profile {
    /// Amounts in all, as long as the stride.
    pub capacity: Box<[i64]>,
    /// Number in [`Profiles::traits`].
    pub traits: u32,
    /// Resources that come as devices.
    pub devices: Box<Layout>,
}

impl Profile {
    /// Whether an empty node could hold one task with these requests.
    pub fn could_hold(&self, requests: &[(u32, i64)]) -> bool {
        filter::fits(&self.usable(requests), requests)
    }

    /// How many tasks an empty node could hold.
    pub fn how_many(&self, requests: &[(u32, i64)]) -> u32 {
        let most = filter::how_many(&self.capacity, requests);
        if self.devices.is_empty() {
            return most;
        }
        most.min(devices::room(&self.devices, &self.all_devices(), requests))
    }

    /// The most that one task with these requests could get of each resource on an empty node.
    pub fn usable(&self, requests: &[(u32, i64)]) -> Cow<'_, [i64]> {
        if self.devices.is_empty() {
            return Cow::Borrowed(&self.capacity);
        }
        let mut amounts = self.capacity.to_vec();
        devices::usable(&self.devices, &self.all_devices(), &mut amounts, requests);
        Cow::Owned(amounts)
    }

    fn all_devices(&self) -> Vec<i64> {
        let count: u32 = self.devices.iter().map(|(_, count)| count).sum();
        vec![DEVICE; count as usize]
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Profiles {
    /// Resources that come, or came, as devices on some node.
    pub device_resources: BTreeSet<u32>,
    pub all: Vec<Profile>,
    /// Nodes per profile.
    pub nodes: Vec<u32>,
    ids: FxMap<Profile, u32>,
    /// Traits that some profile has, or had, by number.
    pub traits: Vec<Traits>,
    traits_ids: FxMap<Traits, u32>,
    /// Atoms that are label pairs; numbers are shared with `expressions`.
    pairs: FxMap<(String, String), u32>,
    /// Atoms that are expressions, in order of number.
    expressions: Vec<(Expression, u32)>,
    expression_ids: FxMap<Expression, u32>,
    carriers: FxMap<(String, String), FxSet<u32>>,
}

impl Profiles {
    /// Number of a label pair that some class asks for; second is true when it was not known before.
    pub fn ask(&mut self, key: &str, value: &str) -> (u32, bool) {
        let known = self.atom_count();
        let id = *self
            .pairs
            .entry((key.to_owned(), value.to_owned()))
            .or_insert(known);
        (id, id == known)
    }

    /// The same of an expression. One that allows a single value is the atom of that pair.
    pub fn ask_expression(&mut self, expression: &Expression) -> (u32, bool) {
        if let (Operator::In, [value]) = (expression.operator, expression.values.as_slice()) {
            return self.ask(&expression.key, value);
        }
        if let Some(id) = self.expression_ids.get(expression) {
            return (*id, false);
        }
        let id = self.atom_count();
        self.expression_ids.insert(expression.clone(), id);
        self.expressions.push((expression.clone(), id));
        (id, true)
    }

    fn atom_count(&self) -> u32 {
        (self.pairs.len() + self.expressions.len()) as u32
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
    pub fn of(&mut self, spec: &NodeSpec, capacity: Box<[i64]>, devices: Box<Layout>) -> u32 {
        let mut atoms: Vec<u32> = if self.pairs.is_empty() {
            Vec::new()
        } else {
            spec.labels
                .iter()
                .filter_map(|(k, v)| self.pairs.get(&(k.clone(), v.clone())).copied())
                .collect()
        };
        let met = self.expressions.iter();
        atoms.extend(met.filter(|(e, _)| e.holds(&spec.labels)).map(|(_, id)| id));
        atoms.sort_unstable();
        let mut taints = spec.taints.clone();
        taints.sort();
        taints.dedup();
        let traits = self.intern_traits(Traits {
            atoms: atoms.into(),
            taints: taints.into(),
            ready: spec.ready,
            unschedulable: spec.unschedulable,
        });
        self.intern(Profile {
            capacity,
            traits,
            devices,
        })
    }

    /// The profile that differs from one by meeting an atom more. Looks at no other atom.
    pub fn with(&mut self, profile: u32, atom: u32) -> u32 {
        let profile = self.all[profile as usize].clone();
        let mut traits = self.traits[profile.traits as usize].clone();
        if let Err(at) = traits.atoms.binary_search(&atom) {
            let mut atoms = traits.atoms.into_vec();
            atoms.insert(at, atom);
            traits.atoms = atoms.into();
        }
        let traits = self.intern_traits(traits);
        self.intern(Profile { traits, ..profile })
    }

    /// The traits of a profile.
    pub fn traits_of(&self, profile: u32) -> &Traits {
        &self.traits[self.all[profile as usize].traits as usize]
    }

    fn intern_traits(&mut self, traits: Traits) -> u32 {
        if let Some(id) = self.traits_ids.get(&traits) {
            return *id;
        }
        let id = self.traits.len() as u32;
        self.traits.push(traits.clone());
        self.traits_ids.insert(traits, id);
        id
    }

    fn intern(&mut self, profile: Profile) -> u32 {
        if let Some(id) = self.ids.get(&profile) {
            return *id;
        }
        let id = self.all.len() as u32;
        debug_assert_ne!(id, NONE);
        self.device_resources
            .extend(profile.devices.iter().map(|(r, _)| *r));
        self.all.push(profile.clone());
        self.nodes.push(0);
        self.ids.insert(profile, id);
        id
    }

    /// Forgets atoms and profiles (not who carries which label). Every node needs its profile again.
    pub fn forget(&mut self) {
        self.all.clear();
        self.nodes.clear();
        self.ids.clear();
        self.traits.clear();
        self.traits_ids.clear();
        self.pairs.clear();
        self.expressions.clear();
        self.expression_ids.clear();
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
