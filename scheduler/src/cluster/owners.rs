//! Owners: what each owner's tasks hold, in queues that share between owners.

use super::Cluster;
use super::states::NONE;
use crate::fair::past::Past;
use crate::intern::FxMap;

/// What the tasks of one owner hold in one queue. Kept for queues with [`Order::Fair`] only.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owned {
    pub held: Vec<i128>,
    pub running: u64,
    pub past: Past,
}

/// Owners kept before those without anything are looked for.
pub(crate) const OWNERS_FIRST: usize = 1024;

/// By queue and owner.
pub(crate) type Owners = FxMap<(u32, u64), Owned>;

impl Cluster {
    /// Makes the table of a queue's owners anew, from all tasks. Past use starts at nothing.
    pub(super) fn count_owners(&mut self, queue: u32) {
        self.owners.retain(|(q, _), _| *q != queue);
        if !self.queues[queue as usize].by_owner {
            return;
        }
        let tasks = self.tasks.slots.iter();
        for task in tasks.filter(|t| t.node != NONE && t.queue == queue && !t.leaving) {
            let owner = self.tasks.runs.get(task.run).owner;
            let requests = &self.tasks.shapes.get(task.shape).requests;
            let owned = self.owners.entry((queue, owner)).or_default();
            owned.held.resize(self.stride, 0);
            owned.running += 1;
            for (r, amount) in requests {
                owned.held[*r as usize] += i128::from(*amount);
            }
        }
        let now = self.now;
        for ((q, _), owned) in &mut self.owners {
            if *q == queue {
                owned.past.settle(&owned.held, 0, now);
            }
        }
    }

    /// Forgets owners that have nothing and whose past no longer counts, once there are many.
    pub(crate) fn sweep_owners(&mut self) {
        if self.owners.len() < self.owners_max {
            return;
        }
        let (queues, now) = (&self.queues, self.now);
        self.owners.retain(|(queue, _), owned| {
            let half_life = queues[*queue as usize].half_life;
            owned.past.settle(&owned.held, half_life, now);
            owned.running > 0 || !owned.past.is_none()
        });
        self.owners_max = OWNERS_FIRST.max(2 * self.owners.len());
    }

    /// Changes what the owner of a run holds by `count` tasks of a shape.
    pub(super) fn charge_owner(&mut self, queue: u32, shape: u32, run: u32, count: i64) {
        let entry = &self.queues[queue as usize];
        if !entry.by_owner {
            return;
        }
        let requests = &self.tasks.shapes.get(shape).requests;
        let owner = self.tasks.runs.get(run).owner;
        let owned = self.owners.entry((queue, owner)).or_default();
        owned.held.resize(self.stride, 0);
        owned.past.settle(&owned.held, entry.half_life, self.now);
        owned.running = owned.running.saturating_add_signed(count);
        for (r, amount) in requests {
            owned.held[*r as usize] += i128::from(*amount) * i128::from(count);
        }
        if owned.running == 0 && owned.past.is_none() {
            self.owners.remove(&(queue, owner));
        }
    }
}
