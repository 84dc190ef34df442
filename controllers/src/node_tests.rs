#![allow(clippy::unwrap_used)]

use super::*;
use serde_json::Value;

fn node(epoch: i64, lost: bool, annotations: Value, reason: &str) -> Node {
    let mut all = json!({ANNOTATION_EPOCH: epoch.to_string()});
    for (k, v) in annotations.as_object().unwrap() {
        all[k] = v.clone();
    }
    let taints = if lost {
        json!([{"key": TAINT_LOST, "effect": "NoExecute"}, {"key": "mine", "effect": "NoSchedule"}])
    } else {
        json!([{"key": "mine", "effect": "NoSchedule"}])
    };
    let status = if reason == "AgentReady" {
        "True"
    } else {
        "Unknown"
    };
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n", "uid": "u", "resourceVersion": "5", "annotations": all},
        "spec": {"taints": taints},
        "status": {"conditions": [{"type": "Ready", "status": status, "reason": reason}],
            "nodeInfo": {"bootID": "now", "architecture": "", "containerRuntimeVersion": "",
                "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
                "operatingSystem": "", "osImage": "", "systemUUID": ""}},
    }))
    .unwrap()
}

fn task(epoch: i64) -> Arc<Task> {
    Arc::new(
        serde_json::from_value(json!({
            "apiVersion": "rota.dev/v1", "kind": "Task",
            "metadata": {"name": "t", "namespace": "d", "uid": "t", "resourceVersion": "9"},
            "spec": {"jobName": "j", "jobUid": "u", "index": 0, "attempt": 0, "epoch": epoch,
                "nodeName": "n", "queue": "default", "requests": {}, "revision": "r"},
        }))
        .unwrap(),
    )
}

/// What a plan does, in short.
fn told(node: Option<Node>, age: Option<u64>, closed: bool, rule: OnLost) -> Vec<String> {
    let world = World {
        name: "n".into(),
        node: node.map(Arc::new),
        heartbeat: age.map_or(Heartbeat::Unknowable, |s| {
            Heartbeat::Ago(Duration::from_secs(s))
        }),
        tunnel_closed: closed,
        tasks: vec![(task(1), rule)],
    };
    let plan = reconcile(&world, "2026-01-01T00:00:00Z".parse().unwrap());
    plan.writes()
        .map(|w| {
            assert!(
                w.resource_version.is_some(),
                "each write is guarded by the version"
            );
            match &w.body {
                b if b["status"]["phase"] == "Lost" => "task lost".to_string(),
                b if b["status"].is_object() => {
                    let ready = b["status"]["conditions"]
                        .as_array()
                        .unwrap()
                        .last()
                        .unwrap();
                    format!("ready {}", ready["reason"].as_str().unwrap())
                }
                b => {
                    let epoch = &b["metadata"]["annotations"][ANNOTATION_EPOCH];
                    let taints = b["spec"]["taints"].as_array().unwrap().len();
                    format!("epoch {epoch} taints {taints}")
                }
            }
        })
        .collect()
}

#[test]
fn what_is_done_about_a_node_and_its_tasks() {
    use OnLost::{Rerun, WaitForFence};
    let none = json!({});
    let fine = || Some(node(1, false, json!({}), "AgentReady"));
    let lost = |annotations: &Value| Some(node(2, true, annotations.clone(), "NodeLost"));
    type Case<'a> = (
        &'a str,
        Option<Node>,
        Option<u64>,
        bool,
        OnLost,
        &'a [&'a str],
    );
    let cases: Vec<Case> = vec![
        ("in time", fine(), Some(9), false, Rerun, &[]),
        (
            "late",
            fine(),
            Some(10),
            false,
            Rerun,
            &["ready HeartbeatMissing"],
        ),
        (
            "lost",
            fine(),
            Some(15),
            false,
            Rerun,
            &["epoch \"2\" taints 2"],
        ),
        ("nobody knows", fine(), None, false, Rerun, &[]),
        (
            "rerun at once",
            lost(&none),
            Some(16),
            false,
            Rerun,
            &["task lost"],
        ),
        (
            "not fenced",
            lost(&none),
            Some(900),
            false,
            WaitForFence,
            &[],
        ),
        (
            "connection died",
            lost(&none),
            Some(16),
            true,
            WaitForFence,
            &["task lost"],
        ),
        (
            "same boot",
            lost(&json!({ANNOTATION_LOST_BOOT: "now"})),
            Some(16),
            false,
            WaitForFence,
            &[],
        ),
        (
            "new boot",
            lost(&json!({ANNOTATION_LOST_BOOT: "before"})),
            Some(16),
            false,
            WaitForFence,
            &["task lost"],
        ),
        (
            "back, not adopted",
            lost(&json!({ANNOTATION_OBSERVED_EPOCH: "1"})),
            Some(1),
            false,
            WaitForFence,
            &[],
        ),
        (
            "back and adopted",
            lost(&json!({ANNOTATION_OBSERVED_EPOCH: "2"})),
            Some(1),
            false,
            WaitForFence,
            &["epoch null taints 1"],
        ),
        (
            "condition follows",
            Some(node(1, false, json!({}), "NodeLost")),
            Some(1),
            false,
            WaitForFence,
            &["ready AgentReady"],
        ),
        ("deleted", None, None, false, WaitForFence, &["task lost"]),
    ];
    for (name, node, age, closed, rule, wanted) in cases {
        assert_eq!(told(node, age, closed, rule), wanted, "{name}");
    }
}

#[test]
fn more_than_half_late_stops_everything_unless_their_connections_are_known_dead() {
    let (late, fine) = (Duration::from_secs(11), Duration::from_secs(2));
    assert!(too_many_late(&[(late, false)]));
    assert!(too_many_late(&[
        (late, false),
        (late, false),
        (fine, false)
    ]));
    assert!(!too_many_late(&[(late, false), (fine, false)]));
    assert!(!too_many_late(&[(late, true), (late, true), (fine, false)]));
    assert!(!too_many_late(&[]));
}
