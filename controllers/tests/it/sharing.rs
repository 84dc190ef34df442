//! Gangs, preemption and queues that share, through the API: what is placed together, who makes
//! room for whom, and what people are told.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::placement::{Agents, node, queue, reasons, run_on, submit, succeed, tasks, until_job};
use crate::world::{EVENTS, World, condition};

/// Live tasks per Job.
async fn live(world: &World) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for task in tasks(world).await {
        let phase = task["status"]["phase"].as_str().unwrap_or("");
        if !matches!(phase, "Succeeded" | "Failed" | "Lost") {
            let job = task["spec"]["jobName"].as_str().unwrap().to_string();
            *out.entry(job).or_default() += 1;
        }
    }
    out
}

async fn events(world: &World, reason: &str) -> Vec<Value> {
    let (events, _) = world.admin.list::<Value>(EVENTS, "").await.unwrap();
    let of = |e: &Value| e["reason"] == reason;
    events.into_iter().filter(of).collect()
}

#[tokio::test(start_paused = true)]
async fn a_gang_of_two_jobs_starts_when_both_fit() {
    let world = World::start().await;
    queue(&world, "default", json!({})).await;
    node(&world, "n1", "4").await;
    let agents = Agents::start(&world, run_on);
    let controllers = world.controllers("c", &["job", "placement"]);
    let gang = |n: u32| json!({"completions": n, "gang": {"name": "train", "jobs": 2}});
    submit(&world, "ps", "2", gang(1)).await;
    let alone = until_job(&world, "ps", |j| !reasons(j).is_empty()).await;
    assert_eq!(
        reasons(&alone),
        ["Gang"],
        "it fits, and is not all of the gang"
    );
    submit(&world, "worker", "1", gang(4)).await;
    let waiting = until_job(&world, "worker", |j| !reasons(j).is_empty()).await;
    assert!(
        reasons(&waiting).contains(&"InsufficientResource".to_string())
            || reasons(&waiting).contains(&"Gang".to_string()),
        "{waiting}"
    );
    node(&world, "n2", "4").await;
    for name in ["ps", "worker"] {
        until_job(&world, name, |j| j["status"]["waiting"] == 0).await;
    }
    assert_eq!(live(&world).await["worker"], 4);
    agents.now(succeed);
    for name in ["ps", "worker"] {
        until_job(&world, name, |j| j["status"]["phase"] == "Succeeded").await;
    }
    controllers.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn a_higher_priority_evicts_and_the_victim_runs_again_later() {
    let world = World::start().await;
    queue(&world, "default", json!({})).await;
    node(&world, "n1", "4").await;
    let agents = Agents::start(&world, run_on);
    let controllers = world.controllers("c", &["job", "placement"]);
    submit(&world, "low", "1", json!({"completions": 4})).await;
    until_job(&world, "low", |j| j["status"]["running"] == 4).await;
    let high = json!({"completions": 1, "priority": 10});
    submit(&world, "high", "3", high).await;
    until_job(&world, "high", |j| j["status"]["running"] == 1).await;
    let low = until_job(&world, "low", |j| j["status"]["running"] == 1).await;
    assert_eq!(low["status"]["failed"], 0, "an eviction is no failure");
    assert!(
        agents.seen.lock().most <= 4,
        "nobody starts before the room is there"
    );
    assert_eq!(events(&world, "Preempted").await.len(), 1);
    agents.now(succeed);
    until_job(&world, "high", |j| j["status"]["phase"] == "Succeeded").await;
    let low = until_job(&world, "low", |j| j["status"]["phase"] == "Succeeded").await;
    assert_eq!(low["status"]["succeeded"], 4);
    controllers.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_takes_back_what_it_is_guaranteed() {
    let world = World::start().await;
    let guarantee = json!({"guarantee": {"cpu": 2}});
    queue(&world, "a", guarantee.clone()).await;
    queue(&world, "b", guarantee).await;
    node(&world, "n1", "4").await;
    let agents = Agents::start(&world, run_on);
    let controllers = world.controllers("c", &["job", "placement"]);
    let of = |queue: &str, n: u32| json!({"completions": n, "queue": queue});
    submit(&world, "first", "1", of("a", 8)).await;
    until_job(&world, "first", |j| j["status"]["running"] == 4).await;
    submit(&world, "second", "1", of("b", 8)).await;
    until_job(&world, "second", |j| j["status"]["running"] == 2).await;
    assert_eq!(
        live(&world).await,
        BTreeMap::from([("first".into(), 2), ("second".into(), 2)])
    );
    agents.now(succeed);
    for name in ["first", "second"] {
        until_job(&world, name, |j| j["status"]["phase"] == "Succeeded").await;
    }
    controllers.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_above_holds_for_the_queues_below() {
    let world = World::start().await;
    queue(&world, "org", json!({"limit": {"cpu": 3}})).await;
    queue(&world, "a", json!({"parent": "org"})).await;
    queue(&world, "b", json!({"parent": "org"})).await;
    node(&world, "n1", "8").await;
    let agents = Agents::start(&world, run_on);
    let controllers = world.controllers("c", &["job", "placement"]);
    for name in ["a", "b"] {
        submit(&world, name, "1", json!({"completions": 4, "queue": name})).await;
    }
    let waiting = until_job(&world, "b", |j| !reasons(j).is_empty()).await;
    assert_eq!(reasons(&waiting), ["QueueLimit"]);
    agents.now(succeed);
    for name in ["a", "b"] {
        until_job(&world, name, |j| j["status"]["phase"] == "Succeeded").await;
    }
    assert_eq!(agents.seen.lock().most, 3);
    controllers.shut_down().await;
}

/// Runs the first index only.
fn run_the_first(task: &Value) -> Option<Value> {
    match task["spec"]["index"].as_i64() {
        Some(0) => None,
        _ => Some(json!({"phase": "Starting"})),
    }
}

#[tokio::test(start_paused = true)]
async fn a_gang_that_does_not_run_in_full_gives_its_nodes_back() {
    let world = World::start().await;
    queue(&world, "default", json!({})).await;
    node(&world, "n1", "4").await;
    let agents = Agents::start(&world, run_the_first);
    let controllers = world.controllers("c", &["job", "placement"]);
    let gang = json!({"completions": 4, "gang": {"timeoutSeconds": 20}});
    submit(&world, "train", "1", gang).await;
    until_job(&world, "train", |j| j["status"]["running"] == 1).await;
    let start = tokio::time::Instant::now();
    until_job(&world, "train", |j| j["status"]["replicas"] == 0).await;
    assert!(start.elapsed() >= std::time::Duration::from_secs(19));
    assert_eq!(events(&world, "GangTimeout").await.len(), 1);
    agents.now(succeed);
    until_job(&world, "train", |j| j["status"]["phase"] == "Succeeded").await;
    controllers.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_durations_becomes_a_forecast() {
    let world = World::start().await;
    queue(&world, "default", json!({})).await;
    node(&world, "n1", "4").await;
    let agents = Agents::start(&world, run_on);
    let controllers = world.controllers("c", &["job", "placement"]);
    let spec = |seconds: u32| json!({"expectedDurationSeconds": seconds});
    submit(&world, "first", "4", spec(600)).await;
    until_job(&world, "first", |j| j["status"]["running"] == 1).await;
    let mut late = spec(60);
    late["finishDeadlineTime"] = json!("2026-01-01T00:05:00Z");
    submit(&world, "second", "4", late).await;
    let second = until_job(&world, "second", |j| {
        j["status"]["waitingFor"]["estimatedStart"].is_object()
    })
    .await;
    let start = second["status"]["waitingFor"]["estimatedStart"]["p50Time"].as_str();
    assert!(start.unwrap().starts_with("2026-01-01T00:10:"), "{start:?}");
    assert!(condition(&second, "DeadlineFeasible").starts_with("False"));
    let held = second["status"]["waitingFor"]["reasons"][0]["heldBy"].as_str();
    assert!(held.unwrap().contains("Job default/first"), "{held:?}");
    agents.now(succeed);
    until_job(&world, "second", |j| j["status"]["phase"] == "Succeeded").await;
    let idle = |q: &Value| q["status"]["fairShare"] == "0" && q["status"]["dominantShare"] == "0";
    let path = "/apis/rota.dev/v1/queues/default";
    world.until(path, |q| q.is_some_and(idle)).await;
    controllers.shut_down().await;
}

/// Tasks of the short Job end at once.
fn short_ones_succeed(task: &Value) -> Option<Value> {
    let short = task["spec"]["jobName"] == "short";
    short.then(|| json!({"phase": "Succeeded", "exitCode": 0}))
}

#[tokio::test(start_paused = true)]
async fn a_shorter_job_goes_first_and_saved_work_is_remembered() {
    let world = World::start().await;
    let spec = json!({"order": "ShortestRemainingTimeFirst"});
    queue(&world, "default", spec).await;
    node(&world, "n1", "1").await;
    let agents = Agents::start(&world, run_on);
    let controllers = world.controllers("c", &["job", "placement"]);
    let long = json!({"expectedDurationSeconds": 100_000,
        "preemption": {"checkpoint": {"periodSeconds": 30}}});
    submit(&world, "long", "1", long).await;
    until_job(&world, "long", |j| j["status"]["running"] == 1).await;
    tokio::time::sleep(std::time::Duration::from_secs(70)).await;
    agents.now(short_ones_succeed);
    submit(&world, "short", "1", json!({"expectedDurationSeconds": 5})).await;
    until_job(&world, "short", |j| j["status"]["phase"] == "Succeeded").await;
    let ledgers = "/apis/rota.dev/v1/namespaces/default/jobledgers";
    let saved = || async {
        let (ledgers, _) = world.admin.list::<Value>(ledgers, "").await.unwrap();
        let of = ledgers.iter().find(|l| l["spec"]["jobName"] == "long");
        of.map(|l| l["spec"]["attempts"]["0"]["savedSeconds"].clone())
    };
    let deadline = tokio::time::Instant::now() + crate::world::LIMIT;
    while saved().await != Some(json!(60)) {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{:?}",
            saved().await
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    agents.now(succeed);
    until_job(&world, "long", |j| j["status"]["phase"] == "Succeeded").await;
    controllers.shut_down().await;
}

/// The first attempt of the last index fails.
fn the_last_fails_once(task: &Value) -> Option<Value> {
    let spec = &task["spec"];
    let fails = spec["index"] == 2 && spec["attempt"] == 0;
    fails.then(|| json!({"phase": "Failed", "exitCode": 1, "reason": "Error"}))
}

#[tokio::test(start_paused = true)]
async fn a_gang_goes_on_when_a_member_comes_back_or_goes() {
    let world = World::start().await;
    queue(&world, "default", json!({})).await;
    node(&world, "n1", "4").await;
    let agents = Agents::start(&world, the_last_fails_once);
    let controllers = world.controllers("c", &["job", "placement"]);
    submit(&world, "ring", "1", json!({"completions": 3, "gang": {}})).await;
    until_job(&world, "ring", |j| {
        j["status"]["running"] == 3 && j["status"]["restarts"] == 1
    })
    .await;
    agents.now(succeed);
    until_job(&world, "ring", |j| j["status"]["phase"] == "Succeeded").await;
    // One of two Jobs goes before the other has come: what is left says what it lacks, and goes on.
    agents.now(run_on);
    let half = |held: bool| json!({"gang": {"name": "pair"}, "suspend": held});
    submit(&world, "held", "1", half(true)).await;
    submit(&world, "ready", "1", half(false)).await;
    let ready = until_job(&world, "ready", |j| !reasons(j).is_empty()).await;
    assert_eq!(reasons(&ready), ["Gang"]);
    let path = format!("{}/held", crate::world::JOBS);
    world.admin.delete(&path, &json!({})).await.unwrap();
    until_job(&world, "ready", |j| j["status"]["running"] == 1).await;
    controllers.shut_down().await;
}
