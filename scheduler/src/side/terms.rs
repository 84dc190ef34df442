//! Terms: what rules between tasks ask about, each once, with how many tasks it meets per domain.

use std::sync::Arc;

use super::posts::Posts;
use crate::intern::FxMap;
use crate::spec::{Expression, Operator, TaskTerm};

/// How many per domain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counter {
    /// Domains that have any.
    pub per: FxMap<u32, u32>,
    /// Over all domains.
    pub total: u64,
    /// When it changed last, on the clock of [`super::Side`].
    pub changed: u64,
    /// When a domain lost its last one.
    pub emptied: u64,
}

impl Counter {
    #[inline]
    pub fn of(&self, domain: u32) -> u32 {
        self.per.get(&domain).copied().unwrap_or(0)
    }

    pub fn add(&mut self, domain: u32, count: u32, now: u64) {
        *self.per.entry(domain).or_insert(0) += count;
        self.total += u64::from(count);
        self.changed = now;
    }

    pub fn sub(&mut self, domain: u32, count: u32, now: u64) {
        if let Some(n) = self.per.get_mut(&domain) {
            *n -= count;
            self.total -= u64::from(count);
            self.changed = now;
            if *n == 0 {
                self.per.remove(&domain);
                self.emptied = now;
            }
        }
    }
}

/// What makes terms equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub namespace: String,
    pub topology: String,
    /// Sorted, without duplicates, also the values.
    pub selector: Vec<Expression>,
}

impl Key {
    pub fn new(namespace: &str, term: &TaskTerm) -> Self {
        let mut selector = term.selector.clone();
        for expression in &mut selector {
            expression.values.sort();
            expression.values.dedup();
        }
        selector.sort();
        selector.dedup();
        Key {
            namespace: namespace.to_owned(),
            topology: term.topology_key.clone(),
            selector,
        }
    }

    /// The expression by which tasks that match are found: they carry one of its pairs. `None` for
    /// selectors that may match tasks without a label.
    pub fn anchor(&self) -> Option<&Expression> {
        self.selector.iter().find(|e| e.operator == Operator::In)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Term {
    pub key: Arc<Key>,
    pub topology: u32,
    /// Classes and tags that use it; not in use at 0.
    pub users: u32,
    /// Tasks that the selector matches.
    pub matching: Counter,
    /// Tasks that must not be in a domain with one that matches.
    pub holders: Counter,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    pub all: Vec<Term>,
    pub ids: FxMap<Arc<Key>, u32>,
    pub unused: Vec<u32>,
    /// Where tags look for the terms that may match them.
    pub posts: Posts,
    /// Terms per label key by which tasks are found.
    pub mentioned: FxMap<String, u32>,
    /// Terms per namespace that may match tasks without a label.
    pub loose: FxMap<String, u32>,
}
