//! Tasks that were placed where others must leave first.

use super::states::NONE;
use super::{Cluster, TaskId};

impl Cluster {
    /// Whether a task that was placed may really start: all that is charged to its node, tasks
    /// that leave included, fits there, and no limit of its queues is passed. False for a task
    /// that is not there, or whose node is not.
    pub fn may_start(&self, id: TaskId) -> bool {
        let Some(task) = self.task(id) else {
            return false;
        };
        let state = self.states.of_node[task.node as usize];
        if state == NONE {
            return false;
        }
        let over = |devices: &super::devices::NodeDevices| devices.over();
        let fits = self.states.free_of(state).iter().all(|free| *free >= 0)
            && !self.devices.get(&task.node).is_some_and(over);
        let mut at = task.queue;
        while at != NONE && fits {
            let queue = &self.queues[at as usize];
            let held = queue.used.iter().zip(&queue.leaving);
            let over = |((used, leaving), limit): ((&i128, &i128), &i64)| {
                *limit != i64::MAX && used + leaving > i128::from(*limit)
            };
            if held.zip(&queue.limit).any(over) {
                return false;
            }
            at = queue.parent;
        }
        fits
    }
}
