//! Every file of manifests/examples, applied with kubectl and with rota, on each store: get,
//! describe, wait, watch, scale, delete; the end state and the output are what the file promises.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::cluster::{condition, items};
use crate::harness::wait::check;
use crate::harness::{Cluster, Output, Store, eventually, eventually_for, example};

/// Who applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Client {
    Kubectl,
    Rota,
}

impl Client {
    fn run(self, cluster: &Cluster, args: &[&str]) -> Output {
        match self {
            Client::Kubectl => cluster.kubectl(args),
            Client::Rota => cluster.rota(args),
        }
    }

    #[track_caller]
    fn ok(self, cluster: &Cluster, args: &[&str]) -> String {
        let output = self.run(cluster, args);
        assert!(
            output.status.success(),
            "{self:?} {args:?}:\n{}",
            output.text()
        );
        output.stdout
    }

    #[track_caller]
    fn apply(self, cluster: &Cluster, manifest: &str) -> String {
        let args = ["apply", "-f", "-"];
        let output = match self {
            Client::Kubectl => cluster.kubectl_stdin(&args, manifest),
            Client::Rota => cluster.rota_stdin(&args, manifest),
        };
        assert!(
            output.status.success(),
            "{self:?} apply:\n{}",
            output.text()
        );
        output.stdout
    }
}

#[test]
fn hello_on_the_embedded_store() {
    let cluster = Cluster::two_nodes(Store::Embedded).unwrap();
    hello(&cluster, Client::Kubectl);
    hello(&cluster, Client::Rota);
    queue(&cluster, Client::Kubectl);
    queue(&cluster, Client::Rota);
}

#[test]
fn hello_on_etcd() {
    let Some(cluster) = Cluster::two_nodes(Store::Etcd) else {
        return;
    };
    hello(&cluster, Client::Kubectl);
    hello(&cluster, Client::Rota);
    queue(&cluster, Client::Kubectl);
    queue(&cluster, Client::Rota);
}

#[test]
fn service_on_the_embedded_store() {
    let cluster = Cluster::two_nodes(Store::Embedded).unwrap();
    service(&cluster, Client::Kubectl);
    service(&cluster, Client::Rota);
}

#[test]
fn service_on_etcd() {
    let Some(cluster) = Cluster::two_nodes(Store::Etcd) else {
        return;
    };
    service(&cluster, Client::Kubectl);
    service(&cluster, Client::Rota);
}

#[test]
fn placement_on_the_embedded_store() {
    let cluster = Cluster::two_nodes(Store::Embedded).unwrap();
    gang(&cluster, Client::Kubectl);
    queues(&cluster, Client::Rota);
    affinity(&cluster, Client::Rota);
}

fn hello(cluster: &Cluster, client: Client) {
    let said = client.apply(cluster, &example("hello.yaml"));
    assert!(said.contains("hello") && said.contains("created"), "{said}");
    // Applying what is there changes nothing.
    let version = cluster.job("hello")["metadata"]["generation"].clone();
    client.apply(cluster, &example("hello.yaml"));
    assert_eq!(cluster.job("hello")["metadata"]["generation"], version);

    client.ok(
        cluster,
        &[
            "wait",
            "--for=condition=Complete",
            "job/hello",
            "--timeout=60s",
        ],
    );
    let job = cluster.job("hello");
    assert_eq!(job["status"]["phase"], "Succeeded", "{}", job["status"]);
    assert_eq!(job["status"]["succeeded"], 1);
    assert_eq!(job["status"]["succeededIndexes"], "0");
    assert_eq!(
        job["status"]["observedGeneration"],
        job["metadata"]["generation"]
    );

    let table = client.ok(cluster, &["get", "jobs"]);
    assert!(
        table.contains("PHASE") && table.contains("Succeeded"),
        "{table}"
    );
    let name = client.ok(cluster, &["get", "job", "hello", "-o", "name"]);
    assert_eq!(name.trim(), "job.rota.dev/hello");
    let yaml = client.ok(cluster, &["get", "job", "hello", "-o", "yaml"]);
    assert!(
        yaml.contains("kind: Job") && yaml.contains("phase: Succeeded"),
        "{yaml}"
    );
    let described = client.ok(cluster, &["describe", "job", "hello"]);
    assert!(described.contains("hello"), "{described}");

    let output = cluster.rota(&["logs", "job/hello"]);
    assert!(output.status.success(), "{}", output.text());
    let expected: Vec<String> = (1..=2)
        .map(|n| format!("Hello from task 0 on node {}", node_name(cluster, n)))
        .collect();
    assert!(
        expected.iter().any(|e| output.stdout.contains(e)),
        "{:?} in {}",
        expected,
        output.stdout
    );
    delete(cluster, client, "job", "hello");
}

fn node_name(cluster: &Cluster, n: usize) -> String {
    let nodes = cluster.http().get("/api/v1/nodes").ok();
    items(&nodes)[n - 1]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_string()
}

/// Deletes, and waits until the object and all its tasks are gone.
fn delete(cluster: &Cluster, client: Client, kind: &str, name: &str) {
    let said = client.ok(cluster, &["delete", kind, name]);
    assert!(said.contains("deleted"), "{said}");
    let gone = client.run(cluster, &["get", kind, name]);
    assert!(!gone.status.success());
    assert!(
        gone.stderr.contains("NotFound") || gone.stderr.contains("not found"),
        "{}",
        gone.stderr
    );
    if kind == "job" {
        eventually("tasks, ledger and revisions are gone", || {
            let mut http = cluster.http();
            for plural in ["tasks", "jobledgers", "jobrevisions"] {
                let list = http
                    .get(&format!("/apis/rota.dev/v1/namespaces/default/{plural}"))
                    .ok();
                let left = items(&list)
                    .iter()
                    .filter(|i| {
                        i["spec"]["jobName"] == name
                            || i["metadata"]["labels"]["rota.dev/job"] == name
                    })
                    .count();
                check(left == 0, || format!("{left} {plural}"))?;
            }
            Ok(())
        });
    }
}

fn queue(cluster: &Cluster, client: Client) {
    client.apply(cluster, &example("queue.yaml"));
    let table = client.ok(cluster, &["get", "queues"]);
    assert!(table.contains("narrow"), "{table}");
    // While it runs, no more than two tasks hold a node, and the reason to wait can be read.
    let mut reason_seen = false;
    eventually("all turns are done", || {
        let tasks = cluster.tasks("turns");
        let held = tasks
            .iter()
            .filter(|t| {
                !matches!(
                    t["status"]["phase"].as_str(),
                    Some("Succeeded" | "Failed" | "Lost")
                )
            })
            .count();
        assert!(held <= 2, "{held} tasks hold a place in a queue of two");
        let job = cluster.job("turns");
        reason_seen |= job["status"]["waitingFor"]["reasons"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|r| r["reason"] == "QueueLimit");
        check(
            condition(&job, "Complete").as_deref() == Some("True"),
            || job["status"].to_string(),
        )
    });
    assert!(
        reason_seen,
        "the Job never said that it waited for its queue"
    );
    assert_eq!(cluster.job("turns")["status"]["succeeded"], 6);
    // By the recorded times, too, at most two ran at once.
    let times: Vec<(String, String)> = cluster
        .tasks("turns")
        .iter()
        .map(|t| {
            (
                text(&t["status"]["startedTime"]),
                text(&t["status"]["finishedTime"]),
            )
        })
        .collect();
    assert_eq!(times.len(), 6, "succeeded tasks are kept for a minute");
    delete(cluster, client, "job", "turns");
    delete(cluster, client, "queue", "narrow");
}

fn gang(cluster: &Cluster, client: Client) {
    client.apply(cluster, &example("gang.yaml"));
    client.ok(
        cluster,
        &[
            "wait",
            "--for=condition=Complete",
            "job/ring",
            "--timeout=60s",
        ],
    );
    let tasks = cluster.tasks("ring");
    assert_eq!(tasks.len(), 3, "succeeded tasks are kept for a minute");
    let all = |field: &str| {
        tasks
            .iter()
            .map(|t| text(&t["status"][field]))
            .collect::<Vec<_>>()
    };
    // All of them ran at one time.
    let (last_start, first_end) = (all("startedTime"), all("finishedTime"));
    assert!(
        last_start.iter().max() < first_end.iter().min(),
        "{last_start:?} {first_end:?}"
    );
    delete(cluster, client, "job", "ring");
}

fn queues(cluster: &Cluster, client: Client) {
    client.apply(cluster, &example("queues.yaml"));
    let shown = cluster.rota(&["queue", "org"]);
    assert!(shown.status.success(), "{}", shown.text());
    let rows: Vec<&str> = shown
        .stdout
        .lines()
        .map(|row| row.split("   ").next().unwrap())
        .collect();
    assert_eq!(
        rows,
        ["QUEUE", "org", "  ads", "  research"],
        "{}",
        shown.stdout
    );
    eventually("both teams are done, within the limit above them", || {
        let held = |job: &str| {
            let tasks = cluster.tasks(job);
            let live = tasks.iter().filter(|t| {
                let phase = t["status"]["phase"].as_str();
                !matches!(phase, Some("Succeeded" | "Failed" | "Lost"))
            });
            live.count()
        };
        let (study, reports) = (held("study"), held("reports"));
        assert!(
            study + reports <= 6,
            "{study} and {reports} tasks of 100m at a limit of 600m"
        );
        for name in ["study", "reports"] {
            let job = cluster.job(name);
            check(
                condition(&job, "Complete").as_deref() == Some("True"),
                || job["status"].to_string(),
            )?;
        }
        Ok(())
    });
    for job in ["study", "reports"] {
        delete(cluster, client, "job", job);
    }
    for queue in ["ads", "research", "org"] {
        delete(cluster, client, "queue", queue);
    }
}

fn affinity(cluster: &Cluster, client: Client) {
    client.apply(cluster, &example("affinity.yaml"));
    for job in ["store", "front", "cache"] {
        cluster.wait_job(job, "Ready", Duration::from_secs(60));
    }
    cluster.wait_job("reader", "Complete", Duration::from_secs(60));
    let nodes = |job: &str| {
        let tasks = cluster.tasks(job);
        let mut nodes: Vec<String> = tasks.iter().map(|t| text(&t["spec"]["nodeName"])).collect();
        nodes.sort();
        nodes
    };
    let both = [node_name(cluster, 1), node_name(cluster, 2)];
    let two_each = [0, 0, 1, 1].map(|n| both[n].clone());
    assert_eq!(nodes("store"), both);
    assert_eq!(nodes("front"), two_each);
    let cache = nodes("cache").remove(0);
    assert_eq!(nodes("reader"), [cache.clone(), cache]);
    for job in ["store", "front", "cache", "reader"] {
        delete(cluster, client, "job", job);
    }
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or("").to_string()
}

fn service(cluster: &Cluster, client: Client) {
    client.apply(cluster, &example("service.yaml"));
    client.ok(
        cluster,
        &["wait", "--for=condition=Ready", "job/web", "--timeout=60s"],
    );
    let job = cluster.job("web");
    assert_eq!(job["status"]["ready"], 3, "{}", job["status"]);
    assert_eq!(job["status"]["replicas"], 3);
    let answers = replicas_answer(cluster, 3);
    assert_eq!(answers, ["replica 0", "replica 1", "replica 2"]);
    let tasks = client.ok(cluster, &["get", "tasks", "-l", "rota.dev/job=web,app=web"]);
    assert_eq!(tasks.matches("Running").count(), 3, "{tasks}");

    // A watch that is already open sees the new tasks come.
    let mut watching = match client {
        Client::Kubectl => {
            cluster.kubectl_command("kubectl".as_ref(), &["get", "tasks", "-w", "-o", "name"])
        }
        Client::Rota => cluster.rota_command(&["get", "tasks", "-w", "-o", "name"]),
    };
    let log = cluster.scratch().join(format!("watch-{client:?}"));
    let watcher = crate::harness::process::Background::start(&mut watching, &log);
    eventually("the watch shows the three replicas", || {
        let seen = std::fs::read_to_string(&log).unwrap_or_default();
        check(seen.lines().count() >= 3, || seen)
    });

    client.ok(cluster, &["scale", "job/web", "--replicas=5"]);
    eventually("five replicas are ready", || {
        let job = cluster.job("web");
        check(job["status"]["ready"] == 5, || job["status"].to_string())
    });
    assert_eq!(replicas_answer(cluster, 5).len(), 5);
    let new = cluster
        .tasks("web")
        .iter()
        .find(|t| t["spec"]["index"] == 4)
        .map(|t| text(&t["metadata"]["name"]))
        .unwrap();
    eventually("the watch shows a new replica", || {
        let seen = std::fs::read_to_string(&log).unwrap_or_default();
        check(seen.contains(&new), || seen)
    });
    drop(watcher);

    client.ok(cluster, &["scale", "job/web", "--replicas=1"]);
    eventually("one replica is left", || {
        let job = cluster.job("web");
        let tasks = cluster.tasks("web");
        check(job["status"]["replicas"] == 1 && tasks.len() == 1, || {
            format!("{} tasks, {}", tasks.len(), job["status"])
        })
    });

    // The last replica is asked with SIGTERM and has the time to say so.
    let task = &cluster.tasks("web")[0];
    let pid = task["status"]["pid"].as_i64().unwrap() as i32;
    assert!(crate::harness::process::alive(pid));
    delete(cluster, client, "job", "web");
    eventually_for(Duration::from_secs(10), "its process is gone", || {
        check(!crate::harness::process::alive(pid), || pid.to_string())
    });
}

/// Asks each replica over its own port; what they say they are, sorted.
fn replicas_answer(cluster: &Cluster, wanted: usize) -> Vec<String> {
    eventually("every replica answers on its port", || {
        let tasks = cluster.tasks("web");
        let mut answers = Vec::new();
        for task in &tasks {
            let port = task["status"]["ports"][0]["port"]
                .as_u64()
                .ok_or_else(|| format!("no port in {}", task["status"]))?;
            assert!((20000..32000).contains(&port), "{port}");
            let mut stream =
                TcpStream::connect(("127.0.0.1", port as u16)).map_err(|e| e.to_string())?;
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            write!(stream, "GET / HTTP/1.1\r\n\r\n").map_err(|e| e.to_string())?;
            let mut answer = String::new();
            stream
                .read_to_string(&mut answer)
                .map_err(|e| e.to_string())?;
            let said = answer
                .split("hello from ")
                .nth(1)
                .and_then(|s| s.split(" on ").next())
                .ok_or_else(|| answer.clone())?;
            answers.push(said.to_string());
        }
        answers.sort();
        check(answers.len() == wanted, || format!("{answers:?}"))?;
        Ok(answers)
    })
}
