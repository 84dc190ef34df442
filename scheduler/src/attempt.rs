//! Attempt: tasks placed on trial, which are kept or undone together.

use crate::agenda::head_room;
use crate::cluster::Cluster;
use crate::cycle::{Cause, Placement};
use crate::place::{Ask, Budget, Veto, fits_somewhere, place};
use crate::spec::{Demand, Time};

pub(crate) struct Attempt<'a> {
    demands: &'a [Demand],
    now: Time,
    pub placements: Vec<Placement>,
}

impl<'a> Attempt<'a> {
    pub fn new(demands: &'a [Demand], now: Time) -> Self {
        Attempt {
            demands,
            now,
            placements: Vec::new(),
        }
    }

    /// Places `want` tasks of a demand; what fits stays in the attempt also when it is not all.
    pub fn place(
        &mut self,
        cluster: &mut Cluster,
        position: u32,
        want: u32,
        vetoes: &[&dyn Veto],
        budget: &mut Budget,
    ) -> Result<(), Cause> {
        budget.spend(1);
        let demand = &self.demands[position as usize];
        let queue = demand.queue.0;
        let entry = &cluster.queues[queue as usize];
        let Some(spec) = &entry.spec else {
            return Err(Cause::QueueMissing);
        };
        if entry.detached.is_some() {
            return Err(Cause::QueueDetached);
        }
        let policy = spec.policy;
        let class = cluster.class(&demand.class);
        let shape = cluster.classes.all[class as usize].shape;
        let requests = &cluster.tasks.shapes.get(shape).requests;
        let (allowed, _) = head_room(cluster, queue, requests, want);
        if allowed == 0 {
            return Err(Cause::QueueLimit);
        }
        let run = cluster.tasks.runs.intern(demand.starts(self.now));
        let ask = Ask {
            class,
            queue,
            policy,
            run,
            count: allowed,
        };
        let placements = &mut self.placements;
        let count = place(cluster, ask, vetoes, budget, |node, task| {
            placements.push(Placement {
                demand: position,
                node,
                task,
                waits: false,
            });
        });
        cluster.tasks.runs.drop_unused(run);
        if count == want {
            Ok(())
        } else if count == allowed {
            Err(Cause::QueueLimit)
        } else if budget.left == 0 {
            Err(Cause::Budget)
        } else if !vetoes.is_empty() && fits_somewhere(cluster, class) {
            Err(Cause::Reserved)
        } else {
            Err(Cause::NoFit)
        }
    }

    /// Takes everything back.
    pub fn undo(self, cluster: &mut Cluster) {
        for placement in self.placements.iter().rev() {
            cluster.release(placement.task);
        }
    }
}
