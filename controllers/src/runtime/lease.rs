//! Leader election on a Lease in `rota-system`.
//!
//! Promises: a holder believes in its leadership for less time after each renewal (counted from
//! before it was sent) than any other waits after having seen that renewal, all on monotonic
//! clocks; so two never lead at once while clocks run at the same pace. What even a paused process
//! cannot get around is the fence: each change of holder raises `leaseTransitions`, the term, and
//! the API refuses writes of an older term.

use std::time::Duration;

use jiff::Timestamp;
use rota_api::names::{ANNOTATION_ADDRESS, SYSTEM_NAMESPACE};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff;
use super::client::{Failure, Rest};
use super::clock::Clock;

/// How quickly leadership changes hands.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// Others take over this long after they saw the last renewal.
    pub duration: Duration,
    /// Time between renewals.
    pub renew: Duration,
    /// Time between looks while another leads, and between failed renewals.
    pub retry: Duration,
}

impl Default for Timings {
    /// Fail-over within 5 s of a crash, with two renewals to spare.
    fn default() -> Self {
        Timings {
            duration: Duration::from_secs(5),
            renew: Duration::from_millis(1500),
            retry: Duration::from_secs(1),
        }
    }
}

impl Timings {
    /// How long after the start of its last successful renewal a holder still leads: a fifth less
    /// than the others wait, for clocks that do not run alike.
    pub fn believed(&self) -> Duration {
        self.duration.mul_f64(0.8)
    }
}

/// Takes part in the election for one Lease.
pub struct Candidate {
    rest: Rest,
    name: String,
    identity: String,
    address: String,
    timings: Timings,
    clock: Clock,
    seed: u64,
}

/// What [`Candidate::acquire`] won: a term.
#[derive(Debug)]
pub struct Leadership {
    /// Number of the term, for the fence.
    pub term: u64,
    lease: Value,
    until: Instant,
}

/// The last state of the Lease that was seen, and since when.
struct Sighting {
    version: String,
    since: Instant,
}

impl Candidate {
    /// A candidate; `identity` must be unique to this process.
    pub fn new(
        rest: Rest,
        name: &str,
        identity: &str,
        address: &str,
        timings: Timings,
        clock: Clock,
        seed: u64,
    ) -> Self {
        Candidate {
            rest,
            name: name.into(),
            identity: identity.into(),
            address: address.into(),
            timings,
            clock,
            seed,
        }
    }

    fn collection(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM_NAMESPACE}/leases")
    }

    fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }

    fn micro(now: Timestamp) -> String {
        // MicroTime is written with exactly six digits.
        format!("{now:.6}")
    }

    /// Waits until it leads. Returns None when `stop` fires first.
    pub async fn acquire(&self, stop: &CancellationToken) -> Option<Leadership> {
        let mut sighting: Option<Sighting> = None;
        let mut tries = 0u32;
        loop {
            tries = tries.wrapping_add(1);
            let attempt = stop
                .run_until_cancelled(self.try_acquire(&mut sighting))
                .await?;
            match attempt {
                Ok(Some(leadership)) => return Some(leadership),
                Ok(None) => {}
                Err(failure) => {
                    tracing::debug!(lease = %self.name, %failure, "cannot take the lease");
                }
            }
            let pause = backoff::jitter(
                self.seed,
                &self.identity,
                tries,
                self.timings.retry.mul_f64(0.8),
            );
            stop.run_until_cancelled(tokio::time::sleep(pause)).await?;
        }
    }

    async fn try_acquire(
        &self,
        sighting: &mut Option<Sighting>,
    ) -> Result<Option<Leadership>, Failure> {
        let sent = Instant::now();
        let lease: Value = match self.rest.get(&self.path()).await {
            Ok(lease) => lease,
            Err(Failure::NotFound(_)) => {
                let lease = self.held(
                    json!({
                        "apiVersion": "coordination.k8s.io/v1",
                        "kind": "Lease",
                        "metadata": {"name": self.name, "namespace": SYSTEM_NAMESPACE},
                        "spec": {},
                    }),
                    Some(1),
                );
                let created = self.rest.post(&self.collection(), &lease).await?;
                return Ok(Some(self.won(created, sent)));
            }
            Err(failure) => return Err(failure),
        };
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or("");
        if !holder.is_empty() && holder != self.identity {
            let version = lease["metadata"]["resourceVersion"]
                .as_str()
                .unwrap_or("")
                .to_string();
            // What this process saw counts, not the times in the Lease: clocks differ.
            let since = match sighting {
                Some(seen) if seen.version == version => seen.since,
                _ => {
                    let since = Instant::now();
                    *sighting = Some(Sighting { version, since });
                    since
                }
            };
            let seconds = lease["spec"]["leaseDurationSeconds"].as_u64().unwrap_or(0);
            let wait = Duration::from_secs(seconds.min(3600)).max(self.timings.duration);
            if since.elapsed() < wait {
                return Ok(None);
            }
        }
        // Held under this identity without leading: an earlier write whose answer was lost. That
        // term is ours and nobody else's, so it goes on.
        let ours = holder == self.identity;
        let term = lease["spec"]["leaseTransitions"].as_u64().unwrap_or(0) + u64::from(!ours);
        let lease = self.held(lease, Some(term));
        match self.rest.put(&self.path(), &lease).await {
            Ok(stored) => Ok(Some(self.won(stored, sent))),
            // Somebody was faster.
            Err(Failure::Conflict(_)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The Lease as held by this process now; with `term` it is a change of holder.
    fn held(&self, mut lease: Value, term: Option<u64>) -> Value {
        let now = Self::micro(self.clock.now());
        if !lease["spec"].is_object() {
            lease["spec"] = json!({});
        }
        let spec = &mut lease["spec"];
        spec["holderIdentity"] = json!(self.identity);
        // Whole seconds, rounded up: others must not wait for less.
        spec["leaseDurationSeconds"] = json!(self.timings.duration.as_secs_f64().ceil() as u64);
        spec["renewTime"] = json!(now);
        if let Some(term) = term {
            spec["acquireTime"] = json!(now);
            spec["leaseTransitions"] = json!(term);
        }
        if !self.address.is_empty() {
            if !lease["metadata"]["annotations"].is_object() {
                lease["metadata"]["annotations"] = json!({});
            }
            lease["metadata"]["annotations"][ANNOTATION_ADDRESS] = json!(self.address);
        }
        lease
    }

    fn won(&self, lease: Value, sent: Instant) -> Leadership {
        Leadership {
            term: lease["spec"]["leaseTransitions"].as_u64().unwrap_or(0),
            lease,
            until: sent + self.timings.believed(),
        }
    }

    /// Renews until leadership is lost or `stop` fires. On return the caller must stop what it
    /// does as a leader at once.
    pub async fn keep(&self, leadership: &mut Leadership, stop: &CancellationToken) {
        let mut pause = self.timings.renew;
        loop {
            let wake = (Instant::now() + pause).min(leadership.until);
            if stop
                .run_until_cancelled(tokio::time::sleep_until(wake))
                .await
                .is_none()
            {
                return;
            }
            let sent = Instant::now();
            if sent >= leadership.until {
                tracing::warn!(lease = %self.name, "leadership lost: no renewal in time");
                return;
            }
            let put = self.held(leadership.lease.clone(), None);
            let path = self.path();
            let renewal = tokio::time::timeout_at(leadership.until, self.rest.put(&path, &put));
            let answer = match stop.run_until_cancelled(renewal).await {
                None => return,
                Some(answer) => answer,
            };
            match answer {
                Ok(Ok(stored)) => {
                    leadership.lease = stored;
                    leadership.until = sent + self.timings.believed();
                    pause = self.timings.renew;
                }
                Ok(Err(Failure::Conflict(_))) => {
                    // Another holder, or an annotation was written beside us, or our own write
                    // whose answer was lost.
                    let read = self.rest.get::<Value>(&path);
                    match tokio::time::timeout_at(leadership.until, read).await {
                        Ok(Ok(lease))
                            if lease["spec"]["holderIdentity"] == json!(self.identity)
                                && lease["spec"]["leaseTransitions"] == json!(leadership.term) =>
                        {
                            leadership.lease = lease;
                            pause = Duration::ZERO;
                        }
                        Ok(Ok(_)) => {
                            tracing::warn!(lease = %self.name, "leadership lost to another");
                            return;
                        }
                        _ => pause = self.timings.retry,
                    }
                }
                Ok(Err(Failure::LeaseLost(_) | Failure::NotFound(_))) => {
                    tracing::warn!(lease = %self.name, "leadership lost");
                    return;
                }
                Ok(Err(failure)) => {
                    tracing::warn!(lease = %self.name, %failure, "cannot renew the lease");
                    pause = self.timings.retry;
                }
                Err(_) => {
                    tracing::warn!(lease = %self.name, "leadership lost: no renewal in time");
                    return;
                }
            }
        }
    }

    /// Gives the Lease up, so that another can take it at once. Call it only after all work of
    /// the term has stopped. Best effort: without it the Lease runs out.
    pub async fn release(&self, leadership: Leadership) {
        let mut lease = leadership.lease;
        lease["spec"]["holderIdentity"] = json!("");
        lease["spec"]["leaseTransitions"] = json!(leadership.term + 1);
        if let Some(annotations) = lease["metadata"]["annotations"].as_object_mut() {
            annotations.remove(ANNOTATION_ADDRESS);
        }
        let path = self.path();
        let put = self.rest.put(&path, &lease);
        match tokio::time::timeout(self.timings.retry, put).await {
            Ok(Ok(_)) => {}
            Ok(Err(failure)) => {
                tracing::debug!(lease = %self.name, %failure, "cannot release the lease");
            }
            Err(_) => tracing::debug!(lease = %self.name, "cannot release the lease in time"),
        }
    }
}
