//! A lane: one node's free amounts over time, as far as running tasks and reservations tell.

use super::Held;
use crate::classes::Shape;
use crate::cluster::Cluster;
use crate::cluster::states::NONE;
use crate::estimate::corrected;
use crate::filter::how_many;
use crate::spec::{NEVER, Time};
use std::borrow::Cow;
use std::collections::VecDeque;

/// Tasks of one shape that end at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Release {
    pub at: Time,
    shape: u32,
    count: u32,
}

/// When the tasks of one node end.
#[derive(Clone, Debug, Default)]
struct Lane {
    /// The node's version of which it was listed; None before.
    version: Option<u64>,
    /// Ascending.
    releases: Vec<Release>,
}

impl Lane {
    /// Whether it says what would be listed now. Ends only move when they are passed.
    fn holds(&self, version: u64, now: Time) -> bool {
        self.version == Some(version) && self.releases.first().is_none_or(|r| r.at > now)
    }

    fn list(&mut self, cluster: &Cluster, node: u32, now: Time, expected: bool) {
        let list = &mut self.releases;
        list.clear();
        let node = &cluster.nodes[node as usize];
        self.version = Some(node.version);
        let mut at = node.first_task;
        while at != NONE {
            let task = &cluster.tasks.slots[at as usize];
            at = task.next;
            let run = cluster.tasks.runs.get(task.run);
            let end = if task.leaving {
                // On its way out: any moment now.
                now.saturating_add(1)
            } else {
                let end = if expected { run.end } else { run.end_max };
                corrected(run.start, now, end, NEVER)
            };
            if end != NEVER {
                list.push(Release {
                    at: end,
                    shape: task.shape,
                    count: 1,
                });
            }
        }
        list.sort_unstable();
        // Tasks alike that end together become one entry.
        list.dedup_by(|next, kept| {
            let alike = (next.at, next.shape) == (kept.at, kept.shape);
            kept.count += if alike { next.count } else { 0 };
            alike
        });
    }
}

/// When running tasks give their nodes back, of the nodes that were looked at. Kept from cycle to
/// cycle by the cluster; a lane is listed again when its node's tasks changed or an end was passed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lanes {
    /// Tasks end when they are expected to, not only when they have almost surely.
    pub expected: bool,
    now: Time,
    all: Vec<Lane>,
}

impl Lanes {
    /// It is `now`. What was listed at a later time does not count.
    pub fn advance(&mut self, now: Time) {
        if now < self.now {
            self.all.clear();
        }
        self.now = now;
    }

    /// Lists the node's releases unless that was done and still holds.
    pub(super) fn look(&mut self, cluster: &Cluster, node: u32) {
        let n = node as usize;
        if self.all.len() <= n {
            self.all.resize_with(n + 1, Lane::default);
        }
        let lane = &mut self.all[n];
        if !lane.holds(cluster.nodes[n].version, self.now) {
            lane.list(cluster, node, self.now, self.expected);
        }
    }

    /// The releases of a node that was looked at, ascending.
    pub(super) fn of(&self, node: u32) -> &[Release] {
        let lane = self.all.get(node as usize);
        lane.map_or(&[], |lane| &lane.releases)
    }

    /// The releases as they are now, also of a node that has changed since it was looked at.
    pub(super) fn fresh(&self, cluster: &Cluster, node: u32) -> Cow<'_, [Release]> {
        let version = cluster.nodes[node as usize].version;
        let lane = self.all.get(node as usize);
        if let Some(lane) = lane.filter(|lane| lane.holds(version, self.now)) {
            return Cow::Borrowed(&lane.releases);
        }
        let mut lane = Lane::default();
        lane.list(cluster, node, self.now, self.expected);
        Cow::Owned(lane.releases)
    }
}

/// What tasks without a known end hold of what the shape asks for: the largest share of the
/// node's capacity over the resources, in parts of 2^20.
pub(super) fn stuck(cluster: &Cluster, node: u32, releases: &[Release], shape: &Shape) -> i128 {
    let state = cluster.states.of_node[node as usize];
    let mut walk = Walk::new(shape);
    walk.start(cluster.states.free_of(state), 0);
    for release in releases {
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
pub(super) fn least(
    cluster: &Cluster,
    (node, releases): (u32, &[Release]),
    (from, to): (Time, Time),
    held: &[Held],
    walk: &mut Walk<'_>,
) -> u32 {
    start(cluster, node, walk);
    let mut events = events(releases, held).peekable();
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
pub(super) fn windows(
    cluster: &Cluster,
    (node, releases): (u32, &[Release]),
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
        for release in releases {
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
    let mut events = events(releases, held).peekable();
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
fn events<'a>(releases: &'a [Release], held: &[Held]) -> impl Iterator<Item = Event> + use<'a> {
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
    let mut releases = releases.iter().peekable();
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
