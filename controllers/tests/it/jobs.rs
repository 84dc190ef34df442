use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{JOBS, World, condition, job};

#[tokio::test(start_paused = true)]
async fn a_new_job_is_guarded_gets_its_revision_and_the_word_to_start_then_nothing_is_written() {
    let world = World::start().await;
    let controllers = world.controllers("c", &["job", "node", "namespace", "gc"]);
    world
        .admin
        .post(JOBS, &job("pi", json!({"completions": 10, "replicas": 3})))
        .await
        .unwrap();
    let pi = world
        .until(&format!("{JOBS}/pi"), |j| {
            j.is_some_and(|j| !j["status"]["startTime"].is_null())
        })
        .await
        .unwrap();
    assert_eq!(pi["metadata"]["finalizers"], json!(["rota.dev/ledger"]));
    assert_eq!(pi["status"]["phase"], "Waiting");
    assert_eq!(pi["status"]["waiting"], 3);
    assert_eq!(
        pi["status"]["observedGeneration"],
        pi["metadata"]["generation"]
    );
    assert_eq!(condition(&pi, "Ready"), "True:Queued");
    let revision = pi["status"]["revision"].as_str().unwrap();
    let path = format!("/apis/rota.dev/v1/namespaces/default/jobrevisions/{revision}");
    let revision = world.get(&path).await.unwrap();
    assert_eq!(
        revision["metadata"]["ownerReferences"][0]["uid"],
        pi["metadata"]["uid"]
    );
    // C1: no change, no writes, however long.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let before = world.versions().await;
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert_eq!(before, world.versions().await);
    controllers.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn after_edges_hold_a_job_and_a_cycle_is_named() {
    let world = World::start().await;
    let controllers = world.controllers("c", &["job"]);
    let post = async |body: Value| world.admin.post(JOBS, &body).await.unwrap();
    post(job("second", json!({"after": [{"job": "first"}]}))).await;
    let path = format!("{JOBS}/second");
    let second = world
        .until(&path, |j| {
            j.is_some_and(|j| j["status"]["phase"] == "Blocked")
        })
        .await
        .unwrap();
    let text = second["status"]["conditions"].to_string();
    assert!(text.contains("first does not exist"), "{text}");
    post(job("first", json!({"suspend": true}))).await;
    world
        .until(&path, |j| {
            j.is_some_and(|j| {
                j["status"]["conditions"]
                    .to_string()
                    .contains("waits for Job first")
            })
        })
        .await;
    let status = json!({"status": {"conditions": [{
        "type": "Complete", "status": "True", "reason": "Complete", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}});
    let first = format!("{JOBS}/first/status");
    world.admin.patch(&first, &status).await.unwrap();
    world
        .until(&path, |j| {
            j.is_some_and(|j| !j["status"]["startTime"].is_null())
        })
        .await;
    post(job("a", json!({"after": [{"job": "b"}]}))).await;
    post(job("b", json!({"after": [{"job": "a"}]}))).await;
    for name in ["a", "b"] {
        let stalled = world
            .until(&format!("{JOBS}/{name}"), |j| {
                j.is_some_and(|j| condition(j, "Stalled") == "True:DependencyCycle")
            })
            .await
            .unwrap();
        assert!(stalled["status"]["conditions"].to_string().contains("->"));
        assert!(stalled["status"]["startTime"].is_null());
    }
    controllers.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_fails_a_job_and_its_time_to_live_removes_it() {
    let world = World::start().await;
    let controllers = world.controllers("c", &["job"]);
    let spec = json!({"activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 30});
    world.admin.post(JOBS, &job("slow", spec)).await.unwrap();
    let path = format!("{JOBS}/slow");
    let failed = world
        .until(&path, |j| {
            j.is_some_and(|j| j["status"]["phase"] == "Failed")
        })
        .await
        .unwrap();
    assert_eq!(condition(&failed, "Failed"), "True:DeadlineExceeded");
    assert_eq!(condition(&failed, "Stalled"), "True:DeadlineExceeded");
    assert_eq!(condition(&failed, "Ready"), "False:DeadlineExceeded");
    // Placement would drop the finalizer; here it stays, being deleted.
    world
        .until(&path, |j| {
            j.is_none_or(|j| !j["metadata"]["deletionTimestamp"].is_null())
        })
        .await;
    controllers.shut_down().await;
}
