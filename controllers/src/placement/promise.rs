//! Promises: Tasks that have a node which others must leave first, and who has to leave for them.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};
use rota_api::{Job, WaitReason};
use rota_scheduler::{Cause, NEVER, Outcome, Reservation, TaskId, Time};

use super::ask::millis;
use super::decide::Write;
use super::memory::{Memory, Stand};
use super::why;
use crate::runtime::{Key, Note, Regarding};

const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// What stands in a Job's way beyond nodes and queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// It would fit, but that would delay this Job (by serial), which is to start at that time.
    Reserved(Option<(u64, Time)>),
    /// This Job of its gang (by serial) does not fit.
    Gang(u64),
}

impl Behind {
    /// From what the cycle says; `serials` are the Jobs of its demands.
    pub fn of(cause: Cause, reservations: &[Reservation], serials: &[u64]) -> Option<Self> {
        match cause {
            Cause::Reserved => {
                let first = reservations.first();
                let first = first.map(|r| (serials[r.demand as usize], r.start));
                Some(Behind::Reserved(first))
            }
            Cause::Gang(demand) => Some(Behind::Gang(serials[demand as usize])),
            _ => None,
        }
    }

    /// In words; `name` says what a Job is called.
    pub fn words(self, name: &dyn Fn(u64) -> String) -> WaitReason {
        match self {
            Behind::Gang(job) => why::plain(
                "Gang",
                format!("Job {} of the same gang cannot start", name(job)),
            ),
            Behind::Reserved(None) => why::plain(
                "Reserved",
                "the nodes where it fits are kept for earlier Jobs",
            ),
            Behind::Reserved(Some((job, start))) => {
                let when = match Timestamp::from_millisecond(start) {
                    Ok(time) if start != NEVER => {
                        format!(", which is to start at {}", time.strftime("%FT%TZ"))
                    }
                    _ => String::new(),
                };
                let text = format!(
                    "the nodes where it fits are kept for Job {}{when}; this Job could not be sure to have ended by then",
                    name(job)
                );
                why::plain("Reserved", text)
            }
        }
    }
}

/// Creates that wait, by what starts together.
#[derive(Debug, Default)]
pub(super) struct Promised {
    groups: BTreeMap<u64, BTreeMap<Key, Write>>,
    group_of: HashMap<Key, u64>,
}

impl Promised {
    pub fn add(&mut self, group: u64, key: Key, write: Write) {
        self.group_of.insert(key.clone(), group);
        self.groups.entry(group).or_default().insert(key, write);
    }

    pub fn remove(&mut self, key: &Key) {
        if let Some(group) = self.group_of.remove(key)
            && let Some(writes) = self.groups.get_mut(&group)
        {
            writes.remove(key);
            if writes.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}

impl Memory {
    /// Creates whose nodes and queues are free for them now. What lost its node or its Job's wish
    /// to run is given back.
    pub(super) fn keep_promises(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        let groups: Vec<u64> = self.promised.groups.keys().copied().collect();
        for group in groups {
            let Some(members) = self.promised.groups.get(&group) else {
                continue;
            };
            let keys: Vec<Key> = members.keys().cloned().collect();
            let broken = keys.iter().any(|key| !self.still_wanted(key));
            if broken {
                for key in &keys {
                    self.uncreate(key);
                }
                continue;
            }
            let ready = keys.iter().all(|key| {
                let held = self.tasks.get(key).and_then(|t| t.held);
                held.is_some_and(|held| self.cluster.may_start(held))
            });
            if !ready {
                continue;
            }
            for (key, write) in self.promised.groups.remove(&group).unwrap_or_default() {
                self.promised.group_of.remove(&key);
                if let Some(task) = self.tasks.get_mut(&key) {
                    task.stand = Stand::Creating;
                }
                self.creating += 1;
                writes.push(write);
            }
        }
        writes
    }

    fn still_wanted(&self, key: &Key) -> bool {
        let Some(task) = self.tasks.get(key) else {
            return false;
        };
        let runnable = self.jobs.get(&task.job).is_some_and(|j| {
            j.wanted.runnable() && j.book.live() <= u64::from(j.wanted.parallelism)
        });
        runnable && self.cluster.node(&task.node).is_some()
    }

    /// Asks the tasks to leave that the cycle decided on.
    pub(super) fn evict(&mut self, outcome: &Outcome, serials: &[u64], now: Timestamp) {
        // Per pair of Jobs: how many, and one of them by name.
        let mut told: BTreeMap<(u64, u64), (u32, Key)> = BTreeMap::new();
        for eviction in &outcome.evictions {
            let Some(key) = self.holders.get(&eviction.task).cloned() else {
                continue;
            };
            let winner = serials[eviction.demand as usize];
            let Some(task) = self.tasks.get(&key) else {
                continue;
            };
            let loser = task.job;
            if task.stand == Stand::Promised {
                self.uncreate(&key);
                continue;
            }
            self.charge_waste(eviction.task, loser, winner, now);
            let entry = told.entry((loser, winner)).or_insert((0, key.clone()));
            entry.0 += 1;
            self.stops.insert(key);
        }
        for ((loser, winner), (count, key)) in told {
            self.tell_eviction(loser, winner, count, &key);
        }
    }

    /// Tells the scheduler how many tasks may still be evicted for each Queue within this hour.
    pub(super) fn allow_evictions(&mut self, now: Timestamp) {
        let hour_ago = now.saturating_sub(HOUR).unwrap_or(now);
        for (name, memory) in &mut self.queues {
            while memory.evicted.front().is_some_and(|at| *at <= hour_ago) {
                memory.evicted.pop_front();
            }
            let Some(queue) = &memory.queue else {
                continue;
            };
            let budget = queue.spec.preemption.budget_per_hour.max(0) as usize;
            let left = budget.saturating_sub(memory.evicted.len());
            let id = self.cluster.queue(name);
            let left = u32::try_from(left).unwrap_or(u32::MAX - 1);
            self.cluster.allow_evictions(id, left);
        }
    }

    /// Books what the eviction of a task throws away, and that the winner's queue evicted one.
    fn charge_waste(&mut self, task: TaskId, loser: u64, winner: u64, now: Timestamp) {
        let run = self.cluster.run_of(task);
        let lost = run.map_or(0, |run| i128::from(run.lost(millis(now))));
        let queue_of = |serial: u64| {
            let job = self.jobs.get(&serial)?.job.as_ref()?;
            Some(job.spec.queue.clone())
        };
        let (from, to) = (queue_of(loser), queue_of(winner));
        if let Some(queue) = from.and_then(|name| self.queues.get_mut(&name)) {
            for (resource, amount) in self.cluster.held_by(task) {
                let sum = queue.wasted.entry(resource.to_owned()).or_default();
                let wasted = i128::from(amount) * lost / 1000;
                *sum = sum.saturating_add(i64::try_from(wasted).unwrap_or(i64::MAX));
            }
        }
        if let Some(queue) = to.and_then(|name| self.queues.get_mut(&name)) {
            queue.evicted.push_back(now);
        }
    }

    fn tell_eviction(&mut self, loser: u64, winner: u64, count: u32, one: &Key) {
        let job = |serial: u64| self.jobs.get(&serial)?.job.clone();
        let (Some(loser), Some(winner)) = (job(loser), job(winner)) else {
            return;
        };
        let of = |job: &Job| {
            let meta = &job.metadata;
            let name = meta.name.as_deref().unwrap_or("");
            format!("{}/{name}", meta.namespace.as_deref().unwrap_or(""))
        };
        let why = if loser.spec.queue == winner.spec.queue {
            format!(
                "priority {} before {}",
                winner.spec.priority, loser.spec.priority
            )
        } else {
            format!(
                "Queue {} takes back from Queue {} what it is owed",
                winner.spec.queue, loser.spec.queue
            )
        };
        let tasks = match count {
            1 => format!("task {}", one.name()),
            n => format!("{n} tasks"),
        };
        let lost = format!("{tasks} evicted for Job {}: {why}", of(&winner));
        let won = format!("{tasks} of Job {} evicted: {why}", of(&loser));
        self.notes.push(Note::warning(
            Regarding::of::<Job>(&loser.metadata),
            "Preempted",
            lost,
        ));
        self.notes.push(Note::normal(
            Regarding::of::<Job>(&winner.metadata),
            "Preempting",
            won,
        ));
    }
}
