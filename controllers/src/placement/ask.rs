//! Ask: what a Job asks of the next scheduling cycle, as a demand. Pure, from memory.

use std::collections::HashMap;
use std::hash::Hash;

use jiff::Timestamp;
use rota_api::{Job, JobType};
use rota_scheduler::{Demand, NEVER, Run, Time};

use super::decide::room;
use super::memory::{JobMem, Memory};

/// Numbers for things that the scheduler knows by number, from 1; never forgotten in a term.
#[derive(Debug)]
pub(super) struct Ids<T>(HashMap<T, u64>);

impl<T> Default for Ids<T> {
    fn default() -> Self {
        Ids(HashMap::new())
    }
}

impl<T: Eq + Hash> Ids<T> {
    pub fn of(&mut self, name: T) -> u64 {
        let next = self.0.len() as u64 + 1;
        *self.0.entry(name).or_insert(next)
    }
}

/// The gang of a Job, as far as it goes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GangMem {
    pub id: u64,
    /// Tasks that must run together, of those that are left to run.
    pub needed: u32,
}

/// What of a Job counts for all of its tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub owner: u64,
    pub priority: i32,
    pub created: Time,
    pub deadline: Time,
    pub preemptible: bool,
    /// How often a task saves its work by itself; 0: never.
    pub checkpoint: Time,
    pub gang: Option<GangMem>,
}

/// Milliseconds: the scheduler's unit of time here.
pub(super) fn millis(time: Timestamp) -> Time {
    time.as_millisecond()
}

impl Memory {
    /// How long one task of a Job is expected to run, and within which it has ended almost surely.
    fn expected(&self, job: &JobMem) -> (Time, Time) {
        let object = job.job.as_ref();
        let stated = object.and_then(|j| j.spec.expected_duration_seconds);
        let stated = stated.map_or(NEVER, |seconds| seconds.saturating_mul(1000));
        (stated, stated)
    }

    /// The terms of a Job, whose queue may bound its priority.
    pub(super) fn terms(&mut self, job: &Job, serial: u64) -> Terms {
        let meta = &job.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let queue = self.queues.get(&job.spec.queue);
        let priority_max = queue.and_then(|q| q.queue.as_ref()?.spec.max_priority);
        let priority = job.spec.priority.min(priority_max.unwrap_or(i32::MAX));
        let checkpoint = job.spec.preemption.as_ref().and_then(|p| {
            let period = p.checkpoint.as_ref()?.period_seconds;
            Some(period.saturating_mul(1000))
        });
        let gang = job.spec.gang.as_ref().map(|gang| {
            let own = meta.name.clone().unwrap_or_default();
            let name = gang.name.clone().unwrap_or(own);
            let id = self.gangs.of((namespace.clone(), name));
            let min = gang.min_available.map_or(u32::MAX, |n| n.max(1) as u32);
            let book = self.jobs.get(&serial).map(|j| (&j.book, j.wanted.clone()));
            let needed = book.map_or(0, |(book, wanted)| {
                let left = match job.spec.type_ {
                    JobType::Batch => book.unfinished(),
                    JobType::Service => wanted.indexes.len(),
                };
                let left = u32::try_from(left).unwrap_or(u32::MAX);
                min.min(left).min(wanted.parallelism)
            });
            GangMem { id, needed }
        });
        Terms {
            owner: self.namespaces.of(namespace),
            priority,
            created: meta.creation_timestamp.as_ref().map_or(0, |t| millis(t.0)),
            deadline: job
                .spec
                .finish_deadline_time
                .as_ref()
                .map_or(NEVER, |t| millis(t.0)),
            preemptible: job.spec.preemption.as_ref().is_none_or(|p| p.preemptible),
            checkpoint: checkpoint.unwrap_or(0),
            gang,
        }
    }

    /// The demand of a hungry Job; None when it has nothing to ask now.
    pub(super) fn demand(&self, serial: u64, job: &JobMem) -> Option<Demand> {
        let make = job.make.as_ref()?;
        let terms = job.terms.as_ref()?;
        let count = room(job);
        let live = u32::try_from(job.book.live()).unwrap_or(u32::MAX);
        let min = terms.gang.map_or(0, |g| g.needed.saturating_sub(live));
        // Some of the members are still ending, or wait out a back-off: a gang cannot start yet.
        if count == 0 || min > count {
            return None;
        }
        let (run, run_max) = self.expected(job);
        Some(Demand {
            owner: terms.owner,
            priority: terms.priority,
            created: terms.created,
            run,
            run_max,
            deadline: terms.deadline,
            gang: terms.gang.map_or(0, |g| g.id),
            min,
            healing: min > 0 && live > 0,
            preemptible: terms.preemptible,
            checkpoint: terms.checkpoint,
            ..Demand::new(serial, make.class.clone(), make.queue, count)
        })
    }

    /// What is known of a task of a Job that has run since `start`.
    pub(super) fn run_since(&self, serial: u64, start: Time) -> Run {
        let job = self.jobs.get(&serial);
        let Some((job, terms)) = job.and_then(|j| Some((j, j.terms.as_ref()?))) else {
            return Run::since(start);
        };
        let (run, run_max) = self.expected(job);
        Run {
            demand: serial,
            gang: terms.gang.map_or(0, |g| g.id),
            owner: terms.owner,
            priority: terms.priority,
            start,
            end: start.saturating_add(run),
            end_max: start.saturating_add(run_max),
            checkpoint: terms.checkpoint,
            preemptible: terms.preemptible,
        }
    }
}
