//! Preempt: who has to leave so that tasks of higher rank can start.
//!
//! Answers with the cheapest set of running tasks it finds whose leaving makes room for *all* tasks
//! asked for, and with the nodes where they go. Nothing is evicted for a start that does not happen
//! in the same decision. Room that is free, and room of tasks that leave already, is used first:
//! nobody is evicted twice for the same space.
//!
//! Files: `rank` says who may be evicted by whom, `cost` what that loses, `cover` picks the cheapest
//! among those who together suffice, `on_node` and `limits` say for what, `search` picks nodes and
//! undoes what it tried.
//!
//! **Never a cycle.** Inside a queue a task is only evicted by one that comes before it by the
//! queue's own order (priority; or priority and then shorter remaining time, by more than what the
//! eviction loses), and eviction only adds to what remains of the victim. Those relations are strict
//! orders, so along a chain of evictions A by B by C ... no task comes back. Orders by age and by
//! expected time alone evict nobody: the victim would be the first to come again. Between queues
//! every single eviction is asked about with what really goes (`fair::reclaim`, which has the proof
//! that such moves never come back to where they were). A task placed in this cycle is no victim in it.
//!
//! **Work** is bounded by the budget: one unit per queue and priority asked about, per task and per
//! node looked at. When nobody may be evicted and nobody leaves, the answer costs no more than
//! the number of pairs of queue and priority.

mod cost;
mod cover;
mod limits;
mod on_node;
mod rank;
mod search;
#[cfg(test)]
mod tests;

use crate::cluster::{Cluster, TaskId};
use crate::place::{Budget, Veto};
use crate::spec::{Demand, Time};

use self::cost::Weigh;
use self::rank::Rank;
use self::search::Search;

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want<'a> {
    /// Number of the demand's class.
    pub class: u32,
    /// How many tasks: all of them or none.
    pub count: u32,
    /// Who pays.
    pub queue: u32,
    pub priority: i32,
    /// [`crate::Options::restart`].
    pub restart: Time,
    pub demand: &'a Demand,
}

/// How room is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Eviction {
    /// Who leaves. Empty when those that leave already make enough room.
    pub victims: Vec<TaskId>,
    /// Where the tasks go: node and count, each node once.
    pub places: Vec<(u32, u32)>,
    /// What is lost; see `cost`.
    pub cost: i128,
}

/// The cheapest set of tasks found whose leaving makes room for `want.count` tasks of the class, or
/// `None`. Changes nothing: what it tries on the cluster it takes back. At most `limit_victims` leave.
///
/// Promises about the result: all victims may be evicted for this demand; a gang leaves whole; with
/// the victims gone every place holds its tasks by amounts, ports and node rules, and no queue is over
/// its limit; no victim can be left out. For one task and victims without gangs the cost is at
/// most `victims.len()` times the least possible on the nodes looked at: least when there is one victim.
pub(crate) fn victims(
    cluster: &mut Cluster,
    want: &Want<'_>,
    now: Time,
    limit_victims: u32,
    budget: &mut Budget,
    vetoes: &[&dyn Veto],
) -> Option<Eviction> {
    let rank = Rank::new(cluster, want, budget);
    if rank.nobody() && cluster.tasks.listed.leaving.is_empty() {
        return None;
    }
    // Fewest victims is tried only when the cheapest are too many.
    for weigh in [Weigh::Work, Weigh::Number] {
        let mut search = Search::new(cluster, want, now, rank.clone(), weigh, budget, vetoes);
        let found = search.run();
        let eviction = search.finish();
        if !found {
            return None;
        }
        if eviction.victims.len() <= limit_victims as usize {
            return Some(eviction);
        }
    }
    None
}
