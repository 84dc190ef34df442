//! A lane: one node's free amounts over time, as far as running tasks and reservations tell.

use super::Held;
use crate::classes::Shape;
use crate::cluster::Cluster;
use crate::cluster::states::NONE;
use crate::estimate::corrected;
use crate::filter::how_many;
use crate::spec::{NEVER, Time};
use std::collections::VecDeque;

/// Tasks of one shape that end at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Release {
    at: Time,
    shape: u32,
    count: u32,
}

/// Where a node's releases are listed, and of which of its conditions they were made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// State, its generation, newest task: differs after a task came or went.
    stamp: (u32, u32, u32),
    listed: bool,
    first: u32,
    /// Number of releases.
    pub count: u32,
}

/// The lists of releases of the nodes that were looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Lanes {
    /// Tasks end when they are expected to, not only when they have almost surely.
    pub expected: bool,
    known: Vec<Known>,
    /// Per node ascending. Lists that are no longer true stay until the end of the cycle.
    releases: Vec<Release>,
}

impl Lanes {
    /// Lists the node's releases unless that was done and still holds.
    pub fn of(&mut self, cluster: &Cluster, node: u32, now: Time) -> Known {
        let n = node as usize;
        if self.known.len() <= n {
            self.known.resize(n + 1, Known::default());
        }
        let state = cluster.states.of_node[n];
        let stamp = (
            state,
            cluster.states.generation[state as usize],
            cluster.nodes[n].first_task,
        );
        let known = self.known[n];
        if known.listed && known.stamp == stamp {
            return known;
        }
        self.known[n] = Known {
            stamp,
            ..self.list_again(cluster, node, now)
        };
        self.known[n]
    }

    /// The same for one node whose list is not kept.
    pub fn only(cluster: &Cluster, node: u32, now: Time) -> (Lanes, Known) {
        let mut lanes = Lanes::default();
        let known = lanes.list_again(cluster, node, now);
        (lanes, known)
    }

    fn list_again(&mut self, cluster: &Cluster, node: u32, now: Time) -> Known {
        let n = node as usize;
        let first = self.releases.len();
        let mut at = cluster.nodes[n].first_task;
        while at != NONE {
            let task = &cluster.tasks.slots[at as usize];
            at = task.next;
            let run = cluster.tasks.runs.get(task.run);
            let end = if task.leaving {
                // On its way out: any moment now.
                now.saturating_add(1)
            } else {
                let end = if self.expected { run.end } else { run.end_max };
                corrected(run.start, now, end, NEVER)
            };
            if end != NEVER {
                self.releases.push(Release {
                    at: end,
                    shape: task.shape,
                    count: 1,
                });
            }
        }
        let list = &mut self.releases[first..];
        list.sort_unstable();
        // Tasks alike that end together become one entry.
        let mut kept = 0;
        for i in 1..list.len() {
            if (list[i].at, list[i].shape) == (list[kept].at, list[kept].shape) {
                list[kept].count += 1;
            } else {
                kept += 1;
                list[kept] = list[i];
            }
        }
        if !list.is_empty() {
            self.releases.truncate(first + kept + 1);
        }
        Known {
            stamp: (0, 0, 0),
            listed: true,
            first: first as u32,
            count: (self.releases.len() - first) as u32,
        }
    }

    fn list(&self, known: Known) -> &[Release] {
        &self.releases[known.first as usize..][..known.count as usize]
    }

    /// When the last task with a known end ends.
    pub fn last_release(&self, known: Known) -> Option<Time> {
        self.list(known).last().map(|r| r.at)
    }

    /// What tasks without a known end hold of what the shape asks for: the largest share of the
    /// node's capacity over the resources, in parts of 2^20.
    pub fn stuck(&self, cluster: &Cluster, node: u32, known: Known, shape: &Shape) -> i128 {
        let state = cluster.states.of_node[node as usize];
        let mut walk = Walk::new(shape);
        walk.start(cluster.states.free_of(state), 0);
        for release in self.list(known) {
            let other = cluster.tasks.shapes.get(release.shape);
            walk.change(other, i64::from(release.count));
        }
        let profile = cluster.nodes[node as usize].profile as usize;
        let capacity = &cluster.profiles.all[profile].capacity;
        let shares = shape.requests.iter().zip(&walk.free).map(|((r, _), free)| {
            let all = i128::from(capacity[*r as usize].max(1));
            ((all - i128::from(*free)) << 20) / all
        });
        shares.max().unwrap_or(0)
    }

    /// How many tasks fit during all of the span.
    pub fn least(
        &self,
        cluster: &Cluster,
        (node, known): (u32, Known),
        (from, to): (Time, Time),
        held: &[Held],
        walk: &mut Walk<'_>,
    ) -> u32 {
        start(cluster, node, walk);
        let mut events = self.events(known, held).peekable();
        while let Some(event) = events.next_if(|e| e.at <= from) {
            event.apply(cluster, walk);
        }
        let mut least = walk.fit();
        while let Some(event) = events.next_if(|e| e.at < to) {
            let at = event.at;
            event.apply(cluster, walk);
            while let Some(event) = events.next_if(|e| e.at == at) {
                event.apply(cluster, walk);
            }
            least = least.min(walk.fit());
        }
        least
    }

    /// Appends how the number of tasks (at most `cap`) that fit for `run` changes with the moment
    /// of their start, from `now` on.
    #[allow(clippy::too_many_arguments)]
    pub fn windows(
        &self,
        cluster: &Cluster,
        (node, known): (u32, Known),
        (now, run): (Time, Time),
        held: &[Held],
        walk: &mut Walk<'_>,
        cap: u32,
        changes: &mut Vec<(Time, i64)>,
    ) {
        start(cluster, node, walk);
        if held.is_empty() {
            // Only releases: what fits at a moment fits ever after.
            let mut last = walk.fit().min(cap);
            if last > 0 {
                changes.push((now, i64::from(last)));
            }
            for release in self.list(known) {
                if last == cap {
                    break;
                }
                let other = cluster.tasks.shapes.get(release.shape);
                walk.change(other, i64::from(release.count));
                let fit = walk.fit().min(cap);
                if fit > last {
                    changes.push((release.at, i64::from(fit - last)));
                    last = fit;
                }
            }
            return;
        }
        // Spans between events, each from its moment to the next one's, and what fits in each.
        let mut spans: Vec<(Time, u32)> = Vec::new();
        let mut events = self.events(known, held).peekable();
        while let Some(event) = events.next_if(|e| e.at <= now) {
            event.apply(cluster, walk);
        }
        spans.push((now, walk.fit().min(cap)));
        while let Some(event) = events.next() {
            let at = event.at;
            event.apply(cluster, walk);
            while let Some(event) = events.next_if(|e| e.at == at) {
                event.apply(cluster, walk);
            }
            spans.push((at, walk.fit().min(cap)));
        }
        sliding_least(&spans, run.max(1), changes);
    }

    /// All changes of a node's free amounts, by time.
    fn events<'a>(&'a self, known: Known, held: &[Held]) -> impl Iterator<Item = Event> + use<'a> {
        let mut reserved: Vec<Event> = Vec::with_capacity(2 * held.len());
        for h in held {
            let count = i64::from(h.count);
            let event = |at, by| Event {
                at,
                shape: h.shape,
                by,
            };
            reserved.push(event(h.from, -count));
            if h.to != NEVER {
                reserved.push(event(h.to, count));
            }
        }
        reserved.sort_unstable_by_key(|e| e.at);
        let mut reserved = reserved.into_iter().peekable();
        let mut releases = self.list(known).iter().peekable();
        std::iter::from_fn(move || {
            let next = releases.peek().map_or(NEVER, |r| r.at);
            if let Some(event) = reserved.next_if(|e| e.at < next) {
                return Some(event);
            }
            let release = releases.next().map(|r| Event {
                at: r.at,
                shape: r.shape,
                by: i64::from(r.count),
            });
            release.or_else(|| reserved.next())
        })
    }
}

/// Sets a walk to what the node has free now.
fn start(cluster: &Cluster, node: u32, walk: &mut Walk<'_>) {
    let busy = walk.shape.ports.iter();
    let busy = busy
        .map(|p| cluster.ports.get(&(node, *p)).copied().unwrap_or(0))
        .sum();
    let state = cluster.states.of_node[node as usize];
    walk.start(cluster.states.free_of(state), busy);
}

/// The least value within a window of length `run` that starts at T, as changes over T. `spans` are
/// (start, value), ascending, the last without an end. Sliding minimum: each span enters and leaves once.
fn sliding_least(spans: &[(Time, u32)], run: Time, changes: &mut Vec<(Time, i64)>) {
    let mut queue: VecDeque<usize> = VecDeque::new();
    let (mut entered, mut leaves) = (0, 0);
    let mut at = spans[0].0;
    let mut last = 0;
    loop {
        while entered < spans.len() && spans[entered].0 < at.saturating_add(run) {
            while queue
                .back()
                .is_some_and(|b| spans[*b].1 >= spans[entered].1)
            {
                queue.pop_back();
            }
            queue.push_back(entered);
            entered += 1;
        }
        while leaves + 1 < spans.len() && spans[leaves + 1].0 <= at {
            leaves += 1;
        }
        while queue.front().is_some_and(|f| *f < leaves) {
            queue.pop_front();
        }
        let least = queue.front().map_or(0, |f| spans[*f].1);
        if least != last {
            changes.push((at, i64::from(least) - i64::from(last)));
            last = least;
        }
        let leaving = spans.get(leaves + 1).map(|s| s.0);
        // The first start whose window reaches into the next span.
        let entering = spans.get(entered).map(|s| s.0.saturating_sub(run) + 1);
        at = match (leaving, entering) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) => a,
            // A span that enters later leaves later still.
            (None, _) => return,
        };
    }
}

#[derive(Clone, Copy, Debug)]
struct Event {
    at: Time,
    shape: u32,
    /// Tasks' worth of the shape that become free; below zero: are taken.
    by: i64,
}

impl Event {
    fn apply(&self, cluster: &Cluster, walk: &mut Walk<'_>) {
        walk.change(cluster.tasks.shapes.get(self.shape), self.by);
    }
}

/// Free amounts of what one shape asks for, at one moment of one node. Saturates: it advises, and
/// placement is exact.
pub(super) struct Walk<'a> {
    shape: &'a Shape,
    free: Vec<i64>,
    /// The shape's requests, with positions in `free` for resource numbers.
    requests: Vec<(u32, i64)>,
    /// Tasks that have one of its fixed ports.
    busy: i64,
}

impl<'a> Walk<'a> {
    pub fn new(shape: &'a Shape) -> Self {
        let requests = shape.requests.iter().enumerate();
        Walk {
            shape,
            free: vec![0; shape.requests.len()],
            requests: requests
                .map(|(i, (_, amount))| (i as u32, *amount))
                .collect(),
            busy: 0,
        }
    }

    /// Begins with these free amounts (by resource number) and so many holders of its ports.
    pub fn start(&mut self, free: &[i64], busy: u32) {
        for (mine, (r, _)) in self.free.iter_mut().zip(&self.shape.requests) {
            *mine = free[*r as usize];
        }
        self.busy = i64::from(busy);
    }

    /// So many tasks of a shape give back (below zero: take) what they hold.
    pub fn change(&mut self, other: &Shape, tasks: i64) {
        for (mine, (r, _)) in self.free.iter_mut().zip(&self.shape.requests) {
            if let Some((_, amount)) = other.requests.iter().find(|(o, _)| o == r) {
                *mine = mine.saturating_add(amount.saturating_mul(tasks));
            }
        }
        if !self.shape.ports.is_empty() {
            let shared = other.ports.iter().filter(|p| self.shape.ports.contains(p));
            self.busy -= tasks * shared.count() as i64;
        }
    }

    /// How many tasks fit.
    pub fn fit(&self) -> u32 {
        let fit = how_many(&self.free, &self.requests);
        match self.shape.ports.is_empty() {
            true => fit,
            false if self.busy > 0 => 0,
            false => fit.min(1),
        }
    }
}
