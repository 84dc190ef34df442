//! Tasks that hold resources: a slab, listed per node, each with its shape and queue.

use super::states::NONE;
use super::{Cluster, NodeId, QueueId};
use crate::classes::Shape;
use crate::intern::{FxMap, FxSet};
use crate::spec::{Class, Run};
use std::hash::Hash;

/// A task that holds resources. Releasing it twice does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    slot: u32,
    generation: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub node: u32,
    pub shape: u32,
    pub queue: u32,
    /// What it was started for and how long it runs: a number in [`Tasks::runs`].
    pub run: u32,
    /// Being evicted: it holds its node until it is released, and its queue no more.
    pub leaving: bool,
    generation: u32,
    pub next: u32,
    prev: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    pub slots: Vec<Task>,
    unused: Vec<u32>,
    pub shapes: Counted<Shape>,
    pub runs: Counted<Run>,
    /// Members of each gang that run.
    pub gangs: FxMap<u64, FxSet<u32>>,
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
    #[allow(dead_code)]
    pub(crate) fn stay(&mut self, id: TaskId) -> bool {
        self.set_leaving(id, false)
    }

    fn set_leaving(&mut self, id: TaskId, leaving: bool) -> bool {
        let Some(task) = self.tasks.slots.get_mut(id.slot as usize) else {
            return false;
        };
        if task.generation != id.generation || task.node == NONE || task.leaving == leaving {
            return false;
        }
        task.leaving = leaving;
        let (node, queue, shape) = (task.node, task.queue, task.shape);
        let start = node as usize * self.stride;
        let sign = if leaving { 1 } else { -1 };
        for (r, amount) in &self.tasks.shapes.get(shape).requests {
            self.leaving[start + *r as usize] += sign * i128::from(*amount);
        }
        self.charge(queue, shape, if leaving { -1 } else { 1 });
        true
    }

    /// What is known of a task, while it holds something.
    pub fn run_of(&self, id: TaskId) -> Option<&Run> {
        let task = self.tasks.slots.get(id.slot as usize)?;
        (task.generation == id.generation && task.node != NONE)
            .then(|| self.tasks.runs.get(task.run))
    }

    /// Tells anew what is known of a task (a later end, a checkpoint).
    pub fn set_run(&mut self, id: TaskId, run: Run) -> bool {
        let Some(task) = self.tasks.slots.get_mut(id.slot as usize) else {
            return false;
        };
        if task.generation != id.generation || task.node == NONE {
            return false;
        }
        let (new, _) = self.tasks.runs.intern(run);
        self.tasks.runs.keep(new, 1);
        let old = std::mem::replace(&mut task.run, new);
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
        let Some(task) = self.tasks.slots.get_mut(id.slot as usize) else {
            return false;
        };
        if task.generation != id.generation || task.node == NONE {
            return false;
        }
        task.generation = task.generation.wrapping_add(1);
        let node = std::mem::replace(&mut task.node, NONE);
        let (shape_id, queue, next, prev) = (task.shape, task.queue, task.next, task.prev);
        let (run, leaving) = (task.run, std::mem::take(&mut task.leaving));
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
        if !leaving {
            self.charge(queue, shape_id, -1);
        }
        let gang = self.tasks.runs.get(run).gang;
        self.tasks.leave_gang(gang, id.slot);
        self.tasks.runs.drop_one(run);
        self.drop_shape(shape_id);
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
        let mut at = self.nodes[node.0 as usize].first_task;
        std::iter::from_fn(move || {
            let task = self.tasks.slots.get(at as usize)?;
            let id = TaskId {
                slot: at,
                generation: task.generation,
            };
            at = task.next;
            Some(id)
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
        self.charge(queue, shape_id, i64::from(count));
        self.tasks.shapes.keep(shape_id, count);
        self.tasks.runs.keep(run, count);
        let gang = self.tasks.runs.get(run).gang;
        for _ in 0..count {
            let next = self.nodes[node as usize].first_task;
            let task = Task {
                node,
                shape: shape_id,
                queue,
                run,
                leaving: false,
                generation: 0,
                next,
                prev: NONE,
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
            let slots = &self.tasks.slots;
            placed(TaskId {
                slot,
                generation: slots[slot as usize].generation,
            });
        }
        self.states.detach(node);
        self.attach(node);
    }
}
