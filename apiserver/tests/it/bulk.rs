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
        twice["items"][0]["reason"], "BadRequest",
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

#[tokio::test]
async fn a_request_that_is_none_is_refused_and_a_bad_item_spoils_only_itself() {
    let api = Api::start().await;
    let one = json!({"verb": "create", "path": MAPS, "body": map("a", "1")});
    for (bad, part) in [
        (json!([]), "an object with a list named items"),
        (json!({"items": {}}), "a list of items"),
        (json!({}), "missing field `items`"),
        (json!({"items": [], "atomic": "yes"}), "expected a boolean"),
        (json!({"items": [], "answer": "Everything"}), "neither"),
        (json!({"items": vec![0; 5001]}), "more than the 5000 items"),
        (
            json!({"items": vec![0; 101], "atomic": true}),
            "more than the 100",
        ),
    ] {
        let answer = api.post(BULK, &bad).await.fails(400, "BadRequest");
        let message = answer["message"].as_str().unwrap().to_string();
        assert!(message.contains(part), "{message}");
    }
    let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    let text = format!(
        r#"{{"items":[{one},{{"verb":"create","path":"{MAPS}","body":{deep}}},7,{{"verb":"create","path":"{MAPS}","body":{{"metadata":{{"name":"\ud800"}}}}}}]}}"#
    );
    let request = http::Request::post(BULK)
        .header("content-type", "application/json")
        .body(Body::from(text))
        .unwrap();
    let body = api.raw(request).await.into_body().collect().await.unwrap();
    let result: Value = serde_json::from_slice(&body.to_bytes()).unwrap();
    assert_eq!(result["items"][0]["metadata"]["name"], "a", "{result}");
    for (i, part) in [
        (1, "deeper than 64"),
        (2, "must be an object"),
        (3, "the item is not valid JSON"),
    ] {
        let message = result["items"][i]["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn items_on_one_object_and_generated_names_all_get_their_turn() {
    let api = Api::start().await;
    let there = format!("{MAPS}/there");
    let patch = |k: &str| json!({"verb": "patch", "path": there, "body": {"data": {k: "1"}}});
    let generated =
        json!({"verb": "create", "path": MAPS, "body": {"metadata": {"generateName": "gen-"}}});
    let items = json!([
        {"verb": "create", "path": MAPS, "body": map("there", "1")},
        patch("x"), patch("y"), patch("x"), generated, generated, generated,
    ]);
    // Items are independent: a patch may come before its object is there, or after.
    api.post(BULK, &json!({"items": items})).await.ok();
    let items = json!([patch("x"), patch("y"), patch("z"), patch("z")]);
    for answer in ["Object", "Version"] {
        let result = api
            .post(BULK, &json!({"answer": answer, "items": items}))
            .await
            .ok();
        for item in result["items"].as_array().unwrap() {
            assert_ne!(item["status"], "Failure", "{item}");
            assert!(
                item["metadata"]["resourceVersion"]
                    .as_str()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
                    > 0
            );
        }
    }
    let data = api.get(&there).await.ok()["data"].clone();
    assert_eq!(
        (&data["x"], &data["y"], &data["z"]),
        (&json!("1"), &json!("1"), &json!("1"))
    );
    let maps = api.get(MAPS).await.ok();
    let names: std::collections::BTreeSet<&str> = maps["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|m| m["metadata"]["name"].as_str())
        .filter(|n| n.starts_with("gen-"))
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[tokio::test]
async fn what_may_not_be_deleted_may_not_be_deleted_in_bulk() {
    let api = Api::start().await;
    for atomic in [false, true] {
        let body = json!({"atomic": atomic, "items": [{"verb": "delete", "path": "/api/v1/namespaces/default"}]});
        let result = api.post(BULK, &body).await.ok();
        assert_eq!(result["items"][0]["reason"], "Forbidden", "{result}");
    }
    assert_eq!(
        api.get("/api/v1/namespaces/default").await.ok()["status"]["phase"],
        "Active"
    );
}
