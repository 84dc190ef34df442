//! What lines a recording has, and that a replay understands them.
#![allow(clippy::unwrap_used)]

use rota_simulate::trace::events;
use serde_json::{Value, json};

use super::*;

fn of<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn node(ready: bool) -> Node {
    let ready = if ready { "True" } else { "False" };
    of(
        json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi"},
        "conditions": [{"type": "Ready", "status": ready}]}}),
    )
}

fn job(name: &str, spec: Value, status: Value) -> Job {
    let mut whole = json!({"completions": 2, "template": {"spec": {"command": ["x"]}}});
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    of(json!({"apiVersion": "rota.dev/v1", "kind": "Job",
        "metadata": {"name": name, "namespace": "a", "uid": name}, "spec": whole, "status": status}))
}

fn task(job: &str, index: u32, attempt: u32, phase: &str) -> Task {
    of(json!({"apiVersion": "rota.dev/v1", "kind": "Task",
        "metadata": {"name": format!("{job}-{index}-{attempt}"), "namespace": "a"},
        "spec": {"jobName": job, "jobUid": job, "index": index, "attempt": attempt, "epoch": 1,
            "nodeName": "n", "queue": "default", "requests": {"cpu": "1"}, "revision": "r"},
        "status": {"phase": phase}}))
}

fn text(log: &mut Log) -> String {
    let lines = log.take();
    let each = lines
        .iter()
        .map(|e| serde_json::to_string(e).unwrap() + "\n");
    each.collect()
}

/// `kind job index` of each line.
fn short(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| {
        let v: Value = serde_json::from_str(line).unwrap();
        let what = v["job"].as_str().or(v["name"].as_str()).unwrap_or("");
        match &v["index"] {
            Value::Null => format!("{} {what}", v["kind"].as_str().unwrap()),
            index => format!("{} {what} {index}", v["kind"].as_str().unwrap()),
        }
    });
    lines.collect()
}

#[test]
fn a_job_is_told_from_its_coming_to_its_end() {
    let mut log = Log::default();
    log.nodes(0, Seen::All(vec![node(true)]));
    log.nodes(1, Seen::Is(node(true)));
    // The watch of Tasks is ahead of that of Jobs.
    log.tasks(5, Seen::Is(task("j", 0, 0, "Running")));
    log.jobs(
        6,
        Seen::Is(job("j", json!({"gang": {}}), json!({"phase": "Running"}))),
    );
    log.tasks(7, Seen::Is(task("j", 1, 0, "Running")));
    log.tasks(8, Seen::Is(task("j", 1, 0, "Lost")));
    log.tasks(9, Seen::Is(task("j", 1, 1, "Running")));
    log.tasks(16, Seen::Is(task("j", 0, 0, "Succeeded")));
    log.tasks(29, Seen::Is(task("j", 1, 1, "Succeeded")));
    // A clock that is set back.
    log.nodes(2, Seen::Is(node(false)));
    let text = text(&mut log);
    assert_eq!(
        short(&text),
        [
            "node n",
            "submit a/j",
            "start a/j 0",
            "start a/j 1",
            "evict a/j 1",
            "start a/j 1",
            "end a/j 0",
            "end a/j 1",
            "node n"
        ]
    );
    let trace = events::read(&text).unwrap();
    assert_eq!(trace.jobs[0].runs, [10, 20]);
    assert_eq!((trace.jobs[0].count, trace.jobs[0].min), (2, 2));
    assert_eq!(trace.changes.last().unwrap().0, 29);
}

#[test]
fn what_is_done_before_or_waits_for_others_is_not_told() {
    let mut log = Log::default();
    let blocked = json!({"after": [{"job": "x"}]});
    log.jobs(
        0,
        Seen::All(vec![
            job(
                "done",
                json!({}),
                json!({"phase": "Succeeded", "conditions": [{"type": "Complete", "status": "True",
            "reason": "r", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}),
            ),
            job("late", blocked.clone(), json!({})),
            job(
                "half",
                json!({"completions": 3}),
                json!({"phase": "Running", "succeededIndexes": "1"}),
            ),
        ]),
    );
    log.tasks(
        0,
        Seen::All(vec![
            task("half", 1, 0, "Succeeded"),
            task("half", 2, 0, "Running"),
        ]),
    );
    assert_eq!(short(&text(&mut log)), ["submit a/half", "start a/half 0"]);
    log.jobs(
        1,
        Seen::Is(job("late", blocked, json!({"phase": "Waiting"}))),
    );
    assert_eq!(short(&text(&mut log)), ["submit a/late"]);
}

#[test]
fn what_was_missed_of_a_job_that_succeeded_is_told_at_its_end() {
    let mut log = Log::default();
    log.jobs(0, Seen::Is(job("j", json!({}), json!({}))));
    log.tasks(0, Seen::Is(task("j", 0, 0, "Running")));
    log.jobs(
        9,
        Seen::All(vec![job("j", json!({}), json!({"phase": "Succeeded"}))]),
    );
    let text = text(&mut log);
    let trace = events::read(&text).unwrap();
    assert_eq!(trace.jobs[0].runs, [9, 0]);
    log.jobs(10, Seen::All(Vec::new()));
    assert!(log.take().is_empty());
}

#[test]
fn jobs_that_end_otherwise_are_given_up() {
    let mut log = Log::default();
    for name in ["failed", "held", "deleted"] {
        log.jobs(0, Seen::Is(job(name, json!({}), json!({}))));
    }
    log.jobs(
        1,
        Seen::Is(job("failed", json!({}), json!({"phase": "Failed"}))),
    );
    log.jobs(
        2,
        Seen::Is(job("held", json!({"suspend": true}), json!({}))),
    );
    log.jobs(3, Seen::Gone(job("deleted", json!({}), json!({}))));
    log.jobs(
        4,
        Seen::Is(job(
            "held",
            json!({}),
            json!({"phase": "Waiting", "succeededIndexes": "0"}),
        )),
    );
    let text = text(&mut log);
    assert_eq!(
        short(&text)[3..],
        [
            "cancel a/failed",
            "cancel a/held",
            "cancel a/deleted",
            "submit a/held#2"
        ]
    );
    assert!(text.lines().last().unwrap().contains("\"owner\":\"a\""));
    assert_eq!(events::read(&text).unwrap().jobs.len(), 4);
}

#[test]
fn a_recording_goes_on_after_an_earlier_one() {
    let mut log = Log::default();
    log.nodes(0, Seen::Is(node(true)));
    log.jobs(
        0,
        Seen::Is(job("done", json!({"completions": 1}), json!({}))),
    );
    log.tasks(0, Seen::Is(task("done", 0, 0, "Running")));
    log.tasks(5, Seen::Is(task("done", 0, 0, "Succeeded")));
    log.jobs(6, Seen::Is(job("j", json!({}), json!({}))));
    let mut all = text(&mut log);
    let mut log = Log::after(&all, 3).unwrap();
    log.nodes(4, Seen::All(Vec::new()));
    log.jobs(7, Seen::All(vec![job("j", json!({}), json!({}))]));
    let more = text(&mut log);
    assert_eq!(short(&more), ["cancel a/j", "node n", "submit a/j#2"]);
    all.push_str(&more);
    assert_eq!(events::read(&all).unwrap().jobs.len(), 3);
    assert!(Log::after("text\n", 0).is_err());
}
