//! Attempt: tasks placed on trial, which are kept or undone together.

use crate::agenda::head_room;
use crate::cluster::{Cluster, NodeId};
use crate::cycle::{Cause, Eviction, Placement};
use crate::mutant::{Mutant, mutant};
use crate::place::{Ask, Budget, Veto, fits_somewhere, place, place_on};
use crate::preempt::{self, Want};
use crate::spec::{Demand, Time};

pub(crate) struct Attempt<'a> {
    demands: &'a [Demand],
    now: Time,
    restart: Time,
    pub placements: Vec<Placement>,
    pub evictions: Vec<Eviction>,
}

impl<'a> Attempt<'a> {
    pub fn new(demands: &'a [Demand], now: Time, restart: Time) -> Self {
        Attempt {
            demands,
            now,
            restart,
            placements: Vec::new(),
            evictions: Vec::new(),
        }
    }

    /// Places `want` tasks of a demand, on the `first` nodes where they fit; what fits stays in the
    /// attempt also when it is not all.
    pub fn place(
        &mut self,
        cluster: &mut Cluster,
        (position, want): (u32, u32),
        first: &[u32],
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
        let (run, _) = cluster.tasks.runs.intern(demand.starts(self.now));
        let ask = Ask {
            class,
            queue,
            policy,
            run,
            count: allowed,
        };
        let placements = &mut self.placements;
        let mut placed = |node, task| {
            placements.push(Placement {
                demand: position,
                node,
                task,
                waits: false,
            });
        };
        let mut count = place_on(cluster, ask, first, vetoes, budget, &mut placed);
        if count < allowed {
            let rest = Ask {
                count: allowed - count,
                ..ask
            };
            count += place(cluster, rest, vetoes, budget, &mut placed);
        }
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

    /// Makes room for `want` tasks of a demand, all of them, by evicting at most `victims` others,
    /// and places them there; false if that cannot be.
    pub fn make_room(
        &mut self,
        cluster: &mut Cluster,
        position: u32,
        want: u32,
        victims: u32,
        vetoes: &[&dyn Veto],
        budget: &mut Budget,
    ) -> bool {
        let demand = &self.demands[position as usize];
        let queue = demand.queue.0;
        let class = cluster.class(&demand.class);
        cluster.learn_profiles(class);
        let asked = Want {
            class,
            count: want,
            queue,
            priority: demand.priority,
            restart: self.restart,
            demand,
        };
        let found = preempt::victims(cluster, &asked, self.now, victims, budget, vetoes);
        let Some(room) = found else {
            return false;
        };
        for task in room.victims {
            cluster.leave(task);
            self.evictions.push(Eviction {
                task,
                demand: position,
            });
        }
        let shape = cluster.classes.all[class as usize].shape;
        let (run, _) = cluster.tasks.runs.intern(demand.starts(self.now));
        for (node, count) in room.places {
            if mutant(Mutant::EvictForNobody) {
                break;
            }
            let placements = &mut self.placements;
            cluster.take(node, queue, shape, run, count, |task| {
                placements.push(Placement {
                    demand: position,
                    node: NodeId(node),
                    task,
                    waits: true,
                });
            });
        }
        cluster.tasks.runs.drop_unused(run);
        true
    }

    /// How many tasks of a demand are placed.
    pub fn placed(&self, position: u32) -> u32 {
        let mine = self.placements.iter().filter(|p| p.demand == position);
        mine.count() as u32
    }

    /// Takes everything back.
    pub fn undo(self, cluster: &mut Cluster) {
        if mutant(Mutant::LoseUndo) {
            return;
        }
        for placement in self.placements.iter().rev() {
            cluster.release(placement.task);
        }
        for eviction in self.evictions.iter().rev() {
            cluster.stay(eviction.task);
        }
    }
}
