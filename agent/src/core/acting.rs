//! Carries out what [`plan()`] decides about a task, and keeps account of what tasks hold of the
//! node.
//!
//! Promise: a task is counted against the node once, from its first start until it is over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rota_supervisor::protocol::StopSpec;
use rota_supervisor::{dirs, sys};

use super::status::backing_off;
use super::tracked::Tracked;
use super::{Core, RUNNING_AFTER_MS};
use crate::logs;
use crate::outbox::Item;
use crate::plan::{Action, Run, plan};

impl Core {
    pub(super) fn decide(&mut self, uid: &str) {
        // An action may call for the next one at once, never for many.
        for _ in 0..4 {
            let ctx = self.context();
            let Some(t) = self.tracked.get(uid) else {
                return;
            };
            let Some(action) = plan(t.desired.as_ref(), &t.observed, &ctx) else {
                return;
            };
            if !self.act(uid, action) {
                return;
            }
        }
    }

    /// Does one thing; true when the task should be planned again at once.
    pub(super) fn act(&mut self, uid: &str, action: Action) -> bool {
        match action {
            Action::RefreshNode => {
                self.w.look_now.notify_one();
                false
            }
            Action::Forget => {
                self.forget(uid);
                false
            }
            Action::Stop { signal, grace_ms } => {
                if let Some(t) = self.tracked.get_mut(uid) {
                    t.observed.run = Run::Stopping {
                        forced: grace_ms == 0,
                    };
                    let stop = StopSpec {
                        id: t.run_id(),
                        signal,
                        grace_ms,
                    };
                    let supervisor = t.supervisor.unwrap_or_default();
                    self.stops.entry(supervisor).or_default().push(stop);
                }
                false
            }
            Action::LoadPolicy => {
                self.template(uid);
                self.tracked
                    .get(uid)
                    .is_some_and(|t| t.observed.policy.is_some())
            }
            Action::RestartAt { at_ms } => {
                // Said once: the status comes back by the watch and leads here again.
                if self.timers.insert((at_ms, uid.to_string()))
                    && let Some(t) = self.tracked.get(uid)
                {
                    let item = Item {
                        uid: uid.into(),
                        path: t.path(),
                        status: backing_off(t, at_ms),
                        terminal: false,
                    };
                    self.outbox.put(item, sys::boot_ms() + RUNNING_AFTER_MS);
                }
                false
            }
            Action::Start { restarts } => self.start(uid, restarts),
            Action::Report(end) => {
                self.report(uid, end);
                false
            }
        }
    }

    fn forget(&mut self, uid: &str) {
        if let Some(mut t) = self.tracked.remove(uid) {
            for (g, id) in t.acks.drain(..) {
                self.acks.entry(g).or_default().push(id);
            }
            self.release(&mut t);
            if !t.tidied {
                let dir = logs::attempt_dir(&self.tasks_dir, &t.attempt());
                self.trash.extend(dir.map(|d| (d, false)));
            }
        }
        self.outbox.remove(uid);
    }

    /// The task takes nothing of the node any more.
    pub(super) fn release(&mut self, t: &mut Tracked) {
        // Once only: by the second time they may be another task's.
        self.ports.release(&std::mem::take(&mut t.tag.p));
        if std::mem::take(&mut t.charged) {
            for (k, v) in &t.tag.rq {
                *self.used.entry(k.clone()).or_default() -= v;
            }
        }
        self.w.attempts.end(&t.attempt());
    }

    /// Counts the task against the node once, or refuses it: the second check behind placement.
    pub(super) fn charge(&mut self, uid: &str) -> bool {
        let Some(t) = self.tracked.get(uid) else {
            return false;
        };
        if t.charged {
            return true;
        }
        let short = t.tag.rq.iter().find(|(k, v)| {
            let used = self.used.get(*k).copied().unwrap_or(0);
            **v > 0 && used.saturating_add(**v) > self.allocatable.get(*k).copied().unwrap_or(0)
        });
        if let Some((resource, want)) = short {
            let used = self.used.get(resource).copied().unwrap_or(0);
            let have = self.allocatable.get(resource).copied().unwrap_or(0);
            let message = format!(
                "the node has {} of {have} {resource} free (base units), the task requests {want}",
                have - used
            );
            self.fail(uid, "OutOfResource", &message);
            return false;
        }
        for (k, v) in &t.tag.rq {
            *self.used.entry(k.clone()).or_default() += v;
        }
        if let Some(t) = self.tracked.get_mut(uid) {
            t.charged = true;
        }
        true
    }
}

/// Removes the work directory of an attempt, and the attempt's own when there is no output in it.
/// With `spares`, a tree without anything is kept for another attempt; that moves the index's own
/// directory, so only where no other attempt can come.
pub(super) fn tidy(spares: Option<(&PathBuf, &Arc<AtomicU32>)>, attempt: &Path) {
    if let Some((dir, next)) = spares
        && dirs::keep(dir, next.fetch_add(1, Ordering::Relaxed), attempt)
    {
        return;
    }
    let _ = std::fs::remove_dir_all(attempt.join("work")); // mostly gone already
    if std::fs::remove_dir(attempt).is_ok()
        && let Some(index) = attempt.parent()
    {
        let _ = std::fs::remove_dir(index); // stays while something is in it
    }
}
