#![allow(clippy::unwrap_used)]
//! Fixtures: given a Job and what there is of it, the expected plan.

use super::*;

const NOW: &str = "2026-01-01T00:01:40Z";

fn job(spec: Value, status: Value) -> Job {
    let mut whole = json!({"template": {"spec": {"command": ["true"]}}});
    for (k, v) in spec.as_object().unwrap() {
        whole[k] = v.clone();
    }
    let mut value = json!({
        "apiVersion": "rota.dev/v1", "kind": "Job", "spec": whole,
        "metadata": {"name": "j", "namespace": "n", "uid": "u", "resourceVersion": "7",
            "generation": 1, "finalizers": ["rota.dev/ledger"]},
    });
    if !status.is_null() {
        value["status"] = status;
    }
    serde_json::from_value(value).unwrap()
}

fn task(index: i32, phase: &str, ready: bool) -> Arc<Task> {
    let value = json!({
        "apiVersion": "rota.dev/v1", "kind": "Task",
        "metadata": {"name": format!("t{index}"), "namespace": "n", "uid": format!("t{index}")},
        "spec": {"jobName": "j", "jobUid": "u", "index": index, "attempt": 0, "epoch": 1,
            "nodeName": "x", "queue": "default", "requests": {}, "revision": "old"},
        "status": {"phase": phase, "ready": ready},
    });
    Arc::new(serde_json::from_value(value).unwrap())
}

fn world(job: Job) -> World {
    let name = lifecycle::revision_name(&job);
    let revision = serde_json::from_value(json!({
        "apiVersion": "rota.dev/v1", "kind": "JobRevision", "metadata": {"name": name, "namespace": "n"},
        "spec": {"jobName": "j", "jobUid": "u", "template": {"spec": {"command": ["true"]}}},
    }))
    .unwrap();
    World {
        job: Arc::new(job),
        ledger: Ledger::default(),
        tasks: Vec::new(),
        revisions: vec![Arc::new(revision)],
        edges: Edges::Open,
        since_write: None,
    }
}

fn plan(world: &World) -> Plan {
    reconcile(world, NOW.parse().unwrap())
}

/// The status after the plan: old fields with the patch merged in.
fn status_of(world: &World) -> JobStatus {
    let plan = plan(world);
    let write = plan.writes().find(|w| w.verb == Verb::Status).unwrap();
    assert_eq!(write.resource_version.as_deref(), Some("7"), "guarded");
    let mut status = json!(world.job.status.clone().unwrap_or_default());
    for (k, v) in write.body["status"].as_object().unwrap() {
        status[k] = v.clone();
    }
    serde_json::from_value(status).unwrap()
}

fn shows(status: &JobStatus, type_: &str) -> String {
    let list = status.conditions.as_deref().unwrap_or(&[]);
    conditions::get(list, type_).map_or("-".into(), |c| format!("{} {}", c.status, c.reason))
}

fn started() -> Value {
    json!({"startTime": "2026-01-01T00:00:00Z"})
}

#[test]
fn ready_reconciling_and_stalled_follow_the_table() {
    let service = json!({"type": "Service", "replicas": 2});
    let cases: Vec<(&str, World, [&str; 3], JobPhase)> = vec![
        (
            "queued",
            world(job(json!({}), started())),
            ["True Queued", "False Queued", "False Queued"],
            JobPhase::Waiting,
        ),
        (
            "suspended",
            world(job(json!({"suspend": true}), started())),
            ["False Suspended", "False Suspended", "False Suspended"],
            JobPhase::Suspended,
        ),
        (
            "running",
            World {
                tasks: vec![task(0, "Running", true)],
                ..world(job(json!({}), started()))
            },
            ["True Running", "False Running", "False Running"],
            JobPhase::Running,
        ),
        (
            "replicas missing",
            World {
                tasks: vec![task(0, "Running", true)],
                ..world(job(service, started()))
            },
            [
                "False ReplicasMissing",
                "True ReplicasMissing",
                "False ReplicasMissing",
            ],
            JobPhase::Running,
        ),
        (
            "blocked",
            World {
                edges: Edges::Waiting("waits".into()),
                ..world(job(json!({}), Value::Null))
            },
            ["True Blocked", "False Blocked", "False Blocked"],
            JobPhase::Blocked,
        ),
        (
            "cycle",
            World {
                edges: Edges::Cycle(vec!["a".into(), "b".into(), "a".into()]),
                ..world(job(json!({}), Value::Null))
            },
            [
                "False DependencyCycle",
                "False DependencyCycle",
                "True DependencyCycle",
            ],
            JobPhase::Blocked,
        ),
    ];
    for (name, world, wanted, phase) in cases {
        let status = status_of(&world);
        let got = ["Ready", "Reconciling", "Stalled"].map(|t| shows(&status, t));
        assert_eq!(got, wanted, "{name}");
        assert_eq!(status.phase, Some(phase), "{name}");
        assert_eq!(status.observed_generation, Some(1), "{name}");
    }
}

#[test]
fn a_blocked_job_has_no_start_time() {
    let blocked = World {
        edges: Edges::Waiting("waits".into()),
        ..world(job(json!({}), Value::Null))
    };
    let status = status_of(&blocked);
    assert_eq!((status.start_time, status.waiting), (None, 0));
}

#[test]
fn a_failed_index_fails_the_job_and_says_why() {
    for (failures, reason) in [(7, "BackoffLimitExceeded"), (1, "FailJob")] {
        let mut world = world(job(json!({"completions": 3}), started()));
        world.ledger.failed.insert(1);
        let attempt = rota_api::LedgerAttempt {
            next: failures,
            failures,
            last_exit_code: Some(3),
            ..Default::default()
        };
        world.ledger.attempts.insert(1, attempt);
        let status = status_of(&world);
        assert_eq!(shows(&status, "Failed"), format!("True {reason}"));
        assert_eq!(shows(&status, "Stalled"), format!("True {reason}"));
        assert!(status.completion_time.is_some());
        assert_eq!(plan(&world).events.len(), 1);
    }
}

#[test]
fn complete_comes_with_the_last_index_and_stays() {
    let mut w = world(job(json!({"completions": 3}), started()));
    w.ledger.succeeded.insert_range(0, 2);
    let status = status_of(&w);
    assert_eq!(status.phase, Some(JobPhase::Succeeded));
    assert_eq!(status.succeeded_indexes.as_deref(), Some("0-2"));
    // Observed again with its own status: nothing to write.
    let again = World {
        ledger: w.ledger.clone(),
        ..world(job(json!({"completions": 3}), json!(status)))
    };
    assert_eq!(plan(&again).writes().count(), 0);
}

#[test]
fn counts_alone_wait_for_their_second_and_placements_words_are_kept() {
    let first = World {
        tasks: vec![task(0, "Running", true)],
        ..world(job(json!({"completions": 9}), started()))
    };
    let mut status = status_of(&first);
    let waiting_for = json!({"reasons": [{"reason": "NoNodes", "message": "m"}]});
    status.waiting_for = Some(serde_json::from_value(waiting_for).unwrap());
    let mut second = World {
        tasks: vec![task(0, "Running", true), task(1, "Starting", false)],
        since_write: Some(Duration::from_millis(300)),
        ..world(job(json!({"completions": 9}), json!(status)))
    };
    let early = plan(&second);
    assert_eq!(early.writes().count(), 0);
    assert_eq!(
        early.next,
        crate::runtime::Next::After(Duration::from_millis(700))
    );
    second.since_write = Some(Duration::from_secs(2));
    let due = plan(&second);
    let write = due.writes().next().unwrap();
    assert_eq!(
        write.body,
        json!({"status": {"replicas": 2, "starting": 1, "waiting": 7}})
    );
}

#[test]
fn an_unguarded_job_gets_finalizer_and_revision_before_any_status() {
    let mut new = job(json!({}), Value::Null);
    new.metadata.finalizers = None;
    let w = World {
        revisions: Vec::new(),
        ..world(new)
    };
    let plan = plan(&w);
    let verbs: Vec<&Verb> = plan.writes().map(|w| &w.verb).collect();
    assert_eq!(verbs, [&Verb::Patch, &Verb::Create]);
}

#[test]
fn old_revisions_go_but_for_the_last_three_and_those_in_use() {
    let mut w = world(job(json!({"type": "Service"}), started()));
    w.tasks = vec![task(0, "Running", true)];
    for (i, name) in ["old", "r1", "r2", "r3", "r4"].iter().enumerate() {
        let revision = serde_json::from_value(json!({
            "apiVersion": "rota.dev/v1", "kind": "JobRevision",
            "metadata": {"name": name, "namespace": "n", "creationTimestamp": format!("2026-01-01T00:00:0{i}Z")},
            "spec": {"jobName": "j", "jobUid": "u", "template": {"spec": {"command": ["true"]}}},
        }))
        .unwrap();
        w.revisions.push(Arc::new(revision));
    }
    let plan = plan(&w);
    let gone: Vec<&str> = plan
        .writes()
        .filter(|w| w.verb == Verb::Delete)
        .map(|w| w.target.name.as_str())
        .collect();
    assert_eq!(gone, ["r1"]);
}

#[test]
fn a_service_is_updated_one_task_at_a_time() {
    let service = job(
        json!({"type": "Service", "replicas": 3}),
        json!({"startTime": "2026-01-01T00:00:00Z", "revision": "new"}),
    );
    let wanted = lifecycle::wanted(&service, &Ledger::default());
    let mut tasks: Vec<Arc<Task>> = (0..3).map(|i| task(i, "Running", true)).collect();
    let names = |tasks: &[Arc<Task>]| -> Vec<i32> {
        lifecycle::surplus(&service, &wanted, tasks)
            .iter()
            .map(|t| t.spec.index)
            .collect()
    };
    assert_eq!(names(&tasks), [0]);
    // Its slot is empty, then starting: wait.
    let gone = tasks.remove(0);
    assert_eq!(names(&tasks), [0i32; 0]);
    let renew = |phase: &str| {
        let mut new = (*gone).clone();
        new.spec.revision = "new".into();
        new.status = serde_json::from_value(json!({"phase": phase})).unwrap();
        Arc::new(new)
    };
    tasks.push(renew("Starting"));
    assert_eq!(names(&tasks), [0i32; 0]);
    tasks[2] = renew("Running");
    assert_eq!(names(&tasks), [1]);
}
