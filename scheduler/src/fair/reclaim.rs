//! Reclaim: whether one queue may take from another what it is owed.
//!
//! A *move* lets tasks of queue `from` go for tasks of queue `to`. Let A and B be the two sisters in
//! the tree under which `to` and `from` are (just below their lowest common ancestor; a queue's own
//! work is a sister of the queues below it). A move is allowed if, on every resource asked for:
//!
//! 1. `from`, and every queue above it up to and with B, still has its guarantee after the loss; and
//! 2. either (a) some queue from `to` up to and with A stays within its guarantee after the gain, or
//!    (b) A's dominant share for its weight after the gain is at most B's after the loss.
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
//! Shares here are of what is held now. Past use decides who goes next, and evicts nobody.

use super::share::{Key, share};
use crate::cluster::Cluster;
use crate::cluster::states::NONE;

/// Whether tasks of `from` that hold `requests` may go for tasks of `to` that ask as much.
#[allow(dead_code)]
pub(crate) fn may_reclaim(cluster: &Cluster, from: u32, to: u32, requests: &[(u32, i64)]) -> bool {
    may_move(cluster, from, requests, to, requests)
}

/// The same where what goes is not exactly what comes. What has been told to leave already no
/// longer counts as held, so ask before each [`Cluster::leave`] about that one alone, or before all
/// about their sum.
pub(crate) fn may_move(
    cluster: &Cluster,
    from: u32,
    loss: &[(u32, i64)],
    to: u32,
    gain: &[(u32, i64)],
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
    let before = level(cluster, winners.last(), to, &[], 1);
    let winner = level(cluster, winners.last(), to, gain, 1);
    let loser = level(cluster, losers.last(), from, loss, -1);
    before.level(&winner).is_lt() && winner.level(&loser).is_le()
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

/// The dominant share of a sister, or of a queue's own work where there is none, after a change.
fn level(
    cluster: &Cluster,
    sister: Option<&u32>,
    queue: u32,
    change: &[(u32, i64)],
    sign: i128,
) -> Key {
    let entry = &cluster.queues[*sister.unwrap_or(&queue) as usize];
    let held = if sister.is_some() {
        &entry.used
    } else {
        &entry.own
    };
    let weight = match sister {
        Some(_) => entry.spec.as_ref().map_or(1, |s| s.weight.max(1)),
        None => 1,
    };
    let each = held.iter().zip(&cluster.total).enumerate();
    let parts = each.map(|(r, (held, total))| {
        let changes = change.iter().filter(|(c, _)| *c as usize == r);
        let changed: i128 = changes.map(|(_, amount)| i128::from(*amount)).sum();
        share(held + sign * changed, *total)
    });
    Key {
        late: true,
        share: parts.max().unwrap_or(0),
        weight,
        age: (0, 0),
    }
}
