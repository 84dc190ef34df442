//! Placement against the real API server, with agents that only pretend.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use rota_controllers::runtime::Clock;

use crate::world::{JOBS, TASKS, World, condition, job};

const QUEUES: &str = "/apis/rota.dev/v1/queues";
const LEDGERS: &str = "/apis/rota.dev/v1/namespaces/default/jobledgers";
/// How often a pretended agent looks, and so about how long a task runs at least.
const LOOK: Duration = Duration::from_millis(50);

/// What an agent does with a task: its final status, or None to let it run.
pub type Behaviour = fn(&Value) -> Option<Value>;

pub fn succeed(_: &Value) -> Option<Value> {
    Some(json!({"phase": "Succeeded", "exitCode": 0}))
}
pub fn run_on(_: &Value) -> Option<Value> {
    None
}
fn fail(_: &Value) -> Option<Value> {
    Some(json!({"phase": "Failed", "exitCode": 1, "reason": "Error"}))
}

/// What the agents saw: most tasks at once, and how each attempt of each index ended.
#[derive(Default)]
pub struct Seen {
    pub most: usize,
    pub ends: BTreeMap<(String, i64, i64), String>,
}

pub struct Agents {
    pub seen: Arc<Mutex<Seen>>,
    behaviour: Arc<Mutex<Behaviour>>,
    _stop: DropGuard,
}

impl Agents {
    pub fn start(world: &World, behaviour: Behaviour) -> Agents {
        let stop = CancellationToken::new();
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let behaviour = Arc::new(Mutex::new(behaviour));
        let (rest, log, how) = (world.admin.clone(), seen.clone(), behaviour.clone());
        let clock = Clock::tokio("2026-01-01T00:00:00Z".parse().unwrap());
        let time = move || clock.now().strftime("%FT%TZ").to_string();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let (tasks, _) = rest.list::<Value>(TASKS, "").await.unwrap();
                let phase = |t: &Value| t["status"]["phase"].as_str().unwrap_or("").to_string();
                let live = |t: &&Value| !matches!(&*phase(t), "Succeeded" | "Failed" | "Lost");
                let live: Vec<&Value> = tasks.iter().filter(live).collect();
                {
                    let mut log = log.lock();
                    log.most = log.most.max(live.len());
                }
                for task in live {
                    let behaviour = *how.lock();
                    let status = if !task["metadata"]["deletionTimestamp"].is_null() {
                        Some(json!({"phase": "Failed", "signal": 15, "reason": "Stopped"}))
                    } else {
                        behaviour(task)
                    };
                    let status = match status {
                        Some(status) => {
                            let spec = &task["spec"];
                            let key = (
                                spec["jobName"].as_str().unwrap().to_string(),
                                spec["index"].as_i64().unwrap(),
                                spec["attempt"].as_i64().unwrap(),
                            );
                            let end = status["phase"].as_str().unwrap().to_string();
                            log.lock().ends.insert(key, end);
                            status
                        }
                        None if phase(task) == "Running" => continue,
                        None => json!({"phase": "Running", "ready": true, "startedTime": time()}),
                    };
                    let mut status = status;
                    if status["phase"] != "Running" && status["phase"] != "Starting" {
                        status["finishedTime"] = json!(time());
                    }
                    let name = task["metadata"]["name"].as_str().unwrap();
                    let path = format!("{TASKS}/{name}/status");
                    rest.patch(&path, &json!({"status": status})).await.unwrap();
                }
            }
        }));
        Agents {
            seen,
            behaviour,
            _stop: stop.drop_guard(),
        }
    }

    pub fn now(&self, behaviour: Behaviour) {
        *self.behaviour.lock() = behaviour;
    }

    fn ends(&self, job: &str, end: &str) -> usize {
        let seen = self.seen.lock();
        seen.ends
            .iter()
            .filter(|(k, e)| k.0 == job && *e == end)
            .count()
    }
}

pub async fn node(world: &World, name: &str, cpu: &str) {
    let body = json!({"apiVersion": "v1", "kind": "Node", "metadata": {
        "name": name, "labels": {"rota.dev/agent": "true", "kubernetes.io/hostname": name}}});
    world.admin.post("/api/v1/nodes", &body).await.unwrap();
    let status = json!({"status": {
        "capacity": {"cpu": cpu, "memory": "64Gi"}, "allocatable": {"cpu": cpu, "memory": "64Gi"},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Up", "message": ""}]}});
    let path = format!("/api/v1/nodes/{name}/status");
    world.admin.patch(&path, &status).await.unwrap();
}

pub async fn queue(world: &World, name: &str, spec: Value) {
    let body = json!({"apiVersion": "rota.dev/v1", "kind": "Queue",
        "metadata": {"name": name}, "spec": spec});
    match world.get(&format!("{QUEUES}/{name}")).await {
        Some(_) => {
            let patch = json!({"spec": body["spec"]});
            world
                .admin
                .patch(&format!("{QUEUES}/{name}"), &patch)
                .await
                .unwrap();
        }
        None => {
            world.admin.post(QUEUES, &body).await.unwrap();
        }
    }
}

/// A Job whose tasks ask for this much cpu.
pub async fn submit(world: &World, name: &str, cpu: &str, mut spec: Value) {
    spec["template"] = json!({"spec": {
        "command": ["true"], "resources": {"requests": {"cpu": cpu}},
        "nodeSelector": spec["nodeSelector"].take(),
    }});
    spec.as_object_mut().unwrap().remove("nodeSelector");
    if spec["template"]["spec"]["nodeSelector"].is_null() {
        spec["template"]["spec"]
            .as_object_mut()
            .unwrap()
            .remove("nodeSelector");
    }
    world.admin.post(JOBS, &job(name, spec)).await.unwrap();
}

pub async fn until_job(world: &World, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    world
        .until(&format!("{JOBS}/{name}"), |j| j.is_some_and(&wanted))
        .await
        .unwrap()
}

pub async fn tasks(world: &World) -> Vec<Value> {
    world.admin.list::<Value>(TASKS, "").await.unwrap().0
}

pub fn reasons(job: &Value) -> Vec<String> {
    let list = job["status"]["waitingFor"]["reasons"].as_array();
    let words = list
        .into_iter()
        .flatten()
        .map(|r| r["reason"].as_str().unwrap().to_string());
    words.collect()
}

#[tokio::test(start_paused = true)]
async fn an_array_flows_through_a_small_node_and_leaves_only_its_ledger() {
    let world = World::start().await;
    queue(&world, "default", json!({})).await;
    node(&world, "n1", "4").await;
    let agents = Agents::start(&world, run_on);
    let controllers = world.controllers("c", &["job", "placement", "gc"]);
    submit(&world, "pi", "1", json!({"completions": 30})).await;
    let waiting = until_job(&world, "pi", |j| {
        !j["status"]["waitingFor"].is_null() && j["status"]["running"] == 4
    })
    .await;
    assert_eq!(reasons(&waiting), ["InsufficientResource"]);
    assert_eq!(waiting["status"]["waitingFor"]["reasons"][0]["nodes"], 1);
    agents.now(succeed);
    let done = until_job(&world, "pi", |j| j["status"]["phase"] == "Succeeded").await;
    assert_eq!(done["status"]["succeeded"], 30);
    assert_eq!(
        agents.seen.lock().most,
        4,
        "never more than fit, and as many"
    );
    assert_eq!(agents.seen.lock().ends.len(), 30, "each index ran once");
    let (ledgers, _) = world.admin.list::<Value>(LEDGERS, "").await.unwrap();
    assert_eq!(ledgers.len(), 1);
    assert_eq!(ledgers[0]["spec"]["lastNodes"], json!({"n1": "0-29"}));
    assert_eq!(tasks(&world).await.len(), 30, "kept for a minute");
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(tasks(&world).await.len(), 0);
    let done = world.get(&format!("{JOBS}/pi")).await.unwrap();
    assert!(done["status"]["waitingFor"].is_null(), "{}", done["status"]);
    let queue = world.get(&format!("{QUEUES}/default")).await.unwrap();
    assert_eq!(queue["status"]["running"], 0);
    // No change, no writes. The agents, who look all the time, are not needed for it.
    drop(agents);
    let before = world.versions().await;
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert_eq!(before, world.versions().await);
    world
        .admin
        .delete(&format!("{JOBS}/pi"), &json!({}))
        .await
        .unwrap();
    world.until(&format!("{JOBS}/pi"), |j| j.is_none()).await;
    assert!(
        world
            .admin
            .list::<Value>(LEDGERS, "")
            .await
            .unwrap()
            .0
            .is_empty()
    );
    controllers.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_later_until_the_limit() {
    let world = World::start().await;
    queue(&world, "default", json!({})).await;
    node(&world, "n1", "4").await;
    let agents = Agents::start(&world, fail);
    let controllers = world.controllers("c", &["job", "placement"]);
    let start = tokio::time::Instant::now();
    submit(&world, "bad", "1", json!({"backoffLimit": 3})).await;
    let failed = until_job(&world, "bad", |j| j["status"]["phase"] == "Failed").await;
    assert!(condition(&failed, "Failed").starts_with("True"));
    assert_eq!(agents.ends("bad", "Failed"), 4);
    let took = start.elapsed();
    assert!(
        took >= Duration::from_secs(7),
        "1 + 2 + 4 s of back-off, took {took:?}"
    );
    assert_eq!(tasks(&world).await.len(), 4, "failed Tasks are kept");
    controllers.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn deleted_tasks_are_replaced_and_suspension_stops_them() {
    let world = World::start().await;
    queue(&world, "default", json!({})).await;
    node(&world, "n1", "4").await;
    let agents = Agents::start(&world, run_on);
    let controllers = world.controllers("c", &["job", "placement"]);
    submit(
        &world,
        "web",
        "1",
        json!({"type": "Service", "replicas": 3, "backoffLimit": 0}),
    )
    .await;
    until_job(&world, "web", |j| j["status"]["running"] == 3).await;
    let name = tasks(&world).await[0]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_string();
    world
        .admin
        .delete(&format!("{TASKS}/{name}"), &json!({}))
        .await
        .unwrap();
    world
        .until(&format!("{TASKS}/{name}"), |t| t.is_none())
        .await;
    until_job(&world, "web", |j| j["status"]["running"] == 3).await;
    let path = format!("{JOBS}/web");
    world
        .admin
        .patch(&path, &json!({"spec": {"replicas": 1}}))
        .await
        .unwrap();
    until_job(&world, "web", |j| j["status"]["replicas"] == 1).await;
    world
        .admin
        .patch(&path, &json!({"spec": {"suspend": true}}))
        .await
        .unwrap();
    until_job(&world, "web", |j| j["status"]["replicas"] == 0).await;
    world
        .admin
        .patch(&path, &json!({"spec": {"suspend": false, "replicas": 2}}))
        .await
        .unwrap();
    until_job(&world, "web", |j| j["status"]["running"] == 2).await;
    assert!(agents.seen.lock().most <= 3);
    world.admin.delete(&path, &json!({})).await.unwrap();
    world.until(&path, |j| j.is_none()).await;
    assert!(tasks(&world).await.is_empty());
    controllers.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_goes_on_where_the_old_one_stopped() {
    let world = World::start().await;
    queue(&world, "default", json!({})).await;
    node(&world, "n1", "4").await;
    let agents = Agents::start(&world, succeed);
    let first = world.controllers("a", &["job", "placement"]);
    submit(&world, "pi", "1", json!({"completions": 200})).await;
    let path = format!("{JOBS}/pi");
    let more = async |count: usize| {
        let target = agents.ends("pi", "Succeeded") + count;
        let start = tokio::time::Instant::now();
        while agents.ends("pi", "Succeeded") < target {
            assert!(start.elapsed() < crate::world::LIMIT, "nothing moves");
            tokio::time::sleep(LOOK).await;
        }
    };
    more(30).await;
    // Torn off without a goodbye: its Leases must run out.
    first.done.abort();
    drop(first);
    let second = world.controllers("b", &["job", "placement"]);
    more(30).await;
    second.shut_down().await;
    // Whoever comes next starts from what is stored.
    let third = world.controllers("c", &["job", "placement"]);
    let done = world
        .until(&path, |j| {
            j.is_some_and(|j| j["status"]["phase"] == "Succeeded")
        })
        .await
        .unwrap();
    assert_eq!(done["status"]["succeeded"], 200);
    let (ends, most) = {
        let seen = agents.seen.lock();
        (seen.ends.len(), seen.most)
    };
    assert_eq!(ends, 200, "each index ran once");
    assert_eq!(most, 4);
    third.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_told_why() {
    let world = World::start().await;
    queue(&world, "default", json!({})).await;
    queue(&world, "small", json!({"limit": {"cpu": 1}})).await;
    node(&world, "n1", "4").await;
    let _agents = Agents::start(&world, run_on);
    let controllers = world.controllers("c", &["job", "placement"]);
    submit(&world, "huge", "64", json!({})).await;
    submit(&world, "lost", "1", json!({"queue": "nowhere"})).await;
    submit(
        &world,
        "fast",
        "1",
        json!({"nodeSelector": {"disk": "ssd"}}),
    )
    .await;
    submit(
        &world,
        "capped",
        "1",
        json!({"queue": "small", "completions": 3}),
    )
    .await;
    let told = async |name: &str, word: &str, change: &str| {
        let job = until_job(&world, name, |j| reasons(j).iter().any(|r| r == word)).await;
        assert_eq!(
            job["status"]["waitingFor"]["smallestChange"], change,
            "{name}"
        );
        job
    };
    told("huge", "NeverFits", "lower cpu from 64 to 4").await;
    let lost = told("lost", "QueueNotFound", "create Queue nowhere").await;
    assert_eq!(condition(&lost, "Admitted"), "False:QueueNotFound");
    told(
        "fast",
        "NodeSelectorMismatch",
        "remove disk=ssd from nodeSelector (1 node has room then)",
    )
    .await;
    told(
        "capped",
        "QueueLimit",
        "raise the limit of Queue small for cpu from 1 to 2",
    )
    .await;
    let path = format!("{QUEUES}/small");
    let small = world
        .until(&path, |q| q.is_some_and(|q| q["status"]["waiting"] == 2))
        .await
        .unwrap();
    assert_eq!(small["status"]["running"], 1);
    assert_eq!(small["status"]["used"]["cpu"], "1");
    // What stands in the way goes, and so does the word about it.
    queue(&world, "small", json!({"limit": {"cpu": 9}})).await;
    queue(&world, "nowhere", json!({})).await;
    until_job(&world, "lost", |j| {
        j["status"]["running"] == 1 && j["status"]["waitingFor"].is_null()
    })
    .await;
    controllers.shut_down().await;
}
