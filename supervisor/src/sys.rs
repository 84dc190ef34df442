//! The few system calls that no safe crate offers, each behind a safe function.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds of CLOCK_BOOTTIME: runs on while the machine sleeps and never jumps.
pub fn boot_ms() -> u64 {
    let t = clock_gettime(ClockId::Boottime);
    t.tv_sec as u64 * 1000 + t.tv_nsec as u64 / 1_000_000
}

/// Nanoseconds of the wall clock since 1970.
pub fn wall_nanos() -> u64 {
    let t = clock_gettime(ClockId::Realtime);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Milliseconds of the wall clock since 1970.
pub fn wall_ms() -> u64 {
    wall_nanos() / 1_000_000
}

/// Id of this boot of the machine.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_string())
}

/// Start time of a process in clock ticks since boot; with its pid and the boot id it is unique.
pub fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold anything; fields are counted from its closing parenthesis.
    let rest = &stat[stat.iter().rposition(|b| *b == b')')? + 2..];
    let mut fields = std::str::from_utf8(rest).ok()?.split(' ');
    fields.nth(19)?.parse().ok()
}

/// How much earlier than its real start a process may be recorded to have started, in clock ticks
/// (10 ms each): the time between a look at the clock and the clone. No pid comes round so soon.
pub const START_SLACK_TICKS: u64 = 100;

/// Clock ticks since boot, as [`start_ticks`] counts them.
pub fn now_ticks() -> u64 {
    // SAFETY: a call without memory arguments.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100);
    let t = clock_gettime(ClockId::Boottime);
    let nanos = t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64;
    nanos / (1_000_000_000 / per_second.max(1))
}

/// Whether this very process runs (a zombie does not). It may have started up to
/// [`START_SLACK_TICKS`] after `ticks`.
pub fn is_alive(pid: i32, ticks: u64) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let zombie = stat
        .rsplit_once(')')
        .is_some_and(|(_, r)| r.trim_start().starts_with('Z'));
    !zombie && start_ticks(pid).is_some_and(|t| (ticks..=ticks + START_SLACK_TICKS).contains(&t))
}

/// Blocks SIGCHLD and SIGTERM and gives a descriptor to read them from; ignores the signals of a
/// terminal, because the supervisor outlives it.
pub fn signals() -> io::Result<OwnedFd> {
    // SAFETY: plain system calls on a signal set of this frame; no handler is installed.
    unsafe {
        for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE] {
            libc::signal(signal, libc::SIG_IGN);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigaddset(&mut set, libc::SIGTERM);
        if libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Signal numbers that arrived on the descriptor of [`signals`].
pub fn read_signals(fd: &OwnedFd) -> Vec<i32> {
    let mut got = Vec::new();
    let mut buffer = [0u8; 16 * SIGINFO];
    const SIGINFO: usize = std::mem::size_of::<libc::signalfd_siginfo>();
    while let Ok(n) = rustix::io::read(fd, &mut buffer) {
        for info in buffer[..n].chunks_exact(SIGINFO) {
            // ssi_signo is the first field.
            got.push(u32::from_ne_bytes([info[0], info[1], info[2], info[3]]) as i32);
        }
        if n < buffer.len() {
            break;
        }
    }
    got
}

/// Keeps descriptors that we inherited by accident from reaching the tasks. Best effort: kernels
/// before 5.11 refuse, and there the inherited ones are the caller's responsibility.
pub fn seal_inherited_files() {
    // SAFETY: only sets a flag on descriptors; none is closed.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
}

/// A child that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its pid.
    pub pid: i32,
    /// Exit code, if it exited.
    pub code: Option<i32>,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
}

/// A child that has ended and is not reaped, without reaping it.
pub fn peek_ended() -> Option<Ended> {
    // SAFETY: waitid fills a siginfo_t of this frame; the fields read are those that waitid sets.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        if libc::waitid(libc::P_ALL, 0, &mut info, flags) != 0 || info.si_pid() == 0 {
            return None;
        }
        let exited = info.si_code == libc::CLD_EXITED;
        Some(Ended {
            pid: info.si_pid(),
            code: exited.then(|| info.si_status()),
            signal: (!exited).then(|| info.si_status()),
        })
    }
}

/// Reaps an ended child.
pub fn reap(pid: i32) {
    // SAFETY: waits for one child of ours; a null status is allowed.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
}

/// Sends a signal to a process, or with a negative pid to its group. False when there is none.
pub fn kill(pid: i32, signal: i32) -> bool {
    // 0 and -1 mean "my group" and "everybody".
    if pid == 0 || pid == -1 {
        return false;
    }
    // SAFETY: a system call without memory arguments.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// Raises the limit of open files to what is allowed; gives the limit as it was, for the tasks.
pub fn raise_files_limit() -> libc::rlimit {
    // SAFETY: plain system calls on a struct of this frame.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        let raised = libc::rlimit {
            rlim_cur: limit.rlim_max,
            rlim_max: limit.rlim_max,
        };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raised);
        limit
    }
}

/// Pids of our children: the tasks and whatever was reparented to us.
pub fn children() -> Vec<i32> {
    let path = format!("/proc/self/task/{}/children", std::process::id());
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|p| p.parse().ok())
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn knows_itself() {
        let me = std::process::id() as i32;
        let ticks = start_ticks(me).unwrap();
        assert!(ticks > 0);
        assert!(ticks <= now_ticks());
        assert!(is_alive(me, ticks) && is_alive(me, ticks - START_SLACK_TICKS));
        assert!(!is_alive(me, ticks + 1) && !is_alive(me, ticks - START_SLACK_TICKS - 1));
        assert!(!kill(0, 0) && !kill(-1, 0));
    }
}
