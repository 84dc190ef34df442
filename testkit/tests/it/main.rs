//! The simulated cluster runs real work to its end under faults, and breaks no promise on the way.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use rota_store::MemoryStore;
use rota_testkit::hollow::overlap;
use rota_testkit::{FaultyStore, Outcome, TestCluster, eventually};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(600);

fn work(completions: u32, extra: serde_json::Value) -> serde_json::Value {
    let mut spec = json!({
        "completions": completions,
        "template": {"spec": {"command": ["true"], "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}},
    });
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

#[tokio::test(start_paused = true)]
async fn work_completes_and_nothing_is_over_allocated() {
    let cluster = TestCluster::builder()
        .nodes(3)
        .script(|_, index, attempt| Outcome {
            after: Duration::from_millis(300 * (index % 7)),
            exit_code: i32::from(index % 10 == 3 && attempt == 0) * 5,
        })
        .start()
        .await;
    cluster.create_job("many", work(60, json!({}))).await;
    let job = cluster.wait_job("many", "Complete", LIMIT).await;
    assert_eq!(job["status"]["succeeded"], 60);
    assert_eq!(job["status"]["restarts"], 6);
    let runs = cluster.truth.lock().clone();
    assert_eq!(runs.len(), 66);
    assert!(overlap(&runs).is_none());
    cluster.history.check();
}

#[tokio::test(start_paused = true)]
async fn work_completes_over_a_store_that_fails() {
    for seed in 1..=3 {
        let store = FaultyStore::random(MemoryStore::new(), seed, 0.05);
        store.enable(false);
        let cluster = TestCluster::builder()
            .nodes(2)
            .seed(seed)
            .store(store.clone())
            .start()
            .await;
        cluster.create_job("hard", work(30, json!({}))).await;
        store.enable(true);
        let job = cluster.wait_job("hard", "Complete", LIMIT).await;
        assert_eq!(job["status"]["succeeded"], 30, "seed {seed}");
        assert!(
            store.injected() > 0,
            "seed {seed}: no fault in {} commits",
            store.commits()
        );
        cluster.history.check();
        let runs = cluster.truth.lock().clone();
        assert!(overlap(&runs).is_none(), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_nodes_fenced_work_never_overlaps() {
    let cluster = TestCluster::builder()
        .nodes(2)
        .script(|_, _, _| Outcome {
            after: Duration::from_secs(40),
            exit_code: 0,
        })
        .start()
        .await;
    cluster
        .create_job("fenced", work(6, json!({"onLost": "WaitForFence"})))
        .await;
    eventually(LIMIT, "all run", async || {
        let runs = cluster.truth.lock().len();
        if runs == 6 {
            Ok(())
        } else {
            Err(runs.to_string())
        }
    })
    .await;
    cluster.nodes[0].pause();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let second = cluster
        .tasks("fenced")
        .await
        .iter()
        .filter(|t| t["spec"]["attempt"] != 0)
        .count();
    assert_eq!(second, 0, "replaced while the node was only paused");
    cluster.nodes[0].resume();
    let job = cluster.wait_job("fenced", "Complete", LIMIT).await;
    assert_eq!(job["status"]["succeeded"], 6);
    let runs = cluster.truth.lock().clone();
    assert!(runs.iter().any(|r| r.attempt == 1), "nothing ran again");
    assert!(overlap(&runs).is_none(), "{:?}", overlap(&runs));
    cluster.history.check();
}

#[tokio::test(start_paused = true)]
async fn a_dead_nodes_work_runs_elsewhere() {
    let cluster = TestCluster::builder()
        .nodes(2)
        .script(|_, _, _| Outcome {
            after: Duration::from_secs(30),
            exit_code: 0,
        })
        .start()
        .await;
    for (name, rule) in [("fenced", "WaitForFence"), ("rerun", "Rerun")] {
        cluster
            .create_job(name, work(3, json!({"onLost": rule})))
            .await;
    }
    eventually(LIMIT, "all run", async || {
        let runs = cluster.truth.lock().len();
        if runs == 6 {
            Ok(())
        } else {
            Err(runs.to_string())
        }
    })
    .await;
    cluster.nodes[0].kill();
    cluster.cut_tunnel("node-0").await;
    for name in ["fenced", "rerun"] {
        let job = cluster.wait_job(name, "Complete", LIMIT).await;
        assert_eq!(job["status"]["succeeded"], 3);
    }
    let runs = cluster.truth.lock().clone();
    assert!(runs.iter().any(|r| r.attempt == 1 && r.node == "node-1"));
    assert!(overlap(&runs).is_none());
    cluster.history.check();
}

#[tokio::test(start_paused = true)]
async fn killed_controllers_are_replaced_without_a_trace() {
    let mut cluster = TestCluster::builder().nodes(2).start().await;
    cluster.create_job("long", work(40, json!({}))).await;
    for n in 0..4 {
        tokio::time::sleep(Duration::from_millis(700 * (n + 1))).await;
        cluster.kill_controllers();
        cluster.start_controllers(&format!("heir-{n}"));
    }
    let job = cluster.wait_job("long", "Complete", LIMIT).await;
    assert_eq!(job["status"]["succeeded"], 40);
    let runs = cluster.truth.lock().clone();
    assert_eq!(runs.len(), 40, "an index ran twice");
    cluster.history.check();
}
