//! What to write next, decided from memory: Tasks to create, stop and remove, ledger chunks to
//! write, Jobs to let go. And what the answers mean.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rota_api::names::{FINALIZER_LEDGER, ledger_name, task_name};
use rota_api::{Job, JobType, Task};
use rota_scheduler::check;
use rota_scheduler::{Cause, Demand, Options, cycle};
use serde_json::{Value, json};

use super::ask::millis;
use super::body::{Mould, ledger_item};
use super::memory::{JobMem, Make, Memory, Stand, TaskMem};
use super::need;
use super::promise::Behind;
use super::rules::Whose;
use crate::lifecycle::{self, Hold, Ledger};
use crate::runtime::{Failure, Key};

/// Tasks created by one cycle at most, so that a cycle and its request stay short.
const PLACEMENTS_MAX: u32 = 1000;
/// Creates on their way at most; above that the next cycle waits for answers.
const CREATING_MAX: usize = 4000;
/// Work units of a cycle: about a tenth of a second.
const BUDGET: u64 = 10_000_000;
/// After this long, in milliseconds, a Job that cannot start keeps newcomers off the nodes that it
/// will need, though nobody knows when these will be free.
const PATIENCE: i64 = 60_000;
/// Tasks evicted by one cycle at most; Queues have their own bounds besides.
const EVICTIONS_MAX: u32 = 1000;
/// What an eviction costs a task besides lost work, in milliseconds: time to stop, a place in the
/// order, artifacts and images fetched again.
const RESTART: i64 = 30_000;
/// What one cycle may do.
pub(super) const OPTIONS: Options = Options {
    budget: BUDGET,
    placements: PLACEMENTS_MAX,
    evictions: EVICTIONS_MAX,
    patience: PATIENCE,
    restart: RESTART,
};
/// Numbers of groups above this are gangs', below it Jobs'.
const GANGS: u64 = 1 << 63;
/// Debug builds recompute everything after each cycle, as long as that is not dear.
const CHECKED_TASKS_MAX: usize = 200;
/// Pause of a Job whose Tasks the API refuses.
pub(super) const REFUSED_PAUSE: SignedDuration = SignedDuration::from_secs(5);

/// What a write is for.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Creates a Task.
    Create(Key),
    /// Writes a ledger chunk of a Job.
    Fold(u64, u32),
    /// Asks a Task to stop.
    Stop(Key),
    /// Removes a Task that is folded.
    Remove(Key),
    /// Deletes a ledger chunk of a Job that goes.
    DropLedger(u64, u32),
    /// Takes our finalizer off a Job.
    Release(u64),
    /// Tells a Job why it waits.
    JobStatus(u64),
    /// Tells a Queue how full it is.
    QueueStatus(String),
}

/// A bulk item, and what it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// What for.
    pub op: Op,
    /// As the bulk endpoint takes it.
    pub item: Value,
    /// Writes of one such number above 0 are stored together or not at all, as far as one
    /// transaction goes.
    pub together: u64,
}

/// The answer to a write.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Stored (or, for a create, found to be there already and ours).
    Done(Value),
    /// Not stored.
    Failed(Failure),
    /// A precondition failed; this is the object as it is now.
    Seen(Option<Value>),
}

/// Tasks of a Job, by its uid.
pub type TasksOf<'a> = &'a dyn Fn(&str) -> Vec<Arc<Task>>;

impl Memory {
    /// Decides again about Jobs that changed.
    pub fn decide(&mut self, tasks_of: TasksOf<'_>, now: Timestamp) {
        while let Some((time, serial)) = self.wakes.first().copied().filter(|(t, _)| *t <= now) {
            self.wakes.remove(&(time, serial));
            self.dirty.insert(serial);
        }
        while let Some((time, key)) = self.expiry.first().cloned().filter(|(t, _)| *t <= now) {
            self.expiry.remove(&(time, key.clone()));
            if let Some(job) = self.tasks.get(&key).and_then(|t| self.jobs.get_mut(&t.job)) {
                for shelf in &mut job.kept {
                    shelf.remove(&(time, key.clone()));
                }
            }
            self.removals.insert(key);
        }
        for serial in std::mem::take(&mut self.dirty) {
            self.decide_job(serial, tasks_of, now);
        }
    }

    /// When [`Memory::decide`] has something to do even if nothing changes.
    pub fn next_look(&self) -> Option<Timestamp> {
        let wake = self.wakes.first().map(|(time, _)| *time);
        let expiry = self.expiry.first().map(|(time, _)| *time);
        wake.into_iter().chain(expiry).min()
    }

    fn decide_job(&mut self, serial: u64, tasks_of: TasksOf<'_>, now: Timestamp) {
        let Some(job) = self.jobs.get_mut(&serial) else {
            return;
        };
        let ledger = Ledger {
            failed: job.book.failed().clone(),
            unreadable: job.book.unreadable,
            ..Ledger::default()
        };
        match &job.job {
            Some(object) => {
                job.wanted = lifecycle::wanted(object, &ledger);
                let n = match object.spec.type_ {
                    JobType::Batch => lifecycle::completions(object),
                    JobType::Service => lifecycle::parallelism(object),
                };
                if n != job.n {
                    job.n = n;
                    job.book.resize(n);
                }
            }
            None => job.wanted.hold = Hold::Deleted,
        }
        job.book.wake(now);
        if let Some(time) = job.book.next_wake() {
            self.wakes.insert((time, serial));
        }
        if let Some(time) = job.paused_until {
            if time <= now {
                job.paused_until = None;
            } else {
                self.wakes.insert((time, serial));
            }
        }
        self.stop_surplus(serial, tasks_of);
        self.give_up_gang(serial, tasks_of, now);
        // A promise may have become void with the Job's change.
        self.freed |= !self.promised.is_empty();
        let Some(job) = self.jobs.get(&serial) else {
            return;
        };
        if job.wanted.hold == Hold::Deleted {
            for key in &job.tasks {
                if self.tasks.get(key).is_some_and(|t| t.end.is_some()) {
                    self.removals.insert(key.clone());
                }
            }
            // A gang may have waited for this one.
            self.freed |= job.terms.as_ref().is_some_and(|t| t.gang().is_some());
            self.hungry.remove(&serial);
            self.leaving.insert(serial);
            return;
        }
        let known = self.jobs.get(&serial);
        let known = known.and_then(|j| Some((j.job.clone()?, j.left())));
        let terms = known.map(|(job, left)| self.terms(&job, left));
        self.set_terms(serial, terms);
        let make = self.make(serial);
        let Some(job) = self.jobs.get_mut(&serial) else {
            return;
        };
        job.make = make;
        let hungry = job.make.is_some() && job.paused_until.is_none() && room(job) > 0;
        if hungry {
            // Whatever changed about it, it deserves a look.
            job.starved = false;
            self.hungry.insert(serial);
        } else {
            self.hungry.remove(&serial);
        }
    }

    fn make(&mut self, serial: u64) -> Option<Make> {
        let job = self.jobs.get(&serial)?;
        if !job.wanted.runnable() {
            return None;
        }
        let object = job.job.as_ref()?;
        let key = Key::new(&job.owner.namespace, &job.wanted.revision);
        let revision = self.revisions.get(&key)?;
        let queue = self.queues.get(&object.spec.queue);
        let defaults = queue.and_then(|q| q.queue.as_ref()?.spec.default_resources.as_ref());
        let spec = &revision.spec.template.spec;
        let requests = need::requests(spec, defaults);
        let meta = revision.spec.template.metadata.as_ref();
        let whose = Whose {
            namespace: &job.owner.namespace,
            job: &job.owner.name,
            labels: meta.and_then(|m| m.labels.as_ref()),
        };
        let class = need::class(spec, &requests, whose);
        let mould = Mould::new(
            &job.owner,
            revision,
            &requests,
            &object.spec.queue,
            object.spec.priority,
            job.n,
        );
        let queue = self.cluster.queue(&object.spec.queue);
        Some(Make {
            mould,
            class,
            queue,
        })
    }

    fn stop_surplus(&mut self, serial: u64, tasks_of: TasksOf<'_>) {
        let Some(job) = self.jobs.get(&serial) else {
            return;
        };
        let over = job.book.live() > u64::from(job.wanted.parallelism);
        let service = job.rules.type_ == JobType::Service;
        let idle = !job.wanted.runnable() && job.book.live() > 0;
        let keys: Vec<Key> = match &job.job {
            None => job.tasks.iter().cloned().collect(),
            Some(object) if over || service || idle => {
                let tasks = tasks_of(&job.owner.uid);
                let surplus = lifecycle::surplus(object, &job.wanted, &tasks);
                surplus.iter().map(|t| Key::of(&t.metadata)).collect()
            }
            Some(_) => return,
        };
        for key in keys {
            let task = self.tasks.get(&key);
            if task
                .is_some_and(|t| t.end.is_none() && t.uid.is_some() && !t.deleting && !t.stop_sent)
            {
                self.stops.insert(key);
            }
        }
    }

    /// Runs a scheduling cycle over what is hungry; answers the Tasks to create.
    pub fn place(&mut self, now: Timestamp) -> Vec<Write> {
        let mut writes = std::mem::take(&mut self.resend);
        writes.extend(self.keep_promises());
        let room_left = CREATING_MAX.saturating_sub(self.creating);
        if room_left == 0 {
            return writes;
        }
        self.freed = false;
        // What waits from before is asked again each time: it may hold a reservation, which what
        // is new must not delay. Looking at a class that did not fit before costs next to nothing.
        let (mut serials, mut short) = (Vec::new(), Vec::new());
        let mut demands = Vec::new();
        for serial in &self.hungry {
            let job = self.jobs.get(serial);
            let demand = job.and_then(|job| self.demand(*serial, job));
            // A gang whose members are not all ready, or not all there: its next change is looked at.
            let short_of = |d: &Demand| d.min > 0 && self.gang_is_short(*serial).is_some();
            let Some(demand) = demand.filter(|d| !short_of(d)) else {
                short.push(*serial);
                continue;
            };
            serials.push(*serial);
            demands.push(demand);
        }
        for serial in short {
            if let Some(job) = self.jobs.get_mut(&serial) {
                job.starved = true;
                self.status.insert(serial);
            }
        }
        if demands.is_empty() {
            return writes;
        }
        let options = Options {
            placements: PLACEMENTS_MAX.min(u32::try_from(room_left).unwrap_or(u32::MAX)),
            ..OPTIONS
        };
        self.allow_evictions(now);
        self.cluster.advance(millis(now));
        let outcome = cycle(&mut self.cluster, &demands, millis(now), options);
        debug_assert!(
            self.cluster.task_count() > CHECKED_TASKS_MAX || check::check(&self.cluster).is_empty(),
            "{:?}",
            check::check(&self.cluster)
        );
        self.evict(&outcome, &serials, now);
        // A gang of which one member must wait for others to leave starts when all can.
        let waits: BTreeSet<u64> = outcome
            .placements
            .iter()
            .filter(|p| p.waits)
            .map(|p| group(&demands[p.demand as usize]))
            .collect();
        let mut begun = BTreeSet::new();
        for placement in &outcome.placements {
            let serial = serials[placement.demand as usize];
            let node = self.cluster.node_name(placement.node).to_string();
            let Some(job) = self.jobs.get_mut(&serial) else {
                continue;
            };
            let (Some((index, attempt)), Some(make)) = (job.book.take(), &job.make) else {
                // The demand was made from this very book, so this cannot be; nothing may leak though.
                self.cluster.release(placement.task);
                continue;
            };
            let name = task_name(&job.owner.name, &job.owner.uid, index, attempt);
            let key = Key::new(&job.owner.namespace, &name);
            let epoch = self.epochs.get(&node).copied().unwrap_or(0);
            let demand = &demands[placement.demand as usize];
            let write = Write {
                op: Op::Create(key.clone()),
                item: json!({
                    "verb": "create", "path": job.owner.collection("tasks"),
                    "body": make.mould.task(&name, index, attempt, &node, epoch),
                }),
                together: demand.gang,
            };
            job.tasks.insert(key.clone());
            job.told.placed(&node);
            job.behind = None;
            begun.insert(serial);
            self.holders.insert(placement.task, key.clone());
            let waits = waits.contains(&group(demand));
            if waits {
                self.promised.add(group(demand), key.clone(), write);
            } else {
                self.creating += 1;
                writes.push(write);
            }
            let task = TaskMem {
                job: serial,
                uid: None,
                index,
                attempt,
                node,
                held: Some(placement.task),
                stand: if waits {
                    Stand::Promised
                } else {
                    Stand::Creating
                },
                end: None,
                deleting: false,
                stop_sent: false,
                remove_sent: false,
            };
            self.tasks.insert(key, task);
        }
        for serial in begun {
            self.started(serial, now);
        }
        for waiting in &outcome.waiting {
            let serial = serials[waiting.demand as usize];
            if waiting.cause == Cause::Budget {
                self.freed = true;
            } else if let Some(job) = self.jobs.get_mut(&serial) {
                job.starved = true;
                job.behind = Behind::of(waiting.cause, &outcome.reservations, &serials);
                self.status.insert(serial);
            }
        }
        for serial in serials {
            let done = self.jobs.get(&serial).is_none_or(|job| room(job) == 0);
            if done {
                self.hungry.remove(&serial);
                self.status.insert(serial);
            }
        }
        writes
    }

    /// Whether [`Memory::place`] may have something to do.
    pub fn wants_to_place(&self) -> bool {
        let look = |serial: &u64| self.jobs.get(serial).is_some_and(|j| !j.starved);
        !self.resend.is_empty()
            || (self.creating < CREATING_MAX
                && !self.hungry.is_empty()
                && (self.freed || self.hungry.iter().any(look)))
            || (self.freed && !self.promised.is_empty())
    }

    /// Whether [`Memory::tidy`] or [`Memory::farewells`] may have something to do.
    pub fn wants_to_tidy(&self) -> bool {
        let ready = |serial: &u64| {
            self.jobs
                .get(serial)
                .is_some_and(|j| j.tasks.is_empty() && !j.releasing)
        };
        !self.chunks.is_empty()
            || !self.stops.is_empty()
            || !self.removals.is_empty()
            || self.leaving.iter().any(ready)
    }

    /// Whether [`Memory::job_statuses`] may have something to do.
    pub fn wants_to_tell(&self) -> bool {
        !self.status.is_empty() || !self.notes.is_empty()
    }

    /// Folds, stops and removals that are due, at most `max`.
    pub fn tidy(&mut self, max: usize) -> Vec<Write> {
        let mut writes = Vec::new();
        let due: Vec<(u64, u32)> = self.chunks.iter().take(max).copied().collect();
        for (serial, number) in due {
            self.chunks.remove(&(serial, number));
            if let Some(job) = self.jobs.get_mut(&serial)
                && let Some(write) = job.book.write(number)
            {
                writes.push(Write {
                    op: Op::Fold(serial, number),
                    item: ledger_item(&job.owner, &write),
                    together: 0,
                });
            }
        }
        while writes.len() < max
            && let Some(key) = self.stops.pop_first()
        {
            if let Some(task) = self.tasks.get_mut(&key)
                && task.end.is_none()
                && !task.deleting
                && !task.stop_sent
            {
                task.stop_sent = true;
                let item = json!({
                    "verb": "delete", "path": task_path(&key), "preconditions": uid(task),
                });
                writes.push(Write {
                    op: Op::Stop(key),
                    item,
                    together: 0,
                });
            }
        }
        while writes.len() < max
            && let Some(key) = self.removals.pop_first()
        {
            if let Some(task) = self.tasks.get_mut(&key)
                && task.stand == Stand::Folded
                && !task.remove_sent
            {
                task.remove_sent = true;
                let item = json!({
                    "verb": "delete", "path": task_path(&key), "preconditions": uid(task),
                    "dropFinalizers": [FINALIZER_LEDGER],
                });
                writes.push(Write {
                    op: Op::Remove(key),
                    item,
                    together: 0,
                });
            }
        }
        writes
    }

    /// Jobs that are being deleted and have no Tasks left are let go.
    pub fn farewells(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        let (mut forget, mut held) = (Vec::new(), Vec::new());
        for serial in &self.leaving {
            let Some(job) = self.jobs.get_mut(serial) else {
                continue;
            };
            if job.wanted.hold != Hold::Deleted || !job.tasks.is_empty() || job.releasing {
                continue;
            }
            let chunks = job.book.chunk_numbers();
            for number in &chunks {
                let name = ledger_name(&job.owner.name, &job.owner.uid, *number);
                let path = format!("{}/{name}", job.owner.collection("jobledgers"));
                writes.push(Write {
                    op: Op::DropLedger(*serial, *number),
                    item: json!({"verb": "delete", "path": path}),
                    together: 0,
                });
                job.releasing = true;
            }
            if !chunks.is_empty() {
                continue;
            }
            let Some(object) = &job.job else {
                forget.push(*serial);
                continue;
            };
            match release(object, job) {
                Some(item) => {
                    job.releasing = true;
                    writes.push(Write {
                        op: Op::Release(*serial),
                        item,
                        together: 0,
                    });
                }
                // Others hold it; the watch tells when it goes.
                None => held.push(*serial),
            }
        }
        for serial in held {
            self.leaving.remove(&serial);
        }
        for serial in forget {
            self.forget(serial);
        }
        writes
    }
}

/// What starts together: the gang, or else the demand.
fn group(demand: &Demand) -> u64 {
    match demand.gang {
        0 => demand.id,
        gang => GANGS + gang,
    }
}

/// How many more Tasks the Job may have now.
pub(super) fn room(job: &JobMem) -> u32 {
    let free = u64::from(job.wanted.parallelism).saturating_sub(job.book.live());
    u32::try_from(free.min(job.book.ready())).unwrap_or(u32::MAX)
}

fn task_path(key: &Key) -> String {
    let (namespace, name) = (key.namespace(), key.name());
    format!("/apis/rota.dev/v1/namespaces/{namespace}/tasks/{name}")
}

fn uid(task: &TaskMem) -> Value {
    match &task.uid {
        Some(uid) => json!({ "uid": uid }),
        None => json!({}),
    }
}

/// The bulk item that takes our finalizer off; None when it is not there.
fn release(object: &Job, job: &JobMem) -> Option<Value> {
    let finalizers = object.metadata.finalizers.as_ref()?;
    if !finalizers.iter().any(|f| f == FINALIZER_LEDGER) {
        return None;
    }
    let rest: Vec<&String> = finalizers
        .iter()
        .filter(|f| *f != FINALIZER_LEDGER)
        .collect();
    Some(json!({
        "verb": "patch",
        "path": format!("{}/{}", job.owner.collection("jobs"), job.owner.name),
        "preconditions": {"uid": job.owner.uid, "resourceVersion": object.metadata.resource_version},
        "body": {"metadata": {"finalizers": rest}},
    }))
}
