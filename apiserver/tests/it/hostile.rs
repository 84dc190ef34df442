use serde_json::json;

use super::*;

#[tokio::test]
async fn bad_bodies_get_a_clear_4xx_and_the_next_request_works() {
    let api = Api::start().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_object = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
    let big = format!("{{\"data\":{{\"k\":\"{}\"}}}}", "x".repeat(3 << 20));
    for (what, body, codes) in [
        ("garbage", "\u{1}\u{2}garbage".to_string(), &[400][..]),
        ("truncated", "{\"metadata\": {\"name\"".into(), &[400]),
        ("empty", String::new(), &[400]),
        ("array", "[]".into(), &[400]),
        ("deep array", deep, &[400]),
        ("deep object", deep_object, &[400]),
        ("oversized", big, &[413]),
        ("wrong kind", job("a").to_string().replace("Job", "Queue"), &[400]),
        ("wrong type", json!({"metadata": {"name": "a"}, "spec": {"completions": "many", "template": {"spec": {"command": ["x"]}}}}).to_string(), &[422]),
        ("missing", json!({"metadata": {"name": "a"}, "spec": {}}).to_string(), &[422]),
        ("metadata", json!({"metadata": []}).to_string(), &[400]),
        ("huge number", "{\"metadata\":{\"name\":\"a\"},\"spec\":{\"priority\":1e999}}".into(), &[400]),
    ] {
        let answer = api.send("POST", JOBS, Some("application/json"), body).await;
        assert!(codes.contains(&answer.code), "{what}: {} {}", answer.code, answer.body);
        assert_eq!(answer.body["kind"], "Status", "{what}");
        assert!(answer.body["message"].as_str().is_some_and(|m| !m.is_empty() && m.len() < 2000), "{what}: {}", answer.body);
    }
    api.post(JOBS, &job("a")).await.ok();
}

#[tokio::test]
async fn unknown_fields_are_refused_or_pruned_with_a_warning() {
    let api = Api::start().await;
    let mut odd = job("a");
    odd["spec"]["bogus"] = json!(1);
    let strict = api
        .post(&format!("{JOBS}?fieldValidation=Strict"), &odd)
        .await
        .fails(400, "BadRequest");
    assert_eq!(
        strict["message"],
        "Job in version \"v1\" cannot be handled as a Job: strict decoding error: unknown field \"spec.bogus\""
    );
    let warned = api.post(JOBS, &odd).await;
    assert_eq!(
        warned.headers["warning"],
        "299 - \"unknown field \\\"spec.bogus\\\"\""
    );
    assert!(warned.body["spec"].get("bogus").is_none());
    let twice = "{\"metadata\":{\"name\":\"b\",\"name\":\"b\"},\"spec\":{\"template\":{\"spec\":{\"command\":[\"x\"]}}}}";
    api.send(
        "POST",
        &format!("{JOBS}?fieldValidation=Strict"),
        None,
        twice,
    )
    .await
    .fails(400, "BadRequest");
}

#[tokio::test]
async fn methods_paths_and_types_that_do_not_exist_are_refused() {
    let api = Api::start().await;
    api.send("PURGE", JOBS, None, "")
        .await
        .fails(405, "MethodNotAllowed");
    api.get("/apis/rota.dev/v1/namespaces/default/nonsense")
        .await
        .fails(404, "NotFound");
    api.get("/apis/rota.dev/v9/jobs")
        .await
        .fails(404, "NotFound");
    api.send(
        "POST",
        JOBS,
        Some("application/vnd.kubernetes.protobuf"),
        "k8s\0junk",
    )
    .await
    .fails(415, "UnsupportedMediaType");
    api.post(JOBS, &job("a")).await.ok();
    let path = format!("{JOBS}/a");
    api.send(
        "PATCH",
        &path,
        Some("application/strategic-merge-patch+json"),
        "{}",
    )
    .await
    .fails(415, "UnsupportedMediaType");
    api.send("PATCH", &path, Some(MERGE), "[]")
        .await
        .fails(400, "BadRequest");
    let doubling: Vec<Value> = (0..40)
        .map(|i| json!({"op": "copy", "from": "/spec", "path": format!("/spec/x{i}")}))
        .collect();
    let answer = api
        .send(
            "PATCH",
            &path,
            Some("application/json-patch+json"),
            json!(doubling).to_string(),
        )
        .await;
    assert!((400..500).contains(&answer.code), "{}", answer.body);
    let test = json!([{"op": "test", "path": "/spec/queue", "value": "other"}]);
    api.send(
        "PATCH",
        &path,
        Some("application/json-patch+json"),
        test.to_string(),
    )
    .await
    .fails(422, "Invalid");
}
