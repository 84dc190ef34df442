//! Side indexes: rules between tasks (affinity, anti-affinity, spread), which a node state cannot show.
//!
//! A *term* is (namespace, selector, topology key), kept once however many classes ask about it; it
//! counts per domain the tasks that it matches, and those that repel what it matches. A *tag* is
//! what terms see of a task. A tag knows the terms that match it, so a task that comes or goes costs
//! one step per such term, and nothing where no term mentions a label of its own. Selectors and
//! label sets find each other by label pairs, so ten thousand Jobs that each repel only themselves
//! never look at one another.
//!
//! [`rules`] answers for one class what a node may take; [`place`] finds nodes under such rules.
//! Domains follow the labels of nodes: when they change, the tasks of that node are counted anew.
//! Tasks on a node that is not there, or lacks the label, are in no domain.

pub(crate) mod check;
mod held;
pub(crate) mod parked;
pub(crate) mod place;
mod posts;
pub(crate) mod rules;
mod tags;
mod terms;
mod topology;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::tags::{Face, Tag, Tags};
use self::terms::{Counter, Key, Term, Terms};
use self::topology::Topologies;
use crate::cluster::states::NONE;
use crate::cluster::{Cluster, Node, Tasks};
use crate::intern::FxMap;
use crate::spec::{ClassSpec, TaskTerm};

/// Joins kept for classes to catch up with what they have parked.
const JOINS_MAX: usize = 1 << 16;

/// The terms that a class itself has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    pub affinity: Box<[u32]>,
    pub repels: Box<[u32]>,
    /// With the most skew, and whether it is a must.
    pub spread: Box<[(u32, u32, bool)]>,
}

/// All side indexes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Side {
    pub topologies: Topologies,
    terms: Terms,
    tags: Tags,
    /// Steps with every change of a counter, so that one can tell what changed since.
    pub clock: u64,
    /// When a node changed its domain, or a term was forgotten.
    pub moved: u64,
    /// Nodes that came to a state which others were in already, oldest first.
    joins: Vec<u32>,
    joins_start: u64,
}

impl Side {
    pub fn term(&self, id: u32) -> &Term {
        &self.terms.all[id as usize]
    }

    pub fn tag(&self, id: u32) -> &Tag {
        &self.tags.all[id as usize]
    }

    /// Number of a term, with one user more.
    fn keep_term(&mut self, nodes: &[Node], tasks: &Tasks, ns: &str, term: &TaskTerm) -> u32 {
        let key = Key::new(ns, term);
        if let Some(id) = self.terms.ids.get(&key) {
            self.terms.all[*id as usize].users += 1;
            return *id;
        }
        let key = Arc::new(key);
        let term = Term {
            key: key.clone(),
            topology: self.topologies.keep(&key.topology, nodes),
            users: 1,
            matching: Counter::default(),
            holders: Counter::default(),
        };
        let id = match self.terms.unused.pop() {
            Some(id) => {
                self.terms.all[id as usize] = term;
                id
            }
            None => {
                self.terms.all.push(term);
                self.terms.all.len() as u32 - 1
            }
        };
        self.terms.ids.insert(key.clone(), id);
        self.terms.posts.post_selector(&key, id);
        self.mention(&key, tasks);
        for tag in self.tags.posts.for_selector(&key) {
            let tag = &mut self.tags.all[tag as usize];
            if !matches(&key, &tag.face) {
                continue;
            }
            if let Err(at) = tag.matches.binary_search(&id) {
                tag.matches.insert(at, id);
            }
            let term = &mut self.terms.all[id as usize];
            let topology = self.topologies.get(term.topology);
            for (node, count) in &tag.nodes {
                let domain = topology.of(*node);
                if domain != NONE {
                    self.clock += 1;
                    term.matching.add(domain, *count, self.clock);
                }
            }
        }
        id
    }

    /// Notes by which labels a term finds tasks. The first to mention a label makes all tags that
    /// have it be counted from now on, which takes one look at all tasks.
    fn mention(&mut self, key: &Key, tasks: &Tasks) {
        let (mentions, name) = match key.anchor() {
            Some(anchor) => (&mut self.terms.mentioned, &anchor.key),
            None => (&mut self.terms.loose, &key.namespace),
        };
        let count = mentions.entry(name.clone()).or_insert(0);
        *count += 1;
        if *count > 1 {
            return;
        }
        let anchored = key.anchor().is_some();
        let mut news: FxMap<u32, FxMap<u32, u32>> = FxMap::default();
        for (id, tag) in self.tags.all.iter_mut().enumerate() {
            let concerned = if anchored {
                tag.face.labels.contains_key(name)
            } else {
                tag.face.namespace == *name
            };
            if tag.users > 0 && !tag.watched && concerned {
                tag.watched = true;
                news.insert(id as u32, FxMap::default());
            }
        }
        if news.is_empty() {
            return;
        }
        for task in tasks.slots.iter().filter(|t| t.node != NONE) {
            if let Some(nodes) = news.get_mut(&tasks.shapes.get(task.shape).tag) {
                *nodes.entry(task.node).or_insert(0) += 1;
            }
        }
        for (id, nodes) in news {
            self.tags.all[id as usize].nodes = nodes;
        }
    }

    fn drop_term(&mut self, id: u32) {
        let term = &mut self.terms.all[id as usize];
        term.users -= 1;
        if term.users > 0 {
            return;
        }
        let key = term.key.clone();
        (term.matching, term.holders) = (Counter::default(), Counter::default());
        // Whom it kept away can no longer see on the term itself that it does not any more.
        self.clock += 1;
        self.moved = self.clock;
        self.topologies.drop_one(term.topology);
        self.terms.ids.remove(&key);
        self.terms.unused.push(id);
        self.terms.posts.take_selector(&key, id);
        let (mentions, name) = match key.anchor() {
            Some(anchor) => (&mut self.terms.mentioned, &anchor.key),
            None => (&mut self.terms.loose, &key.namespace),
        };
        if let Some(count) = mentions.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                mentions.remove(name);
            }
        }
        for tag in self.tags.posts.for_selector(&key) {
            let matches = &mut self.tags.all[tag as usize].matches;
            if let Ok(at) = matches.binary_search(&id) {
                matches.remove(at);
            }
        }
    }

    /// Number of a tag. In use only when [`Side::keep_tag`] is called.
    fn intern_tag(&mut self, face: Face) -> u32 {
        if let Some(id) = self.tags.ids.get(&face) {
            return *id;
        }
        let mut matching = Vec::new();
        for term in self.terms.posts.for_labels(&face.namespace, &face.labels) {
            if matches(&self.terms.all[term as usize].key, &face) {
                matching.push(term);
            }
        }
        let mentioned = |key: &String| self.terms.mentioned.contains_key(key);
        let watched = !face.repels.is_empty()
            || self.terms.loose.contains_key(&face.namespace)
            || face.labels.keys().any(mentioned);
        for term in &face.repels {
            self.terms.all[*term as usize].users += 1;
        }
        let face = Arc::new(face);
        let tag = Tag {
            face: face.clone(),
            users: 0,
            watched,
            nodes: FxMap::default(),
            matches: matching,
        };
        let id = match self.tags.unused.pop() {
            Some(id) => {
                self.tags.all[id as usize] = tag;
                id
            }
            None => {
                self.tags.all.push(tag);
                self.tags.all.len() as u32 - 1
            }
        };
        self.tags
            .posts
            .post_labels(&face.namespace, &face.labels, id);
        self.tags.ids.insert(face, id);
        id
    }

    pub fn keep_tag(&mut self, id: u32) {
        self.tags.all[id as usize].users += 1;
    }

    pub fn drop_tag(&mut self, id: u32) {
        let tag = &mut self.tags.all[id as usize];
        tag.users -= 1;
        if tag.users > 0 {
            return;
        }
        tag.nodes = FxMap::default();
        let face = tag.face.clone();
        self.tags.ids.remove(&face);
        self.tags.unused.push(id);
        self.tags
            .posts
            .take_labels(&face.namespace, &face.labels, id);
        for term in &face.repels {
            self.drop_term(*term);
        }
    }

    /// Tasks come to a node.
    #[inline]
    pub fn arrive(&mut self, tag: u32, node: u32, count: u32) {
        let t = &mut self.tags.all[tag as usize];
        if t.watched {
            *t.nodes.entry(node).or_insert(0) += count;
            self.count(tag, node, count, true);
        }
    }

    /// A task goes from a node.
    #[inline]
    pub fn depart(&mut self, tag: u32, node: u32) {
        let t = &mut self.tags.all[tag as usize];
        if !t.watched {
            return;
        }
        if let Some(count) = t.nodes.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                t.nodes.remove(&node);
            }
        }
        self.count(tag, node, 1, false);
    }

    /// Counts tasks of a tag in or out in the node's domains.
    fn count(&mut self, tag: u32, node: u32, count: u32, coming: bool) {
        self.clock += 1;
        let tag = &self.tags.all[tag as usize];
        let matches = tag.matches.iter().map(|t| (t, false));
        let repels = tag.face.repels.iter().map(|t| (t, true));
        for (term, repels) in matches.chain(repels) {
            let term = &mut self.terms.all[*term as usize];
            let domain = self.topologies.get(term.topology).of(node);
            if domain == NONE {
                continue;
            }
            let counter = if repels {
                &mut term.holders
            } else {
                &mut term.matching
            };
            if coming {
                counter.add(domain, count, self.clock);
            } else {
                counter.sub(domain, count, self.clock);
            }
        }
    }

    /// A node came to a state that others are in.
    pub fn joined(&mut self, node: u32) {
        if self.terms.ids.is_empty() {
            return;
        }
        if self.joins.len() >= JOINS_MAX {
            self.joins_start += self.joins.len() as u64;
            self.joins.clear();
        }
        self.joins.push(node);
    }

    pub fn joins_end(&self) -> u64 {
        self.joins_start + self.joins.len() as u64
    }

    /// Joins since a position, or `None` when that is too long ago.
    pub fn joins_since(&self, position: u64) -> Option<&[u32]> {
        let skip = position.checked_sub(self.joins_start)?;
        self.joins.get(usize::try_from(skip).ok()?..)
    }
}

fn matches(key: &Key, face: &Face) -> bool {
    key.namespace == face.namespace && key.selector.iter().all(|e| e.holds(&face.labels))
}

impl Cluster {
    /// The terms of a class, each with one user more.
    pub(crate) fn own_terms(&mut self, spec: &ClassSpec) -> Own {
        let (nodes, tasks, side) = (&self.nodes, &self.tasks, &mut self.side);
        let mut keep = |term: &TaskTerm| side.keep_term(nodes, tasks, &spec.namespace, term);
        let mut unique = |terms: &[TaskTerm]| {
            let mut ids: Vec<u32> = terms.iter().map(&mut keep).collect();
            ids.sort_unstable();
            ids.into_boxed_slice()
        };
        let (affinity, repels) = (unique(&spec.affinity), unique(&spec.anti_affinity));
        let spread = spec.spread.iter();
        Own {
            affinity,
            repels,
            spread: spread
                .map(|s| (keep(&s.term), s.max_skew.max(1), s.required))
                .collect(),
        }
    }

    pub(crate) fn drop_own_terms(&mut self, own: &Own) {
        let spread = own.spread.iter().map(|(term, ..)| term);
        for term in own.affinity.iter().chain(&own.repels).chain(spread) {
            self.side.drop_term(*term);
        }
    }

    /// Number of the tag that tasks of this spec have.
    pub(crate) fn tag(&mut self, spec: &ClassSpec) -> u32 {
        let (nodes, tasks, side) = (&self.nodes, &self.tasks, &mut self.side);
        let ns = &spec.namespace;
        let terms = spec.anti_affinity.iter();
        let kept: Vec<u32> = terms.map(|t| side.keep_term(nodes, tasks, ns, t)).collect();
        let mut repels = kept.clone();
        repels.sort_unstable();
        repels.dedup();
        let tag = side.intern_tag(Face {
            namespace: ns.clone(),
            labels: spec.labels.clone(),
            repels: repels.into(),
        });
        for term in kept {
            side.drop_term(term);
        }
        tag
    }

    /// Brings a node's domains in line with its labels and its being there, with all that its tasks count for.
    pub(crate) fn settle(&mut self, id: u32) {
        let node = &self.nodes[id as usize];
        if !self.side.topologies.used().any(|t| t.is_stale(id, node)) {
            return;
        }
        let mut tags: BTreeMap<u32, u32> = BTreeMap::new();
        let mut at = node.first_task;
        while at != NONE {
            let task = &self.tasks.slots[at as usize];
            *tags
                .entry(self.tasks.shapes.get(task.shape).tag)
                .or_insert(0) += 1;
            at = task.next;
        }
        tags.retain(|tag, _| self.side.tag(*tag).watched);
        for (tag, count) in &tags {
            self.side.count(*tag, id, *count, false);
        }
        for topology in self.side.topologies.used_mut() {
            topology.move_node(id, node);
        }
        for (tag, count) in &tags {
            self.side.count(*tag, id, *count, true);
        }
        self.side.clock += 1;
        self.side.moved = self.side.clock;
    }
}
