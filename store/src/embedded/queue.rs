//! The bounded queue between callers (async) and the writer (a thread).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot};

use crate::{CommitResult, StoreError, Txn, Version, Write};

/// Transactions that may wait for the writer. Above [`OP_TXNS_MAX`], or an operation would never fit.
const QUEUE_MAX: usize = 16_384;
/// How long a caller waits for a place before it is told to come back later.
const QUEUE_WAIT: Duration = Duration::from_secs(5);
/// Writes in one synced group: enough to make the sync's cost vanish, few enough to keep latency low.
const GROUP_WRITES_MAX: usize = 4096;
/// Bytes of values in one synced group.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// Transactions in one operation: small enough to share a group with other callers' operations.
pub(super) const OP_TXNS_MAX: usize = 512;
/// Bytes of values in one operation, unless its only transaction has more. A group is operations
/// until its limit, so this is also by how much it may pass that.
pub(super) const OP_BYTES_MAX: usize = 1 << 20;

/// What the writer is asked for.
pub(super) enum Op {
    /// Independent transactions of one caller, [`OP_TXNS_MAX`] at most; one answer for each.
    Commit {
        txns: Vec<Txn>,
        reply: oneshot::Sender<Vec<CommitResult>>,
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

/// Cuts transactions into operations' worth, in their order.
pub(super) fn parts(txns: Vec<Txn>) -> Vec<Vec<Txn>> {
    let mut parts: Vec<Vec<Txn>> = Vec::with_capacity(txns.len() / OP_TXNS_MAX + 1);
    let mut bytes = 0;
    for txn in txns {
        let more = bytes_of(&txn);
        match parts.last_mut() {
            Some(part) if part.len() < OP_TXNS_MAX && bytes + more <= OP_BYTES_MAX => {
                bytes += more;
                part.push(txn);
            }
            _ => {
                bytes = more;
                parts.push(vec![txn]);
            }
        }
    }
    parts
}

fn bytes_of(txn: &Txn) -> usize {
    let size = |write: &Write| match write {
        Write::Put { value, .. } => value.len(),
        Write::Delete { .. } => 0,
    };
    txn.writes.iter().map(size).sum()
}

impl Op {
    /// Places in the queue that it takes.
    fn places(&self) -> u32 {
        match self {
            Op::Commit { txns, .. } => u32::try_from(txns.len()).unwrap_or(u32::MAX),
            Op::Compact { .. } => 1,
        }
    }

    /// Writes and bytes of values.
    fn size(&self) -> (usize, usize) {
        let Op::Commit { txns, .. } = self else {
            return (0, 0);
        };
        txns.iter().fold((0, 0), |(writes, bytes), txn| {
            (writes + txn.writes.len(), bytes + bytes_of(txn))
        })
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store was closed".to_owned())
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
        let places = op.places();
        let permit = match self.places.try_acquire_many(places) {
            Ok(permit) => permit,
            Err(_) => {
                match tokio::time::timeout(QUEUE_WAIT, self.places.acquire_many(places)).await {
                    Ok(Ok(permit)) => permit,
                    Ok(Err(_)) => return Err(closed()),
                    Err(_) => {
                        return Err(StoreError::Unavailable(
                            "the write queue is full".to_owned(),
                        ));
                    }
                }
            }
        };
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(closed());
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
        let (mut writes, mut bytes, mut places) = (0, 0, 0);
        let mut group = Vec::new();
        while let Some(op) = waiting.ops.front() {
            let (more_writes, more_bytes) = op.size();
            writes += more_writes;
            bytes += more_bytes;
            if !group.is_empty() && (writes > GROUP_WRITES_MAX || bytes > GROUP_BYTES_MAX) {
                break;
            }
            places += op.places() as usize;
            group.extend(waiting.ops.pop_front());
        }
        self.places.add_permits(places);
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
        self.places.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txn(bytes: usize) -> Txn {
        Txn {
            guards: Vec::new(),
            writes: vec![Write::Put {
                key: "/k".into(),
                value: vec![0; bytes].into(),
                expires_at: None,
            }],
        }
    }

    #[test]
    fn operations_are_bounded_by_count_and_by_bytes() {
        let lengths = |txns| parts(txns).iter().map(Vec::len).collect::<Vec<_>>();
        assert!(lengths(Vec::new()).is_empty());
        assert_eq!(lengths(vec![txn(1); 1100]), [512, 512, 76]);
        let half = OP_BYTES_MAX / 2;
        assert_eq!(lengths(vec![txn(half), txn(half), txn(half)]), [2, 1]);
        let large = OP_BYTES_MAX + 1;
        assert_eq!(lengths(vec![txn(1), txn(large), txn(1)]), [1, 1, 1]);
    }
}
