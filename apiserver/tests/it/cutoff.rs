//! A server that alone loses its store.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use rota_store::{
    CommitResult, EventBatch, ListPage, ListRequest, Record, Store, StoreError, StoreInfo,
    StoreStats, Txn, Version,
};
use tokio::sync::Notify;

use super::watches::events;
use super::*;

/// A store whose watches end when it is cut off, and cannot begin again.
struct Severable {
    inner: Arc<MemoryStore>,
    cut: Arc<(AtomicBool, Notify)>,
}

fn gone() -> StoreError {
    StoreError::Unavailable("cut off".into())
}

#[async_trait]
impl Store for Severable {
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
    async fn commit(&self, txn: Txn) -> CommitResult {
        self.inner.commit(txn).await
    }
    async fn watch(
        &self,
        from: Version,
    ) -> Result<BoxStream<'static, Result<EventBatch, StoreError>>, StoreError> {
        if self.cut.0.load(Ordering::SeqCst) {
            return Err(gone());
        }
        let cut = self.cut.clone();
        let severed = stream::once(async move {
            cut.1.notified().await;
            Err(gone())
        });
        let events = self.inner.watch(from).await?;
        Ok(stream::select(events, severed).boxed())
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

#[tokio::test(start_paused = true)]
async fn watches_fall_silent_so_that_their_clients_go_elsewhere() {
    let cut = Arc::new((AtomicBool::new(false), Notify::new()));
    let store = Severable {
        inner: MemoryStore::new(),
        cut: cut.clone(),
    };
    let api = Api {
        server: ApiServer::start(Arc::new(store), Config::default()).await,
        user: User::new("system:admin", &["system:masters"]),
    };
    let watch = "allowWatchBookmarks=true&timeoutSeconds=21";
    let bookmarks = async || {
        let seen = events(&api, watch, usize::MAX).await;
        seen.iter().filter(|e| e["type"] == "BOOKMARK").count()
    };
    assert!(bookmarks().await >= 4, "one every five seconds");
    cut.0.store(true, Ordering::SeqCst);
    cut.1.notify_one();
    while api.get("/readyz").await.code == 200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bookmarks().await, 0);
}
