//! What the caller tells the scheduler: nodes, queues, classes and demands, in plain types.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::cluster::QueueId;
use crate::intern::Fx;

/// What a taint does to tasks that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// Nothing new is placed.
    NoSchedule,
    /// Other nodes are tried first.
    PreferNoSchedule,
    /// Nothing new is placed (and what runs is evicted, which is not the scheduler's work).
    NoExecute,
}

/// A mark on a node that keeps tasks away.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value, may be empty.
    pub value: String,
    /// What it does.
    pub effect: Effect,
}

/// A taint that a class accepts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Toleration {
    /// Key; `None` matches every taint.
    pub key: Option<String>,
    /// Value that must be equal; `None` matches every value.
    pub value: Option<String>,
    /// Effect; `None` matches every effect.
    pub effect: Option<Effect>,
}

impl Toleration {
    /// Whether it accepts the taint.
    pub fn accepts(&self, taint: &Taint) -> bool {
        self.key.as_ref().is_none_or(|k| *k == taint.key)
            && self.value.as_ref().is_none_or(|v| *v == taint.value)
            && self.effect.is_none_or(|e| e == taint.effect)
    }
}

/// A node as the scheduler sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSpec {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// What tasks may use in all, in base units. Negative amounts count as none.
    pub allocatable: BTreeMap<String, i64>,
    /// Cordoned: takes nothing new.
    pub unschedulable: bool,
    /// Takes new tasks only while ready.
    pub ready: bool,
}

/// All that matters for placing a task. Tasks with equal specs are alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClassSpec {
    /// Amounts set aside on the node, in base units. Amounts of zero or less ask for nothing.
    pub requests: BTreeMap<String, i64>,
    /// Labels that the node must carry.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are accepted.
    pub tolerations: Vec<Toleration>,
    /// Fixed ports, each of which one task per node can have.
    pub ports: Vec<u16>,
}

/// A [`ClassSpec`] ready to be shared and looked up quickly.
#[derive(Clone, Debug)]
pub struct Class(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    spec: ClassSpec,
    hash: u64,
}

impl Class {
    /// Brings the spec into one form (sorted, without duplicates and empty requests), so that equal classes meet.
    pub fn new(mut spec: ClassSpec) -> Self {
        spec.requests.retain(|_, amount| *amount > 0);
        spec.tolerations.sort();
        spec.tolerations.dedup();
        spec.ports.sort_unstable();
        spec.ports.dedup();
        let mut hasher = Fx::default();
        spec.hash(&mut hasher);
        let hash = hasher.finish();
        Class(Arc::new(Shared { spec, hash }))
    }

    /// The spec.
    pub fn spec(&self) -> &ClassSpec {
        &self.0.spec
    }
}

impl PartialEq for Class {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.0.hash == other.0.hash && self.0.spec == other.0.spec)
    }
}
impl Eq for Class {}
impl Hash for Class {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

/// Order inside a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// By creation time.
    Fifo,
    /// By priority, then creation time.
    #[default]
    Priority,
}

/// How nodes are chosen among those that fit; see [`crate::score`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Policy {
    /// Fullest node first.
    #[default]
    BinPack,
    /// Emptiest node first.
    Spread,
}

/// A queue's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueSpec {
    /// Most that its tasks may hold at once, per resource; what is absent is not limited.
    pub limit: BTreeMap<String, i64>,
    /// Who goes first.
    pub order: Order,
    /// Where tasks go.
    pub policy: Policy,
}

/// Tasks of one class that wait.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The caller's own number for it; also the last tie-breaker of the order.
    pub id: u64,
    /// What each task needs.
    pub class: Class,
    /// Who pays.
    pub queue: QueueId,
    /// Higher goes first.
    pub priority: i32,
    /// Creation time in any unit; older goes first.
    pub created: i64,
    /// How many tasks wait.
    pub count: u32,
}
