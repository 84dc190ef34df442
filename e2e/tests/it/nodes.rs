//! A node that dies, and a node that is paused and comes back. Each task writes down when it ran;
//! with WaitForFence no two attempts of one index ever ran at the same time, and all work completes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::harness::cluster::{Options, condition, items};
use crate::harness::process::{Background, freeze, mentioning, signal};
use crate::harness::wait::check;
use crate::harness::{Cluster, eventually, eventually_for, rota_bin};

/// Loss takes 15 s by default; the rest is for a busy machine.
const LOSS_LIMIT: Duration = Duration::from_secs(60);
/// Tasks of each Job: enough that a spreading queue puts some on each of two nodes.
const TASKS: usize = 4;

/// An agent that joined by token and that nobody restarts.
struct FarNode {
    dir: PathBuf,
    _agent: Background,
}

impl FarNode {
    fn join(cluster: &Cluster) -> FarNode {
        let dir = cluster.data_dir().join("far");
        let agent = cluster.join("far", &["--resources", "cpu=1,memory=1Gi"]);
        FarNode { dir, _agent: agent }
    }

    /// Agent, supervisor and tasks.
    fn processes(&self) -> Vec<i32> {
        mentioning(&self.dir.to_string_lossy())
    }
}

/// Two Jobs that differ in what happens when a node is lost, spread over both nodes and running.
struct Scene {
    cluster: Cluster,
    far: FarNode,
    dir: PathBuf,
}

/// Indexes of a Job that run on the far node.
fn on_far(cluster: &Cluster, job: &str) -> Vec<u64> {
    cluster
        .tasks(job)
        .iter()
        .filter(|t| t["spec"]["nodeName"] == "far" && t["spec"]["attempt"] == 0)
        .map(|t| t["spec"]["index"].as_u64().unwrap())
        .collect()
}

impl Scene {
    fn set() -> Scene {
        let cluster = Cluster::start(Options::default());
        let far = FarNode::join(&cluster);
        let dir = cluster.scratch();
        cluster
            .http()
            .post(
                "/apis/rota.dev/v1/queues",
                &json!({"apiVersion": "rota.dev/v1", "kind": "Queue", "metadata": {"name": "wide"}, "spec": {"placement": "Spread"}}),
            )
            .ok();
        for (job, on_lost) in [("fenced", "WaitForFence"), ("rerun", "Rerun")] {
            // Writes down the time of its life, a line every 50 ms, until the file `go` is there.
            let script = format!(
                "while [ ! -e {dir}/go ]; do read -r up _ < /proc/uptime; echo $ROTA_INDEX $ROTA_ATTEMPT $up >> {dir}/{job}; sleep 0.05; done",
                dir = dir.display()
            );
            cluster.create_job(
                job,
                json!({
                    "queue": "wide", "completions": TASKS, "onLost": on_lost,
                    "template": {"spec": {
                        "command": ["sh", "-c", script],
                        "terminationGracePeriodSeconds": 1,
                        "resources": {"requests": {"cpu": "50m", "memory": "16Mi"}},
                    }},
                }),
            );
        }
        let scene = Scene { cluster, far, dir };
        eventually("all tasks run, on both nodes", || {
            for job in ["fenced", "rerun"] {
                let tasks = scene.cluster.tasks(job);
                let running = tasks
                    .iter()
                    .filter(|t| t["status"]["phase"] == "Running")
                    .count();
                let far = on_far(&scene.cluster, job).len();
                check(running == TASKS && far > 0 && far < TASKS, || {
                    format!("{job}: {running} run, {far} of them on the far node")
                })?;
            }
            Ok(())
        });
        scene
    }

    /// Waits until the node is declared lost.
    fn wait_lost(&self) {
        let mut http = self.cluster.http();
        eventually_for(LOSS_LIMIT, "the far node is lost", || {
            let node = http.get("/api/v1/nodes/far").ok();
            let lost = node["spec"]["taints"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|t| t["key"] == "rota.dev/lost");
            check(
                lost && condition(&node, "Ready").as_deref() != Some("True"),
                || node["status"]["conditions"].to_string(),
            )
        });
    }

    /// Waits until these indexes run in a second attempt elsewhere.
    fn wait_replaced(&self, job: &str, indexes: &[u64]) {
        eventually_for(LOSS_LIMIT, &format!("{job} runs elsewhere"), || {
            let tasks = self.cluster.tasks(job);
            let replaced = indexes
                .iter()
                .filter(|i| {
                    tasks.iter().any(|t| {
                        t["spec"]["index"] == **i
                            && t["spec"]["attempt"] == 1
                            && t["status"]["phase"] == "Running"
                            && t["spec"]["nodeName"] != "far"
                    })
                })
                .count();
            check(replaced == indexes.len(), || {
                format!("{replaced} of {indexes:?}")
            })
        });
    }

    fn finish(&self, job: &str) {
        std::fs::write(self.dir.join("go"), "").unwrap();
        let job = self.cluster.wait_job(job, "Complete", LOSS_LIMIT);
        assert_eq!(job["status"]["succeeded"], TASKS);
        assert_eq!(job["status"]["failed"], 0);
    }
}

/// Life of every attempt of every index, by what the tasks wrote.
fn lives(path: &Path) -> BTreeMap<(u64, u64), (f64, f64)> {
    let mut lives = BTreeMap::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let mut words = line.split(' ');
        let mut next = || words.next().unwrap_or_else(|| panic!("line {line:?}"));
        let key = (next().parse().unwrap(), next().parse().unwrap());
        let at: f64 = next().parse().unwrap();
        let life = lives.entry(key).or_insert((at, at));
        life.0 = f64::min(life.0, at);
        life.1 = f64::max(life.1, at);
    }
    lives
}

/// Fails if two attempts of one index ran at the same time.
fn never_overlap(path: &Path) {
    let lives = lives(path);
    for ((index, attempt), (begin, end)) in &lives {
        for ((_, other), (from, until)) in lives.range((*index, attempt + 1)..(index + 1, 0)) {
            assert!(
                end < from || until < begin,
                "index {index}: attempt {attempt} ran {begin}-{end}, attempt {other} ran {from}-{until}"
            );
        }
    }
}

#[test]
fn a_dead_nodes_work_runs_elsewhere() {
    let scene = Scene::set();
    let (fenced, rerun) = (
        on_far(&scene.cluster, "fenced"),
        on_far(&scene.cluster, "rerun"),
    );
    // All at once, as when the power goes: stop first, so that nothing reacts to the other's end.
    freeze(&scene.far.processes());
    for pid in scene.far.processes() {
        signal(pid, Signal::KILL);
    }
    scene.wait_lost();
    scene.wait_replaced("rerun", &rerun);
    scene.wait_replaced("fenced", &fenced);
    scene.finish("fenced");
    scene.finish("rerun");
    never_overlap(&scene.dir.join("fenced"));
    let lives = lives(&scene.dir.join("fenced"));
    for index in fenced {
        assert!(
            lives.contains_key(&(index, 1)),
            "index {index} did not run again"
        );
    }
}

#[test]
fn a_paused_nodes_fenced_work_waits_for_it() {
    let scene = Scene::set();
    let (fenced, rerun) = (
        on_far(&scene.cluster, "fenced"),
        on_far(&scene.cluster, "rerun"),
    );
    let processes = scene.far.processes();
    freeze(&processes);
    scene.wait_lost();
    scene.wait_replaced("rerun", &rerun);
    // The paused tasks can still come back to life, so nothing may have replaced the fenced ones.
    let second: Vec<_> = scene
        .cluster
        .tasks("fenced")
        .into_iter()
        .filter(|t| t["spec"]["attempt"] != 0)
        .collect();
    assert!(
        second.is_empty(),
        "replaced while the node was paused: {second:?}"
    );
    // The tasks first: for a moment they run with nobody to stop them.
    let (mut tasks, mut others) = (Vec::new(), Vec::new());
    for pid in processes {
        let line = crate::harness::process::command_line(pid);
        if line.contains(" agent ") || line.contains("supervisor") {
            others.push(pid);
        } else {
            tasks.push(pid);
        }
    }
    for pid in tasks.into_iter().chain(others) {
        signal(pid, Signal::CONT);
    }
    scene.wait_replaced_anywhere("fenced", &fenced);
    scene.finish("fenced");
    scene.finish("rerun");
    never_overlap(&scene.dir.join("fenced"));
    let lives = lives(&scene.dir.join("fenced"));
    for index in fenced {
        assert!(
            lives.contains_key(&(index, 1)),
            "index {index} did not run again"
        );
    }
    let mut http = scene.cluster.http();
    eventually("the node that came back is ready", || {
        let node = http.get("/api/v1/nodes/far").ok();
        check(condition(&node, "Ready").as_deref() == Some("True"), || {
            node["status"]["conditions"].to_string()
        })
    });
}

impl Scene {
    /// Waits until these indexes run in a second attempt, perhaps on the node that came back.
    fn wait_replaced_anywhere(&self, job: &str, indexes: &[u64]) {
        eventually_for(LOSS_LIMIT, &format!("{job} runs again"), || {
            let tasks = self.cluster.tasks(job);
            let again = indexes
                .iter()
                .filter(|i| {
                    tasks.iter().any(|t| {
                        t["spec"]["index"] == **i
                            && t["spec"]["attempt"] == 1
                            && t["status"]["phase"] == "Running"
                    })
                })
                .count();
            check(again == indexes.len(), || format!("{again} of {indexes:?}"))
        });
    }
}

#[test]
fn a_token_is_needed_to_join() {
    let cluster = Cluster::start(Options {
        nodes: 0,
        ..Options::default()
    });
    let good = cluster.rota(&["token", "create"]).stdout.trim().to_string();
    let parts: Vec<&str> = good.split('.').collect();
    assert_eq!(parts.len(), 4, "a token has four parts");
    let wrong_secret = format!(
        "{}.{}.{}.{}",
        parts[0],
        parts[1],
        parts[2],
        "0".repeat(parts[3].len())
    );
    let wrong_ca = format!("{}.{}.{}.{}", parts[0], "0".repeat(64), parts[2], parts[3]);
    for bad in [
        wrong_secret.as_str(),
        wrong_ca.as_str(),
        "rota1.a.b.c",
        "nonsense",
    ] {
        let dir = cluster.data_dir().join("refused");
        let mut agent = Background::start(
            Command::new(rota_bin())
                .arg("agent")
                .args(["--server", &format!("https://127.0.0.1:{}", cluster.port())])
                .args(["--token", bad, "--name", "intruder"])
                .arg("--data-dir")
                .arg(&dir),
            &cluster.scratch().join("intruder.log"),
        );
        let status = eventually(&format!("the agent with the token {bad} gives up"), || {
            agent.ended().ok_or_else(|| "it runs".to_string())
        });
        assert!(!status.success());
    }
    let nodes = cluster.http().get("/api/v1/nodes").ok();
    assert!(items(&nodes).is_empty(), "{nodes}");
}
