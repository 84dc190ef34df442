//! Statuses on their way to the API: the latest per task, due times, retries. Pure; the core sends.
//!
//! A terminal status is kept until the server has taken it or can never take it. It needs no file
//! of its own: the exit behind it stays in the supervisor's journal until then.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

/// Statuses in one request: far below the server's 5,000 and 16 MiB, and soon answered.
pub const BATCH: usize = 1_000;
/// Refusals of one status that may be a matter of timing (the server's view may lag) before it is dropped.
const TRIES_FORBIDDEN: u32 = 10;
/// Longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// One status to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// uid of the Task.
    pub uid: String,
    /// Path of the Task.
    pub path: String,
    /// The status, as a merge patch of the status field.
    pub status: Value,
    /// Terminal.
    pub terminal: bool,
}

#[derive(Debug)]
struct Entry {
    item: Item,
    due_ms: u64,
    number: u64,
    tries: u32,
}

/// How the server answered one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Taken.
    Taken,
    /// Never will be: the object is gone, is another one, or is terminal already.
    Dropped,
    /// Again later.
    Retry,
}

/// All statuses not yet taken.
#[derive(Debug, Default)]
pub struct Outbox {
    entries: BTreeMap<String, Entry>,
    due: BTreeSet<(u64, String)>,
    next: u64,
}

/// A batch on its way: uid and number of each item.
#[derive(Debug)]
pub struct Batch {
    /// Body of the request.
    pub body: Vec<u8>,
    /// What is in it, in order.
    pub items: Vec<(String, u64)>,
}

impl Outbox {
    /// Queues a status for `due_ms`; it replaces an earlier one of the task. A terminal one is
    /// never replaced by another that is not.
    pub fn put(&mut self, item: Item, due_ms: u64) {
        if let Some(old) = self.entries.get(&item.uid) {
            if old.item.terminal && !item.terminal {
                return;
            }
            self.due.remove(&(old.due_ms, item.uid.clone()));
        }
        self.next += 1;
        self.due.insert((due_ms, item.uid.clone()));
        let entry = Entry {
            due_ms,
            number: self.next,
            tries: 0,
            item,
        };
        self.entries.insert(entry.item.uid.clone(), entry);
    }

    /// Forgets a task's status.
    pub fn remove(&mut self, uid: &str) {
        if let Some(old) = self.entries.remove(uid) {
            self.due.remove(&(old.due_ms, uid.to_string()));
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Statuses not yet taken.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// When the next one is due.
    pub fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| *at)
    }

    /// What is due now, as a request. `allowed` says whether a task may be reported at all now.
    pub fn batch(&self, now_ms: u64) -> Option<Batch> {
        let mut items = Vec::new();
        let mut list = Vec::new();
        for (_, uid) in self.due.range(..(now_ms + 1, String::new())).take(BATCH) {
            let Some(e) = self.entries.get(uid) else {
                continue;
            };
            items.push((uid.clone(), e.number));
            list.push(json!({
                "verb": "status", "path": e.item.path,
                "preconditions": {"uid": uid},
                "body": {"status": e.item.status},
            }));
        }
        if items.is_empty() {
            return None;
        }
        let body = json!({"atomic": false, "answer": "Version", "items": list});
        Some(Batch {
            body: body.to_string().into_bytes(),
            items,
        })
    }

    /// Takes the answer to one item of a batch; gives the item when it is over for good.
    pub fn settle(
        &mut self,
        uid: &str,
        number: u64,
        verdict: Verdict,
        now_ms: u64,
    ) -> Option<Item> {
        let entry = self.entries.get_mut(uid)?;
        if verdict == Verdict::Retry {
            entry.tries += 1;
            let tries = entry.tries;
            let at = now_ms + pause(tries).as_millis() as u64;
            let old = std::mem::replace(&mut entry.due_ms, at);
            self.due.remove(&(old, uid.to_string()));
            self.due.insert((at, uid.to_string()));
            return None;
        }
        // A newer status was put while this one was on its way: it is still to be sent, unless
        // the object cannot take any.
        if entry.number != number && verdict == Verdict::Taken {
            return None;
        }
        let due = entry.due_ms;
        self.due.remove(&(due, uid.to_string()));
        self.entries.remove(uid).map(|e| e.item)
    }

    /// What an answer means for an item.
    pub fn verdict(&self, uid: &str, code: u16) -> Verdict {
        match code {
            200..=299 => Verdict::Taken,
            // Gone, or a change that the object does not allow.
            404 | 410 | 422 => Verdict::Dropped,
            // 409 is another object of that name (the watch will tell), or one that kept changing.
            400 | 403 | 405 | 409 => {
                let tries = self.entries.get(uid).map_or(0, |e| e.tries);
                if tries >= TRIES_FORBIDDEN {
                    Verdict::Dropped
                } else {
                    Verdict::Retry
                }
            }
            _ => Verdict::Retry,
        }
    }
}

/// Pause before attempt number `tries` + 1.
pub fn pause(tries: u32) -> Duration {
    Duration::from_millis(100 << tries.min(10)).min(PAUSE_MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn item(uid: &str, phase: &str, terminal: bool) -> Item {
        Item {
            uid: uid.into(),
            path: format!("/p/{uid}"),
            status: json!({ "phase": phase }),
            terminal,
        }
    }

    #[test]
    fn the_latest_status_wins_and_terminal_stays() {
        let mut o = Outbox::default();
        o.put(item("a", "Running", false), 500);
        assert!(o.batch(499).is_none());
        o.put(item("a", "Succeeded", true), 10);
        o.put(item("a", "Running", false), 10);
        let b = o.batch(10).unwrap();
        assert_eq!(b.items.len(), 1);
        assert!(String::from_utf8(b.body).unwrap().contains("Succeeded"));
    }

    #[test]
    fn a_status_put_while_another_is_on_its_way_is_sent_too() {
        let mut o = Outbox::default();
        o.put(item("a", "Running", false), 0);
        let b = o.batch(0).unwrap();
        o.put(item("a", "Failed", true), 0);
        assert_eq!(o.settle("a", b.items[0].1, Verdict::Taken, 1), None);
        let b = o.batch(1).unwrap();
        assert!(String::from_utf8(b.body).unwrap().contains("Failed"));
        assert!(
            o.settle("a", b.items[0].1, Verdict::Taken, 2)
                .unwrap()
                .terminal
        );
        assert!(o.is_empty());
    }

    #[test]
    fn refusals_are_dropped_or_tried_again() {
        let mut o = Outbox::default();
        o.put(item("a", "Failed", true), 0);
        assert_eq!(o.verdict("a", 404), Verdict::Dropped);
        assert_eq!(o.verdict("a", 409), Verdict::Retry);
        assert_eq!(o.verdict("a", 503), Verdict::Retry);
        for _ in 0..TRIES_FORBIDDEN {
            assert_eq!(o.verdict("a", 403), Verdict::Retry);
            let n = o.entries["a"].number;
            assert_eq!(o.settle("a", n, Verdict::Retry, 0), None);
        }
        assert_eq!(o.verdict("a", 403), Verdict::Dropped);
        assert!(o.batch(0).is_none(), "waits for its pause");
        assert!(o.batch(PAUSE_MAX.as_millis() as u64).is_some());
    }
}
