//! The bounded queue between callers (async) and the writer (a thread).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot};

use crate::{StoreError, Txn, Version, Versions, Write};

/// Transactions that may wait for the writer.
const QUEUE_MAX: usize = 16_384;
/// How long a caller waits for a place before it is told to come back later.
const QUEUE_WAIT: Duration = Duration::from_secs(5);
/// Writes in one synced group: enough to make the sync's cost vanish, few enough to keep latency low.
const GROUP_WRITES_MAX: usize = 4096;
/// Bytes of values in one synced group.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// What the writer is asked for.
pub(super) enum Op {
    Commit {
        txn: Txn,
        reply: oneshot::Sender<Result<Versions, StoreError>>,
    },
    Compact {
        version: Version,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
}

#[derive(Default)]
struct Waiting {
    ops: VecDeque<Op>,
    closed: bool,
}

/// Shared by the callers and the writer.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    places: Semaphore,
}

fn bytes_of(txn: &Txn) -> usize {
    let size = |write: &Write| match write {
        Write::Put { value, .. } => value.len(),
        Write::Delete { .. } => 0,
    };
    txn.writes.iter().map(size).sum()
}

impl Queue {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::default(),
            wake: Condvar::new(),
            places: Semaphore::new(QUEUE_MAX),
        })
    }

    /// Hands an operation to the writer; Unavailable if there is no place for too long.
    pub(super) async fn push(&self, op: Op) -> Result<(), StoreError> {
        let permit = match self.places.try_acquire() {
            Ok(permit) => permit,
            Err(_) => match tokio::time::timeout(QUEUE_WAIT, self.places.acquire()).await {
                Ok(Ok(permit)) => permit,
                _ => {
                    return Err(StoreError::Unavailable(
                        "the write queue is full".to_owned(),
                    ));
                }
            },
        };
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(StoreError::Unavailable("the store was closed".to_owned()));
        }
        permit.forget();
        waiting.ops.push_back(op);
        let first = waiting.ops.len() == 1;
        drop(waiting);
        if first {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// The next group, waiting for it until `until`. Empty when none came; `None` when closed and drained.
    pub(super) fn take(&self, until: Instant) -> Option<Vec<Op>> {
        let mut waiting = self.waiting.lock();
        while waiting.ops.is_empty() && !waiting.closed {
            if self.wake.wait_until(&mut waiting, until).timed_out() {
                break;
            }
        }
        if waiting.ops.is_empty() && waiting.closed {
            return None;
        }
        let (mut writes, mut bytes) = (0, 0);
        let mut group = Vec::new();
        while let Some(op) = waiting.ops.front() {
            if let Op::Commit { txn, .. } = op {
                writes += txn.writes.len();
                bytes += bytes_of(txn);
            }
            if !group.is_empty() && (writes > GROUP_WRITES_MAX || bytes > GROUP_BYTES_MAX) {
                break;
            }
            group.extend(waiting.ops.pop_front());
        }
        self.places.add_permits(group.len());
        Some(group)
    }

    /// Lets nothing more in; what is queued is still served.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.wake.notify_one();
    }

    /// Drops what is queued: its callers learn that the store is gone.
    pub(super) fn abandon(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        waiting.ops.clear();
    }
}
