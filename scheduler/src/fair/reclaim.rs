//! Reclaim: whether one queue may take from another what it is owed.
//!
//! A *move* lets tasks of queue `from` go for tasks of queue `to`. Let A and B be the two sisters in
//! the tree under which `to` and `from` are (just below their lowest common ancestor; a queue's own
//! work is a sister of the queues below it). A move is allowed if, on every resource asked for:
//!
//! 1. `from`, and every queue above it up to and with B, still has its guarantee after the loss; and
//! 2. either (a) some queue from `to` up to and with A stays within its guarantee after the gain, or
//!    (b) `to` reclaims up to its share ([`Reclaim::PreemptToShare`]), and A's dominant share for
//!    its weight after the gain is at most B's after the loss.
//!
//! **No sequence of moves comes back to where it was**, when what is lost equals what is gained, so
//! there are no eviction loops. Two quantities show it:
//!
//! - *Deficit:* the sum, over queues and resources, of what is missing to the guarantee. By rule 1 no
//!   loss raises it, a gain never does, and a move by (a) lowers it by at least one unit of something.
//!   It is an integer and not negative, so there are finitely many moves by (a) in a row of moves.
//! - *Levels:* between those, only (b). Take for each depth of the tree, top first, the shares for
//!   their weights of all queues at that depth, ascending. A move whose sisters are at depth d
//!   changes nothing above, as what their common ancestors hold stays the same. At depth d it
//!   raises A, which was lowest of the two, and lowers B, but not below A: A < A' <= B' < B, or
//!   B' = B, when another resource is B's dominant one, and then still A < A'. Either way the
//!   ascending list at depth d grows in lexicographic order, and so does the list of lists. There
//!   are finitely many of them, as there are finitely many tasks.
//!
//! (A' > A is asked for in so many words: a gain on a resource that is not A's dominant one would
//! leave the list as it was.) Where more is lost than gained, as whole tasks go, the rest is free; the
//! caller checks the move with what is really lost, and whoever takes the rest does so by its turn.
//!
//! Where past use counts, (b) must hold with it too, as it does in the order: otherwise what a queue
//! got by its turn because the other had much in the past would be taken from it again. Past use
//! is the same before and after a move, so this only allows fewer moves.

use super::share::{level, share};
use crate::cluster::Cluster;
use crate::cluster::queues::Queue;
use crate::cluster::states::NONE;
use crate::spec::Reclaim;

/// Whether there may be something at all to take from `from`, so that looking at its tasks is worth
/// it: with the least of a loss.
pub(crate) fn could_reclaim(
    cluster: &Cluster,
    from: u32,
    to: u32,
    requests: &[(u32, i64)],
) -> bool {
    let least: Vec<_> = requests.iter().map(|(r, _)| (*r, 1)).collect();
    allowed(cluster, (from, &least), (to, requests), false)
}

/// Whether a task of `from` that holds `loss` may go for one of `to` that asks for `gain`. What has
/// been told to leave already no longer counts as held: ask about one task after the other.
pub(crate) fn may_reclaim(
    cluster: &Cluster,
    from: u32,
    loss: &[(u32, i64)],
    to: u32,
    gain: &[(u32, i64)],
) -> bool {
    allowed(cluster, (from, loss), (to, gain), true)
}

type Part<'a> = (u32, &'a [(u32, i64)]);

fn allowed(
    cluster: &Cluster,
    (from, loss): Part<'_>,
    (to, gain): Part<'_>,
    with_past: bool,
) -> bool {
    let taker = &cluster.queues[to as usize];
    if from == to || taker.spec.is_none() || taker.detached.is_some() {
        return false;
    }
    let (above_from, above_to) = (path(cluster, from), path(cluster, to));
    let common = above_from
        .iter()
        .rev()
        .zip(above_to.iter().rev())
        .take_while(|(a, b)| a == b)
        .count();
    // From the queue up to and with the sister; empty for a common ancestor's own work.
    let losers = &above_from[..above_from.len() - common];
    let winners = &above_to[..above_to.len() - common];
    let kept = losers.iter().all(|q| {
        let queue = &cluster.queues[*q as usize];
        loss.iter().all(|(r, amount)| {
            let owed = i128::from(queue.guarantee[*r as usize]);
            owed == 0 || queue.used[*r as usize] - i128::from(*amount) >= owed
        })
    });
    if !kept {
        return false;
    }
    let owed = winners.iter().any(|q| {
        let queue = &cluster.queues[*q as usize];
        let named = |(r, _): &&(u32, i64)| queue.guarantee[*r as usize] > 0;
        let fits = |(r, amount): &(u32, i64)| {
            queue.used[*r as usize] + i128::from(*amount)
                <= i128::from(queue.guarantee[*r as usize])
        };
        let mut guaranteed = gain.iter().filter(named).peekable();
        guaranteed.peek().is_some() && guaranteed.all(fits)
    });
    if owed {
        return true;
    }
    let rule = taker.spec.as_ref().map(|s| s.reclaim);
    if rule != Some(Reclaim::PreemptToShare) {
        return false;
    }
    let (taker, giver) = (
        Sister::new(cluster, winners.last(), to),
        Sister::new(cluster, losers.last(), from),
    );
    let levels = |past: &dyn Fn(&Sister<'_>) -> Vec<i128>| {
        let (taken, given) = (past(&taker), past(&giver));
        let before = taker.level(cluster, &taken, &[], 1);
        let winner = taker.level(cluster, &taken, gain, 1);
        let loser = giver.level(cluster, &given, loss, -1);
        (before.cmp(&winner), winner.cmp(&loser))
    };
    let (rises, fits) = levels(&|_| Vec::new());
    if rises.is_ge() || fits.is_gt() {
        return false;
    }
    !with_past || levels(&|sister| sister.past(cluster)).1.is_le()
}

/// A queue and all above it, upwards.
fn path(cluster: &Cluster, queue: u32) -> Vec<u32> {
    let mut path = Vec::new();
    let mut at = queue;
    while at != NONE {
        path.push(at);
        at = cluster.queues[at as usize].parent;
    }
    path
}

/// One of two that compare: a queue with all below it, or the own work of one.
struct Sister<'a> {
    queue: &'a Queue,
    with_below: bool,
}

impl<'a> Sister<'a> {
    fn new(cluster: &'a Cluster, sister: Option<&u32>, queue: u32) -> Self {
        Sister {
            queue: &cluster.queues[*sister.unwrap_or(&queue) as usize],
            with_below: sister.is_some(),
        }
    }

    /// Average past use; empty when it does not count.
    fn past(&self, cluster: &Cluster) -> Vec<i128> {
        let mut sum = vec![0; cluster.resources.len()];
        let mut below = vec![self.queue];
        while let Some(queue) = below.pop() {
            if queue.half_life > 0 {
                let past = queue.past.view(queue.half_life, cluster.now);
                for (r, sum) in sum.iter_mut().enumerate() {
                    *sum += past.amount(r, queue.own[r]);
                }
            }
            if self.with_below {
                let children = queue.children.iter();
                below.extend(children.map(|c| &cluster.queues[*c as usize]));
            }
        }
        sum
    }

    /// The dominant share for its weight after a change.
    fn level(&self, cluster: &Cluster, past: &[i128], change: &[(u32, i64)], sign: i128) -> u64 {
        let (held, weight) = if self.with_below {
            let spec = self.queue.spec.as_ref();
            (&self.queue.used, spec.map_or(1, |s| s.weight.max(1)))
        } else {
            (&self.queue.own, 1)
        };
        let each = held.iter().zip(&cluster.total).enumerate();
        let parts = each.map(|(r, (held, total))| {
            let changes = change.iter().filter(|(c, _)| *c as usize == r);
            let changed: i128 = changes.map(|(_, amount)| i128::from(*amount)).sum();
            let past = past.get(r).copied().unwrap_or(0);
            share(held + past + sign * changed, *total)
        });
        level(parts.max().unwrap_or(0), weight)
    }
}
