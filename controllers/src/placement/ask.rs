//! Ask: what a Job asks of the next scheduling cycle, as a demand. Pure, from memory.

use std::collections::HashMap;
use std::hash::Hash;

use jiff::Timestamp;
use rota_api::{Job, JobType};
use rota_scheduler::{Class, Demand, NEVER, QueueId, Run, Time};

use super::decide::room;
use super::memory::{JobMem, Memory};
use crate::lifecycle;

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

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// Forgets what came after the first `count`.
    pub fn cut(&mut self, count: u64) {
        self.0.retain(|_, id| *id <= count);
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
    owner: u64,
    pub priority: i32,
    pub created: Time,
    preemptible: bool,
    /// A Service's: it does not end by itself.
    stays: bool,
    /// How often a task saves its work by itself; 0: never.
    checkpoint: Time,
    gang: Option<GangMem>,
    /// How long one task is expected to run.
    run: Time,
    /// Within which it has ended almost surely.
    run_max: Time,
}

/// Milliseconds: the scheduler's unit of time here.
pub(super) fn millis(time: Timestamp) -> Time {
    time.as_millisecond()
}

impl Terms {
    /// The demand for `count` tasks beside `live` ones; None when nothing can start now.
    pub fn demand(
        &self,
        id: u64,
        class: &Class,
        queue: QueueId,
        count: u32,
        live: u64,
    ) -> Option<Demand> {
        let live = u32::try_from(live).unwrap_or(u32::MAX);
        let min = self.gang.map_or(0, |g| g.needed.saturating_sub(live));
        // Some of the members are still ending, or wait out a back-off: a gang cannot start yet.
        if count == 0 || min > count {
            return None;
        }
        Some(Demand {
            owner: self.owner,
            priority: self.priority,
            created: self.created,
            run: self.run,
            run_max: self.run_max,
            gang: self.gang.map_or(0, |g| g.id),
            min,
            healing: min > 0 && live > 0,
            preemptible: self.preemptible,
            checkpoint: self.checkpoint,
            stays: self.stays,
            ..Demand::new(id, class.clone(), queue, count)
        })
    }

    /// The terms of a task that need not do so many seconds of its work again.
    fn resumed(&self, saved_seconds: i64) -> Terms {
        let less = |span: Time| match span {
            NEVER => NEVER,
            span => span
                .saturating_sub(saved_seconds.saturating_mul(1000))
                .max(1),
        };
        Terms {
            run: less(self.run),
            run_max: less(self.run_max),
            ..*self
        }
    }

    /// How much of its work a task that ran for so many milliseconds has saved, in seconds.
    pub fn saved_seconds(&self, ran: Time) -> i64 {
        match self.checkpoint {
            0 => 0,
            period => ran / period * period / 1000,
        }
    }

    /// Within which a task has ended almost surely.
    pub fn run_max(&self) -> Time {
        self.run_max
    }

    /// Number of its gang.
    pub fn gang(&self) -> Option<u64> {
        self.gang.map(|g| g.id)
    }

    /// How many tasks must start together beside `live` ones; at least 1.
    pub fn together(&self, live: u32) -> u32 {
        let needed = self.gang.map_or(1, |g| g.needed);
        needed.saturating_sub(live).max(1)
    }

    /// What is known of a task of the Job that has run since `start`.
    fn run(&self, serial: u64, start: Time) -> Run {
        Run {
            demand: serial,
            gang: self.gang.map_or(0, |g| g.id),
            owner: self.owner,
            priority: self.priority,
            start,
            end: start.saturating_add(self.run),
            end_max: start.saturating_add(self.run_max),
            checkpoint: self.checkpoint,
            preemptible: self.preemptible,
            stays: self.stays,
        }
    }
}

impl JobMem {
    /// Tasks that are left to run, whether they run already or not.
    pub(super) fn left(&self) -> u64 {
        match self.rules.type_ {
            JobType::Batch => self.book.unfinished(),
            JobType::Service => self.wanted.indexes.len(),
        }
    }
}

impl Memory {
    /// The terms of a Job of which so many tasks are left to run. Its queue may bound its priority.
    pub(super) fn terms(&mut self, job: &Job, left: u64) -> Terms {
        let meta = &job.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let queue = self.queues.get(&job.spec.queue);
        let priority_max = queue.and_then(|q| q.queue.as_ref()?.spec.max_priority);
        let preemption = job.spec.preemption.as_ref();
        let checkpoint = preemption.and_then(|p| p.checkpoint.as_ref());
        let gang = job.spec.gang.as_ref().map(|gang| {
            let own = meta.name.clone().unwrap_or_default();
            let name = gang.name.clone().unwrap_or(own);
            let min = gang.min_available.map_or(u32::MAX, |n| n.max(1) as u32);
            let left = u32::try_from(left).unwrap_or(u32::MAX);
            GangMem {
                id: self.gangs.of((namespace.clone(), name)),
                needed: min.min(left).min(lifecycle::parallelism(job)),
            }
        });
        let (run, run_max) = self.expected(job);
        Terms {
            owner: self.namespaces.of(namespace),
            priority: job.spec.priority.min(priority_max.unwrap_or(i32::MAX)),
            created: meta.creation_timestamp.as_ref().map_or(0, |t| millis(t.0)),
            preemptible: preemption.is_none_or(|p| p.preemptible),
            stays: job.spec.type_ == JobType::Service,
            checkpoint: checkpoint.map_or(0, |c| c.period_seconds.saturating_mul(1000)),
            gang,
            run,
            run_max,
        }
    }

    /// The demand of a hungry Job; None when it has nothing to ask now.
    pub(super) fn demand(&self, serial: u64, job: &JobMem) -> Option<Demand> {
        let (make, terms) = (job.make.as_ref()?, job.terms.as_ref()?);
        let terms = terms.resumed(job.book.saved_next());
        terms.demand(serial, &make.class, make.queue, room(job), job.book.live())
    }

    /// What is known of the task of an index of a Job that has run since `start`.
    pub(super) fn run_since(&self, serial: u64, start: Time, index: u32) -> Run {
        let job = self.jobs.get(&serial);
        let known = job.and_then(|j| Some((j.terms.as_ref()?, j.book.saved(index))));
        match known {
            Some((terms, saved)) => terms.resumed(saved).run(serial, start),
            None => Run::since(start),
        }
    }
}
