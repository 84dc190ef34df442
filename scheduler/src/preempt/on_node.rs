//! What can be done on one node: how many tasks it takes, and who has to leave for them.

use super::cost::{self, Weigh};
use super::cover::{Unit, cover};
use super::search::{Move, Search};
use crate::mutant::{Mutant, mutant};
use crate::side::rules::Room;

impl Search<'_> {
    /// What a node has of the amounts asked for, once those that leave are gone; may be negative.
    pub fn room(&self, node: u32) -> Vec<i128> {
        let n = node as usize;
        let capacity = &self.cluster.profiles.all[self.cluster.nodes[n].profile as usize].capacity;
        let at = n * self.cluster.stride;
        let each = self.shape.requests.iter().map(|(r, _)| *r as usize);
        each.map(|r| {
            let leaving = match self.cluster.leaving[at + r] {
                _ if mutant(Mutant::ForgetLeaving) => 0,
                leaving if mutant(Mutant::CountLeavingTwice) => 2 * leaving,
                leaving => leaving,
            };
            i128::from(capacity[r]) - self.cluster.used[at + r] + leaving
        })
        .collect()
    }

    /// How many tasks these amounts hold.
    fn fits(&self, room: &[i128]) -> u32 {
        let each = room.iter().zip(&self.shape.requests);
        each.map(|(room, (_, amount))| (room / i128::from(*amount)).max(0))
            .min()
            .map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX))
    }

    /// The same of the node, without evicting anybody; ports included.
    pub fn fits_now(&self, node: u32) -> u32 {
        let n = self.fits(&self.room(node)).min(self.device_room(node, &[]));
        if self.shape.ports.is_empty() {
            return n;
        }
        let mut staying = self.cluster.slots_on(node).filter(|s| !self.leaves(*s));
        u32::from(n > 0 && !staying.any(|slot| self.holds_port(slot)))
    }

    /// How many tasks the node's devices hold once those that leave, and these units, are gone.
    fn device_room(&self, node: u32, units: &[&Unit]) -> u32 {
        let go = |slot| self.leaves(slot) || units.iter().any(|u| u.slots.contains(&slot));
        self.cluster.device_room(node, &self.shape.requests, go)
    }

    pub fn leaves(&self, slot: u32) -> bool {
        self.cluster.tasks.slots[slot as usize].leaving
    }

    pub fn holds_port(&self, slot: u32) -> bool {
        let shape = self.cluster.tasks.slots[slot as usize].shape;
        let held = &self.cluster.tasks.shapes.get(shape).ports;
        held.iter().any(|port| self.shape.ports.contains(port))
    }

    pub fn cost(&self, slot: u32, lowest: i32) -> i128 {
        let tasks = &self.cluster.tasks;
        let task = &tasks.slots[slot as usize];
        let shape = tasks.shapes.get(task.shape);
        cost::of(
            self.cluster,
            shape,
            tasks.runs.get(task.run),
            (self.now, self.want.restart),
            lowest,
        )
    }

    /// The task, with its whole gang, if all of them may be evicted; `counts` says whose amounts
    /// are of use.
    pub fn unit(&self, slot: u32, counts: impl Fn(u32) -> bool) -> Option<Unit> {
        let tasks = &self.cluster.tasks;
        let mut slots = match tasks.gangs.get(&self.gang_of(slot)) {
            Some(members) if !mutant(Mutant::SplitGang) => members
                .iter()
                .copied()
                .filter(|s| !self.leaves(*s))
                .collect(),
            _ => vec![slot],
        };
        slots.sort_unstable();
        let may = |s: &u32| self.rank.may_evict(self.cluster, self.want, *s, self.now);
        if !slots.iter().all(may) {
            return None;
        }
        let mut frees = vec![0; self.shape.requests.len()];
        for slot in slots.iter().filter(|s| counts(**s)) {
            let shape = tasks.shapes.get(tasks.slots[*slot as usize].shape);
            for (r, amount) in &shape.requests {
                let at = self.shape.requests.iter().position(|(mine, _)| mine == r);
                if let Some(at) = at {
                    frees[at] += i128::from(*amount);
                }
            }
        }
        let cost = match self.weigh {
            Weigh::Work if mutant(Mutant::DearestFirst) => -slots
                .iter()
                .map(|s| self.cost(*s, self.rank.lowest))
                .sum::<i128>(),
            Weigh::Work => slots.iter().map(|s| self.cost(*s, self.rank.lowest)).sum(),
            Weigh::Number => slots.len() as i128,
        };
        Some(Unit {
            cost,
            must: slots.iter().any(|s| counts(*s) && self.holds_port(*s)),
            slots,
            frees,
        })
    }

    /// The best that can be done on one node: with nobody leaving if possible, else at least cost
    /// per task.
    pub fn on_node(&mut self, node: u32) -> Option<Move> {
        self.budget.spend(1);
        let fit = self.fits_now(node).min(self.left);
        if fit > 0 {
            return self.allowed(node, fit).map(|count| Move {
                node,
                count,
                cost: 0,
                units: Vec::new(),
            });
        }
        let units = self.units_on(node)?;
        let mut room = self.room(node);
        for unit in &units {
            for (room, freed) in room.iter_mut().zip(&unit.frees) {
                *room += freed;
            }
        }
        let all: Vec<&Unit> = units.iter().collect();
        let devices = self.device_room(node, &all);
        let mut most = self.fits(&room).min(devices).min(self.left);
        if !self.shape.ports.is_empty() {
            most = most.min(1);
        }
        let cap = self.caps.get(&node).copied().unwrap_or(u32::MAX);
        let most = most.min(cap);
        if most == 0 {
            return None;
        }
        let mut best: Option<Move> = None;
        let mut count = 1;
        loop {
            if let Some(found) = self.evicting(node, count, most, &units) {
                let better = best.as_ref().is_none_or(|best| {
                    found.cost * i128::from(best.count) < best.cost * i128::from(found.count)
                });
                if better {
                    best = Some(found);
                }
            }
            if count == most {
                return best;
            }
            count = count.saturating_mul(2).min(most);
        }
    }

    /// What may leave a node; `None` if a port is held by one that may not.
    fn units_on(&mut self, node: u32) -> Option<Vec<Unit>> {
        let slots: Vec<u32> = self.cluster.slots_on(node).collect();
        self.budget.spend(slots.len() as u64);
        let mut units = Vec::new();
        let mut gangs = Vec::new();
        for slot in slots {
            if self.leaves(slot) {
                continue;
            }
            let gang = self.gang_of(slot);
            if gang != 0 && gangs.contains(&gang) {
                continue;
            }
            let here = |s: u32| self.cluster.tasks.slots[s as usize].node == node;
            match self.unit(slot, here) {
                Some(unit) => {
                    if gang != 0 {
                        gangs.push(gang);
                    }
                    units.push(unit);
                }
                None if self.holds_port(slot) => return None,
                None => {}
            }
        }
        Some(units)
    }

    /// Room for `count` tasks or more on the node by evicting some of these.
    fn evicting(&self, node: u32, count: u32, most: u32, units: &[Unit]) -> Option<Move> {
        let mut room = self.room(node);
        let lack: Vec<i128> = room
            .iter()
            .zip(&self.shape.requests)
            .map(|(room, (_, amount))| i128::from(*amount) * i128::from(count) - room)
            .collect();
        let (mut cost, mut chosen) = cover(&lack, units)?;
        if self.cluster.devices.contains_key(&node) {
            (cost, chosen) = self.whole_devices(node, count, units, chosen)?;
        }
        let units: Vec<Unit> = chosen.iter().map(|u| units[*u].clone()).collect();
        for unit in &units {
            for (room, freed) in room.iter_mut().zip(&unit.frees) {
                *room += freed;
            }
        }
        Some(Move {
            node,
            count: (self
                .fits(&room)
                .min(self.device_room(node, &units.iter().collect::<Vec<_>>())))
            .clamp(count, most),
            cost,
            units,
        })
    }

    /// Amounts that units free may lie on parts of devices: adds units, cheapest first, until the
    /// devices hold the tasks, and drops those that then turn out not to be needed, dearest first.
    fn whole_devices(
        &self,
        node: u32,
        count: u32,
        units: &[Unit],
        mut chosen: Vec<usize>,
    ) -> Option<(i128, Vec<usize>)> {
        let fits = |chosen: &[usize]| {
            let gone: Vec<&Unit> = chosen.iter().map(|u| &units[*u]).collect();
            self.device_room(node, &gone) >= count
        };
        if !fits(&chosen) {
            let must = chosen.clone();
            let mut others: Vec<usize> = (0..units.len()).filter(|u| !must.contains(u)).collect();
            others.sort_by_key(|u| (units[*u].cost, units[*u].slots[0]));
            for other in &others {
                chosen.push(*other);
                if fits(&chosen) {
                    break;
                }
            }
            if !fits(&chosen) {
                return None;
            }
            for other in others.iter().rev() {
                let without: Vec<usize> = chosen.iter().copied().filter(|u| u != other).collect();
                if without.len() < chosen.len() && fits(&without) {
                    chosen = without;
                }
            }
        }
        Some((chosen.iter().map(|u| units[*u].cost).sum(), chosen))
    }

    /// How many of `want` every rule about the node and about tasks there allows; `None` for none.
    /// Tasks that leave still count for rules between tasks. Bounds that are no must are none here.
    pub fn allowed(&self, node: u32, want: u32) -> Option<u32> {
        let mut n = want;
        if let Some(rules) = &self.rules {
            let side = &self.cluster.side;
            n = match rules.room(side, node, want) {
                Room::Open(n) => n,
                Room::Never(_) => 0,
                Room::Later(..) => u32::from(rules.against(side, node).is_none()),
            };
        }
        for veto in self.vetoes {
            if n > 0 {
                n = n.min(veto.room(self.cluster, node, self.want.class, n));
            }
        }
        (n > 0).then_some(n)
    }
}
