//! The counters behind [`StoreStats`].

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{StoreError, StoreStats, Versions};

/// Counts outcomes; shared by all callers of a store.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    commits: AtomicU64,
    writes: AtomicU64,
    groups: AtomicU64,
    conflicts: AtomicU64,
    failures: AtomicU64,
}

impl Counters {
    /// One more group went to the backend.
    pub(crate) fn group(&self) {
        self.groups.fetch_add(1, Relaxed);
    }

    /// Counts what one caller's transaction came to.
    pub(crate) fn outcome(&self, outcome: &Result<Versions, StoreError>) {
        match outcome {
            Ok(versions) => {
                self.commits.fetch_add(1, Relaxed);
                self.writes.fetch_add(versions.len() as u64, Relaxed);
            }
            Err(StoreError::Conflict { .. }) => {
                self.conflicts.fetch_add(1, Relaxed);
            }
            Err(StoreError::Unavailable(_) | StoreError::Unknown(_)) => {
                self.failures.fetch_add(1, Relaxed);
            }
            Err(_) => {}
        }
    }

    /// What /metrics shows.
    pub(crate) fn snapshot(&self) -> StoreStats {
        StoreStats {
            commits: self.commits.load(Relaxed),
            writes: self.writes.load(Relaxed),
            groups: self.groups.load(Relaxed),
            conflicts: self.conflicts.load(Relaxed),
            failures: self.failures.load(Relaxed),
        }
    }
}
