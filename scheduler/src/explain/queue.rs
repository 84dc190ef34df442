//! What a queue and those above it do not allow.

use super::Blocker;
use crate::cluster::states::NONE;
use crate::cluster::{Cluster, QueueId, clamp};

/// Tells what stands in the way; answers which limits would have to be raised, and how far.
pub(super) fn blockers(
    cluster: &Cluster,
    queue: QueueId,
    requests: &[(u32, i64)],
    together: u32,
    blockers: &mut Vec<Blocker>,
) -> Vec<(String, String, i64, i64)> {
    let mut raise = Vec::new();
    let entry = &cluster.queues[queue.0 as usize];
    if entry.spec.is_none() {
        blockers.push(Blocker::QueueMissing);
        return raise;
    }
    if let Some(why) = entry.detached {
        blockers.push(Blocker::QueueDetached(why));
        return raise;
    }
    let mut at = queue.0;
    while at != NONE {
        let queue = &cluster.queues[at as usize];
        for (r, amount) in requests {
            let limit = queue.limit[*r as usize];
            let held = queue.used[*r as usize] + queue.leaving[*r as usize];
            let request = i128::from(*amount) * i128::from(together.max(1));
            if limit == i64::MAX || held + request <= i128::from(limit) {
                continue;
            }
            // What leaves is told only where it alone is what stands in the way.
            let used = queue.used[*r as usize];
            let held = if used + request > i128::from(limit) {
                used
            } else {
                held
            };
            let resource = cluster.resources.name(*r).to_string();
            let name = queue.name.to_string();
            raise.push((name.clone(), resource.clone(), limit, clamp(held + request)));
            blockers.push(Blocker::QueueLimit {
                queue: name,
                resource,
                limit,
                used: clamp(held),
                request: clamp(request),
            });
        }
        at = queue.parent;
    }
    raise
}
