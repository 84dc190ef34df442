//! The work queue of a controller: keys that want a look, each at most once, each handled by at
//! most one worker at a time.
//!
//! Bounded by the number of distinct keys. A key that fails waits longer each time, alone; the
//! others do not notice.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::backoff;
use super::key::Key;

#[derive(Default)]
struct Entry {
    /// In `ready` now.
    queued: bool,
    /// A worker has it.
    running: bool,
    /// Wanted again while a worker has it.
    again: bool,
    /// When it comes by itself, if in `later`.
    due: Option<Instant>,
    failures: u32,
    /// Not before this, whatever happens: back-off after a failure.
    not_before: Option<Instant>,
    since: Option<Instant>,
}

struct State {
    entries: HashMap<Key, Entry>,
    ready: VecDeque<Key>,
    later: BTreeMap<(Instant, Key), ()>,
}

/// Keys to look at.
pub struct Queue {
    state: Mutex<State>,
    wake: Notify,
    seed: u64,
}

/// A key that a worker has taken; hand it back with one of the `Queue`'s methods.
#[derive(Debug)]
pub struct Taken {
    /// The key.
    pub key: Key,
    /// Since when it has waited.
    pub since: Instant,
}

impl Queue {
    /// An empty queue.
    pub fn new(seed: u64) -> Self {
        Queue {
            state: Mutex::new(State {
                entries: HashMap::new(),
                ready: VecDeque::new(),
                later: BTreeMap::new(),
            }),
            wake: Notify::new(),
            seed,
        }
    }

    /// Wants a look at `key`: now, or when its back-off is over.
    pub fn add(&self, key: &Key) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let entry = state.entries.entry(key.clone()).or_default();
        if entry.queued {
            return;
        }
        if entry.running {
            entry.again = true;
            return;
        }
        if let Some(not_before) = entry.not_before
            && not_before > now
        {
            if entry.due.is_none_or(|due| due > not_before) {
                state.schedule(key, not_before);
                drop(state);
                self.wake.notify_one();
            }
            return;
        }
        state.make_ready(key, now);
        drop(state);
        self.wake.notify_one();
    }

    /// Takes the next key; waits for one.
    pub async fn take(&self) -> Taken {
        loop {
            let notified = self.wake.notified();
            let next = {
                let mut state = self.state.lock();
                let now = Instant::now();
                state.ripen(now);
                if let Some(key) = state.ready.pop_front() {
                    let more = !state.ready.is_empty();
                    let entry = state.entries.entry(key.clone()).or_default();
                    entry.queued = false;
                    entry.running = true;
                    let since = entry.since.take().unwrap_or(now);
                    drop(state);
                    if more {
                        self.wake.notify_one();
                    }
                    return Taken { key, since };
                }
                state.later.keys().next().map(|(at, _)| *at)
            };
            match next {
                Some(at) => {
                    tokio::select! {
                        _ = notified => {}
                        _ = tokio::time::sleep_until(at) => {}
                    }
                }
                None => notified.await,
            }
        }
    }

    /// Done; forget failures. Comes again after `after` if given, else only when added, and in no
    /// case before `calm` has passed.
    pub fn done(&self, taken: Taken, after: Option<Duration>, calm: Duration) {
        self.finish(taken.key, after, calm);
    }

    /// Look again at once: a precondition did not hold. Repeated ones back off like failures.
    pub fn conflict(&self, taken: Taken, conflicts: u32) {
        if conflicts <= 3 {
            self.finish(taken.key, Some(Duration::ZERO), Duration::ZERO);
        } else {
            self.failed(taken, None);
        }
    }

    /// Failed: comes again after its back-off (or `at_least`), not earlier even if added. Returns
    /// how often in a row it has failed.
    pub fn failed(&self, taken: Taken, at_least: Option<Duration>) -> u32 {
        let now = Instant::now();
        let mut state = self.state.lock();
        let entry = state.entries.entry(taken.key.clone()).or_default();
        entry.running = false;
        entry.again = false;
        entry.failures += 1;
        let failures = entry.failures;
        let pause = backoff::delay(self.seed, &taken.key.to_string(), failures)
            .max(at_least.unwrap_or(Duration::ZERO));
        entry.not_before = Some(now + pause);
        state.schedule(&taken.key, now + pause);
        drop(state);
        self.wake.notify_one();
        failures
    }

    fn finish(&self, key: Key, after: Option<Duration>, calm: Duration) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let entry = state.entries.entry(key.clone()).or_default();
        entry.running = false;
        entry.failures = 0;
        entry.not_before = (!calm.is_zero()).then_some(now + calm);
        let again = std::mem::take(&mut entry.again) || after == Some(Duration::ZERO);
        if again && calm.is_zero() {
            state.make_ready(&key, now);
        } else if again {
            state.schedule(&key, now + calm);
        } else if let Some(after) = after {
            state.schedule(&key, now + after.max(calm));
        } else if calm.is_zero() {
            state.forget(&key);
        } else {
            // Kept for the calm's sake until the next look.
            state.schedule(&key, now + calm);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Keys that wait now.
    pub fn depth(&self) -> usize {
        self.state.lock().ready.len()
    }
}

impl State {
    fn make_ready(&mut self, key: &Key, now: Instant) {
        let entry = self.entries.entry(key.clone()).or_default();
        if let Some(due) = entry.due.take() {
            self.later.remove(&(due, key.clone()));
        }
        entry.not_before = None;
        entry.queued = true;
        entry.since = Some(now);
        self.ready.push_back(key.clone());
    }

    fn schedule(&mut self, key: &Key, at: Instant) {
        let entry = self.entries.entry(key.clone()).or_default();
        if let Some(due) = entry.due.replace(at) {
            self.later.remove(&(due, key.clone()));
        }
        self.later.insert((at, key.clone()), ());
    }

    fn forget(&mut self, key: &Key) {
        if let Some(Some(due)) = self.entries.remove(key).map(|e| e.due) {
            self.later.remove(&(due, key.clone()));
        }
    }

    /// Moves what is due to `ready`.
    fn ripen(&mut self, now: Instant) {
        while let Some(((at, _), ())) = self.later.first_key_value() {
            if *at > now {
                break;
            }
            let Some(((_, key), ())) = self.later.pop_first() else {
                break;
            };
            let entry = self.entries.entry(key.clone()).or_default();
            entry.due = None;
            if entry.running {
                entry.again = true;
            } else if !entry.queued {
                self.make_ready(&key, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_queued_once_and_handled_by_one_worker() {
        let queue = Queue::new(1);
        queue.add(&key("a"));
        queue.add(&key("a"));
        queue.add(&key("b"));
        assert_eq!(queue.depth(), 2);
        let a = queue.take().await;
        queue.add(&key("a"));
        assert_eq!(
            queue.take().await.key,
            key("b"),
            "a is running, so b is next"
        );
        let waiting = tokio::time::timeout(Duration::from_secs(1), queue.take()).await;
        assert!(waiting.is_err(), "a must not run twice at a time");
        queue.done(a, None, Duration::ZERO);
        assert_eq!(queue.take().await.key, key("a"), "wanted while it ran");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_alone_and_adds_do_not_shorten_it() {
        let queue = Queue::new(1);
        queue.add(&key("bad"));
        for _ in 0..5 {
            let taken = queue.take().await;
            queue.failed(taken, None);
        }
        let before = Instant::now();
        queue.add(&key("bad"));
        queue.add(&key("good"));
        let good = queue.take().await;
        assert_eq!(good.key, key("good"));
        assert_eq!(before.elapsed(), Duration::ZERO);
        queue.done(good, None, Duration::ZERO);
        assert_eq!(queue.take().await.key, key("bad"));
        assert!(before.elapsed() > Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_calmed_key_is_looked_at_once_per_calm() {
        let queue = Queue::new(1);
        queue.add(&key("a"));
        let start = Instant::now();
        for _ in 0..10 {
            let taken = queue.take().await;
            queue.add(&key("a"));
            queue.done(taken, None, Duration::from_millis(50));
            queue.add(&key("a"));
        }
        assert_eq!(start.elapsed(), Duration::from_millis(450));
    }

    #[tokio::test(start_paused = true)]
    async fn later_comes_later_and_a_change_comes_first() {
        let queue = Queue::new(1);
        queue.add(&key("a"));
        let taken = queue.take().await;
        let start = Instant::now();
        queue.done(taken, Some(Duration::from_secs(60)), Duration::ZERO);
        let taken = queue.take().await;
        assert_eq!(start.elapsed(), Duration::from_secs(60));
        queue.done(taken, Some(Duration::from_secs(60)), Duration::ZERO);
        queue.add(&key("a"));
        let taken = queue.take().await;
        assert_eq!(start.elapsed(), Duration::from_secs(60));
        queue.done(taken, None, Duration::ZERO);
        assert!(
            tokio::time::timeout(Duration::from_secs(600), queue.take())
                .await
                .is_err(),
            "nothing is left"
        );
    }
}
