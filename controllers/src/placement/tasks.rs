//! Tasks in memory: those that watches tell of, those of earlier terms, and what their ends mean.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rota_api::{JobType, Task};

use super::ask::millis;
use super::book::Found;
use super::fold::{End, end_of};
use super::memory::{KEEP_FAILED, KEEP_SUCCEEDED, Memory, Stand, TaskMem};
use super::{gang, need};
use crate::lifecycle::{self, Hold};
use crate::runtime::{Change, Key};

impl Memory {
    /// A Task came, changed or went.
    pub fn apply_task(&mut self, change: &Change<Task>, now: Timestamp) {
        let key = &change.key;
        let Some(task) = &change.new else {
            self.task_gone(key, now);
            return;
        };
        if !self.tasks.contains_key(key) {
            self.adopt(key, task);
        }
        let Some(memory) = self.tasks.get_mut(key) else {
            return;
        };
        let serial = memory.job;
        memory.uid = task.metadata.uid.clone();
        let deleting = task.metadata.deletion_timestamp.is_some();
        let news = deleting != memory.deleting;
        memory.deleting = deleting;
        if let Some(held) = memory.held.filter(|_| deleting) {
            self.cluster.leave(held);
        }
        if memory.stand == Stand::Creating {
            memory.stand = Stand::Live;
        }
        let Some(job) = self.jobs.get(&serial) else {
            return;
        };
        let timed = job.job.as_ref().is_some_and(|j| gang::timeout(j).is_some());
        if news || timed || job.rules.type_ == JobType::Service || !job.wanted.runnable() {
            self.dirty.insert(serial);
        }
        if let Some(end) = end_of(task)
            && memory.end.is_none()
        {
            memory.end = Some(end);
            let index = memory.index;
            if end == End::Succeeded {
                self.learn(task);
            } else if let Some(job) = self.jobs.get_mut(&serial)
                && let Some(terms) = &job.terms
            {
                job.book.save(index, terms.saved_seconds(ran(task)));
            }
            let restarts = task.status.as_ref().map_or(0, |s| s.restarts.max(0) as u32);
            self.ended(key, end, restarts, now);
        }
    }

    /// A Task that was not created in this term.
    fn adopt(&mut self, key: &Key, task: &Arc<Task>) {
        let spec = &task.spec;
        let serial = match self.by_uid.get(&spec.job_uid) {
            Some(serial) => *serial,
            None => self.remains(key.namespace(), &spec.job_name, &spec.job_uid),
        };
        let template = Key::new(key.namespace(), &spec.revision);
        let template = self.revisions.get(&template);
        let template = template.map(|r| &r.spec.template.spec);
        let created = task.metadata.creation_timestamp.as_ref();
        let started = task.status.as_ref().and_then(|s| s.started_time.as_ref());
        let since = started.or(created).map_or(0, |t| millis(t.0));
        let deleting = task.metadata.deletion_timestamp.is_some();
        let class = need::bound(task, template);
        let run = self.run_since(serial, since, spec.index.max(0) as u32);
        let Some(job) = self.jobs.get_mut(&serial) else {
            return;
        };
        let (index, attempt) = (spec.index.max(0) as u32, spec.attempt.max(0) as u32);
        let found = job.book.found(index, attempt);
        job.tasks.insert(key.clone());
        let held = lifecycle::is_live(task).then(|| {
            let queue = self.cluster.queue(&spec.queue);
            let held = self.cluster.bind(&spec.node_name, queue, &class, run);
            if deleting {
                self.cluster.leave(held);
            }
            self.holders.insert(held, key.clone());
            held
        });
        let memory = TaskMem {
            job: serial,
            uid: task.metadata.uid.clone(),
            index,
            attempt,
            node: spec.node_name.clone(),
            held,
            stand: match found {
                Found::Occupies => Stand::Live,
                Found::Superseded => Stand::Superseded,
            },
            end: None,
            deleting,
            stop_sent: false,
            remove_sent: false,
        };
        self.tasks.insert(key.clone(), memory);
        if found == Found::Superseded && lifecycle::is_live(task) {
            self.stops.insert(key.clone());
        }
        self.dirty.insert(serial);
    }

    /// A Task's attempt ended, for the first time that we hear of it.
    fn ended(&mut self, key: &Key, end: End, restarts: u32, now: Timestamp) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        if let Some(held) = task.held.take() {
            self.cluster.release(held);
            self.holders.remove(&held);
            self.freed = true;
        }
        let Some(job) = self.jobs.get_mut(&task.job) else {
            return;
        };
        let folded = match task.stand {
            Stand::Live | Stand::Creating => job.book.end(
                &job.rules,
                task.index,
                task.attempt,
                end,
                restarts,
                &task.node,
                now,
            ),
            _ => None,
        };
        match folded {
            Some(chunk) if job.wanted.hold != Hold::Deleted => {
                task.stand = Stand::Folding;
                job.folding.insert(task.index, key.clone());
                self.chunks.insert((task.job, chunk));
            }
            // Of a Job that goes, nothing needs to be remembered.
            _ => self.folded(key, now),
        }
    }

    /// The ledger shows a Task's end: it is kept a while, or removed.
    pub(super) fn folded(&mut self, key: &Key, now: Timestamp) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        task.stand = Stand::Folded;
        let Some(job) = self.jobs.get_mut(&task.job) else {
            return;
        };
        let (shelf, (time, count)) = match task.end {
            Some(End::Succeeded) => (0, KEEP_SUCCEEDED),
            Some(End::Taken { .. }) | None if task.deleting => (0, (SignedDuration::ZERO, 0)),
            _ => (1, KEEP_FAILED),
        };
        if count == 0 || task.deleting || job.wanted.hold == Hold::Deleted {
            self.removals.insert(key.clone());
            return;
        }
        let until = now.saturating_add(time).unwrap_or(now);
        job.kept[shelf].insert((until, key.clone()));
        self.expiry.insert((until, key.clone()));
        while job.kept[shelf].len() > count {
            if let Some((until, oldest)) = job.kept[shelf].pop_first() {
                self.expiry.remove(&(until, oldest.clone()));
                self.removals.insert(oldest);
            }
        }
    }

    /// A Task's object is gone.
    fn task_gone(&mut self, key: &Key, now: Timestamp) {
        let Some(task) = self.tasks.get(key) else {
            return;
        };
        let serial = task.job;
        if task.end.is_none() {
            // Somebody took the finalizer off: whatever ran there is not ours to know any more.
            self.ended(key, End::Taken { at_once: true }, 0, now);
        }
        self.tasks.remove(key);
        self.removals.remove(key);
        self.stops.remove(key);
        if let Some(job) = self.jobs.get_mut(&serial) {
            job.tasks.remove(key);
            for shelf in &mut job.kept {
                shelf.retain(|(_, k)| k != key);
            }
            if job.wanted.hold == Hold::Deleted || job.job.is_none() {
                self.dirty.insert(serial);
            }
        }
    }

    /// Takes what a Task holds back, when its create was refused.
    pub(super) fn uncreate(&mut self, key: &Key) {
        let Some(task) = self.tasks.remove(key) else {
            return;
        };
        if let Some(held) = task.held {
            self.cluster.release(held);
            self.holders.remove(&held);
            self.freed = true;
        }
        self.promised.remove(key);
        if let Some(job) = self.jobs.get_mut(&task.job) {
            job.tasks.remove(key);
            job.book.give_back(task.index);
            self.dirty.insert(task.job);
        }
    }
}

/// How long the last process of a Task ran, in milliseconds; 0 where nobody knows.
fn ran(task: &Task) -> i64 {
    let status = task.status.as_ref();
    let times = status.and_then(|s| Some((s.started_time.as_ref()?, s.finished_time.as_ref()?)));
    times.map_or(0, |(start, end)| (millis(end.0) - millis(start.0)).max(0))
}
