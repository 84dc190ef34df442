//! Tasks that hold resources: a slab, listed per node, each with its shape and queue.

use super::states::NONE;
use super::{Cluster, NodeId, QueueId};
use crate::classes::Shape;
use crate::intern::{FxMap, FxSet};
use crate::mutant::{Mutant, mutant};
use crate::spec::{Class, Run};
use std::collections::BTreeMap;
use std::hash::Hash;

/// A task that holds resources. Releasing it twice does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    slot: u32,
    generation: u32,
}

impl TaskId {
    /// Its place in [`Tasks::slots`].
    pub(crate) fn slot(self) -> u32 {
        self.slot
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub node: u32,
    pub shape: u32,
    pub queue: u32,
    /// What it was started for and how long it runs: a number in [`Tasks::runs`].
    pub run: u32,
    /// Which of the node's devices it holds a part of, numbered through; see [`super::devices`].
    pub devices: u64,
    /// Being evicted: it holds its node until it is released, and its queue no more.
    pub leaving: bool,
    generation: u32,
    pub next: u32,
    prev: u32,
    /// Position in its list of [`Listed`]; meaningless when it is in none.
    listed: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    pub slots: Vec<Task>,
    unused: Vec<u32>,
    pub shapes: Counted<Shape>,
    pub runs: Counted<Run>,
    /// Members of each gang that run.
    pub gangs: FxMap<u64, FxSet<u32>>,
    /// Tasks by what preemption looks for.
    pub listed: Listed,
}

/// Who may have to leave, and who leaves: kept up to date so that preemption finds both, or that
/// there is nobody, without a look at every task. Lists grow at their end, so newest is last,
/// nearly: a task that goes is replaced by the last one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listed {
    /// Preemptible tasks that stay, by queue and priority. No list is empty.
    pub evictable: BTreeMap<(u32, i32), Vec<u32>>,
    /// Tasks that leave.
    pub leaving: Vec<u32>,
}

/// Values that many tasks share, as numbers, counted by who uses them.
#[derive(Clone, Debug)]
pub(crate) struct Counted<T> {
    all: Vec<(T, u64)>,
    ids: FxMap<T, u32>,
    unused: Vec<u32>,
}

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Counted {
            all: Vec::new(),
            ids: FxMap::default(),
            unused: Vec::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Counted<T> {
    /// Number of a value, and whether it is new: unused until [`Counted::keep`] is called.
    pub fn intern(&mut self, shape: T) -> (u32, bool) {
        if let Some(id) = self.ids.get(&shape) {
            return (*id, false);
        }
        let id = match self.unused.pop() {
            Some(id) => {
                self.all[id as usize] = (shape.clone(), 0);
                id
            }
            None => {
                self.all.push((shape.clone(), 0));
                self.all.len() as u32 - 1
            }
        };
        self.ids.insert(shape, id);
        (id, true)
    }

    pub fn keep(&mut self, id: u32, times: u32) {
        self.all[id as usize].1 += u64::from(times);
    }

    /// One user less; gives back the value when that was the last.
    pub fn drop_one(&mut self, id: u32) -> Option<T> {
        let (value, users) = &mut self.all[id as usize];
        *users -= 1;
        if *users > 0 {
            return None;
        }
        self.unused.push(id);
        self.ids.remove_entry(value).map(|(value, _)| value)
    }

    /// Takes a value out again that was interned and that nobody came to use.
    pub fn drop_unused(&mut self, id: u32) {
        self.keep(id, 1);
        self.drop_one(id);
    }

    pub fn get(&self, id: u32) -> &T {
        &self.all[id as usize].0
    }
}

impl Tasks {
    pub fn live(&self) -> usize {
        self.slots.len() - self.unused.len()
    }

    /// The task that has this slot now.
    pub fn id(&self, slot: u32) -> TaskId {
        TaskId {
            slot,
            generation: self.slots[slot as usize].generation,
        }
    }

    fn enlist(&mut self, slot: u32) {
        let task = &mut self.slots[slot as usize];
        let run = self.runs.get(task.run);
        let list = if task.leaving {
            &mut self.listed.leaving
        } else if run.preemptible {
            let key = (task.queue, run.priority);
            self.listed.evictable.entry(key).or_default()
        } else {
            return;
        };
        task.listed = list.len() as u32;
        list.push(slot);
    }

    /// Before its run, or whether it leaves, changes.
    fn delist(&mut self, slot: u32) {
        let task = &self.slots[slot as usize];
        let run = self.runs.get(task.run);
        let key = (task.queue, run.priority);
        let list = if task.leaving {
            Some(&mut self.listed.leaving)
        } else if run.preemptible {
            self.listed.evictable.get_mut(&key)
        } else {
            None
        };
        let Some(list) = list else {
            return;
        };
        let at = task.listed;
        list.swap_remove(at as usize);
        if let Some(moved) = list.get(at as usize) {
            self.slots[*moved as usize].listed = at;
        } else if list.is_empty() && !self.slots[slot as usize].leaving {
            self.listed.evictable.remove(&key);
        }
    }

    fn join_gang(&mut self, gang: u64, slot: u32) {
        if gang != 0 {
            self.gangs.entry(gang).or_default().insert(slot);
        }
    }

    fn leave_gang(&mut self, gang: u64, slot: u32) {
        if gang != 0
            && let Some(members) = self.gangs.get_mut(&gang)
        {
            members.remove(&slot);
            if members.is_empty() {
                self.gangs.remove(&gang);
            }
        }
    }
}

impl Cluster {
    /// Charges a task that runs already to its node and queue, whether it fits or not. A node that
    /// is not there is charged too, for when it comes back.
    pub fn bind(&mut self, node: &str, queue: QueueId, class: &Class, run: Run) -> TaskId {
        let shape = self.shape(class);
        let node = self.node_slot(node);
        let (run, _) = self.tasks.runs.intern(run);
        let mut out = Vec::with_capacity(1);
        self.take(node, queue.0, shape, run, 1, |id| out.push(id));
        out[0]
    }

    /// Tells that a task is on its way out: its queue no longer pays for it, while its node is
    /// occupied until it is released. False when it is not there or leaves already.
    pub fn leave(&mut self, id: TaskId) -> bool {
        self.set_leaving(id, true)
    }

    /// Takes [`Cluster::leave`] back, for a trial that is given up.
    pub(crate) fn stay(&mut self, id: TaskId) -> bool {
        self.set_leaving(id, false)
    }

    fn set_leaving(&mut self, id: TaskId, leaving: bool) -> bool {
        let Some(task) = self.tasks.slots.get(id.slot as usize) else {
            return false;
        };
        if task.generation != id.generation || task.node == NONE || task.leaving == leaving {
            return false;
        }
        let (node, queue, shape, run) = (task.node, task.queue, task.shape, task.run);
        self.tasks.delist(id.slot);
        self.tasks.slots[id.slot as usize].leaving = leaving;
        self.tasks.enlist(id.slot);
        let start = node as usize * self.stride;
        let sign = if leaving { 1 } else { -1 };
        for (r, amount) in &self.tasks.shapes.get(shape).requests {
            self.leaving[start + *r as usize] += sign * i128::from(*amount);
        }
        let count = if leaving { -1 } else { 1 };
        self.charge(queue, shape, run, count);
        self.charge_leaving(queue, shape, -count);
        self.touch(node);
        true
    }

    /// The tasks of a node are no longer what they were.
    fn touch(&mut self, node: u32) {
        self.versions += 1;
        self.nodes[node as usize].version = self.versions;
    }

    pub(crate) fn task(&self, id: TaskId) -> Option<&Task> {
        let task = self.tasks.slots.get(id.slot as usize)?;
        (task.generation == id.generation && task.node != NONE).then_some(task)
    }

    /// What is known of a task, while it holds something.
    pub fn run_of(&self, id: TaskId) -> Option<&Run> {
        Some(self.tasks.runs.get(self.task(id)?.run))
    }

    /// What a task holds, by resource, while it holds something.
    pub fn held_by(&self, id: TaskId) -> impl Iterator<Item = (&str, i64)> {
        let task = self.task(id).into_iter();
        let requests = task.flat_map(|t| &self.tasks.shapes.get(t.shape).requests);
        requests.map(|(r, amount)| (self.resources.name(*r).as_ref(), *amount))
    }

    /// Tells anew what is known of a task (a later end, a checkpoint).
    pub fn set_run(&mut self, id: TaskId, run: Run) -> bool {
        let Some(task) = self.tasks.slots.get(id.slot as usize) else {
            return false;
        };
        if task.generation != id.generation || task.node == NONE {
            return false;
        }
        self.tasks.delist(id.slot);
        let (new, _) = self.tasks.runs.intern(run);
        self.tasks.runs.keep(new, 1);
        let task = &mut self.tasks.slots[id.slot as usize];
        let old = std::mem::replace(&mut task.run, new);
        let (queue, shape, stays) = (task.queue, task.shape, !task.leaving);
        let node = task.node;
        self.touch(node);
        self.tasks.enlist(id.slot);
        if stays && self.tasks.runs.get(old).owner != run.owner {
            self.charge(queue, shape, old, -1);
            self.charge(queue, shape, new, 1);
        }
        let old_gang = self.tasks.runs.get(old).gang;
        self.tasks.runs.drop_one(old);
        if old_gang != run.gang {
            self.tasks.leave_gang(old_gang, id.slot);
            self.tasks.join_gang(run.gang, id.slot);
        }
        true
    }

    /// Gives back what a task holds; false when it was released before.
    pub fn release(&mut self, id: TaskId) -> bool {
        let Some(task) = self.tasks.slots.get(id.slot as usize) else {
            return false;
        };
        if task.generation != id.generation || task.node == NONE {
            return false;
        }
        self.tasks.delist(id.slot);
        let task = &mut self.tasks.slots[id.slot as usize];
        task.generation = task.generation.wrapping_add(1);
        let node = std::mem::replace(&mut task.node, NONE);
        let (shape_id, queue, next, prev) = (task.shape, task.queue, task.next, task.prev);
        let (run, leaving) = (task.run, std::mem::take(&mut task.leaving));
        let held = task.devices;
        if prev == NONE {
            self.nodes[node as usize].first_task = next;
        } else {
            self.tasks.slots[prev as usize].next = next;
        }
        if next != NONE {
            self.tasks.slots[next as usize].prev = prev;
        }
        self.tasks.unused.push(id.slot);
        let shape = self.tasks.shapes.get(shape_id);
        let start = node as usize * self.stride;
        self.side.depart(shape.tag, node);
        if held != 0
            && let Some(devices) = self.devices.get_mut(&node)
        {
            devices.give_back(&shape.requests, held);
        }
        for (r, amount) in &shape.requests {
            self.used[start + *r as usize] -= i128::from(*amount);
            if leaving {
                self.leaving[start + *r as usize] -= i128::from(*amount);
            }
        }
        for port in &shape.ports {
            if let Some(holders) = self.ports.get_mut(&(node, *port)) {
                *holders -= 1;
                if *holders == 0 {
                    self.ports.remove(&(node, *port));
                }
            }
        }
        if leaving {
            self.charge_leaving(queue, shape_id, -1);
        } else if !mutant(Mutant::KeepCharge) {
            self.charge(queue, shape_id, run, -1);
        }
        let gang = self.tasks.runs.get(run).gang;
        self.tasks.leave_gang(gang, id.slot);
        self.tasks.runs.drop_one(run);
        self.drop_shape(shape_id);
        self.touch(node);
        self.states.detach(node);
        self.attach(node);
        self.forget_if_unused(node);
        true
    }

    /// Number of tasks that hold resources.
    pub fn task_count(&self) -> usize {
        self.tasks.live()
    }

    /// Tasks charged to a node, newest first.
    pub fn tasks_on(&self, node: NodeId) -> impl Iterator<Item = TaskId> {
        self.slots_on(node.0).map(|slot| self.tasks.id(slot))
    }

    /// The same as slots.
    pub(crate) fn slots_on(&self, node: u32) -> impl Iterator<Item = u32> {
        let mut at = self.nodes[node as usize].first_task;
        std::iter::from_fn(move || {
            let slot = at;
            at = self.tasks.slots.get(slot as usize)?.next;
            Some(slot)
        })
    }

    /// Charges `count` tasks of one shape to one node.
    pub(crate) fn take(
        &mut self,
        node: u32,
        queue: u32,
        shape_id: u32,
        run: u32,
        count: u32,
        mut placed: impl FnMut(TaskId),
    ) {
        let shape = self.tasks.shapes.get(shape_id);
        let start = node as usize * self.stride;
        for (r, amount) in &shape.requests {
            self.used[start + *r as usize] += i128::from(*amount) * i128::from(count);
        }
        for port in &shape.ports {
            *self.ports.entry((node, *port)).or_insert(0) += count;
        }
        self.side.arrive(shape.tag, node, count);
        let profile = self.nodes[node as usize].profile;
        let with_devices =
            profile != NONE && !self.profiles.all[profile as usize].devices.is_empty();
        self.charge(queue, shape_id, run, i64::from(count));
        self.tasks.shapes.keep(shape_id, count);
        self.tasks.runs.keep(run, count);
        let Run {
            gang, preemptible, ..
        } = *self.tasks.runs.get(run);
        for _ in 0..count {
            let next = self.nodes[node as usize].first_task;
            let task = Task {
                node,
                shape: shape_id,
                queue,
                run,
                devices: 0,
                leaving: false,
                generation: 0,
                next,
                prev: NONE,
                listed: 0,
            };
            let slots = &mut self.tasks.slots;
            let slot = match self.tasks.unused.pop() {
                Some(slot) => {
                    let generation = slots[slot as usize].generation;
                    slots[slot as usize] = Task { generation, ..task };
                    slot
                }
                None => {
                    slots.push(task);
                    slots.len() as u32 - 1
                }
            };
            if next != NONE {
                slots[next as usize].prev = slot;
            }
            self.nodes[node as usize].first_task = slot;
            self.tasks.join_gang(gang, slot);
            if with_devices {
                self.tasks.slots[slot as usize].devices = self.take_devices(node, shape_id);
            }
            if preemptible {
                self.tasks.enlist(slot);
            }
            placed(self.tasks.id(slot));
        }
        self.touch(node);
        self.states.detach(node);
        self.attach(node);
    }
}
