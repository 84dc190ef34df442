//! The [`Store`] trait and the plain types that cross it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

/// Position of one write in the store's history: strictly increasing, one per written key, over
/// all keys. On etcd it is `revision * 1000 + index in the transaction`; the other backends count.
pub type Version = u64;

/// Most writes that one [`Txn`] may hold. etcd's default limit is 128 operations, and fence keys
/// and guards share them.
pub const TXN_WRITES_MAX: usize = 100;

/// Most bytes that the values of one [`Txn`] may hold: below etcd's 1.5 MB request limit with room for keys.
pub const TXN_BYTES_MAX: usize = 1_400_000;

/// One stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Full key, for example `/rota.dev/jobs/default/hello`; every key begins with a slash.
    pub key: Arc<str>,
    /// The bytes as written.
    pub value: Bytes,
    /// Version of the write that put these bytes here.
    pub version: Version,
    /// Unix seconds after which [`Store::expire`] may remove the record; `None` keeps it for ever.
    pub expires_at: Option<u64>,
}

/// What must be true of one key for a [`Txn`] to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists at exactly this version.
    Version(Version),
    /// The key exists and holds exactly these bytes (fence keys).
    Value(Bytes),
}

/// A precondition on a key; the key need not be one that the transaction writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The key looked at.
    pub key: Arc<str>,
    /// What must hold.
    pub expect: Expect,
}

/// One write. A key appears at most once among the writes of a [`Txn`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Creates or replaces.
    Put {
        /// The key written.
        key: Arc<str>,
        /// Its new bytes.
        value: Bytes,
        /// Unix seconds after which the record may be expired.
        expires_at: Option<u64>,
    },
    /// Removes. Must be guarded by [`Expect::Version`] or [`Expect::Value`] on the same key, so that it never misses.
    Delete {
        /// The key removed.
        key: Arc<str>,
    },
}

impl Write {
    /// The key that this write touches.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Write::Put { key, .. } | Write::Delete { key } => key,
        }
    }
}

/// A small unit of work that applies whole or not at all. Independent units of many callers are
/// committed together by the write combiner; each still succeeds or fails by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub guards: Vec<Guard>,
    /// Applied in this order, each with its own version. May not be empty.
    pub writes: Vec<Write>,
}

/// What a commit says when it applied: one version per write, in order.
pub type Versions = Vec<Version>;

/// What came of one [`Txn`].
pub type CommitResult = Result<Versions, StoreError>;

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A guard did not hold; nothing was written.
    #[error("precondition on {} failed", guard.key)]
    Conflict {
        /// The first guard that failed.
        guard: Guard,
        /// What the key held at that time.
        actual: Option<Record>,
    },
    /// The wanted version is below what compaction kept.
    #[error("version {wanted} is compacted; the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        wanted: Version,
        /// Oldest version that can still be listed or resumed from.
        oldest: Version,
    },
    /// The wanted version has not been written yet.
    #[error("version {wanted} is in the future; the current one is {current}")]
    Future {
        /// What was asked for.
        wanted: Version,
        /// Newest version.
        current: Version,
    },
    /// Larger than [`TXN_WRITES_MAX`] or [`TXN_BYTES_MAX`]; nothing was written.
    #[error("transaction too large: {0}")]
    TooLarge(String),
    /// The call breaks a rule of this trait (empty transaction, key twice, unguarded delete); nothing was written.
    #[error("invalid transaction: {0}")]
    Invalid(String),
    /// Nothing was written; trying again later can help (backend gone, queue full, disk full).
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// The write may or may not have happened: look before trying again.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The stored bytes are damaged; names what and where.
    #[error("store corrupt: {0}")]
    Corrupt(String),
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// Only keys that start with this.
    pub prefix: String,
    /// Only keys strictly greater than this (a continue token's last key).
    pub after: Option<String>,
    /// At most this many records; 0 for all.
    pub limit: usize,
    /// The state as of this version; `None` for the newest.
    pub at: Option<Version>,
}

/// One page of a list, in key order.
#[derive(Clone, Debug)]
pub struct ListPage {
    /// The records.
    pub items: Vec<Record>,
    /// The version whose state this is: every write up to it is reflected and none after it.
    pub version: Version,
    /// Whether more keys follow the last item.
    pub more: bool,
}

/// One write as a watcher sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The write's version.
    pub version: Version,
    /// The key.
    pub key: Arc<str>,
    /// New bytes, or `None` for a removal.
    pub value: Option<Bytes>,
    /// Expiry as written.
    pub expires_at: Option<u64>,
}

/// What a watch yields: groups of events in version order (a group never splits a transaction), or
/// progress without events: everything up to `version` has been delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventBatch {
    /// Events in version order; may be empty (then this is progress only).
    pub events: Vec<Event>,
    /// Every event at or below this version has been delivered, this batch included.
    pub version: Version,
}

/// Who this store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreInfo {
    /// `memory`, `embedded` or `etcd`.
    pub backend: &'static str,
    /// What an acknowledgement means, for benchmarks and operators: for example `fdatasync before each acknowledgement`.
    pub durability: &'static str,
    /// Changes when the store is restored or moved, so that clients of the old one relist.
    pub incarnation: String,
}

/// Counters for /metrics. All since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Transactions that applied.
    pub commits: u64,
    /// Writes in them.
    pub writes: u64,
    /// Groups (synced batches or etcd transactions) that carried them.
    pub groups: u64,
    /// Transactions refused by a guard.
    pub conflicts: u64,
    /// Calls that ended Unavailable or Unknown.
    pub failures: u64,
}

/// A durable, ordered, versioned map with history. See the crate docs for the promises.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Who this is.
    fn info(&self) -> StoreInfo;

    /// Counters since start.
    fn stats(&self) -> StoreStats;

    /// The newest version such that everything acknowledged before this call is at or below it (a linearizable read).
    async fn current(&self) -> Result<Version, StoreError>;

    /// One record, linearizable.
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError>;

    /// A consistent cut of a key range, in key order.
    async fn list(&self, request: ListRequest) -> Result<ListPage, StoreError>;

    /// Applies a transaction, or nothing. Returns after it is durable. Calls are combined with
    /// those of other callers; the order among concurrent calls is the store's.
    async fn commit(&self, txn: Txn) -> CommitResult;

    /// Applies independent transactions and answers each, in their order: what as many concurrent
    /// calls of [`Store::commit`] would do, handed over at once. None waits for another's outcome.
    async fn commit_all(&self, txns: Vec<Txn>) -> Vec<CommitResult> {
        futures::future::join_all(txns.into_iter().map(|txn| self.commit(txn))).await
    }

    /// Every event after `from`, in order, of all keys, without end. Ends with one error item when
    /// the watch cannot go on ([`StoreError::Compacted`] or Unavailable): the caller starts again from
    /// the last version it saw. `from` below the compacted version is an error here or as first item.
    async fn watch(
        &self,
        from: Version,
    ) -> Result<BoxStream<'static, Result<EventBatch, StoreError>>, StoreError>;

    /// A version that can be listed and resumed from, as old as possible but with about
    /// `events_max` events after it at most. Lets a starting API server rebuild recent history.
    async fn resume_point(&self, events_max: usize) -> Result<Version, StoreError>;

    /// Forgets history below `version` (states at `version` and later stay readable). Idempotent;
    /// never moves backwards.
    async fn compact(&self, version: Version) -> Result<(), StoreError>;

    /// Removes records under `prefix` whose `expires_at` is at or before `now_unix`, in guarded
    /// batches; returns how many went. Safe to call from several servers at once.
    async fn expire(&self, prefix: &str, now_unix: u64) -> Result<usize, StoreError>;
}
