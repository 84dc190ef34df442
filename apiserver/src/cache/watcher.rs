//! One watcher's bounded queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rota_store::Version;
use tokio::sync::Notify;

use super::kind::Change;
use crate::objects::Object;

/// Events that may wait for one watcher beyond its initial backlog; the events are shared with the
/// history, so this bounds how far a reader may fall behind, not how often bytes are copied.
const QUEUE_MAX: usize = 32_768;

/// Which events of a kind a watcher may want; what does not pass here is never queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    /// All.
    All,
    /// Only objects whose indexed field has, or had, this value.
    Field(Box<str>),
    /// Only the object with this key.
    Key(Box<str>),
}

/// Why a watch ended from our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// The reader was too slow, or history was lost: it must list again.
    Expired,
}

pub(super) struct Shared {
    pub(super) interest: Interest,
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Default)]
struct Queue {
    changes: VecDeque<Arc<Change>>,
    ended: Option<WatchEnd>,
    limit: usize,
}

impl Shared {
    pub(super) fn new(interest: Interest, backlog: VecDeque<Arc<Change>>) -> Self {
        let limit = backlog.len() + QUEUE_MAX;
        Shared {
            interest,
            queue: Mutex::new(Queue {
                changes: backlog,
                ended: None,
                limit,
            }),
            wake: Notify::new(),
        }
    }

    pub(super) fn push(&self, change: &Arc<Change>) {
        let mut queue = self.queue.lock();
        if queue.ended.is_some() {
            return;
        }
        if queue.changes.len() >= queue.limit {
            queue.changes.clear();
            queue.ended = Some(WatchEnd::Expired);
        } else {
            queue.changes.push_back(change.clone());
        }
        drop(queue);
        self.wake.notify_one();
    }

    pub(super) fn end(&self, why: WatchEnd) {
        let mut queue = self.queue.lock();
        queue.changes.clear();
        queue.ended = Some(why);
        drop(queue);
        self.wake.notify_one();
    }

    pub(super) fn is_empty(&self) -> bool {
        let queue = self.queue.lock();
        queue.changes.is_empty() && queue.ended.is_none()
    }
}

/// Counts itself among the live watchers for as long as it exists.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(super) fn new(live: &Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::Relaxed);
        Counted(live.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The reading end of a watch. Dropping it ends the watch.
pub struct WatchHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) counted: Counted,
    /// State to send as additions before the first change, when the watch starts from now.
    pub initial: Vec<Arc<Object>>,
    /// The version that `initial` stands for, or the one the watch starts after.
    pub start: Version,
}

impl WatchHandle {
    /// Watchers of the same kind, this one included.
    pub fn siblings(&self) -> usize {
        self.counted.0.load(Ordering::Relaxed)
    }

    /// Takes up to `most` waiting changes; waits for the first. An `Err` ends the watch.
    pub async fn next(&self, most: usize) -> Result<Vec<Arc<Change>>, WatchEnd> {
        loop {
            {
                let mut queue = self.shared.queue.lock();
                if !queue.changes.is_empty() {
                    let n = queue.changes.len().min(most);
                    return Ok(queue.changes.drain(..n).collect());
                }
                if let Some(why) = queue.ended {
                    return Err(why);
                }
            }
            self.shared.wake.notified().await;
        }
    }
}
