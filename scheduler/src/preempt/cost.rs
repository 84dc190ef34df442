//! Cost: what evicting a task loses.

use crate::classes::Shape;
use crate::cluster::Cluster;
use crate::score::UNIT;
use crate::spec::{Run, Time};

/// Longest lost work that counts, so that sums stay far inside i128 (in milliseconds: 35 years).
const LOST_MAX: Time = 1 << 40;
/// Highest rank of a priority above the lowest that may be evicted that still makes a difference.
const STEPS_MAX: i64 = 1000;

/// What is to be least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weigh {
    /// What is lost.
    Work,
    /// The number of victims.
    Number,
}

/// Work that an eviction now throws away: what came after the last checkpoint, or all of it.
///
/// The real loss and not, say, a median over tasks: it is what the cluster pays. A caller that does
/// not want tasks without checkpoints to be safer than those with them tells a shorter one.
pub(crate) fn lost(run: &Run, now: Time) -> Time {
    run.lost(now).clamp(0, LOST_MAX)
}

/// (lost work + restart, at least one) × the task's largest part of what all nodes have, in millionths, at
/// least one, × (1 + priority above `lowest`).
pub(crate) fn of(
    cluster: &Cluster,
    shape: &Shape,
    run: &Run,
    (now, restart): (Time, Time),
    lowest: i32,
) -> i128 {
    let part = |(r, amount): &(u32, i64)| {
        let total = cluster.total[*r as usize].max(1);
        i128::from(*amount) * i128::from(UNIT) / total
    };
    let largest = shape.requests.iter().map(part).max().unwrap_or(0);
    let steps = (i64::from(run.priority) - i64::from(lowest)).clamp(0, STEPS_MAX);
    i128::from(lost(run, now) + restart.clamp(1, LOST_MAX))
        * largest.clamp(1, i128::from(UNIT))
        * i128::from(1 + steps)
}
