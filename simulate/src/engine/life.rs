//! The life of a job in the simulation: its tasks start, end, are evicted or lost; it is closed.

use std::cmp::Reverse;

use rota_scheduler::{NEVER, Placement, TaskId, Time};

use super::record::Fate;
use super::{Sim, State, Task};
use crate::trace::events::Kind;

impl Sim<'_> {
    pub(super) fn start(&mut self, now: Time, number: usize, placement: &Placement) {
        let job = &self.trace.jobs[number];
        let state = &mut self.states[number];
        let (index, done) = state.again.pop_first().unwrap_or_else(|| {
            state.fresh += 1;
            (state.fresh - 1, 0)
        });
        if state.running == 0 {
            state.record.waited += now - state.since;
            state.record.nodes.clear();
        }
        state.running += 1;
        if state.record.start.is_none() {
            self.foresight.started(now, number);
        }
        state.record.start.get_or_insert(now);
        if state.waiting() == 0 {
            state.record.fate = Fate::Running;
        }
        let node = self.cluster.node_name(placement.node);
        if state.record.nodes.last().map(String::as_str) != Some(node) {
            state.record.nodes.push(node.to_string());
        }
        self.account.used(state.owner, state.share);
        self.account.hold(job.class.spec(), 1);
        let run = job.run(index);
        if run != NEVER {
            let end = now + (run - done).max(0);
            self.ends.push(Reverse((end, placement.task)));
        }
        if self.settings.log {
            let node = node.to_string();
            let job = job.id.clone();
            self.tell(now, Kind::Start { job, index, node });
        }
        self.tasks.insert(
            placement.task,
            Task {
                job: number,
                index,
                node: placement.node,
                start: now,
                done,
            },
        );
    }

    /// Takes a task that runs off its node.
    pub(super) fn stop(&mut self, id: TaskId) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        self.cluster.release(id);
        let state = &mut self.states[task.job];
        state.running -= 1;
        self.account.used(state.owner, -state.share);
        self.account
            .hold(self.trace.jobs[task.job].class.spec(), -1);
        Some(task)
    }

    pub(super) fn end(&mut self, now: Time, id: TaskId) {
        let Some(task) = self.stop(id) else {
            return;
        };
        let job = &self.trace.jobs[task.job];
        let state = &mut self.states[task.job];
        self.account.want(state.owner, -state.share);
        // Of a gang one task speaks for all.
        if job.min == 0 || state.running == 0 {
            let limit = (job.limit != NEVER).then_some(job.limit);
            let ran = task.done + (now - task.start);
            self.learnt.observe(state.kind, limit, ran);
        }
        if state.running == 0 && state.waiting() == 0 {
            self.close(now, task.job, Fate::Completed);
        }
        if self.settings.log {
            let job = self.trace.jobs[task.job].id.clone();
            self.tell(
                now,
                Kind::End {
                    job,
                    index: task.index,
                },
            );
        }
    }

    pub(super) fn close(&mut self, now: Time, number: usize, fate: Fate) {
        let state = &mut self.states[number];
        state.record.fate = fate;
        state.record.end = Some(now);
        let there = (now - state.record.submit) as f64;
        if there > 0.0 {
            state.record.load = (self.account.load_time() - state.load_before) / there;
        }
    }

    pub(super) fn evict(&mut self, now: Time, id: TaskId) {
        let Some(task) = self.stop(id) else {
            return;
        };
        let kept = self.kept(&task, now);
        self.totals.wasted += (now - task.start - kept).max(0) as f64;
        self.totals.evictions += 1;
        self.again(now, task, kept);
    }

    /// A task whose node is gone; of a gang all begin again together.
    pub(super) fn lose(&mut self, now: Time, id: TaskId) {
        let Some(task) = self.stop(id) else {
            return;
        };
        let number = task.job;
        let kept = self.kept(&task, now);
        self.again(now, task, kept);
        if self.trace.jobs[number].min > 0 {
            let others: Vec<TaskId> = self
                .tasks
                .iter()
                .filter(|(_, t)| t.job == number)
                .map(|(id, _)| *id)
                .collect();
            for id in others {
                if let Some(task) = self.stop(id) {
                    let kept = self.kept(&task, now);
                    self.again(now, task, kept);
                }
            }
        }
    }

    pub(super) fn again(&mut self, now: Time, task: Task, kept: Time) {
        let state = &mut self.states[task.job];
        state.again.insert(task.index, (task.done + kept).max(0));
        state.record.evictions += 1;
        state.record.fate = Fate::Waiting;
        if state.running == 0 {
            state.since = now;
        }
        if let Err(at) = self.waiting.binary_search(&task.job) {
            self.waiting.insert(at, task.job);
        }
        if self.settings.log {
            let job = self.trace.jobs[task.job].id.clone();
            self.tell(
                now,
                Kind::Evict {
                    job,
                    index: task.index,
                },
            );
        }
    }

    pub(super) fn cancel(&mut self, now: Time, number: usize) {
        let open = |state: &State| matches!(state.record.fate, Fate::Waiting | Fate::Running);
        if !self.states.get(number).is_some_and(open) {
            return;
        }
        let mine: Vec<TaskId> = self
            .tasks
            .iter()
            .filter(|(_, t)| t.job == number)
            .map(|(id, _)| *id)
            .collect();
        let mut left = i64::from(self.states[number].waiting());
        for id in mine {
            left += i64::from(self.stop(id).is_some());
        }
        let state = &self.states[number];
        self.account
            .want(state.owner, -state.share.saturating_mul(left));
        self.waiting.retain(|job| *job != number);
        self.foresight.cancelled(number);
        self.close(now, number, Fate::Cancelled);
        if self.settings.log {
            let job = self.trace.jobs[number].id.clone();
            self.tell(now, Kind::Cancel { job });
        }
    }

    pub(super) fn drop_impatient(&mut self) {
        let (trace, states, account) = (self.trace, &mut self.states, &mut self.account);
        self.waiting.retain(|job| {
            let state = &mut states[*job];
            let stays = !trace.jobs[*job].impatient || state.running > 0;
            if !stays {
                state.record.fate = Fate::Rejected;
                let tasks = i64::from(state.record.tasks);
                account.want(state.owner, -state.share.saturating_mul(tasks));
            }
            stays
        });
    }
}
