//! Running programs, and ending whole process trees whatever happens.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::eventually;

/// No command that a test runs takes longer, unless it hangs.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// What a program said.
#[derive(Debug)]
pub struct Output {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Both streams.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs a program to its end, with input, and kills it when it hangs.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let shown = format!("{command:?}");
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{shown}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A program may end without reading its input.
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let stdout = reader(child.stdout.take().unwrap());
    let stderr = reader(child.stderr.take().unwrap());
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > COMMAND_LIMIT {
            let _ = child.kill();
            panic!("{shown} did not end within {COMMAND_LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let _ = writer.join();
    Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

fn reader(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Output {
    run_with_input(command, b"")
}

/// Runs a program that must succeed; its standard output.
pub fn run_ok(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let output = run(command);
    assert!(
        output.status.success(),
        "{shown}: {}\n{}",
        output.status,
        output.text()
    );
    output.stdout
}

/// A background process with a process group of its own; the group is killed when this is dropped.
#[derive(Debug)]
pub struct Background {
    child: Child,
    pid: Pid,
}

impl Background {
    /// Starts it, with both output streams appended to a file.
    pub fn start(command: &mut Command, log: &Path) -> Background {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        Background { child, pid }
    }

    /// Exit status, if it ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// `kill -9` of this process alone, and waits until it is gone.
    pub fn kill_9(&mut self) {
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
        let _ = self.child.wait();
    }

    /// Asks it to end, and waits for that; kills it after the limit.
    pub fn terminate(&mut self, limit: Duration) -> Option<ExitStatus> {
        if let Some(status) = self.ended() {
            return Some(status);
        }
        let _ = rustix::process::kill_process(self.pid, Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill_9();
        None
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process by its number.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Stops processes, and returns when none of their threads runs: the signal only asks for that.
pub fn freeze(pids: &[i32]) {
    for pid in pids {
        signal(*pid, Signal::STOP);
    }
    eventually("all processes are stopped", || {
        let running = pids.iter().find(|pid| !is_still(**pid));
        running.map_or(Ok(()), |pid| Err(format!("{pid} runs")))
    });
}

/// Whether every thread of a process is stopped or over.
fn is_still(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    threads
        .into_iter()
        .flatten()
        .flatten()
        .all(|thread| state(&thread.path()).is_none_or(|s| matches!(s, 'T' | 'Z' | 'X')))
}

/// The state letter of proc(5), of a process or a thread by its directory in /proc.
fn state(directory: &Path) -> Option<char> {
    let stat = std::fs::read_to_string(directory.join("stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Whether a process exists and is not a zombie.
pub fn alive(pid: i32) -> bool {
    state(Path::new(&format!("/proc/{pid}"))).is_some_and(|s| !matches!(s, 'Z' | 'X'))
}

/// Start time of a process in clock ticks since boot; with the pid it identifies a process.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

/// Processes whose command line or environment mentions `text`, which is a path unique to a test:
/// how a test finds every process that belongs to its cluster, whoever started it.
pub fn mentioning(text: &str) -> Vec<i32> {
    let me = std::process::id() as i32;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<i32>().ok())
        else {
            continue;
        };
        if pid == me {
            continue;
        }
        let hit = ["cmdline", "environ"].iter().any(|file| {
            std::fs::read(entry.path().join(file))
                .is_ok_and(|bytes| contains(&bytes, text.as_bytes()))
        }) || std::fs::read_link(entry.path().join("cwd"))
            .is_ok_and(|cwd| cwd.to_string_lossy().contains(text));
        if hit {
            found.push(pid);
        }
    }
    found
}

/// Kills every process that [`mentioning`] finds, until there is none.
pub fn end_all(text: &str) {
    for _ in 0..100 {
        let left = mentioning(text);
        if left.is_empty() {
            return;
        }
        for pid in left {
            signal(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// Command line of a process, with spaces.
pub fn command_line(pid: i32) -> String {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .map(|b| String::from_utf8_lossy(&b).replace('\0', " "))
        .unwrap_or_default()
}
