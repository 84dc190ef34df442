//! The newest events in memory, for watchers that keep up; the others read the log on disk.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::history::WATCH_BATCH_MAX;
use crate::{Event, EventBatch, Version};

/// Most events kept here.
const TAIL_EVENTS_MAX: usize = 20_000;
/// Most bytes of values kept here. They are shared with whoever else holds the same bytes.
const TAIL_BYTES_MAX: usize = 32 << 20;

/// The events of one synced group; whole transactions.
struct Group {
    events: Arc<[Event]>,
    last: Version,
    bytes: usize,
}

#[derive(Default)]
struct Inner {
    groups: VecDeque<Group>,
    /// Everything after this is here.
    after: Version,
    events: usize,
    bytes: usize,
}

/// A bounded window onto the newest events.
#[derive(Default)]
pub(super) struct Tail(Mutex<Inner>);

impl Tail {
    /// Starts over: what is at or below `version` is on disk only.
    pub(super) fn reset(&self, version: Version) {
        *self.0.lock() = Inner {
            after: version,
            ..Inner::default()
        };
    }

    /// Adds a committed group.
    pub(super) fn push(&self, events: Vec<Event>) {
        let Some(last) = events.last().map(|event| event.version) else {
            return;
        };
        let size = |event: &Event| event.key.len() + event.value.as_ref().map_or(0, |v| v.len());
        let bytes = events.iter().map(size).sum();
        let mut inner = self.0.lock();
        inner.events += events.len();
        inner.bytes += bytes;
        inner.groups.push_back(Group {
            events: events.into(),
            last,
            bytes,
        });
        while inner.events > TAIL_EVENTS_MAX || inner.bytes > TAIL_BYTES_MAX {
            let Some(group) = inner.groups.pop_front() else {
                return;
            };
            inner.events -= group.events.len();
            inner.bytes -= group.bytes;
            inner.after = group.last;
        }
    }

    /// Events after `from`, or `None` if some of them are no longer here.
    pub(super) fn read_after(&self, from: Version) -> Option<EventBatch> {
        let inner = self.0.lock();
        if from < inner.after {
            return None;
        }
        let start = inner.groups.partition_point(|group| group.last <= from);
        let mut events: Vec<Event> = Vec::new();
        for group in inner.groups.iter().skip(start) {
            if events.len() >= WATCH_BATCH_MAX {
                break;
            }
            let skip = group.events.partition_point(|event| event.version <= from);
            events.extend_from_slice(&group.events[skip..]);
        }
        let version = events.last().map_or(from, |event| event.version);
        Some(EventBatch { events, version })
    }
}
