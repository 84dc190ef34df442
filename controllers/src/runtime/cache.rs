//! A watched copy of all objects of a kind, with indexes. Only its informer writes it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::RwLock;
use serde::de::DeserializeOwned;

use super::key::Key;

/// What an informer can hold: anything with metadata.
pub trait Item: DeserializeOwned + Send + Sync + 'static {
    /// Its metadata.
    fn metadata(&self) -> &ObjectMeta;
    /// Its metadata, to strip what nobody reads.
    fn metadata_mut(&mut self) -> &mut ObjectMeta;
}

impl<K: kube::Resource + DeserializeOwned + Send + Sync + 'static> Item for K {
    fn metadata(&self) -> &ObjectMeta {
        self.meta()
    }
    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        self.meta_mut()
    }
}

/// A way to find objects by a value that they hold.
pub struct Index<T: 'static> {
    /// Name, for [`Cache::by`].
    pub name: &'static str,
    /// The value; objects without one are not in the index.
    pub of: fn(&T) -> Option<&str>,
}

/// What happened to one object: created (only `new`), deleted (only `old`) or changed (both).
/// A deletion and a creation under the same name may come as one change with another uid.
pub struct Change<T> {
    /// Which object.
    pub key: Key,
    /// As it was.
    pub old: Option<Arc<T>>,
    /// As it is.
    pub new: Option<Arc<T>>,
}

impl<T> Clone for Change<T> {
    fn clone(&self) -> Self {
        Change {
            key: self.key.clone(),
            old: self.old.clone(),
            new: self.new.clone(),
        }
    }
}

struct State<T> {
    objects: BTreeMap<Key, Arc<T>>,
    indexed: Vec<HashMap<String, BTreeSet<Key>>>,
}

/// Read access to the watched objects. Ordered by key everywhere, so that what is derived from it
/// does not depend on hashing.
pub struct Cache<T: 'static> {
    state: RwLock<State<T>>,
    indexes: &'static [Index<T>],
}

impl<T: Item> Cache<T> {
    pub(crate) fn new(indexes: &'static [Index<T>]) -> Self {
        Cache {
            state: RwLock::new(State {
                objects: BTreeMap::new(),
                indexed: indexes.iter().map(|_| HashMap::new()).collect(),
            }),
            indexes,
        }
    }

    /// The object of this key.
    pub fn get(&self, key: &Key) -> Option<Arc<T>> {
        self.state.read().objects.get(key).cloned()
    }

    /// All objects.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.state.read().objects.values().cloned().collect()
    }

    /// All objects of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        // '0' follows '/', so the range holds exactly the keys that start with `namespace/`.
        let from = Key::new(namespace, "");
        self.state
            .read()
            .objects
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(|(k, _)| k.namespace() == namespace)
            .map(|(_, o)| o.clone())
            .collect()
    }

    /// All objects with this value in the index of this name; empty for an unknown index.
    pub fn by(&self, index: &str, value: &str) -> Vec<Arc<T>> {
        let Some(at) = self.indexes.iter().position(|i| i.name == index) else {
            debug_assert!(false, "no index {index}");
            return Vec::new();
        };
        let state = self.state.read();
        let Some(keys) = state.indexed[at].get(value) else {
            return Vec::new();
        };
        keys.iter()
            .filter_map(|k| state.objects.get(k).cloned())
            .collect()
    }

    /// Calls `f` on each object without collecting them. `f` must not wait and must not use this cache.
    pub fn for_each(&self, mut f: impl FnMut(&Key, &Arc<T>)) {
        for (k, o) in &self.state.read().objects {
            f(k, o);
        }
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stores or (None) removes objects, in order, and says what changed.
    pub(crate) fn apply(&self, updates: Vec<(Key, Option<T>)>) -> Vec<Change<T>> {
        let mut changes = Vec::with_capacity(updates.len());
        let mut state = self.state.write();
        for (key, new) in updates {
            let new = new.map(Arc::new);
            let old = match &new {
                Some(object) => state.objects.insert(key.clone(), object.clone()),
                None => state.objects.remove(&key),
            };
            if old.is_none() && new.is_none() {
                continue;
            }
            for (at, index) in self.indexes.iter().enumerate() {
                let before = old.as_deref().and_then(index.of);
                let after = new.as_deref().and_then(index.of);
                if before == after {
                    continue;
                }
                if let Some(value) = before
                    && let Some(keys) = state.indexed[at].get_mut(value)
                {
                    keys.remove(&key);
                    if keys.is_empty() {
                        state.indexed[at].remove(value);
                    }
                }
                if let Some(value) = after {
                    state.indexed[at]
                        .entry(value.to_string())
                        .or_default()
                        .insert(key.clone());
                }
            }
            changes.push(Change { key, old, new });
        }
        changes
    }

    /// Makes the contents exactly `objects` and says what changed; an unchanged version is no change.
    pub(crate) fn replace(&self, objects: BTreeMap<Key, T>) -> Vec<Change<T>> {
        let mut updates: Vec<(Key, Option<T>)> = Vec::new();
        {
            let state = self.state.read();
            for key in state.objects.keys() {
                if !objects.contains_key(key) {
                    updates.push((key.clone(), None));
                }
            }
            for (key, new) in objects {
                let same = state.objects.get(&key).is_some_and(|old| {
                    old.metadata().resource_version == new.metadata().resource_version
                        && old.metadata().uid == new.metadata().uid
                });
                if !same {
                    updates.push((key, Some(new)));
                }
            }
        }
        self.apply(updates)
    }
}
