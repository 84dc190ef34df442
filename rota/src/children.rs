//! The agents of `rota up`: child processes, kept running, taken over from an earlier run.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rota_api::names::{GROUP_NODES, USER_NODE_PREFIX};
use rota_apiserver::auth::pki::{NODE_LIFE, Pki, private_dir, write_private};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::datadir::{Held, lock_file};
use crate::fail::{Fail, Result};

/// First pause before a dead agent is started again, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// An agent that lived this long had started well: the pause begins anew.
const HEALTHY: Duration = Duration::from_secs(30);
/// An agent of an earlier run is gone this soon after it was killed.
const TAKE_OVER: Duration = Duration::from_secs(5);
/// In an agent's data directory: its process id, locked while it lives.
pub const PID_FILE: &str = "agent.pid";
/// An agent's log is started anew beyond this size.
const LOG_MAX: u64 = 10 << 20;

/// What becomes of agents and tasks when `rota up` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnExit {
    /// Tasks are asked to stop, then killed; agents end.
    Stop,
    /// Both go on; the next `rota up` on this data directory takes them over.
    Keep,
}

impl OnExit {
    /// As the flag's value.
    pub fn as_str(self) -> &'static str {
        match self {
            OnExit::Stop => "stop",
            OnExit::Keep => "keep",
        }
    }
}

/// One agent to run.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Node name.
    pub name: String,
    /// Its data directory.
    pub dir: PathBuf,
    /// API server.
    pub server: String,
    /// `--resources`.
    pub resources: String,
    /// `--on-exit`.
    pub on_exit: OnExit,
}

impl Spec {
    /// Prepares the directory: takes it over from an agent of an earlier run and writes the
    /// node's certificate. An agent may die at any time: its supervisor keeps the tasks for the next.
    pub async fn prepare(&self, pki: &Pki) -> Result<()> {
        private_dir(&self.dir)?;
        take_over(&self.dir).await?;
        let user = format!("{USER_NODE_PREFIX}{}", self.name);
        let issued = pki.issue_client(&user, GROUP_NODES, NODE_LIFE)?;
        // The key first: an agent that finds only the old certificate asks for a new one.
        for (file, text) in [
            ("agent.key", issued.key.as_str()),
            ("agent.crt", &issued.certificate),
            ("ca.crt", pki.ca_pem()),
        ] {
            write_private(&self.dir.join(file), text.as_bytes(), true)?;
        }
        Ok(())
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let path = self.dir.join("agent.log");
        let large = std::fs::metadata(&path).is_ok_and(|m| m.len() > LOG_MAX);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .append(!large)
            .truncate(large)
            .open(&path)?;
        Command::new(std::env::current_exe()?)
            .arg("agent")
            .args(["--server", &self.server])
            .args(["--name", &self.name])
            .arg("--data-dir")
            .arg(&self.dir)
            .args(["--resources", &self.resources])
            .args(["--on-exit", self.on_exit.as_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C reaches the terminal's whole group; agents are told to stop in order instead.
            .process_group(0)
            .spawn()
    }
}

/// Ends the agent that still has the directory, if there is one.
async fn take_over(dir: &Path) -> Result<()> {
    let file = dir.join(PID_FILE);
    let deadline = Instant::now() + TAKE_OVER;
    loop {
        let pid = match lock_file(&file) {
            Ok(_) => return Ok(()),
            Err(Held::By(pid)) => pid,
            Err(Held::Io(e)) => {
                return Err(Fail::new(
                    format!("cannot lock {}: {e}", file.display()),
                    "check its owner and mode",
                ));
            }
        };
        // Killed, not asked: being asked may mean to stop its tasks.
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        if Instant::now() > deadline {
            return Err(Fail::new(
                format!("another process holds {}", file.display()),
                "end it, or use another --data-dir",
            ));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Running agents.
pub struct Agents {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Agents {
    /// Starts them all and keeps them running.
    pub fn start(specs: Vec<Spec>) -> Agents {
        let mut tasks = JoinSet::new();
        let stop = CancellationToken::new();
        for spec in specs {
            tasks.spawn(keep_running(spec, stop.clone()));
        }
        Agents { tasks, stop }
    }

    /// Stops them (and, as each was told by `--on-exit`, their tasks), or leaves them running.
    /// After `patience` those that are left are killed.
    pub async fn stop(mut self, patience: Duration) {
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(patience, all).await.is_err() {
            tracing::warn!("agents did not end in time and are killed");
            self.tasks.shutdown().await;
        }
    }
}

async fn keep_running(spec: Spec, stop: CancellationToken) {
    let mut pause = BACKOFF.0;
    while !stop.is_cancelled() {
        let started = Instant::now();
        match spec.spawn() {
            Ok(child) => {
                if ended(child, &spec, &stop).await {
                    return;
                }
            }
            Err(e) => tracing::error!(node = spec.name, error = %e, "cannot start the agent"),
        }
        if started.elapsed() > HEALTHY {
            pause = BACKOFF.0;
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(BACKOFF.1);
    }
}

/// Waits for an agent's end; true if it was us who wanted it (or wanted it left alone).
async fn ended(child: Child, spec: &Spec, stop: &CancellationToken) -> bool {
    let mut child = KillOnDrop(Some(child));
    let Some(process) = child.0.as_mut() else {
        return true;
    };
    tokio::select! {
        status = process.wait() => {
            child.0 = None;
            let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
            let log = spec.dir.join("agent.log");
            tracing::warn!(node = spec.name, status, log = %log.display(), "the agent ended; starting it again");
            return false;
        }
        () = stop.cancelled() => {}
    }
    if spec.on_exit == OnExit::Stop {
        if let Some(pid) = process.id().and_then(|p| Pid::from_raw(p as i32)) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = process.wait().await;
    }
    child.0 = None;
    true
}

/// Kills the agent when waiting for it is given up.
struct KillOnDrop(Option<Child>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.start_kill();
        }
    }
}
