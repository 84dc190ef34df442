use serde_json::json;

use super::*;

#[tokio::test]
async fn a_job_is_created_defaulted_read_changed_and_deleted() {
    let api = Api::start().await;
    let made = api.post(JOBS, &job("a")).await;
    assert_eq!(made.code, 201);
    let made = made.body;
    assert_eq!(made["spec"]["queue"], "default");
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["metadata"]["namespace"], "default");
    let path = format!("{JOBS}/a");
    assert_eq!(api.get(&path).await.ok(), made);
    api.post(JOBS, &job("a")).await.fails(409, "AlreadyExists");

    let changed = api
        .patch(&path, &json!({"spec": {"suspend": true}}))
        .await
        .ok();
    assert_eq!(changed["metadata"]["generation"], 2);
    let same = api
        .patch(&path, &json!({"spec": {"suspend": true}}))
        .await
        .ok();
    assert_eq!(
        version(&same),
        version(&changed),
        "a write that changes nothing writes nothing"
    );
    let labelled = api
        .patch(&path, &json!({"metadata": {"labels": {"a": "b"}}}))
        .await
        .ok();
    assert_eq!(labelled["metadata"]["generation"], 2);
    api.put(&path, &made).await.fails(409, "Conflict");
    let mut unversioned = labelled.clone();
    unversioned["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    api.put(&path, &unversioned).await.fails(422, "Invalid");

    let gone = api.delete(&path).await.ok();
    assert_eq!(
        (gone["status"].as_str(), gone["details"]["uid"].as_str()),
        (Some("Success"), made["metadata"]["uid"].as_str())
    );
    let missing = api.get(&path).await.fails(404, "NotFound");
    assert_eq!(missing["message"], "jobs.rota.dev \"a\" not found");
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let api = Api::start().await;
    let mut with_status = job("a");
    with_status["status"] = json!({"running": 7});
    let made = api.post(JOBS, &with_status).await.ok();
    assert!(
        made.get("status").is_none(),
        "status is not taken on create: {made}"
    );
    let path = format!("{JOBS}/a");
    let done = api
        .patch(
            &format!("{path}/status"),
            &json!({"spec": {"suspend": true}, "status": {"running": 2}}),
        )
        .await
        .ok();
    assert_eq!(
        (&done["status"]["running"], &done["spec"]["suspend"]),
        (&json!(2), &json!(false))
    );
    assert_eq!(done["metadata"]["generation"], 1);
    let done = api
        .patch(&path, &json!({"status": {"running": 9}}))
        .await
        .ok();
    assert_eq!(done["status"]["running"], 2);
}

#[tokio::test]
async fn scale_reads_and_writes_replicas() {
    let api = Api::start().await;
    api.post(JOBS, &job("a")).await.ok();
    let path = format!("{JOBS}/a/scale");
    let mut scale = api.get(&path).await.ok();
    assert_eq!(
        (scale["kind"].as_str(), &scale["spec"]["replicas"]),
        (Some("Scale"), &json!(1))
    );
    scale["spec"]["replicas"] = json!(3);
    let put = api.send("PUT", &path, None, scale.to_string()).await.ok();
    assert_eq!(put["spec"]["replicas"], 3);
    api.put(&path, &scale).await.fails(409, "Conflict");
    assert_eq!(
        api.patch(&path, &json!({"spec": {"replicas": 5}}))
            .await
            .ok()["spec"]["replicas"],
        5
    );
    api.patch(&path, &json!({"spec": {"replicas": -1}}))
        .await
        .fails(422, "Invalid");
    assert_eq!(
        api.get(&format!("{JOBS}/a")).await.ok()["spec"]["replicas"],
        5
    );
}

#[tokio::test]
async fn dry_run_validates_and_stores_nothing() {
    let api = Api::start().await;
    let before = version(&api.get(JOBS).await.ok());
    let made = api.post(&format!("{JOBS}?dryRun=All"), &job("a")).await;
    assert_eq!(
        (made.code, made.body["spec"]["backoffLimit"].as_i64()),
        (201, Some(6))
    );
    api.get(&format!("{JOBS}/a")).await.fails(404, "NotFound");
    api.post(&format!("{JOBS}?dryRun=Some"), &job("a"))
        .await
        .fails(422, "Invalid");
    api.post(JOBS, &job("a")).await.ok();
    api.post(&format!("{JOBS}?dryRun=All"), &job("a"))
        .await
        .fails(409, "AlreadyExists");
    let deleted = api
        .send(
            "DELETE",
            &format!("{JOBS}/a"),
            None,
            json!({"kind": "DeleteOptions", "dryRun": ["All"]}).to_string(),
        )
        .await;
    assert_eq!(deleted.code, 200);
    let after = version(&api.get(&format!("{JOBS}/a")).await.ok());
    assert_eq!(after, before + 1);
}

#[tokio::test]
async fn names_are_generated_and_checked() {
    let api = Api::start().await;
    let mut generated = job("x");
    generated["metadata"] = json!({"generateName": "pi-"});
    let name = api.post(JOBS, &generated).await.ok()["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_string();
    assert!(name.starts_with("pi-") && name.len() == 8, "{name}");
    for bad in ["", "Upper", "a_b", "-a", "a.", &"x".repeat(53)] {
        let answer = api.post(JOBS, &job(bad)).await;
        assert_eq!(
            (answer.code, answer.body["reason"].as_str()),
            (422, Some("Invalid")),
            "{bad}: {}",
            answer.body
        );
    }
    let mut elsewhere = job("a");
    elsewhere["metadata"]["namespace"] = json!("other");
    api.post(JOBS, &elsewhere).await.fails(400, "BadRequest");
    let missing = api
        .post("/apis/rota.dev/v1/namespaces/nowhere/jobs", &job("a"))
        .await
        .fails(404, "NotFound");
    assert_eq!(missing["message"], "namespaces \"nowhere\" not found");
}

#[tokio::test]
async fn finalizers_hold_an_object_until_they_are_gone() {
    let api = Api::start().await;
    let mut held = map("a", "1");
    held["metadata"]["finalizers"] = json!(["example.com/x"]);
    api.post(MAPS, &held).await.ok();
    let path = format!("{MAPS}/a");
    let marked = api.delete(&path).await.ok();
    assert!(
        marked["metadata"]["deletionTimestamp"].is_string(),
        "{marked}"
    );
    let again = api.delete(&path).await.ok();
    assert_eq!(version(&again), version(&marked));
    api.patch(
        &path,
        &json!({"metadata": {"finalizers": ["example.com/x", "example.com/y"]}}),
    )
    .await
    .fails(422, "Invalid");
    let still = api
        .patch(&path, &json!({"metadata": {"deletionTimestamp": null}}))
        .await
        .ok();
    assert!(still["metadata"]["deletionTimestamp"].is_string());
    api.patch(&path, &json!({"metadata": {"finalizers": null}}))
        .await
        .ok();
    api.get(&path).await.fails(404, "NotFound");
}

#[tokio::test]
async fn delete_honours_preconditions_and_propagation() {
    let api = Api::start().await;
    let made = api.post(MAPS, &map("a", "1")).await.ok();
    let path = format!("{MAPS}/a");
    let wrong = json!({"preconditions": {"uid": "nobody"}});
    api.send("DELETE", &path, None, wrong.to_string())
        .await
        .fails(409, "Conflict");
    let fore = json!({"propagationPolicy": "Foreground", "preconditions": {"uid": made["metadata"]["uid"]}});
    let marked = api.send("DELETE", &path, None, fore.to_string()).await.ok();
    assert_eq!(
        marked["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
    api.delete(&format!("{path}?propagationPolicy=Sideways"))
        .await
        .fails(422, "Invalid");
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let api = Api::start().await;
    for i in 0..10 {
        api.post(
            MAPS,
            &map(&format!("m{i}"), if i % 2 == 0 { "even" } else { "odd" }),
        )
        .await
        .ok();
    }
    let gone = api
        .delete(&format!("{MAPS}?labelSelector=v%3Deven"))
        .await
        .ok();
    assert_eq!(gone["items"].as_array().unwrap().len(), 5);
    assert_eq!(
        api.get(MAPS).await.ok()["items"].as_array().unwrap().len(),
        5
    );
}

#[tokio::test]
async fn namespaces_go_in_two_phases() {
    let api = Api::start().await;
    api.post("/api/v1/namespaces", &json!({"metadata": {"name": "team"}}))
        .await
        .ok();
    let inside = "/api/v1/namespaces/team/configmaps";
    api.post(inside, &map("a", "1")).await.ok();
    let going = api.delete("/api/v1/namespaces/team").await.ok();
    assert_eq!(going["status"]["phase"], "Terminating");
    let refused = api
        .post(inside, &map("b", "1"))
        .await
        .fails(403, "Forbidden");
    assert_eq!(
        refused["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    let mut ns = api.get("/api/v1/namespaces/team").await.ok();
    ns["spec"]["finalizers"] = json!([]);
    api.put("/api/v1/namespaces/team/finalize", &ns).await.ok();
    api.get("/api/v1/namespaces/team")
        .await
        .fails(404, "NotFound");
    api.delete("/api/v1/namespaces/default")
        .await
        .fails(403, "Forbidden");
}

#[tokio::test]
async fn a_lease_that_changes_hands_raises_its_term_and_fences_the_old_holder() {
    let api = Api::start().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/rota-system/leases";
    let lease = |holder: &str, term: i64| json!({"metadata": {"name": "job"}, "spec": {"holderIdentity": holder, "leaseTransitions": term}});
    api.post(leases, &lease("a", 1)).await.ok();
    let path = format!("{leases}/job");
    api.patch(&path, &lease("b", 1)).await.fails(422, "Invalid");
    let write = |term: u64, name: &str| {
        Request::post(MAPS)
            .header("rota-fence", format!("rota-system/job@{term}"))
            .body(Body::from(map(name, "1").to_string()))
            .unwrap()
    };
    assert_eq!(api.raw(write(1, "one")).await.status(), 201);
    api.patch(&path, &lease("b", 2)).await.ok();
    let refused = api.raw(write(1, "two")).await;
    assert_eq!(refused.status(), 409);
    let body: Value =
        serde_json::from_slice(&refused.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(body["reason"], "LeaseLost");
    assert_eq!(api.raw(write(2, "two")).await.status(), 201);
    api.get(&format!("{MAPS}/two")).await.ok();
}

#[tokio::test]
async fn a_patch_without_version_never_conflicts() {
    let api = std::sync::Arc::new(Api::start().await);
    api.post(MAPS, &map("hot", "0")).await.ok();
    let writers: Vec<_> = (0..32)
        .map(|i| {
            let api = api.clone();
            tokio::spawn(async move {
                api.patch(
                    &format!("{MAPS}/hot"),
                    &json!({"data": {format!("w{i}"): "x"}}),
                )
                .await
                .ok();
            })
        })
        .collect();
    for w in writers {
        w.await.unwrap();
    }
    assert_eq!(
        api.get(&format!("{MAPS}/hot")).await.ok()["data"]
            .as_object()
            .unwrap()
            .len(),
        33
    );
}

#[tokio::test]
async fn events_are_one_store_with_two_views() {
    let api = Api::start().await;
    let event = json!({"metadata": {"name": "e1", "namespace": "default"}, "reason": "Started", "type": "Normal",
        "message": "hello", "involvedObject": {"kind": "Job", "name": "a", "namespace": "default"},
        "source": {"component": "x"}});
    api.post("/api/v1/namespaces/default/events", &event)
        .await
        .ok();
    let list = "/apis/events.k8s.io/v1/namespaces/default/events";
    let seen = api.get(list).await.ok();
    assert_eq!(
        (
            &seen["items"][0]["note"],
            &seen["items"][0]["regarding"]["name"]
        ),
        (&json!("hello"), &json!("a"))
    );
    let chosen = api.get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Da,involvedObject.kind%3DJob").await.ok();
    assert_eq!(chosen["items"].as_array().unwrap().len(), 1);
    let chosen = api
        .get(&format!("{list}?fieldSelector=regarding.name%3Dother"))
        .await
        .ok();
    assert_eq!(chosen["items"].as_array().unwrap().len(), 0);
}
