//! What people do about work that waits, on one cluster with nodes of a known size: ask why, plan a
//! change, apply it, look at the queues, start gangs, record it all and play it again.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::cluster::{Options, items};
use crate::harness::process::Background;
use crate::harness::wait::check;
use crate::harness::{Cluster, Output, eventually};

/// CPUs of each of the two nodes. They are what the agents offer, not what the machine has.
const CPUS: u64 = 4;
/// Generous for a debug build on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn why_plan_queue_gang_and_record() {
    let cluster = Cluster::start(Options {
        nodes: 0,
        ..Options::default()
    });
    let resources = format!("cpu={CPUS},memory=4Gi");
    let _agents = ["east", "west"].map(|name| cluster.join(name, &["--resources", &resources]));

    a_job_that_asks_too_much(&cluster);
    the_first_tasks_of_many(&cluster);
    clear(&cluster, &["filler", "wants", "many"]);
    a_guarantee_is_given_back(&cluster);
    clear(&cluster, &["greedy", "owed"]);
    a_gang_of_two_jobs(&cluster);
    clear(&cluster, &["filler", "left", "right"]);
    a_recording_is_played_again(&cluster);
}

/// A Job whose tasks sleep; `cpu` is what each asks for.
fn sleeper(name: &str, cpu: &str, spec: Value) -> Value {
    let mut job = json!({
        "apiVersion": "rota.dev/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"spec": {
            "command": ["sleep", "600"],
            "terminationGracePeriodSeconds": 1,
            "resources": {"requests": {"cpu": cpu, "memory": "16Mi"}},
        }}},
    });
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    job
}

#[track_caller]
fn ok(output: Output) -> String {
    assert!(output.status.success(), "{}", output.text());
    output.stdout
}

#[track_caller]
fn apply(cluster: &Cluster, object: &Value) {
    ok(cluster.rota_stdin(&["apply", "-f", "-"], &object.to_string()));
}

/// What `rota plan -f -` says: its exit code, and the answer about the one Job.
#[track_caller]
fn plan(cluster: &Cluster, object: &Value) -> (i32, Value) {
    let output = cluster.rota_stdin(&["plan", "-f", "-", "-o", "json"], &object.to_string());
    let answer = serde_json::from_str(&output.stdout);
    let answer: Value = answer.unwrap_or_else(|e| panic!("{e}: {}", output.text()));
    (output.status.code().unwrap(), answer)
}

/// Tasks by node, as a plan says.
fn planned(answer: &Value) -> BTreeMap<String, u64> {
    let placements = answer["jobs"][0]["placements"].as_array().unwrap();
    let each = placements.iter().map(|p| {
        let node = p["node"].as_str().unwrap().to_string();
        (node, p["tasks"].as_u64().unwrap())
    });
    each.collect()
}

/// Running tasks by node.
fn running(cluster: &Cluster, job: &str) -> BTreeMap<String, u64> {
    let mut nodes = BTreeMap::new();
    for task in cluster.tasks(job) {
        if task["status"]["phase"] == "Running" {
            let node = task["spec"]["nodeName"].as_str().unwrap().to_string();
            *nodes.entry(node).or_default() += 1;
        }
    }
    nodes
}

#[track_caller]
fn wait_running(cluster: &Cluster, job: &str, wanted: u64) {
    eventually(&format!("{wanted} tasks of {job} run"), || {
        let nodes = running(cluster, job);
        check(nodes.values().sum::<u64>() == wanted, || {
            format!("{nodes:?} {}", cluster.job(job)["status"])
        })
    });
}

/// Deletes Jobs, and waits until what they held is free.
fn clear(cluster: &Cluster, jobs: &[&str]) {
    for job in jobs {
        ok(cluster.rota(&["delete", "job", job]));
        eventually(&format!("the tasks of {job} are gone"), || {
            let left = cluster.tasks(job).len();
            check(left == 0, || format!("{left} tasks"))
        });
    }
}

fn a_job_that_asks_too_much(cluster: &Cluster) {
    apply(
        cluster,
        &sleeper("filler", "3", json!({"type": "Service", "replicas": 2})),
    );
    wait_running(cluster, "filler", 2);
    // A Service, since the template of a batch Job cannot be changed.
    let service = json!({"type": "Service"});
    let wants = sleeper("wants", "2", service.clone());
    let (code, answer) = plan(cluster, &wants);
    assert_eq!(code, 2, "{answer}");
    assert_eq!(answer["jobs"][0]["placed"], 0, "{answer}");

    apply(cluster, &wants);
    eventually("why names the reason, who holds it, and the change", || {
        let said = ok(cluster.rota(&["why", "wants"]));
        let parts = [
            "job.rota.dev/wants waits",
            "InsufficientResource: a task needs 2 of cpu",
            "2 nodes have less free",
            "Job default/filler (2 tasks",
            "Smallest change that helps: lower cpu from 2 to 1",
        ];
        match parts.iter().find(|part| !said.contains(**part)) {
            None => Ok(()),
            Some(part) => Err(format!("{part:?} is missing in\n{said}")),
        }
    });
    let answer = ok(cluster.rota(&["why", "job/wants", "-o", "json"]));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(
        (&answer["kind"], &answer["waiting"]),
        (&json!("Why"), &json!(1))
    );

    let fits = sleeper("wants", "1", service);
    let (code, answer) = plan(cluster, &fits);
    assert_eq!(code, 0, "{answer}");
    let nodes = planned(&answer);
    apply(cluster, &fits);
    wait_running(cluster, "wants", 1);
    assert_eq!(running(cluster, "wants"), nodes, "as planned");
    let said = ok(cluster.rota(&["why", "wants"]));
    assert!(said.contains("does not wait"), "{said}");
}

/// One CPU is free now; four tasks want half of one each.
fn the_first_tasks_of_many(cluster: &Cluster) {
    let many = sleeper("many", "500m", json!({"completions": 4}));
    let (code, answer) = plan(cluster, &many);
    assert_eq!(code, 2, "{answer}");
    let job = &answer["jobs"][0];
    assert_eq!(
        (job["placed"].as_u64(), job["waiting"].as_u64()),
        (Some(2), Some(2))
    );
    let table = cluster.rota_stdin(&["plan", "-f", "-"], &many.to_string());
    for part in [
        "JOB ",
        "many   4       2        2 ",
        "2 tasks of many wait:\n  - InsufficientResource",
    ] {
        assert!(
            table.stdout.contains(part),
            "{part:?} is missing in\n{}",
            table.text()
        );
    }
    apply(cluster, &many);
    wait_running(cluster, "many", 2);
    assert_eq!(running(cluster, "many"), planned(&answer), "as planned");
    eventually("its status says how many wait", || {
        let status = &cluster.job("many")["status"];
        check(status["waiting"] == 2, || status.to_string())
    });
}

/// Cells of a queue's row of `rota queue`, by header.
fn queue_row(cluster: &Cluster, name: &str) -> BTreeMap<String, String> {
    let csv = ok(cluster.rota(&["queue", "-o", "csv"]));
    let mut rows = csv.lines().map(|row| {
        // Only lists of resources hold commas, and those are quoted.
        let mut quoted = false;
        let cell = move |c: char| {
            quoted ^= c == '"';
            c == ',' && !quoted
        };
        row.split(cell)
            .map(|c| c.trim_matches('"').to_string())
            .collect::<Vec<_>>()
    });
    let header = rows.next().unwrap();
    let row = rows.find(|row| row[0].trim() == name);
    header.into_iter().zip(row.unwrap_or_default()).collect()
}

fn a_guarantee_is_given_back(cluster: &Cluster) {
    for name in ["mine", "yours"] {
        apply(
            cluster,
            &json!({"apiVersion": "rota.dev/v1", "kind": "Queue", "metadata": {"name": name},
                "spec": {"guarantee": {"cpu": CPUS}}}),
        );
    }
    let tasks = |name: &str, queue: &str, n: u64| {
        sleeper(name, "1", json!({"queue": queue, "completions": n}))
    };
    apply(cluster, &tasks("greedy", "mine", 2 * CPUS));
    wait_running(cluster, "greedy", 2 * CPUS);
    eventually("the first queue borrows what the second is owed", || {
        let (mine, yours) = (queue_row(cluster, "mine"), queue_row(cluster, "yours"));
        let borrowed = mine["BORROWED"].starts_with("4 cpu");
        check(
            borrowed && yours["LENT"].starts_with("4 cpu") && mine["SHARE"] == "100%",
            || format!("{mine:?}\n{yours:?}"),
        )
    });

    let owed = tasks("owed", "yours", CPUS);
    let (code, answer) = plan(cluster, &owed);
    assert_eq!(code, 0, "{answer}");
    let evictions = answer["evictions"].as_array().unwrap();
    assert_eq!(evictions.len() as u64, CPUS, "{answer}");
    assert!(
        evictions.iter().all(|e| e["for"]["name"] == "owed"),
        "{answer}"
    );
    let said = ok(cluster.rota_stdin(&["plan", "-f", "-"], &owed.to_string()));
    assert!(
        said.contains("4 tasks would be evicted for owed:"),
        "{said}"
    );

    apply(cluster, &owed);
    wait_running(cluster, "owed", CPUS);
    wait_running(cluster, "greedy", CPUS);
    eventually("each queue holds its own part", || {
        let (mine, yours) = (queue_row(cluster, "mine"), queue_row(cluster, "yours"));
        let level = [&mine, &yours]
            .iter()
            .all(|q| q["USED"].starts_with("4 cpu"));
        let wasted = mine["WASTED"] != "-" && yours["WASTED"] == "-";
        let free = !yours["LENT"].contains("cpu") && mine["WAITING"] == "4";
        check(level && wasted && free, || format!("{mine:?}\n{yours:?}"))
    });
    let table = ok(cluster.kubectl(&["get", "queues"]));
    let header: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        header,
        [
            "NAME", "PARENT", "WEIGHT", "RUNNING", "WAITING", "SHARE", "AGE"
        ]
    );
    for table in [
        ok(cluster.kubectl(&["get", "queues", "-o", "wide"])),
        ok(cluster.rota(&["get", "queues", "-o", "wide"])),
    ] {
        assert!(table.contains("ORDER") && table.contains("FAIR"), "{table}");
    }
}

/// Each of the two Jobs needs a node of its own. With one node free, neither starts.
fn a_gang_of_two_jobs(cluster: &Cluster) {
    let filler = |replicas: u64| {
        sleeper(
            "filler",
            "4",
            json!({"type": "Service", "replicas": replicas}),
        )
    };
    apply(cluster, &filler(2));
    wait_running(cluster, "filler", 2);
    for name in ["left", "right"] {
        apply(
            cluster,
            &sleeper(name, "3", json!({"gang": {"name": "pair"}})),
        );
    }
    apply(cluster, &filler(1));
    eventually("one node is free, and the gang waits for the other", || {
        wait_gone(cluster, "filler", 1)?;
        let said = ok(cluster.rota(&["why", "left"])) + &ok(cluster.rota(&["why", "right"]));
        check(said.contains("Gang: "), || said)
    });
    for name in ["left", "right"] {
        assert_eq!(cluster.tasks(name).len(), 0, "{name} started alone");
    }
    let described = ok(cluster.rota(&["describe", "job", "left"]));
    assert!(
        described.contains("with the other Jobs of this gang"),
        "{described}"
    );
    apply(cluster, &filler(0));
    wait_running(cluster, "left", 1);
    wait_running(cluster, "right", 1);
}

fn wait_gone(cluster: &Cluster, job: &str, left: usize) -> Result<(), String> {
    let tasks = cluster.tasks(job).len();
    check(tasks == left, || format!("{tasks} tasks of {job}"))
}

fn a_recording_is_played_again(cluster: &Cluster) {
    let file = cluster.scratch().join("log.jsonl");
    let path = file.to_str().unwrap();
    let log = cluster.scratch().join("record.log");
    let mut recorder = Background::start(
        &mut cluster.rota_command(&["simulate", "record", path]),
        &log,
    );
    let lines = |kind: &str| {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.matches(&format!("\"kind\":\"{kind}\"")).count()
    };
    eventually("the recording has begun", || {
        check(lines("node") == 2, || {
            std::fs::read_to_string(&log).unwrap_or_default()
        })
    });
    let jobs = ["one", "two", "three"];
    for (n, name) in jobs.iter().enumerate() {
        let n = (n + 1).to_string();
        let words = [
            "run",
            "--name",
            name,
            "--cpu",
            "1",
            "--replicas",
            &n,
            "--expected",
            "5",
        ];
        let mut words = words.to_vec();
        if *name == "two" {
            words.push("--gang");
        }
        ok(cluster.rota(&[&words[..], &["--wait", "--", "sleep", "0.2"]].concat()));
    }
    eventually("the end of every task is in the log", || {
        check(lines("end") == 1 + 2 + 3, || {
            std::fs::read_to_string(&file).unwrap()
        })
    });
    assert!(recorder.terminate(LIMIT).is_some_and(|s| s.success()));

    let answer = cluster.rota(&[
        "simulate",
        "--trace",
        &format!("events:{path}"),
        "-o",
        "json",
    ]);
    let answer: Value = serde_json::from_str(&ok(answer)).unwrap();
    let completed = items(&cluster.http().get("/apis/rota.dev/v1/jobs").ok())
        .iter()
        .filter(|job| job["status"]["phase"] == "Succeeded")
        .count();
    assert_eq!(completed, jobs.len());
    assert_eq!(answer["completed"], completed, "{answer}");
    assert_eq!(answer["rejected"], 0, "{answer}");
    // Each task really ran 0.2 s and more, and nothing stood in its way.
    let makespan = answer["makespan_s"].as_f64().unwrap();
    assert!((0.2..LIMIT.as_secs_f64()).contains(&makespan), "{answer}");
}
