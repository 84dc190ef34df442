use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::world::{TASKS, World, condition};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

async fn node(world: &World, name: &str) -> JoinHandle<()> {
    let body = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"rota.dev/agent": "true"},
            "annotations": {"rota.dev/epoch": "1"}},
    });
    world.admin.post("/api/v1/nodes", &body).await.unwrap();
    let status = json!({"status": {"conditions": [{
        "type": "Ready", "status": "True", "reason": "AgentReady", "message": "",
    }]}});
    let path = format!("/api/v1/nodes/{name}/status");
    world.admin.patch(&path, &status).await.unwrap();
    let body = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "leaseTransitions": 1},
    });
    world.admin.post(LEASES, &body).await.unwrap();
    beat(world, name)
}

fn beat(world: &World, name: &str) -> JoinHandle<()> {
    let (admin, path) = (world.admin.clone(), format!("{LEASES}/{name}"));
    tokio::spawn(async move {
        let clock =
            rota_controllers::runtime::Clock::tokio("2026-01-01T00:00:00Z".parse().unwrap());
        loop {
            let now = format!("{:.6}", clock.now());
            admin
                .patch(&path, &json!({"spec": {"renewTime": now}}))
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    })
}

async fn task(world: &World, name: &str, node: &str, rule: &str) {
    let revision = json!({
        "apiVersion": "rota.dev/v1", "kind": "JobRevision", "metadata": {"name": format!("r-{name}")},
        "spec": {"jobName": "j", "jobUid": "u", "onLost": rule,
            "template": {"spec": {"command": ["sleep"]}}},
    });
    let path = "/apis/rota.dev/v1/namespaces/default/jobrevisions";
    world.admin.post(path, &revision).await.unwrap();
    let body = json!({
        "apiVersion": "rota.dev/v1", "kind": "Task", "metadata": {"name": name},
        "spec": {"jobName": "j", "jobUid": "u", "index": 0, "attempt": 0, "epoch": 1,
            "nodeName": node, "queue": "default", "requests": {}, "revision": format!("r-{name}")},
    });
    world.admin.post(TASKS, &body).await.unwrap();
}

fn phase(task: Option<&Value>) -> &str {
    task.and_then(|t| t["status"]["phase"].as_str())
        .unwrap_or("")
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_unknown_then_lost_and_its_tasks_go_by_their_rule_and_it_can_return() {
    let world = World::start().await;
    let controllers = world.controllers("c", &["node"]);
    let mut beats = Vec::new();
    for name in ["n1", "n2", "n3"] {
        beats.push(node(&world, name).await);
    }
    task(&world, "rerun", "n1", "Rerun").await;
    task(&world, "fenced", "n1", "WaitForFence").await;
    task(&world, "other", "n2", "Rerun").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let n1 = world.get("/api/v1/nodes/n1").await.unwrap();
    assert_eq!(condition(&n1, "Ready"), "True:AgentReady");
    beats[0].abort();
    let start = tokio::time::Instant::now();
    world
        .until("/api/v1/nodes/n1", |n| {
            n.is_some_and(|n| condition(n, "Ready") == "Unknown:HeartbeatMissing")
        })
        .await;
    let unknown = start.elapsed();
    assert!(
        unknown > Duration::from_secs(7) && unknown < Duration::from_secs(11),
        "{unknown:?}"
    );
    world
        .until(&format!("{TASKS}/rerun"), |t| phase(t) == "Lost")
        .await;
    let lost = start.elapsed();
    assert!(
        lost > Duration::from_secs(12) && lost < Duration::from_secs(16),
        "{lost:?}"
    );
    let n1 = world
        .until("/api/v1/nodes/n1", |n| {
            n.is_some_and(|n| condition(n, "Ready") == "Unknown:NodeLost")
        })
        .await
        .unwrap();
    assert_eq!(n1["metadata"]["annotations"]["rota.dev/epoch"], "2");
    assert_eq!(n1["spec"]["taints"][0]["key"], "rota.dev/lost");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        phase(world.get(&format!("{TASKS}/fenced")).await.as_ref()),
        ""
    );
    assert_eq!(
        phase(world.get(&format!("{TASKS}/other")).await.as_ref()),
        ""
    );
    // The agent's process is known to be gone: its watchdog has fired.
    let gone = json!({"metadata": {"annotations": {"rota.dev/tunnel-id": "x", "rota.dev/tunnel-closed": "x"}}});
    world
        .admin
        .patch(&format!("{LEASES}/n1"), &gone)
        .await
        .unwrap();
    world
        .until(&format!("{TASKS}/fenced"), |t| phase(t) == "Lost")
        .await;
    // It comes back: only once its agent has adopted the epoch is it free of the taint.
    beats.push(beat(&world, "n1"));
    tokio::time::sleep(Duration::from_secs(30)).await;
    let n1 = world.get("/api/v1/nodes/n1").await.unwrap();
    assert_eq!(n1["spec"]["taints"][0]["key"], "rota.dev/lost");
    let seen = json!({"metadata": {"annotations": {"rota.dev/observed-epoch": "2"}}});
    world.admin.patch("/api/v1/nodes/n1", &seen).await.unwrap();
    let n1 = world
        .until("/api/v1/nodes/n1", |n| {
            n.is_some_and(|n| condition(n, "Ready") == "True:AgentReady")
        })
        .await
        .unwrap();
    assert!(n1["spec"]["taints"].as_array().is_none_or(|t| t.is_empty()));
    controllers.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_while_most_nodes_look_late_and_a_deleted_node_frees_its_tasks() {
    let world = World::start().await;
    let controllers = world.controllers("c", &["node"]);
    let mut beats = Vec::new();
    for name in ["n1", "n2", "n3"] {
        beats.push(node(&world, name).await);
    }
    task(&world, "t1", "n1", "Rerun").await;
    task(&world, "t2", "n2", "WaitForFence").await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    beats[0].abort();
    beats[1].abort();
    tokio::time::sleep(Duration::from_secs(60)).await;
    for name in ["n1", "n2"] {
        let n = world.get(&format!("/api/v1/nodes/{name}")).await.unwrap();
        assert_eq!(n["metadata"]["annotations"]["rota.dev/epoch"], "1", "{n}");
    }
    world
        .admin
        .delete("/api/v1/nodes/n2", &json!({}))
        .await
        .unwrap();
    let t2 = world
        .until(&format!("{TASKS}/t2"), |t| phase(t) == "Lost")
        .await
        .unwrap();
    assert_eq!(t2["status"]["reason"], "NodeDeleted");
    // Of n1 and n3 only one is late now.
    world
        .until(&format!("{TASKS}/t1"), |t| phase(t) == "Lost")
        .await;
    controllers.shut_down().await;
}
