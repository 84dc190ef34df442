//! Ends of tasks: stops that the agent asked for, deadlines, children that ended, strays.
//!
//! Promises: with its main process the rest of a task goes too; a stop escalates to SIGKILL when
//! its grace is over, whatever became of the agent; fenced tasks end at the fence deadline.

use super::{EXITS_PER_BATCH, SWEEP_MS, Supervisor};
use crate::cgroup::TaskGroup;
use crate::protocol::{Exit, ExitCause, StopSpec};
use crate::sys::{self, Ended};
use crate::task::Task;

impl Supervisor {
    pub(super) fn stop(&mut self, stop: StopSpec) {
        if let Some(pending) = self.queued.get_mut(&stop.id) {
            *pending = Some(stop);
            return;
        }
        let Some(&slot) = self.by_id.get(&stop.id) else {
            return;
        };
        let Some(task) = self.slots[slot].as_mut() else {
            return;
        };
        let kill_at = sys::boot_ms() + stop.grace_ms;
        let first = task.cause.is_none();
        task.cause.get_or_insert(ExitCause::Stopped);
        if stop.grace_ms == 0 {
            task.kill();
        } else if first {
            task.signal(stop.signal);
            task.signal(libc::SIGCONT); // a stopped process would not see it
        }
        // A later request may only shorten the grace. The longer one must not stay: by then the
        // slot may be another task's.
        if task.kill_at.is_none_or(|t| kill_at < t) {
            if let Some(longer) = task.kill_at.replace(kill_at) {
                self.kills.remove(&(longer, slot));
            }
            self.kills.insert((kill_at, slot));
        }
    }

    /// Collects children that ended: journals a batch, syncs it, reports it, then the next one.
    pub(super) fn collect(&mut self) {
        while let Some(ended) = sys::peek_ended() {
            match self.by_pid.remove(&ended.pid) {
                Some(slot) => self.on_end(slot, ended),
                None => sys::reap(ended.pid), // a stray descendant
            }
            if self.fresh_exits.len() >= EXITS_PER_BATCH {
                self.flush();
            }
        }
    }

    /// The main process of a task ended: the rest of the task goes too. The pid is still held by
    /// the zombie, so the group cannot be anyone else's.
    fn on_end(&mut self, slot: usize, ended: Ended) {
        let Some(mut task) = self.take(slot) else {
            sys::reap(ended.pid);
            return;
        };
        let empty = task.kill();
        sys::reap(ended.pid);
        let cause = match task.cause {
            None | Some(ExitCause::Ended)
                if ended.signal == Some(libc::SIGKILL)
                    && task.group.as_ref().is_some_and(TaskGroup::out_of_memory) =>
            {
                ExitCause::OutOfMemory
            }
            None => ExitCause::Ended,
            Some(c) => c,
        };
        let mut exit = exit_of(&task, cause, None, None);
        exit.code = ended.code;
        exit.signal = ended.signal;
        if empty && let Some(group) = task.group.take() {
            task.group = self.groups.keep(group);
        }
        self.finish(task, exit);
    }

    pub(super) fn take(&mut self, slot: usize) -> Option<Task> {
        let task = self.slots.get_mut(slot)?.take()?;
        self.free_slots.push(slot);
        self.fenced.remove(&slot);
        self.by_id.remove(&task.record.started.id);
        if let Some(at) = task.kill_at {
            self.kills.remove(&(at, slot));
        }
        Some(task)
    }

    pub(super) fn finish(&mut self, mut task: Task, exit: Exit) {
        for which in [0, 1] {
            // What the kernel still holds; bounded, since a stray writer may go on for ever.
            for _ in 0..16 {
                if !task.read_output(which, &mut self.buffer, &mut self.scratch) {
                    break;
                }
            }
        }
        if let Some(group) = task.group.take()
            && !group.remove()
        {
            self.stuck.push(group);
        }
        self.sweep_at.get_or_insert(sys::boot_ms() + SWEEP_MS);
        self.journal.exit(&exit);
        self.fresh_exits.push(exit);
    }

    pub(super) fn deadlines(&mut self) {
        let now = sys::boot_ms();
        while let Some(&(at, slot)) = self.kills.first() {
            if at > now {
                break;
            }
            self.kills.remove(&(at, slot));
            if let Some(Some(task)) = self.slots.get(slot) {
                task.kill();
            }
        }
        if now >= self.fence_until && !self.fenced.is_empty() {
            for slot in std::mem::take(&mut self.fenced) {
                if let Some(Some(task)) = self.slots.get_mut(slot) {
                    task.cause = Some(ExitCause::Fenced);
                    task.kill();
                }
            }
        }
        if self.sweep_at.is_some_and(|t| now >= t) {
            self.sweep(now);
        }
    }

    /// Finds what events do not tell: strays of ended tasks, groups that were not empty yet,
    /// adopted tasks without a pidfd event.
    fn sweep(&mut self, now: u64) {
        self.stuck.retain(|group| {
            group.kill();
            !group.remove()
        });
        let mut strays = false;
        for pid in sys::children() {
            if self.by_pid.contains_key(&pid) {
                continue;
            }
            strays = true;
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let lives = environment.split(|b| *b == 0).any(|entry| {
                self.slots
                    .iter()
                    .flatten()
                    .any(|t| t.record.mark.as_bytes() == entry)
            });
            if !lives {
                sys::kill(pid, libc::SIGKILL);
            }
        }
        let adopted: Vec<usize> = (0..self.slots.len())
            .filter(|s| self.slots[*s].as_ref().is_some_and(|t| t.pidfd.is_some()))
            .collect();
        let again =
            strays || !self.stuck.is_empty() || !adopted.is_empty() || !self.fresh_exits.is_empty();
        self.sweep_at = again.then_some(now + SWEEP_MS);
        for slot in adopted {
            self.on_adopted_end(slot);
        }
    }
}

pub(super) fn exit_of(
    task: &Task,
    cause: ExitCause,
    reason: Option<&str>,
    message: Option<String>,
) -> Exit {
    let s = &task.record.started;
    Exit {
        id: s.id.clone(),
        tag: s.tag.clone(),
        pid: s.pid,
        code: None,
        signal: None,
        cause,
        reason: reason.map(String::from),
        message,
        started_ms: s.started_ms,
        finished_ms: sys::wall_ms(),
    }
}
