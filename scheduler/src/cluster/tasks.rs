//! Tasks that hold resources: a slab, listed per node, each with its shape and queue.

use super::states::NONE;
use super::{Cluster, NodeId, QueueId};
use crate::classes::Shape;
use crate::intern::FxMap;
use crate::spec::Class;

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
    generation: u32,
    pub next: u32,
    prev: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    pub slots: Vec<Task>,
    unused: Vec<u32>,
    pub shapes: Shapes,
}

/// Shapes, counted by who uses them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shapes {
    all: Vec<(Shape, u64)>,
    ids: FxMap<Shape, u32>,
    unused: Vec<u32>,
}

impl Shapes {
    /// Number of a shape. Unused until [`Shapes::keep`] is called.
    pub fn intern(&mut self, shape: Shape) -> u32 {
        if let Some(id) = self.ids.get(&shape) {
            return *id;
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
        id
    }

    pub fn keep(&mut self, id: u32, times: u32) {
        self.all[id as usize].1 += u64::from(times);
    }

    pub fn drop_one(&mut self, id: u32) {
        let (shape, users) = &mut self.all[id as usize];
        *users -= 1;
        if *users == 0 {
            self.ids.remove(shape);
            self.unused.push(id);
        }
    }

    pub fn get(&self, id: u32) -> &Shape {
        &self.all[id as usize].0
    }
}

impl Tasks {
    pub fn live(&self) -> usize {
        self.slots.len() - self.unused.len()
    }
}

impl Cluster {
    /// Charges a task that runs already to its node and queue, whether it fits or not. A node that
    /// is not there is charged too, for when it comes back.
    pub fn bind(&mut self, node: &str, queue: QueueId, class: &Class) -> TaskId {
        let shape = self.shape(class);
        let node = self.node_slot(node);
        let mut out = Vec::with_capacity(1);
        self.take(node, queue.0, shape, 1, |id| out.push(id));
        out[0]
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
        let queue = &mut self.queues[queue as usize];
        queue.running -= 1;
        for (r, amount) in &shape.requests {
            self.used[start + *r as usize] -= i128::from(*amount);
            queue.used[*r as usize] -= i128::from(*amount);
        }
        for port in &shape.ports {
            if let Some(holders) = self.ports.get_mut(&(node, *port)) {
                *holders -= 1;
                if *holders == 0 {
                    self.ports.remove(&(node, *port));
                }
            }
        }
        self.tasks.shapes.drop_one(shape_id);
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
        count: u32,
        mut placed: impl FnMut(TaskId),
    ) {
        let shape = self.tasks.shapes.get(shape_id);
        let start = node as usize * self.stride;
        let q = &mut self.queues[queue as usize];
        q.running += u64::from(count);
        for (r, amount) in &shape.requests {
            let sum = i128::from(*amount) * i128::from(count);
            self.used[start + *r as usize] += sum;
            q.used[*r as usize] += sum;
        }
        for port in &shape.ports {
            *self.ports.entry((node, *port)).or_insert(0) += count;
        }
        self.tasks.shapes.keep(shape_id, count);
        for _ in 0..count {
            let next = self.nodes[node as usize].first_task;
            let task = Task {
                node,
                shape: shape_id,
                queue,
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
            placed(TaskId {
                slot,
                generation: slots[slot as usize].generation,
            });
        }
        self.states.detach(node);
        self.attach(node);
    }
}
