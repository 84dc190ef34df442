use serde_json::json;

use super::*;

const BULK: &str = "/apis/rota.dev/v1/bulk";

#[tokio::test]
async fn items_succeed_and_fail_each_by_itself() {
    let api = Api::start().await;
    let made = api.post(MAPS, &map("there", "1")).await.ok();
    let items = json!([
        {"verb": "create", "path": MAPS, "body": map("a", "1")},
        {"verb": "create", "path": MAPS, "body": map("there", "1")},
        {"verb": "patch", "path": format!("{MAPS}/there"), "preconditions": {"uid": made["metadata"]["uid"]}, "body": {"data": {"k": "2"}}},
        {"verb": "patch", "path": format!("{MAPS}/there"), "preconditions": {"uid": "other"}, "body": {"data": {"k": "3"}}},
        {"verb": "delete", "path": format!("{MAPS}/missing")},
        {"verb": "frobnicate", "path": MAPS},
        {"verb": "create", "path": JOBS, "body": {"spec": {"template": {"spec": {"command": 5}}}, "metadata": {"name": "x"}}},
    ]);
    let result = api.post(BULK, &json!({"items": items})).await.ok();
    let reasons: Vec<&str> = result["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["reason"].as_str().unwrap_or("ok"))
        .collect();
    assert_eq!(
        reasons,
        [
            "ok",
            "AlreadyExists",
            "ok",
            "Conflict",
            "NotFound",
            "BadRequest",
            "Invalid"
        ]
    );
    assert_eq!(
        api.get(&format!("{MAPS}/there")).await.ok()["data"]["k"],
        "2"
    );
}

#[tokio::test]
async fn atomic_items_apply_all_or_none() {
    let api = Api::start().await;
    api.post(MAPS, &map("there", "1")).await.ok();
    let bad = json!({"atomic": true, "items": [
        {"verb": "create", "path": MAPS, "body": map("a", "1")},
        {"verb": "create", "path": MAPS, "body": map("there", "1")},
    ]});
    let result = api.post(BULK, &bad).await.ok();
    assert_eq!(result["items"][1]["reason"], "AlreadyExists");
    assert_eq!(result["items"][0]["status"], "Failure");
    api.get(&format!("{MAPS}/a")).await.fails(404, "NotFound");
    let good = json!({"atomic": true, "answer": "Version", "items": [
        {"verb": "create", "path": MAPS, "body": map("a", "1")},
        {"verb": "patch", "path": format!("{MAPS}/there"), "body": {"data": {"k": "2"}}},
        {"verb": "delete", "path": format!("{MAPS}/there")},
    ]});
    let twice = api.post(BULK, &good).await.ok();
    assert_eq!(
        twice["items"][0]["status"], "Failure",
        "one object twice in a transaction cannot be: {twice}"
    );
    let good = json!({"atomic": true, "answer": "Version", "items": [
        {"verb": "create", "path": MAPS, "body": map("a", "1")},
        {"verb": "delete", "path": format!("{MAPS}/there")},
    ]});
    let result = api.post(BULK, &good).await.ok();
    assert_eq!(
        (
            result["items"][0]["status"].as_str(),
            result["items"][0]["details"]["name"].as_str()
        ),
        (Some("Success"), Some("a"))
    );
    assert_eq!(
        version(&api.get(&format!("{MAPS}/a")).await.ok()).to_string(),
        result["items"][0]["metadata"]["resourceVersion"]
    );
}

#[tokio::test]
async fn a_delete_can_drop_a_finalizer_in_the_same_operation() {
    let api = Api::start().await;
    let mut held = map("a", "1");
    held["metadata"]["finalizers"] = json!(["rota.dev/ledger"]);
    api.post(MAPS, &held).await.ok();
    let result = api.post(BULK, &json!({"items": [{"verb": "delete", "path": format!("{MAPS}/a"), "dropFinalizers": ["rota.dev/ledger"]}]})).await.ok();
    assert_ne!(result["items"][0]["status"], "Failure", "{result}");
    api.get(&format!("{MAPS}/a")).await.fails(404, "NotFound");
}

#[tokio::test]
async fn only_placement_makes_tasks() {
    let api = Api::start().await;
    let task = json!({"metadata": {"name": "t"}, "spec": {"jobName": "j", "jobUid": "u", "index": 0, "attempt": 0, "epoch": 0,
        "nodeName": "n1", "queue": "default", "requests": {"cpu": "1"}, "revision": "r"}});
    let body = json!({"items": [{"verb": "create", "path": "/apis/rota.dev/v1/namespaces/default/tasks", "body": task}]});
    let job = api.as_user("rota:job", &["system:controllers"]);
    assert_eq!(
        job.post(BULK, &body).await.ok()["items"][0]["reason"],
        "Forbidden"
    );
    let placement = api.as_user("rota:placement", &["system:controllers"]);
    assert_eq!(
        placement.post(BULK, &body).await.ok()["items"][0]["metadata"]["name"],
        "t"
    );
    let path = "/apis/rota.dev/v1/namespaces/default/tasks/t";
    let mine = api.as_user("system:node:n1", &["system:nodes"]);
    let other = api.as_user("system:node:n2", &["system:nodes"]);
    let status = json!({"items": [{"verb": "status", "path": path, "body": {"status": {"phase": "Succeeded", "exitCode": 0}}}]});
    assert_eq!(
        other.post(BULK, &status).await.ok()["items"][0]["reason"],
        "Forbidden"
    );
    let done = mine.post(BULK, &status).await.ok();
    assert_eq!(done["items"][0]["status"]["phase"], "Succeeded", "{done}");
    let back = json!({"items": [{"verb": "status", "path": path, "body": {"status": {"phase": "Running"}}}]});
    let refused = mine.post(BULK, &back).await.ok();
    assert_eq!(
        refused["items"][0]["reason"], "Invalid",
        "a terminal phase never changes: {refused}"
    );
    assert_eq!(other.get("/apis/rota.dev/v1/tasks").await.code, 403);
    assert_eq!(
        mine.get("/apis/rota.dev/v1/tasks?fieldSelector=spec.nodeName%3Dn1")
            .await
            .ok()["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}
