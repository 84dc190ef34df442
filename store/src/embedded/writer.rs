//! The one thread that writes: group commit, compaction, and recovery after a failed write.
//!
//! A group is evaluated transaction by transaction against the last state and the group's earlier
//! transactions, written as one synced batch, published to readers and watchers, and only then
//! acknowledged. After any failed commit nothing is acknowledged until the database was dropped,
//! opened again and read: a failed sync is never tried again in place.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::codec::{self, Entry, LOG_ENTRY, LOG_OLD, Stored};
use super::disk::{self, Layout, Overlay, View};
use super::queue::{Op, Queue};
use super::{EmbeddedOptions, Shared};
use crate::{CommitResult, Event, StoreError, Txn, Version, Write, check};

/// How often the idle writer looks after history.
const TICK: Duration = Duration::from_secs(1);
/// Pause between attempts to open the database again.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);
/// History entries removed at once.
const TRIM_CHUNK: usize = 1000;
/// How often the lower bound of acknowledged versions is noted beside the database.
const NOTE_EVERY: Duration = Duration::from_secs(10);

type Reply = oneshot::Sender<Vec<CommitResult>>;

/// How much history each span of time made, so that retention needs no look at the disk.
struct Span {
    ended: Instant,
    last: Version,
    bytes: u64,
}

pub(super) struct Writer {
    pub layout: Layout,
    pub options: EmbeddedOptions,
    pub queue: Arc<Queue>,
    pub shared: Arc<Shared>,
    pub views: watch::Sender<Option<Arc<View>>>,
    pub latest: watch::Sender<Version>,
    spans: VecDeque<Span>,
    history_bytes: u64,
    /// There may be compacted entries on disk.
    trimming: bool,
    broken: Option<String>,
    noted: (Version, Instant),
}

/// A group on its way to disk.
struct Draft {
    batch: fjall::OwnedWriteBatch,
    overlay: Overlay,
    version: Version,
    events: Vec<Event>,
    history_bytes: u64,
}

impl Writer {
    pub(super) fn new(
        layout: Layout,
        options: EmbeddedOptions,
        queue: Arc<Queue>,
        shared: Arc<Shared>,
        view: View,
    ) -> (Self, watch::Receiver<Option<Arc<View>>>) {
        let history_bytes = view.disk.log_bytes();
        let spans = VecDeque::from([Span {
            ended: Instant::now(),
            last: view.version,
            bytes: history_bytes,
        }]);
        let noted = (view.version, Instant::now());
        let latest = watch::Sender::new(view.version);
        let (views, receiver) = watch::channel(Some(Arc::new(view)));
        let writer = Self {
            layout,
            options,
            queue,
            shared,
            views,
            latest,
            spans,
            history_bytes,
            trimming: true,
            broken: None,
            noted,
        };
        (writer, receiver)
    }

    /// Runs until the queue is closed.
    pub(super) fn run(mut self) {
        // Whatever ends this thread, nobody may wait for it any longer.
        struct Abandon(Arc<Queue>);
        impl Drop for Abandon {
            fn drop(&mut self) {
                self.0.abandon();
            }
        }
        let _abandon = Abandon(self.queue.clone());
        let mut tick = Instant::now() + TICK;
        loop {
            let busy = self.trimming && self.broken.is_none();
            let until = if busy { Instant::now() } else { tick };
            let Some(group) = self.queue.take(until) else {
                break;
            };
            if !group.is_empty() {
                self.group(group);
            }
            if self.broken.is_some() {
                self.reopen();
            }
            if self.broken.is_none() && self.trimming {
                self.trim();
            }
            if Instant::now() >= tick {
                self.retain();
                self.note();
                tick = Instant::now() + TICK;
            }
        }
        self.close();
    }

    fn view(&self) -> Option<Arc<View>> {
        self.views.borrow().clone()
    }

    fn unavailable(&self) -> Option<StoreError> {
        if let Some(broken) = &self.broken {
            return Some(StoreError::Unavailable(format!(
                "the store is being recovered: {broken}"
            )));
        }
        let free = self.layout.free_bytes();
        (free < self.options.free_bytes_min).then(|| {
            StoreError::Unavailable(format!(
                "disk full: {free} bytes free, {} needed; reads go on",
                self.options.free_bytes_min
            ))
        })
    }

    fn group(&mut self, group: Vec<Op>) {
        let refused = self.unavailable();
        let view = self.view();
        let (Some(view), None) = (view, &refused) else {
            let error = refused.unwrap_or_else(|| StoreError::Unavailable("closed".into()));
            for op in group {
                match op {
                    Op::Commit { txns, reply } => {
                        drop(reply.send(vec![Err(error.clone()); txns.len()]));
                    }
                    Op::Compact { reply, .. } => drop(reply.send(Err(error.clone()))),
                }
            }
            return;
        };
        let mut draft = Draft {
            batch: view.disk.batch(group.len() * 3),
            overlay: Overlay::default(),
            version: view.version,
            events: Vec::with_capacity(group.len()),
            history_bytes: 0,
        };
        let mut done: Vec<(Reply, Vec<CommitResult>)> = Vec::with_capacity(group.len());
        let mut compactions = Vec::new();
        for op in group {
            match op {
                Op::Compact { version, reply } => compactions.push((version, reply)),
                Op::Commit { txns, reply } => {
                    let outcomes = txns.into_iter().map(|txn| draft.apply(&view, txn));
                    done.push((reply, outcomes.collect()));
                }
            }
        }
        if !draft.events.is_empty() {
            let written = self.write(&view, draft);
            drop(view);
            match written {
                Ok(()) => self.shared.counters.group(),
                Err(error) => {
                    let lost = "it was judged by writes that failed; nothing of it was written";
                    for outcome in done.iter_mut().flat_map(|(_, outcomes)| outcomes) {
                        match outcome {
                            Ok(_) => *outcome = Err(error.clone()),
                            Err(StoreError::Conflict { .. }) => {
                                *outcome = Err(StoreError::Unavailable(lost.to_owned()));
                            }
                            Err(_) => {}
                        }
                    }
                }
            }
        }
        for (reply, outcomes) in done {
            drop(reply.send(outcomes));
        }
        for (version, reply) in compactions {
            let outcome = self.compact(version);
            drop(reply.send(outcome));
        }
    }

    /// Commits the draft and publishes it.
    fn write(&mut self, view: &Arc<View>, draft: Draft) -> Result<(), StoreError> {
        let Draft {
            mut batch,
            overlay,
            version,
            events,
            history_bytes,
        } = draft;
        overlay.write(&view.disk, &mut batch);
        view.disk.put_version(&mut batch, version);
        self.commit(batch)?;
        self.shared.tail.push(events);
        self.publish(view, version, view.compacted);
        self.history_bytes += history_bytes;
        match self.spans.back_mut() {
            Some(span) if span.ended.elapsed() < TICK => {
                span.last = version;
                span.bytes += history_bytes;
            }
            _ => self.spans.push_back(Span {
                ended: Instant::now(),
                last: version,
                bytes: history_bytes,
            }),
        }
        Ok(())
    }

    fn publish(&self, old: &View, version: Version, compacted: Version) {
        let view = old.disk.clone().view(version, compacted);
        self.views.send_replace(Some(Arc::new(view)));
        self.latest.send_replace(version);
    }

    fn commit(&mut self, batch: fjall::OwnedWriteBatch) -> Result<(), StoreError> {
        batch.commit().map_err(|error| {
            let text = error.to_string();
            tracing::error!(error = %text, "a commit failed; the database will be opened again");
            self.broken = Some(text.clone());
            match error {
                // Refused before anything was written.
                fjall::Error::Poisoned => StoreError::Unavailable(text),
                _ => StoreError::Unknown(text),
            }
        })
    }

    /// Moves the compacted version; the entries go later, a few at a time.
    fn compact(&mut self, version: Version) -> Result<(), StoreError> {
        if let Some(error) = self.unavailable() {
            return Err(error);
        }
        let Some(view) = self.view() else {
            return Err(StoreError::Unavailable("closed".into()));
        };
        if version > view.version {
            let current = view.version;
            return Err(StoreError::Future {
                wanted: version,
                current,
            });
        }
        if version <= view.compacted {
            return Ok(());
        }
        let mut batch = view.disk.batch(1);
        view.disk.put_compacted(&mut batch, version);
        self.commit(batch)?;
        self.publish(&view, view.version, version);
        self.trimming = true;
        Ok(())
    }

    /// Removes one chunk of compacted entries.
    fn trim(&mut self) {
        let Some(view) = self.view() else { return };
        match view.trim(TRIM_CHUNK) {
            Ok(Some(batch)) => {
                // The error is in `broken`, and reopening starts the work again.
                if self.commit(batch).is_ok() {
                    self.publish(&view, view.version, view.compacted);
                }
            }
            Ok(None) => self.trimming = false,
            Err(error) => {
                tracing::error!(%error, "cannot remove old history");
                self.trimming = false;
            }
        }
    }

    /// Compacts what is both too old, or more than may be kept.
    fn retain(&mut self) {
        let mut target = 0;
        while self.spans.len() > 1 {
            let Some(span) = self.spans.front() else {
                break;
            };
            let old = span.ended.elapsed() > self.options.history_time;
            if !old && self.history_bytes <= self.options.history_bytes {
                break;
            }
            target = span.last;
            self.history_bytes = self.history_bytes.saturating_sub(span.bytes);
            self.spans.pop_front();
        }
        if target > 0
            && let Err(error) = self.compact(target)
        {
            tracing::warn!(%error, "cannot compact history");
        }
    }

    fn note(&mut self) {
        let Some(view) = self.view() else { return };
        if view.version > self.noted.0 && self.noted.1.elapsed() >= NOTE_EVERY {
            self.noted = (view.version, Instant::now());
            if let Err(error) = self.layout.note_acknowledged(view.version) {
                tracing::debug!(%error, "cannot note the acknowledged version");
            }
        }
    }

    /// After a failed commit: drops the database, opens it again and reads what is there. One
    /// attempt; the run loop comes back.
    fn reopen(&mut self) {
        if self.layout.free_bytes() < self.options.free_bytes_min {
            // The old handle still answers reads; a new one could not even start.
            std::thread::sleep(REOPEN_PAUSE);
            return;
        }
        let before = self.views.send_replace(None);
        let known = before.as_ref().map_or(0, |view| view.version);
        drop(before);
        match self.layout.open(&self.options) {
            Ok((view, _)) if view.version >= known => {
                let version = view.version;
                // What the failed commit may have left is read from disk by the watchers.
                self.shared.tail.reset(version);
                self.views.send_replace(Some(Arc::new(view)));
                self.latest.send_replace(version);
                self.broken = None;
                self.trimming = true;
                tracing::info!(version, "the store is open again");
            }
            Ok((view, _)) => {
                let text = format!("version {} came back, {known} was written", view.version);
                tracing::error!("{text}");
                self.broken = Some(text);
                drop(view);
                std::thread::sleep(REOPEN_PAUSE);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot open the store again yet");
                self.broken = Some(error.to_string());
                std::thread::sleep(REOPEN_PAUSE);
            }
        }
    }

    fn close(self) {
        let Some(view) = self.views.send_replace(None) else {
            return;
        };
        let version = view.version;
        drop(view);
        if let Err(error) = self.layout.note_acknowledged(version) {
            tracing::debug!(%error, "cannot note the acknowledged version");
        }
    }
}

impl Draft {
    /// Checks the guards and adds the writes, or changes nothing.
    fn apply(&mut self, view: &View, txn: Txn) -> CommitResult {
        for guard in txn.guards {
            let found = self.overlay.look(view, &guard.key)?;
            let seen = found.map(|stored| (stored.version, stored.value.as_ref()));
            if !check::holds(&guard.expect, seen) {
                let actual = found
                    .cloned()
                    .map(|stored| disk::record(guard.key.clone(), stored));
                return Err(StoreError::Conflict { guard, actual });
            }
        }
        // All reads before the first change, so that a failing one leaves the draft whole.
        for write in &txn.writes {
            self.overlay.look(view, write.key())?;
        }
        let count = txn.writes.len();
        let mut versions = Vec::with_capacity(count);
        for (i, write) in txn.writes.into_iter().enumerate() {
            self.version += 1;
            versions.push(self.version);
            self.add(view, write, i + 1 == count);
        }
        Ok(versions)
    }

    fn add(&mut self, view: &View, write: Write, ends_txn: bool) {
        let version = self.version;
        let (key, stored) = match write {
            Write::Put {
                key,
                value,
                expires_at,
            } => (
                key,
                Some(Stored {
                    version,
                    expires_at,
                    value,
                }),
            ),
            Write::Delete { key } => (key, None),
        };
        let event = Event {
            version,
            key: key.clone(),
            value: stored.as_ref().map(|stored| stored.value.clone()),
            expires_at: stored.as_ref().and_then(|stored| stored.expires_at),
        };
        let entry_expiry = event.expires_at;
        let put = stored.is_some();
        let previous = self.overlay.set(&key, stored);
        let log = &view.disk.log;
        if let Some(previous) = &previous {
            let old = codec::encode_old(previous);
            self.history_bytes += old.len() as u64;
            self.batch
                .insert(log, codec::log_key(previous.version, LOG_OLD), old);
        }
        let entry = codec::encode_entry(&Entry {
            put,
            ends_txn,
            previous: previous.map_or(0, |previous| previous.version),
            expires_at: entry_expiry,
            key,
        });
        self.history_bytes += entry.len() as u64;
        self.batch
            .insert(log, codec::log_key(version, LOG_ENTRY), entry);
        self.events.push(event);
    }
}
