//! Starts: the queue of what the agent asked for, directories, pipes, control group, process.
//!
//! Promises: a start is done once; one that cannot be done becomes an exit that says why; nothing
//! is left behind by it but the attempt's directory.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::epoll;

use super::{KIND_OUTPUT, KIND_PIDFD, SWEEP_MS, Supervisor};
use crate::journal::StartRecord;
use crate::logs::LogWriter;
use crate::protocol::{Exit, ExitCause, StartSpec, Started};
use crate::spawn::{Command, SpawnError};
use crate::sys;
use crate::task::{Task, output_pipe};

/// Starts between two looks at everything else.
const STARTS_PER_TURN: usize = 64;
/// Time between two looks at everything else: short tasks end meanwhile, and what they hold of the
/// node is free for others only once their end was told.
const TURN_MS: u64 = 10;

impl Supervisor {
    pub(super) fn start_some(&mut self) {
        let begin = sys::boot_ms();
        for _ in 0..STARTS_PER_TURN {
            if sys::boot_ms() >= begin + TURN_MS {
                return;
            }
            let Some(spec) = self.queue.pop_front() else {
                return;
            };
            let stop = self.queued.remove(&spec.id).flatten();
            let now = sys::boot_ms();
            let refused = if stop.is_some() {
                Some((ExitCause::Stopped, "Stopped", "stopped before it started"))
            } else if spec.fenced && now >= self.fence_until {
                Some((
                    ExitCause::Fenced,
                    "Fenced",
                    "the node lost contact before the task started",
                ))
            } else if self.draining {
                // Nothing that the task did: it may run elsewhere.
                Some((ExitCause::Lost, "SupervisorDraining", "the supervisor ends"))
            } else {
                None
            };
            if let Some((cause, reason, message)) = refused {
                self.not_started(&spec, cause, reason, message.into(), None);
                continue;
            }
            match self.start(&spec) {
                Ok(started) => self.fresh_starts.push(started),
                Err(e) => {
                    self.not_started(
                        &spec,
                        ExitCause::NotStarted,
                        e.reason,
                        e.message,
                        Some(e.code),
                    );
                }
            }
        }
    }

    fn not_started(
        &mut self,
        spec: &StartSpec,
        cause: ExitCause,
        reason: &str,
        message: String,
        code: Option<i32>,
    ) {
        let exit = Exit {
            id: spec.id.clone(),
            tag: spec.tag.clone(),
            pid: 0,
            code,
            signal: None,
            cause,
            reason: Some(reason.into()),
            message: Some(message),
            started_ms: 0,
            finished_ms: sys::wall_ms(),
        };
        self.journal.exit(&exit);
        self.fresh_exits.push(exit);
    }

    fn start(&mut self, spec: &StartSpec) -> Result<Started, SpawnError> {
        let failed = |reason, what: &str, e: io::Error| SpawnError {
            reason,
            message: format!("{what}: {e}"),
            code: 126,
        };
        let attempt = Path::new(&spec.attempt_dir);
        let work = attempt.join("work");
        let cwd = spec
            .cwd
            .clone()
            .unwrap_or_else(|| work.to_string_lossy().into_owned());
        self.spares
            .make(attempt)
            .map_err(|e| failed("WorkingDirFailed", "the work directory cannot be made", e))?;
        if spec.cwd.is_some() && Path::new(&cwd).starts_with(&work) {
            std::fs::create_dir_all(&cwd)
                .map_err(|e| failed("WorkingDirFailed", "the work directory cannot be made", e))?;
        }
        let exhausted = |e| failed("NodeResourceExhausted", "no pipe for the output", e);
        let (out, out_task) = output_pipe().map_err(exhausted)?;
        let (err, err_task) = output_pipe().map_err(exhausted)?;
        self.group_number += 1;
        let name = format!(
            "g{}-{}-{}",
            self.options.generation,
            std::process::id(),
            self.group_number
        );
        let (group, fds) = self
            .groups
            .create(&name, &spec.limits)
            .map_err(|e| failed("ControlGroupFailed", "the control group cannot be made", e))?;
        let before = sys::now_ticks();
        let spawned = self.spawner.spawn(&Command {
            argv: &spec.argv,
            env: &spec.env,
            cwd: &cwd,
            out: [
                std::os::fd::AsRawFd::as_raw_fd(&out_task),
                std::os::fd::AsRawFd::as_raw_fd(&err_task),
            ],
            groups: &fds,
            die_with_parent: spec.fenced,
        });
        let pid = match spawned {
            Ok(pid) => pid,
            Err(e) => {
                group.remove();
                return Err(e);
            }
        };
        let started = Started {
            id: spec.id.clone(),
            tag: spec.tag.clone(),
            pid,
            start_ticks: self.started_at(pid, before),
            started_ms: sys::wall_ms(),
        };
        let record = StartRecord {
            started: started.clone(),
            attempt_dir: spec.attempt_dir.clone(),
            mark: spec.mark.clone(),
            fenced: spec.fenced,
            group: (!fds.is_empty()).then(|| group.name.clone()),
        };
        self.journal.start(&record);
        self.insert(Task {
            log: LogWriter::new(attempt),
            group: (!fds.is_empty()).then_some(group),
            pipes: [Some(out), Some(err)],
            pidfd: None,
            cause: None,
            kill_at: None,
            record,
        });
        Ok(started)
    }

    /// Start time of a process that was cloned after `before`. To look it up costs a third of a
    /// start, so the clock is believed where it was found to agree, unless we were held up.
    fn started_at(&mut self, pid: i32, before: u64) -> u64 {
        let after = sys::now_ticks();
        if after - before <= sys::START_SLACK_TICKS && self.clock_agrees == Some(true) {
            return before;
        }
        let Some(ticks) = sys::start_ticks(pid) else {
            return 0;
        };
        let agrees = (before..=after).contains(&ticks);
        self.clock_agrees = Some(agrees && self.clock_agrees != Some(false));
        ticks
    }

    pub(super) fn insert(&mut self, task: Task) -> usize {
        let slot = self.free_slots.pop().unwrap_or(self.slots.len());
        for (which, pipe) in task.pipes.iter().enumerate() {
            if let Some(pipe) = pipe {
                let token = KIND_OUTPUT | (slot as u64) << 1 | which as u64;
                let _ = self.watch(pipe.as_fd(), token, epoll::EventFlags::IN); // else read at exit only
            }
        }
        if let Some(fd) = &task.pidfd {
            let _ = self.watch(fd.as_fd(), KIND_PIDFD | slot as u64, epoll::EventFlags::IN); // else found by the sweep
            self.sweep_at = Some(sys::boot_ms() + SWEEP_MS);
        } else {
            self.by_pid.insert(task.record.started.pid, slot);
        }
        if task.record.fenced {
            self.fenced.insert(slot);
        }
        self.by_id.insert(task.record.started.id.clone(), slot);
        if slot == self.slots.len() {
            self.slots.push(Some(task));
        } else {
            self.slots[slot] = Some(task);
        }
        slot
    }
}
