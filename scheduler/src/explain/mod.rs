//! Explain: why a class does not fit now, all blockers at once, who holds what it waits for, and
//! the smallest change that would help.

mod holders;
mod nodes;
mod queue;

pub use holders::{HOLDERS_MAX, Holder};

use crate::cluster::{Cluster, Detached, QueueId};
use crate::spec::{Class, Taint};

/// One thing that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocker {
    /// There is no node at all.
    NoNodes,
    /// The queue is not there.
    QueueMissing,
    /// The queue is on no tree: what it names as its parent is missing, or is below it.
    QueueDetached(Detached),
    /// The limit of the queue, or of one above it, leaves less than is needed.
    QueueLimit {
        /// The queue whose limit it is.
        queue: String,
        /// Resource.
        resource: String,
        /// The limit.
        limit: i64,
        /// What its tasks hold; with those that leave, where they are what is too much.
        used: i64,
        /// What is asked for: one task, or what must start together.
        request: i64,
    },
    /// Tasks that must start together, of which fewer fit now.
    TooFewTogether {
        /// How many must.
        needed: u32,
        /// How many fit.
        fit: u32,
    },
    /// Nodes that are not ready.
    NodeNotReady {
        /// How many.
        nodes: u32,
    },
    /// Nodes that are cordoned.
    NodeUnschedulable {
        /// How many.
        nodes: u32,
    },
    /// Nodes with a taint that the class does not tolerate.
    TaintNotTolerated {
        /// The taint.
        taint: Taint,
        /// How many.
        nodes: u32,
    },
    /// Nodes without a label that the class asks for.
    NodeSelectorMismatch {
        /// How many.
        nodes: u32,
    },
    /// Nodes whose labels meet none of the class's required terms.
    NodeAffinityMismatch {
        /// How many.
        nodes: u32,
    },
    /// Nodes that would do, but have too little free now.
    InsufficientResource {
        /// Resource.
        resource: String,
        /// How many.
        nodes: u32,
        /// What one task asks for.
        request: i64,
        /// The most that one of those nodes has free.
        most_free: i64,
    },
    /// Nodes that would do, but on which a fixed port is taken.
    PortInUse {
        /// How many.
        nodes: u32,
    },
    /// Nodes that would do, but whose domain has no task that the class must be with.
    Affinity {
        /// How many.
        nodes: u32,
    },
    /// Nodes that would do, but whose domain has a task that the class must not be with, or that
    /// must not be with it.
    AntiAffinity {
        /// How many.
        nodes: u32,
    },
    /// Nodes that would do, but whose domain has too many tasks compared with the emptiest.
    SpreadSkew {
        /// How many.
        nodes: u32,
    },
    /// No node that the class may use could hold one task, even empty.
    NeverFits {
        /// Resource.
        resource: String,
        /// What one task asks for.
        request: i64,
        /// The most that one of those nodes has in all.
        most: i64,
    },
}

/// A change after which one more task would start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Ask for less: `(resource, from, to)`.
    Lower(Vec<(String, i64, i64)>),
    /// Do not ask for this label; this many nodes would then take a task.
    DropSelector {
        /// Label key.
        key: String,
        /// Label value.
        value: String,
        /// Nodes that would do.
        nodes: u32,
    },
    /// Require nothing of node labels beyond the selector; this many nodes would then take a task.
    DropNodeAffinity {
        /// Nodes that would do.
        nodes: u32,
    },
    /// Tolerate this taint; this many nodes would then take a task.
    Tolerate {
        /// The taint.
        taint: Taint,
        /// Nodes that would do.
        nodes: u32,
    },
    /// Raise limits of queues: `(queue, resource, from, to)`.
    RaiseQueueLimit(Vec<(String, String, i64, i64)>),
    /// Start fewer together.
    LowerTogether {
        /// As it is.
        from: u32,
        /// What fits now.
        to: u32,
    },
    /// Create the queue.
    CreateQueue,
}

/// Why a class waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Everything that stands in the way; empty when one more task fits now.
    pub blockers: Vec<Blocker>,
    /// What would help most cheaply, where a change of the work itself would.
    pub change: Option<Change>,
    /// True when no node could ever hold a task of the class.
    pub never: bool,
    /// Who holds what lacks on the nodes that would do, most first; at most [`HOLDERS_MAX`].
    pub holders: Vec<Holder>,
}

/// Explains why `together` tasks of the class (1 outside of gangs) do not start. Costs one look at
/// every state, one at every node for classes with fixed ports or under rules between tasks, and
/// one at a bounded number of tasks.
pub fn explain(cluster: &mut Cluster, class: &Class, queue: QueueId, together: u32) -> Explanation {
    let id = cluster.class(class);
    cluster.learn_profiles(id);
    let cluster = &*cluster;
    let mut out = Explanation::default();
    let shape = cluster.classes.all[id as usize].shape;
    let requests = &cluster.tasks.shapes.get(shape).requests;
    let raise = queue::blockers(cluster, queue, requests, together, &mut out.blockers);
    let nodes = nodes::look_at_nodes(cluster, id, &mut out.blockers);
    out.never = nodes.never;
    let mut change = nodes.change;
    if nodes.fitting > 0 && together > 1 {
        let fit = nodes::how_many_fit(cluster, id, together);
        if fit < together {
            out.blockers.push(Blocker::TooFewTogether {
                needed: together,
                fit,
            });
            change = Some(Change::LowerTogether {
                from: together,
                to: fit,
            });
        }
    }
    let lacks = |b: &Blocker| {
        matches!(
            b,
            Blocker::InsufficientResource { .. } | Blocker::TooFewTogether { .. }
        )
    };
    if out.blockers.iter().any(lacks) {
        out.holders = holders::holders(cluster, id);
    }
    out.change = if cluster.queues[queue.0 as usize].spec.is_none() {
        Some(Change::CreateQueue)
    } else if nodes.fitting > 0 && change.is_none() && !raise.is_empty() {
        Some(Change::RaiseQueueLimit(raise))
    } else {
        change
    };
    out
}
