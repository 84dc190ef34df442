//! One kind's objects, recent history and watchers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;
use rota_store::{Event, Record, Version};

use super::CachedKind;
use super::watcher::{Counted, Interest, Shared, WatchEnd, WatchHandle};
use crate::objects::Object;

/// Events of one kind that are kept for resuming watches and for older pages.
const HISTORY_MAX: usize = 65_536;

/// Bytes of objects that the history of one kind may hold on to.
const HISTORY_BYTES_MAX: usize = 64 << 20;

/// One change of one object.
#[derive(Debug)]
pub struct Change {
    /// Its version.
    pub version: Version,
    /// State before; `None` for a creation.
    pub before: Option<Arc<Object>>,
    /// State after; `None` for a removal.
    pub after: Option<Arc<Object>>,
    /// For a removal: the last state, carrying the removal's version.
    pub removed: Option<Arc<Object>>,
}

impl Change {
    fn weight(&self) -> usize {
        // `after` is usually still the live object, so only the state before is charged.
        64 + self.before.as_ref().map_or(0, |o| o.bytes.len())
    }

    fn key(&self) -> Option<&Arc<str>> {
        self.after.as_ref().or(self.before.as_ref()).map(|o| &o.key)
    }
}

/// What to read.
#[derive(Default)]
pub struct PageRequest<'a> {
    /// Only this namespace; empty for all.
    pub namespace: &'a str,
    /// Only keys after this one.
    pub after: Option<&'a str>,
    /// Exact version to read at; `None` for now.
    pub at: Option<Version>,
    /// Stop after this many that pass the filter; 0 for all.
    pub limit: usize,
    /// Keep only objects that pass.
    pub filter: Option<&'a (dyn Fn(&Object) -> bool + Sync)>,
}

/// A consistent page.
#[derive(Debug)]
pub struct Page {
    /// The objects, in key order.
    pub items: Vec<Arc<Object>>,
    /// The version whose state this is.
    pub version: Version,
    /// Whether more follow.
    pub more: bool,
    /// How many objects the namespace (or all of them) holds now, filter aside.
    pub total: usize,
}

/// See the module docs of [`super`].
pub struct KindCache {
    what: CachedKind,
    state: RwLock<State>,
    live: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    per_namespace: HashMap<Box<str>, usize>,
    history: VecDeque<Arc<Change>>,
    history_bytes: usize,
    /// Watches can resume after this version; everything since is in `history`.
    floor: Version,
    /// Version of the newest event applied to this kind.
    seen: Version,
    bytes: usize,
    watchers_all: Vec<Weak<Shared>>,
    watchers_field: HashMap<Box<str>, Vec<Weak<Shared>>>,
    watchers_key: HashMap<Box<str>, Vec<Weak<Shared>>>,
}

impl KindCache {
    pub(super) fn new(what: CachedKind) -> Self {
        KindCache {
            what,
            state: RwLock::default(),
            live: Arc::default(),
        }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.what.prefix
    }

    /// Offset at which versions are spliced into this kind's objects.
    pub fn splice_offset(&self) -> usize {
        self.what.index.offset
    }

    /// An object of this kind from a store record.
    pub fn object(&self, record: &Record) -> Arc<Object> {
        let key: Arc<str> = record
            .key
            .strip_prefix(self.prefix())
            .unwrap_or(&record.key)
            .into();
        Arc::new(Object::new(
            key,
            &record.value,
            record.version,
            &self.what.index,
        ))
    }

    /// One object by key, as it is in the cache now.
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.state.read().objects.get(key).cloned()
    }

    /// Number of objects, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        let state = self.state.read();
        (state.objects.len(), state.bytes)
    }

    /// Live watchers.
    pub fn watchers(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    pub(super) fn replace_all(&self, records: &[Record], at: Version) {
        let mut state = self.state.write();
        *state = State {
            floor: at,
            seen: at,
            ..State::default()
        };
        for record in records {
            let object = self.object(record);
            state.insert(object, self.what.namespaced);
        }
    }

    /// Takes over a new state after lost history: the difference reaches watchers as changes, and
    /// what came before cannot be resumed from any more.
    pub(super) fn reset(&self, records: &[Record], at: Version) {
        let mut state = self.state.write();
        let mut fresh = State {
            floor: at,
            seen: at,
            ..State::default()
        };
        for record in records {
            fresh.insert(self.object(record), self.what.namespaced);
        }
        for watcher in state
            .watchers_all
            .iter()
            .chain(state.watchers_field.values().flatten())
            .chain(state.watchers_key.values().flatten())
        {
            if let Some(w) = watcher.upgrade() {
                w.end(WatchEnd::Expired);
            }
        }
        *state = fresh;
    }

    pub(super) fn apply(&self, events: &[Event]) {
        // Parsing happens before the lock, so that readers never wait for it.
        let parsed: Vec<(Arc<str>, Option<Arc<Object>>, Version)> = events
            .iter()
            .map(|e| {
                let key: Arc<str> = e.key.strip_prefix(self.prefix()).unwrap_or(&e.key).into();
                let object = e
                    .value
                    .as_ref()
                    .map(|v| Arc::new(Object::new(key.clone(), v, e.version, &self.what.index)));
                (key, object, e.version)
            })
            .collect();
        let mut state = self.state.write();
        for (key, after, version) in parsed {
            if version <= state.seen {
                continue;
            }
            let before = match &after {
                Some(object) => state.insert(object.clone(), self.what.namespaced),
                None => state.remove(&key, self.what.namespaced),
            };
            state.seen = version;
            if before.is_none() && after.is_none() {
                continue;
            }
            let removed = match (&before, &after) {
                (Some(b), None) => Some(Arc::new(b.deleted_at(version, self.what.index.offset))),
                _ => None,
            };
            let change = Arc::new(Change {
                version,
                before,
                after,
                removed,
            });
            state.dispatch(&change, self.what.watch_field);
            state.remember(change);
        }
    }

    pub(super) fn watch(
        &self,
        from: Option<Version>,
        interest: Interest,
        version_of: impl Fn(Version) -> Version,
    ) -> Result<WatchHandle, Version> {
        let mut state = self.state.write();
        let mut backlog = VecDeque::new();
        let mut initial = Vec::new();
        let start = match from {
            Some(from) => {
                if from < state.floor {
                    return Err(state.floor);
                }
                let first = state.history.partition_point(|c| c.version <= from);
                for change in state.history.range(first..) {
                    if wanted(change, &interest, self.what.watch_field) {
                        backlog.push_back(change.clone());
                    }
                }
                from
            }
            None => {
                initial = match (&interest, self.what.watch_field) {
                    (Interest::Key(key), _) => {
                        state.objects.get(&**key).cloned().into_iter().collect()
                    }
                    (Interest::Field(value), Some(f)) => state
                        .objects
                        .values()
                        .filter(|o| o.fields[f] == *value)
                        .cloned()
                        .collect(),
                    _ => state.objects.values().cloned().collect(),
                };
                version_of(state.seen)
            }
        };
        let shared = Arc::new(Shared::new(interest, backlog));
        let list = match &shared.interest {
            Interest::All => &mut state.watchers_all,
            Interest::Field(value) => state.watchers_field.entry(value.clone()).or_default(),
            Interest::Key(key) => state.watchers_key.entry(key.clone()).or_default(),
        };
        list.retain(|w| w.strong_count() > 0);
        list.push(Arc::downgrade(&shared));
        Ok(WatchHandle {
            shared,
            counted: Counted::new(&self.live),
            initial,
            start,
        })
    }

    pub(super) fn bookmark(
        &self,
        watch: &WatchHandle,
        version_of: impl Fn(Version) -> Version,
    ) -> Option<Version> {
        let state = self.state.read();
        watch.shared.is_empty().then(|| version_of(state.seen))
    }

    pub(super) fn one(
        &self,
        key: &str,
        version_of: impl Fn(Version) -> Version,
    ) -> (Option<Arc<Object>>, Version) {
        let state = self.state.read();
        (state.objects.get(key).cloned(), version_of(state.seen))
    }

    pub(super) fn page(
        &self,
        request: &PageRequest<'_>,
        version_of: impl Fn(Version) -> Version,
    ) -> Result<Page, Version> {
        let state = self.state.read();
        let now = version_of(state.seen);
        let version = request.at.unwrap_or(now);
        if version < state.floor {
            return Err(state.floor);
        }
        let prefix = if request.namespace.is_empty() {
            String::new()
        } else {
            format!("{}/", request.namespace)
        };
        let total = if request.namespace.is_empty() {
            state.objects.len()
        } else {
            state
                .per_namespace
                .get(request.namespace)
                .copied()
                .unwrap_or(0)
        };
        // What differs between then and now: for each key, its state at `version`.
        let mut undone: BTreeMap<Arc<str>, Option<Arc<Object>>> = BTreeMap::new();
        if version < now {
            for change in state
                .history
                .iter()
                .rev()
                .take_while(|c| c.version > version)
            {
                if let Some(key) = change.key() {
                    undone.insert(key.clone(), change.before.clone());
                }
            }
        }
        let begin = match request.after {
            Some(after) if *after >= *prefix => Bound::Excluded(Arc::<str>::from(after)),
            _ => Bound::Included(Arc::<str>::from(&*prefix)),
        };
        let range = (begin, Bound::Unbounded);
        let mut live = state.objects.range::<Arc<str>, _>(range.clone()).peekable();
        let mut old = undone.range::<Arc<str>, _>(range).peekable();
        let mut items = Vec::new();
        let mut more = false;
        loop {
            let take_old = match (live.peek(), old.peek()) {
                (None, None) => break,
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some((l, _)), Some((o, _))) => o <= l,
            };
            let object = if take_old {
                let Some((key, before)) = old.next() else {
                    break;
                };
                if live.peek().is_some_and(|(l, _)| *l == key) {
                    live.next();
                }
                match before {
                    Some(object) => object,
                    None if key.starts_with(&*prefix) => continue,
                    None => break,
                }
            } else {
                let Some((_, object)) = live.next() else {
                    break;
                };
                object
            };
            if !object.key.starts_with(&*prefix) {
                break;
            }
            if request.filter.is_some_and(|f| !f(object)) {
                continue;
            }
            if request.limit > 0 && items.len() == request.limit {
                more = true;
                break;
            }
            items.push(object.clone());
        }
        Ok(Page {
            items,
            version,
            more,
            total,
        })
    }
}

fn wanted(change: &Change, interest: &Interest, field: Option<usize>) -> bool {
    let sides = || [&change.before, &change.after].into_iter().flatten();
    match interest {
        Interest::All => true,
        Interest::Key(key) => sides().any(|o| *o.key == **key),
        Interest::Field(value) => field.is_none_or(|f| sides().any(|o| o.fields[f] == *value)),
    }
}

impl State {
    fn insert(&mut self, object: Arc<Object>, namespaced: bool) -> Option<Arc<Object>> {
        self.bytes += object.bytes.len();
        let ns = if namespaced {
            Some(object.namespace().to_string())
        } else {
            None
        };
        let before = self.objects.insert(object.key.clone(), object);
        match &before {
            Some(b) => self.bytes -= b.bytes.len(),
            None => {
                if let Some(ns) = ns {
                    *self.per_namespace.entry(ns.into()).or_default() += 1;
                }
            }
        }
        before
    }

    fn remove(&mut self, key: &str, namespaced: bool) -> Option<Arc<Object>> {
        let before = self.objects.remove(key)?;
        self.bytes -= before.bytes.len();
        if namespaced && let Some(n) = self.per_namespace.get_mut(before.namespace()) {
            *n -= 1;
            if *n == 0 {
                self.per_namespace.remove(before.namespace());
            }
        }
        Some(before)
    }

    fn remember(&mut self, change: Arc<Change>) {
        self.history_bytes += change.weight();
        self.history.push_back(change);
        while self.history.len() > HISTORY_MAX || self.history_bytes > HISTORY_BYTES_MAX {
            let Some(old) = self.history.pop_front() else {
                break;
            };
            self.history_bytes -= old.weight();
            self.floor = old.version;
        }
    }

    fn dispatch(&mut self, change: &Arc<Change>, field: Option<usize>) {
        push_to(&mut self.watchers_all, change);
        if let Some(key) = change.key()
            && !self.watchers_key.is_empty()
            && let Some(list) = self.watchers_key.get_mut(&**key)
        {
            push_to(list, change);
            if list.is_empty() {
                self.watchers_key.remove(&**key);
            }
        }
        let Some(field) = field else { return };
        if self.watchers_field.is_empty() {
            return;
        }
        let before = change.before.as_ref().map(|o| o.fields[field].clone());
        let after = change.after.as_ref().map(|o| o.fields[field].clone());
        let second = if after != before { after } else { None };
        for value in [before.or_else(|| second.clone()), second]
            .into_iter()
            .flatten()
            .collect::<std::collections::BTreeSet<_>>()
        {
            if let Some(list) = self.watchers_field.get_mut(&value) {
                push_to(list, change);
                if list.is_empty() {
                    self.watchers_field.remove(&value);
                }
            }
        }
    }
}

fn push_to(list: &mut Vec<Weak<Shared>>, change: &Arc<Change>) {
    list.retain(|weak| match weak.upgrade() {
        Some(watcher) => {
            watcher.push(change);
            true
        }
        None => false,
    });
}
