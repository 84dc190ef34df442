//! Search: picks nodes by least cost per task placed, on the real cluster, and takes all of it back.
//!
//! Victims are marked as leaving and tasks are taken while the search goes on, so that limits, node
//! rules and reclaim are asked about what would really be.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use fixedbitset::FixedBitSet;

use super::cost::{self, Weigh};
use super::cover::{Unit, cover};
use super::rank::{Rank, may_reclaim};
use super::{Eviction, Want};
use crate::classes::Shape;
use crate::cluster::states::NONE;
use crate::cluster::{Cluster, TaskId};
use crate::filter::how_many;
use crate::place::{Budget, Veto};
use crate::spec::Time;

/// Nodes on which victims are weighed against each other, beyond those that are needed. More of them
/// would find cheaper victims at a cost that grows with the cluster.
const NODES_MAX: usize = 512;
/// Tasks weighed against each other to get below a queue's limit.
const LIMIT_TASKS_MAX: usize = 4096;

/// Tasks that could go to one node, and who leaves it for them.
#[derive(Clone, Debug)]
struct Move {
    node: u32,
    count: u32,
    cost: i128,
    units: Vec<Unit>,
}

/// A move as last computed: least cost per task first, then most tasks, then lowest node.
#[derive(PartialEq, Eq)]
struct Entry {
    cost: i128,
    count: u32,
    node: u32,
}

impl Entry {
    fn of(step: &Move) -> Self {
        Entry {
            cost: step.cost,
            count: step.count,
            node: step.node,
        }
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        let mine = self.cost * i128::from(other.count);
        let theirs = other.cost * i128::from(self.count);
        theirs
            .cmp(&mine)
            .then(self.count.cmp(&other.count))
            .then(other.node.cmp(&self.node))
    }
}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

pub(crate) struct Search<'a> {
    cluster: &'a mut Cluster,
    want: &'a Want<'a>,
    now: Time,
    rank: Rank,
    weigh: Weigh,
    budget: &'a mut Budget,
    vetoes: &'a [&'a dyn Veto],
    shape: Shape,
    shape_id: u32,
    run: u32,
    left: u32,
    /// Units that leave.
    chosen: Vec<Unit>,
    /// Tasks taken, in order.
    taken: Vec<TaskId>,
    /// Per node: how many of those.
    places: BTreeMap<u32, u32>,
}

impl<'a> Search<'a> {
    pub fn new(
        cluster: &'a mut Cluster,
        want: &'a Want<'a>,
        now: Time,
        rank: Rank,
        weigh: Weigh,
        budget: &'a mut Budget,
        vetoes: &'a [&'a dyn Veto],
    ) -> Self {
        let entry = &mut cluster.classes.all[want.class as usize];
        entry.learn(&cluster.profiles);
        let shape_id = entry.shape;
        let shape = cluster.tasks.shapes.get(shape_id).clone();
        let run = cluster.tasks.runs.intern(want.demand.starts(now));
        cluster.tasks.runs.keep(run, 1);
        Search {
            cluster,
            want,
            now,
            rank,
            weigh,
            budget,
            vetoes,
            shape,
            shape_id,
            run,
            left: want.count,
            chosen: Vec::new(),
            taken: Vec::new(),
            places: BTreeMap::new(),
        }
    }

    /// True when there is room for all.
    pub fn run(&mut self) -> bool {
        if !self.get_below_limits() {
            return false;
        }
        // Node rules that look beyond a node may turn down what they allowed before some of the
        // tasks were placed, and allow others: look again as long as that helps.
        while self.left > 0 {
            let before = self.left;
            self.pick();
            if self.left == before {
                return false;
            }
        }
        self.drop_redundant();
        true
    }

    /// Looks at nodes and places as many tasks as the best of them take.
    fn pick(&mut self) {
        let mut heap = BinaryHeap::new();
        self.look(&mut heap);
        while self.left > 0
            && let Some(entry) = heap.pop()
        {
            let Some(best) = self.on_node(entry.node) else {
                continue;
            };
            // Others were chosen since it was computed: it may be dearer now, or take fewer.
            let now = Entry::of(&best);
            if now != entry || !self.commit(&best) {
                heap.push(now);
            } else if self.left > 0
                && let Some(next) = self.on_node(entry.node)
            {
                heap.push(Entry::of(&next));
            }
        }
    }

    /// The answer; the cluster is as it was.
    pub fn finish(mut self) -> Eviction {
        let slots = self.chosen.iter().flat_map(|unit| &unit.slots);
        let slots: Vec<u32> = slots.copied().collect();
        let lowest = self.rank.lowest;
        let cost = slots.iter().map(|slot| self.cost(*slot, lowest)).sum();
        for task in std::mem::take(&mut self.taken).into_iter().rev() {
            self.cluster.release(task);
        }
        let mut victims: Vec<TaskId> = slots
            .iter()
            .map(|slot| self.cluster.tasks.id(*slot))
            .collect();
        for victim in victims.iter().rev() {
            self.cluster.stay(*victim);
        }
        victims.sort_unstable();
        self.cluster.tasks.runs.drop_one(self.run);
        Eviction {
            victims,
            places: self.places.into_iter().collect(),
            cost,
        }
    }

    /// Fills the heap with what can be done on single nodes: on those that have room, on those that
    /// others leave, then on those of possible victims, lowest priority and newest first.
    fn look(&mut self, heap: &mut BinaryHeap<Entry>) {
        let mut seen = FixedBitSet::with_capacity(self.cluster.nodes.len());
        let mut found = Found::default();
        self.budget.spend(self.cluster.states.live.len() as u64);
        let states = self.cluster.states.live.iter().copied();
        let states: Vec<u32> = states.filter(|s| self.holds(*s)).collect();
        for state in states {
            let mut node = self.cluster.states.head[state as usize];
            while node != NONE && found.tasks < self.left && self.budget.left > 0 {
                self.try_free(node, &mut seen, heap, &mut found);
                node = self.cluster.states.next_node(node);
            }
        }
        for i in (0..self.cluster.tasks.listed.leaving.len()).rev() {
            if found.tasks >= self.left || self.budget.left == 0 {
                break;
            }
            let slot = self.cluster.tasks.listed.leaving[i];
            let node = self.cluster.tasks.slots[slot as usize].node;
            self.try_free(node, &mut seen, heap, &mut found);
        }
        if found.tasks >= self.left {
            return;
        }
        let most = found.nodes + NODES_MAX;
        for key in self.rank.lists.clone() {
            let key = (key.1, key.0);
            let length = |s: &Self| {
                s.cluster
                    .tasks
                    .listed
                    .evictable
                    .get(&key)
                    .map_or(0, Vec::len)
            };
            for i in (0..length(self)).rev() {
                let enough = found.nodes >= most && found.tasks >= self.left;
                if enough || self.budget.left == 0 {
                    return;
                }
                self.budget.spend(1);
                let slot = self.cluster.tasks.listed.evictable[&key][i];
                let node = self.cluster.tasks.slots[slot as usize].node;
                self.try_node(node, &mut seen, heap, &mut found);
            }
        }
    }

    /// A node that takes something with nobody evicted. Others are left for later.
    fn try_free(
        &mut self,
        node: u32,
        seen: &mut FixedBitSet,
        heap: &mut BinaryHeap<Entry>,
        found: &mut Found,
    ) {
        self.budget.spend(1);
        if !seen.contains(node as usize) && self.suits(node) && self.fits_now(node) > 0 {
            self.try_node(node, seen, heap, found);
        }
    }

    fn try_node(
        &mut self,
        node: u32,
        seen: &mut FixedBitSet,
        heap: &mut BinaryHeap<Entry>,
        found: &mut Found,
    ) {
        if seen.put(node as usize) || !self.suits(node) {
            return;
        }
        if let Some(step) = self.on_node(node) {
            found.nodes += 1;
            found.tasks = found.tasks.saturating_add(step.count);
            heap.push(Entry::of(&step));
        }
    }

    fn suits(&self, node: u32) -> bool {
        let profile = self.cluster.nodes[node as usize].profile;
        profile != NONE
            && self.cluster.classes.all[self.want.class as usize]
                .suits
                .contains(profile as usize)
    }

    /// Whether nodes of this state hold a task of the class as they are.
    fn holds(&self, state: u32) -> bool {
        let states = &self.cluster.states;
        let profile = states.profile[state as usize] as usize;
        self.cluster.classes.all[self.want.class as usize]
            .suits
            .contains(profile)
            && how_many(states.free_of(state), &self.shape.requests) > 0
    }

    /// What a node has of the amounts asked for, once those that leave are gone; may be negative.
    fn room(&self, node: u32) -> Vec<i128> {
        let n = node as usize;
        let capacity = &self.cluster.profiles.all[self.cluster.nodes[n].profile as usize].capacity;
        let at = n * self.cluster.stride;
        let each = self.shape.requests.iter().map(|(r, _)| *r as usize);
        each.map(|r| {
            i128::from(capacity[r]) - self.cluster.used[at + r] + self.cluster.leaving[at + r]
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
    fn fits_now(&self, node: u32) -> u32 {
        let n = self.fits(&self.room(node));
        if self.shape.ports.is_empty() {
            return n;
        }
        let mut staying = self.cluster.slots_on(node).filter(|s| !self.leaves(*s));
        u32::from(n > 0 && !staying.any(|slot| self.holds_port(slot)))
    }

    fn leaves(&self, slot: u32) -> bool {
        self.cluster.tasks.slots[slot as usize].leaving
    }

    fn holds_port(&self, slot: u32) -> bool {
        let shape = self.cluster.tasks.slots[slot as usize].shape;
        let held = &self.cluster.tasks.shapes.get(shape).ports;
        held.iter().any(|port| self.shape.ports.contains(port))
    }

    fn cost(&self, slot: u32, lowest: i32) -> i128 {
        let tasks = &self.cluster.tasks;
        let task = &tasks.slots[slot as usize];
        let shape = tasks.shapes.get(task.shape);
        cost::of(
            self.cluster,
            shape,
            tasks.runs.get(task.run),
            self.now,
            lowest,
        )
    }

    /// The task, with its whole gang, if all of them may be evicted; `counts` says whose amounts
    /// are of use.
    fn unit(&self, slot: u32, counts: impl Fn(u32) -> bool) -> Option<Unit> {
        let tasks = &self.cluster.tasks;
        let mut slots = match tasks.gangs.get(&self.gang_of(slot)) {
            Some(members) => members
                .iter()
                .copied()
                .filter(|s| !self.leaves(*s))
                .collect(),
            None => vec![slot],
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
    fn on_node(&mut self, node: u32) -> Option<Move> {
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
        let mut most = self.fits(&room).min(self.left);
        if !self.shape.ports.is_empty() {
            most = most.min(1);
        }
        let most = self.allowed(node, most)?;
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
        let (cost, chosen) = cover(&lack, units)?;
        let units: Vec<Unit> = chosen.iter().map(|u| units[*u].clone()).collect();
        for unit in &units {
            for (room, freed) in room.iter_mut().zip(&unit.frees) {
                *room += freed;
            }
        }
        Some(Move {
            node,
            count: self.fits(&room).clamp(count, most),
            cost,
            units,
        })
    }

    /// How many of `want` every node rule allows; `None` for none.
    fn allowed(&self, node: u32, want: u32) -> Option<u32> {
        let mut n = want;
        for veto in self.vetoes {
            if n > 0 {
                n = n.min(veto.room(self.cluster, node, self.want.class, n));
            }
        }
        (n > 0).then_some(n)
    }

    /// Lets the units leave and takes the room; false, and nothing done, when something may not be
    /// reclaimed any more.
    fn commit(&mut self, step: &Move) -> bool {
        let before = self.chosen.len();
        if !step.units.iter().all(|unit| self.evict(unit)) {
            for unit in self.chosen.split_off(before).iter().rev() {
                self.stay(unit);
            }
            return false;
        }
        // Each reclaim is judged for one task; more of them may use the room as borrowers do.
        let own = |slot: &u32| self.queue_of(*slot) == self.want.queue;
        let reclaims = !step.units.iter().flat_map(|u| &u.slots).all(own);
        self.take(step.node, if reclaims { 1 } else { step.count });
        true
    }

    fn gang_of(&self, slot: u32) -> u64 {
        let tasks = &self.cluster.tasks;
        tasks.runs.get(tasks.slots[slot as usize].run).gang
    }

    fn queue_of(&self, slot: u32) -> u32 {
        self.cluster.tasks.slots[slot as usize].queue
    }

    /// False, and nothing done, when one of the unit may not be reclaimed any more.
    fn evict(&mut self, unit: &Unit) -> bool {
        for (i, slot) in unit.slots.iter().enumerate() {
            let (from, to) = (self.queue_of(*slot), self.want.queue);
            if from != to && !may_reclaim(self.cluster, from, to, &self.shape.requests) {
                self.rank.open.insert(from, false);
                for slot in unit.slots[..i].iter().rev() {
                    self.cluster.stay(self.cluster.tasks.id(*slot));
                }
                return false;
            }
            self.cluster.leave(self.cluster.tasks.id(*slot));
        }
        self.chosen.push(unit.clone());
        true
    }

    fn stay(&mut self, unit: &Unit) {
        for slot in unit.slots.iter().rev() {
            self.cluster.stay(self.cluster.tasks.id(*slot));
        }
    }

    fn take(&mut self, node: u32, count: u32) {
        let taken = &mut self.taken;
        self.cluster.take(
            node,
            self.want.queue,
            self.shape_id,
            self.run,
            count,
            |task| taken.push(task),
        );
        *self.places.entry(node).or_insert(0) += count;
        self.left -= count;
    }

    /// Lets tasks leave until the limits of the queue and of those above it hold all that is wanted.
    fn get_below_limits(&mut self) -> bool {
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
            // Where one may not be reclaimed any more, choose again without its queue.
            if chosen.iter().all(|u| self.evict(&units[*u])) {
                return true;
            }
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
    fn drop_redundant(&mut self) {
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
                && (self.shape.ports.is_empty() || {
                    let staying = self.cluster.slots_on(node).filter(|s| !self.leaves(*s));
                    staying.filter(|s| self.holds_port(*s)).count() <= *placed as usize
                })
        })
    }
}

/// What a look over nodes has come to.
#[derive(Default)]
struct Found {
    nodes: usize,
    tasks: u32,
}
