//! Room under the limits of queues, and what turns out not to be needed when all is placed.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::cover::{Unit, cover};
use super::search::Search;
use crate::cluster::states::NONE;

/// Tasks weighed against each other to get below a queue's limit.
const LIMIT_TASKS_MAX: usize = 4096;

impl Search<'_> {
    /// Lets tasks leave until the limits of the queue and of those above it hold all that is wanted.
    pub fn get_below_limits(&mut self) -> bool {
        let mut at = self.want.queue;
        while at != NONE {
            if !self.get_below_limit(at) {
                return false;
            }
            at = self.cluster.queues[at as usize].parent;
        }
        true
    }

    fn get_below_limit(&mut self, queue: u32) -> bool {
        loop {
            let lack = self.over_limit(queue, self.left);
            if lack.iter().all(|l| *l <= 0) {
                return true;
            }
            let units = self.units_below(queue);
            let Some((_, chosen)) = cover(&lack, &units) else {
                return false;
            };
            let refused = chosen.iter().find_map(|u| self.evict(&units[*u]).err());
            let Some(slot) = refused else {
                return true;
            };
            // Choose again without its queue.
            self.rank.close_queue(self.cluster, slot);
        }
    }

    /// By how much a queue would be over its limit with so many tasks more, per amount asked for.
    fn over_limit(&self, queue: u32, count: u32) -> Vec<i128> {
        let queue = &self.cluster.queues[queue as usize];
        let over = |(r, amount): &(u32, i64)| match queue.limit[*r as usize] {
            i64::MAX => 0,
            limit => {
                queue.used[*r as usize] + i128::from(*amount) * i128::from(count)
                    - i128::from(limit)
            }
        };
        self.shape.requests.iter().map(over).collect()
    }

    fn is_below(&self, mut queue: u32, above: u32) -> bool {
        while queue != NONE && queue != above {
            queue = self.cluster.queues[queue as usize].parent;
        }
        queue == above
    }

    /// What may leave in a queue and below it.
    fn units_below(&mut self, queue: u32) -> Vec<Unit> {
        let mut units = Vec::new();
        let mut gangs = BTreeSet::new();
        for (priority, from) in &self.rank.lists {
            if !self.is_below(*from, queue) {
                continue;
            }
            let list = self.cluster.tasks.listed.evictable.get(&(*from, *priority));
            for slot in list.into_iter().flatten().rev() {
                if units.len() >= LIMIT_TASKS_MAX || self.budget.left == 0 {
                    return units;
                }
                self.budget.spend(1);
                let gang = self.gang_of(*slot);
                if gang != 0 && !gangs.insert(gang) {
                    continue;
                }
                let counts = |s: u32| self.is_below(self.queue_of(s), queue);
                if let Some(unit) = self.unit(*slot, counts) {
                    units.push(Unit {
                        must: false,
                        ..unit
                    });
                }
            }
        }
        units
    }

    /// Takes back every unit that is not needed, most costly first. What is needed once stays
    /// needed, so one pass is enough.
    pub fn drop_redundant(&mut self) {
        self.chosen
            .sort_by_key(|unit| (Reverse(unit.cost), unit.slots[0]));
        for unit in std::mem::take(&mut self.chosen) {
            self.stay(&unit);
            if !self.holds_without(&unit) {
                for slot in &unit.slots {
                    self.cluster.leave(self.cluster.tasks.id(*slot));
                }
                self.chosen.push(unit);
            }
        }
    }

    /// Whether all places and limits hold now that the unit stays.
    fn holds_without(&self, unit: &Unit) -> bool {
        let node = |slot: &u32| self.cluster.tasks.slots[*slot as usize].node;
        let mut at = self.want.queue;
        while at != NONE {
            if self.over_limit(at, 0).iter().any(|over| *over > 0) {
                return false;
            }
            at = self.cluster.queues[at as usize].parent;
        }
        unit.slots.iter().map(node).all(|node| {
            let Some(placed) = self.places.get(&node) else {
                return true;
            };
            self.room(node).iter().all(|room| *room >= 0)
                && !self.cluster.devices_over(node)
                && (self.shape.ports.is_empty() || {
                    let staying = self.cluster.slots_on(node).filter(|s| !self.leaves(*s));
                    staying.filter(|s| self.holds_port(*s)).count() <= *placed as usize
                })
        })
    }
}
