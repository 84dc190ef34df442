use serde_json::json;

use super::*;

#[tokio::test]
async fn pages_show_one_state_whatever_happens_meanwhile() {
    let api = Api::start().await;
    for i in 0..10 {
        api.post(MAPS, &map(&format!("m{i}"), "old")).await.ok();
    }
    let first = api.get(&format!("{MAPS}?limit=4")).await.ok();
    assert_eq!(first["metadata"]["remainingItemCount"], 6);
    api.delete(&format!("{MAPS}/m5")).await.ok();
    api.patch(&format!("{MAPS}/m6"), &json!({"data": {"k": "new"}}))
        .await
        .ok();
    api.post(MAPS, &map("m55", "new")).await.ok();
    let mut names: Vec<String> = Vec::new();
    let mut page = first.clone();
    loop {
        assert_eq!(
            page["metadata"]["resourceVersion"],
            first["metadata"]["resourceVersion"]
        );
        for item in page["items"].as_array().unwrap() {
            assert_eq!(item["data"]["k"], "old");
            names.push(item["metadata"]["name"].as_str().unwrap().into());
        }
        let Some(token) = page["metadata"]["continue"].as_str().map(String::from) else {
            break;
        };
        page = api
            .get(&format!("{MAPS}?limit=4&continue={token}"))
            .await
            .ok();
    }
    let wanted: Vec<String> = (0..10).map(|i| format!("m{i}")).collect();
    assert_eq!(names, wanted);
    let exact = format!(
        "{MAPS}?resourceVersion={}&resourceVersionMatch=Exact",
        first["metadata"]["resourceVersion"].as_str().unwrap()
    );
    assert_eq!(
        api.get(&exact).await.ok()["items"]
            .as_array()
            .unwrap()
            .len(),
        10
    );
}

#[tokio::test]
async fn versions_and_tokens_that_make_no_sense_are_refused() {
    let api = Api::start().await;
    api.post(MAPS, &map("a", "1")).await.ok();
    for (query, code, reason) in [
        ("resourceVersion=abc", 400, "BadRequest"),
        ("resourceVersion=-1", 400, "BadRequest"),
        ("resourceVersion=0x1", 400, "BadRequest"),
        ("resourceVersion=99999999999999999999", 400, "BadRequest"),
        ("resourceVersionMatch=Exact", 422, "Invalid"),
        (
            "resourceVersion=0&resourceVersionMatch=Exact",
            422,
            "Invalid",
        ),
        (
            "resourceVersion=1&resourceVersionMatch=Sometimes",
            422,
            "Invalid",
        ),
        ("continue=garbage", 400, "BadRequest"),
        (
            "continue=eyJ2Ijoicm90YTEiLCJydiI6MSwia2V5IjoiLi4vLi4vc2VjcmV0cyIsIm4iOjB9",
            400,
            "BadRequest",
        ),
        ("limit=-1", 400, "BadRequest"),
        ("limit=abc", 400, "BadRequest"),
        ("labelSelector=a%3Db%3Dc", 400, "BadRequest"),
        ("labelSelector=!!a", 400, "BadRequest"),
        ("fieldSelector=spec.nope%3D1", 400, "BadRequest"),
        (
            "sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            422,
            "Invalid",
        ),
    ] {
        let answer = api.get(&format!("{MAPS}?{query}")).await;
        assert_eq!(
            (answer.code, answer.body["reason"].as_str().unwrap_or("")),
            (code, reason),
            "{query}: {}",
            answer.body
        );
    }
    let future = api
        .get(&format!("{MAPS}?resourceVersion=999999"))
        .await
        .fails(504, "Timeout");
    assert_eq!(
        future["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
}

#[tokio::test]
async fn shapes_are_negotiated() {
    let api = Api::start().await;
    api.post(JOBS, &job("a")).await.ok();
    let with = |accept: &str| {
        Request::get(JOBS)
            .header("accept", accept)
            .body(Body::empty())
            .unwrap()
    };
    let body = |r: http::Response<Body>| async {
        serde_json::from_slice::<Value>(&r.into_body().collect().await.unwrap().to_bytes()).unwrap()
    };
    let table = body(
        api.raw(with(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        ))
        .await,
    )
    .await;
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "a");
    let partial = body(
        api.raw(with(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        ))
        .await,
    )
    .await;
    assert_eq!(partial["items"][0]["kind"], "PartialObjectMetadata");
    assert!(partial["items"][0].get("spec").is_none());
    let list = body(
        api.raw(with("application/vnd.kubernetes.protobuf,application/json"))
            .await,
    )
    .await;
    assert_eq!(list["kind"], "JobList");
    assert_eq!(
        api.raw(with("application/vnd.kubernetes.protobuf"))
            .await
            .status(),
        406
    );
}

#[tokio::test]
async fn selectors_choose() {
    let api = Api::start().await;
    for i in 0..6 {
        api.post(MAPS, &map(&format!("m{i}"), &format!("{}", i % 3)))
            .await
            .ok();
    }
    let count = |query: &'static str| {
        let api = &api;
        async move {
            api.get(&format!("{MAPS}?{query}")).await.ok()["items"]
                .as_array()
                .unwrap()
                .len()
        }
    };
    assert_eq!(count("labelSelector=v%20in%20(0,1)").await, 4);
    assert_eq!(count("labelSelector=v!%3D0").await, 4);
    assert_eq!(count("fieldSelector=metadata.name%3Dm3").await, 1);
    assert_eq!(count("fieldSelector=metadata.name!%3Dm3").await, 5);
    assert_eq!(count("fieldSelector=metadata.namespace%3Dother").await, 0);
}

#[tokio::test]
async fn who_is_nobody_gets_nothing_but_health_and_version() {
    let api = Api::start().await;
    for path in ["/livez", "/readyz", "/version", "/version/"] {
        let response = api
            .server
            .router()
            .oneshot(Request::get(path).body(Body::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
    for path in [
        "/",
        "/api",
        "/apis",
        "/metrics",
        "/openapi/v3",
        JOBS,
        "/healthz",
        "/nonsense",
    ] {
        let response = api
            .server
            .router()
            .oneshot(Request::get(path).body(Body::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), 401, "{path}");
    }
    let stranger = api.as_user("mallory", &[]);
    let refused = stranger.get(JOBS).await.fails(403, "Forbidden");
    assert!(refused["message"].as_str().unwrap().contains("User \"mallory\" cannot list resource \"jobs\" in API group \"rota.dev\" in the namespace \"default\""), "{refused}");
}
