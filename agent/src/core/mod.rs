//! The agent's core: one task that owns all state, fed by channels, that turns [`plan`]'s
//! decisions into requests to the supervisors and statuses for the API, in batches.
//!
//! This file owns the state, the loop and the end of the agent; its inputs and what is done about
//! them are in the modules below. Promise: all state changes happen on this one task, so that no
//! two inputs are ever half applied.
//!
//! [`plan`]: crate::plan

mod acting;
mod epoch;
mod reporting;
mod starting;
mod status;
mod supervised;
mod tracked;
mod wishes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rota_api::names::PORT_RANGE_DEFAULT;
use rota_supervisor::protocol::{Request, StartSpec, StopSpec};
use rota_supervisor::{dirs, sys};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use self::tracked::Tracked;
use crate::api::Api;
use crate::config::{AgentConfig, AgentError, OnExit};
use crate::logs::{self, Attempts};
use crate::machine;
use crate::metrics::Metrics;
use crate::node::{self, Beat};
use crate::outbox::Outbox;
use crate::plan::{Action, Context, GRACE_DEFAULT_MS, Run};
use crate::ports::Ports;
use crate::sources::{Key, Loaded, Sources};
use crate::supervision::{Link, Told};
use crate::watch::Change;

/// Running is reported only for tasks that last this long; most short ones then cost one status.
const RUNNING_AFTER_MS: u64 = 250;
/// Longest wait at the end for tasks to stop and statuses to leave.
const STOP_WAIT_MS: u64 = 40_000;
/// Longest wait at the end for statuses alone: the server may be gone before us.
const FLUSH_WAIT_MS: u64 = 5_000;
/// Longest wait at the end for the first word of supervisor and server, when told to end at once.
const LEARN_WAIT_MS: u64 = 2_000;
/// How often logs and directories past their retention are looked for.
const SWEEP_MS: u64 = 60_000;

/// Channels and handles of the core.
pub struct Wiring {
    /// API.
    pub api: Arc<Api>,
    /// Configuration.
    pub config: Arc<AgentConfig>,
    /// Which attempts are there.
    pub attempts: Arc<Attempts>,
    /// Figures.
    pub metrics: Metrics,
    /// The node's epoch at registration.
    pub epoch: i64,
    /// When the request that first renewed the Lease was sent: CLOCK_BOOTTIME, milliseconds.
    pub renewed_ms: u64,
    /// Address of the node.
    pub address: String,
    /// Asks the heartbeat to look at the Node.
    pub look_now: Arc<Notify>,
}

/// Inputs of the core.
pub struct Inputs {
    /// Tasks.
    pub changes: mpsc::Receiver<Change>,
    /// Supervisors.
    pub told: mpsc::Receiver<Told>,
    /// Where supervisors tell.
    pub tell: mpsc::Sender<Told>,
    /// Heartbeat.
    pub beats: mpsc::Receiver<Beat>,
}

type BulkAnswer = (Vec<(String, u64)>, Result<Vec<u16>, String>);

struct Core {
    w: Wiring,
    tasks_dir: PathBuf,
    tracked: HashMap<String, Tracked>,
    dirty: BTreeSet<String>,
    parked: HashMap<Key, BTreeSet<String>>,
    timers: BTreeSet<(u64, String)>,
    links: Vec<Link>,
    sources: Sources,
    ports: Ports,
    allocatable: BTreeMap<String, i64>,
    used: BTreeMap<String, i64>,
    outbox: Outbox,
    in_flight: bool,
    paused_until: u64,
    failures: u32,
    listed: bool,
    /// Supervisors whose state is not known yet: nothing is decided, lest a task that one of them
    /// runs is started again.
    awaited: BTreeSet<u64>,
    epoch: i64,
    adopted: i64,
    renewed_ms: u64,
    gate_since: Option<u64>,
    stopping: bool,
    starts: BTreeMap<u64, Vec<StartSpec>>,
    stops: BTreeMap<u64, Vec<StopSpec>>,
    acks: BTreeMap<u64, Vec<String>>,
    /// Directories of ended attempts, and whether their index gets no further attempt.
    trash: Vec<(PathBuf, bool)>,
    /// Place of the next tree of directories that is kept.
    spare: Arc<AtomicU32>,
    loaded_tx: mpsc::UnboundedSender<(Key, Option<Loaded>)>,
    sent_tx: mpsc::UnboundedSender<BulkAnswer>,
}

/// Runs until the agent has ended in good order.
pub async fn run(
    w: Wiring,
    mut inputs: Inputs,
    links: Vec<Link>,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let (loaded_tx, mut loaded) = mpsc::unbounded_channel();
    let (sent_tx, mut sent) = mpsc::unbounded_channel();
    let now = sys::boot_ms();
    let mut core = Core {
        tasks_dir: w.config.data_dir.join("tasks"),
        allocatable: machine::base(&machine::capacity(&w.config)),
        epoch: w.epoch,
        adopted: 0,
        renewed_ms: w.renewed_ms,
        w,
        tracked: HashMap::new(),
        dirty: BTreeSet::new(),
        parked: HashMap::new(),
        timers: BTreeSet::new(),
        awaited: links.iter().map(|l| l.generation).collect(),
        links,
        sources: Sources::default(),
        ports: Ports::new(PORT_RANGE_DEFAULT).scattered(),
        used: BTreeMap::new(),
        outbox: Outbox::default(),
        in_flight: false,
        paused_until: 0,
        failures: 0,
        listed: false,
        gate_since: None,
        stopping: false,
        starts: BTreeMap::new(),
        stops: BTreeMap::new(),
        acks: BTreeMap::new(),
        trash: Vec::new(),
        spare: Arc::default(),
        loaded_tx,
        sent_tx,
    };
    let mut sweep_at = now + SWEEP_MS;
    let mut stop_at = None;
    core.extend_fence();
    loop {
        let now = sys::boot_ms();
        if now >= sweep_at {
            sweep_at = now + SWEEP_MS;
            core.sweep();
        }
        core.work();
        if let Some(begin) = stop_at
            && core.is_stopped(now, begin)
        {
            core.farewell().await;
            return Ok(());
        }
        let sleep =
            Duration::from_millis(core.next_wake(sweep_at).saturating_sub(now).clamp(1, 1_000));
        tokio::select! {
            Some(told) = inputs.told.recv() => {
                core.on_told(told, &inputs.tell).await?;
                while let Ok(told) = inputs.told.try_recv() {
                    core.on_told(told, &inputs.tell).await?;
                }
            }
            Some(change) = inputs.changes.recv() => {
                core.on_change(change);
                for _ in 0..64 {
                    let Ok(change) = inputs.changes.try_recv() else { break };
                    core.on_change(change);
                }
            }
            Some(beat) = inputs.beats.recv() => core.on_beat(beat),
            Some((key, value)) = loaded.recv() => core.on_loaded(key, value),
            Some((items, answer)) = sent.recv() => core.on_sent(items, answer),
            () = shutdown.cancelled(), if stop_at.is_none() => {
                stop_at = Some(sys::boot_ms());
                if core.w.config.on_exit == OnExit::Stop {
                    core.stopping = true;
                    core.dirty.extend(core.tracked.keys().cloned());
                }
            }
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

impl Core {
    fn context(&self) -> Context {
        Context {
            epoch: self.epoch,
            stopping: self.stopping,
            now_ms: sys::wall_ms(),
        }
    }

    fn next_wake(&self, sweep_at: u64) -> u64 {
        let mut at = sweep_at;
        // Otherwise an answer or the heartbeat wakes us.
        let sends = !self.in_flight && self.may_report();
        if let Some(due) = self.outbox.next_due().filter(|_| sends) {
            at = at.min(due.max(self.paused_until));
        }
        if let Some((wall, _)) = self.timers.first() {
            at = at.min(sys::boot_ms() + wall.saturating_sub(sys::wall_ms()));
        }
        at
    }

    fn is_stopped(&self, now: u64, begin: u64) -> bool {
        let quiet = self.outbox.is_empty() && !self.in_flight;
        let running = self
            .tracked
            .values()
            .any(|t| matches!(t.observed.run, Run::Live | Run::Stopping { .. }));
        let informed = self.awaited.is_empty() && self.listed;
        if !informed && now < begin + LEARN_WAIT_MS {
            return false;
        }
        if !self.stopping {
            return quiet || now >= begin + FLUSH_WAIT_MS.min(1_000);
        }
        if running {
            return now >= begin + STOP_WAIT_MS;
        }
        // Before the list nothing is reported; the exits wait in the journal.
        quiet
            || !self.listed
            || self.failures > 3 && now >= begin + 1_000
            || now >= begin + STOP_WAIT_MS + FLUSH_WAIT_MS
    }

    async fn farewell(&mut self) {
        if self.stopping {
            for link in &self.links {
                link.send(Request::Drain);
            }
        }
        let goodbye = node::say_stopping(&self.w.api, &self.w.config, "");
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await; // the lease tells it too, later
        // Lets the links write their last requests.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    fn work(&mut self) {
        let wall = sys::wall_ms();
        while let Some((at, _)) = self.timers.first() {
            if *at > wall {
                break;
            }
            if let Some((_, uid)) = self.timers.pop_first() {
                self.dirty.insert(uid);
            }
        }
        if self.listed && self.awaited.is_empty() {
            while let Some(uid) = self.dirty.pop_first() {
                self.decide(&uid);
            }
        } else if self.stopping && !self.listed {
            // Without the server's word nothing is forgotten or reported, only stopped; the exits
            // wait in the journal.
            for uid in std::mem::take(&mut self.dirty) {
                let live = self
                    .tracked
                    .get(&uid)
                    .filter(|t| t.observed.run == Run::Live);
                if live.is_some() {
                    let gentle = Action::Stop {
                        signal: 15,
                        grace_ms: GRACE_DEFAULT_MS,
                    };
                    self.act(&uid, gentle);
                }
            }
        }
        for link in &self.links {
            if let Some(list) = self.starts.remove(&link.generation) {
                link.send(Request::Start(list));
            }
            if let Some(list) = self.stops.remove(&link.generation) {
                link.send(Request::Stop(list));
            }
            if let Some(list) = self.acks.remove(&link.generation) {
                link.send(Request::Ack(list));
            }
        }
        // For supervisors that are gone: their state was taken over by a newer one.
        self.starts.clear();
        self.stops.clear();
        if let Some(newest) = self.links.last() {
            let orphans: Vec<String> = std::mem::take(&mut self.acks)
                .into_values()
                .flatten()
                .collect();
            if !orphans.is_empty() {
                newest.send(Request::Ack(orphans));
            }
        }
        if !self.trash.is_empty() {
            let trash = std::mem::take(&mut self.trash);
            let spares = self.w.config.data_dir.join(dirs::SPARE);
            let next = self.spare.clone();
            tokio::task::spawn_blocking(move || {
                for (dir, last) in &trash {
                    acting::tidy(last.then_some((&spares, &next)), dir);
                }
            });
        }
        self.adopt_epoch();
        self.send_statuses();
        let m = &self.w.metrics;
        m.outbox.set(self.outbox.len() as i64);
        m.epoch.set(self.epoch);
    }

    fn sweep(&self) {
        if !self.awaited.is_empty() {
            return; // what runs is not known yet, and its directories must stay
        }
        let (tasks, attempts) = (self.tasks_dir.clone(), self.w.attempts.clone());
        let running = self
            .tracked
            .values()
            .filter(|t| t.observed.run == Run::Live)
            .count();
        self.w.metrics.running.set(running as i64);
        tokio::task::spawn_blocking(move || logs::sweep(&tasks, &attempts, logs::RETENTION));
    }
}
