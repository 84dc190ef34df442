//! What the caller tells the scheduler: nodes, queues, classes and demands, in plain types.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::cluster::QueueId;
use crate::intern::Fx;

/// A moment or a span, in the caller's unit (one unit for everything told to one cluster).
pub type Time = i64;

/// No end is known: the task may run for ever.
pub const NEVER: Time = Time::MAX;

/// Base units of one whole device of a resource that comes as devices; see [`NodeSpec::devices`].
pub const DEVICE: i64 = 1000;

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
    /// Resources of `allocatable` that come as whole devices of [`DEVICE`] base units each (GPUs).
    /// A task that asks for less than one device shares one with others; one that asks for more
    /// gets whole devices that nobody else has a part of.
    pub devices: BTreeSet<String>,
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
    /// Node labels that the task needs, as terms of which one must hold. Empty: no need.
    pub required: Vec<NodeTerm>,
    /// Node labels that the task prefers, with weights; the sum of those that hold ranks nodes
    /// before the policy's score does.
    pub preferred: Vec<(i32, NodeTerm)>,
    /// The task's own labels, as far as selectors of tasks may look at them.
    pub labels: BTreeMap<String, String>,
    /// Whose labels selectors see: they look at tasks of their own namespace only.
    pub namespace: String,
    /// There must be a matching task in the node's domain (or none anywhere, and it matches itself).
    pub affinity: Vec<TaskTerm>,
    /// There must be no matching task in the node's domain. Holds in both directions.
    pub anti_affinity: Vec<TaskTerm>,
    /// How evenly matching tasks are spread over domains.
    pub spread: Vec<Spread>,
}

/// A conjunction of demands on node labels.
pub type NodeTerm = Vec<Expression>;

/// One demand on a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Expression {
    /// Label key.
    pub key: String,
    /// What must hold of its value.
    pub operator: Operator,
    /// Values that the operator takes.
    pub values: Vec<String>,
}

/// Operators of an [`Expression`], as in Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operator {
    /// The value is one of these.
    In,
    /// There is no such label, or its value is none of these.
    NotIn,
    /// There is such a label.
    Exists,
    /// There is no such label.
    DoesNotExist,
    /// The value is an integer above the one given.
    Gt,
    /// The value is an integer below the one given.
    Lt,
}

impl Expression {
    /// Whether it holds of these labels. A malformed number holds of nothing.
    pub fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let number = |text: Option<&String>| text.and_then(|t| t.parse::<i64>().ok());
        let compare = |f: fn(i64, i64) -> bool| match (number(value), number(self.values.first())) {
            (Some(have), Some(bound)) => f(have, bound),
            _ => false,
        };
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => compare(|have, bound| have > bound),
            Operator::Lt => compare(|have, bound| have < bound),
        }
    }
}

/// Tasks whose labels meet all expressions, per value of a node label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskTerm {
    /// Node label whose values are the domains; nodes without it are in none.
    pub topology_key: String,
    /// Which tasks.
    pub selector: Vec<Expression>,
}

/// A bound on how unevenly tasks are spread.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spread {
    /// Where, and which tasks count.
    pub term: TaskTerm,
    /// Most that a domain may have above the domain with fewest; at least 1.
    pub max_skew: u32,
    /// True: a domain over the bound is not used; false: it is used last.
    pub required: bool,
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
        for terms in [&mut spec.affinity, &mut spec.anti_affinity] {
            terms.sort();
            terms.dedup();
        }
        spec.spread.sort();
        spec.spread.dedup();
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
    /// By expected run time, shortest first; unknown ones last.
    ShortestJobFirst,
    /// The same by what remains; a running task makes room for a shorter one when that gains more
    /// than the work that is lost.
    ShortestRemainingTimeFirst,
    /// Between the owners inside the queue ([`Demand::owner`]), by least usage.
    Fair,
}

/// How nodes are chosen among those that fit; see [`crate::score`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Policy {
    /// Fullest node first.
    #[default]
    BinPack,
    /// Emptiest node first.
    Spread,
    /// Where least is lost for what the workload typically asks (GPU fragmentation gradient).
    Fragmentation,
}

/// What may start out of order while an earlier demand cannot start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Backfill {
    /// Anything that fits: nobody holds a reservation.
    Off,
    /// What does not delay the first demand that cannot start.
    #[default]
    Easy,
    /// What delays no earlier demand.
    Conservative,
}

/// Whether a queue takes back from others what it is owed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reclaim {
    /// Tasks of queues that hold more than their guarantee are evicted for what its own guarantee
    /// is short of.
    #[default]
    PreemptBorrowers,
    /// The same, and also until its share by weight is level with its sisters'.
    PreemptToShare,
    /// It waits until they end.
    WhenIdle,
}

/// A queue's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    /// Name of the queue above it.
    pub parent: Option<String>,
    /// Its part of what its parent has, relative to its siblings; at least 1.
    pub weight: u32,
    /// What it is owed whenever it has work, per resource.
    pub guarantee: BTreeMap<String, i64>,
    /// Most that its tasks and those of queues below it may hold at once, per resource; what is
    /// absent is not limited. Between guarantee and limit it borrows what others do not use.
    pub limit: BTreeMap<String, i64>,
    /// How it gets its guarantee when others hold it.
    pub reclaim: Reclaim,
    /// Whether its tasks of lower priority make room for those of higher.
    pub preempt_within: bool,
    /// Who goes first.
    pub order: Order,
    /// Where tasks go.
    pub policy: Policy,
    /// What goes out of order.
    pub backfill: Backfill,
    /// Past use counts half after this long; 0: as in the queue above, and at the top it does not
    /// count.
    pub half_life: Time,
}

impl Default for QueueSpec {
    fn default() -> Self {
        QueueSpec {
            parent: None,
            weight: 1,
            guarantee: BTreeMap::new(),
            limit: BTreeMap::new(),
            reclaim: Reclaim::default(),
            preempt_within: true,
            order: Order::default(),
            policy: Policy::default(),
            backfill: Backfill::default(),
            half_life: 0,
        }
    }
}

/// What is known of running tasks that started together for one demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// [`Demand::id`] of what it was started for.
    pub demand: u64,
    /// [`Demand::gang`].
    pub gang: u64,
    /// [`Demand::owner`].
    pub owner: u64,
    /// [`Demand::priority`].
    pub priority: i32,
    /// When it started.
    pub start: Time,
    /// When it is expected to end; [`NEVER`] when nothing is known.
    pub end: Time,
    /// By when it has ended almost surely; [`NEVER`] when nothing is known.
    pub end_max: Time,
    /// How often it saves its work, counted from `start`; 0: never.
    pub checkpoint: Time,
    /// Whether it may be evicted for others.
    pub preemptible: bool,
    /// It does not end by itself: a service. Nobody waits for its place.
    pub stays: bool,
}

impl Run {
    /// Of a task of which only this is known: it runs since `start`, and stays.
    pub fn since(start: Time) -> Self {
        Run {
            demand: 0,
            gang: 0,
            owner: 0,
            priority: 0,
            start,
            end: NEVER,
            end_max: NEVER,
            checkpoint: 0,
            preemptible: false,
            stays: false,
        }
    }

    /// How much of its time an eviction now would throw away: what came after the last checkpoint.
    pub fn lost(&self, now: Time) -> Time {
        let ran = now.saturating_sub(self.start).max(0);
        if self.checkpoint > 0 {
            ran % self.checkpoint
        } else {
            ran
        }
    }
}

/// Tasks of one class that wait.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The caller's own number for it, which stays the same from cycle to cycle; also the last
    /// tie-breaker of the order.
    pub id: u64,
    /// What each task needs.
    pub class: Class,
    /// Who pays.
    pub queue: QueueId,
    /// The part of the queue that it belongs to, for [`Order::Fair`] (a user, a namespace).
    pub owner: u64,
    /// Higher goes first.
    pub priority: i32,
    /// Creation time; older goes first.
    pub created: Time,
    /// How many tasks wait.
    pub count: u32,
    /// How long each is expected to run from its start (what remains of it, after an eviction);
    /// [`NEVER`] when nothing is known.
    pub run: Time,
    /// Within which it has ended almost surely; at least `run`.
    pub run_max: Time,
    /// Demands of one gang (above 0) start together or not at all.
    pub gang: u64,
    /// Of a gang: how many of `count` must start together with the others. What is beyond may follow.
    pub min: u32,
    /// Some of the gang runs already and lost members: it keeps its place before everything else.
    pub healing: bool,
    /// Its tasks may be evicted for others.
    pub preemptible: bool,
    /// How often each saves its work; 0: never.
    pub checkpoint: Time,
    /// Its tasks do not end by themselves.
    pub stays: bool,
}

impl Demand {
    /// The simplest: `count` tasks of a class, nothing else known.
    pub fn new(id: u64, class: Class, queue: QueueId, count: u32) -> Self {
        Demand {
            id,
            class,
            queue,
            owner: 0,
            priority: 0,
            created: 0,
            count,
            run: NEVER,
            run_max: NEVER,
            gang: 0,
            min: 0,
            healing: false,
            preemptible: false,
            checkpoint: 0,
            stays: false,
        }
    }

    /// What is known of its tasks when they start now.
    pub(crate) fn starts(&self, now: Time) -> Run {
        Run {
            demand: self.id,
            gang: self.gang,
            owner: self.owner,
            priority: self.priority,
            start: now,
            end: now.saturating_add(self.run),
            end_max: now.saturating_add(self.run_max.max(self.run)),
            checkpoint: self.checkpoint,
            preemptible: self.preemptible,
            stays: self.stays,
        }
    }
}
