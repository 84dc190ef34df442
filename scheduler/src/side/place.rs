//! Places tasks of a class that is under rules: nodes in the order of their states' scores, each
//! asked for its room.
//!
//! While it runs, only its own tasks come, so what the rules keep it from for good need not be
//! looked at twice, and what waits for other domains to fill up is held by domain. Nodes that took
//! a task are offered again with their new score.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::held::Held;
use super::rules::{Room, Rules};
use crate::classes::Shape;
use crate::cluster::states::{NONE, States};
use crate::cluster::{Cluster, NodeId, TaskId};
use crate::index::{Entry, Index};
use crate::place::{Ask, Budget, Rater, SCAN_TASKS_MAX, Veto, allowed};
use crate::score::{self, Fill};

/// Nodes near what a class must be with are taken one by one, instead of the states in order, when
/// they are fewer than one in this many states (of which the order would turn up as few).
const NEAR_PART: usize = 16;
/// And always up to this number.
const NEAR_FEW: usize = 32;

/// Like [`crate::place::place`], for a class with rules.
pub(crate) fn place(
    cluster: &mut Cluster,
    ask: Ask,
    shape: &Shape,
    mut rules: Rules,
    vetoes: &[&dyn Veto],
    budget: &mut Budget,
    mut placed: impl FnMut(NodeId, TaskId),
) -> u32 {
    let policy = score::of(ask.policy);
    let class = ask.class;
    let entry = &cluster.classes.all[class as usize];
    let first = entry.uses == 1;
    let mut left = ask.count;
    let take =
        |cluster: &mut Cluster, node: u32, n: u32, placed: &mut dyn FnMut(NodeId, TaskId)| {
            cluster.take(
                node,
                ask.queue,
                entry_shape(cluster, class),
                ask.run,
                n,
                |task| {
                    placed(NodeId(node), task);
                },
            );
        };
    let states = cluster.states.live.len();
    let brief = first && left <= SCAN_TASKS_MAX;
    let below = if brief {
        states
    } else {
        states / NEAR_PART + NEAR_FEW
    };
    let near = rules.near(&cluster.side, below);
    if near.is_none() && brief && !rules.spreads() {
        while left > 0 && budget.left > 0 {
            budget.spend(states as u64);
            let Some(node) = scan(cluster, class, shape, ask, &rules, vetoes) else {
                break;
            };
            take(cluster, node, 1, &mut placed);
            rules.took(&cluster.side, node, 1);
            left -= 1;
        }
        return ask.count - left;
    }
    let joins = cluster.side.joins_end();
    let mut source = match near {
        Some(nodes) => {
            budget.spend(nodes.len() as u64);
            let rater = Rater::new(cluster, class, shape, policy);
            let rated = nodes.into_iter().filter_map(|node| {
                let state = cluster.states.of_node[node as usize];
                Some((rater.rate(state)?, Reverse(node)))
            });
            Source {
                again: rated.collect(),
                ..Source::default()
            }
        }
        None => {
            let entry = &mut cluster.classes.all[class as usize];
            let mut index = entry.take_index(ask.policy);
            let parked = entry.parked.iter_mut().find(|(p, _)| *p == ask.policy);
            if let Some((_, parked)) = parked {
                for entry in parked.catch_up(&cluster.side, &cluster.states, &rules) {
                    index.put_back(entry);
                }
            }
            let rater = Rater::new(cluster, class, shape, policy);
            budget.spend(index.catch_up(&cluster.states, |state| rater.rate(state)));
            Source {
                index: Some(index),
                ..Source::default()
            }
        }
    };
    let mut held = Held::default();
    let mut exhausted = false;
    while left > 0 && budget.left > 0 {
        let mut walked = false;
        let next = held.next(&rules, &cluster.side).or_else(|| {
            let (score, node, from_walk) = source.next(&cluster.states)?;
            walked = from_walk;
            Some((score, node))
        });
        let Some((score, node)) = next else {
            if held.lift(&mut rules, &cluster.side) {
                continue;
            }
            exhausted = true;
            break;
        };
        budget.spend(1);
        let state = cluster.states.of_node[node as usize];
        let profiles = &cluster.profiles.all;
        let fits = cluster.states.room(profiles, state, &shape.requests);
        let want = match policy.fill() {
            Fill::Deep => fits,
            Fill::Level | Fill::Single => fits.min(1),
        };
        if want == 0 {
            continue;
        }
        let n = match rules.room(&cluster.side, node, want.min(left)) {
            Room::Open(n) => n,
            Room::Never(_) => continue,
            Room::Later(i, domain) => {
                held.hold((i, domain), score, node);
                if walked {
                    source.seen(Seen::Later);
                }
                continue;
            }
        };
        if walked {
            source.seen(Seen::Open);
        }
        let n = allowed(cluster, vetoes, shape, node, class, n);
        if n == 0 {
            continue;
        }
        take(cluster, node, n, &mut placed);
        left -= n;
        let risen = rules.took(&cluster.side, node, n);
        for i in &risen {
            held.look(&rules, &cluster.side, *i);
        }
        if !risen.is_empty()
            && let Some(index) = &mut source.index
        {
            // What was parked while its domains had enough may be open now.
            let entry = &mut cluster.classes.all[class as usize];
            for (_, parked) in entry.parked.iter_mut().filter(|(p, _)| *p == ask.policy) {
                for entry in parked.all() {
                    index.put_back(entry);
                }
            }
        }
        let state = cluster.states.of_node[node as usize];
        if left > 0
            && let Some(score) = Rater::new(cluster, class, shape, policy).rate(state)
        {
            source.again.push((score, Reverse(node)));
        }
    }
    source.finish_walk();
    // A class met for the first time may never come again: its index is not kept.
    if let Some(mut index) = source.index
        && !first
    {
        let mut shut = Vec::new();
        for (entry, seen) in source.walked {
            let park = seen == Seen::Never || (seen == Seen::Later && exhausted);
            if !cluster.states.is_live(entry.state) {
                continue;
            } else if park {
                shut.push(entry);
            } else {
                index.put_back(entry);
            }
        }
        let now = cluster.side.clock;
        let entry = &mut cluster.classes.all[class as usize];
        entry.indexes.push((ask.policy, index));
        if !shut.is_empty() || entry.parked.iter().any(|(p, _)| *p == ask.policy) {
            entry
                .parked_of(ask.policy)
                .park(shut.into_iter(), now, joins);
        }
    }
    ask.count - left
}

fn entry_shape(cluster: &Cluster, class: u32) -> u32 {
    cluster.classes.all[class as usize].shape
}

/// The best node that may take a task, by looking at all states.
fn scan(
    cluster: &Cluster,
    class: u32,
    shape: &Shape,
    ask: Ask,
    rules: &Rules,
    vetoes: &[&dyn Veto],
) -> Option<u32> {
    let rater = Rater::new(cluster, class, shape, score::of(ask.policy));
    let mut best: Option<(i64, Reverse<u32>, u32)> = None;
    for state in &cluster.states.live {
        let Some(score) = rater.rate(*state) else {
            continue;
        };
        if best.is_some_and(|(s, id, _)| (score, Reverse(*state)) <= (s, id)) {
            continue;
        }
        let mut node = cluster.states.head[*state as usize];
        while node != NONE {
            if matches!(rules.room(&cluster.side, node, 1), Room::Open(_))
                && allowed(cluster, vetoes, shape, node, class, 1) > 0
            {
                best = Some((score, Reverse(*state), node));
                break;
            }
            node = cluster.states.next_node(node);
        }
    }
    best.map(|(_, _, node)| node)
}

/// What the rules said of the nodes of a state, the best of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    Never,
    Later,
    Open,
}

/// A state whose nodes are being offered.
#[derive(Debug)]
struct Walk {
    entry: Entry,
    /// The next node.
    cursor: u32,
    seen: Seen,
}

/// Nodes in the order of score.
#[derive(Debug, Default)]
struct Source {
    index: Option<Index>,
    walk: Option<Walk>,
    /// States that were offered.
    walked: Vec<(Entry, Seen)>,
    /// Nodes to offer beside those of the index.
    again: BinaryHeap<(i64, Reverse<u32>)>,
}

impl Source {
    /// Score and node, and whether it comes from the walk over a state.
    fn next(&mut self, states: &States) -> Option<(i64, u32, bool)> {
        if self.walk.as_ref().is_some_and(|walk| walk.cursor == NONE) {
            self.finish_walk();
        }
        let again = self.again.peek().map(|(score, _)| *score);
        if self.walk.is_none()
            && let Some(index) = &mut self.index
            && let Some(entry) = index.best(states)
            && again.is_none_or(|score| score < entry.score)
        {
            index.set_aside();
            self.walk = Some(Walk {
                entry,
                cursor: states.head[entry.state.id as usize],
                seen: Seen::Never,
            });
        }
        match &mut self.walk {
            Some(walk) if again.is_none_or(|score| score <= walk.entry.score) => {
                let node = walk.cursor;
                // What comes behind is not looked at yet, so it stays where it is meanwhile.
                walk.cursor = states.next_node(node);
                Some((walk.entry.score, node, true))
            }
            _ => {
                let (score, Reverse(node)) = self.again.pop()?;
                Some((score, node, false))
            }
        }
    }

    /// Notes what the rules said of the node offered last.
    fn seen(&mut self, seen: Seen) {
        if let Some(walk) = &mut self.walk {
            walk.seen = walk.seen.max(seen);
        }
    }

    /// A state that was not offered to its end may have more.
    fn finish_walk(&mut self) {
        if let Some(walk) = self.walk.take() {
            let seen = if walk.cursor == NONE {
                walk.seen
            } else {
                Seen::Open
            };
            self.walked.push((walk.entry, seen));
        }
    }
}
