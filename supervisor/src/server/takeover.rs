//! Tasks of dead predecessors: takes over their journals, watches what still runs by pidfd.
//!
//! Promises: an exit that a predecessor journaled is kept as it was; a task that ended unseen ends
//! as Lost, since nobody can know its exit code; a fenced one lost its watchdog and is killed; a
//! predecessor's directory goes only once our own journal holds everything of it.

use std::collections::BTreeSet;
use std::path::Path;

use super::ending::exit_of;
use super::{ServeError, Supervisor, io_error, lock};
use crate::journal::{self, StartRecord};
use crate::logs::LogWriter;
use crate::protocol::ExitCause;
use crate::sys;
use crate::task::{Task, reopen_output};

impl Supervisor {
    /// Takes over the state of dead predecessors, then removes their directories.
    pub(super) fn take_over(&mut self) -> Result<(), ServeError> {
        for dir in self.options.import.clone() {
            let _lock = lock(&dir)?; // a predecessor that does not answer but lives keeps its tasks
            let (state, _) = journal::read(&dir)?;
            self.adopt_state(state);
            self.journal.flush(true).map_err(io_error("the journal"))?;
            std::fs::remove_dir_all(&dir).map_err(io_error("the predecessor's directory"))?;
            if let Some(generation) = generation_of(&dir) {
                let kept: BTreeSet<String> = self
                    .slots
                    .iter()
                    .flatten()
                    .filter_map(|t| t.record.group.clone())
                    .collect();
                self.groups
                    .reap_unknown(&format!("g{generation}-"), &|name| kept.contains(name));
            }
        }
        Ok(())
    }

    pub(super) fn adopt_state(&mut self, state: journal::State) {
        for exit in state.exits.into_values() {
            if !self.exits.contains_key(&exit.id) {
                self.journal.exit(&exit);
                self.exits.insert(exit.id.clone(), exit);
            }
        }
        let same_boot = state.boot_id == self.boot_id;
        for record in state.running.into_values() {
            // Known already when a predecessor died between taking over and tidying up.
            if self.knows(&record.started.id) {
                continue;
            }
            self.journal.start(&record);
            self.adopt(record, same_boot);
        }
    }

    /// A task that a dead predecessor started: watched by pidfd while it runs. Its exit code will
    /// never be known, so it ends as Lost. A fenced one lost its watchdog and is killed.
    fn adopt(&mut self, record: StartRecord, same_boot: bool) {
        let pid = record.started.pid;
        let pidfd = rustix::process::Pid::from_raw(pid).and_then(|p| {
            rustix::process::pidfd_open(p, rustix::process::PidfdFlags::empty()).ok()
        });
        // Checked after the open: from then on the descriptor means this very process.
        let alive = same_boot && sys::is_alive(pid, record.started.start_ticks);
        let mut task = Task {
            log: LogWriter::new(Path::new(&record.attempt_dir)),
            group: record.group.as_ref().and_then(|g| self.groups.find(g)),
            pipes: [None, None],
            pidfd,
            cause: None,
            kill_at: None,
            record,
        };
        if alive && task.pidfd.is_some() {
            task.pipes = [reopen_output(pid, 1), reopen_output(pid, 2)];
            if task.record.fenced {
                task.cause = Some(ExitCause::Fenced);
                task.kill();
            }
            self.insert(task);
            return;
        }
        if same_boot && let Some(group) = &task.group {
            group.kill();
        }
        let (reason, message) = if same_boot {
            (
                "SupervisorLost",
                "the supervisor died and the task ended unseen; its exit code is unknown",
            )
        } else {
            (
                "NodeRebooted",
                "the machine was restarted while the task ran",
            )
        };
        let exit = exit_of(&task, ExitCause::Lost, Some(reason), Some(message.into()));
        self.finish(task, exit);
    }

    /// A task of a predecessor ended.
    pub(super) fn on_adopted_end(&mut self, slot: usize) {
        let alive = match self.slots.get(slot) {
            Some(Some(t)) => sys::is_alive(t.record.started.pid, t.record.started.start_ticks),
            _ => return,
        };
        if alive {
            return;
        }
        if let Some(task) = self.take(slot) {
            if let Some(group) = &task.group {
                group.kill();
            }
            let message = "the supervisor that started the task died; its exit code is unknown";
            let exit = match task.cause {
                Some(cause) => exit_of(&task, cause, None, Some(message.into())),
                None => exit_of(
                    &task,
                    ExitCause::Lost,
                    Some("SupervisorLost"),
                    Some(message.into()),
                ),
            };
            self.finish(task, exit);
        }
    }
}

fn generation_of(dir: &Path) -> Option<u64> {
    dir.file_name()?.to_str()?.rsplit_once('-')?.1.parse().ok()
}
