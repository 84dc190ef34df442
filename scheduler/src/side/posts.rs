//! Posts: where selectors and label sets find each other without looking at all of the others.

use std::collections::{BTreeMap, BTreeSet};

use super::terms::Key;
use crate::intern::FxMap;

/// Numbers posted under a namespace as a whole, or under a label pair in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Posts {
    whole: FxMap<String, BTreeSet<u32>>,
    pairs: FxMap<(String, String, String), BTreeSet<u32>>,
}

impl Posts {
    /// Posts a selector where the label sets that it may match pass by.
    pub fn post_selector(&mut self, key: &Key, id: u32) {
        for place in places(key) {
            self.set(place).insert(id);
        }
    }

    pub fn take_selector(&mut self, key: &Key, id: u32) {
        for place in places(key) {
            self.remove(place, id);
        }
    }

    /// Posts a label set where the selectors that may match it pass by.
    pub fn post_labels(&mut self, ns: &str, labels: &BTreeMap<String, String>, id: u32) {
        self.set(Place::Whole(ns)).insert(id);
        for (k, v) in labels {
            self.set(Place::Pair(ns, k, v)).insert(id);
        }
    }

    pub fn take_labels(&mut self, ns: &str, labels: &BTreeMap<String, String>, id: u32) {
        self.remove(Place::Whole(ns), id);
        for (k, v) in labels {
            self.remove(Place::Pair(ns, k, v), id);
        }
    }

    /// Of posted label sets: those that a selector may match.
    pub fn for_selector(&self, key: &Key) -> BTreeSet<u32> {
        places(key).flat_map(|place| self.at(place)).collect()
    }

    /// Of posted selectors: those that may match the labels.
    pub fn for_labels(&self, ns: &str, labels: &BTreeMap<String, String>) -> BTreeSet<u32> {
        let pairs = labels
            .iter()
            .flat_map(|(k, v)| self.at(Place::Pair(ns, k, v)));
        pairs.chain(self.at(Place::Whole(ns))).collect()
    }

    fn at(&self, place: Place<'_>) -> impl Iterator<Item = u32> {
        let set = match place {
            Place::Whole(ns) => self.whole.get(ns),
            Place::Pair(ns, k, v) => self.pairs.get(&owned(ns, k, v)),
        };
        set.into_iter().flatten().copied()
    }

    fn set(&mut self, place: Place<'_>) -> &mut BTreeSet<u32> {
        match place {
            Place::Whole(ns) => self.whole.entry(ns.to_owned()).or_default(),
            Place::Pair(ns, k, v) => self.pairs.entry(owned(ns, k, v)).or_default(),
        }
    }

    fn remove(&mut self, place: Place<'_>, id: u32) {
        let set = self.set(place);
        set.remove(&id);
        if set.is_empty() {
            match place {
                Place::Whole(ns) => self.whole.remove(ns),
                Place::Pair(ns, k, v) => self.pairs.remove(&owned(ns, k, v)),
            };
        }
    }
}

#[derive(Clone, Copy)]
enum Place<'a> {
    Whole(&'a str),
    Pair(&'a str, &'a str, &'a str),
}

fn owned(ns: &str, key: &str, value: &str) -> (String, String, String) {
    (ns.to_owned(), key.to_owned(), value.to_owned())
}

/// Under each pair that the anchor allows, or under the namespace without one.
fn places(key: &Key) -> impl Iterator<Item = Place<'_>> {
    let anchor = key.anchor();
    let pairs = anchor.into_iter().flat_map(|e| {
        let values = e.values.iter();
        values.map(|v| Place::Pair(&key.namespace, &e.key, v))
    });
    let whole = anchor.is_none().then_some(Place::Whole(&key.namespace));
    pairs.chain(whole)
}
