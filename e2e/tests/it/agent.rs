//! `kill -9` of the agent while tasks run: they keep running as the same processes, and every exit
//! code is reported once, also of tasks that ended while it was away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::cluster::condition;
use crate::harness::process::{alive, signal, start_time};
use crate::harness::wait::check;
use crate::harness::{Cluster, env_number, eventually};

/// Tasks that run through the whole campaign.
const STEADY: usize = 4;
/// Short tasks around each kill; they end before, in and after the time without an agent.
const SHORT: usize = 6;

#[test]
fn tasks_outlive_the_agent_and_are_reported_once() {
    let kills = env_number("ROTA_E2E_AGENT_KILLS", 5);
    let cluster = Cluster::one_node();
    let dir = cluster.scratch();
    let reports = record_reports(&cluster);

    cluster.create_job(
        "steady",
        json!({"completions": STEADY, "template": {"spec": {
            "command": ["sleep", "86400"],
            "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}},
        }}}),
    );
    let steady = eventually("the steady tasks run", || {
        let running = pids(&cluster.tasks("steady"));
        check(running.len() == STEADY, || format!("{running:?}"))?;
        Ok(running)
    });
    let started: Vec<Option<u64>> = steady.values().map(|pid| start_time(*pid)).collect();
    assert!(started.iter().all(Option::is_some), "{steady:?}");

    let mut ended_while_away = 0;
    for kill in 0..kills {
        let runs = dir.join(format!("runs-{kill}"));
        let good = format!("good-{kill}");
        let script = format!(
            "sleep 0.$((ROTA_INDEX * 15 + 10)); echo $ROTA_INDEX $ROTA_ATTEMPT >> {}",
            runs.display()
        );
        cluster.create_job(
            &good,
            json!({"completions": SHORT, "template": {"spec": {
                "command": ["sh", "-c", script],
                "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}},
            }}}),
        );
        // Ends as soon as the agent is dead, never before.
        let gate = dir.join(format!("gate-{kill}"));
        let code = 3 + kill % 120;
        let bad = format!("bad-{kill}");
        cluster.create_job(
            &bad,
            json!({"backoffLimit": 0, "template": {"spec": {
                "command": ["sh", "-c", format!("until [ -e {} ]; do sleep 0.01; done; echo $ROTA_INDEX $ROTA_ATTEMPT >> {}.bad; exit {code}", gate.display(), runs.display())],
                "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}},
            }}}),
        );
        eventually(
            "the short tasks are placed and the bad one has started",
            || {
                let placed = cluster.tasks(&good).len();
                let started = cluster
                    .tasks(&bad)
                    .iter()
                    .filter(|t| t["status"]["phase"].is_string())
                    .count();
                check(placed == SHORT && started == 1, || {
                    format!("{placed} placed, {started} started")
                })
            },
        );

        let agent = cluster.agents();
        assert_eq!(agent.len(), 1, "{agent:?}");
        signal(agent[0], Signal::KILL);
        eventually("the agent is dead", || {
            check(!alive(agent[0]), || "it lives".into())
        });
        let away_from = unix_seconds();
        std::fs::write(&gate, "").unwrap();
        let new = eventually("there is a new agent", || {
            let agents = cluster.agents();
            match agents.iter().find(|pid| **pid != agent[0] && alive(**pid)) {
                Some(pid) => Ok(*pid),
                None => Err(format!("{agents:?}")),
            }
        });
        let away_until = unix_seconds();
        assert_ne!(new, agent[0]);

        let job = cluster.wait_job(&good, "Complete", Duration::from_secs(60));
        assert_eq!(job["status"]["succeeded"], SHORT);
        assert_eq!(
            job["status"]["restarts"], 0,
            "kill {kill}: something ran again"
        );
        let job = cluster.wait_job(&bad, "Failed", Duration::from_secs(60));
        assert_eq!(job["status"]["failed"], 1);
        let task = &cluster.tasks(&bad)[0];
        assert_eq!(task["status"]["exitCode"], code, "{}", task["status"]);
        assert_eq!(task["status"]["phase"], "Failed");

        let mut lines: Vec<String> = read_lines(&runs);
        lines.sort();
        let expected: Vec<String> = (0..SHORT).map(|i| format!("{i} 0")).collect();
        assert_eq!(lines, expected, "kill {kill}: each task runs once");
        assert_eq!(read_lines(&runs.with_extension("bad")), ["0 0"]);
        ended_while_away += cluster
            .tasks(&good)
            .iter()
            .chain(cluster.tasks(&bad).iter())
            .filter_map(|t| parse_seconds(&cluster, &t["status"]["finishedTime"]))
            .filter(|at| *at >= away_from && *at <= away_until + 1.0)
            .count();

        assert_eq!(
            pids(&cluster.tasks("steady")),
            steady,
            "kill {kill}: the steady tasks"
        );
        let now: Vec<Option<u64>> = steady.values().map(|pid| start_time(*pid)).collect();
        assert_eq!(now, started, "kill {kill}: the same processes");
    }
    assert!(
        ended_while_away > 0,
        "no task ended while the agent was away"
    );
    eprintln!("{kills} kills, {ended_while_away} tasks ended while the agent was away");

    let reports = reports.lock().unwrap();
    assert!(reports.len() >= kills * (SHORT + 1));
    for (task, outcomes) in reports.iter() {
        assert_eq!(
            outcomes.len(),
            1,
            "{task} ended in several ways: {outcomes:?}"
        );
    }
}

fn read_lines(path: &std::path::Path) -> Vec<String> {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .map(String::from)
        .collect()
}

fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

/// RFC 3339 to Unix seconds, by `date`.
fn parse_seconds(_: &Cluster, time: &Value) -> Option<f64> {
    let output = std::process::Command::new("date")
        .args(["-d", time.as_str()?, "+%s.%N"])
        .output()
        .ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

fn pids(tasks: &[Value]) -> BTreeMap<u64, i32> {
    tasks
        .iter()
        .filter(|t| t["status"]["phase"] == "Running")
        .filter_map(|t| {
            Some((
                t["spec"]["index"].as_u64()?,
                t["status"]["pid"].as_i64()? as i32,
            ))
        })
        .collect()
}

/// Outcomes of every task by its uid, as a watch from now on shows them.
fn record_reports(cluster: &Cluster) -> Arc<Mutex<BTreeMap<String, Vec<String>>>> {
    let reports = Arc::new(Mutex::new(BTreeMap::<String, Vec<String>>::new()));
    let watch = cluster
        .http()
        .watch("/apis/rota.dev/v1/tasks?watch=true&timeoutSeconds=3600")
        .unwrap();
    let seen = reports.clone();
    // Ends with the server.
    std::thread::spawn(move || {
        for event in watch {
            let task = &event["object"];
            let phase = task["status"]["phase"].as_str().unwrap_or("");
            if matches!(phase, "Succeeded" | "Failed" | "Lost") {
                let outcome = format!(
                    "{phase} {} {}",
                    task["status"]["exitCode"], task["status"]["finishedTime"]
                );
                let mut seen = seen.lock().unwrap();
                let outcomes = seen
                    .entry(task["metadata"]["uid"].as_str().unwrap_or("").to_string())
                    .or_default();
                if outcomes.last() != Some(&outcome) {
                    outcomes.push(outcome);
                }
            }
        }
    });
    reports
}

#[test]
fn a_stopped_task_gets_its_signal_and_then_its_end() {
    let cluster = Cluster::one_node();
    let file = cluster.scratch().join("said");
    let script = format!(
        "trap 'echo asked >> {0}; sleep 100 & wait' TERM; echo ready >> {0}; while :; do sleep 0.05; done",
        file.display()
    );
    cluster.create_job(
        "stubborn",
        json!({"type": "Service", "template": {"spec": {
            "command": ["sh", "-c", script], "terminationGracePeriodSeconds": 1,
        }}}),
    );
    eventually("it runs", || {
        check(read_lines(&file) == ["ready"], || {
            format!("{:?}", read_lines(&file))
        })
    });
    let pid = eventually("its pid is known", || {
        pids(&cluster.tasks("stubborn"))
            .get(&0)
            .copied()
            .ok_or_else(|| "not yet".into())
    });
    cluster
        .http()
        .delete("/apis/rota.dev/v1/namespaces/default/jobs/stubborn")
        .ok();
    eventually("it is gone with its children", || {
        check(!alive(pid) && cluster.tasks("stubborn").is_empty(), || {
            format!("{pid} {:?}", cluster.tasks("stubborn"))
        })
    });
    assert!(read_lines(&file).contains(&"asked".to_string()));
    let left = crate::harness::process::mentioning(&file.to_string_lossy());
    assert!(left.is_empty(), "{left:?} are left");
}

#[test]
fn a_command_that_does_not_exist_fails_with_the_reason() {
    let cluster = Cluster::one_node();
    cluster.create_job(
        "nowhere",
        json!({"backoffLimit": 0, "template": {"spec": {"command": ["/no/such/program"]}}}),
    );
    let job = cluster.wait_job("nowhere", "Failed", Duration::from_secs(60));
    assert_eq!(
        condition(&job, "Stalled").as_deref(),
        Some("True"),
        "{}",
        job["status"]
    );
    let task = &cluster.tasks("nowhere")[0];
    assert_eq!(task["status"]["phase"], "Failed");
    assert_eq!(
        task["status"]["reason"], "CommandNotFound",
        "{}",
        task["status"]
    );
    let message = task["status"]["message"].as_str().unwrap();
    assert!(message.contains("/no/such/program"), "{message}");
}
