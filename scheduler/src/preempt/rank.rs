//! Rank: who may be evicted by whom.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::Want;
use super::cost;
use crate::cluster::Cluster;
use crate::fair::reclaim::{could_reclaim, may_reclaim};
use crate::intern::FxMap;
use crate::mutant::{Mutant, mutant};
use crate::place::Budget;
use crate::spec::{NEVER, Order, Reclaim, Run, Time};

/// Which queues and priorities hold possible victims of one demand.
#[derive(Clone, Debug)]
pub(crate) struct Rank {
    /// Priority and queue of lists of evictable tasks, lowest priority first, own queue first.
    pub lists: Vec<(i32, u32)>,
    /// Lowest priority among them.
    pub lowest: i32,
    /// Queues that something might be reclaimed from.
    open: BTreeMap<u32, bool>,
    /// Node and queue of which no more may be reclaimed together.
    closed: BTreeSet<(u32, u32)>,
    /// By queue and shape, whether one such task may be reclaimed as the cluster is now.
    judged: RefCell<FxMap<(u32, u32), bool>>,
    /// How the own queue's tasks are compared; `None`: they are never evicted.
    within: Option<Order>,
}

impl Rank {
    pub fn new(cluster: &Cluster, want: &Want<'_>, budget: &mut Budget) -> Self {
        let spec = cluster.queues[want.queue as usize].spec.as_ref();
        // By the queue's own order, or the victim would come first again. Orders by age and by
        // expected time are no reason to evict.
        let within = spec.map(|s| s.order).filter(|order| match order {
            Order::Priority | Order::Fair => {
                spec.is_some_and(|s| s.preempt_within) || mutant(Mutant::EvictProtected)
            }
            Order::ShortestRemainingTimeFirst => want.demand.run != NEVER,
            Order::Fifo | Order::ShortestJobFirst => false,
        });
        let reclaims =
            spec.is_some_and(|s| s.reclaim != Reclaim::WhenIdle) || mutant(Mutant::EvictProtected);
        let shape = cluster.classes.all[want.class as usize].shape;
        let requests = &cluster.tasks.shapes.get(shape).requests;
        let mut open = BTreeMap::new();
        let mut lists = Vec::new();
        for (queue, priority) in cluster.tasks.listed.evictable.keys() {
            budget.spend(1);
            let listed = if *queue == want.queue {
                match within {
                    Some(Order::ShortestRemainingTimeFirst) => *priority <= want.priority,
                    Some(_) => *priority < want.priority || mutant(Mutant::EvictHigher),
                    None => false,
                }
            } else {
                reclaims
                    && *open.entry(*queue).or_insert_with(|| {
                        could_reclaim(cluster, *queue, want.queue, requests)
                            || mutant(Mutant::ReclaimTooMuch)
                    })
            };
            if listed {
                lists.push((*priority, *queue));
            }
        }
        lists.sort_unstable_by_key(|(priority, queue)| (*priority, *queue != want.queue, *queue));
        Rank {
            lowest: lists.first().map_or(0, |(priority, _)| *priority),
            lists,
            open,
            closed: BTreeSet::new(),
            judged: RefCell::default(),
            within,
        }
    }

    pub fn nobody(&self) -> bool {
        self.lists.is_empty()
    }

    /// Whether one task of another queue may go for one of the demand, as the cluster is now.
    pub fn may_reclaim(&self, cluster: &Cluster, want: &Want<'_>, slot: u32) -> bool {
        let task = &cluster.tasks.slots[slot as usize];
        let key = (task.queue, task.shape);
        *self.judged.borrow_mut().entry(key).or_insert_with(|| {
            let shape = cluster.classes.all[want.class as usize].shape;
            let loss = &cluster.tasks.shapes.get(task.shape).requests;
            let gain = &cluster.tasks.shapes.get(shape).requests;
            may_reclaim(cluster, task.queue, loss, want.queue, gain)
                || mutant(Mutant::ReclaimTooMuch)
        })
    }

    /// What queues hold has changed: they are judged anew.
    pub fn changed(&mut self) {
        self.judged.get_mut().clear();
    }

    /// A task may not be reclaimed together with others; its node's and queue's tasks stay.
    pub fn close(&mut self, cluster: &Cluster, slot: u32) {
        let task = &cluster.tasks.slots[slot as usize];
        self.closed.insert((task.node, task.queue));
    }

    /// The same for all of its queue.
    pub fn close_queue(&mut self, cluster: &Cluster, slot: u32) {
        let task = &cluster.tasks.slots[slot as usize];
        self.open.insert(task.queue, false);
    }

    /// Whether this one task may be evicted for the demand.
    pub fn may_evict(&self, cluster: &Cluster, want: &Want<'_>, slot: u32, now: Time) -> bool {
        let task = &cluster.tasks.slots[slot as usize];
        let run = cluster.tasks.runs.get(task.run);
        // What was placed in this cycle has not been told to anybody yet, and would have been
        // placed for nothing.
        if !run.preemptible || task.leaving || run.start >= now {
            return false;
        }
        let demand = want.demand;
        if run.demand == demand.id || (run.gang != 0 && run.gang == demand.gang) {
            return false;
        }
        if task.queue != want.queue {
            return self.open.get(&task.queue).copied().unwrap_or(false)
                && !self.closed.contains(&(task.node, task.queue))
                && self.may_reclaim(cluster, want, slot);
        }
        let lower = run.priority < want.priority || mutant(Mutant::EvictHigher);
        match self.within {
            Some(Order::Priority) => lower,
            Some(Order::Fair) => lower && run.owner == demand.owner,
            Some(Order::ShortestRemainingTimeFirst) => {
                run.priority <= want.priority && gains(want, run, now)
            }
            _ => false,
        }
    }
}

/// Whether a task may take the place of one that remains for longer: by more than the work that is
/// lost and the restart.
fn gains(want: &Want<'_>, run: &Run, now: Time) -> bool {
    let remains = if run.end == NEVER {
        NEVER
    } else {
        run.end.saturating_sub(now)
    };
    want.demand
        .run
        .saturating_add(cost::lost(run, now))
        .saturating_add(want.restart)
        < remains
}
