//! The cluster: nodes, queues, and the tasks that hold resources. Owns the arithmetic.
//!
//! All changes are incremental: a task or a node that changes moves one node to another state.
//! What a trial has placed is undone by releasing it; an overlay is a clone.

pub(crate) mod devices;
mod leaving;
pub(crate) mod leftovers;
mod owners;
pub(crate) mod profiles;
pub(crate) mod queues;
pub(crate) mod states;
mod tasks;
mod typical;

use std::collections::HashMap;
use std::sync::Arc;

pub use queues::{Detached, QueueId};
pub use tasks::TaskId;

use self::devices::NodeDevices;
use self::leftovers::Measure;
use self::owners::{OWNERS_FIRST, Owners};
use self::profiles::Profiles;
use self::queues::Queue;
use self::states::{NONE, States};
pub(crate) use self::tasks::Tasks;
use self::typical::Typical;
use crate::ahead::{Lanes, Promises};
use crate::classes::{ClassEntry, Classes, Shape};
use crate::filter::Wants;
use crate::finder::BestFit;
use crate::intern::{FxMap, Names};
use crate::sequence::Sizes;
use crate::side::Side;
use crate::spec::{Class, ClassSpec, Expression, NodeSpec, NodeTerm, Operator, Time};

/// Resources that the flat arrays have room for at first; doubled when more are named.
const STRIDE_FIRST: usize = 8;
/// Classes kept before the table is dropped and filled again by what still waits.
const CLASSES_MAX: usize = 16_384;
/// Index entries (16 bytes each) kept over all classes before all indexes are dropped.
const INDEX_ENTRIES_MAX: usize = 16 << 20;

/// A node, by number. Valid while the node is there or tasks are charged to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub name: Arc<str>,
    pub spec: NodeSpec,
    /// False once removed while tasks are still charged to it, and for a name that only a task mentions.
    pub present: bool,
    pub profile: u32,
    /// Its tasks, newest first.
    pub first_task: u32,
    /// Differs after a task came, went, or was told anew; 0 before the first one came.
    pub version: u64,
}

/// The mutable picture that cycles decide on.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(crate) resources: Names,
    pub(crate) stride: usize,
    /// Per resource, log2 of the largest capacity met, rounded up: what amounts are normalised by.
    magnitude: Vec<u32>,
    pub(crate) nodes: Vec<Node>,
    /// Per node and resource. Wide, so that tasks bound by the caller cannot overflow it.
    pub(crate) used: Vec<i128>,
    /// Of `used`, what is held by tasks that are on their way out.
    pub(crate) leaving: Vec<i128>,
    /// Per resource: what all nodes have together. As long as the stride.
    pub(crate) total: Vec<i128>,
    node_ids: HashMap<Arc<str>, u32>,
    unused_nodes: Vec<u32>,
    pub(crate) profiles: Profiles,
    pub(crate) states: States,
    pub(crate) classes: Classes,
    pub(crate) tasks: Tasks,
    pub(crate) queues: Vec<Queue>,
    queue_ids: HashMap<Arc<str>, u32>,
    /// How many queues name a name as their parent.
    parent_names: HashMap<String, u32>,
    pub(crate) owners: Owners,
    /// Owners kept before the table is gone through.
    owners_max: usize,
    /// Per resource: what all tasks hold that stay. As long as the stride.
    pub(crate) charged: Vec<i128>,
    /// How often any queue's use has changed.
    pub(crate) charges: u64,
    /// The latest time told.
    pub(crate) now: Time,
    /// How many tasks hold a fixed port on a node; more than one only if the caller bound them so.
    pub(crate) ports: FxMap<(u32, u16), u32>,
    pub(crate) side: Side,
    /// Versions given to nodes.
    versions: u64,
    /// When running tasks end, as far as cycles asked, until [`Node::version`] differs.
    pub(crate) lanes: Lanes,
    /// Starts that conservative backfill has promised.
    pub(crate) promises: Promises,
    /// What came lately.
    pub(crate) sizes: Sizes,
    /// Of nodes that have devices, or had when they were last there.
    pub(crate) devices: FxMap<u32, NodeDevices>,
    pub(crate) typical: Typical,
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl Cluster {
    /// Empty.
    pub fn new() -> Self {
        Cluster {
            resources: Names::default(),
            stride: STRIDE_FIRST,
            magnitude: Vec::new(),
            nodes: Vec::new(),
            used: Vec::new(),
            leaving: Vec::new(),
            total: vec![0; STRIDE_FIRST],
            node_ids: HashMap::new(),
            unused_nodes: Vec::new(),
            profiles: Profiles::default(),
            states: States::new(STRIDE_FIRST),
            classes: Classes::default(),
            tasks: Tasks::default(),
            queues: Vec::new(),
            queue_ids: HashMap::new(),
            parent_names: HashMap::new(),
            owners: Owners::default(),
            owners_max: OWNERS_FIRST,
            charged: vec![0; STRIDE_FIRST],
            charges: 0,
            now: 0,
            ports: FxMap::default(),
            side: Side::default(),
            versions: 0,
            lanes: Lanes::default(),
            promises: Promises::default(),
            sizes: Sizes::default(),
            devices: FxMap::default(),
            typical: Typical::default(),
        }
    }

    /// Adds a node or replaces what is known of it. Tasks charged to it stay charged; where they
    /// hold more than it now has, it takes nothing new until enough of them ended.
    pub fn upsert_node(&mut self, name: &str, spec: NodeSpec) -> NodeId {
        let id = self.node_slot(name);
        let node = &self.nodes[id as usize];
        if node.present && node.spec == spec {
            return NodeId(id);
        }
        if !node.present || node.spec.labels != spec.labels {
            let old = std::mem::take(&mut self.nodes[id as usize].spec.labels);
            self.profiles.drop_labels(id, &old);
            self.profiles.carry(id, &spec.labels);
        }
        for (resource, amount) in &spec.allocatable {
            let r = self.resource(resource);
            self.learn_magnitude(r, *amount);
        }
        let node = &mut self.nodes[id as usize];
        node.spec = spec;
        node.present = true;
        self.profile_again(id);
        self.settle(id);
        NodeId(id)
    }

    /// Removes a node. Tasks charged to it stay in their queues' use until they are released.
    pub fn remove_node(&mut self, name: &str) -> bool {
        let Some(id) = self.node_ids.get(name).copied() else {
            return false;
        };
        let node = &mut self.nodes[id as usize];
        if !node.present {
            return false;
        }
        node.present = false;
        let spec = std::mem::take(&mut node.spec);
        let profile = std::mem::replace(&mut node.profile, NONE);
        self.profiles.drop_labels(id, &spec.labels);
        self.count_out(profile);
        self.states.detach(id);
        self.settle(id);
        self.forget_if_unused(id);
        true
    }

    /// The node of this name, if it is there.
    pub fn node(&self, name: &str) -> Option<NodeId> {
        let id = *self.node_ids.get(name)?;
        self.nodes[id as usize].present.then_some(NodeId(id))
    }

    /// A node's name.
    pub fn node_name(&self, node: NodeId) -> &Arc<str> {
        &self.nodes[node.0 as usize].name
    }

    /// Number of nodes that are there.
    pub fn node_count(&self) -> usize {
        self.nodes.iter().filter(|n| n.present).count()
    }

    /// Number of distinct node states: what a scan costs.
    pub fn state_count(&self) -> usize {
        self.states.live.len()
    }

    /// What all nodes have together of a resource.
    pub fn total(&self, resource: &str) -> i64 {
        let r = self.resources.get(resource);
        r.map_or(0, |r| clamp(self.total[r as usize]))
    }

    /// What is free on a node, by resource; negative where tasks hold more than the node now has.
    pub fn free(&self, node: NodeId) -> impl Iterator<Item = (&str, i64)> {
        let state = self.states.of_node[node.0 as usize];
        let free = (state != NONE).then(|| self.states.free_of(state));
        (0..self.resources.len())
            .filter_map(move |r| Some((self.resources.name(r as u32).as_ref(), free?[r])))
    }

    fn node_slot(&mut self, name: &str) -> u32 {
        if let Some(id) = self.node_ids.get(name) {
            return *id;
        }
        let node = Node {
            name: name.into(),
            spec: NodeSpec::default(),
            present: false,
            profile: NONE,
            first_task: NONE,
            version: 0,
        };
        let shared = node.name.clone();
        let id = match self.unused_nodes.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.used.resize(self.nodes.len() * self.stride, 0);
                self.leaving.resize(self.nodes.len() * self.stride, 0);
                self.states.grow_nodes(self.nodes.len());
                self.nodes.len() as u32 - 1
            }
        };
        self.node_ids.insert(shared, id);
        id
    }

    fn forget_if_unused(&mut self, id: u32) {
        let node = &self.nodes[id as usize];
        if !node.present && node.first_task == NONE {
            self.node_ids.remove(&node.name);
            self.devices.remove(&id);
            self.unused_nodes.push(id);
        }
    }

    /// Number of a resource; makes room when there are more of them than ever.
    pub(crate) fn resource(&mut self, name: &str) -> u32 {
        let r = self.resources.intern(name);
        if self.magnitude.len() < self.resources.len() {
            self.magnitude.resize(self.resources.len(), 0);
        }
        if self.resources.len() > self.stride {
            self.widen(self.stride * 2);
        }
        r
    }

    fn widen(&mut self, stride: usize) {
        for amounts in [&mut self.used, &mut self.leaving] {
            let mut wide = vec![0; self.nodes.len() * stride];
            for n in 0..self.nodes.len() {
                wide[n * stride..n * stride + self.stride]
                    .copy_from_slice(&amounts[n * self.stride..(n + 1) * self.stride]);
            }
            *amounts = wide;
        }
        self.total.resize(stride, 0);
        self.charged.resize(stride, 0);
        self.stride = stride;
        self.profiles.widen(stride);
        for queue in &mut self.queues {
            queue.widen(stride);
        }
        for owned in self.owners.values_mut() {
            owned.held.resize(stride, 0);
        }
        self.states = States::new(stride);
        self.states.grow_nodes(self.nodes.len());
        self.drop_indexes();
        for n in 0..self.nodes.len() as u32 {
            self.attach(n);
        }
    }

    fn learn_magnitude(&mut self, r: u32, amount: i64) {
        let bits = 64 - (amount.max(1) - 1).leading_zeros();
        if bits > self.magnitude[r as usize] {
            self.magnitude[r as usize] = bits;
            for i in 0..self.states.live.len() {
                let state = self.states.live[i];
                let measure = Measure::of(&self.magnitude, self.states.free_of(state), 0);
                self.states.leftover[state as usize] = measure.leftover;
                self.states.digest[state as usize] = measure.digest;
            }
            self.states.leftovers.stop();
            self.drop_indexes();
        }
    }

    pub(crate) fn drop_indexes(&mut self) {
        for class in &mut self.classes.all {
            class.indexes.clear();
            class.best_fit = BestFit::default();
            class.parked.clear();
        }
    }

    /// One node less has this profile.
    fn count_out(&mut self, profile: u32) {
        self.profiles.nodes[profile as usize] -= 1;
        let capacity = &self.profiles.all[profile as usize].capacity;
        for (sum, amount) in self.total.iter_mut().zip(capacity) {
            *sum -= i128::from(*amount);
        }
    }

    fn profile_again(&mut self, id: u32) {
        let n = id as usize;
        let mut capacity = vec![0; self.stride];
        for (resource, amount) in &self.nodes[n].spec.allocatable {
            if let Some(r) = self.resources.get(resource) {
                capacity[r as usize] = (*amount).max(0);
            }
        }
        let spec = &self.nodes[n].spec;
        let devices = devices::layout(spec, |name| self.resources.get(name), &mut capacity);
        let profile = self.profiles.of(spec, capacity.into(), devices);
        self.set_profile(id, profile);
    }

    /// Moves a node to a profile, and so to another state.
    fn set_profile(&mut self, id: u32, profile: u32) {
        let n = id as usize;
        let old = std::mem::replace(&mut self.nodes[n].profile, profile);
        if old != NONE {
            self.count_out(old);
        }
        let capacity = &self.profiles.all[profile as usize].capacity;
        for (sum, amount) in self.total.iter_mut().zip(capacity) {
            *sum += i128::from(*amount);
        }
        self.profiles.nodes[profile as usize] += 1;
        self.lay_out(id);
        self.states.detach(id);
        self.attach(id);
    }

    /// Puts a detached node into the state that its profile and use make.
    fn attach(&mut self, id: u32) {
        let node = &self.nodes[id as usize];
        if node.profile == NONE {
            return;
        }
        let profile = &self.profiles.all[node.profile as usize];
        let capacity = &profile.capacity;
        let devices = if profile.devices.is_empty() {
            Box::default()
        } else {
            let devices = self.devices.get(&id);
            devices.map(NodeDevices::sorted).unwrap_or_default()
        };
        let used = &self.used[id as usize * self.stride..(id as usize + 1) * self.stride];
        // No allocation for the usual width: this runs once per placement.
        let mut small = [0; STRIDE_FIRST];
        let mut large = Vec::new();
        let free: &mut [i64] = if self.stride == STRIDE_FIRST {
            &mut small
        } else {
            large.resize(self.stride, 0);
            &mut large
        };
        for (f, (c, u)) in free.iter_mut().zip(capacity.iter().zip(used)) {
            *f = clamp(i128::from(*c) - *u);
        }
        let (magnitude, traits) = (&self.magnitude, profile.traits);
        let free = &*free;
        self.states.attach(id, node.profile, free, devices, || {
            Measure::of(magnitude, free, traits)
        });
        if self.states.count[self.states.of_node[id as usize] as usize] > 1 {
            self.side.joined(id);
        }
    }

    /// Number of a class; new ones learn their shape, labels and profiles.
    pub(crate) fn class(&mut self, class: &Class) -> u32 {
        if let Some(id) = self.classes.ids.get(class) {
            return *id;
        }
        let shape = self.shape(class);
        self.tasks.shapes.keep(shape, 1);
        let wants = self.wants(class.spec());
        let own = self.own_terms(class.spec());
        let id = self.classes.all.len() as u32;
        self.classes
            .all
            .push(ClassEntry::new(class.clone(), shape, wants, own));
        self.classes.ids.insert(class.clone(), id);
        id
    }

    /// Lets a class look at profiles that are new to it.
    pub(crate) fn learn_profiles(&mut self, class: u32) {
        self.classes.all[class as usize].learn(&self.profiles);
    }

    /// What the order by what is left over should know of a state.
    pub(crate) fn measure(&self, state: u32) -> Measure {
        let profile = self.states.profile[state as usize] as usize;
        let traits = self.profiles.all[profile].traits;
        Measure::of(&self.magnitude, self.states.free_of(state), traits)
    }

    /// What is asked for, as the order of states by what is left over compares it.
    pub(crate) fn asked(&self, requests: &[(u32, i64)]) -> u64 {
        leftovers::digest(&self.magnitude, requests.iter().copied())
    }

    /// What a class asks of node labels; nodes that meet a new atom move to other profiles.
    fn wants(&mut self, spec: &ClassSpec) -> Wants {
        let mut pairs = Vec::new();
        for (key, value) in &spec.node_selector {
            let (atom, new) = self.profiles.ask(key, value);
            pairs.push(atom);
            if new {
                let nodes = self.profiles.carriers(key, value);
                self.meet(nodes, atom);
            }
        }
        pairs.sort_unstable();
        Wants {
            pairs: pairs.into(),
            required: spec.required.iter().map(|t| self.term(t)).collect(),
            preferred: spec
                .preferred
                .iter()
                .map(|(weight, t)| (*weight, self.term(t)))
                .collect(),
        }
    }

    fn term(&mut self, term: &NodeTerm) -> Box<[u32]> {
        let mut atoms = Vec::with_capacity(term.len());
        for expression in term {
            let (atom, new) = self.profiles.ask_expression(expression);
            atoms.push(atom);
            if new {
                let nodes = self.nodes_that_meet(expression);
                self.meet(nodes, atom);
            }
        }
        atoms.into()
    }

    /// Nodes of whose labels an expression holds, in a fixed order.
    fn nodes_that_meet(&self, expression: &Expression) -> Vec<u32> {
        if expression.operator == Operator::In {
            let values = expression.values.iter();
            let mut nodes: Vec<u32> = values
                .flat_map(|value| self.profiles.carriers(&expression.key, value))
                .collect();
            nodes.sort_unstable();
            nodes.dedup();
            return nodes;
        }
        let holds = |n: &u32| {
            let node = &self.nodes[*n as usize];
            node.present && expression.holds(&node.spec.labels)
        };
        (0..self.nodes.len() as u32).filter(holds).collect()
    }

    fn meet(&mut self, nodes: Vec<u32>, atom: u32) {
        let mut moves: FxMap<u32, u32> = FxMap::default();
        for node in nodes {
            let old = self.nodes[node as usize].profile;
            let new = *moves
                .entry(old)
                .or_insert_with(|| self.profiles.with(old, atom));
            self.set_profile(node, new);
        }
    }

    fn shape(&mut self, class: &Class) -> u32 {
        let spec = class.spec();
        let requests = spec
            .requests
            .iter()
            .map(|(name, amount)| (self.resource(name), *amount))
            .collect();
        let tag = self.tag(spec);
        let shape = Shape {
            requests,
            ports: spec.ports.as_slice().into(),
            tag,
        };
        let (id, new) = self.tasks.shapes.intern(shape);
        if new {
            self.side.keep_tag(tag);
        }
        id
    }

    /// One user less of a shape; with the last one goes what it counted for.
    fn drop_shape(&mut self, id: u32) {
        if let Some(shape) = self.tasks.shapes.drop_one(id) {
            self.side.drop_tag(shape.tag);
        }
    }

    /// Drops caches that have grown beyond their bounds. Called between cycles.
    pub(crate) fn sweep(&mut self) {
        self.sweep_owners();
        let profiles_max = 2 * self.profiles.live() + 1024;
        if self.classes.all.len() > CLASSES_MAX || self.profiles.all.len() > profiles_max {
            for class in std::mem::take(&mut self.classes).all {
                self.drop_own_terms(&class.own);
                self.drop_shape(class.shape);
            }
            self.total.fill(0);
            self.states.leftovers.stop();
            self.profiles.forget();
            self.typical.forget_profiles();
            for n in 0..self.nodes.len() as u32 {
                self.nodes[n as usize].profile = NONE;
                if self.nodes[n as usize].present {
                    self.profile_again(n);
                }
            }
        }
        let entries: usize = self
            .classes
            .all
            .iter()
            .flat_map(|c| &c.indexes)
            .map(|(_, index)| index.len())
            .sum();
        if entries > INDEX_ENTRIES_MAX {
            self.drop_indexes();
        }
    }
}

/// Into the range of i64.
pub(crate) fn clamp(amount: i128) -> i64 {
    i64::try_from(amount).unwrap_or(if amount < 0 { i64::MIN } else { i64::MAX })
}
