//! Sends groups to etcd and tells each unit of a group what came of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use etcd_client::{Compare, CompareOp, KvClient, TxnOp, TxnOpResponse};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::codec::{self, Kind, Names, SLOTS};
use super::combine::{Combiner, Unit};
use super::{CALL_MAX, Pace};
use crate::counters::Counters;
use crate::{Expect, Guard, Record, StoreError, Txn, Write, check};

/// Units that wait in the combiner when further calls queue in front of it; the last one taken may
/// have brought many at once.
const WAITING_MAX: usize = 8192;
/// Transactions that a unit may be part of without being decided. Each failed one decides at least
/// one unit, so a unit that reaches this meets something else than conflicts.
const TRIES_MAX: usize = 256;

/// Keys guarded by value that are remembered; leases are few.
const FENCES_MAX: usize = 10_000;

/// What a group's task hands back to the combiner.
struct Finished {
    txns: Vec<Txn>,
    again: Vec<Unit>,
}

/// Everything that a group's task needs.
pub(super) struct Sender {
    pub kv: KvClient,
    pub names: Names,
    pub counters: Arc<Counters>,
    pub pace: Arc<Pace>,
    /// The last call failed in transport: ask before writing, so that a caller hears "nothing was
    /// written" and not "unknown" for as long as etcd is away.
    pub suspect: AtomicBool,
    /// What keys guarded by value were last seen to hold.
    pub fences: Mutex<HashMap<Arc<str>, Record>>,
}

/// Runs until every caller is gone.
pub(super) async fn run(mut units: mpsc::Receiver<Vec<Unit>>, sender: Arc<Sender>) {
    let mut combiner = Combiner::default();
    let (done, mut finished) = mpsc::unbounded_channel::<Finished>();
    loop {
        while let Some(group) = combiner.next() {
            let (sender, done) = (sender.clone(), done.clone());
            tokio::spawn(async move {
                let outcome = sender.group(group).await;
                // The receiver may be gone when the store was dropped.
                drop(done.send(outcome));
            });
        }
        let room = combiner.waiting() < WAITING_MAX;
        tokio::select! {
            Some(outcome) = finished.recv() => combiner.finished(&outcome.txns, outcome.again),
            more = units.recv(), if room => match more {
                Some(more) => {
                    combiner.extend(more);
                    // Whatever else is there already goes into the same group.
                    while combiner.waiting() < WAITING_MAX {
                        let Ok(more) = units.try_recv() else { break };
                        combiner.extend(more);
                    }
                }
                None => return,
            },
        }
    }
}

impl Sender {
    async fn group(&self, units: Vec<Unit>) -> Finished {
        let txns: Vec<Txn> = units.iter().map(|unit| unit.txn.clone()).collect();
        let again = match self.send(&units).await {
            Ok(Ok(revision)) => {
                self.counters.group();
                let mut ordinal = 0;
                for unit in units {
                    let first = ordinal;
                    ordinal += unit.txn.writes.len() as u64;
                    let versions = (first..ordinal).map(|i| self.names.version(revision, i));
                    unit.reply.send(Ok(versions.collect()));
                }
                self.pace.note(self.names.version(revision, 0));
                Vec::new()
            }
            Ok(Err(found)) => decide(units, &found),
            Err(error) => {
                for unit in units {
                    unit.reply.send(Err(error.clone()));
                }
                Vec::new()
            }
        };
        Finished { txns, again }
    }

    /// One flat transaction. Inside: its revision, or what the guarded keys hold because it failed.
    async fn send(
        &self,
        units: &[Unit],
    ) -> Result<Result<i64, HashMap<Arc<str>, Record>>, StoreError> {
        if self.suspect.load(Ordering::Relaxed) {
            let mut kv = self.kv.clone();
            match timeout(CALL_MAX, kv.get(self.names.head(), None)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(codec::error(Kind::Read, &error)),
                Err(_) => return Err(super::no_answer()),
            }
            self.suspect.store(false, Ordering::Relaxed);
        }
        let txn = self.build(units);
        let mut kv = self.kv.clone();
        let answer = match timeout(CALL_MAX, kv.txn(txn)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                self.suspect.store(true, Ordering::Relaxed);
                return Err(codec::error(Kind::Write, &error));
            }
            Err(_) => {
                self.suspect.store(true, Ordering::Relaxed);
                let text = "etcd: no answer in time".to_owned();
                return Err(StoreError::Unknown(text));
            }
        };
        if answer.succeeded() {
            let revision = answer.header().map_or(0, |header| header.revision());
            return Ok(Ok(revision));
        }
        let mut found = HashMap::new();
        for response in answer.op_responses() {
            if let TxnOpResponse::Get(get) = response {
                let records = get.kvs().iter().filter_map(|kv| self.names.record(kv));
                found.extend(records.map(|record| (record.key.clone(), record)));
            }
        }
        self.remember(units, &found);
        Ok(Err(found))
    }

    /// Notes what the keys guarded by value hold now.
    fn remember(&self, units: &[Unit], found: &HashMap<Arc<str>, Record>) {
        let mut fences = self.fences.lock();
        if fences.len() > FENCES_MAX {
            fences.clear();
        }
        for guard in units.iter().flat_map(|unit| &unit.txn.guards) {
            if matches!(guard.expect, Expect::Value(_)) {
                match found.get(&guard.key) {
                    Some(record) => fences.insert(guard.key.clone(), record.clone()),
                    None => fences.remove(&guard.key),
                };
            }
        }
    }

    fn build(&self, units: &[Unit]) -> etcd_client::Txn {
        let mut compares = Vec::new();
        let mut reads = Vec::new();
        let mut writes = Vec::new();
        let mut seen: HashMap<&str, Vec<&Expect>> = HashMap::new();
        for unit in units {
            for guard in &unit.txn.guards {
                let same = seen.entry(&guard.key).or_insert_with(|| {
                    reads.push(TxnOp::get(self.names.full(&guard.key), None));
                    Vec::new()
                });
                // A fence that many units share is compared once.
                if !same.contains(&&guard.expect) {
                    same.push(&guard.expect);
                    self.compare(guard, unit.checks_ordinals(), &mut compares);
                }
            }
            for write in &unit.txn.writes {
                let ordinal = writes.len();
                writes.push(match write {
                    Write::Put {
                        key,
                        value,
                        expires_at,
                    } => {
                        let value = codec::encode(ordinal, *expires_at, value);
                        TxnOp::put(self.names.full(key), value, None)
                    }
                    Write::Delete { key } => TxnOp::delete(self.names.full(key), None),
                });
            }
        }
        writes.push(TxnOp::put(self.names.head(), Vec::new(), None));
        etcd_client::Txn::new()
            .when(compares)
            .and_then(writes)
            .or_else(reads)
    }

    fn compare(&self, guard: &Guard, ordinals: bool, out: &mut Vec<Compare>) {
        let key = self.names.full(&guard.key);
        match &guard.expect {
            Expect::Absent => out.push(Compare::version(key, CompareOp::Equal, 0)),
            Expect::Version(version) => {
                let revision = self.names.revision(*version);
                if ordinals {
                    let ordinal = version % SLOTS;
                    let from = codec::ordinal_prefix(ordinal);
                    let to = codec::ordinal_prefix(ordinal + 1);
                    out.push(Compare::value(key.clone(), CompareOp::Greater, from));
                    out.push(Compare::value(key.clone(), CompareOp::Less, to));
                }
                // Revision 0 would mean "absent"; no version of ours has it.
                let revision = if revision == 0 { -1 } else { revision };
                out.push(Compare::mod_revision(key, CompareOp::Equal, revision));
            }
            // A stored value has a header that the caller does not know, so the comparison is on
            // the revision at which the key was seen to hold these bytes. If it is not known, the
            // comparison fails, the else-branch reads the key and the unit is tried again.
            Expect::Value(value) => {
                let fences = self.fences.lock();
                let seen = fences.get(&guard.key).filter(|seen| seen.value == *value);
                let revision = seen.map_or(-1, |seen| self.names.revision(seen.version));
                out.push(Compare::mod_revision(key, CompareOp::Equal, revision));
            }
        }
    }
}

/// Answers the units whose guards failed and returns the others, to be tried again at once.
fn decide(units: Vec<Unit>, found: &HashMap<Arc<str>, Record>) -> Vec<Unit> {
    let mut again = Vec::new();
    for mut unit in units {
        let failed = unit.txn.guards.iter().find(|guard| {
            let record = found.get(&guard.key);
            let seen = record.map(|record| (record.version, record.value.as_ref()));
            !check::holds(&guard.expect, seen)
        });
        if let Some(guard) = failed {
            let (guard, actual) = (guard.clone(), found.get(&guard.key).cloned());
            unit.reply.send(Err(StoreError::Conflict { guard, actual }));
            continue;
        }
        unit.tries += 1;
        if unit.tries > TRIES_MAX {
            let text = "etcd refuses the transaction although its guards hold".to_owned();
            unit.reply.send(Err(StoreError::Unavailable(text)));
            continue;
        }
        again.push(unit);
    }
    again
}
