//! What supervisors tell: which runs are there, which started, which ended; and what becomes of a
//! supervisor whose connection ended.
//!
//! Promises: only the newest run of a task counts, an older one is stopped or acknowledged; an exit
//! is acknowledged only once it is of no use any more; a start that a supervisor does not know is
//! planned again.

use std::collections::{BTreeMap, BTreeSet};

use rota_supervisor::protocol::{Exit, Report, Started, StopSpec, Welcome};
use rota_supervisor::sys;
use tokio::sync::mpsc;

use super::status::running;
use super::tracked::{Tag, Tracked, split};
use super::{Core, RUNNING_AFTER_MS};
use crate::config::AgentError;
use crate::outbox::Item;
use crate::plan::{Observed, Run};
use crate::supervision::{self, Told};

impl Core {
    pub(super) async fn on_told(
        &mut self,
        told: Told,
        tell: &mpsc::Sender<Told>,
    ) -> Result<(), AgentError> {
        match told {
            Told::Welcome(generation, welcome) => self.on_welcome(generation, *welcome),
            Told::Report(generation, report) => self.on_report(generation, report),
            Told::Closed(generation) => {
                let newest = self
                    .links
                    .last()
                    .is_some_and(|l| l.generation == generation);
                self.links.retain(|l| l.generation != generation);
                self.awaited.remove(&generation);
                if let Some(link) =
                    supervision::recover(&self.w.config, generation, newest, self.stopping, tell)
                        .await?
                {
                    self.awaited.insert(link.generation);
                    self.links.push(link);
                    self.extend_fence();
                }
            }
        }
        Ok(())
    }

    fn on_welcome(&mut self, generation: u64, welcome: Welcome) {
        self.awaited.remove(&generation);
        let mut seen = BTreeSet::new();
        for s in welcome.running {
            let Some((uid, n)) = split(&s.id) else {
                continue;
            };
            seen.insert(uid.to_string());
            let (uid, id) = (uid.to_string(), s.id.clone());
            if self.is_newest(&uid, n, &s.tag) {
                // A stop may have been lost with the connection, or its deadline with the
                // supervisor: it is decided again.
                if let Some(t) = self.tracked.get_mut(&uid)
                    && matches!(t.observed.run, Run::Stopping { .. })
                {
                    t.observed.run = Run::Live;
                }
                self.on_started(generation, &uid, n, s);
            } else {
                tracing::warn!(id, "an older run of a task still runs; it is stopped");
                self.stops.entry(generation).or_default().push(StopSpec {
                    id,
                    signal: 9,
                    grace_ms: 0,
                });
            }
        }
        for e in welcome.exits {
            let Some((uid, n)) = split(&e.id) else {
                continue;
            };
            seen.insert(uid.to_string());
            let uid = uid.to_string();
            if self.is_newest(&uid, n, &e.tag) {
                self.on_exit(generation, &uid, n, e);
            } else {
                self.acks.entry(generation).or_default().push(e.id);
            }
        }
        // What this supervisor was asked to start and does not know was lost on the way.
        for (uid, t) in &mut self.tracked {
            let theirs = t
                .supervisor
                .is_some_and(|s| s == generation || !self.links.iter().any(|l| l.generation == s));
            if theirs
                && !seen.contains(uid)
                && matches!(t.observed.run, Run::Live | Run::Stopping { .. })
            {
                t.observed.run = Run::None;
                self.dirty.insert(uid.clone());
            }
        }
    }

    /// Takes note of a run that a supervisor knows; false when a newer one of the task is known.
    fn is_newest(&mut self, uid: &str, n: u32, tag: &str) -> bool {
        if let Some(t) = self.tracked.get(uid) {
            return n >= t.observed.restarts;
        }
        let Ok(tag) = serde_json::from_str::<Tag>(tag) else {
            tracing::error!(uid, "a task's tag cannot be read; it is left alone");
            return false;
        };
        self.ports.reserve(&tag.p);
        for (k, v) in &tag.rq {
            *self.used.entry(k.clone()).or_default() += v;
        }
        let tracked = Tracked {
            desired: None,
            generation: 0,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            observed: Observed {
                run: Run::None,
                restarts: n,
                policy: None,
            },
            tag,
            supervisor: None,
            started: None,
            acks: Vec::new(),
            charged: true,
            last_exit: None,
            tidied: false,
        };
        self.w.attempts.begin(tracked.attempt());
        self.tracked.insert(uid.to_string(), tracked);
        true
    }

    fn on_report(&mut self, generation: u64, report: Report) {
        for s in report.started {
            if let Some((uid, n)) = split(&s.id) {
                let uid = uid.to_string();
                self.on_started(generation, &uid, n, s);
            }
        }
        for e in report.exits {
            if let Some((uid, n)) = split(&e.id) {
                let uid = uid.to_string();
                self.on_exit(generation, &uid, n, e);
            }
        }
    }

    fn on_started(&mut self, generation: u64, uid: &str, n: u32, started: Started) {
        let Some(t) = self.tracked.get_mut(uid) else {
            return;
        };
        if n < t.observed.restarts || t.observed.run == Run::Done {
            return;
        }
        t.observed.restarts = n;
        t.supervisor = Some(generation);
        if !matches!(t.observed.run, Run::Stopping { .. }) {
            t.observed.run = Run::Live;
        }
        t.started = Some(started);
        // The exits of earlier runs have been counted by this start.
        for (g, id) in t.acks.drain(..) {
            self.acks.entry(g).or_default().push(id);
        }
        self.dirty.insert(uid.to_string());
        let status = running(t, &self.w.address);
        let item = Item {
            uid: uid.to_string(),
            path: t.path(),
            status,
            terminal: false,
        };
        self.outbox.put(item, sys::boot_ms() + RUNNING_AFTER_MS);
    }

    fn on_exit(&mut self, generation: u64, uid: &str, n: u32, exit: Exit) {
        self.w.metrics.exits.inc();
        let Some(t) = self.tracked.get_mut(uid) else {
            self.acks.entry(generation).or_default().push(exit.id);
            return;
        };
        if n < t.observed.restarts {
            self.acks.entry(generation).or_default().push(exit.id);
            return;
        }
        t.observed.restarts = n;
        t.supervisor = Some(generation);
        let ack = (generation, exit.id.clone());
        if !t.acks.contains(&ack) {
            t.acks.push(ack);
        }
        if t.observed.run != Run::Done {
            t.last_exit = Some(exit.clone());
            t.observed.run = Run::Ended(exit);
            self.dirty.insert(uid.to_string());
        }
    }
}
