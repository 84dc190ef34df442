//! The tree of those that wait: queues with demands and the queues above them, ordered at every
//! level by [`Key`].
//!
//! How keys come about:
//! - *A queue without queues below it:* the largest share of any resource, of what it holds now
//!   plus its average past use ([`super::past`]).
//! - *A queue that has queues below it:* its own work counts as one more child of weight 1. Let f
//!   be the least share per weight among the children that may still place something. Each child's
//!   use is scaled down to f times its weight where it is above; the sum of these, over the
//!   resources that somebody can still get, has the queue's share as its largest part. To this
//!   the published rule adds: of the resource that its next task asks for most, the queue counts
//!   everything it holds. Otherwise a newcomer below a queue that already has its part would draw
//!   on the sisters of that queue until its own sisters' tasks end.
//! - *Owners inside a queue* ([`crate::Order::Fair`]): like queues without queues below, of equal weight;
//!   they order the queue's work and do not change the queue's own key.
//!
//! Below its guarantee is who holds less than it of the resource that its next task asks for most,
//! or has somebody below who is.

use std::collections::BTreeSet;

use super::share::{Key, MOST, level, share, share_at};
use crate::cluster::Cluster;
use crate::cluster::states::NONE;
use crate::spec::Time;

/// Whose use a node of the tree counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    /// A queue with queues below it, or the top of the tree.
    Below,
    /// A queue without.
    Queue,
    /// The own work of a queue that has queues below it.
    Own,
    /// One owner in a queue.
    Owner(u64),
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// [`NONE`] at the top.
    pub queue: u32,
    pub parent: u32,
    pub source: Source,
    pub weight: u32,
    pub children: Vec<u32>,
    /// Children that may still place something, in order.
    pub open: BTreeSet<(Key, u32)>,
    /// Sum of their weights.
    pub open_weight: u64,
    /// Queues directly below that have no demands.
    idle: Vec<u32>,
    /// What these hold, and the queue's own tasks if no own work waits, with weights.
    still: Vec<(Parts, u32)>,
    /// Units, in order, and how many of them are done.
    pub units: Vec<u32>,
    pub at: usize,
    pub key: Key,
    /// The unit that is next.
    pub head: u32,
    /// Nobody below has anything left to place.
    pub closed: bool,
    /// Somebody looks at the key: it, or a node above, has sisters.
    keyed: bool,
    /// What the parent adds up.
    parts: Parts,
}

/// Shares per resource, and the largest.
#[derive(Clone, Debug, Default)]
struct Parts {
    of: Vec<u64>,
    most: u64,
}

impl Parts {
    fn new(of: Vec<u64>) -> Self {
        let most = of.iter().copied().max().unwrap_or(0);
        Parts { of, most }
    }
}

/// What the tree needs to know of a unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// What a task asks: a number in [`Tree::asks`].
    pub ask: u32,
    /// Creation time and id.
    pub age: (Time, u64),
    /// Tasks that wait.
    pub count: u64,
}

/// What a task of some class asks.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub requests: Vec<(u32, i64)>,
    /// The resource of which it asks the largest part, and how much.
    pub dominant: Option<(u32, i64)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Tree {
    /// Parents come before their children; the first is the top.
    pub nodes: Vec<Node>,
    /// By unit.
    pub heads: Vec<Head>,
    pub asks: Vec<Ask>,
    /// Per resource: units left that ask for it, and the least that one asks.
    asked: Vec<(u32, i64)>,
    /// Per resource: somebody can still get some.
    live: Vec<bool>,
    now: Time,
}

const FIRST: Key = Key {
    late: true,
    level: 0,
    age: (0, 0),
};

impl Tree {
    pub fn new(cluster: &Cluster, heads: Vec<Head>, asks: Vec<Ask>, now: Time) -> Self {
        let mut tree = Tree {
            nodes: Vec::new(),
            heads,
            asks,
            asked: vec![(0, i64::MAX); cluster.resources.len()],
            live: vec![false; cluster.resources.len()],
            now,
        };
        tree.add(NONE, NONE, Source::Below, 1);
        tree
    }

    pub fn add(&mut self, queue: u32, parent: u32, source: Source, weight: u32) -> u32 {
        let node = self.nodes.len() as u32;
        self.nodes.push(Node {
            queue,
            parent,
            source,
            weight,
            children: Vec::new(),
            open: BTreeSet::new(),
            open_weight: 0,
            idle: Vec::new(),
            still: Vec::new(),
            units: Vec::new(),
            at: 0,
            key: FIRST,
            head: NONE,
            closed: false,
            keyed: false,
            parts: Parts::default(),
        });
        if parent != NONE {
            self.nodes[parent as usize].children.push(node);
        }
        node
    }

    /// Once all nodes and units are in.
    pub fn start(&mut self, cluster: &Cluster) {
        for n in 0..self.nodes.len() {
            for at in 0..self.nodes[n].units.len() {
                let head = self.heads[self.nodes[n].units[at] as usize];
                for (r, amount) in &self.asks[head.ask as usize].requests {
                    let (units, least) = &mut self.asked[*r as usize];
                    *units += 1;
                    *least = (*least).min(*amount);
                }
            }
            let parent = self.nodes[n].parent;
            if parent != NONE {
                let above = &self.nodes[parent as usize];
                self.nodes[n].keyed = above.keyed || above.children.len() > 1;
            }
            let node = &self.nodes[n];
            if node.keyed && matches!(node.source, Source::Below) {
                let busy: BTreeSet<u32> = node
                    .children
                    .iter()
                    .map(|c| self.nodes[*c as usize].queue)
                    .collect();
                let all = cluster.queues[node.queue as usize].children.iter();
                self.nodes[n].idle = all.filter(|q| !busy.contains(q)).copied().collect();
            }
        }
        self.recount(cluster);
    }

    /// Finds out anew which resources somebody can still get: some unit that is left asks for it,
    /// and the cluster as a whole has enough for the smallest. True if that changed.
    fn learn_live(&mut self, cluster: &Cluster) -> bool {
        let mut changed = false;
        for (r, live) in self.live.iter_mut().enumerate() {
            let (units, least) = self.asked[r];
            let free = cluster.total[r] - cluster.charged[r];
            let now = units > 0 && free >= i128::from(least);
            changed |= now != *live;
            *live = now;
        }
        changed
    }

    /// Brings every key up to date.
    pub fn recount(&mut self, cluster: &Cluster) {
        self.learn_live(cluster);
        for n in 0..self.nodes.len() {
            self.nodes[n].open.clear();
            self.nodes[n].open_weight = 0;
            let node = &self.nodes[n];
            if node.keyed && matches!(node.source, Source::Below) {
                self.nodes[n].still = self.still(cluster, node);
            }
        }
        for n in (0..self.nodes.len() as u32).rev() {
            self.renew(cluster, n);
            let node = &self.nodes[n as usize];
            let (parent, weight) = (node.parent, u64::from(node.weight));
            if parent != NONE && !node.closed {
                let entry = (node.key, n);
                let above = &mut self.nodes[parent as usize];
                above.open.insert(entry);
                above.open_weight += weight;
            }
        }
    }

    /// Brings the keys from a leaf upwards up to date, after only its use changed or it went on.
    pub fn lift(&mut self, cluster: &Cluster, leaf: u32) {
        if self.learn_live(cluster) {
            return self.recount(cluster);
        }
        let mut n = leaf;
        while n != NONE {
            let node = &self.nodes[n as usize];
            let (old, parent, weight) = (node.key, node.parent, u64::from(node.weight));
            self.renew(cluster, n);
            let node = &self.nodes[n as usize];
            let (key, closed) = (node.key, node.closed);
            if parent == NONE || !(node.keyed || closed) {
                return;
            }
            let above = &mut self.nodes[parent as usize];
            above.open.remove(&(old, n));
            if closed {
                above.open_weight -= weight;
            } else {
                above.open.insert((key, n));
            }
            n = parent;
        }
    }

    /// A leaf goes on to its next unit.
    pub fn go_on(&mut self, leaf: u32) {
        let node = &mut self.nodes[leaf as usize];
        let head = self.heads[node.units[node.at] as usize];
        node.at += 1;
        for (r, _) in &self.asks[head.ask as usize].requests {
            self.asked[*r as usize].0 -= 1;
        }
    }

    /// The leaf whose turn it is.
    pub fn first(&self) -> Option<u32> {
        let mut n = 0;
        while let Some((_, child)) = self.nodes[n as usize].open.first() {
            n = *child;
        }
        (n != 0).then_some(n)
    }

    /// What a node's own key is now; its children are up to date.
    fn renew(&mut self, cluster: &Cluster, n: u32) {
        let node = &self.nodes[n as usize];
        let first = node.open.first();
        let (closed, head) = if node.children.is_empty() {
            let unit = node.units.get(node.at);
            (unit.is_none(), unit.copied().unwrap_or(NONE))
        } else {
            let child = first.map(|(_, child)| &self.nodes[*child as usize]);
            (child.is_none(), child.map_or(NONE, |c| c.head))
        };
        let mut key = FIRST;
        let mut parts = Parts::default();
        if node.keyed {
            let dominant = self.dominant(head);
            if let Some(head) = self.heads.get(head as usize) {
                key.age = head.age;
            }
            let has_rules = matches!(node.source, Source::Below | Source::Queue);
            let below = has_rules
                && dominant.is_some_and(|(d, _)| {
                    let queue = &cluster.queues[node.queue as usize];
                    i128::from(queue.guarantee[d as usize]) > queue.used[d as usize]
                });
            key.late = !below && first.is_none_or(|(key, _)| key.late);
            parts = match node.source {
                Source::Below => self.scaled(cluster, node, dominant.map(|(d, _)| d)),
                source => self.plain(cluster, node.queue, source),
            };
            key.level = level(parts.most, node.weight);
        }
        let node = &mut self.nodes[n as usize];
        (node.key, node.parts, node.closed, node.head) = (key, parts, closed, head);
    }

    /// What the unit asks for most.
    pub fn dominant(&self, unit: u32) -> Option<(u32, i64)> {
        let head = self.heads.get(unit as usize)?;
        self.asks[head.ask as usize].dominant
    }

    /// What counts as used, per resource: what is held, and the average of the past.
    pub fn held(&self, cluster: &Cluster, q: u32, source: Source) -> Vec<i128> {
        let queue = &cluster.queues[q as usize];
        let (held, past) = match source {
            Source::Owner(owner) => match cluster.owners.get(&(q, owner)) {
                Some(owned) => (&owned.held, &owned.past),
                None => return vec![0; self.live.len()],
            },
            Source::Own => (&queue.own, &queue.past),
            Source::Queue | Source::Below => (&queue.used, &queue.past),
        };
        let past = past.view(queue.half_life, self.now);
        let each = held.iter().enumerate().take(self.live.len());
        each.map(|(r, held)| held + past.amount(r, *held)).collect()
    }

    /// The same as shares.
    fn plain(&self, cluster: &Cluster, q: u32, source: Source) -> Parts {
        let held = self.held(cluster, q, source);
        let each = held.iter().zip(&cluster.total);
        Parts::new(each.map(|(held, total)| share(*held, *total)).collect())
    }

    /// What is held below a node by those who are not in the tree.
    fn still(&self, cluster: &Cluster, node: &Node) -> Vec<(Parts, u32)> {
        let mut children = node.children.iter().map(|c| self.nodes[*c as usize].source);
        let own = children.any(|source| matches!(source, Source::Own));
        let own = (!own).then(|| (self.plain(cluster, node.queue, Source::Own), 1));
        let idle = node.idle.iter().map(|queue| {
            let spec = cluster.queues[*queue as usize].spec.as_ref();
            let weight = spec.map_or(1, |s| s.weight.max(1));
            (self.plain(cluster, *queue, Source::Queue), weight)
        });
        own.into_iter().chain(idle).collect()
    }

    /// What those below hold, scaled down to the one that has least.
    fn scaled(&self, cluster: &Cluster, node: &Node, dominant: Option<u32>) -> Parts {
        let children = node.children.iter().map(|c| &self.nodes[*c as usize]);
        let open = children.clone().filter(|c| !c.closed);
        let least = open.map(|c| c.key.level).min();
        let mut sum = vec![0u128; self.live.len()];
        let mut add = |parts: &Parts, weight: u32| {
            // Children are at or above the least, unless they have nothing to place.
            let above = least.filter(|least| *least < level(parts.most, weight));
            let to = above.map_or(parts.most, |least| share_at(least, weight));
            if to > 0 {
                for (sum, part) in sum.iter_mut().zip(&parts.of) {
                    *sum += u128::from(*part) * u128::from(to) / u128::from(parts.most);
                }
            }
        };
        for child in children {
            add(&child.parts, child.weight);
        }
        for (parts, weight) in &node.still {
            add(parts, *weight);
        }
        let part = |(part, live): (&u128, &bool)| {
            let part = u64::try_from(*part).unwrap_or(MOST).min(MOST);
            if *live { part } else { 0 }
        };
        let mut parts: Vec<u64> = sum.iter().zip(&self.live).map(part).collect();
        if let Some(d) = dominant {
            let d = d as usize;
            let used = cluster.queues[node.queue as usize].used[d];
            parts[d] = parts[d].max(share(used, cluster.total[d]));
        }
        Parts::new(parts)
    }
}
