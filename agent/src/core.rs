//! The agent's core: one task that owns all state, fed by channels, that turns [`plan`]'s
//! decisions into requests to the supervisors and statuses for the API, in batches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use rota_api::kinds::{OnLost, Port, RestartPolicy, TaskPhase};
use rota_api::names::PORT_RANGE_DEFAULT;
use rota_supervisor::protocol::{
    Exit, ExitCause, Limits, Report, Request, StartSpec, Started, StopSpec, Welcome,
};
use rota_supervisor::{logs::rfc3339, sys};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::api::{Api, TaskObject};
use crate::config::{AgentConfig, AgentError, OnExit};
use crate::environment::{self, Facts, Failure, Lookup, Values};
use crate::logs::{self, Attempt, Attempts};
use crate::machine;
use crate::metrics::Metrics;
use crate::node::{self, Beat, GAP_MS};
use crate::outbox::{self, Item, Outbox, Verdict};
use crate::plan::{
    Action, Context, Desired, End, GRACE_DEFAULT_MS, Observed, Policy, Run, plan, signal_number,
};
use crate::ports::{Ports, is_free};
use crate::sources::{self, Key, Kind, Loaded, Sources, Template};
use crate::supervision::{self, Link, Told};
use crate::watch::Change;

/// Running is reported only for tasks that last this long; most short ones then cost one status.
const RUNNING_AFTER_MS: u64 = 250;
/// Starting is reported when preparing takes this long.
const STARTING_AFTER_MS: u64 = 500;
/// How long fenced tasks may go on after the request of the last renewal was sent.
const FENCE_MS: u64 = 10_000;
/// Longest wait at the end for tasks to stop and statuses to leave.
const STOP_WAIT_MS: u64 = 40_000;
/// Longest wait at the end for statuses alone: the server may be gone before us.
const FLUSH_WAIT_MS: u64 = 5_000;
/// Longest wait at the end for the first word of supervisor and server, when told to end at once.
const LEARN_WAIT_MS: u64 = 2_000;
/// How often logs and directories past their retention are looked for.
const SWEEP_MS: u64 = 60_000;
/// Longest wait for the answer to a bulk request.
const BULK_WAIT: Duration = Duration::from_secs(30);

/// What the supervisor keeps for us about a start.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Tag {
    ns: String,
    n: String,
    u: String,
    ju: String,
    i: i32,
    a: i32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    p: Vec<Port>,
    #[serde(default)]
    rq: BTreeMap<String, i64>,
}

/// Everything about one task.
struct Tracked {
    desired: Option<Desired>,
    generation: i64,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    observed: Observed,
    tag: Tag,
    /// Supervisor of the newest run.
    supervisor: Option<u64>,
    started: Option<Started>,
    /// Exits to acknowledge once the terminal status is taken.
    acks: Vec<(u64, String)>,
    /// Its requests count against the node.
    charged: bool,
    last_exit: Option<Exit>,
}

impl Tracked {
    fn attempt(&self) -> Attempt {
        (self.tag.ju.clone(), self.tag.i, self.tag.a)
    }
    fn run_id(&self) -> String {
        format!("{}.{}", self.tag.u, self.observed.restarts)
    }
    fn path(&self) -> String {
        format!(
            "/apis/rota.dev/v1/namespaces/{}/tasks/{}",
            self.tag.ns, self.tag.n
        )
    }
}

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
    welcomed: bool,
    epoch: i64,
    adopted: i64,
    renewed_ms: u64,
    gate_since: Option<u64>,
    stopping: bool,
    starts: BTreeMap<u64, Vec<StartSpec>>,
    stops: BTreeMap<u64, Vec<StopSpec>>,
    acks: BTreeMap<u64, Vec<String>>,
    trash: Vec<PathBuf>,
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
        w,
        tracked: HashMap::new(),
        dirty: BTreeSet::new(),
        parked: HashMap::new(),
        timers: BTreeSet::new(),
        links,
        sources: Sources::default(),
        ports: Ports::new(PORT_RANGE_DEFAULT).scattered(),
        used: BTreeMap::new(),
        outbox: Outbox::default(),
        in_flight: false,
        paused_until: 0,
        failures: 0,
        listed: false,
        welcomed: false,
        renewed_ms: now, // registration renewed the Lease
        gate_since: None,
        stopping: false,
        starts: BTreeMap::new(),
        stops: BTreeMap::new(),
        acks: BTreeMap::new(),
        trash: Vec::new(),
        loaded_tx,
        sent_tx,
    };
    let mut sweep_at = now + SWEEP_MS;
    let mut stop_at = None;
    core.extend_fence();
    core.sweep();
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
        if let Some(due) = self.outbox.next_due().filter(|_| !self.in_flight) {
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
        let informed = self.welcomed && self.listed;
        if !informed && now < begin + LEARN_WAIT_MS {
            return false;
        }
        if !self.stopping {
            return quiet || now >= begin + FLUSH_WAIT_MS.min(1_000);
        }
        if running {
            return now >= begin + STOP_WAIT_MS;
        }
        quiet
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

    // ---- inputs ----

    fn on_change(&mut self, change: Change) {
        match change {
            Change::All(items) => {
                let there: BTreeSet<String> =
                    items.iter().map(|t| t.metadata.uid.clone()).collect();
                for (uid, t) in &mut self.tracked {
                    if !there.contains(uid) && (t.desired.take().is_some() || !self.listed) {
                        self.dirty.insert(uid.clone());
                    }
                }
                if !self.listed {
                    self.dirty.extend(self.tracked.keys().cloned());
                }
                self.listed = true;
                items.into_iter().for_each(|t| self.set(t));
            }
            Change::Set(items) => items.into_iter().for_each(|t| self.set(t)),
            Change::Gone(uid) => {
                if let Some(t) = self.tracked.get_mut(&uid) {
                    t.desired = None;
                    self.dirty.insert(uid);
                }
            }
        }
    }

    fn set(&mut self, task: TaskObject) {
        let m = task.metadata;
        let desired = Desired {
            namespace: m.namespace,
            name: m.name,
            deleting: m.deletion_timestamp.is_some(),
            terminal: task.status.phase.is_some_and(TaskPhase::is_terminal),
            spec: task.spec,
        };
        let t = self
            .tracked
            .entry(m.uid.clone())
            .or_insert_with(|| Tracked {
                desired: None,
                generation: 0,
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                observed: Observed {
                    run: Run::None,
                    restarts: 0,
                    policy: None,
                },
                tag: Tag::default(),
                supervisor: None,
                started: None,
                acks: Vec::new(),
                charged: false,
                last_exit: None,
            });
        if t.tag.u.is_empty() {
            t.tag = Tag {
                ns: desired.namespace.clone(),
                n: desired.name.clone(),
                u: m.uid.clone(),
                ju: desired.spec.job_uid.clone(),
                i: desired.spec.index,
                a: desired.spec.attempt,
                p: Vec::new(),
                rq: desired
                    .spec
                    .requests
                    .iter()
                    .map(|(k, v)| (k.clone(), v.base_ceil(k)))
                    .collect(),
            };
        }
        t.labels = m.labels;
        t.annotations = m.annotations;
        t.generation = m.generation;
        t.desired = Some(desired);
        self.dirty.insert(m.uid);
    }

    async fn on_told(&mut self, told: Told, tell: &mpsc::Sender<Told>) -> Result<(), AgentError> {
        match told {
            Told::Welcome(generation, welcome) => self.on_welcome(generation, *welcome),
            Told::Report(generation, report) => self.on_report(generation, report),
            Told::Closed(generation) => {
                let newest = self
                    .links
                    .last()
                    .is_some_and(|l| l.generation == generation);
                self.links.retain(|l| l.generation != generation);
                if let Some(link) =
                    supervision::recover(&self.w.config, generation, newest, self.stopping, tell)
                        .await?
                {
                    self.links.push(link);
                    self.extend_fence();
                }
            }
        }
        Ok(())
    }

    fn on_welcome(&mut self, generation: u64, welcome: Welcome) {
        self.welcomed = true;
        let mut seen = BTreeSet::new();
        for s in welcome.running {
            let Some((uid, n)) = split(&s.id) else {
                continue;
            };
            seen.insert(uid.to_string());
            let (uid, id) = (uid.to_string(), s.id.clone());
            if self.is_newest(&uid, n, &s.tag) {
                self.on_started(generation, &uid, n, s);
            } else {
                tracing::warn!(id, "an older run of a task still runs; it is stopped");
                self.stops.entry(generation).or_default().push(StopSpec {
                    id,
                    signal: 9,
                    grace_ms: 0,
                });
            }
        }
        for e in welcome.exits {
            let Some((uid, n)) = split(&e.id) else {
                continue;
            };
            seen.insert(uid.to_string());
            let uid = uid.to_string();
            if self.is_newest(&uid, n, &e.tag) {
                self.on_exit(generation, &uid, n, e);
            } else {
                self.acks.entry(generation).or_default().push(e.id);
            }
        }
        // What this supervisor was asked to start and does not know was lost on the way.
        for (uid, t) in &mut self.tracked {
            let theirs = t
                .supervisor
                .is_some_and(|s| s == generation || !self.links.iter().any(|l| l.generation == s));
            if theirs
                && !seen.contains(uid)
                && matches!(t.observed.run, Run::Live | Run::Stopping { .. })
            {
                t.observed.run = Run::None;
                self.dirty.insert(uid.clone());
            }
        }
    }

    /// Takes note of a run that a supervisor knows; false when a newer one of the task is known.
    fn is_newest(&mut self, uid: &str, n: u32, tag: &str) -> bool {
        if let Some(t) = self.tracked.get(uid) {
            return n >= t.observed.restarts;
        }
        let Ok(tag) = serde_json::from_str::<Tag>(tag) else {
            tracing::error!(uid, "a task's tag cannot be read; it is left alone");
            return false;
        };
        self.ports.reserve(&tag.p);
        for (k, v) in &tag.rq {
            *self.used.entry(k.clone()).or_default() += v;
        }
        let tracked = Tracked {
            desired: None,
            generation: 0,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            observed: Observed {
                run: Run::None,
                restarts: n,
                policy: None,
            },
            tag,
            supervisor: None,
            started: None,
            acks: Vec::new(),
            charged: true,
            last_exit: None,
        };
        self.w.attempts.begin(tracked.attempt());
        self.tracked.insert(uid.to_string(), tracked);
        true
    }

    fn on_report(&mut self, generation: u64, report: Report) {
        for s in report.started {
            if let Some((uid, n)) = split(&s.id) {
                let uid = uid.to_string();
                self.on_started(generation, &uid, n, s);
            }
        }
        for e in report.exits {
            if let Some((uid, n)) = split(&e.id) {
                let uid = uid.to_string();
                self.on_exit(generation, &uid, n, e);
            }
        }
    }

    fn on_started(&mut self, generation: u64, uid: &str, n: u32, started: Started) {
        let Some(t) = self.tracked.get_mut(uid) else {
            return;
        };
        if n < t.observed.restarts || t.observed.run == Run::Done {
            return;
        }
        t.observed.restarts = n;
        t.supervisor = Some(generation);
        if !matches!(t.observed.run, Run::Stopping { .. }) {
            t.observed.run = Run::Live;
        }
        t.started = Some(started);
        // The exits of earlier runs have been counted by this start.
        for (g, id) in t.acks.drain(..) {
            self.acks.entry(g).or_default().push(id);
        }
        self.dirty.insert(uid.to_string());
        let status = running(t, &self.w.address);
        let item = Item {
            uid: uid.to_string(),
            path: t.path(),
            status,
            terminal: false,
        };
        self.outbox.put(item, sys::boot_ms() + RUNNING_AFTER_MS);
    }

    fn on_exit(&mut self, generation: u64, uid: &str, n: u32, exit: Exit) {
        self.w.metrics.exits.inc();
        let Some(t) = self.tracked.get_mut(uid) else {
            self.acks.entry(generation).or_default().push(exit.id);
            return;
        };
        if n < t.observed.restarts {
            self.acks.entry(generation).or_default().push(exit.id);
            return;
        }
        t.observed.restarts = n;
        t.supervisor = Some(generation);
        let ack = (generation, exit.id.clone());
        if !t.acks.contains(&ack) {
            t.acks.push(ack);
        }
        if t.observed.run != Run::Done {
            t.last_exit = Some(exit.clone());
            t.observed.run = Run::Ended(exit);
            self.dirty.insert(uid.to_string());
        }
    }

    fn on_beat(&mut self, beat: Beat) {
        match beat {
            Beat::Renewed { sent_boot_ms } => {
                if sent_boot_ms.saturating_sub(self.renewed_ms) >= GAP_MS {
                    self.gate_since = Some(sent_boot_ms);
                }
                self.renewed_ms = sent_boot_ms;
                self.extend_fence();
            }
            Beat::Epoch {
                epoch,
                read_boot_ms,
            } => {
                if epoch > self.epoch {
                    tracing::warn!(
                        from = self.epoch,
                        to = epoch,
                        "the node was given a new epoch: older tasks are stopped"
                    );
                    self.dirty.extend(self.tracked.keys().cloned());
                }
                self.epoch = self.epoch.max(epoch);
                if self.gate_since.is_some_and(|since| read_boot_ms >= since) {
                    self.gate_since = None;
                }
                // Tasks of this epoch may have waited for it.
                let waiting = self
                    .tracked
                    .iter()
                    .filter(|(_, t)| t.observed.run == Run::None);
                self.dirty.extend(waiting.map(|(uid, _)| uid.clone()));
            }
        }
    }

    fn extend_fence(&self) {
        for link in &self.links {
            link.send(Request::Fence {
                until_boot_ms: self.renewed_ms + FENCE_MS,
            });
        }
    }

    fn on_loaded(&mut self, key: Key, value: Option<Loaded>) {
        if let Some(pause) = self.sources.put(&key, value) {
            self.load(key.clone(), pause);
        }
        for uid in self.parked.remove(&key).unwrap_or_default() {
            if let Some(t) = self.tracked.get_mut(&uid) {
                if t.observed.run == Run::Preparing {
                    t.observed.run = Run::None;
                }
                self.dirty.insert(uid);
            }
        }
    }

    fn load(&self, key: Key, pause: Duration) {
        let (api, tx) = (self.w.api.clone(), self.loaded_tx.clone());
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let value = sources::load(&api, &key).await;
            let _ = tx.send((key, value)); // the core may have ended
        });
    }

    // ---- decisions ----

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
        if self.listed {
            while let Some(uid) = self.dirty.pop_first() {
                self.decide(&uid);
            }
        } else if self.stopping {
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
            tokio::task::spawn_blocking(move || trash.iter().for_each(|dir| tidy(dir)));
        }
        self.adopt_epoch();
        self.send_statuses();
        let m = &self.w.metrics;
        m.outbox.set(self.outbox.len() as i64);
        m.epoch.set(self.epoch);
    }

    fn decide(&mut self, uid: &str) {
        // An action may call for the next one at once, never for many.
        for _ in 0..4 {
            let ctx = self.context();
            let Some(t) = self.tracked.get(uid) else {
                return;
            };
            let Some(action) = plan(t.desired.as_ref(), &t.observed, &ctx) else {
                return;
            };
            if !self.act(uid, action) {
                return;
            }
        }
    }

    /// Does one thing; true when the task should be planned again at once.
    fn act(&mut self, uid: &str, action: Action) -> bool {
        match action {
            Action::RefreshNode => {
                self.w.look_now.notify_one();
                false
            }
            Action::Forget => {
                self.forget(uid);
                false
            }
            Action::Stop { signal, grace_ms } => {
                if let Some(t) = self.tracked.get_mut(uid) {
                    t.observed.run = Run::Stopping {
                        forced: grace_ms == 0,
                    };
                    let stop = StopSpec {
                        id: t.run_id(),
                        signal,
                        grace_ms,
                    };
                    let supervisor = t.supervisor.unwrap_or_default();
                    self.stops.entry(supervisor).or_default().push(stop);
                }
                false
            }
            Action::LoadPolicy => self.template(uid).is_some(),
            Action::RestartAt { at_ms } => {
                self.timers.insert((at_ms, uid.to_string()));
                if let Some(t) = self.tracked.get(uid) {
                    let item = Item {
                        uid: uid.into(),
                        path: t.path(),
                        status: backing_off(t, at_ms),
                        terminal: false,
                    };
                    self.outbox.put(item, sys::boot_ms() + RUNNING_AFTER_MS);
                }
                false
            }
            Action::Start { restarts } => self.start(uid, restarts),
            Action::Report(end) => {
                self.report(uid, end);
                false
            }
        }
    }

    fn forget(&mut self, uid: &str) {
        if let Some(mut t) = self.tracked.remove(uid) {
            for (g, id) in t.acks.drain(..) {
                self.acks.entry(g).or_default().push(id);
            }
            self.release(&mut t);
            self.trash
                .extend(logs::attempt_dir(&self.tasks_dir, &t.attempt()));
        }
        self.outbox.remove(uid);
    }

    /// The task takes nothing of the node any more.
    fn release(&mut self, t: &mut Tracked) {
        self.ports.release(&t.tag.p);
        if std::mem::take(&mut t.charged) {
            for (k, v) in &t.tag.rq {
                *self.used.entry(k.clone()).or_default() -= v;
            }
        }
        self.w.attempts.end(&t.attempt());
    }

    fn source(&mut self, uid: &str, key: Key) -> Option<Loaded> {
        match self.sources.get(&key) {
            Ok(value) => Some(value),
            Err(load) => {
                self.parked
                    .entry(key.clone())
                    .or_default()
                    .insert(uid.to_string());
                if load {
                    self.load(key, Duration::ZERO);
                }
                None
            }
        }
    }

    /// The task's template; `None` while it is read, or after it turned out not to exist.
    fn template(&mut self, uid: &str) -> Option<Arc<Template>> {
        let t = self.tracked.get(uid)?;
        let d = t.desired.as_ref()?;
        let key = (d.namespace.clone(), Kind::Revision, d.spec.revision.clone());
        match self.source(uid, key)? {
            Loaded::Revision(template) => {
                let spec = &template.spec;
                let policy = Policy {
                    restart: spec.restart_policy.unwrap_or(RestartPolicy::Never),
                    signal: signal_number(spec.kill_signal),
                    grace_ms: spec
                        .termination_grace_period_seconds
                        .map_or(GRACE_DEFAULT_MS, |s| s.max(0) as u64 * 1000),
                };
                if let Some(t) = self.tracked.get_mut(uid) {
                    t.observed.policy = Some(policy);
                }
                Some(template)
            }
            Loaded::Refused(why) => {
                self.fail(uid, "RevisionForbidden", &why);
                None
            }
            _ => {
                self.fail(
                    uid,
                    "RevisionNotFound",
                    "the JobRevision that the task refers to does not exist",
                );
                None
            }
        }
    }

    fn start(&mut self, uid: &str, restarts: u32) -> bool {
        if !self.charge(uid) {
            self.w.metrics.refused.inc();
            return false;
        }
        if let Some(t) = self.tracked.get_mut(uid) {
            t.observed.restarts = restarts;
            t.observed.run = Run::Preparing;
            self.w.attempts.begin(t.attempt());
        }
        let Some(template) = self.template(uid) else {
            self.say_starting(uid);
            return false;
        };
        let Some(t) = self.tracked.get(uid) else {
            return false;
        };
        let Some(namespace) = t.desired.as_ref().map(|d| d.namespace.clone()) else {
            return false;
        };
        let (secrets, maps) = environment::references(&template.spec);
        let mut values = Found::default();
        for (kind, names) in [(Kind::Secret, secrets), (Kind::ConfigMap, maps)] {
            for name in names {
                match self.source(uid, (namespace.clone(), kind, name.clone())) {
                    None => {
                        self.say_starting(uid);
                        return false;
                    }
                    Some(Loaded::Refused(why)) => {
                        self.fail(uid, "ReferenceForbidden", &why);
                        return false;
                    }
                    Some(Loaded::Values(v)) => {
                        values.0.insert((kind == Kind::Secret, name), v);
                    }
                    Some(_) => {}
                }
            }
        }
        match self.specify(uid, &template, &values) {
            Ok(spec) => {
                self.w.metrics.starts.inc();
                if restarts > 0 {
                    self.w.metrics.restarts.inc();
                }
                let generation = self.links.last().map_or(0, |l| l.generation);
                if let Some(t) = self.tracked.get_mut(uid) {
                    t.observed.run = Run::Live;
                    t.supervisor = Some(generation);
                    t.started = None;
                }
                self.starts.entry(generation).or_default().push(spec);
            }
            Err(f) => self.fail(uid, f.reason, &f.message),
        }
        false
    }

    /// Counts the task against the node once, or refuses it: the second check behind placement.
    fn charge(&mut self, uid: &str) -> bool {
        let Some(t) = self.tracked.get(uid) else {
            return false;
        };
        if t.charged {
            return true;
        }
        let short = t.tag.rq.iter().find(|(k, v)| {
            let used = self.used.get(*k).copied().unwrap_or(0);
            **v > 0 && used.saturating_add(**v) > self.allocatable.get(*k).copied().unwrap_or(0)
        });
        if let Some((resource, want)) = short {
            let used = self.used.get(resource).copied().unwrap_or(0);
            let have = self.allocatable.get(resource).copied().unwrap_or(0);
            let message = format!(
                "the node has {} of {have} {resource} free (base units), the task requests {want}",
                have - used
            );
            self.fail(uid, "OutOfResource", &message);
            return false;
        }
        for (k, v) in &t.tag.rq {
            *self.used.entry(k.clone()).or_default() += v;
        }
        if let Some(t) = self.tracked.get_mut(uid) {
            t.charged = true;
        }
        true
    }

    fn specify(
        &mut self,
        uid: &str,
        template: &Template,
        values: &Found,
    ) -> Result<StartSpec, Failure> {
        let failed = |reason, message: &str| Failure {
            reason,
            message: message.into(),
        };
        let Some(t) = self.tracked.get_mut(uid) else {
            return Err(failed("Internal", "the task is not known any more"));
        };
        let Some(d) = &t.desired else {
            return Err(failed("Internal", "the task is not wanted any more"));
        };
        let wanted = d
            .spec
            .ports
            .clone()
            .or_else(|| template.spec.ports.clone())
            .unwrap_or_default();
        if t.tag.p.is_empty() && !wanted.is_empty() {
            t.tag.p = self.ports.assign(&wanted, is_free).ok_or_else(|| {
                failed("NoFreePort", "no port of the node's dynamic range is free")
            })?;
        }
        let dir = logs::attempt_dir(&self.tasks_dir, &t.attempt())
            .ok_or_else(|| failed("InvalidTask", "the Job's uid is no plain name"))?;
        let attempt_dir = dir.to_string_lossy().into_owned();
        let facts = Facts {
            uid,
            labels: &t.labels,
            annotations: &t.annotations,
            ports: &t.tag.p,
            attempt_dir: &attempt_dir,
        };
        let prepared = environment::prepare(d, &template.spec, &facts, values)?;
        let limits = template
            .spec
            .resources
            .as_ref()
            .and_then(|r| r.limits.as_ref());
        let limit = |name: &str| {
            limits
                .and_then(|l| l.get(name))
                .map(|q| q.base_ceil(name).max(0) as u64)
        };
        Ok(StartSpec {
            id: t.run_id(),
            tag: serde_json::to_string(&t.tag).unwrap_or_default(),
            argv: prepared.argv,
            env: prepared.env,
            mark: format!("ROTA_TASK={}", d.name),
            attempt_dir,
            cwd: prepared.cwd,
            limits: Limits {
                cpu_milli: limit("cpu"),
                memory_bytes: limit("memory"),
            },
            fenced: template.on_lost == OnLost::WaitForFence,
        })
    }

    // ---- statuses ----

    fn say_starting(&mut self, uid: &str) {
        let Some(t) = self.tracked.get(uid) else {
            return;
        };
        if t.observed.run != Run::Preparing || t.observed.restarts > 0 {
            return;
        }
        let status = status(t, TaskPhase::Starting, Some("Preparing"), None);
        let item = Item {
            uid: uid.into(),
            path: t.path(),
            status,
            terminal: false,
        };
        self.outbox.put(item, sys::boot_ms() + STARTING_AFTER_MS);
    }

    fn fail(&mut self, uid: &str, reason: &str, message: &str) {
        self.conclude(uid, |t| {
            let mut s = status(t, TaskPhase::Failed, Some(reason), Some(message));
            s["finishedTime"] = json!(time(sys::wall_ms()));
            s
        });
    }

    fn report(&mut self, uid: &str, end: End) {
        match end {
            End::Exit => {
                let stopping = self.stopping;
                self.conclude(uid, |t| match t.last_exit.clone() {
                    Some(e) => ended(t, &e, stopping),
                    None => status(t, TaskPhase::Lost, Some("Unknown"), None),
                });
            }
            End::Lost { reason, message } => self.conclude(uid, |t| {
                status(t, TaskPhase::Lost, Some(reason), Some(message))
            }),
            End::Refused { reason, message } => self.fail(uid, reason, message),
        }
    }

    fn conclude(&mut self, uid: &str, make: impl FnOnce(&Tracked) -> Value) {
        let Some(mut t) = self.tracked.remove(uid) else {
            return;
        };
        let status = make(&t);
        t.observed.run = Run::Done;
        self.release(&mut t);
        let item = Item {
            uid: uid.into(),
            path: t.path(),
            status,
            terminal: true,
        };
        self.outbox.put(item, sys::boot_ms());
        self.tracked.insert(uid.to_string(), t);
    }

    /// Whether the API may be told anything now: only while it is certain that the node was not
    /// given up, or after the epoch was read again and older tasks are gone.
    fn may_report(&self) -> bool {
        self.gate_since.is_none()
            && sys::boot_ms().saturating_sub(self.renewed_ms) < GAP_MS
            && (self.adopted == self.epoch || !self.has_older())
    }

    fn has_older(&self) -> bool {
        self.tracked.values().any(|t| {
            matches!(t.observed.run, Run::Live | Run::Stopping { .. })
                && t.desired
                    .as_ref()
                    .is_some_and(|d| d.spec.epoch < self.epoch)
        })
    }

    fn adopt_epoch(&mut self) {
        if !self.listed || self.adopted == self.epoch || self.has_older() {
            return;
        }
        self.adopted = self.epoch;
        let (api, name, epoch) = (self.w.api.clone(), self.w.config.name.clone(), self.epoch);
        let look = self.w.look_now.clone();
        tokio::spawn(async move {
            let mut tries = 0;
            while let Err(e) = node::adopt_epoch(&api, &name, epoch).await {
                tracing::warn!(error = %e, "the adopted epoch cannot be written yet");
                tries += 1;
                tokio::time::sleep(outbox::pause(tries)).await;
            }
            look.notify_one();
        });
    }

    fn send_statuses(&mut self) {
        let now = sys::boot_ms();
        if self.in_flight || now < self.paused_until || !self.may_report() {
            return;
        }
        let Some(batch) = self.outbox.batch(now) else {
            return;
        };
        self.in_flight = true;
        let (api, tx) = (self.w.api.clone(), self.sent_tx.clone());
        tokio::spawn(async move {
            let call = api.call(
                Method::POST,
                "/apis/rota.dev/v1/bulk",
                "application/json",
                batch.body,
            );
            let answer = match tokio::time::timeout(BULK_WAIT, call).await {
                Err(_) => Err("no answer".to_string()),
                Ok(Err(e)) => Err(e.to_string()),
                Ok(Ok(bytes)) => codes(&bytes),
            };
            let _ = tx.send((batch.items, answer)); // the core may have ended
        });
    }

    fn on_sent(&mut self, items: Vec<(String, u64)>, answer: Result<Vec<u16>, String>) {
        self.in_flight = false;
        let now = sys::boot_ms();
        let codes = match answer {
            Ok(codes) if codes.len() == items.len() => codes,
            other => {
                let why = other
                    .err()
                    .unwrap_or_else(|| "the answer has another number of items".into());
                tracing::warn!(
                    error = why,
                    statuses = items.len(),
                    "statuses cannot be reported yet"
                );
                self.w.metrics.report_errors.inc();
                self.failures += 1;
                self.paused_until = now
                    + outbox::pause(self.failures)
                        .mul_f64(0.5 + rand::random::<f64>())
                        .as_millis() as u64;
                return;
            }
        };
        self.failures = 0;
        for ((uid, number), code) in items.into_iter().zip(codes) {
            let verdict = self.outbox.verdict(&uid, code);
            match verdict {
                Verdict::Taken => self.w.metrics.reported.inc(),
                Verdict::Dropped => {
                    tracing::info!(uid, code, "a status was refused for good");
                    self.w.metrics.dropped.inc()
                }
                Verdict::Retry => 0,
            };
            if let Some(item) = self.outbox.settle(&uid, number, verdict, now)
                && item.terminal
                && let Some(t) = self.tracked.get_mut(&uid)
            {
                for (g, id) in t.acks.drain(..) {
                    self.acks.entry(g).or_default().push(id);
                }
                self.trash
                    .extend(logs::attempt_dir(&self.tasks_dir, &t.attempt()));
            }
        }
    }

    fn sweep(&self) {
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

#[derive(Default)]
struct Found(BTreeMap<(bool, String), Arc<BTreeMap<String, String>>>);

impl Lookup for Found {
    fn secret(&self, name: &str) -> Values<'_> {
        self.0.get(&(true, name.to_string())).map(Arc::as_ref)
    }
    fn config_map(&self, name: &str) -> Values<'_> {
        self.0.get(&(false, name.to_string())).map(Arc::as_ref)
    }
}

/// Removes the work directory of an attempt, and the attempt's own when there is no output in it.
fn tidy(attempt: &std::path::Path) {
    let _ = std::fs::remove_dir_all(attempt.join("work")); // mostly gone already
    if std::fs::remove_dir(attempt).is_ok()
        && let Some(index) = attempt.parent()
    {
        let _ = std::fs::remove_dir(index); // stays while something is in it
    }
}

fn split(id: &str) -> Option<(&str, u32)> {
    let (uid, n) = id.rsplit_once('.')?;
    Some((uid, n.parse().ok()?))
}

#[derive(Deserialize)]
struct BulkResult {
    items: Vec<BulkItem>,
}
#[derive(Deserialize)]
struct BulkItem {
    #[serde(default)]
    code: Option<u16>,
}

/// Codes of a bulk answer: a Status has one, an object itself means success.
fn codes(bytes: &[u8]) -> Result<Vec<u16>, String> {
    let result: BulkResult =
        serde_json::from_slice(bytes).map_err(|e| format!("the answer cannot be read: {e}"))?;
    Ok(result
        .items
        .into_iter()
        .map(|i| i.code.unwrap_or(200))
        .collect())
}

fn time(ms: u64) -> String {
    let text = rfc3339(ms * 1_000_000);
    format!("{}Z", &text[..23])
}

/// A status with everything that all phases share.
fn status(t: &Tracked, phase: TaskPhase, reason: Option<&str>, message: Option<&str>) -> Value {
    let ready = phase == TaskPhase::Running;
    let message: Option<String> = message.map(|m| m.chars().take(1000).collect());
    let word = reason.map_or_else(|| format!("{phase:?}"), String::from);
    let mut s = json!({
        "phase": phase, "ready": ready, "reason": reason, "message": message,
        "observedGeneration": t.generation, "restarts": t.observed.restarts,
        "conditions": [{
            "type": "Ready", "status": if ready { "True" } else { "False" }, "reason": word,
            "message": message.unwrap_or_default(),
            "lastTransitionTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }],
    });
    if !t.tag.p.is_empty() {
        s["ports"] = json!(t.tag.p);
    }
    s
}

fn running(t: &Tracked, address: &str) -> Value {
    let mut s = status(t, TaskPhase::Running, None, None);
    if let Some(started) = &t.started {
        s["startedTime"] = json!(time(started.started_ms));
        s["pid"] = json!(started.pid);
    }
    s["address"] = json!(address);
    s
}

fn backing_off(t: &Tracked, at_ms: u64) -> Value {
    let message = format!("the process ended; it is started again at {}", time(at_ms));
    let mut s = status(t, TaskPhase::Starting, Some("BackOff"), Some(&message));
    if let Some(e) = &t.last_exit {
        s["exitCode"] = json!(e.code);
        s["signal"] = json!(e.signal);
    }
    s
}

/// The terminal status of an exit.
fn ended(t: &Tracked, e: &Exit, shutdown: bool) -> Value {
    let (phase, reason, message): (TaskPhase, Option<&str>, Option<String>) = match e.cause {
        ExitCause::Ended if e.code == Some(0) => (TaskPhase::Succeeded, None, None),
        ExitCause::Ended => match e.signal {
            Some(n) => (
                TaskPhase::Failed,
                Some("Signaled"),
                Some(format!("ended by signal {n}")),
            ),
            None => (
                TaskPhase::Failed,
                Some("Error"),
                Some(format!("ended with exit code {}", e.code.unwrap_or(-1))),
            ),
        },
        ExitCause::NotStarted => (
            TaskPhase::Failed,
            e.reason.as_deref().or(Some("StartFailed")),
            e.message.clone(),
        ),
        ExitCause::OutOfMemory => (
            TaskPhase::Failed,
            Some("OOMKilled"),
            Some("it used more memory than its limit".into()),
        ),
        // Its result counts for nobody when the node itself went: it runs again elsewhere, not charged.
        ExitCause::Stopped if shutdown => (
            TaskPhase::Lost,
            Some("NodeShutdown"),
            Some("the node's agent was stopped".into()),
        ),
        ExitCause::Stopped => (
            TaskPhase::Failed,
            Some("Stopped"),
            Some("it was asked to end".into()),
        ),
        ExitCause::Fenced => (
            TaskPhase::Lost,
            Some("Fenced"),
            Some("the node lost contact for too long".into()),
        ),
        ExitCause::Lost => (
            TaskPhase::Lost,
            e.reason.as_deref().or(Some("SupervisorLost")),
            e.message.clone(),
        ),
    };
    let mut s = status(t, phase, reason, message.as_deref());
    // 128 + signal, as shells and failure policies count it.
    s["exitCode"] = json!(e.code.or(e.signal.map(|n| 128 + n)));
    s["signal"] = json!(e.signal);
    if e.started_ms > 0 {
        s["startedTime"] = json!(time(e.started_ms));
        s["pid"] = json!(e.pid);
    }
    s["finishedTime"] = json!(time(e.finished_ms));
    s
}
