//! Limits: how many more tasks a queue and all queues above it may hold.

use crate::cluster::states::NONE;
use crate::cluster::{Cluster, clamp};
use crate::mutant::{Mutant, mutant};

/// How many of `want` tasks of these requests the limits of the queue and of all queues above
/// still allow, and which limit (queue number, resource number) stops more; of limits that are
/// equally tight, the lowest in the tree. What leaves counts until it is gone.
pub(crate) fn head_room(
    cluster: &Cluster,
    queue: u32,
    requests: &[(u32, i64)],
    want: u32,
) -> (u32, Option<(u32, u32)>) {
    let mut allowed = want;
    let mut stops = None;
    let mut at = queue;
    while at != NONE {
        let queue = &cluster.queues[at as usize];
        for (r, amount) in requests {
            let limit = queue.limit[*r as usize];
            if limit == i64::MAX || *amount <= 0 || mutant(Mutant::SkipLimit) {
                continue;
            }
            let held = queue.used[*r as usize] + queue.leaving[*r as usize];
            let left = clamp(i128::from(limit) - held).max(0) / amount;
            if left < i64::from(allowed) {
                allowed = left as u32;
                stops = Some((at, *r));
            }
        }
        at = queue.parent;
    }
    (allowed, stops)
}
