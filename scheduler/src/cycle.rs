//! The cycle: one pass over what waits. Reads as its stages: order, then for each demand filter,
//! score and place. What is placed is taken from the cluster at once.

use crate::cluster::{Cluster, NodeId, TaskId};
use crate::order;
use crate::place::{Ask, Budget, place};
use crate::spec::{Demand, Time};

/// How much a cycle may do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Work units: demands looked at, states scored, nodes taken. The caller maps time to units,
    /// so that a replay decides the same. The cycle ends soon after they are spent.
    pub budget: u64,
    /// Most tasks placed, so that what follows from a cycle (writes) stays bounded too.
    pub placements: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            budget: u64::MAX,
            placements: u32::MAX,
        }
    }
}

/// One task that got a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Position in the demands.
    pub demand: u32,
    /// Where.
    pub node: NodeId,
    /// What it holds there, to be released when it ends or when its start fails.
    pub task: TaskId,
}

/// Why tasks of a demand still wait; [`crate::explain()`] says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The queue is not there.
    QueueMissing,
    /// The queue's limit is reached.
    QueueLimit,
    /// No node takes one more.
    NoFit,
    /// The budget, or the number of placements allowed, ended before it was this demand's turn, or during it.
    Budget,
}

/// What is left of a demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Position in the demands.
    pub demand: u32,
    /// Tasks that still wait.
    pub count: u32,
    /// Why.
    pub cause: Cause,
}

/// What a cycle decided.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// In the order decided.
    pub placements: Vec<Placement>,
    /// In the order looked at.
    pub waiting: Vec<Waiting>,
    /// Work units spent.
    pub units: u64,
}

/// Decides as many of the demands as the budget allows.
pub fn cycle(cluster: &mut Cluster, demands: &[Demand], now: Time, options: Options) -> Outcome {
    cluster.sweep();
    let mut outcome = Outcome::default();
    let mut budget = Budget {
        left: options.budget,
        spent: 0,
    };
    for position in order::order(cluster, demands) {
        let demand = &demands[position as usize];
        let room = options
            .placements
            .saturating_sub(u32::try_from(outcome.placements.len()).unwrap_or(u32::MAX));
        let (placed, cause) = decide(cluster, demand, now, room, &mut budget, |node, task| {
            outcome.placements.push(Placement {
                demand: position,
                node,
                task,
            });
        });
        if placed < demand.count {
            outcome.waiting.push(Waiting {
                demand: position,
                count: demand.count - placed,
                cause,
            });
        }
    }
    outcome.units = budget.spent;
    outcome
}

fn decide(
    cluster: &mut Cluster,
    demand: &Demand,
    now: Time,
    room: u32,
    budget: &mut Budget,
    placed: impl FnMut(NodeId, TaskId),
) -> (u32, Cause) {
    if budget.left == 0 || room == 0 {
        return (0, Cause::Budget);
    }
    budget.spend(1);
    let queue = demand.queue.0;
    let Some(spec) = &cluster.queues[queue as usize].spec else {
        return (0, Cause::QueueMissing);
    };
    let policy = spec.policy;
    let class = cluster.class(&demand.class);
    let shape = cluster.classes.all[class as usize].shape;
    let requests = &cluster.tasks.shapes.get(shape).requests;
    let allowed = cluster.queues[queue as usize]
        .head_room(requests)
        .min(demand.count);
    if allowed == 0 {
        return (0, Cause::QueueLimit);
    }
    let wanted = allowed.min(room);
    let (run, _) = cluster.tasks.runs.intern(demand.starts(now));
    let ask = Ask {
        class,
        queue,
        policy,
        run,
        count: wanted,
    };
    let count = place(cluster, ask, &[], budget, placed);
    cluster.tasks.runs.drop_unused(run);
    let cause = if count == wanted && wanted < allowed {
        Cause::Budget
    } else if count == allowed {
        Cause::QueueLimit
    } else if budget.left == 0 {
        Cause::Budget
    } else {
        Cause::NoFit
    };
    (count, cause)
}
