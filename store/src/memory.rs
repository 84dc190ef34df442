//! The store in memory: for tests, simulation and throw-away servers. Nothing survives the process.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::counters::Counters;
use crate::history::{self, History, Undo, WATCH_BATCH_MAX};
use crate::{
    CommitResult, Event, EventBatch, ListPage, ListRequest, Record, Store, StoreError, StoreInfo,
    StoreStats, Txn, Version, Write, check, expiry,
};

/// Events of history kept unless told otherwise; older ones are compacted by themselves.
pub const MEMORY_HISTORY_EVENTS: usize = 200_000;

/// A [`Store`] without a disk.
pub struct MemoryStore(Arc<Inner>);

/// Shared with the watches, which outlive the call that made them.
struct Inner {
    state: RwLock<State>,
    latest: watch::Sender<Version>,
    counters: Counters,
    history_max: usize,
    incarnation: String,
}

#[derive(Default)]
struct State {
    cur: BTreeMap<Arc<str>, Record>,
    /// Every version after `compacted`, one entry each, so an entry's place follows from its version.
    log: VecDeque<Logged>,
    version: Version,
    compacted: Version,
}

struct Logged {
    event: Event,
    /// What the key held before.
    before: Option<Record>,
    /// Whether this is the last write of its transaction.
    ends_txn: bool,
}

impl MemoryStore {
    /// An empty store with the default history.
    pub fn new() -> Arc<Self> {
        Self::with_history(MEMORY_HISTORY_EVENTS)
    }

    /// An empty store that keeps about `events` events of history (never less than the last transaction).
    pub fn with_history(events: usize) -> Arc<Self> {
        Arc::new(Self(Arc::new(Inner {
            state: RwLock::default(),
            latest: watch::Sender::new(0),
            counters: Counters::default(),
            history_max: events,
            incarnation: uuid::Uuid::new_v4().to_string(),
        })))
    }
}

impl Inner {
    fn apply(&self, txn: Txn) -> CommitResult {
        check::validate(&txn)?;
        let mut state = self.state.write();
        for guard in txn.guards {
            let found = state.cur.get(&guard.key);
            let seen = found.map(|record| (record.version, record.value.as_ref()));
            if !check::holds(&guard.expect, seen) {
                let actual = found.cloned();
                return Err(StoreError::Conflict { guard, actual });
            }
        }
        let count = txn.writes.len();
        let mut versions = Vec::with_capacity(count);
        for (i, write) in txn.writes.into_iter().enumerate() {
            state.version += 1;
            let version = state.version;
            versions.push(version);
            let (key, put) = match write {
                Write::Put {
                    key,
                    value,
                    expires_at,
                } => (key, Some((value, expires_at))),
                Write::Delete { key } => (key, None),
            };
            let before = match &put {
                Some((value, expires_at)) => state.cur.insert(
                    key.clone(),
                    Record {
                        key: key.clone(),
                        value: value.clone(),
                        version,
                        expires_at: *expires_at,
                    },
                ),
                None => state.cur.remove(&key),
            };
            let (value, expires_at): (Option<Bytes>, Option<u64>) = match put {
                Some((value, expires_at)) => (Some(value), expires_at),
                None => (None, None),
            };
            state.log.push_back(Logged {
                event: Event {
                    version,
                    key,
                    value,
                    expires_at,
                },
                before,
                ends_txn: i + 1 == count,
            });
        }
        let excess = state.log.len().saturating_sub(self.history_max);
        if excess > 0 {
            let target = state.compacted + excess as Version;
            let before_this = state.version - count as Version;
            state.compact_to(target.min(before_this));
        }
        // Announced under the lock, so that announcements never go backwards.
        self.latest.send_replace(state.version);
        Ok(versions)
    }
}

impl State {
    /// The place in `log` of the first event after `version`.
    fn index_after(&self, version: Version) -> usize {
        version.saturating_sub(self.compacted) as usize
    }

    fn compact_to(&mut self, version: Version) {
        if version > self.compacted {
            let drop = self.index_after(version).min(self.log.len());
            self.log.drain(..drop);
            self.compacted = version;
        }
    }

    fn check_readable(&self, wanted: Version) -> Result<(), StoreError> {
        if wanted < self.compacted {
            let oldest = self.compacted;
            return Err(StoreError::Compacted { wanted, oldest });
        }
        if wanted > self.version {
            let current = self.version;
            return Err(StoreError::Future { wanted, current });
        }
        Ok(())
    }
}

#[async_trait]
impl History for Inner {
    async fn read_after(&self, from: Version) -> Result<EventBatch, StoreError> {
        let state = self.state.read();
        state.check_readable(from)?;
        let mut events = Vec::new();
        for logged in state.log.iter().skip(state.index_after(from)) {
            events.push(logged.event.clone());
            if logged.ends_txn && events.len() >= WATCH_BATCH_MAX {
                break;
            }
        }
        let version = events.last().map_or(from, |event| event.version);
        Ok(EventBatch { events, version })
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn info(&self) -> StoreInfo {
        StoreInfo {
            backend: "memory",
            durability: "none: lost with the process",
            incarnation: self.0.incarnation.clone(),
        }
    }

    fn stats(&self) -> StoreStats {
        self.0.counters.snapshot()
    }

    async fn current(&self) -> Result<Version, StoreError> {
        Ok(self.0.state.read().version)
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        Ok(self.0.state.read().cur.get(key).cloned())
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage, StoreError> {
        let state = self.0.state.read();
        let version = request.at.unwrap_or(state.version);
        state.check_readable(version)?;
        let mut undo = Undo::new();
        for logged in state.log.iter().skip(state.index_after(version)) {
            if history::wanted(&request, &logged.event.key) {
                undo.entry(logged.event.key.clone())
                    .or_insert_with(|| logged.before.clone());
            }
        }
        let start = match &request.after {
            Some(after) if after.as_str() >= request.prefix.as_str() => {
                Bound::Excluded(after.as_str())
            }
            _ => Bound::Included(request.prefix.as_str()),
        };
        let newest = state
            .cur
            .range::<str, _>((start, Bound::Unbounded))
            .map(|(_, record)| record)
            .take_while(|record| record.key.starts_with(&request.prefix))
            .map(|record| Ok(record.clone()));
        let (items, more) =
            history::merge_page(newest, undo, request.limit, |_, record| Ok(record))?;
        Ok(ListPage {
            items,
            version,
            more,
        })
    }

    async fn commit(&self, txn: Txn) -> CommitResult {
        let outcome = self.0.apply(txn);
        if outcome.is_ok() {
            self.0.counters.group();
        }
        self.0.counters.outcome(&outcome);
        outcome
    }

    async fn watch(
        &self,
        from: Version,
    ) -> Result<BoxStream<'static, Result<EventBatch, StoreError>>, StoreError> {
        self.0.state.read().check_readable(from)?;
        Ok(history::pull(
            self.0.clone(),
            from,
            self.0.latest.subscribe(),
        ))
    }

    async fn resume_point(&self, events_max: usize) -> Result<Version, StoreError> {
        let state = self.0.state.read();
        let skip = state.log.len().saturating_sub(events_max);
        let mut point = state.compacted + skip as Version;
        // Not in the middle of a transaction: its state would be half of it.
        while point > state.compacted && point < state.version {
            let at = state.index_after(point) - 1;
            if state.log.get(at).is_none_or(|logged| logged.ends_txn) {
                break;
            }
            point += 1;
        }
        Ok(point)
    }

    async fn compact(&self, version: Version) -> Result<(), StoreError> {
        let mut state = self.0.state.write();
        if version > state.version {
            let current = state.version;
            return Err(StoreError::Future {
                wanted: version,
                current,
            });
        }
        state.compact_to(version);
        Ok(())
    }

    async fn expire(&self, prefix: &str, now_unix: u64) -> Result<usize, StoreError> {
        expiry::expire(self, prefix, now_unix).await
    }
}
