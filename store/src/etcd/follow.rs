//! One watch over the whole prefix, resumed after any single event.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{EventType, WatchClient, WatchOptions, WatchStream};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::codec::{self, Kind, Names, WHOLE};
use super::{CALL_MAX, no_answer};
use crate::{Event, EventBatch, StoreError, Version};

/// Batches that a watcher may lag before etcd is no longer read for it.
const LAG_BATCHES: usize = 64;
/// How long a watcher may leave its batches unread before it is cut.
const LAG_TIME: Duration = Duration::from_secs(10);

type Item = Result<EventBatch, StoreError>;

/// Everything after `from`. `split` tells the next watch that an answer was larger than we take.
pub(super) async fn watch(
    mut client: WatchClient,
    names: Names,
    from: Version,
    split: Arc<AtomicBool>,
) -> Result<BoxStream<'static, Item>, StoreError> {
    let revision = names.revision(from);
    // One revision early: it is discarded, but makes a compaction at `revision` a clean error.
    // Starting at a compacted revision would silently lose its removals.
    let mut options = WatchOptions::new()
        .with_prefix()
        .with_start_revision((revision - 1).max(1));
    // etcd sends what a watcher lags behind as one answer for each 1,000 revisions. To cut it into fragments it weighs the
    // fragment anew after every event, which takes it seconds for many small events and holds up
    // everything that comes after; so it is asked to only once an answer was too large to take.
    let pieces = split.load(Ordering::Relaxed);
    if pieces {
        options = options.with_fragment();
    }
    let stream = match timeout(CALL_MAX, client.watch(names.everything(), Some(options))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(codec::error(Kind::Read, &error)),
        Err(_) => return Err(no_answer()),
    };
    if pieces {
        split.store(false, Ordering::Relaxed);
    }
    let (out, batches) = mpsc::channel(LAG_BATCHES);
    let replay = Replay::new(names, from);
    tokio::spawn(follow(stream, replay, out, split));
    let batches = futures::stream::unfold(batches, |mut batches| async move {
        batches.recv().await.map(|item| (item, batches))
    });
    Ok(batches.boxed())
}

async fn follow(
    mut stream: WatchStream,
    mut replay: Replay,
    out: mpsc::Sender<Item>,
    split: Arc<AtomicBool>,
) {
    let error = loop {
        let message = tokio::select! {
            message = stream.message() => message,
            () = out.closed() => return,
        };
        let response = match message {
            Ok(Some(response)) => response,
            Ok(None) => {
                break StoreError::Unavailable("etcd closed the watch".to_owned());
            }
            Err(error) => {
                if codec::answer_too_large(&error) {
                    split.store(true, Ordering::Relaxed);
                }
                break codec::error(Kind::Read, &error);
            }
        };
        if response.compact_revision() > 0 {
            break StoreError::Compacted {
                wanted: replay.delivered,
                oldest: replay.names.version(response.compact_revision() + 1, 0),
            };
        }
        if response.canceled() {
            let reason = response.cancel_reason();
            break StoreError::Unavailable(format!("etcd cancelled the watch: {reason}"));
        }
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let put = event.event_type() == EventType::Put;
            let value = put.then(|| kv.value());
            if let Err(error) = replay.event(kv.mod_revision(), kv.key(), value) {
                drop(out.send(Err(error)).await);
                return;
            }
        }
        if let Some(batch) = replay.batch()
            && out.send_timeout(Ok(batch), LAG_TIME).await.is_err()
        {
            break StoreError::Unavailable("the watcher is too slow and was cut".to_owned());
        }
    };
    drop(out.send(Err(error)).await);
}

/// Turns etcd's events into ours: gives each its ordinal, holds a transaction back until its last
/// event (`/!head`) is there, and drops what the watcher has seen. Pure.
struct Replay {
    names: Names,
    /// Delivered, or seen by the watcher before it came.
    delivered: Version,
    /// Revisions before this one are not looked at.
    first: i64,
    revision: i64,
    ordinal: u64,
    /// Events of the unfinished transaction.
    open: Vec<Event>,
    /// Finished ones, not yet handed out.
    done: VecDeque<Event>,
    finished: Version,
}

impl Replay {
    fn new(names: Names, from: Version) -> Self {
        Self {
            first: names.revision(from),
            names,
            delivered: from,
            revision: 0,
            ordinal: 0,
            open: Vec::new(),
            done: VecDeque::new(),
            finished: from,
        }
    }

    fn event(&mut self, revision: i64, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
        // The revision before the first wanted one is read only to notice compaction, and when
        // that is exactly where history was cut, its removals are missing.
        if revision < self.first {
            return Ok(());
        }
        if revision != self.revision {
            self.revision = revision;
            self.ordinal = 0;
            self.open.clear();
        }
        if key == self.names.head() {
            self.done.extend(self.open.drain(..));
            self.finished = self.finished.max(self.names.version(revision, WHOLE));
            return Ok(());
        }
        let ordinal = self.ordinal;
        self.ordinal += 1;
        // `/!store`, or what someone else wrote under the prefix.
        let Some(name) = self.names.strip(key) else {
            return Ok(());
        };
        let version = self.names.version(revision, ordinal);
        let (value, expires_at) = match value {
            None => (None, None),
            Some(bytes) => match codec::decode(bytes) {
                Some((stored, expires_at, value)) if stored == ordinal => {
                    (Some(Bytes::copy_from_slice(value)), expires_at)
                }
                Some((stored, ..)) => {
                    return Err(StoreError::Corrupt(format!(
                        "etcd: {name} at revision {revision} came as event {ordinal} but was written as {stored}"
                    )));
                }
                None => {
                    tracing::warn!(
                        key = name,
                        "a key under the store's prefix is not the store's"
                    );
                    return Ok(());
                }
            },
        };
        if version > self.delivered {
            self.open.push(Event {
                version,
                key: Arc::from(name),
                value,
                expires_at,
            });
        }
        Ok(())
    }

    /// The finished transactions since the last call, or how far the watch has come without any.
    fn batch(&mut self) -> Option<EventBatch> {
        if self.finished <= self.delivered && self.done.is_empty() {
            return None;
        }
        self.delivered = self.finished.max(self.delivered);
        Some(EventBatch {
            events: self.done.drain(..).collect(),
            version: self.delivered,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::etcd::codec::SLOTS;

    fn feed(from: Version) -> Vec<Version> {
        let names = Names::new("/r".to_owned());
        let head = names.head();
        let mut replay = Replay::new(names, from);
        let put = |i: usize| codec::encode(i, None, b"x");
        let mut seen = Vec::new();
        for revision in [7, 8] {
            replay.event(revision, b"/r/a", Some(&put(0))).unwrap();
            replay.event(revision, b"/r/b", None).unwrap();
            if let Some(batch) = replay.batch() {
                let whole = batch.version < revision as u64 * SLOTS;
                assert!(whole, "a transaction is never split");
                seen.extend(batch.events.iter().map(|event| event.version));
            }
            replay.event(revision, b"/r/c", Some(&put(2))).unwrap();
            replay.event(revision, &head, Some(b"")).unwrap();
        }
        if let Some(batch) = replay.batch() {
            assert_eq!(batch.version, 8999);
            seen.extend(batch.events.iter().map(|event| event.version));
        }
        seen
    }

    #[test]
    fn resuming_drops_exactly_what_was_seen() {
        let all = [7000, 7001, 7002, 8000, 8001, 8002];
        assert_eq!(feed(6999), all);
        for (i, from) in all.iter().enumerate() {
            assert_eq!(feed(*from), all[i + 1..]);
        }
        assert_eq!(feed(7999), all[3..]);
    }

    #[test]
    fn an_event_out_of_its_place_is_damage() {
        let mut replay = Replay::new(Names::new("/r".to_owned()), 0);
        let value = codec::encode(1, None, b"x");
        let outcome = replay.event(7, b"/r/a", Some(&value));
        assert!(matches!(outcome, Err(StoreError::Corrupt(_))));
    }
}
