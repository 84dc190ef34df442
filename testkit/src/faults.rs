//! A store that fails on purpose: before a write is applied, after it, or late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rota_store::{
    EventBatch, ListPage, ListRequest, Record, Store, StoreError, StoreInfo, StoreStats, Txn,
    Version, Versions,
};

/// What happens to one commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It goes through.
    None,
    /// It is refused and nothing is written.
    Before,
    /// It is applied, and the caller is told that the outcome is unknown.
    After,
    /// It goes through late.
    Late(Duration),
}

/// Decides about the n-th commit.
type Plan = Box<dyn FnMut(u64, &Txn) -> Fault + Send>;

/// A [`Store`] around another one.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    plan: Mutex<Plan>,
    commits: AtomicU64,
    injected: AtomicU64,
    on: AtomicBool,
}

impl FaultyStore {
    /// Asks `plan` about every commit.
    pub fn new(
        inner: Arc<dyn Store>,
        plan: impl FnMut(u64, &Txn) -> Fault + Send + 'static,
    ) -> Arc<Self> {
        Arc::new(FaultyStore {
            inner,
            plan: Mutex::new(Box::new(plan)),
            commits: AtomicU64::new(0),
            injected: AtomicU64::new(0),
            on: AtomicBool::new(true),
        })
    }

    /// Faults of all sorts at this rate, by a seed.
    pub fn random(inner: Arc<dyn Store>, seed: u64, rate: f64) -> Arc<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        Self::new(inner, move |_, _| {
            if random.random::<f64>() >= rate {
                return Fault::None;
            }
            match random.random_range(0..3) {
                0 => Fault::Before,
                1 => Fault::After,
                _ => Fault::Late(Duration::from_millis(random.random_range(1..3000))),
            }
        })
    }

    /// Lets everything through from now on, or no longer.
    pub fn enable(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// Faults so far.
    pub fn injected(&self) -> u64 {
        self.injected.load(Ordering::Relaxed)
    }

    /// Commits so far.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Store for FaultyStore {
    fn info(&self) -> StoreInfo {
        self.inner.info()
    }

    fn stats(&self) -> StoreStats {
        self.inner.stats()
    }

    async fn current(&self) -> Result<Version, StoreError> {
        self.inner.current().await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        self.inner.get(key).await
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage, StoreError> {
        self.inner.list(request).await
    }

    async fn commit(&self, txn: Txn) -> Result<Versions, StoreError> {
        let n = self.commits.fetch_add(1, Ordering::Relaxed);
        let fault = if self.on.load(Ordering::Relaxed) {
            (self.plan.lock())(n, &txn)
        } else {
            Fault::None
        };
        if fault != Fault::None {
            self.injected.fetch_add(1, Ordering::Relaxed);
        }
        match fault {
            Fault::None => self.inner.commit(txn).await,
            Fault::Before => Err(StoreError::Unavailable("injected".into())),
            Fault::After => match self.inner.commit(txn).await {
                Ok(_) => Err(StoreError::Unknown("injected".into())),
                refused => refused,
            },
            Fault::Late(time) => {
                tokio::time::sleep(time).await;
                self.inner.commit(txn).await
            }
        }
    }

    async fn watch(
        &self,
        from: Version,
    ) -> Result<BoxStream<'static, Result<EventBatch, StoreError>>, StoreError> {
        self.inner.watch(from).await
    }

    async fn resume_point(&self, events_max: usize) -> Result<Version, StoreError> {
        self.inner.resume_point(events_max).await
    }

    async fn compact(&self, version: Version) -> Result<(), StoreError> {
        self.inner.compact(version).await
    }

    async fn expire(&self, prefix: &str, now_unix: u64) -> Result<usize, StoreError> {
        self.inner.expire(prefix, now_unix).await
    }
}
