//! Queues: their rules, and what their tasks hold now.

use super::Cluster;
use crate::spec::QueueSpec;
use std::sync::Arc;

/// A queue, by number. Valid as long as the [`Cluster`] that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId(pub(crate) u32);

#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub name: Arc<str>,
    /// `None` for a queue that Jobs or tasks name and that is not there.
    pub spec: Option<QueueSpec>,
    /// Per resource; `i64::MAX` is no limit. As long as the stride.
    pub limit: Vec<i64>,
    /// Per resource.
    pub used: Vec<i128>,
    pub running: u64,
}

impl Queue {
    pub fn widen(&mut self, stride: usize) {
        self.limit.resize(stride, i64::MAX);
        self.used.resize(stride, 0);
    }

    /// How many tasks of these requests the limits still allow.
    pub fn head_room(&self, requests: &[(u32, i64)]) -> u32 {
        requests
            .iter()
            .map(|(r, amount)| {
                let r = *r as usize;
                if self.limit[r] == i64::MAX {
                    i64::MAX
                } else {
                    (super::clamp(i128::from(self.limit[r]) - self.used[r]) / amount).max(0)
                }
            })
            .min()
            .map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX))
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
            limit: vec![i64::MAX; self.stride],
            used: vec![0; self.stride],
            running: 0,
        });
        self.queue_ids.insert(name, id);
        QueueId(id)
    }

    /// Sets a queue's rules; `None` removes the queue (its tasks keep what they hold, and its
    /// demands wait).
    pub fn set_queue(&mut self, name: &str, spec: Option<QueueSpec>) -> QueueId {
        let id = self.queue(name);
        let limits: Vec<(u32, i64)> = spec
            .iter()
            .flat_map(|s| &s.limit)
            .map(|(resource, amount)| (self.resource(resource), *amount))
            .collect();
        let queue = &mut self.queues[id.0 as usize];
        queue.limit.fill(i64::MAX);
        for (r, amount) in limits {
            queue.limit[r as usize] = amount;
        }
        queue.spec = spec;
        id
    }

    /// A queue's name.
    pub fn queue_name(&self, queue: QueueId) -> &Arc<str> {
        &self.queues[queue.0 as usize].name
    }

    /// What a queue's tasks hold, by resource, zeros left out.
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

    /// How many of a queue's tasks hold resources.
    pub fn queue_running(&self, queue: QueueId) -> u64 {
        self.queues[queue.0 as usize].running
    }
}
