//! The store on one machine's disk: two ordered tables in a fjall database, written by one thread.
//!
//! An acknowledged commit is on disk (fdatasync before every acknowledgement). The directory is
//! locked against a second process. Damage is reported, never silently dropped. See
//! `docs/designs/store.md` for why fjall, and for what the power-cut test found.

mod codec;
mod disk;
mod journal;
mod queue;
mod tail;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::{oneshot, watch};

use crate::counters::Counters;
use crate::history::{self, History};
use crate::{
    CommitResult, EventBatch, ListPage, ListRequest, Record, Store, StoreError, StoreInfo,
    StoreStats, Txn, Version, check, expiry,
};
use disk::{Layout, View};
use queue::{Op, Queue};
use tail::Tail;
use writer::Writer;

/// How long a reader waits while the database is being opened again after a failed write.
const REOPEN_WAIT: Duration = Duration::from_secs(5);

/// How an [`EmbeddedStore`] keeps its data.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// History is kept at least this long, unless it grows beyond `history_bytes`.
    pub history_time: Duration,
    /// Most bytes of history; the oldest goes first.
    pub history_bytes: u64,
    /// Writes are refused below this much free disk, so that the database never meets a full one in mid-write.
    pub free_bytes_min: u64,
    /// Memory for writes that are not in tables yet, per table.
    pub memtable_bytes: u64,
    /// The store's versions start above this. Set it once after restoring a backup, to more than the
    /// lost store's newest version: older watchers then learn that they must list again.
    pub version_floor: Version,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            history_time: Duration::from_secs(600),
            history_bytes: 1 << 30,
            // A journal (64 MiB, allocated as it fills) and a table being written out.
            free_bytes_min: 128 << 20,
            memtable_bytes: 32 << 20,
            version_floor: 0,
        }
    }
}

/// A [`Store`] in a directory.
pub struct EmbeddedStore {
    queue: Arc<Queue>,
    reader: Arc<Reader>,
    incarnation: String,
    writer: Option<JoinHandle<()>>,
}

/// What the writer and the readers both touch.
#[derive(Default)]
struct Shared {
    counters: Counters,
    tail: Tail,
}

fn closed_early() -> StoreError {
    StoreError::Unknown("the store closed before it answered".to_owned())
}

struct Reader {
    shared: Arc<Shared>,
    views: watch::Receiver<Option<Arc<View>>>,
    latest: watch::Receiver<Version>,
}

impl EmbeddedStore {
    /// Opens the store in `dir`, creating it if there is none. Blocks while it reads the disk. Fails
    /// with [`StoreError::Corrupt`] if the files are damaged and with Unavailable if another process has them.
    pub fn open(dir: impl AsRef<Path>, options: EmbeddedOptions) -> Result<Arc<Self>, StoreError> {
        let layout = Layout::lock(dir.as_ref())?;
        let (view, incarnation) = layout.open(&options)?;
        let queue = Queue::new();
        let shared = Arc::new(Shared::default());
        shared.tail.reset(view.version);
        let (writer, views) = Writer::new(layout, options, queue.clone(), shared.clone(), view);
        let latest = writer.latest.subscribe();
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| {
                StoreError::Unavailable(format!("cannot start the writer: {error}"))
            })?;
        Ok(Arc::new(Self {
            queue,
            reader: Arc::new(Reader {
                shared,
                views,
                latest,
            }),
            incarnation,
            writer: Some(writer),
        }))
    }
}

impl Drop for EmbeddedStore {
    /// Serves what is queued, syncs and closes, so that the directory can be opened again at once.
    fn drop(&mut self) {
        self.queue.close();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

impl Reader {
    /// The newest acknowledged state.
    async fn view(&self) -> Result<Arc<View>, StoreError> {
        if let Some(view) = self.views.borrow().clone() {
            return Ok(view);
        }
        let mut views = self.views.clone();
        let opened = views.wait_for(Option::is_some);
        if let Ok(Ok(view)) = tokio::time::timeout(REOPEN_WAIT, opened).await
            && let Some(view) = view.clone()
        {
            return Ok(view);
        }
        Err(StoreError::Unavailable("the store is not open".to_owned()))
    }

    /// Runs a read that walks the disk away from the async workers.
    async fn walk<T: Send + 'static>(
        &self,
        read: impl FnOnce(&View) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let view = self.view().await?;
        let walked = tokio::task::spawn_blocking(move || read(&view)).await;
        walked.map_err(|error| StoreError::Unavailable(format!("a read failed: {error}")))?
    }
}

#[async_trait]
impl History for Reader {
    async fn read_after(&self, from: Version) -> Result<EventBatch, StoreError> {
        // Compaction counts for watchers in memory as well: the answer may not depend on the tail's size.
        let view = self.view().await?;
        if from >= view.compacted
            && let Some(batch) = self.shared.tail.read_after(from)
        {
            return Ok(batch);
        }
        self.walk(move |view| view.read_after(from)).await
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    fn info(&self) -> StoreInfo {
        StoreInfo {
            backend: "embedded",
            durability: "fdatasync before each acknowledgement",
            incarnation: self.incarnation.clone(),
        }
    }

    fn stats(&self) -> StoreStats {
        self.reader.shared.counters.snapshot()
    }

    async fn current(&self) -> Result<Version, StoreError> {
        Ok(self.reader.view().await?.version)
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        let stored = self.reader.view().await?.get(key)?;
        Ok(stored.map(|stored| disk::record(key.into(), stored)))
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage, StoreError> {
        self.reader.walk(move |view| view.list(&request)).await
    }

    async fn commit(&self, txn: Txn) -> CommitResult {
        let mut outcomes = self.commit_all(vec![txn]).await;
        outcomes.pop().unwrap_or_else(|| Err(closed_early()))
    }

    async fn commit_all(&self, txns: Vec<Txn>) -> Vec<CommitResult> {
        let (txns, refused) = check::sift(txns);
        let mut parts = queue::parts(txns).into_iter();
        let mut answers = Vec::with_capacity(parts.len());
        while let Some(txns) = parts.next() {
            let count = txns.len();
            let (reply, answer) = oneshot::channel();
            if let Err(error) = self.queue.push(Op::Commit { txns, reply }).await {
                // What comes after would only wait for a place once more.
                let rest: usize = parts.map(|part| part.len()).sum();
                answers.push((count + rest, Err(error)));
                break;
            }
            answers.push((count, Ok(answer)));
        }
        let mut outcomes = Vec::new();
        for (count, answer) in answers {
            match answer {
                Ok(answer) => match answer.await {
                    Ok(part) => outcomes.extend(part),
                    Err(_) => outcomes.extend(vec![Err(closed_early()); count]),
                },
                Err(error) => outcomes.extend(vec![Err(error); count]),
            }
        }
        let outcomes = check::weave(outcomes, refused);
        for outcome in &outcomes {
            self.reader.shared.counters.outcome(outcome);
        }
        outcomes
    }

    async fn watch(
        &self,
        from: Version,
    ) -> Result<BoxStream<'static, Result<EventBatch, StoreError>>, StoreError> {
        let view = self.reader.view().await?;
        view.check_readable(from)?;
        let latest = self.reader.latest.clone();
        Ok(history::pull(self.reader.clone(), from, latest))
    }

    async fn resume_point(&self, events_max: usize) -> Result<Version, StoreError> {
        let walk = move |view: &View| {
            let point = view.version.saturating_sub(events_max as Version);
            view.txn_boundary(point.max(view.compacted))
        };
        self.reader.walk(walk).await
    }

    async fn compact(&self, version: Version) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(Op::Compact { version, reply }).await?;
        let closed = |_| Err(StoreError::Unavailable("the store was closed".to_owned()));
        answer.await.unwrap_or_else(closed)
    }

    async fn expire(&self, prefix: &str, now_unix: u64) -> Result<usize, StoreError> {
        expiry::expire(self, prefix, now_unix).await
    }
}
