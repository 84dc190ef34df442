//! The watch cache: every kind's objects in memory, with recent history.
//!
//! One applier follows the store's single watch and applies each batch kind by kind; reads and
//! watches are served from here alone. Promises: a list or bookmark at version V reflects every
//! event of its kind up to V and none after; a watcher sees each event of its kind once, in order,
//! or is cut off. Slow watchers are cut, never buffered without bound.

mod kind;
mod watcher;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use rota_store::{EventBatch, ListRequest, Store, StoreError, Version};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use kind::{Change, KindCache, Page, PageRequest};
pub use watcher::{Interest, WatchEnd, WatchHandle};

use crate::objects::FieldIndex;

/// Events that a starting server reads back from the store, so that watches from before a restart
/// can resume: enough for minutes of busy work, read in about a second.
const HISTORY_EVENTS_MAX: usize = 60_000;

/// Objects that one list call to the store asks for while the cache fills (etcd answers at most 4 MiB).
const FILL_PAGE: usize = 500;

/// Events applied under one lock, so that readers need not wait for the whole of what a cache that
/// lagged is sent at once.
const APPLY_MAX: usize = 1000;

/// Longest wait of a consistent read for the cache to catch up with the store.
const FRESH_WAIT_MAX: Duration = Duration::from_secs(5);

/// What the cache needs to know of a stored kind.
#[derive(Debug)]
pub struct CachedKind {
    /// `/rota.dev/jobs/`.
    pub prefix: String,
    /// What to take out of its objects.
    pub index: FieldIndex,
    /// Whether keys continue with a namespace.
    pub namespaced: bool,
    /// Position in `fields` of the field by which watches are indexed (`spec.nodeName`).
    pub watch_field: Option<usize>,
}

/// All kinds' caches and how far they are.
pub struct Cache {
    store: Arc<dyn Store>,
    kinds: Vec<Arc<KindCache>>,
    applied: AtomicU64,
    progress: watch::Sender<Version>,
    synced: AtomicBool,
    healthy: AtomicBool,
}

impl Cache {
    /// An empty cache over these kinds; [`Cache::run`] fills and follows.
    pub fn new(store: Arc<dyn Store>, kinds: Vec<CachedKind>) -> Arc<Self> {
        Arc::new(Cache {
            store,
            kinds: kinds
                .into_iter()
                .map(|k| Arc::new(KindCache::new(k)))
                .collect(),
            applied: AtomicU64::new(0),
            progress: watch::Sender::new(0),
            synced: AtomicBool::new(false),
            healthy: AtomicBool::new(false),
        })
    }

    /// A kind's cache, by its position in the list given to [`Cache::new`].
    pub fn kind(&self, i: usize) -> &Arc<KindCache> {
        &self.kinds[i]
    }

    /// Newest version applied to all kinds.
    pub fn applied(&self) -> Version {
        self.applied.load(Ordering::Acquire)
    }

    /// Whether the cache has been filled once.
    pub fn synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Whether the cache follows the store at this moment.
    pub fn healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    /// The version that a kind's state stands for. Call with the kind's lock held through
    /// [`KindCache`]'s methods, which take this as an argument.
    fn version_of(&self, seen: Version) -> Version {
        seen.max(self.applied())
    }

    /// Waits until everything acknowledged before this call is in the cache.
    pub async fn fresh(&self) -> Result<Version, StoreError> {
        let current = self.store.current().await?;
        self.wait_for(current, FRESH_WAIT_MAX).await.map_err(|_| {
            StoreError::Unavailable(format!(
                "the cache has not caught up with version {current} in time"
            ))
        })?;
        Ok(current)
    }

    /// Waits until `version` is applied; the error carries how far the cache is.
    pub async fn wait_for(&self, version: Version, most: Duration) -> Result<(), Version> {
        if self.applied() >= version {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        let done = tokio::time::timeout(most, progress.wait_for(|v| *v >= version)).await;
        match done {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.applied()),
        }
    }

    /// Fills the cache and follows the store until `stop`. Recovers by itself from a store that
    /// goes away; relists only where history has been compacted meanwhile.
    pub async fn run(&self, stop: CancellationToken) {
        let mut delay = Duration::from_millis(50);
        loop {
            let started = tokio::time::Instant::now();
            tokio::select! {
                () = stop.cancelled() => return,
                end = self.follow() => {
                    self.healthy.store(false, Ordering::Release);
                    if let Err(e) = end {
                        tracing::warn!(error = %e, "the watch on the store ended; starting it again");
                    }
                }
            }
            if started.elapsed() > Duration::from_secs(5) {
                delay = Duration::from_millis(50);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(delay) => delay = (delay * 2).min(Duration::from_secs(2)),
            }
        }
    }

    async fn follow(&self) -> Result<(), StoreError> {
        if !self.synced() {
            let start = self.store.resume_point(HISTORY_EVENTS_MAX).await?;
            self.fill(start).await?;
        }
        let mut stream = match self.store.watch(self.applied()).await {
            Err(StoreError::Compacted { .. }) => return self.refill().await,
            other => other?,
        };
        let mut target = None;
        if !self.synced() {
            target = Some(self.store.current().await?);
        } else {
            self.healthy.store(true, Ordering::Release);
        }
        loop {
            if target.is_some_and(|t| self.applied() >= t) {
                target = None;
                self.synced.store(true, Ordering::Release);
                self.healthy.store(true, Ordering::Release);
            }
            match stream.next().await {
                None => return Err(StoreError::Unavailable("the watch ended".into())),
                Some(Err(StoreError::Compacted { .. })) => return self.refill().await,
                Some(Err(e)) => return Err(e),
                Some(Ok(batch)) => self.apply(batch),
            }
        }
    }

    async fn fill(&self, at: Version) -> Result<(), StoreError> {
        for kind in &self.kinds {
            kind.replace_all(&self.read_all(kind, at).await?, at);
        }
        self.advance(at);
        Ok(())
    }

    /// History is gone: read everything anew and turn the difference into events, so that
    /// watchers go on; those that are too far behind get 410 from the emptied history.
    async fn refill(&self) -> Result<(), StoreError> {
        tracing::warn!(
            "the store has compacted what this cache had not seen; reading everything anew"
        );
        let at = self.store.current().await?;
        for kind in &self.kinds {
            let records = self.read_all(kind, at).await?;
            kind.reset(&records, at);
        }
        self.advance(at);
        Ok(())
    }

    async fn read_all(
        &self,
        kind: &KindCache,
        at: Version,
    ) -> Result<Vec<rota_store::Record>, StoreError> {
        let mut records = Vec::new();
        let mut after = None;
        loop {
            let request = ListRequest {
                prefix: kind.prefix().to_string(),
                after,
                limit: FILL_PAGE,
                at: Some(at),
            };
            let page = self.store.list(request).await?;
            after = page.items.last().map(|r| r.key.to_string());
            records.extend(page.items);
            if !page.more {
                return Ok(records);
            }
        }
    }

    fn apply(&self, batch: EventBatch) {
        let mut start = 0;
        let events = &batch.events;
        // Runs of one kind are applied under one lock; a batch's events come in key groups anyway.
        while start < events.len() {
            let Some(kind) = self.kind_of(&events[start].key) else {
                start += 1;
                continue;
            };
            let mut end = start + 1;
            while end < events.len()
                && end - start < APPLY_MAX
                && events[end].key.starts_with(kind.prefix())
            {
                end += 1;
            }
            kind.apply(&events[start..end]);
            start = end;
        }
        self.advance(batch.version);
    }

    fn advance(&self, version: Version) {
        self.applied.fetch_max(version, Ordering::AcqRel);
        self.progress.send_replace(self.applied());
    }

    fn kind_of(&self, key: &str) -> Option<&Arc<KindCache>> {
        self.kinds.iter().find(|k| key.starts_with(k.prefix()))
    }

    /// Starts a watch on a kind: events after `from`, or the current state as synthetic additions
    /// first when `from` is `None`. `Err` carries the oldest version that can be resumed from.
    pub fn watch(
        &self,
        kind: usize,
        from: Option<Version>,
        interest: Interest,
    ) -> Result<WatchHandle, Version> {
        self.kinds[kind].watch(from, interest, |seen| self.version_of(seen))
    }

    /// One page of a kind, at the newest state or at an exact older version.
    pub fn page(&self, kind: usize, request: &PageRequest<'_>) -> Result<Page, Version> {
        self.kinds[kind].page(request, |seen| self.version_of(seen))
    }

    /// One object of a kind, with the version that this answer stands for.
    pub fn one(&self, kind: usize, key: &str) -> (Option<Arc<crate::objects::Object>>, Version) {
        self.kinds[kind].one(key, |seen| self.version_of(seen))
    }

    /// The version up to which a watcher has seen everything, if nothing waits for it.
    pub fn bookmark(&self, kind: usize, watch: &WatchHandle) -> Option<Version> {
        self.kinds[kind].bookmark(watch, |seen| self.version_of(seen))
    }
}
