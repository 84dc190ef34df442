//! Statuses on their way: what is said about a task, the one bulk request in flight, its answer.
//!
//! Promise: the exits behind a terminal status are acknowledged once the API server took it or
//! refused it for good, never before.

use std::time::Duration;

use http::Method;
use rota_api::kinds::TaskPhase;
use rota_supervisor::sys;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Core;
use super::status::{ended, status, time};
use super::tracked::Tracked;
use crate::logs;
use crate::outbox::{self, Item, Verdict};
use crate::plan::{End, Run};

/// Starting is reported when preparing takes this long.
const STARTING_AFTER_MS: u64 = 500;
/// Longest wait for the answer to a bulk request.
const BULK_WAIT: Duration = Duration::from_secs(30);

impl Core {
    pub(super) fn say_starting(&mut self, uid: &str) {
        let Some(t) = self.tracked.get(uid) else {
            return;
        };
        if t.observed.run != Run::Preparing || t.observed.restarts > 0 {
            return;
        }
        let status = status(t, TaskPhase::Starting, Some("Preparing"), None);
        let item = Item {
            uid: uid.into(),
            path: t.path(),
            status,
            terminal: false,
        };
        self.outbox.put(item, sys::boot_ms() + STARTING_AFTER_MS);
    }

    pub(super) fn fail(&mut self, uid: &str, reason: &str, message: &str) {
        self.conclude(uid, |t| {
            let mut s = status(t, TaskPhase::Failed, Some(reason), Some(message));
            s["finishedTime"] = json!(time(sys::wall_ms()));
            s
        });
    }

    pub(super) fn report(&mut self, uid: &str, end: End) {
        match end {
            End::Exit => {
                self.conclude(uid, |t| match &t.last_exit {
                    Some(e) => ended(t, e),
                    None => status(t, TaskPhase::Lost, Some("Unknown"), None),
                });
            }
            End::Lost { reason, message } => self.conclude(uid, |t| {
                status(t, TaskPhase::Lost, Some(reason), Some(message))
            }),
            End::Refused { reason, message } => self.fail(uid, reason, message),
        }
    }

    fn conclude(&mut self, uid: &str, make: impl FnOnce(&Tracked) -> Value) {
        let Some(mut t) = self.tracked.remove(uid) else {
            return;
        };
        let status = make(&t);
        t.observed.run = Run::Done;
        self.release(&mut t);
        let item = Item {
            uid: uid.into(),
            path: t.path(),
            status,
            terminal: true,
        };
        self.outbox.put(item, sys::boot_ms());
        self.tracked.insert(uid.to_string(), t);
    }

    pub(super) fn send_statuses(&mut self) {
        let now = sys::boot_ms();
        if self.in_flight || now < self.paused_until || !self.may_report() {
            return;
        }
        let Some(batch) = self.outbox.batch(now) else {
            return;
        };
        self.in_flight = true;
        let (api, tx) = (self.w.api.clone(), self.sent_tx.clone());
        tokio::spawn(async move {
            let call = api.call(
                Method::POST,
                "/apis/rota.dev/v1/bulk",
                "application/json",
                batch.body,
            );
            let answer = match tokio::time::timeout(BULK_WAIT, call).await {
                Err(_) => Err("no answer".to_string()),
                Ok(Err(e)) => Err(e.to_string()),
                Ok(Ok(bytes)) => codes(&bytes),
            };
            let _ = tx.send((batch.items, answer)); // the core may have ended
        });
    }

    pub(super) fn on_sent(&mut self, items: Vec<(String, u64)>, answer: Result<Vec<u16>, String>) {
        self.in_flight = false;
        let now = sys::boot_ms();
        let codes = match answer {
            Ok(codes) if codes.len() == items.len() => codes,
            other => {
                let why = other
                    .err()
                    .unwrap_or_else(|| "the answer has another number of items".into());
                tracing::warn!(
                    error = why,
                    statuses = items.len(),
                    "statuses cannot be reported yet"
                );
                self.w.metrics.report_errors.inc();
                self.failures += 1;
                self.paused_until = now
                    + outbox::pause(self.failures)
                        .mul_f64(0.5 + rand::random::<f64>())
                        .as_millis() as u64;
                return;
            }
        };
        self.failures = 0;
        for ((uid, number), code) in items.into_iter().zip(codes) {
            let verdict = self.outbox.verdict(&uid, code);
            match verdict {
                Verdict::Taken => self.w.metrics.reported.inc(),
                Verdict::Dropped => {
                    tracing::info!(uid, code, "a status was refused for good");
                    self.w.metrics.dropped.inc()
                }
                Verdict::Retry => 0,
            };
            if let Some(item) = self.outbox.settle(&uid, number, verdict, now)
                && item.terminal
                && let Some(t) = self.tracked.get_mut(&uid)
            {
                for (g, id) in t.acks.drain(..) {
                    self.acks.entry(g).or_default().push(id);
                }
                t.tidied = true;
                let dir = logs::attempt_dir(&self.tasks_dir, &t.attempt());
                let last = item.status["phase"] == "Succeeded";
                self.trash.extend(dir.map(|d| (d, last)));
            }
        }
    }
}

#[derive(Deserialize)]
struct BulkResult {
    items: Vec<BulkItem>,
}
#[derive(Deserialize)]
struct BulkItem {
    #[serde(default)]
    code: Option<u16>,
}

/// Codes of a bulk answer: a Status has one, an object itself means success.
fn codes(bytes: &[u8]) -> Result<Vec<u16>, String> {
    let result: BulkResult =
        serde_json::from_slice(bytes).map_err(|e| format!("the answer cannot be read: {e}"))?;
    Ok(result
        .items
        .into_iter()
        .map(|i| i.code.unwrap_or(200))
        .collect())
}
