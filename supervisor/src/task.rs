//! One running task inside the supervisor: its process, its pipes, its log.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::cgroup::TaskGroup;
use crate::journal::StartRecord;
use crate::logs::{LogWriter, Stream};
use crate::protocol::ExitCause;
use crate::sys;

/// Most output read from one pipe in one turn, so that a loud task does not starve the others.
const READ_TURN: usize = 64 << 10;

/// A running task.
#[derive(Debug)]
pub struct Task {
    /// As in the journal.
    pub record: StartRecord,
    /// Reading ends of standard output and error.
    pub pipes: [Option<OwnedFd>; 2],
    /// Where output goes.
    pub log: LogWriter,
    /// Its control group.
    pub group: Option<TaskGroup>,
    /// Only for a task of a dead predecessor, which is not our child.
    pub pidfd: Option<OwnedFd>,
    /// Why it will have ended, once something is being done about it.
    pub cause: Option<ExitCause>,
    /// When SIGKILL follows, in boot milliseconds.
    pub kill_at: Option<u64>,
}

/// A pipe for a task's output. The task's end is opened for reading too: should the supervisor
/// die, the task then neither gets SIGPIPE nor loses what it wrote, and a successor can read on
/// through /proc. The price is that the pipe never reports its end; the task's exit does.
pub fn output_pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(
        rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK,
    )?;
    let both = rustix::fs::open(
        format!("/proc/self/fd/{}", write.as_raw_fd()),
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok((read, both))
}

/// The reading end of the pipe that a running process has as its output, if it is one.
pub fn reopen_output(pid: i32, fd: u32) -> Option<OwnedFd> {
    let path = format!("/proc/{pid}/fd/{fd}");
    let target = std::fs::read_link(&path).ok()?;
    if !target.to_string_lossy().starts_with("pipe:") {
        return None;
    }
    rustix::fs::open(
        &path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()
}

impl Task {
    /// Reads what is in a pipe, at most one turn, into the log. True when there may be more.
    pub fn read_output(
        &mut self,
        which: usize,
        buffer: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
    ) -> bool {
        let Some(pipe) = &self.pipes[which] else {
            return false;
        };
        buffer.resize(READ_TURN, 0);
        match rustix::io::read(pipe, &mut buffer[..]) {
            Err(rustix::io::Errno::AGAIN) => false,
            Err(rustix::io::Errno::INTR) => true,
            // Nobody holds the other end any more (the task gave its output another direction),
            // and nobody can open it again; kept, it would be ready for ever.
            Ok(0) | Err(_) => {
                self.pipes[which] = None;
                false
            }
            Ok(n) => {
                let stream = [Stream::Stdout, Stream::Stderr][which];
                self.log
                    .write(stream, &buffer[..n], sys::wall_nanos(), scratch);
                n == READ_TURN
            }
        }
    }

    /// Sends a signal to the whole process group.
    pub fn signal(&self, signal: i32) {
        let pid = self.record.started.pid;
        if self.pidfd.is_some() && !sys::is_alive(pid, self.record.started.start_ticks) {
            return; // not our child: its pid may be somebody else's by now
        }
        sys::kill(-pid, signal);
    }

    /// Kills everything of the task that can be found; true when its control group shows that
    /// nothing was there.
    pub fn kill(&self) -> bool {
        self.signal(libc::SIGKILL);
        self.group.as_ref().is_some_and(TaskGroup::kill)
    }
}
