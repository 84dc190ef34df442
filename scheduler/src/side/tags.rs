//! Tags: what rules between tasks see of a task. Equal for equal tasks, so what matches is worked
//! out once per tag, and a task remembers what it counts for by its tag.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::posts::Posts;
use crate::intern::FxMap;

/// What makes tags equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Face {
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
    /// Anti-affinity terms that the task has, sorted.
    pub repels: Box<[u32]>,
}

#[derive(Clone, Debug)]
pub(crate) struct Tag {
    pub face: Arc<Face>,
    /// Shapes that have it; not in use at 0.
    pub users: u32,
    /// Whether its tasks are counted: some term mentions a label of theirs, or they repel others.
    pub watched: bool,
    /// Tasks per node, of a watched tag.
    pub nodes: FxMap<u32, u32>,
    /// Terms whose selector matches it, sorted.
    pub matches: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tags {
    pub all: Vec<Tag>,
    pub ids: FxMap<Arc<Face>, u32>,
    pub unused: Vec<u32>,
    /// Where terms look for the tags that they may match.
    pub posts: Posts,
}
