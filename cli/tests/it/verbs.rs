//! Each verb as a user would run it.

use serde_json::{Value, json};

use crate::fake::Fake;

const JOBS: &str = "/apis/rota.dev/v1/namespaces/default/jobs";
const TASKS: &str = "/apis/rota.dev/v1/namespaces/default/tasks";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

fn manifest(dir: &tempfile::TempDir, text: &str) -> String {
    let path = dir.path().join("m.yaml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn get_shows_the_servers_table() {
    let fake = Fake::default();
    fake.job("pi", json!({"queue": "q"}), json!({"phase": "Running"}));
    fake.job("e", json!({}), json!({}));
    let done = fake.run(&["get", "rota.dev/none"]).await;
    assert_eq!(done.code, 1);
    let done = fake.run(&["get", "jobs"]).await;
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "NAME   PHASE\ne      \npi     Running\n")
    );
    let done = fake
        .run(&["get", "job", "pi", "-o", "wide", "--no-headers"])
        .await;
    assert_eq!(done.out, "pi   Running   q\n");
    let done = fake.run(&["get", "jobs", "-A"]).await;
    assert!(
        done.out
            .starts_with("NAMESPACE   NAME   PHASE\ndefault     e"),
        "{}",
        done.out
    );
}

#[tokio::test]
async fn several_kinds_are_separated_and_named_in_full() {
    let fake = Fake::default();
    fake.job("pi", json!({}), json!({"phase": "Running"}));
    fake.put(
        &format!("{TASKS}/pi-0"),
        json!({"metadata": {"name": "pi-0", "namespace": "default"}}),
    );
    let done = fake.run(&["get", "all"]).await;
    assert_eq!(
        done.out,
        "NAME              PHASE\njob.rota.dev/pi   Running\n\nNAME                 PHASE\ntask.rota.dev/pi-0   \n"
    );
}

#[tokio::test]
async fn formats_print_whole_objects() {
    let fake = Fake::default();
    fake.job("a", json!({"queue": "q"}), json!({}));
    fake.job("b", json!({}), json!({}));
    assert_eq!(
        fake.run(&["get", "jobs", "-o", "name"]).await.out,
        "job.rota.dev/a\njob.rota.dev/b\n"
    );
    assert_eq!(
        fake.run(&["get", "jobs", "-o", "jsonpath={.items[*].metadata.name}"])
            .await
            .out,
        "a b"
    );
    assert_eq!(
        fake.run(&[
            "get",
            "jobs",
            "-o",
            "custom-columns=N:.metadata.name,Q:.spec.queue",
            "--sort-by",
            ".metadata.name"
        ])
        .await
        .out,
        "N   Q\na   q\nb   <none>\n"
    );
    let v: Value =
        serde_json::from_str(&fake.run(&["get", "job", "a", "-o", "json"]).await.out).unwrap();
    assert_eq!(v["kind"], "Job");
    let v: Value =
        serde_json::from_str(&fake.run(&["get", "jobs", "-o", "json"]).await.out).unwrap();
    assert_eq!(v["items"][1]["apiVersion"], "rota.dev/v1");
}

#[tokio::test]
async fn what_get_prints_as_yaml_can_be_applied_again() {
    let fake = Fake::default();
    fake.job("a", json!({"queue": "on", "template": {"spec": {"command": ["sh", "-c", "echo 1e3\nyes"], "env": [{"name": "A", "value": "0123"}]}}}), json!({"phase": "Running"}));
    let text = fake.run(&["get", "job", "a", "-o", "yaml"]).await.out;
    let dir = tempfile::tempdir().unwrap();
    let path = manifest(&dir, &text);
    let before = fake.get(&format!("{JOBS}/a")).unwrap();
    let done = fake.run(&["apply", "-f", &path]).await;
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "job.rota.dev/a configured\n"),
        "{}",
        done.err
    );
    assert_eq!(
        fake.get(&format!("{JOBS}/a")).unwrap()["spec"],
        before["spec"]
    );
}

#[tokio::test]
async fn an_absent_name_is_an_error_with_a_remedy() {
    let fake = Fake::default();
    let done = fake.run(&["get", "job", "nope"]).await;
    assert_eq!((done.code, done.out.as_str()), (1, ""));
    assert_eq!(
        done.err,
        "error: jobs \"nope\" not found (NotFound)\nhint: `rota get jobs` lists what is there; -n names another namespace\n"
    );
    let done = fake
        .run(&["get", "job", "nope", "--ignore-not-found"])
        .await;
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    let done = fake.run(&["get", "jobs"]).await;
    assert_eq!(
        (done.code, done.out.as_str(), done.err.as_str()),
        (0, "", "No resources found in default namespace.\n")
    );
}

#[tokio::test]
async fn apply_creates_configures_and_leaves_alone() {
    let fake = Fake::default();
    let dir = tempfile::tempdir().unwrap();
    let base = "apiVersion: rota.dev/v1\nkind: Job\nmetadata: {name: x}\nspec: {queue: q, priority: 5, template: {spec: {command: ['true']}}}\n";
    let path = manifest(&dir, base);
    let done = fake.run(&["apply", "-f", &path, "--dry-run=client"]).await;
    assert_eq!(done.out, "job.rota.dev/x created (dry run)\n");
    assert!(fake.writes().is_empty());
    let done = fake.run(&["apply", "-f", &path, "--dry-run=server"]).await;
    assert_eq!(done.out, "job.rota.dev/x created (server dry run)\n");
    assert!(fake.get(&format!("{JOBS}/x")).is_none());

    assert_eq!(
        fake.run(&["apply", "-f", &path]).await.out,
        "job.rota.dev/x created\n"
    );
    let made = fake.get(&format!("{JOBS}/x")).unwrap();
    assert_eq!(made["metadata"]["namespace"], "default");
    assert!(
        made["metadata"]["annotations"][LAST_APPLIED]
            .as_str()
            .unwrap()
            .ends_with("}\n")
    );
    let writes = fake.writes().len();
    assert_eq!(
        fake.run(&["apply", "-f", &path]).await.out,
        "job.rota.dev/x unchanged\n"
    );
    assert_eq!(
        fake.writes().len(),
        writes,
        "nothing is sent when nothing changed"
    );

    // Someone else sets a field; the next apply removes only what it had itself.
    let mut live = made;
    live["spec"]["suspend"] = json!(true);
    fake.put(&format!("{JOBS}/x"), live);
    let path = manifest(&dir, &base.replace(", priority: 5", ""));
    assert_eq!(
        fake.run(&["apply", "-f", &path]).await.out,
        "job.rota.dev/x configured\n"
    );
    let spec = &fake.get(&format!("{JOBS}/x")).unwrap()["spec"];
    assert_eq!(
        (&spec["suspend"], &spec["priority"], &spec["queue"]),
        (&json!(true), &Value::Null, &json!("q"))
    );
}

#[tokio::test]
async fn apply_goes_on_after_a_refused_object_and_ends_with_1() {
    let fake = Fake::default();
    let dir = tempfile::tempdir().unwrap();
    let path = manifest(
        &dir,
        "apiVersion: rota.dev/v1\nkind: Nope\nmetadata: {name: x}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n",
    );
    let done = fake.run(&["apply", "-f", &path]).await;
    assert_eq!((done.code, done.out.as_str()), (1, "configmap/c created\n"));
    assert!(
        done.err
            .contains("the server has no kind Nope in rota.dev/v1"),
        "{}",
        done.err
    );
    let done = fake.run(&["apply", "-f", &path, "--server-side"]).await;
    assert_eq!(done.code, 1);
    assert!(
        done.err.contains("--server-side is not available"),
        "{}",
        done.err
    );
}

#[tokio::test]
async fn a_namespace_flag_that_contradicts_the_manifest_is_refused() {
    let fake = Fake::default();
    let dir = tempfile::tempdir().unwrap();
    let path = manifest(
        &dir,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: a}\n",
    );
    let done = fake.run(&["apply", "-f", &path, "-n", "b"]).await;
    assert_eq!(done.code, 1);
    assert!(
        done.err.contains("namespace \"a\", but -n says \"b\""),
        "{}",
        done.err
    );
    assert!(fake.writes().is_empty());
}

const JOB: &str = "apiVersion: rota.dev/v1\nkind: Job\nmetadata: {name: x}\nspec: {completions: 2, template: {spec: {command: ['true']}}}\n";

#[tokio::test]
async fn apply_wait_ends_with_0_when_done() {
    let fake = Fake::default();
    let dir = tempfile::tempdir().unwrap();
    let path = manifest(&dir, JOB);
    fake.on_watch(
        &format!("{JOBS}/x"),
        json!({"status": {"phase": "Succeeded", "succeeded": 2, "conditions": [{"type": "Complete", "status": "True"}]}}),
    );
    let done = fake.run(&["apply", "-f", &path, "--wait"]).await;
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "job.rota.dev/x created\n"),
        "{}",
        done.err
    );
    assert!(
        done.err.contains("job.rota.dev/x: 2/2 succeeded"),
        "{}",
        done.err
    );
}

#[tokio::test]
async fn apply_wait_ends_with_1_when_the_job_failed() {
    let fake = Fake::default();
    let dir = tempfile::tempdir().unwrap();
    let path = manifest(&dir, JOB);
    fake.on_watch(
        &format!("{JOBS}/x"),
        json!({"status": {"phase": "Failed", "conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "spent"}]}}),
    );
    let done = fake.run(&["apply", "-f", &path, "--wait"]).await;
    assert_eq!(done.code, 1);
    assert!(
        done.err
            .contains("error: job.rota.dev/x failed: BackoffLimitExceeded: spent"),
        "{}",
        done.err
    );
}

#[tokio::test(start_paused = true)]
async fn apply_wait_ends_with_2_when_it_cannot_be_placed_in_time() {
    let fake = Fake::default();
    let dir = tempfile::tempdir().unwrap();
    let path = manifest(&dir, JOB);
    fake.on_watch(
        &format!("{JOBS}/x"),
        json!({"status": {"phase": "Waiting", "waiting": 2, "waitingFor": {"reasons": [{"reason": "NoNodes", "message": "no node"}], "smallestChange": "add a node"}}}),
    );
    let done = fake
        .run(&["apply", "-f", &path, "--wait", "--timeout", "5s"])
        .await;
    assert_eq!(done.code, 2, "{}", done.err);
    assert!(done.err.ends_with("error: job.rota.dev/x is accepted but cannot be placed now: NoNodes: no node\nhint: smallest change that helps: add a node\n"), "{}", done.err);
}

#[tokio::test(start_paused = true)]
async fn run_makes_a_job_and_tells_whether_it_starts() {
    let fake = Fake::default();
    let path = format!("{JOBS}/hello");
    fake.on_watch(&path, json!({"status": {"phase": "Running", "running": 1}}));
    let done = fake
        .run(&[
            "run", "--name", "hello", "--cpu", "1", "--", "echo", "-n", "hi",
        ])
        .await;
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "job.rota.dev/hello created\n"),
        "{}",
        done.err
    );
    let made = fake.get(&path).unwrap();
    assert_eq!(
        made["spec"]["template"]["spec"]["command"],
        json!(["echo", "-n", "hi"])
    );

    fake.on_watch(
        &format!("{JOBS}/big"),
        json!({"status": {"phase": "Waiting", "waiting": 1, "waitingFor": {"reasons": [{"reason": "NeverFits", "message": "needs 9 cpu"}]}}}),
    );
    let done = fake.run(&["run", "--name", "big", "--", "true"]).await;
    assert_eq!(done.code, 2);
    let done = fake.run(&["run", "--name", "big", "--", "true"]).await;
    assert_eq!(done.code, 1);
    assert!(done.err.contains("choose another name"), "{}", done.err);
}

#[tokio::test]
async fn delete_by_name_selector_and_manifest() {
    let fake = Fake::default();
    for n in ["a", "b", "c"] {
        fake.job(n, json!({}), json!({}));
    }
    let done = fake
        .run(&["delete", "job", "a", "--cascade=foreground"])
        .await;
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "job.rota.dev \"a\" deleted\n")
    );
    assert_eq!(fake.writes()[0].body["propagationPolicy"], "Foreground");
    let done = fake.run(&["delete", "job", "a"]).await;
    assert_eq!(done.code, 1);
    assert_eq!(
        fake.run(&["delete", "job", "a", "--ignore-not-found"])
            .await
            .code,
        0
    );
    let done = fake.run(&["delete", "jobs"]).await;
    assert_eq!(
        done.code, 1,
        "nothing is deleted without names, -l or --all"
    );
    let done = fake.run(&["delete", "jobs", "--all"]).await;
    assert_eq!(done.out.lines().count(), 2);
}

#[tokio::test(start_paused = true)]
async fn wait_for_conditions_fields_and_deletion() {
    let fake = Fake::default();
    fake.job("x", json!({}), json!({"phase": "Running"}));
    let path = format!("{JOBS}/x");
    fake.on_watch(
        &path,
        json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}}),
    );
    let done = fake
        .run(&["wait", "job/x", "--for=condition=complete"])
        .await;
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "job.rota.dev/x condition met\n"),
        "{}",
        done.err
    );
    let done = fake
        .run(&[
            "wait",
            "job/x",
            "--for=jsonpath={.status.phase}=Running",
            "--timeout=1s",
        ])
        .await;
    assert_eq!(done.code, 0);
    let done = fake
        .run(&["wait", "job/x", "--for=condition=Failed", "--timeout=2s"])
        .await;
    assert_eq!(done.code, 1);
    assert!(
        done.err
            .contains("timed out waiting for condition=Failed on job.rota.dev/x"),
        "{}",
        done.err
    );
    let done = fake
        .run(&["wait", "job/x", "--for=delete", "--timeout=2s"])
        .await;
    assert_eq!(done.code, 1);
    let done = fake.run(&["wait", "job/none", "--for=delete"]).await;
    assert_eq!(done.code, 0);
}

#[tokio::test]
async fn scale_writes_the_subresource() {
    let fake = Fake::default();
    fake.job("x", json!({"replicas": 1}), json!({}));
    let done = fake.run(&["scale", "job/x", "--replicas=3"]).await;
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "job.rota.dev/x scaled\n")
    );
    let write = &fake.writes()[0];
    assert_eq!(
        (write.path.as_str(), &write.body),
        (
            "/apis/rota.dev/v1/namespaces/default/jobs/x/scale",
            &json!({"spec": {"replicas": 3}})
        )
    );
}

#[tokio::test]
async fn logs_of_a_whole_job_carry_a_prefix_per_task() {
    let fake = Fake::default();
    fake.job(
        "x",
        json!({"completions": 3}),
        json!({"phase": "Succeeded", "succeededIndexes": "0-2"}),
    );
    fake.text(&format!("{JOBS}/x/log?index=0&tailLines=5"), "one\ntwo\n");
    fake.text(&format!("{JOBS}/x/log?index=2&tailLines=5"), "three");
    let done = fake.run(&["logs", "job/x", "--tail", "5"]).await;
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "[x/0] one\n[x/0] two\n[x/2] three\n"),
        "{}",
        done.err
    );
    assert!(
        done.err
            .contains("1 finished tasks of job.rota.dev/x have no log any more"),
        "{}",
        done.err
    );
    let done = fake
        .run(&["logs", "x", "--index", "0", "--tail", "5"])
        .await;
    assert_eq!(done.out, "one\ntwo\n");
    let done = fake.run(&["logs", "nope"]).await;
    assert!(
        done.err
            .contains("there is no job and no task named \"nope\""),
        "{}",
        done.err
    );
}

#[tokio::test(start_paused = true)]
async fn logs_follow_a_job_until_it_is_finished() {
    let fake = Fake::default();
    fake.job(
        "x",
        json!({"completions": 2}),
        json!({"phase": "Succeeded"}),
    );
    for i in 0..2 {
        fake.put(
            &format!("{TASKS}/x-{i}"),
            json!({"metadata": {"name": format!("x-{i}"), "namespace": "default", "labels": {"rota.dev/job": "x"}}, "spec": {"index": i}, "status": {"phase": "Running"}}),
        );
        fake.text(
            &format!("{TASKS}/x-{i}/log?follow=true"),
            &format!("from {i}\n"),
        );
    }
    let done = fake.run(&["logs", "-f", "job/x"]).await;
    let mut lines: Vec<&str> = done.out.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        (done.code, lines),
        (0, vec!["[x/0] from 0", "[x/1] from 1"]),
        "{}",
        done.err
    );
}

#[tokio::test]
async fn why_and_describe_read_the_job_and_what_is_around_it() {
    let fake = Fake::default();
    fake.job(
        "x",
        json!({"queue": "q", "after": [{"job": "prep"}]}),
        json!({"phase": "Blocked", "waiting": 1, "waitingFor": {"reasons": [{"reason": "AfterJob", "message": "waits for prep"}]}}),
    );
    fake.put(
        "/api/v1/namespaces/default/events/e",
        json!({"metadata": {"name": "e"}, "involvedObject": {"name": "x"}, "reason": "Blocked", "message": "prep first", "lastTimestamp": "2026-01-01T00:00:00Z"}),
    );
    let done = fake.run(&["why", "x"]).await;
    assert_eq!(done.code, 0, "{}", done.err);
    for part in [
        "waits for other Jobs",
        "job \"prep\" does not exist",
        "QueueNotFound: the queue \"q\"",
        "Blocked: prep first",
    ] {
        assert!(
            done.out.contains(part),
            "{part:?} is missing in\n{}",
            done.out
        );
    }
    let done = fake.run(&["describe", "job", "x"]).await;
    assert!(
        done.out.contains("AfterJob: waits for prep") && done.out.contains("prep first"),
        "{}",
        done.out
    );
}

#[tokio::test(start_paused = true)]
async fn why_asks_the_scheduler_and_falls_back_to_the_status() {
    let fake = Fake::default();
    fake.job(
        "x",
        json!({}),
        json!({"phase": "Waiting", "waiting": 1, "waitingFor": {"reasons": [{"reason": "NoNodes", "message": "old"}]}}),
    );
    let path = "/apis/rota.dev/v1/namespaces/default/jobs/x/why";
    let answer = json!({"kind": "Why", "metadata": {"resourceVersion": "42"}, "waiting": 1,
        "waitingFor": {"reasons": [{"reason": "QueueLimit", "message": "new"}]}});
    fake.text(&format!("{path}?"), &answer.to_string());
    let done = fake.run(&["why", "x", "-v"]).await;
    assert!(
        done.out.contains("QueueLimit: new") && !done.out.contains("NoNodes"),
        "{}",
        done.out
    );
    assert!(
        done.out.contains("As of resourceVersion 42"),
        "{}",
        done.out
    );
    let done = fake.run(&["why", "x", "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&done.out).unwrap(), answer);

    fake.remove_text(&format!("{path}?"));
    let done = fake.run(&["why", "x"]).await;
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.out.contains("NoNodes: old"), "{}", done.out);
    assert!(done.err.contains("from the Job's status"), "{}", done.err);
    let done = fake.run(&["why", "x", "-o", "json"]).await;
    let shown: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(shown["waitingFor"]["reasons"][0]["reason"], "NoNodes");
}

#[tokio::test]
async fn plan_asks_once_per_namespace_and_ends_with_2_when_something_waits() {
    let fake = Fake::default();
    let dir = tempfile::tempdir().unwrap();
    let file = manifest(
        &dir,
        "apiVersion: rota.dev/v1\nkind: Job\nmetadata: {name: a}\n---\napiVersion: rota.dev/v1\nkind: Job\nmetadata: {name: b, namespace: other}\n---\napiVersion: rota.dev/v1\nkind: Queue\nmetadata: {name: q}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n",
    );
    let answer = |job: &str, waiting: u32| {
        json!({"kind": "Plan", "jobs": [{"namespace": "n", "name": job, "tasks": 1, "placed": 1 - waiting, "waiting": waiting, "placements": []}]}).to_string()
    };
    let path = |namespace: &str| format!("/apis/rota.dev/v1/namespaces/{namespace}/plans?");
    fake.text(&path("default"), &answer("a", 0));
    fake.text(&path("other"), &answer("b", 0));
    let done = fake.run(&["plan", "-f", &file]).await;
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("ConfigMap c has no part"), "{}", done.err);
    let asked: Vec<Value> = fake
        .writes()
        .iter()
        .map(|w| w.body["items"].clone())
        .collect();
    let kinds = |items: &Value| -> Vec<String> {
        let items = items.as_array().unwrap().iter();
        items.map(|i| i["kind"].as_str().unwrap().into()).collect()
    };
    assert_eq!(asked.len(), 2);
    for items in &asked {
        assert_eq!(kinds(items), ["Queue", "Job"]);
    }

    fake.text(&path("other"), &answer("b", 1));
    let done = fake.run(&["plan", "-f", &file]).await;
    assert_eq!(done.code, 2, "{}", done.err);
    assert!(
        done.err.contains("1 of 2 tasks cannot be placed now"),
        "{}",
        done.err
    );
    let done = fake.run(&["plan", "-f", &file, "-o", "json"]).await;
    assert_eq!(done.code, 2, "{}", done.err);
    let list: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 2);

    let none = manifest(
        &dir,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n",
    );
    let done = fake.run(&["plan", "-f", &none]).await;
    assert_eq!(done.code, 1);
    assert!(
        done.err.contains("there is no Job and no Queue"),
        "{}",
        done.err
    );
}

#[tokio::test]
async fn queue_shows_the_tree_or_a_part_of_it() {
    let fake = Fake::default();
    for (name, parent) in [
        ("org", Value::Null),
        ("ml", json!("org")),
        ("web", Value::Null),
    ] {
        fake.put(
            &format!("/apis/rota.dev/v1/queues/{name}"),
            json!({"apiVersion": "rota.dev/v1", "kind": "Queue", "metadata": {"name": name}, "spec": {"parent": parent, "weight": 1},
                "status": {"used": {"cpu": "1500m"}}}),
        );
    }
    let done = fake.run(&["queue"]).await;
    assert_eq!(done.code, 0, "{}", done.err);
    let names: Vec<&str> = done
        .out
        .lines()
        .map(|l| l.split("   ").next().unwrap())
        .collect();
    assert_eq!(names, ["QUEUE", "org", "  ml", "web"], "{}", done.out);
    assert!(done.out.contains("1.5 cpu"), "{}", done.out);
    let done = fake.run(&["queue", "org", "-o", "name"]).await;
    assert_eq!(done.out, "queue.rota.dev/org\nqueue.rota.dev/ml\n");
    let done = fake.run(&["queue", "none"]).await;
    assert_eq!(done.code, 1);
    assert!(done.err.contains("not found"), "{}", done.err);
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_is_asked_again_but_not_for_ever() {
    let fake = Fake::default();
    fake.job("x", json!({}), json!({}));
    fake.busy(&[503, 429]);
    assert_eq!(fake.run(&["get", "--raw", "/version"]).await.code, 0);
    fake.busy(&[503; 10]);
    let done = fake.run(&["get", "--raw", "/version"]).await;
    assert_eq!(done.code, 1);
    assert!(
        done.err.contains("busy (ServiceUnavailable)"),
        "{}",
        done.err
    );
}

#[tokio::test]
async fn version_and_completion() {
    let fake = Fake::default();
    let done = fake.run(&["version"]).await;
    assert!(done.out.contains("Server Version: v9.9.9"), "{}", done.out);
    for shell in ["bash", "zsh", "fish"] {
        let done = fake.run(&["completion", shell]).await;
        assert!(done.code == 0 && done.out.contains("describe"), "{shell}");
    }
}
