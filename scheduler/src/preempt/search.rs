//! Search: picks nodes by least cost per task placed, on the real cluster, and takes all of it back.
//!
//! Victims are marked as leaving and tasks are taken while the search goes on, so that limits, node
//! rules and reclaim are asked about what would really be.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use fixedbitset::FixedBitSet;

use super::cost::Weigh;
use super::cover::Unit;
use super::rank::Rank;
use super::{Eviction, Want};
use crate::classes::Shape;
use crate::cluster::states::NONE;
use crate::cluster::{Cluster, TaskId};
use crate::place::{Budget, Veto};
use crate::side::rules::Rules;
use crate::spec::Time;

/// Nodes on which victims are weighed against each other, beyond those that are needed. More of them
/// would find cheaper victims at a cost that grows with the cluster.
const NODES_MAX: usize = 256;

/// Tasks that could go to one node, and who leaves it for them.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub node: u32,
    pub count: u32,
    pub cost: i128,
    pub units: Vec<Unit>,
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
    pub cluster: &'a mut Cluster,
    pub want: &'a Want<'a>,
    pub now: Time,
    pub rank: Rank,
    pub weigh: Weigh,
    pub budget: &'a mut Budget,
    pub vetoes: &'a [&'a dyn Veto],
    /// What other tasks mean for the class, if anything; kept up while tasks are taken.
    pub rules: Option<Rules>,
    pub shape: Shape,
    pub shape_id: u32,
    pub run: u32,
    pub left: u32,
    /// Units that leave.
    pub chosen: Vec<Unit>,
    /// Tasks taken, in order.
    pub taken: Vec<TaskId>,
    /// Per node: how many of those.
    pub places: BTreeMap<u32, u32>,
    /// Per node: how many more tasks its rules allowed when they were asked with the victims gone.
    pub caps: BTreeMap<u32, u32>,
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
        let rules = Rules::of(cluster, want.class);
        let (run, _) = cluster.tasks.runs.intern(want.demand.starts(now));
        cluster.tasks.runs.keep(run, 1);
        Search {
            cluster,
            want,
            now,
            rank,
            weigh,
            budget,
            vetoes,
            rules,
            shape,
            shape_id,
            run,
            left: want.count,
            chosen: Vec::new(),
            taken: Vec::new(),
            places: BTreeMap::new(),
            caps: BTreeMap::new(),
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
        self.caps.clear();
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

    /// Whether the class may use a node, and would fit if it were empty.
    pub fn suits(&self, node: u32) -> bool {
        let profile = self.cluster.nodes[node as usize].profile;
        let Some(profile) = self.cluster.profiles.all.get(profile as usize) else {
            return false;
        };
        self.cluster.classes.all[self.want.class as usize].suits(profile.traits)
            && profile.could_hold(&self.shape.requests)
    }

    /// Whether nodes of this state hold a task of the class as they are.
    pub fn holds(&self, state: u32) -> bool {
        let states = &self.cluster.states;
        let profile = states.profile[state as usize] as usize;
        let traits = self.cluster.profiles.all[profile].traits;
        self.cluster.classes.all[self.want.class as usize].suits(traits)
            && states.fits(&self.cluster.profiles.all, state, &self.shape.requests)
    }

    /// Lets the units leave and takes the room; false, and nothing done, when something may not be
    /// reclaimed any more or a node rule forbids it.
    pub fn commit(&mut self, step: &Move) -> bool {
        let before = self.chosen.len();
        let mut go = true;
        for unit in &step.units {
            if let Err(slot) = self.evict(unit) {
                self.rank.close(self.cluster, slot);
                go = false;
                break;
            }
        }
        // Rules are asked with the victims on their way out, since these may be what they are about.
        if go && !step.units.is_empty() {
            let allowed = self.allowed(step.node, step.count).unwrap_or(0);
            if allowed < step.count {
                self.caps.insert(step.node, allowed);
                go = false;
            }
        }
        if !go {
            for unit in self.chosen.split_off(before).iter().rev() {
                self.stay(unit);
            }
            self.rank.changed();
            return false;
        }
        // Each reclaim is judged for one task; more of them may use the room as borrowers do.
        let own = |slot: &u32| self.queue_of(*slot) == self.want.queue;
        let reclaims = !step.units.iter().flat_map(|u| &u.slots).all(own);
        self.take(step.node, if reclaims { 1 } else { step.count });
        true
    }

    pub fn gang_of(&self, slot: u32) -> u64 {
        let tasks = &self.cluster.tasks;
        tasks.runs.get(tasks.slots[slot as usize].run).gang
    }

    pub fn queue_of(&self, slot: u32) -> u32 {
        self.cluster.tasks.slots[slot as usize].queue
    }

    /// Lets a unit leave; where one of it may not be reclaimed any more nothing is done, and that
    /// one is the answer.
    pub fn evict(&mut self, unit: &Unit) -> Result<(), u32> {
        for (i, slot) in unit.slots.iter().enumerate() {
            self.rank.changed();
            if self.queue_of(*slot) != self.want.queue
                && !self.rank.may_reclaim(self.cluster, self.want, *slot)
            {
                for slot in unit.slots[..i].iter().rev() {
                    self.cluster.stay(self.cluster.tasks.id(*slot));
                }
                self.rank.changed();
                return Err(*slot);
            }
            self.cluster.leave(self.cluster.tasks.id(*slot));
        }
        self.rank.changed();
        self.chosen.push(unit.clone());
        Ok(())
    }

    pub fn stay(&mut self, unit: &Unit) {
        for slot in unit.slots.iter().rev() {
            self.cluster.stay(self.cluster.tasks.id(*slot));
        }
    }

    pub fn take(&mut self, node: u32, count: u32) {
        let taken = &mut self.taken;
        self.cluster.take(
            node,
            self.want.queue,
            self.shape_id,
            self.run,
            count,
            |task| taken.push(task),
        );
        if let Some(rules) = &mut self.rules {
            rules.took(&self.cluster.side, node, count);
        }
        *self.places.entry(node).or_insert(0) += count;
        self.caps.remove(&node);
        self.rank.changed();
        self.left -= count;
    }
}

/// What a look over nodes has come to.
#[derive(Default)]
struct Found {
    nodes: usize,
    tasks: u32,
}
