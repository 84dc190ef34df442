//! The store in an etcd cluster, shared by any number of API servers.
//!
//! A version is `(revision + offset) * 1000 + index in the transaction`. All writes are flat
//! transactions under one prefix that end with the key `/!head`; all events come from watches over the whole
//! prefix. See `docs/designs/store.md`.

mod codec;
mod combine;
mod follow;
mod read;
mod write;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Identity, KvClient, TlsOptions, TxnOp,
    WatchClient,
};
use futures::stream::BoxStream;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::counters::Counters;
use crate::{
    CommitResult, EventBatch, ListPage, ListRequest, Record, Store, StoreError, StoreInfo,
    StoreStats, Txn, Version, check, expiry,
};
use codec::{Kind, Names, SLOTS, WHOLE};
use combine::Unit;
use write::Sender;

/// Longest wait for one answer of etcd; a caller hears of a dead cluster within 5 s.
const CALL_MAX: Duration = Duration::from_secs(4);
/// Longest wait for a place in the write queue.
const QUEUE_WAIT: Duration = Duration::from_secs(4);
/// Calls that may queue in front of the combiner, each with one or many transactions.
const QUEUE_MAX: usize = 8192;
/// Largest answer taken: a failed transaction reads back all keys it looked at.
const ANSWER_MAX: usize = 256 << 20;
/// Added to the revision offset when a store finds itself in another cluster than before: more
/// writes than any cluster makes, and room for many moves.
const MOVE_OFFSET: Version = 1_000_000_000;
/// Space between the samples that tell how old a version is.
const PACE: Duration = Duration::from_secs(1);

/// Where the etcd cluster is.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// URLs of the members, for example `https://10.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// PEM file of the CA that signed the members' certificates.
    pub ca: Option<PathBuf>,
    /// PEM file of the client certificate.
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// Everything of this store lies under this prefix; one store per prefix.
    pub prefix: String,
    /// [`Store::compact`] leaves at least this much history.
    pub history_time: Duration,
    /// The store's versions start above this. Set it once after restoring etcd from a backup, to
    /// more than the lost cluster's newest version: older watchers then learn that they must list again.
    pub version_floor: Version,
    /// Largest answer that a watch takes; a watcher that lags is sent 1,000 revisions at once. A larger
    /// one ends the watch, and the next one asks etcd for fragments of at most 2 MiB.
    pub answer_bytes_max: usize,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            ca: None,
            cert: None,
            key: None,
            prefix: "/rota".to_owned(),
            history_time: Duration::from_secs(600),
            version_floor: 0,
            answer_bytes_max: ANSWER_MAX,
        }
    }
}

/// Who the store is; the value of `/!store`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoreIdentity {
    incarnation: String,
    cluster: u64,
    offset: Version,
}

/// Remembers when versions were new.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<VecDeque<(Instant, Version)>>);

impl Pace {
    /// This version was the newest, or nearly so, just now.
    fn note(&self, version: Version) {
        let mut samples = self.0.lock();
        if samples.back().is_none_or(|(at, _)| at.elapsed() >= PACE) {
            samples.push_back((Instant::now(), version));
        }
    }

    /// The newest version known to be at least this old; forgets older ones.
    fn older_than(&self, age: Duration) -> Version {
        let mut samples = self.0.lock();
        while samples.get(1).is_some_and(|(at, _)| at.elapsed() >= age) {
            samples.pop_front();
        }
        match samples.front() {
            Some((at, version)) if at.elapsed() >= age => *version,
            _ => 0,
        }
    }
}

/// A [`Store`] in etcd.
pub struct EtcdStore {
    kv: KvClient,
    watch: WatchClient,
    names: Names,
    incarnation: String,
    counters: Arc<Counters>,
    pace: Arc<Pace>,
    units: mpsc::Sender<Vec<Unit>>,
    current: read::Calls,
    history_time: Duration,
    /// The last watch was given up because an answer was too large.
    split: Arc<AtomicBool>,
}

fn no_answer() -> StoreError {
    StoreError::Unavailable("etcd: no answer in time".to_owned())
}

fn read_pem(path: &PathBuf) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|error| {
        StoreError::Unavailable(format!("cannot read {}: {error}", path.display()))
    })
}

fn connect_options(options: &EtcdOptions) -> Result<ConnectOptions, StoreError> {
    let mut connect = ConnectOptions::new()
        .with_connect_timeout(Duration::from_secs(2))
        // A half-open connection is found within these, so a watch never hangs on one.
        .with_keep_alive(Duration::from_secs(2), Duration::from_secs(2))
        .with_keep_alive_while_idle(true);
    let secure = options.endpoints.iter().any(|url| url.starts_with("https"));
    if secure || options.ca.is_some() {
        let mut tls = TlsOptions::new();
        if let Some(ca) = &options.ca {
            tls = tls.ca_certificate(Certificate::from_pem(read_pem(ca)?));
        }
        match (&options.cert, &options.key) {
            (Some(cert), Some(key)) => {
                tls = tls.identity(Identity::from_pem(read_pem(cert)?, read_pem(key)?));
            }
            (None, None) => {}
            _ => {
                return Err(StoreError::Invalid(
                    "etcd needs both a client certificate and its key, or neither".to_owned(),
                ));
            }
        }
        connect = connect.with_tls(tls);
    }
    Ok(connect)
}

impl EtcdStore {
    /// Connects, and creates the store under its prefix if there is none. Needs a tokio runtime.
    pub async fn connect(options: EtcdOptions) -> Result<Arc<Self>, StoreError> {
        let connect = connect_options(&options)?;
        let client = |connect: ConnectOptions| async {
            let connected = Client::connect(options.endpoints.clone(), Some(connect));
            match timeout(CALL_MAX, connected).await {
                Ok(Ok(client)) => Ok(client),
                Ok(Err(error)) => Err(codec::error(Kind::Read, &error)),
                Err(_) => Err(no_answer()),
            }
        };
        let kv = client(connect.clone())
            .await?
            .kv_client()
            .max_decoding_message_size(ANSWER_MAX);
        // A connection of its own: watchers that do not read may fill its window, not that of writes.
        let watch = client(connect)
            .await?
            .watch_client()
            .max_decoding_message_size(options.answer_bytes_max);
        let mut names = Names::new(options.prefix.clone());
        let identity = identify(&kv, &mut names, options.version_floor).await?;

        let counters = Arc::new(Counters::default());
        let pace = Arc::new(Pace::default());
        let (units, queue) = mpsc::channel(QUEUE_MAX);
        let sender = Sender {
            kv: kv.clone(),
            names: names.clone(),
            counters: counters.clone(),
            pace: pace.clone(),
            suspect: AtomicBool::new(false),
            fences: Mutex::default(),
        };
        tokio::spawn(write::run(queue, Arc::new(sender)));
        let (current, calls) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(read::serve_current(calls, kv.clone(), names.clone()));
        Ok(Arc::new(Self {
            kv,
            watch,
            names,
            incarnation: identity.incarnation,
            counters,
            pace,
            units,
            current,
            history_time: options.history_time,
            split: Arc::default(),
        }))
    }
}

/// Reads who the store is, or decides it, so that all servers agree and versions only grow.
async fn identify(
    kv: &KvClient,
    names: &mut Names,
    floor: Version,
) -> Result<StoreIdentity, StoreError> {
    loop {
        let mut kv = kv.clone();
        let answer = match timeout(CALL_MAX, kv.get(names.store(), None)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(codec::error(Kind::Read, &error)),
            Err(_) => return Err(no_answer()),
        };
        let (cluster, revision) = answer
            .header()
            .map_or((0, 0), |header| (header.cluster_id(), header.revision()));
        let found = answer.kvs().first();
        let known: Option<StoreIdentity> = match found {
            Some(kv) => Some(serde_json::from_slice(kv.value()).map_err(|error| {
                StoreError::Corrupt(format!("etcd: the key /!store is not readable: {error}"))
            })?),
            None => None,
        };
        let mut offset = known.as_ref().map_or(0, |known| known.offset);
        let moved = known.as_ref().is_some_and(|known| known.cluster != cluster);
        if moved {
            offset += MOVE_OFFSET;
        }
        let newest = (revision.unsigned_abs() + offset) * SLOTS + WHOLE;
        let raised = floor > newest;
        if raised {
            offset += (floor - newest) / SLOTS + 1;
        }
        names.offset = offset;
        if let Some(known) = known
            && !moved
            && !raised
        {
            return Ok(known);
        }
        let decided = StoreIdentity {
            incarnation: uuid::Uuid::new_v4().to_string(),
            cluster,
            offset,
        };
        let value =
            serde_json::to_vec(&decided).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let seen = found.map_or(0, |kv| kv.mod_revision());
        // `/!head` with it, so that there is a newest version from the first moment.
        let txn = etcd_client::Txn::new()
            .when([Compare::mod_revision(names.store(), CompareOp::Equal, seen)])
            .and_then([
                TxnOp::put(names.store(), value, None),
                TxnOp::put(names.head(), Vec::new(), None),
            ]);
        match timeout(CALL_MAX, kv.txn(txn)).await {
            Ok(Ok(answer)) if answer.succeeded() => return Ok(decided),
            // Another server decided first: read what it wrote.
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(codec::error(Kind::Read, &error)),
            Err(_) => return Err(no_answer()),
        }
    }
}

#[async_trait]
impl Store for EtcdStore {
    fn info(&self) -> StoreInfo {
        StoreInfo {
            backend: "etcd",
            durability: "a majority of etcd members before each acknowledgement",
            incarnation: self.incarnation.clone(),
        }
    }

    fn stats(&self) -> StoreStats {
        self.counters.snapshot()
    }

    async fn current(&self) -> Result<Version, StoreError> {
        let version = read::ask_current(&self.current).await?;
        self.pace.note(version);
        Ok(version)
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        read::get(&self.kv, &self.names, key).await
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage, StoreError> {
        read::list(&self.kv, &self.names, request).await
    }

    async fn commit(&self, txn: Txn) -> CommitResult {
        let mut outcomes = self.commit_all(vec![txn]).await;
        let none = || StoreError::Unknown("the store did not answer".to_owned());
        outcomes.pop().unwrap_or_else(|| Err(none()))
    }

    async fn commit_all(&self, txns: Vec<Txn>) -> Vec<CommitResult> {
        let (txns, refused) = check::sift(txns);
        let count = txns.len();
        let (units, answer) = combine::units(txns);
        let outcomes = match self.units.send_timeout(units, QUEUE_WAIT).await {
            // The sender of an answer always answers, be it that the outcome is unknown.
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => {
                let full = StoreError::Unavailable("the write queue is full".to_owned());
                vec![Err(full); count]
            }
        };
        let outcomes = check::weave(outcomes, refused);
        for outcome in &outcomes {
            self.counters.outcome(outcome);
        }
        outcomes
    }

    async fn watch(
        &self,
        from: Version,
    ) -> Result<BoxStream<'static, Result<EventBatch, StoreError>>, StoreError> {
        let current = self.current().await?;
        if from > current {
            return Err(StoreError::Future {
                wanted: from,
                current,
            });
        }
        let oldest = self.names.offset * SLOTS;
        if from < oldest {
            return Err(StoreError::Compacted {
                wanted: from,
                oldest,
            });
        }
        follow::watch(
            self.watch.clone(),
            self.names.clone(),
            from,
            self.split.clone(),
        )
        .await
    }

    /// etcd cannot say which revision lies so many events back, and counts other stores' revisions
    /// too; a revision has at least one event, so going back that many revisions is never too far.
    async fn resume_point(&self, events_max: usize) -> Result<Version, StoreError> {
        let current = self.current().await?;
        let newest = self.names.revision(current);
        // 101 is the most one of our revisions holds: so at most `events_max` events follow.
        let back = i64::try_from(events_max / (crate::TXN_WRITES_MAX + 1)).unwrap_or(0);
        let mut point = newest - back.min(newest - 1);
        loop {
            let version = self.names.version(point, WHOLE);
            if point >= newest {
                return Ok(current);
            }
            let probe = ListRequest {
                prefix: "/!".to_owned(),
                after: None,
                limit: 1,
                at: Some(version),
            };
            match read::list(&self.kv, &self.names, probe).await {
                Ok(_) => return Ok(version),
                // Halve the distance until history reaches that far back.
                Err(StoreError::Compacted { .. }) => point += ((newest - point) / 2).max(1),
                Err(error) => return Err(error),
            }
        }
    }

    async fn compact(&self, version: Version) -> Result<(), StoreError> {
        let current = self.current().await?;
        if version > current {
            return Err(StoreError::Future {
                wanted: version,
                current,
            });
        }
        let allowed = if self.history_time.is_zero() {
            current
        } else {
            self.pace.older_than(self.history_time)
        };
        // One revision less than asked for: resuming after `version` starts one revision early.
        let revision = self.names.revision(version.min(allowed)) - 1;
        if revision < 1 {
            return Ok(());
        }
        let mut kv = self.kv.clone();
        match timeout(CALL_MAX, kv.compact(revision, None)).await {
            Ok(Ok(_)) => Ok(()),
            // Someone compacted further already.
            Ok(Err(error)) if error.to_string().contains("has been compacted") => Ok(()),
            Ok(Err(error)) => Err(codec::error(Kind::Read, &error)),
            Err(_) => Err(no_answer()),
        }
    }

    async fn expire(&self, prefix: &str, now_unix: u64) -> Result<usize, StoreError> {
        expiry::expire(self, prefix, now_unix).await
    }
}
