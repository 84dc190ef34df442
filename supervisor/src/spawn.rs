//! Starting a process: clone with shared memory and a suspended parent, as posix_spawn does, so
//! that a start costs no copy of page tables; plus what posix_spawn cannot do: enter control
//! groups before exec, and say exactly which step failed.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use libc::{c_char, c_int, c_void};

/// Stack of the child until exec; its function needs a few hundred bytes.
const STACK: usize = 64 << 10;

/// Why a process did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpawnError {
    /// CamelCase word for the task's status.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
    /// Exit code as a shell would give it: 127 not found, 126 otherwise.
    pub code: i32,
}

/// What to start.
pub struct Command<'a> {
    /// Program and arguments.
    pub argv: &'a [String],
    /// Whole environment.
    pub env: &'a [String],
    /// Directory.
    pub cwd: &'a str,
    /// Standard output and error.
    pub out: [RawFd; 2],
    /// Open `cgroup.procs` files to enter.
    pub groups: &'a [OwnedFd],
    /// Killed when the supervisor dies.
    pub die_with_parent: bool,
}

/// Starts processes, one after another.
pub struct Spawner {
    stack: *mut c_void,
    null: OwnedFd,
    files_limit: libc::rlimit,
}

#[repr(i32)]
#[derive(Clone, Copy)]
enum Step {
    Group = 1,
    Chdir = 2,
    Files = 3,
    Exec = 4,
}

struct ChildArgs {
    path: *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    cwd: *const c_char,
    null: RawFd,
    out: [RawFd; 2],
    groups: *const OwnedFd,
    groups_len: usize,
    die_with_parent: bool,
    files_limit: libc::rlimit,
    failed_step: c_int,
    errno: c_int,
}

/// Runs in the child on its own stack, in the parent's memory, while the parent is suspended.
/// Only system calls on prepared data: no allocation, no locks, no panics.
extern "C" fn child(args: *mut c_void) -> c_int {
    // SAFETY: `args` is the ChildArgs that `spawn` keeps alive on its stack frame; the parent is
    // suspended until exec or exit (CLONE_VFORK), so nobody else touches it. The calls below are
    // async-signal-safe system calls on pointers that `spawn` prepared and NUL-terminated.
    unsafe {
        let a = &mut *args.cast::<ChildArgs>();
        libc::setsid();
        let step = 'run: {
            for i in 0..a.groups_len {
                let fd = (*a.groups.add(i)).as_raw_fd();
                if libc::write(fd, c"0".as_ptr().cast(), 1) != 1 {
                    break 'run Step::Group;
                }
            }
            if libc::chdir(a.cwd) != 0 {
                break 'run Step::Chdir;
            }
            if libc::dup2(a.null, 0) < 0
                || libc::dup2(a.out[0], 1) < 0
                || libc::dup2(a.out[1], 2) < 0
            {
                break 'run Step::Files;
            }
            // What the supervisor ignores or blocks must not be inherited.
            for signal in [libc::SIGPIPE, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            libc::setrlimit(libc::RLIMIT_NOFILE, &a.files_limit);
            libc::umask(0o022);
            if a.die_with_parent {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            }
            libc::execve(a.path, a.argv, a.env);
            Step::Exec
        };
        a.errno = *libc::__errno_location();
        a.failed_step = step as c_int;
        libc::_exit(127)
    }
}

impl Spawner {
    /// Prepares the stack; `files_limit` is the limit of open files that tasks get.
    pub fn new(files_limit: libc::rlimit) -> io::Result<Self> {
        // SAFETY: a fresh anonymous mapping; nothing else refers to it, and it lives as long as
        // the Spawner, which lives as long as the process.
        let stack = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                STACK,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if stack == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let null = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        Ok(Spawner {
            stack,
            null: null.into(),
            files_limit,
        })
    }

    /// Starts a process in its own session and gives its pid.
    pub fn spawn(&mut self, c: &Command<'_>) -> Result<i32, SpawnError> {
        let program = c.argv.first().ok_or_else(|| SpawnError {
            reason: "CommandNotFound",
            message: "the command is empty".into(),
            code: 127,
        })?;
        let path = find_program(program, c.env)?;
        let text = |s: &str| {
            CString::new(s).map_err(|_| SpawnError {
                reason: "InvalidArgument",
                message: "a NUL character in command, environment or directory".into(),
                code: 126,
            })
        };
        let path_c = text(&path)?;
        let cwd_c = text(c.cwd)?;
        let argv: Vec<CString> = c.argv.iter().map(|s| text(s)).collect::<Result<_, _>>()?;
        let env: Vec<CString> = c.env.iter().map(|s| text(s)).collect::<Result<_, _>>()?;
        let pointers = |v: &[CString]| -> Vec<*const c_char> {
            v.iter()
                .map(|s| s.as_ptr())
                .chain([std::ptr::null()])
                .collect()
        };
        let (argv_p, env_p) = (pointers(&argv), pointers(&env));
        let mut args = ChildArgs {
            path: path_c.as_ptr(),
            argv: argv_p.as_ptr(),
            env: env_p.as_ptr(),
            cwd: cwd_c.as_ptr(),
            null: self.null.as_raw_fd(),
            out: c.out,
            groups: c.groups.as_ptr(),
            groups_len: c.groups.len(),
            die_with_parent: c.die_with_parent,
            files_limit: self.files_limit,
            failed_step: 0,
            errno: 0,
        };
        // SAFETY: the stack is ours, 64 KiB, grows down from its end, and is used by one child at
        // a time because CLONE_VFORK suspends us until that child has left it. All pointers in
        // `args` outlive the call. The supervisor has one thread and no signal handlers, so no
        // code of ours runs in the child but `child`.
        let pid = unsafe {
            let top = self.stack.cast::<u8>().add(STACK).cast::<c_void>();
            libc::clone(
                child,
                top,
                libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
                (&raw mut args).cast(),
            )
        };
        if pid < 0 {
            let e = io::Error::last_os_error();
            return Err(SpawnError {
                reason: "NodeResourceExhausted",
                message: format!("the node cannot start another process: {e}"),
                code: 126,
            });
        }
        // SAFETY: a plain read of a field of ours that the child may have written through its
        // pointer; volatile because the compiler cannot see that write.
        let (step, errno) = unsafe {
            (
                std::ptr::read_volatile(&args.failed_step),
                std::ptr::read_volatile(&args.errno),
            )
        };
        if step == 0 {
            return Ok(pid);
        }
        // SAFETY: waits for the child that just exited; a null status is allowed.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        Err(explain(step, errno, &path, c.cwd))
    }
}

fn explain(step: c_int, errno: c_int, path: &str, cwd: &str) -> SpawnError {
    let e = io::Error::from_raw_os_error(errno);
    let error = |reason, message, code| SpawnError {
        reason,
        message,
        code,
    };
    match (step, errno) {
        (s, libc::ENOENT | libc::ENOTDIR) if s == Step::Chdir as c_int => error(
            "WorkingDirMissing",
            format!("the working directory {cwd} does not exist"),
            126,
        ),
        (s, _) if s == Step::Chdir as c_int => error(
            "PermissionDenied",
            format!("the working directory {cwd} cannot be entered: {e}"),
            126,
        ),
        (s, _) if s == Step::Group as c_int => error(
            "ControlGroupFailed",
            format!("the task's control group cannot be entered: {e}"),
            126,
        ),
        (s, _) if s == Step::Files as c_int => error(
            "NodeResourceExhausted",
            format!("standard streams cannot be set up: {e}"),
            126,
        ),
        (_, libc::ENOENT) => error(
            "CommandNotFound",
            format!("{path} or its interpreter does not exist"),
            127,
        ),
        (_, libc::EACCES | libc::EPERM) => error(
            "PermissionDenied",
            format!("{path} cannot be executed: {e}"),
            126,
        ),
        (_, libc::ENOEXEC) => error(
            "ExecFormatError",
            format!("{path} is no program for this machine (a script needs a #! line)"),
            126,
        ),
        (_, libc::E2BIG) => error(
            "ArgumentsTooLong",
            "arguments and environment are larger than the system allows".into(),
            126,
        ),
        _ => error("StartFailed", format!("{path} cannot be started: {e}"), 126),
    }
}

/// Finds a program as a shell would: with a slash it is a path, else PATH of the task is searched.
fn find_program(program: &str, env: &[String]) -> Result<String, SpawnError> {
    if program.contains('/') {
        return Ok(program.to_string());
    }
    let path = env
        .iter()
        .rev()
        .find_map(|e| e.strip_prefix("PATH="))
        .unwrap_or("");
    let mut denied = None;
    for dir in path.split(':').filter(|d| !d.is_empty()) {
        let candidate = Path::new(dir).join(program);
        if !candidate.is_file() {
            continue;
        }
        match rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK) {
            Ok(()) => return Ok(candidate.to_string_lossy().into_owned()),
            Err(_) => denied = Some(candidate),
        }
    }
    Err(match denied {
        Some(c) => SpawnError {
            reason: "PermissionDenied",
            message: format!("{} is not executable", c.display()),
            code: 126,
        },
        None => SpawnError {
            reason: "CommandNotFound",
            message: format!("{program} is not in PATH ({path})"),
            code: 127,
        },
    })
}
