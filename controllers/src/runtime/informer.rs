//! Informers: one list and one watch per kind and process, feeding a [`Cache`] that everybody reads.
//!
//! Promises: after [`Informer::synced`] the cache is a state that the API had; each later event is
//! applied exactly once and in order; a gap (410, time-out, lost connection) ends in a resumed
//! watch or a new list, never in a silent hole. Handlers are called after the cache has the change.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff;
use super::cache::{Cache, Change, Index, Item};
use super::client::{Failure, Rest, escape};
use super::key::Key;

/// A watch that is silent for longer is dead: the server sends a bookmark every 5 s.
pub const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// The server ends each watch after about this long; the informer resumes it.
pub const WATCH_SECONDS: u32 = 600;
/// Largest single watch event: a full object (3 MiB) and its frame.
const LINE_MAX: usize = 8 << 20;

/// A kind that has a shared informer: what is listed and how it is indexed.
pub trait Cached: kube::Resource<DynamicType = ()> + Item {
    /// Only this namespace.
    const NAMESPACE: Option<&'static str> = None;
    /// Ways to find objects.
    const INDEXES: &'static [Index<Self>] = &[];
}

/// What an informer lists and watches.
#[derive(Clone, Debug)]
pub struct Source {
    /// Collection path, such as `/apis/rota.dev/v1/jobs`.
    pub path: String,
    /// Further query, such as `labelSelector=...`; may be empty.
    pub query: String,
    /// Accept header of lists.
    pub accept_list: &'static str,
    /// Accept header of watches.
    pub accept_watch: &'static str,
}

impl Source {
    /// All objects at a path.
    pub fn path(path: impl Into<String>) -> Self {
        Source {
            path: path.into(),
            query: String::new(),
            accept_list: "application/json",
            accept_watch: "application/json",
        }
    }
}

/// How far an informer is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// The first list is complete.
    pub synced: bool,
    /// The cache shows everything up to this resourceVersion.
    pub observed: u64,
    /// Since when the watch is connected without a break; None while it is not.
    pub live_since: Option<Instant>,
    /// When the server was last heard.
    pub heard: Option<Instant>,
}

type Handler<T> = Arc<dyn Fn(&Change<T>) + Send + Sync>;

struct Shared<T: 'static> {
    source: Source,
    cache: Cache<T>,
    // Held while changes are applied and announced, so that a new handler misses and doubles nothing.
    handlers: Mutex<Vec<(u64, Handler<T>)>>,
    next_handler: std::sync::atomic::AtomicU64,
    progress: watch::Sender<Progress>,
    relist: Notify,
    seed: u64,
}

/// A running list-and-watch of one kind.
pub struct Informer<T: 'static> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Informer<T> {
    fn clone(&self) -> Self {
        Informer {
            shared: self.shared.clone(),
        }
    }
}

/// Keeps a handler registered; dropping it removes the handler.
#[must_use = "dropping the guard removes the handler"]
pub struct HandlerGuard {
    remove: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Drop for HandlerGuard {
    fn drop(&mut self) {
        if let Some(remove) = self.remove.take() {
            remove();
        }
    }
}

impl<T: Item> Informer<T> {
    /// Starts to list and watch until `stop`.
    pub fn start(
        rest: Rest,
        source: Source,
        indexes: &'static [Index<T>],
        seed: u64,
        stop: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared {
            source,
            cache: Cache::new(indexes),
            handlers: Mutex::new(Vec::new()),
            next_handler: std::sync::atomic::AtomicU64::new(0),
            progress: watch::Sender::new(Progress::default()),
            relist: Notify::new(),
            seed,
        });
        let run = shared.clone();
        tokio::spawn(async move {
            stop.run_until_cancelled(run.run(rest)).await;
        });
        Informer { shared }
    }

    /// The watched objects.
    pub fn cache(&self) -> &Cache<T> {
        &self.shared.cache
    }

    /// Calls `f` for every object that is there now (as created) and for every later change, in
    /// order, until the guard is dropped. `f` runs on the informer's task: it must be short (put a
    /// key into a queue) and must not register handlers.
    pub fn on_change(&self, f: impl Fn(&Change<T>) + Send + Sync + 'static) -> HandlerGuard {
        let id = self
            .shared
            .next_handler
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut handlers = self.shared.handlers.lock();
        let mut present = Vec::with_capacity(self.shared.cache.len());
        self.shared.cache.for_each(|key, object| {
            present.push(Change {
                key: key.clone(),
                old: None,
                new: Some(object.clone()),
            });
        });
        for change in &present {
            f(change);
        }
        handlers.push((id, Arc::new(f)));
        drop(handlers);
        let shared: Weak<Shared<T>> = Arc::downgrade(&self.shared);
        HandlerGuard {
            remove: Some(Box::new(move || {
                if let Some(shared) = shared.upgrade() {
                    shared.handlers.lock().retain(|(h, _)| *h != id);
                }
            })),
        }
    }

    /// Changes as a queue to take from: merged by key (the oldest `old`, the newest `new`), in the
    /// order of their first mention, so it never holds more than one entry per object.
    pub fn subscribe(&self) -> Subscription<T> {
        let pending = Arc::new(Pending {
            queue: Mutex::new(PendingQueue {
                order: BTreeMap::new(),
                at: HashMap::new(),
                next: 0,
            }),
            ready: Notify::new(),
        });
        let push = pending.clone();
        let guard = self.on_change(move |change| push.push(change));
        Subscription {
            pending,
            _guard: guard,
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        *self.shared.progress.borrow()
    }

    /// Waits until the first list is in the cache.
    pub async fn synced(&self) {
        let mut progress = self.shared.progress.subscribe();
        // The sender lives as long as self, so this ends only when it is synced.
        let _ = progress.wait_for(|p| p.synced).await;
    }

    /// Waits until the cache shows resourceVersion `version` (a write's answer); false after `limit`.
    pub async fn observed(&self, version: u64, limit: Duration) -> bool {
        let mut progress = self.shared.progress.subscribe();
        let seen = progress.wait_for(|p| p.synced && p.observed >= version);
        matches!(tokio::time::timeout(limit, seen).await, Ok(Ok(_)))
    }

    /// Makes the cache at least as new as `version`: waits a moment for the watch, then lists again.
    /// For a new leader, which must see everything that its predecessor wrote.
    pub async fn catch_up(&self, version: u64) {
        while !self.observed(version, Duration::from_millis(100)).await {
            self.shared.relist.notify_one();
            self.observed(version, Duration::from_secs(1)).await;
        }
    }
}

/// Changes of one kind, taken in batches.
pub struct Subscription<T: 'static> {
    pending: Arc<Pending<T>>,
    _guard: HandlerGuard,
}

struct Pending<T> {
    queue: Mutex<PendingQueue<T>>,
    ready: Notify,
}

struct PendingQueue<T> {
    order: BTreeMap<u64, Change<T>>,
    at: HashMap<Key, u64>,
    next: u64,
}

impl<T> Pending<T> {
    fn push(&self, change: &Change<T>) {
        let mut queue = self.queue.lock();
        if let Some(at) = queue.at.get(&change.key).copied()
            && let Some(entry) = queue.order.get_mut(&at)
        {
            entry.new = change.new.clone();
            return;
        }
        let at = queue.next;
        queue.next += 1;
        queue.at.insert(change.key.clone(), at);
        queue.order.insert(at, change.clone());
        drop(queue);
        self.ready.notify_one();
    }
}

impl<T> Subscription<T> {
    /// Waits until there is a change.
    pub async fn ready(&self) {
        loop {
            let notified = self.pending.ready.notified();
            if !self.pending.queue.lock().order.is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// Takes all changes that are there.
    pub fn take(&self) -> Vec<Change<T>> {
        let mut queue = self.pending.queue.lock();
        queue.at.clear();
        std::mem::take(&mut queue.order).into_values().collect()
    }
}

/// How a watch ended.
enum Ended {
    /// Go on from this version.
    Resume(u64),
    /// List again.
    Relist,
    /// Go on from this version, after a pause.
    Broken(u64, Failure),
}

#[derive(serde::Deserialize)]
struct Line<'a> {
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// What is read of an object that does not parse as its kind, and of bookmarks.
#[derive(serde::Deserialize)]
struct OnlyMeta {
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
}

impl<T: Item> Shared<T> {
    async fn run(self: Arc<Self>, rest: Rest) {
        let mut from: Option<u64> = None;
        let mut failures = 0u32;
        loop {
            let outcome = match from {
                None => self.list(&rest).await.map(Ended::Resume),
                Some(version) => self.watch(&rest, version).await,
            };
            self.progress.send_modify(|p| p.live_since = None);
            match outcome {
                Ok(Ended::Resume(version)) => {
                    if from != Some(version) {
                        failures = 0;
                        from = Some(version);
                        continue;
                    }
                    // A watch that ended without a word: do not spin on it.
                    failures += 1;
                }
                Ok(Ended::Broken(version, failure)) => {
                    from = Some(version);
                    failures += 1;
                    tracing::debug!(path = %self.source.path, %failure, failures, "watch broke");
                }
                Ok(Ended::Relist) => {
                    from = None;
                    failures += 1;
                    if failures == 1 {
                        continue;
                    }
                }
                Err(Failure::Gone(_)) => {
                    from = None;
                    failures += 1;
                }
                Err(failure) => {
                    failures += 1;
                    tracing::debug!(path = %self.source.path, %failure, failures, "list or watch failed");
                }
            }
            tokio::time::sleep(backoff::delay(self.seed, &self.source.path, failures)).await;
        }
    }

    /// Lists everything as of one version into the cache.
    async fn list(&self, rest: &Rest) -> Result<u64, Failure> {
        let mut objects = BTreeMap::new();
        let mut token: Option<String> = None;
        let mut version = 0;
        loop {
            let page = rest
                .page(
                    &self.source.path,
                    &self.source.query,
                    self.source.accept_list,
                    token.as_deref(),
                )
                .await?;
            if token.is_none() {
                version = page.resource_version;
            }
            for raw in &page.items {
                if let Some((key, Some(object))) = self.parse(raw) {
                    objects.insert(key, object);
                }
            }
            match page.next {
                Some(next) => token = Some(next),
                None => break,
            }
        }
        let handlers = self.handlers.lock();
        let changes = self.cache.replace(objects);
        announce(&handlers, &changes);
        drop(handlers);
        self.progress.send_modify(|p| {
            p.synced = true;
            p.observed = version;
            p.heard = Some(Instant::now());
        });
        Ok(version)
    }

    async fn watch(&self, rest: &Rest, from: u64) -> Result<Ended, Failure> {
        let mut uri = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={}",
            self.source.path,
            escape(&from.to_string())
        );
        if !self.source.query.is_empty() {
            uri.push('&');
            uri.push_str(&self.source.query);
        }
        let mut body = rest.watch(&uri, self.source.accept_watch).await?;
        let now = Instant::now();
        self.progress.send_modify(|p| {
            p.live_since = Some(now);
            p.heard = Some(now);
        });
        let mut version = from;
        let mut buffer = BytesMut::new();
        // Up to here the buffer is known to hold no line end.
        let mut scanned = 0;
        loop {
            let frame = tokio::select! {
                biased;
                _ = self.relist.notified() => return Ok(Ended::Relist),
                frame = tokio::time::timeout(READ_TIMEOUT, body.frame()) => frame,
            };
            let data = match frame {
                Err(_) => {
                    tracing::debug!(path = %self.source.path, "watch is silent, resuming it");
                    return Ok(Ended::Resume(version));
                }
                Ok(None) | Ok(Some(Err(_))) => return Ok(Ended::Resume(version)),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => data,
                    Err(_) => continue,
                },
            };
            buffer.extend_from_slice(&data);
            let Some(last) = buffer[scanned..].iter().rposition(|b| *b == b'\n') else {
                scanned = buffer.len();
                if scanned > LINE_MAX {
                    let failure = Failure::transient("a watch event is too long");
                    return Ok(Ended::Broken(version, failure));
                }
                continue;
            };
            let end = scanned + last + 1;
            let ended = self.lines(&buffer[..end], &mut version);
            buffer.advance(end);
            scanned = 0;
            if let Some(ended) = ended {
                return Ok(ended);
            }
        }
    }

    /// Applies whole lines as one batch.
    fn lines(&self, bytes: &[u8], version: &mut u64) -> Option<Ended> {
        let mut updates = Vec::new();
        let mut seen = *version;
        let mut broken = None;
        let mut relist = false;
        for line in bytes.split(|b| *b == b'\n') {
            if line.is_empty() {
                continue;
            }
            let Ok(event) = serde_json::from_slice::<Line>(line) else {
                broken = Some(Failure::transient("a watch line is no event"));
                break;
            };
            match &*event.kind {
                "ADDED" | "MODIFIED" | "DELETED" => {
                    let Some((key, object)) = self.parse(event.object) else {
                        relist = true;
                        break;
                    };
                    let at = match &object {
                        Some(o) => o.metadata().resource_version.clone(),
                        None => serde_json::from_str::<OnlyMeta>(event.object.get())
                            .ok()
                            .and_then(|m| m.metadata.resource_version),
                    };
                    seen = seen.max(at.and_then(|v| v.parse().ok()).unwrap_or(0));
                    let object = object.filter(|_| event.kind != "DELETED");
                    updates.push((key, object));
                }
                "BOOKMARK" => {
                    if let Ok(m) = serde_json::from_str::<OnlyMeta>(event.object.get()) {
                        let at = m.metadata.resource_version.and_then(|v| v.parse().ok());
                        seen = seen.max(at.unwrap_or(0));
                    }
                }
                "ERROR" => {
                    let status = serde_json::from_str(event.object.get()).unwrap_or_default();
                    let status: serde_json::Value = status;
                    let code = status["code"].as_u64().unwrap_or(500) as u16;
                    match Failure::from_status(code, &status) {
                        Failure::Gone(_) => relist = true,
                        failure => broken = Some(failure),
                    }
                    break;
                }
                other => tracing::debug!(path = %self.source.path, other, "unknown watch event"),
            }
        }
        *version = seen;
        if !updates.is_empty() {
            let handlers = self.handlers.lock();
            let changes = self.cache.apply(updates);
            announce(&handlers, &changes);
        }
        self.progress.send_modify(|p| {
            p.observed = p.observed.max(seen);
            p.heard = Some(Instant::now());
        });
        match broken {
            _ if relist => Some(Ended::Relist),
            Some(failure) => Some(Ended::Broken(seen, failure)),
            None => None,
        }
    }

    /// The object, or only its key when it is not what its kind says it is; then it is left out
    /// of the cache rather than stopping everybody.
    fn parse(&self, raw: &RawValue) -> Option<(Key, Option<T>)> {
        match serde_json::from_str::<T>(raw.get()) {
            Ok(mut object) => {
                object.metadata_mut().managed_fields = None;
                Some((Key::of(object.metadata()), Some(object)))
            }
            Err(error) => {
                let meta = serde_json::from_str::<OnlyMeta>(raw.get()).ok()?.metadata;
                let key = Key::of(&meta);
                tracing::warn!(path = %self.source.path, %key, %error, "object cannot be read and is ignored");
                Some((key, None))
            }
        }
    }
}

fn announce<T>(handlers: &[(u64, Handler<T>)], changes: &[Change<T>]) {
    for change in changes {
        for (_, handler) in handlers {
            handler(change);
        }
    }
}

/// All shared informers of a process; each starts when it is first asked for.
#[derive(Clone)]
pub struct Informers {
    inner: Arc<InformersInner>,
}

struct InformersInner {
    rest: Rest,
    seed: u64,
    stop: CancellationToken,
    by_type: Mutex<HashMap<TypeId, Box<dyn Any + Send + Sync>>>,
    by_path: Mutex<HashMap<String, watch::Receiver<Progress>>>,
}

impl Informers {
    /// Informers that read as the user of `rest` until `stop`.
    pub fn new(rest: Rest, seed: u64, stop: CancellationToken) -> Self {
        Informers {
            inner: Arc::new(InformersInner {
                rest,
                seed,
                stop,
                by_type: Mutex::new(HashMap::new()),
                by_path: Mutex::new(HashMap::new()),
            }),
        }
    }

    /// The informer of a kind.
    pub fn get<K: Cached>(&self) -> Informer<K> {
        let mut by_type = self.inner.by_type.lock();
        if let Some(found) = by_type
            .get(&TypeId::of::<K>())
            .and_then(|any| any.downcast_ref::<Informer<K>>())
        {
            return found.clone();
        }
        let path = K::url_path(&(), K::NAMESPACE);
        let informer = Informer::<K>::start(
            self.inner.rest.clone(),
            Source::path(path.clone()),
            K::INDEXES,
            self.inner.seed,
            self.inner.stop.clone(),
        );
        if K::NAMESPACE.is_none() {
            self.inner
                .by_path
                .lock()
                .insert(path, informer.shared.progress.subscribe());
        }
        by_type.insert(TypeId::of::<K>(), Box::new(informer.clone()));
        informer
    }

    /// Waits (at most `limit`) until the informer of the kind at this collection path, if there is
    /// one, has seen `version`.
    pub async fn seen(&self, collection: &str, version: u64, limit: Duration) -> bool {
        let Some(mut progress) = self.inner.by_path.lock().get(collection).cloned() else {
            return true;
        };
        let seen = progress.wait_for(|p| p.observed >= version);
        matches!(tokio::time::timeout(limit, seen).await, Ok(Ok(_)))
    }
}
