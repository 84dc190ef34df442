//! Contact with the cluster: lease renewals, the fence that they extend, the Node's epoch.
//!
//! Promises: fenced tasks may go on only as long as the last renewal allows; nothing is reported
//! while the node may have been given up, nor before every task of a lower epoch was stopped.

use rota_supervisor::protocol::Request;
use rota_supervisor::sys;

use super::Core;
use crate::node::{self, Beat, GAP_MS};
use crate::outbox;
use crate::plan::Run;

/// How long fenced tasks may go on after the request of the last renewal was sent.
const FENCE_MS: u64 = 10_000;

impl Core {
    pub(super) fn on_beat(&mut self, beat: Beat) {
        match beat {
            Beat::Renewed { sent_boot_ms } => {
                if sent_boot_ms.saturating_sub(self.renewed_ms) >= GAP_MS {
                    self.gate_since = Some(sent_boot_ms);
                }
                self.renewed_ms = sent_boot_ms;
                self.extend_fence();
            }
            Beat::Epoch {
                epoch,
                read_boot_ms,
            } => {
                if epoch > self.epoch {
                    tracing::warn!(
                        from = self.epoch,
                        to = epoch,
                        "the node was given a new epoch: older tasks are stopped"
                    );
                    self.dirty.extend(self.tracked.keys().cloned());
                }
                self.epoch = self.epoch.max(epoch);
                if self.gate_since.is_some_and(|since| read_boot_ms >= since) {
                    self.gate_since = None;
                }
                // Tasks of this epoch may have waited for it.
                let waiting = self
                    .tracked
                    .iter()
                    .filter(|(_, t)| t.observed.run == Run::None);
                self.dirty.extend(waiting.map(|(uid, _)| uid.clone()));
            }
        }
    }

    pub(super) fn extend_fence(&self) {
        for link in &self.links {
            link.send(Request::Fence {
                until_boot_ms: self.renewed_ms + FENCE_MS,
            });
        }
    }

    /// Whether the API may be told anything now: only while it is certain that the node was not
    /// given up, or after the epoch was read again and older tasks are gone. Which ones are older
    /// is known from the list on.
    pub(super) fn may_report(&self) -> bool {
        self.listed
            && self.gate_since.is_none()
            && sys::boot_ms().saturating_sub(self.renewed_ms) < GAP_MS
            && (self.adopted == self.epoch || !self.has_older())
    }

    fn has_older(&self) -> bool {
        self.tracked.values().any(|t| {
            matches!(t.observed.run, Run::Live | Run::Stopping { .. })
                && t.desired
                    .as_ref()
                    .is_some_and(|d| d.spec.epoch < self.epoch)
        })
    }

    pub(super) fn adopt_epoch(&mut self) {
        if !self.listed || self.adopted == self.epoch || self.has_older() {
            return;
        }
        self.adopted = self.epoch;
        let (api, name, epoch) = (self.w.api.clone(), self.w.config.name.clone(), self.epoch);
        let look = self.w.look_now.clone();
        tokio::spawn(async move {
            let mut tries = 0;
            while let Err(e) = node::adopt_epoch(&api, &name, epoch).await {
                tracing::warn!(error = %e, "the adopted epoch cannot be written yet");
                tries += 1;
                tokio::time::sleep(outbox::pause(tries)).await;
            }
            look.notify_one();
        });
    }
}
