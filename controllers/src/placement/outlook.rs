//! Outlook: how long tasks run, learnt from those that ran; when waiting Jobs will start; and whether
//! deadlines can be kept. Pure, from memory.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time as MetaTime;
use rota_api::{EstimatedStart, Job, JobType, Task, WaitingFor};
use rota_scheduler::estimate::Estimates;
use rota_scheduler::forecast::{Calibration, deadline_feasible, forecast};
use rota_scheduler::{NEVER, Time};

use super::ask::millis;
use super::memory::{JobMem, Memory};
use crate::lifecycle;

/// Forecasts are made anew at most this often, in milliseconds: each plans everything that waits.
const EVERY: Time = 5_000;
/// Work units of one forecast: some tens of milliseconds.
pub(super) const BUDGET: u64 = 2_000_000;
/// Median and 90th percentile, in thousandths.
const QUANTILES: [u16; 2] = [500, 900];

/// What is expected.
pub(super) struct Outlook {
    estimates: Estimates,
    calibration: [Calibration; 2],
    /// By Job: median and 90th percentile of the start, corrected.
    starts: HashMap<u64, [Time; 2]>,
    made: Time,
}

impl Default for Outlook {
    fn default() -> Self {
        Outlook {
            estimates: Estimates::new(),
            calibration: QUANTILES.map(Calibration::new),
            starts: HashMap::new(),
            made: Time::MIN,
        }
    }
}

/// What runs alike: the namespace and the template. Names of JobRevisions end in a hash of it.
fn key(namespace: &str, revision: &str) -> u64 {
    let template = revision.rsplit('-').next().unwrap_or("");
    let mut hasher = DefaultHasher::new();
    (namespace, template).hash(&mut hasher);
    hasher.finish()
}

/// What a Job says about how long each of its tasks runs.
fn stated(job: &Job) -> Option<Time> {
    let seconds = job.spec.expected_duration_seconds?;
    Some(seconds.saturating_mul(1000))
}

impl Memory {
    /// How long one task of a Job is expected to run, and within which it has ended almost surely.
    pub(super) fn expected(&self, job: &Job) -> (Time, Time) {
        if job.spec.type_ == JobType::Service {
            return (NEVER, NEVER);
        }
        let said = stated(job);
        let namespace = job.metadata.namespace.as_deref().unwrap_or("");
        let revision = job.status.as_ref().and_then(|s| s.revision.as_deref());
        let learnt = revision.and_then(|r| self.outlook.estimates.predict(key(namespace, r), None));
        match (learnt, said) {
            (Some(learnt), _) => (learnt.p50, learnt.p95),
            (None, Some(said)) => (said, said),
            (None, None) => (NEVER, NEVER),
        }
    }

    /// Learns from a Task that ended well.
    pub(super) fn learn(&mut self, task: &Task) {
        let Some(status) = &task.status else {
            return;
        };
        let (Some(start), Some(end)) = (&status.started_time, &status.finished_time) else {
            return;
        };
        let namespace = task.metadata.namespace.as_deref().unwrap_or("");
        let ran = millis(end.0).saturating_sub(millis(start.0)).max(1);
        let estimates = &mut self.outlook.estimates;
        estimates.observe(key(namespace, &task.spec.revision), None, ran);
    }

    /// Plans ahead, if it is time. Answers whether it was.
    pub(super) fn look_ahead(&mut self, now: Timestamp) -> bool {
        let now = millis(now);
        if self.hungry.is_empty() || now < self.outlook.made.saturating_add(EVERY) {
            return false;
        }
        let (mut serials, mut demands) = (Vec::new(), Vec::new());
        for serial in &self.hungry {
            let job = self.jobs.get(serial).filter(|j| j.starved);
            if let Some(demand) = job.and_then(|job| self.demand(*serial, job)) {
                serials.push(*serial);
                demands.push(demand);
            }
        }
        let found = forecast(&mut self.cluster, &demands, now, BUDGET);
        let outlook = &mut self.outlook;
        outlook.made = now;
        outlook.starts.clear();
        let waiting: HashSet<u64> = serials.iter().copied().collect();
        for calibration in &mut outlook.calibration {
            calibration.retain(|serial| waiting.contains(&serial));
            calibration.advance(now);
        }
        for one in found {
            let serial = serials[one.demand as usize];
            if one.p50 == NEVER || one.p90 == NEVER {
                continue;
            }
            let wait = [one.p50, one.p90].map(|at| at.saturating_sub(now).max(0));
            let corrected = [0, 1].map(|q| outlook.calibration[q].tell(serial, now, wait[q]));
            let p50 = now.saturating_add(corrected[0]);
            let p90 = now.saturating_add(corrected[1]).max(p50);
            outlook.starts.insert(serial, [p50, p90]);
        }
        true
    }

    /// A Job that waited has started: its forecast is scored.
    pub(super) fn started(&mut self, serial: u64, now: Timestamp) {
        self.outlook.starts.remove(&serial);
        for calibration in &mut self.outlook.calibration {
            calibration.ended(serial, millis(now));
        }
    }

    /// The forecast of a waiting Job's next start.
    pub(super) fn estimated_start(&self, serial: u64) -> Option<EstimatedStart> {
        let [p50, p90] = *self.outlook.starts.get(&serial)?;
        estimated(p50, p90)
    }
}

/// A forecast as people are told it; None where nothing is known.
pub(super) fn estimated(p50: Time, p90: Time) -> Option<EstimatedStart> {
    let time = |at: Time| Some(MetaTime(Timestamp::from_millisecond(at).ok()?));
    let known = p50 != NEVER && p90 != NEVER;
    known.then_some(())?;
    Some(EstimatedStart {
        p50_time: time(p50)?,
        p90_time: time(p90)?,
    })
}

/// The condition DeadlineFeasible of a Job that has a deadline: status, reason, message.
pub(super) fn deadline(
    object: &Job,
    job: &JobMem,
    waiting: Option<&WaitingFor>,
    now: Timestamp,
) -> Option<(&'static str, &'static str, &'static str)> {
    let time = |t: &Option<MetaTime>| t.as_ref().map(|t| millis(t.0));
    let start_by = time(&object.spec.start_deadline_time);
    let end_by = time(&object.spec.finish_deadline_time);
    if start_by.is_none() && end_by.is_none() {
        return None;
    }
    let never = |w: &WaitingFor| w.reasons.iter().any(|r| r.reason == "NeverFits");
    if waiting.is_some_and(never) {
        return Some(("False", "NeverFits", "no node could hold one of its tasks"));
    }
    let estimate = waiting.and_then(|w| w.estimated_start.as_ref());
    let start = match (waiting, estimate) {
        (None, _) => Some(millis(now)),
        (Some(_), Some(estimate)) => Some(millis(estimate.p90_time.0)),
        (Some(_), None) => None,
    };
    let begun = job.book.live() > 0 || object.status.as_ref().is_some_and(|s| s.succeeded > 0);
    if let Some(by) = start_by.filter(|_| !begun) {
        match start {
            Some(start) if start > by => {
                return Some((
                    "False",
                    "StartsTooLate",
                    "it is not likely to start before startDeadlineTime",
                ));
            }
            None if millis(now) > by => {
                return Some(("False", "StartsTooLate", "startDeadlineTime has passed"));
            }
            _ => {}
        }
    }
    if let Some(by) = end_by {
        let run = job.terms.as_ref().map_or(NEVER, |t| t.run_max());
        let at_once = u64::from(lifecycle::parallelism(object)).max(1);
        let rounds = Time::try_from(job.left().div_ceil(at_once)).unwrap_or(Time::MAX);
        let whole = run.saturating_mul(rounds);
        let sure = start.filter(|_| run != NEVER);
        match sure {
            Some(start) if !deadline_feasible(start, whole, by) => {
                return Some((
                    "False",
                    "EndsTooLate",
                    "it is not likely to finish before finishDeadlineTime",
                ));
            }
            None if millis(now) > by => {
                return Some(("False", "EndsTooLate", "finishDeadlineTime has passed"));
            }
            Some(_) => {}
            None => {
                return Some((
                    "Unknown",
                    "NoForecast",
                    "nothing is known of when it starts or how long its tasks run",
                ));
            }
        }
    } else if start.is_none() {
        return Some((
            "Unknown",
            "NoForecast",
            "nothing is known of when it starts",
        ));
    }
    Some(("True", "Feasible", "it is likely to be kept"))
}
