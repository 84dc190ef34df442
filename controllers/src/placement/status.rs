//! What placement tells people of Jobs: `waitingFor`, the conditions Admitted, Scheduled and
//! DeadlineFeasible, Events.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use rota_api::{Job, WaitReason, WaitingFor};
use rota_scheduler::{Holder, NEVER, explain};
use serde_json::{Value, json};

use super::decide::{Answer, Op, Write};
use super::memory::{JobMem, Memory};
use super::outlook;
use super::why;
use crate::lifecycle::{self, Edges, Hold};
use crate::runtime::{Failure, Note, Regarding};

/// A `waitingFor` that changes is written at most this often; its first word and its end at once.
const WAITING_EVERY: SignedDuration = SignedDuration::from_secs(60);
/// Smaller changes of a forecast are not told.
const FORECAST_STEP: SignedDuration = SignedDuration::from_secs(60);
/// Longest message of a reason, as the schema allows.
const MESSAGE_MAX: usize = 1024;
/// Jobs looked at per tick; each may cost one look at every node state.
const JOBS_PER_TICK: usize = 200;
/// A summary of placements is told at most this often per Job.
const SUMMARY_EVERY: SignedDuration = SignedDuration::from_secs(30);

/// What was told about a Job.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// When `waitingFor` was last written.
    at: Option<Timestamp>,
    in_flight: bool,
    /// Version on which the last write was refused: nothing is tried before a newer one is seen.
    refused: Option<String>,
    /// Placed since the last summary, and on which nodes.
    placed: u32,
    nodes: BTreeSet<String>,
    summary: Option<Timestamp>,
}

impl Told {
    pub fn placed(&mut self, node: &str) {
        self.placed += 1;
        if !self.nodes.contains(node) {
            self.nodes.insert(node.to_owned());
        }
    }
}

impl Memory {
    /// Status writes of Jobs that are due, and Events.
    pub fn job_statuses(&mut self, now: Timestamp) -> (Vec<Write>, Vec<Note>) {
        let (mut writes, mut notes) = (Vec::new(), std::mem::take(&mut self.notes));
        let mut later = BTreeSet::new();
        if self.look_ahead(now) {
            self.status.extend(&self.hungry);
        }
        for _ in 0..JOBS_PER_TICK.min(self.status.len()) {
            // Round and round, so that jobs which stay in the set do not keep others out.
            let next = self.status.range(self.status_from..).next();
            let Some(serial) = next.or(self.status.first()).copied() else {
                break;
            };
            self.status.remove(&serial);
            self.status_from = serial + 1;
            if let Some(job) = self.jobs.get_mut(&serial)
                && summarize(job, now, &mut notes)
            {
                later.insert(serial);
            }
            if self.tell_job(serial, now, &mut writes, &mut notes) {
                later.insert(serial);
            }
        }
        self.status.append(&mut later);
        (writes, notes)
    }

    /// Returns whether to look again later.
    fn tell_job(
        &mut self,
        serial: u64,
        now: Timestamp,
        writes: &mut Vec<Write>,
        notes: &mut Vec<Note>,
    ) -> bool {
        let Some(object) = self.jobs.get(&serial).and_then(|j| j.job.clone()) else {
            return false;
        };
        if object.metadata.deletion_timestamp.is_some() {
            return false;
        }
        let Some(wanted) = self.waiting(serial, &object) else {
            return true;
        };
        let Some(job) = self.jobs.get_mut(&serial) else {
            return false;
        };
        if job.told.in_flight {
            return true;
        }
        let version = object.metadata.resource_version.clone();
        if job.told.refused.is_some() && job.told.refused == version {
            return true;
        }
        let status = object.status.as_ref();
        let known = status.and_then(|s| s.waiting_for.as_ref());
        let conditions = conditions(&object, job, wanted.as_ref(), now);
        let same_reasons = words(known) == words(wanted.as_ref());
        let moved = moved(known, wanted.as_ref(), now);
        if same_reasons && !moved && conditions.is_none() {
            return false;
        }
        let early = job
            .told
            .at
            .is_some_and(|at| now.duration_since(at) < WAITING_EVERY);
        if early && wanted.is_some() && known.is_some() {
            return true;
        }
        let mut patch = json!({});
        if !same_reasons || moved {
            // A merge patch keeps what it does not name.
            patch["waitingFor"] = json!(wanted);
            if let Some(wanted) = &wanted {
                if wanted.smallest_change.is_none() {
                    patch["waitingFor"]["smallestChange"] = Value::Null;
                }
                if wanted.estimated_start.is_none() {
                    patch["waitingFor"]["estimatedStart"] = Value::Null;
                }
            }
        }
        if let Some(conditions) = conditions {
            patch["conditions"] = json!(conditions);
        }
        if let Some(wanted) = wanted
            .as_ref()
            .filter(|_| !same_reasons && object_waits(&object))
        {
            let each: Vec<&str> = wanted.reasons.iter().map(|r| r.message.as_str()).collect();
            let mut message = each.join("; ");
            if let Some(change) = &wanted.smallest_change {
                message = format!("{message}. It would help to {change}.");
            }
            let regarding = Regarding::of::<Job>(&object.metadata);
            notes.push(Note::warning(regarding, "FailedScheduling", message));
        }
        job.told.in_flight = true;
        job.told.refused = None;
        job.told.at = Some(now);
        writes.push(Write {
            op: Op::JobStatus(serial),
            together: 0,
            item: json!({
                "verb": "status",
                "path": format!("{}/{}", job.owner.collection("jobs"), job.owner.name),
                "preconditions": {"uid": job.owner.uid, "resourceVersion": version},
                "body": {"status": patch},
            }),
        });
        true
    }

    /// Why the Job waits now; `Some(None)` if it does not; None while that is open.
    pub(super) fn waiting(&mut self, serial: u64, object: &Job) -> Option<Option<WaitingFor>> {
        let job = self.jobs.get(&serial)?;
        let hold = job.wanted.hold;
        if hold == Hold::NotStarted && !lifecycle::is_finished(object) {
            let namespace = job.owner.namespace.clone();
            let find = |name: &str| self.job_named(&namespace, name);
            let text = match lifecycle::edges(object, &find) {
                Edges::Open => return Some(None),
                Edges::Waiting(text) | Edges::Never(text) => text,
                Edges::Cycle(names) => format!("waits for itself: {}", names.join(" -> ")),
            };
            return Some(Some(only(why::plain("AfterJob", text))));
        }
        if hold != Hold::No {
            return Some(None);
        }
        let job = self.jobs.get(&serial)?;
        let open = u64::from(job.wanted.parallelism).saturating_sub(job.book.live());
        if open == 0 || (job.book.ready() == 0 && job.book.delayed() == 0) {
            return Some(None);
        }
        if job.book.ready() == 0 || job.paused_until.is_some() {
            let count = job.book.delayed();
            let text = if job.paused_until.is_some() {
                "its tasks were refused, or its gang did not run in full: it tries again in a while"
                    .to_string()
            } else {
                format!("{count} failed or finished before and wait out their back-off")
            };
            return Some(Some(only(why::plain("BackOff", text))));
        }
        if !job.starved {
            return None;
        }
        if job.book.live() == 0
            && let Some(text) = self.gang_is_short(serial)
        {
            return Some(Some(only(why::plain("Gang", text))));
        }
        if self.demand(serial, job).is_none() {
            let text = "too few tasks of its gang are ready: others wait out a back-off, or are still ending";
            return Some(Some(only(why::plain("BackOff", text))));
        }
        let make = job.make.as_ref()?;
        let behind = job.behind;
        let (class, queue) = (make.class.clone(), make.queue);
        let live = u32::try_from(job.book.live()).unwrap_or(u32::MAX);
        let terms = job.terms.as_ref();
        let together = terms.map_or(1, |t| t.together(live));
        let why = explain(&mut self.cluster, &class, queue, together);
        let gang = object.spec.gang.is_some() && !self.freed && why.blockers.is_empty();
        let name = |serial: u64| {
            let job = self.jobs.get(&serial);
            job.map_or_else(String::new, |j| {
                format!("{}/{}", j.owner.namespace, j.owner.name)
            })
        };
        let behind = behind.map(|b| b.words(&name)).or_else(|| {
            let text = "its tasks fit, but not together with those of the other Jobs of its gang";
            gang.then(|| why::plain("Gang", text))
        });
        if why.blockers.is_empty() && behind.is_none() {
            // Something was freed since the last cycle: the next one decides.
            return None;
        }
        let mut waiting = why::waiting_for(&why, &object.spec.queue);
        self.tell_holders(&why.holders, &mut waiting);
        waiting.estimated_start = self.estimated_start(serial);
        Some(Some(why::after(behind, waiting)))
    }

    /// Adds who holds what lacks to the first reason that says that something lacks.
    fn tell_holders(&self, holders: &[Holder], waiting: &mut WaitingFor) {
        let lacks = |r: &&mut WaitReason| matches!(&*r.reason, "InsufficientResource" | "Gang");
        let Some(reason) = waiting.reasons.iter_mut().find(lacks) else {
            return;
        };
        let each = holders.iter().filter_map(|holder| {
            let owner = &self.jobs.get(&holder.demand)?.owner;
            let end = match Timestamp::from_millisecond(holder.end) {
                Ok(time) if holder.end != NEVER => {
                    format!(", the first to end about {}", time.strftime("%FT%TZ"))
                }
                _ => String::new(),
            };
            let tasks = if holder.tasks == 1 { "task" } else { "tasks" };
            Some(format!(
                "Job {}/{} ({} {tasks}{end})",
                owner.namespace, owner.name, holder.tasks
            ))
        });
        let each: Vec<String> = each.collect();
        if !each.is_empty() {
            reason.held_by = Some(each.join(", ").chars().take(MESSAGE_MAX).collect());
        }
    }

    pub(super) fn job_status_answered(&mut self, serial: u64, answer: Answer, _now: Timestamp) {
        let Some(job) = self.jobs.get_mut(&serial) else {
            return;
        };
        job.told.in_flight = false;
        if matches!(answer, Answer::Failed(_) | Answer::Seen(_)) {
            job.told.at = None;
            job.told.refused = job
                .job
                .as_ref()
                .and_then(|j| j.metadata.resource_version.clone());
            if !matches!(answer, Answer::Failed(Failure::NotFound(_))) {
                self.status.insert(serial);
            }
        }
    }
}

/// An Event is worth it only for a Job that has been seen to wait for nodes or its queue.
fn object_waits(object: &Job) -> bool {
    !lifecycle::is_finished(object)
        && object
            .status
            .as_ref()
            .is_some_and(|s| s.start_time.is_some())
}

pub(super) fn only(reason: WaitReason) -> WaitingFor {
    WaitingFor {
        reasons: vec![reason],
        smallest_change: None,
        estimated_start: None,
    }
}

/// Whether the forecast has moved enough to be told again: by more than a fifth of what is left
/// until then, and by more than a minute; or it came or went.
fn moved(old: Option<&WaitingFor>, new: Option<&WaitingFor>, now: Timestamp) -> bool {
    let of = |w: Option<&WaitingFor>| w.and_then(|w| w.estimated_start.clone());
    let (Some(old), Some(new)) = (of(old), of(new)) else {
        return of(old) != of(new) && new.is_some();
    };
    let far = |a: &Time, b: &Time| {
        let by = a.0.duration_since(b.0).abs();
        let left = a.0.duration_since(now).abs();
        by > FORECAST_STEP && by.as_millis() * 5 > left.as_millis()
    };
    far(&old.p50_time, &new.p50_time) || far(&old.p90_time, &new.p90_time)
}

/// What decides whether the set of reasons has changed.
fn words(waiting: Option<&WaitingFor>) -> Option<BTreeSet<(&str, Option<&str>)>> {
    let reasons = waiting?.reasons.iter();
    Some(
        reasons
            .map(|r| (r.reason.as_str(), r.resource.as_deref()))
            .collect(),
    )
}

fn summarize(job: &mut JobMem, now: Timestamp, notes: &mut Vec<Note>) -> bool {
    let told = &mut job.told;
    if told.placed == 0 {
        return false;
    }
    if told
        .summary
        .is_some_and(|at| now.duration_since(at) < SUMMARY_EVERY)
    {
        return true;
    }
    told.summary = Some(now);
    let (count, nodes) = (
        std::mem::take(&mut told.placed),
        std::mem::take(&mut told.nodes),
    );
    let place = match (nodes.len(), nodes.first()) {
        (1, Some(node)) => format!("node {node}"),
        (n, _) => format!("{n} nodes"),
    };
    let tasks = if count == 1 { "task" } else { "tasks" };
    if let Some(object) = &job.job {
        let regarding = Regarding::of::<Job>(&object.metadata);
        let message = format!("placed {count} {tasks} on {place}");
        notes.push(Note::normal(regarding, "Scheduled", message));
    }
    false
}

/// The Job's conditions with ours brought up to date; None if they are.
fn conditions(
    object: &Job,
    job: &JobMem,
    waiting: Option<&WaitingFor>,
    now: Timestamp,
) -> Option<Vec<Condition>> {
    if job.wanted.hold != Hold::No {
        return None;
    }
    let status = object.status.as_ref();
    let mut list = status
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let generation = object.metadata.generation;
    let first = waiting.and_then(|w| w.reasons.first());
    let held = waiting
        .into_iter()
        .flat_map(|w| &w.reasons)
        .find(|r| matches!(r.reason.as_str(), "QueueLimit" | "QueueNotFound"));
    let admitted = match held {
        Some(reason) => ("False", reason.reason.as_str(), reason.message.as_str()),
        None => ("True", "Admitted", "the queue has room"),
    };
    let scheduled = match first {
        Some(reason) => ("False", reason.reason.as_str(), reason.message.as_str()),
        None => (
            "True",
            "Scheduled",
            "every task that is wanted now has a node",
        ),
    };
    let mut changed = set(&mut list, "Admitted", admitted, generation, now);
    changed |= set(&mut list, "Scheduled", scheduled, generation, now);
    if let Some(deadline) = outlook::deadline(object, job, waiting, now) {
        changed |= set(&mut list, "DeadlineFeasible", deadline, generation, now);
    }
    changed.then_some(list)
}

/// Sets a condition; a new message alone is no change.
pub(super) fn set(
    list: &mut Vec<Condition>,
    type_: &str,
    (status, reason, message): (&str, &str, &str),
    generation: Option<i64>,
    now: Timestamp,
) -> bool {
    let old = list.iter().position(|c| c.type_ == type_);
    let mut since = Time(now);
    if let Some(at) = old {
        let old = &list[at];
        if old.status == status && old.reason == reason {
            return false;
        }
        if old.status == status {
            since = old.last_transition_time.clone();
        }
        list.remove(at);
    }
    list.push(Condition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: since,
    });
    true
}
