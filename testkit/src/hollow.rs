//! A simulated agent: registers a Node, renews its Lease, and "runs" Tasks by a script on virtual
//! time. It keeps the rules that real agents keep about epochs and fences, and writes down when
//! each attempt really ran, which is the ground truth that statuses are held against.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rota_controllers::runtime::{Clock, Failure, Rest};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How often an agent looks at its Tasks.
const TICK: Duration = Duration::from_millis(100);
/// How often it renews, as real ones do.
const RENEW: Duration = Duration::from_secs(2);
/// Without a renewal for so long, its supervisor stops tasks that must not overlap.
const FENCE: Duration = Duration::from_secs(10);

/// What an attempt will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How long it runs.
    pub after: Duration,
    /// What it ends with.
    pub exit_code: i32,
}

/// Decides what an attempt does: `(Job's name, index, attempt)`.
pub type Script = Arc<dyn Fn(&str, u64, u64) -> Outcome + Send + Sync>;

/// One attempt as it really ran.
#[derive(Clone, Debug)]
pub struct Run {
    /// Node.
    pub node: String,
    /// Job's uid and index: no two attempts of one may overlap when the Job waits for fences.
    pub work: (String, u64),
    /// Attempt.
    pub attempt: u64,
    /// When it began.
    pub from: Instant,
    /// When it ended; `None` while it runs.
    pub until: Option<Instant>,
}

/// All runs of a cluster.
pub type GroundTruth = Arc<Mutex<Vec<Run>>>;

/// The first two attempts of one index that ran at the same time.
pub fn overlap(runs: &[Run]) -> Option<(Run, Run)> {
    let end = |run: &Run| run.until.unwrap_or_else(Instant::now);
    for (i, a) in runs.iter().enumerate() {
        for b in &runs[i + 1..] {
            if a.work == b.work && a.from < end(b) && b.from < end(a) {
                return Some((a.clone(), b.clone()));
            }
        }
    }
    None
}

/// Whether the machine lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    On,
    Paused,
    Off,
}

/// Handle of one simulated node.
pub struct HollowNode {
    name: String,
    power: watch::Sender<Power>,
    agent: JoinHandle<()>,
}

impl HollowNode {
    /// Registers and starts it.
    pub async fn start(
        rest: Rest,
        name: &str,
        allocatable: Value,
        script: Script,
        truth: GroundTruth,
        clock: Clock,
    ) -> HollowNode {
        let (power, on) = watch::channel(Power::On);
        let agent = Agent {
            rest,
            name: name.into(),
            script,
            truth,
            clock,
            running: HashMap::new(),
            epoch: 0,
        };
        let agent = tokio::spawn(agent.live(allocatable, on));
        HollowNode {
            name: name.into(),
            power,
            agent,
        }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stops the machine's clock: agent, supervisor and tasks.
    pub fn pause(&self) {
        self.power.send_replace(Power::Paused);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.power.send_replace(Power::On);
    }

    /// The machine is gone, and all that ran on it.
    pub fn kill(&self) {
        self.power.send_replace(Power::Off);
    }
}

impl Drop for HollowNode {
    fn drop(&mut self) {
        self.agent.abort();
    }
}

/// What runs on a node.
struct Running {
    path: String,
    epoch: i64,
    ends: Instant,
    exit_code: i32,
    /// Place in the ground truth.
    at: usize,
    /// It was stopped from outside: phase and reason.
    stopped: Option<(&'static str, &'static str)>,
}

struct Agent {
    rest: Rest,
    name: String,
    script: Script,
    truth: GroundTruth,
    clock: Clock,
    running: HashMap<String, Running>,
    epoch: i64,
}

impl Agent {
    async fn live(mut self, allocatable: Value, mut power: watch::Receiver<Power>) {
        while self.register(&allocatable).await.is_err() {
            tokio::time::sleep(TICK).await;
        }
        let mut renewed = Instant::now();
        let mut renew_at = renewed;
        loop {
            let now = *power.borrow_and_update();
            match now {
                Power::On => {}
                Power::Off => return self.end_all(),
                Power::Paused => {
                    let since = Instant::now();
                    if power.wait_for(|p| *p != Power::Paused).await.is_err() {
                        return;
                    }
                    // Tasks stood still as well.
                    let lost = since.elapsed();
                    self.running.values_mut().for_each(|r| r.ends += lost);
                    continue;
                }
            }
            if Instant::now() >= renew_at {
                renew_at = Instant::now() + RENEW;
                let asked = Instant::now();
                if self.renew().await.is_ok() {
                    renewed = asked;
                }
            }
            if renewed.elapsed() > FENCE {
                self.stop_all("Lost", "Fenced");
            }
            // A failed round is made up by the next one.
            let _ = self.round().await;
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                _ = power.changed() => {}
            }
        }
    }

    async fn register(&self, allocatable: &Value) -> Result<(), Failure> {
        let name = &self.name;
        exists_is_fine(
            self.rest
                .post(
                    "/api/v1/nodes",
                    &json!({"apiVersion": "v1", "kind": "Node", "metadata": {
                        "name": name,
                        "labels": {"rota.dev/agent": "true", "kubernetes.io/hostname": name},
                        "annotations": {"rota.dev/epoch": "0", "rota.dev/observed-epoch": "0"},
                    }}),
                )
                .await,
        )?;
        exists_is_fine(
            self.rest
                .post(
                    "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
                    &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                        "metadata": {"name": name, "namespace": "kube-node-lease", "annotations": {"rota.dev/tunnel-id": name}},
                        "spec": {"holderIdentity": name, "leaseTransitions": 1, "leaseDurationSeconds": 15, "renewTime": self.now_micro()}}),
                )
                .await,
        )?;
        self.rest
            .patch(
                &format!("/api/v1/nodes/{name}/status"),
                &json!({"status": {
                    "capacity": allocatable, "allocatable": allocatable,
                    "nodeInfo": {
                        "bootID": format!("boot-of-{name}"), "machineID": name, "systemUUID": name,
                        "architecture": "amd64", "operatingSystem": "linux", "kernelVersion": "", "osImage": "",
                        "containerRuntimeVersion": "hollow://1", "kubeletVersion": "", "kubeProxyVersion": "",
                    },
                    "conditions": [{"type": "Ready", "status": "True", "reason": "AgentReady", "message": "simulated",
                        "lastHeartbeatTime": self.now(), "lastTransitionTime": self.now()}],
                }}),
            )
            .await?;
        Ok(())
    }

    fn now(&self) -> String {
        self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    fn now_micro(&self) -> String {
        self.clock
            .now()
            .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
            .to_string()
    }

    async fn renew(&mut self) -> Result<(), Failure> {
        self.rest
            .patch(
                &format!(
                    "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}",
                    self.name
                ),
                &json!({"spec": {"renewTime": self.now_micro()}}),
            )
            .await?;
        let node: Value = self
            .rest
            .get_as(&format!("/api/v1/nodes/{}", self.name), "application/json")
            .await?;
        let annotation = |name: &str| -> i64 {
            node["metadata"]["annotations"][name]
                .as_str()
                .and_then(|e| e.parse().ok())
                .unwrap_or(0)
        };
        self.epoch = annotation("rota.dev/epoch");
        if annotation("rota.dev/observed-epoch") == self.epoch {
            return Ok(());
        }
        let epoch = self.epoch;
        let older = |r: &Running| r.epoch < epoch;
        let (truth, now) = (self.truth.clone(), Instant::now());
        for run in self.running.values_mut().filter(|r| older(r)) {
            stop(run, &truth, now, "Lost", "Fenced");
        }
        // Only after all of them are stopped.
        self.rest
            .patch(
                &format!("/api/v1/nodes/{}", self.name),
                &json!({"metadata": {"annotations": {"rota.dev/observed-epoch": epoch.to_string()}}}),
            )
            .await?;
        Ok(())
    }

    async fn round(&mut self) -> Result<(), Failure> {
        let query = format!("fieldSelector=spec.nodeName%3D{}", self.name);
        let (tasks, _): (Vec<Value>, _) = self.rest.list("/apis/rota.dev/v1/tasks", &query).await?;
        let mut present = Vec::new();
        for task in &tasks {
            let uid = task["metadata"]["uid"].as_str().unwrap_or("").to_string();
            present.push(uid.clone());
            if matches!(
                task["status"]["phase"].as_str(),
                Some("Succeeded" | "Failed" | "Lost")
            ) {
                self.end(&uid);
                continue;
            }
            self.look_after(&uid, task).await?;
        }
        let gone: Vec<String> = self
            .running
            .keys()
            .filter(|uid| !present.contains(uid))
            .cloned()
            .collect();
        gone.iter().for_each(|uid| self.end(uid));
        Ok(())
    }

    async fn look_after(&mut self, uid: &str, task: &Value) -> Result<(), Failure> {
        let now = Instant::now();
        let epoch = task["spec"]["epoch"].as_i64().unwrap_or(0);
        let path = format!(
            "/apis/rota.dev/v1/namespaces/{}/tasks/{}/status",
            task["metadata"]["namespace"].as_str().unwrap_or(""),
            task["metadata"]["name"].as_str().unwrap_or("")
        );
        let deleted = task["metadata"]["deletionTimestamp"].is_string();
        if !self.running.contains_key(uid) {
            let (job, index, attempt) = (
                task["spec"]["jobName"].as_str().unwrap_or(""),
                task["spec"]["index"].as_u64().unwrap_or(0),
                task["spec"]["attempt"].as_u64().unwrap_or(0),
            );
            if deleted || epoch < self.epoch {
                let phase = if deleted { "Failed" } else { "Lost" };
                return self
                    .report(&path, json!({"phase": phase, "reason": "NotStarted"}))
                    .await;
            }
            let outcome = (self.script)(job, index, attempt);
            let at = {
                let mut truth = self.truth.lock();
                truth.push(Run {
                    node: self.name.clone(),
                    work: (task["spec"]["jobUid"].as_str().unwrap_or("").into(), index),
                    attempt,
                    from: now,
                    until: None,
                });
                truth.len() - 1
            };
            self.running.insert(
                uid.into(),
                Running {
                    path: path.clone(),
                    epoch,
                    ends: now + outcome.after,
                    exit_code: outcome.exit_code,
                    at,
                    stopped: None,
                },
            );
            let started = self.now();
            return self
                .report(
                    &path,
                    json!({"phase": "Running", "ready": true, "startedTime": started}),
                )
                .await;
        }
        let truth = self.truth.clone();
        let finished = self.now();
        let Some(run) = self.running.get_mut(uid) else {
            return Ok(());
        };
        if deleted && run.stopped.is_none() {
            stop(run, &truth, now, "Failed", "Stopped");
        }
        let status = match run.stopped {
            Some((phase, reason)) => {
                json!({"phase": phase, "ready": false, "reason": reason, "finishedTime": finished})
            }
            None if now < run.ends => return Ok(()),
            None => {
                end_run(&truth, run.at, now);
                let phase = if run.exit_code == 0 {
                    "Succeeded"
                } else {
                    "Failed"
                };
                json!({"phase": phase, "ready": false, "exitCode": run.exit_code, "finishedTime": finished})
            }
        };
        let path = run.path.clone();
        self.report(&path, status).await
    }

    async fn report(&self, path: &str, status: Value) -> Result<(), Failure> {
        match self.rest.patch(path, &json!({"status": status})).await {
            Err(Failure::NotFound(_)) | Ok(_) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    fn end(&mut self, uid: &str) {
        if let Some(run) = self.running.remove(uid) {
            end_run(&self.truth, run.at, Instant::now());
        }
    }

    fn stop_all(&mut self, phase: &'static str, reason: &'static str) {
        let (truth, now) = (self.truth.clone(), Instant::now());
        for run in self.running.values_mut() {
            stop(run, &truth, now, phase, reason);
        }
    }

    fn end_all(&mut self) {
        let uids: Vec<String> = self.running.keys().cloned().collect();
        uids.iter().for_each(|uid| self.end(uid));
    }
}

fn stop(
    run: &mut Running,
    truth: &GroundTruth,
    now: Instant,
    phase: &'static str,
    reason: &'static str,
) {
    run.stopped.get_or_insert((phase, reason));
    end_run(truth, run.at, now);
}

fn end_run(truth: &GroundTruth, at: usize, now: Instant) {
    if let Some(run) = truth.lock().get_mut(at) {
        run.until.get_or_insert(now);
    }
}

fn exists_is_fine(result: Result<Value, Failure>) -> Result<(), Failure> {
    match result {
        Ok(_) | Err(Failure::AlreadyExists(_)) => Ok(()),
        Err(failure) => Err(failure),
    }
}
