//! The write combiner: packs independent units of many callers into flat etcd transactions.
//!
//! Pure: it holds what waits and what is in flight and decides what may go next. Two units that
//! touch the same key never share a transaction and are never in flight together (a key only
//! guarded may be shared by any number of units, as a fence is), and keep their order.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{CommitResult, Expect, Guard, StoreError, Txn, Write};

/// Writes in one transaction, `/!head` aside: with it below etcd's limit of 128 operations.
const GROUP_WRITES_MAX: usize = crate::TXN_WRITES_MAX;
/// Comparisons in one transaction; the same limit applies to them.
const GROUP_COMPARES_MAX: usize = 120;
/// Bytes in one transaction; etcd takes 1.5 MiB.
const GROUP_BYTES_MAX: usize = crate::TXN_BYTES_MAX;
/// Transactions in flight while too few units wait to fill one. More would only make the groups
/// smaller, and a transaction costs etcd far more than a write in it: with two, 64 writers reach a
/// sixth less.
const IN_FLIGHT_MAX: usize = 1;
/// Transactions in flight while enough units wait to fill each: etcd syncs several at once.
const FULL_IN_FLIGHT_MAX: usize = 8;
/// Waiting units looked at per decision, so that a backlog behind one key costs no quadratic time.
const WINDOW: usize = 1024;

/// The answers to transactions that one caller handed over together. They are sent when the last
/// unit is gone, however it went: one that was never answered has an unknown outcome.
struct Answers {
    outcomes: Mutex<Vec<CommitResult>>,
    reply: Option<oneshot::Sender<Vec<CommitResult>>>,
}

impl Drop for Answers {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            drop(reply.send(std::mem::take(self.outcomes.get_mut())));
        }
    }
}

/// Where the outcome of one unit goes.
pub(super) struct Reply {
    answers: Arc<Answers>,
    at: usize,
}

impl Reply {
    /// Answers the unit.
    pub(super) fn send(self, outcome: CommitResult) {
        if let Some(place) = self.answers.outcomes.lock().get_mut(self.at) {
            *place = outcome;
        }
    }
}

/// One caller's transaction.
pub(super) struct Unit {
    pub txn: Txn,
    pub reply: Reply,
    /// How often it was in a transaction that failed through another unit.
    pub tries: usize,
}

/// Units of one caller, and where their outcomes come, in the order of the transactions.
pub(super) fn units(txns: Vec<Txn>) -> (Vec<Unit>, oneshot::Receiver<Vec<CommitResult>>) {
    let (reply, answer) = oneshot::channel();
    let unknown = StoreError::Unknown("the store closed before it answered".to_owned());
    let answers = Arc::new(Answers {
        outcomes: Mutex::new(vec![Err(unknown); txns.len()]),
        reply: Some(reply),
    });
    let unit = |(at, txn)| Unit {
        txn,
        reply: Reply {
            answers: answers.clone(),
            at,
        },
        tries: 0,
    };
    (txns.into_iter().enumerate().map(unit).collect(), answer)
}

impl Unit {
    /// Comparisons that its guards add to those already in the transaction (a shared fence adds none).
    fn compares(&self, group: &HashMap<Arc<str>, Expect>) -> usize {
        let each = |guard: &Guard| match &guard.expect {
            expect if group.get(&guard.key) == Some(expect) => 0,
            Expect::Version(_) if self.checks_ordinals() => 3,
            _ => 1,
        };
        self.txn.guards.iter().map(each).sum()
    }

    /// Whether there is room to compare the ordinal of versions too. A unit with very many guards
    /// compares revisions only: its versions were read, and a key has one write per revision.
    pub(super) fn checks_ordinals(&self) -> bool {
        self.txn.guards.len() * 3 <= GROUP_COMPARES_MAX
    }

    fn bytes(&self) -> usize {
        let size = |write: &Write| match write {
            Write::Put { key, value, .. } => key.len() + value.len(),
            Write::Delete { key } => key.len(),
        };
        self.txn.writes.iter().map(size).sum()
    }
}

/// Keys in use by a set of units.
#[derive(Default)]
struct Keys {
    written: HashSet<Arc<str>>,
    guarded: HashMap<Arc<str>, usize>,
}

impl Keys {
    fn clash(&self, txn: &Txn) -> bool {
        txn.writes.iter().any(|write| {
            self.written.contains(write.key()) || self.guarded.contains_key(write.key())
        }) || txn
            .guards
            .iter()
            .any(|guard| self.written.contains(&guard.key))
    }

    fn add(&mut self, txn: &Txn) {
        for write in &txn.writes {
            self.written.insert(write.key().clone());
        }
        for guard in &txn.guards {
            *self.guarded.entry(guard.key.clone()).or_default() += 1;
        }
    }

    fn remove(&mut self, txn: &Txn) {
        for write in &txn.writes {
            self.written.remove(write.key());
        }
        for guard in &txn.guards {
            if let Some(count) = self.guarded.get_mut(&guard.key) {
                *count -= 1;
                if *count == 0 {
                    self.guarded.remove(&guard.key);
                }
            }
        }
    }
}

/// What waits and what is in flight.
#[derive(Default)]
pub(super) struct Combiner {
    waiting: VecDeque<Unit>,
    busy: Keys,
    in_flight: usize,
}

impl Combiner {
    pub(super) fn extend(&mut self, units: Vec<Unit>) {
        self.waiting.extend(units);
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The next transaction's units, if there are any and there is room in flight.
    pub(super) fn next(&mut self) -> Option<Vec<Unit>> {
        let most = if self.waiting.len() < GROUP_WRITES_MAX {
            IN_FLIGHT_MAX
        } else {
            FULL_IN_FLIGHT_MAX
        };
        if self.in_flight >= most {
            return None;
        }
        // Keys of units passed over: later units on them stay behind.
        let mut held = Keys::default();
        let mut group = Vec::new();
        let mut passed = VecDeque::new();
        let (mut writes, mut compares, mut bytes) = (0, 0, 0);
        let mut looked = 0;
        let mut guards = HashMap::new();
        while let Some(unit) = self.waiting.pop_front() {
            looked += 1;
            let clash = self.busy.clash(&unit.txn) || held.clash(&unit.txn);
            let (w, c, b) = (unit.txn.writes.len(), unit.compares(&guards), unit.bytes());
            let fits = group.is_empty()
                || (writes + w <= GROUP_WRITES_MAX
                    && compares + c <= GROUP_COMPARES_MAX
                    && bytes + b <= GROUP_BYTES_MAX);
            if clash || !fits {
                held.add(&unit.txn);
                passed.push_back(unit);
                if !fits || looked == WINDOW {
                    break;
                }
                continue;
            }
            writes += w;
            compares += c;
            bytes += b;
            self.busy.add(&unit.txn);
            for guard in &unit.txn.guards {
                guards.insert(guard.key.clone(), guard.expect.clone());
            }
            group.push(unit);
        }
        while let Some(unit) = passed.pop_back() {
            self.waiting.push_front(unit);
        }
        if group.is_empty() {
            return None;
        }
        self.in_flight += 1;
        Some(group)
    }

    /// A transaction is over: frees the keys it used and takes back the units to try again, in
    /// front of all others.
    pub(super) fn finished(&mut self, txns: &[Txn], again: Vec<Unit>) {
        self.in_flight -= 1;
        for txn in txns {
            self.busy.remove(txn);
        }
        for unit in again.into_iter().rev() {
            self.waiting.push_front(unit);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn unit(writes: &[&str], guards: &[&str]) -> Unit {
        let put = |key: &&str| Write::Put {
            key: (*key).into(),
            value: bytes::Bytes::new(),
            expires_at: None,
        };
        let guard = |key: &&str| Guard {
            key: (*key).into(),
            expect: Expect::Absent,
        };
        let txn = Txn {
            guards: guards.iter().map(guard).collect(),
            writes: writes.iter().map(put).collect(),
        };
        units(vec![txn]).0.remove(0)
    }

    #[test]
    fn answers_come_together_and_a_unit_that_vanished_is_unknown() {
        let put = |key: &str| Txn {
            guards: Vec::new(),
            writes: vec![Write::Put {
                key: key.into(),
                value: bytes::Bytes::new(),
                expires_at: None,
            }],
        };
        let (mut units, mut answer) = units(vec![put("a"), put("b"), put("c")]);
        units.remove(2).reply.send(Ok(vec![3]));
        units.remove(0).reply.send(Ok(vec![1]));
        assert!(answer.try_recv().is_err(), "one is not answered yet");
        drop(units);
        let outcomes = answer.try_recv().unwrap();
        assert!(matches!(
            &outcomes[..],
            [Ok(first), Err(StoreError::Unknown(_)), Ok(third)] if first[..] == [1] && third[..] == [3]
        ));
    }

    fn keys(group: &[Unit]) -> Vec<&str> {
        let first = group.iter().map(|unit| unit.txn.writes[0].key());
        first.map(|key| key.as_ref()).collect()
    }

    #[test]
    fn units_on_one_key_go_one_after_another_and_a_shared_fence_does_not_part_them() {
        let mut combiner = Combiner::default();
        for (write, guard) in [
            ("a", "fence"),
            ("b", "fence"),
            ("a", "x"),
            ("c", "a"),
            ("d", "y"),
        ] {
            combiner.extend(vec![unit(&[write], &[guard])]);
        }
        combiner.extend(vec![unit(&["fence"], &[])]);
        let first = combiner.next().unwrap();
        assert_eq!(keys(&first), ["a", "b", "d"]);
        assert!(combiner.next().is_none(), "the rest clashes");
        let done: Vec<Txn> = first.into_iter().map(|unit| unit.txn).collect();
        combiner.finished(&done, Vec::new());
        let second = combiner.next().unwrap();
        assert_eq!(keys(&second), ["a", "fence"]);
        let done: Vec<Txn> = second.into_iter().map(|unit| unit.txn).collect();
        combiner.finished(&done, Vec::new());
        assert_eq!(keys(&combiner.next().unwrap()), ["c"]);
        assert_eq!(combiner.waiting(), 0);
        assert_eq!(combiner.in_flight, 1);
    }

    #[test]
    fn a_key_in_flight_stays_out_of_the_transactions_beside_it() {
        let mut combiner = Combiner::default();
        for i in 0..300 {
            let name = if i % 60 == 0 {
                "hot".to_owned()
            } else {
                format!("k{i}")
            };
            combiner.extend(vec![unit(&[name.as_str()], &[name.as_str()])]);
        }
        let first = combiner.next().unwrap();
        let beside = combiner.next().unwrap();
        let hot = |group: &[Unit]| keys(group).iter().filter(|key| **key == "hot").count();
        assert_eq!((first.len(), hot(&first)), (100, 1));
        assert_eq!((beside.len(), hot(&beside)), (100, 0));
        let done: Vec<Txn> = first.into_iter().map(|unit| unit.txn).collect();
        combiner.finished(&done, Vec::new());
        assert_eq!(combiner.next().map(|group| hot(&group)), Some(1));
    }

    #[test]
    fn groups_stay_within_the_limits_of_one_transaction() {
        let mut combiner = Combiner::default();
        for i in 0..250 {
            let name = format!("k{i}");
            combiner.extend(vec![unit(&[name.as_str()], &[name.as_str()])]);
        }
        let sizes: Vec<usize> = std::iter::from_fn(|| combiner.next())
            .map(|group| group.len())
            .collect();
        assert_eq!(
            sizes,
            [100, 100],
            "two full ones are in flight, the rest waits"
        );
        combiner.finished(&[], Vec::new());
        assert!(combiner.next().is_none(), "the rest would not fill one");
        combiner.finished(&[], Vec::new());
        assert_eq!(combiner.next().map(|group| group.len()), Some(50));
    }
}
