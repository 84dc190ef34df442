//! The event log: what a run writes can be read back and played again.

use rota_scheduler::{NEVER, Policy};
use rota_simulate::nodes;
use rota_simulate::trace::{Change, events};
use rota_simulate::{Settings, run};

use crate::tools::{cpus, settings, swf};

#[test]
fn a_log_plays_again_as_it_was() {
    let jobs: Vec<_> = (0..60)
        .map(|i| (i * 5 % 90, 1 + i * 31 % 47, 1 + (i % 5) as u32, 50))
        .collect();
    let settings = Settings {
        log: true,
        ..settings("first-fit")
    };
    let first = run(&swf(&jobs), &cpus(8), &settings);
    let text: String = first
        .log
        .iter()
        .map(|event| serde_json::to_string(event).unwrap() + "\n")
        .collect();
    let trace = events::read(&text).unwrap();
    let keep = Settings {
        keep_queues: true,
        policy: Policy::Spread,
        ..settings
    };
    let second = run(&trace, &Vec::new(), &keep);
    assert_eq!(second.records, first.records);
    assert_eq!(second.log, first.log);
    assert_eq!(nodes::read(&text).unwrap(), cpus(8));
}

#[test]
fn a_lost_node_and_a_cancelled_job() {
    let log = r#"
{"time": 0, "kind": "node", "name": "a", "allocatable": {"cpu": 1000}}
{"time": 0, "kind": "submit", "job": "j", "requests": {"cpu": 1000}, "run": 5000}
{"time": 0, "kind": "submit", "job": "k", "requests": {"cpu": 1000}}
{"time": 2000, "kind": "node", "name": "a", "gone": true}
{"time": 3000, "kind": "node", "name": "b", "allocatable": {"cpu": 1000}}
{"time": 9000, "kind": "cancel", "job": "k"}
"#;
    let trace = events::read(log).unwrap();
    let run = run(&trace, &Vec::new(), &settings("fifo"));
    let [j, k] = run.records.as_slice() else {
        panic!("{:?}", run.records);
    };
    // It began anew on the other node.
    assert_eq!((j.start, j.end, j.waited), (Some(0), Some(8000), 1000));
    assert_eq!(j.nodes, ["b"]);
    assert_eq!((k.start, k.end), (Some(8000), Some(9000)));
    assert_eq!(run.measures.cancelled, 1);
}

#[test]
fn run_times_come_from_starts_and_ends() {
    let log = r#"{"time": 0, "kind": "submit", "job": "j", "tasks": 3, "requests": {}, "limit": 90}
{"time": 5, "kind": "start", "job": "j", "index": 1, "node": "n"}
{"time": 9, "kind": "evict", "job": "j", "index": 1}
{"time": 10, "kind": "start", "job": "j", "index": 1, "node": "n"}
{"time": 40, "kind": "end", "job": "j", "index": 1}"#;
    let trace = events::read(log).unwrap();
    assert_eq!(trace.jobs[0].runs, [NEVER, 30, NEVER]);
    assert_eq!(trace.jobs[0].limit, 90);
}

#[test]
fn bad_lines_are_named() {
    for (line, part) in [
        ("{", "line 2"),
        (r#"{"time": -1, "kind": "cancel", "job": "j"}"#, "time -1"),
        (r#"{"time": 1, "kind": "dance"}"#, "dance"),
        (r#"{"time": 1, "kind": "end", "job": "x"}"#, "job x"),
        (
            r#"{"time": 1, "kind": "submit", "job": "j", "requests": {}}"#,
            "second time",
        ),
        (
            r#"{"time": 1, "kind": "submit", "job": "y", "requests": {"cpu": 1e99}}"#,
            "line 2",
        ),
    ] {
        let text = format!(
            "{}\n{line}\n",
            r#"{"time": 0, "kind": "submit", "job": "j", "requests": {}}"#
        );
        let error = events::read(&text).unwrap_err().to_string();
        assert!(error.contains(part), "{line}: {error}");
    }
    let odd = r#"{"time": 0, "kind": "submit", "job": "a", "tasks": 0, "requests": {}}
{"time": 0, "kind": "submit", "job": "b", "requests": {"cpu": -5}}
{"time": 1, "kind": "cancel", "job": "a"}
{"time": 1, "kind": "cancel", "job": "b"}"#;
    let trace = events::read(odd).unwrap();
    assert_eq!(trace.rejected.values().sum::<u64>(), 1);
    assert_eq!(trace.changes, [(1, Change::Cancel(0))]);
}
