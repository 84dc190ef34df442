//! Queues: a tree of rules, and what tasks hold in each subtree now.

use std::sync::Arc;

use super::Cluster;
use super::states::NONE;
use crate::fair::past::Past;
use crate::spec::{Order, QueueSpec, Time};

/// A queue, by number. Valid as long as the [`Cluster`] that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId(pub(crate) u32);

/// Why a queue takes part in nothing, though it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// The queue that it names as its parent is not there.
    ParentMissing,
    /// It is its own ancestor.
    Cycle,
}

#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub name: Arc<str>,
    /// `None` for a queue that Jobs or tasks name and that is not there.
    pub spec: Option<QueueSpec>,
    /// The queue above, [`NONE`] at the top.
    pub parent: u32,
    /// Queues below that have rules, in order of number.
    pub children: Vec<u32>,
    /// Set when its place in the tree cannot be found: nothing is placed from it then.
    pub detached: Option<Detached>,
    /// Per resource; `i64::MAX` is no limit. As long as the stride.
    pub limit: Vec<i64>,
    /// Per resource. As long as the stride.
    pub guarantee: Vec<i64>,
    /// Per resource: what its own tasks and those below it hold, without those that leave.
    pub used: Vec<i128>,
    /// The same of its own tasks.
    pub own: Vec<i128>,
    /// Per resource: what tasks of the subtree hold that leave. Shares do not count it; limits do,
    /// until it is gone.
    pub leaving: Vec<i128>,
    /// The same of its own tasks.
    pub own_leaving: Vec<i128>,
    /// Tasks that may still be evicted for it.
    pub evictions_left: u32,
    /// Tasks in the subtree, without those that leave.
    pub running: u64,
    /// The same of its own.
    pub own_running: u64,
    /// Its own half-life or, without one, that of the nearest queue above that has one; 0: past use
    /// does not count.
    pub half_life: Time,
    /// What its own tasks held in the past.
    pub past: Past,
    /// Its owners are told apart ([`Order::Fair`]).
    pub by_owner: bool,
    /// How often its own use has changed.
    pub charges: u64,
}

impl Queue {
    pub fn widen(&mut self, stride: usize) {
        self.limit.resize(stride, i64::MAX);
        self.guarantee.resize(stride, 0);
        self.used.resize(stride, 0);
        self.own.resize(stride, 0);
        self.leaving.resize(stride, 0);
        self.own_leaving.resize(stride, 0);
    }
}

impl Cluster {
    /// Number of the queue of this name, which need not be there yet.
    pub fn queue(&mut self, name: &str) -> QueueId {
        if let Some(id) = self.queue_ids.get(name) {
            return QueueId(*id);
        }
        let id = self.queues.len() as u32;
        let name: Arc<str> = name.into();
        self.queues.push(Queue {
            name: name.clone(),
            spec: None,
            parent: NONE,
            children: Vec::new(),
            detached: None,
            limit: vec![i64::MAX; self.stride],
            guarantee: vec![0; self.stride],
            used: vec![0; self.stride],
            own: vec![0; self.stride],
            leaving: vec![0; self.stride],
            own_leaving: vec![0; self.stride],
            evictions_left: u32::MAX,
            running: 0,
            own_running: 0,
            half_life: 0,
            past: Past::default(),
            by_owner: false,
            charges: 0,
        });
        self.queue_ids.insert(name, id);
        QueueId(id)
    }

    /// Sets a queue's rules; `None` removes the queue (its tasks keep what they hold, and its
    /// demands wait). Queues may come in any order: one whose parent is not there yet is detached
    /// until it is.
    pub fn set_queue(&mut self, name: &str, spec: Option<QueueSpec>) -> QueueId {
        let id = self.queue(name);
        let amounts = |cluster: &mut Self, amounts: &std::collections::BTreeMap<String, i64>| {
            let each = amounts.iter();
            each.map(|(resource, amount)| (cluster.resource(resource), *amount))
                .collect::<Vec<_>>()
        };
        let (limits, guarantees) = match &spec {
            Some(spec) => (amounts(self, &spec.limit), amounts(self, &spec.guarantee)),
            None => Default::default(),
        };
        let queue = &mut self.queues[id.0 as usize];
        queue.limit.fill(i64::MAX);
        for (r, amount) in limits {
            queue.limit[r as usize] = amount;
        }
        queue.guarantee.fill(0);
        for (r, amount) in guarantees {
            queue.guarantee[r as usize] = amount.max(0);
        }
        let place = |spec: &Option<QueueSpec>| {
            let spec = spec.as_ref()?;
            Some((spec.parent.clone(), spec.half_life))
        };
        let moved = place(&queue.spec) != place(&spec);
        let new = queue.spec.is_none();
        let parent_of = |spec: &Option<QueueSpec>| spec.as_ref()?.parent.clone();
        let (old_parent, new_parent) = (parent_of(&queue.spec), parent_of(&spec));
        queue.spec = spec;
        let by_owner = queue.spec.as_ref().is_some_and(|s| s.order == Order::Fair);
        if queue.by_owner != by_owner {
            self.queues[id.0 as usize].by_owner = by_owner;
            self.count_owners(id.0);
        }
        self.name_parents(old_parent, new_parent);
        if moved && !(new && self.add_leaf(id.0)) {
            self.grow_tree();
        }
        id
    }

    /// Keeps count of how many queues name each name as their parent.
    fn name_parents(&mut self, old: Option<String>, new: Option<String>) {
        if let Some(name) = new {
            *self.parent_names.entry(name).or_insert(0) += 1;
        }
        if let Some(name) = old
            && let Some(count) = self.parent_names.get_mut(&name)
        {
            *count -= 1;
            if *count == 0 {
                self.parent_names.remove(&name);
            }
        }
    }

    /// Puts a queue that has just got rules into its place, if that is at the end of a branch: so
    /// that telling many queues costs as much as there are. False if the tree has to be grown anew.
    fn add_leaf(&mut self, id: u32) -> bool {
        let q = id as usize;
        let Some(spec) = &self.queues[q].spec else {
            return false;
        };
        if self.parent_names.contains_key(self.queues[q].name.as_ref()) {
            return false;
        }
        let half_life = spec.half_life.max(0);
        let parent = match &spec.parent {
            None => NONE,
            Some(name) => match self.queue_ids.get(name.as_str()) {
                Some(parent) => *parent,
                None => return false,
            },
        };
        if parent != NONE {
            let above = &self.queues[parent as usize];
            if above.spec.is_none() || above.detached.is_some() {
                return false;
            }
        }
        let queue = &mut self.queues[q];
        (queue.parent, queue.detached) = (parent, None);
        let (own, running) = (queue.own.clone(), queue.own_running);
        let own_leaving = queue.own_leaving.clone();
        let mut inherited = half_life;
        let mut at = parent;
        while at != NONE {
            let above = &mut self.queues[at as usize];
            if at == parent {
                let place = above.children.partition_point(|child| *child < id);
                above.children.insert(place, id);
                inherited = if half_life == 0 {
                    above.half_life
                } else {
                    half_life
                };
            }
            above.running += running;
            for (sum, amount) in above.used.iter_mut().zip(&own) {
                *sum += amount;
            }
            for (sum, amount) in above.leaving.iter_mut().zip(&own_leaving) {
                *sum += amount;
            }
            at = above.parent;
        }
        self.set_half_life(id, inherited);
        true
    }

    fn set_half_life(&mut self, queue: u32, half_life: Time) {
        let now = self.now;
        let queue = &mut self.queues[queue as usize];
        // What was held until now counts by the old one.
        queue.past.settle(&queue.own, queue.half_life, now);
        queue.half_life = half_life;
    }

    /// Tells the time, so that past use counts with its age. Call it before telling what ended: a
    /// task counts as running until the time told last. A clock that goes back is ignored.
    pub fn advance(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// Finds every queue's place anew. Once per change of the tree, so plain.
    fn grow_tree(&mut self) {
        let parents: Vec<Option<&str>> = self
            .queues
            .iter()
            .map(|q| q.spec.as_ref()?.parent.as_deref())
            .collect();
        let parents: Vec<Option<Option<u32>>> = parents
            .iter()
            .map(|name| {
                let id = self.queue_ids.get((*name)?).copied();
                Some(id.filter(|id| self.queues[*id as usize].spec.is_some()))
            })
            .collect();
        for (q, parent) in parents.iter().enumerate() {
            let queue = &mut self.queues[q];
            queue.children.clear();
            queue.used.clone_from(&queue.own);
            queue.leaving.clone_from(&queue.own_leaving);
            queue.running = queue.own_running;
            (queue.parent, queue.detached) = match parent {
                None => (NONE, None),
                Some(None) => (NONE, Some(Detached::ParentMissing)),
                Some(Some(parent)) => (*parent, None),
            };
        }
        for q in 0..self.queues.len() as u32 {
            // Who comes back to a queue on the way up, or is below one that does, is on no tree.
            let mut at = q;
            let mut steps = 0;
            while at != NONE && steps <= self.queues.len() {
                at = self.queues[at as usize].parent;
                steps += 1;
            }
            if at != NONE {
                self.queues[q as usize].detached = Some(Detached::Cycle);
            }
        }
        for q in 0..self.queues.len() {
            if self.queues[q].detached == Some(Detached::Cycle) {
                self.queues[q].parent = NONE;
            }
        }
        for q in 0..self.queues.len() {
            let parent = self.queues[q].parent;
            if parent != NONE {
                self.queues[parent as usize].children.push(q as u32);
            }
            let (own, running) = (self.queues[q].own.clone(), self.queues[q].own_running);
            let own_leaving = self.queues[q].own_leaving.clone();
            let mut at = parent;
            while at != NONE {
                let above = &mut self.queues[at as usize];
                above.running += running;
                for (sum, amount) in above.used.iter_mut().zip(&own) {
                    *sum += amount;
                }
                for (sum, amount) in above.leaving.iter_mut().zip(&own_leaving) {
                    *sum += amount;
                }
                at = above.parent;
            }
        }
        for q in 0..self.queues.len() {
            let mut at = q as u32;
            let mut half_life = 0;
            while at != NONE && half_life == 0 {
                let queue = &self.queues[at as usize];
                half_life = queue.spec.as_ref().map_or(0, |s| s.half_life.max(0));
                at = queue.parent;
            }
            self.set_half_life(q as u32, half_life);
        }
        // Below a queue that has no place there is none either.
        for q in 0..self.queues.len() {
            let mut at = self.queues[q].parent;
            while at != NONE && self.queues[q].detached.is_none() {
                self.queues[q].detached = self.queues[at as usize].detached;
                at = self.queues[at as usize].parent;
            }
        }
    }

    /// Changes what a queue and those above it hold by `count` tasks of a shape that belong to `run`.
    pub(crate) fn charge(&mut self, queue: u32, shape: u32, run: u32, count: i64) {
        self.charge_owner(queue, shape, run, count);
        let requests = &self.tasks.shapes.get(shape).requests;
        let leaf = &mut self.queues[queue as usize];
        leaf.past.settle(&leaf.own, leaf.half_life, self.now);
        leaf.charges += 1;
        leaf.own_running = leaf.own_running.saturating_add_signed(count);
        for (r, amount) in requests {
            leaf.own[*r as usize] += i128::from(*amount) * i128::from(count);
        }
        let mut at = queue;
        while at != NONE {
            let node = &mut self.queues[at as usize];
            node.running = node.running.saturating_add_signed(count);
            for (r, amount) in requests {
                node.used[*r as usize] += i128::from(*amount) * i128::from(count);
            }
            at = node.parent;
        }
        self.charges += 1;
        for (r, amount) in requests {
            self.charged[*r as usize] += i128::from(*amount) * i128::from(count);
        }
    }

    /// The same for what its tasks that leave hold.
    pub(crate) fn charge_leaving(&mut self, queue: u32, shape: u32, count: i64) {
        let requests = &self.tasks.shapes.get(shape).requests;
        let mut at = queue;
        while at != NONE {
            let node = &mut self.queues[at as usize];
            for (r, amount) in requests {
                node.leaving[*r as usize] += i128::from(*amount) * i128::from(count);
            }
            at = node.parent;
        }
        let leaf = &mut self.queues[queue as usize];
        for (r, amount) in requests {
            leaf.own_leaving[*r as usize] += i128::from(*amount) * i128::from(count);
        }
    }

    /// Why a queue that is there takes part in nothing.
    pub fn detached(&self, queue: QueueId) -> Option<Detached> {
        self.queues[queue.0 as usize].detached
    }

    /// Sets how many tasks may still be evicted for demands of a queue. Each eviction takes one off;
    /// without a word about it there is no bound.
    pub fn allow_evictions(&mut self, queue: QueueId, count: u32) {
        self.queues[queue.0 as usize].evictions_left = count;
    }

    /// Number of a queue that was named before.
    pub fn queue_named(&self, name: &str) -> Option<QueueId> {
        self.queue_ids.get(name).copied().map(QueueId)
    }

    /// A queue's name.
    pub fn queue_name(&self, queue: QueueId) -> &Arc<str> {
        &self.queues[queue.0 as usize].name
    }

    /// What a queue's tasks and those below it hold, by resource, zeros left out.
    pub fn queue_used(&self, queue: QueueId) -> impl Iterator<Item = (&str, i64)> {
        let used = &self.queues[queue.0 as usize].used;
        (0..self.resources.len())
            .filter(|r| used[*r] != 0)
            .map(|r| {
                (
                    self.resources.name(r as u32).as_ref(),
                    super::clamp(used[r]),
                )
            })
    }

    /// How many of a queue's tasks, and of those below it, hold resources.
    pub fn queue_running(&self, queue: QueueId) -> u64 {
        self.queues[queue.0 as usize].running
    }
}
