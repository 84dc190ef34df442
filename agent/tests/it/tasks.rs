use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rota_agent::{AgentConfig, AgentError, OnExit};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::fake::{Fake, TASKS};

pub struct Agent {
    stop: CancellationToken,
    handle: JoinHandle<Result<(), AgentError>>,
}

/// A server, and a directory for agents of one machine.
pub async fn place() -> (Fake, tempfile::TempDir) {
    (Fake::start().await, tempfile::tempdir().unwrap())
}

/// The same with an ordinary agent at work.
async fn scene() -> (Fake, tempfile::TempDir, Agent) {
    let (fake, dir) = place().await;
    let agent = start(&fake, &dir, |_| {});
    (fake, dir, agent)
}

pub fn start(fake: &Fake, dir: &tempfile::TempDir, edit: impl FnOnce(&mut AgentConfig)) -> Agent {
    let mut config = AgentConfig::new(
        [&fake.url],
        "n",
        dir.path().join("node"),
        crate::supervisor(),
    );
    config.control_groups = false;
    edit(&mut config);
    let stop = CancellationToken::new();
    let handle = tokio::spawn(rota_agent::run(config, stop.clone()));
    Agent { stop, handle }
}

impl Agent {
    pub async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(30), self.handle)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
    /// As kill -9 would: nothing is said to anybody.
    async fn vanish(self) {
        self.handle.abort();
        let _ = self.handle.await;
    }
}

pub fn sh(script: &str) -> serde_json::Value {
    json!({"command": ["sh", "-c", script], "restartPolicy": "Never"})
}

#[tokio::test(flavor = "multi_thread")]
async fn registers_and_runs_tasks() {
    let (fake, dir) = place().await;
    fake.add_task("before", sh("exit 0"));
    let agent = start(&fake, &dir, |c| c.pool = Some("p".into()));
    fake.until_phase("before", "Succeeded").await;
    fake.add_task("seven", sh("exit 7"));
    fake.add_task("sig", sh("kill -9 $$$$"));
    fake.add_task(
        "none",
        json!({"command": ["no-such-program"], "restartPolicy": "Never"}),
    );
    let mut secret = sh("true");
    secret["env"] = json!([{"name": "X", "valueFrom": {"type": "ConfigMap", "configMap": {"name": "cm", "key": "k"}}}]);
    fake.put(
        "/api/v1/namespaces/default/configmaps/cm",
        json!({"data": {"other": "x"}}),
    );
    fake.add_task("key", secret);
    fake.add_task_with("big", sh("true"), json!({"requests": {"cpu": "100000"}}), 1);
    fake.add_task_with("old", sh("true"), json!({}), 0);
    let seven = fake.until_phase("seven", "Failed").await;
    assert_eq!(
        (seven["exitCode"].as_i64(), seven["reason"].as_str()),
        (Some(7), Some("Error"))
    );
    let sig = fake.until_phase("sig", "Failed").await;
    assert_eq!(
        (sig["exitCode"].as_i64(), sig["signal"].as_i64()),
        (Some(137), Some(9))
    );
    let none = fake.until_phase("none", "Failed").await;
    assert_eq!(
        (none["exitCode"].as_i64(), none["reason"].as_str()),
        (Some(127), Some("CommandNotFound"))
    );
    assert_eq!(
        fake.until_phase("key", "Failed").await["reason"],
        "ConfigMapKeyNotFound"
    );
    assert_eq!(
        fake.until_phase("big", "Failed").await["reason"],
        "OutOfResource"
    );
    assert_eq!(fake.until_phase("old", "Lost").await["reason"], "Fenced");
    let node = fake.node();
    assert_eq!(node["metadata"]["labels"]["rota.dev/agent"], "true");
    assert_eq!(node["metadata"]["labels"]["rota.dev/pool"], "p");
    assert_eq!(node["metadata"]["annotations"]["rota.dev/epoch"], "1");
    assert_eq!(node["status"]["capacity"]["rota.dev/ports"], "12k");
    let limits = node["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "ResourceLimitsEnforced")
        .unwrap()
        .clone();
    assert_eq!(
        limits["status"], "False",
        "control groups are off in this test, and that is said"
    );
    fake.until("adopted", |f| {
        (f.node()["metadata"]["annotations"]["rota.dev/observed-epoch"] == "1").then_some(())
    })
    .await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_running_with_ports_and_stops_on_deletion() {
    let (fake, dir, agent) = scene().await;
    let mut service = sh("trap 'exit 0' TERM; echo port $PORT_HTTP; while :; do sleep 0.05; done");
    service["ports"] = json!([{"name": "http", "port": 0}]);
    service["restartPolicy"] = json!("Always");
    fake.add_task_with(
        "s",
        service,
        json!({"ports": [{"name": "http", "port": 0}]}),
        1,
    );
    let status = fake.until_phase("s", "Running").await;
    let port = status["ports"][0]["port"].as_i64().unwrap();
    assert!(
        (20000..=31999).contains(&port)
            && status["pid"].as_i64().unwrap() > 0
            && status["ready"] == true
    );
    fake.edit(
        &format!("{TASKS}/s"),
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
    );
    let status = fake.until_phase("s", "Failed").await;
    assert_eq!(
        (status["reason"].as_str(), status["exitCode"].as_i64()),
        (Some("Stopped"), Some(0))
    );
    let log = std::fs::read_to_string(dir.path().join("node/tasks/ju-s/0/0/log")).unwrap();
    assert!(log.contains(&format!("stdout F port {port}\n")), "{log}");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_in_place() {
    let (fake, _dir, agent) = scene().await;
    let mut spec = sh("if [ -e once ]; then exit 0; fi; touch once; exit 3");
    spec["restartPolicy"] = json!("OnFailure");
    fake.add_task("r", spec);
    let status = fake.until_phase("r", "Succeeded").await;
    assert_eq!(status["restarts"], 1);
    let said = fake.history("r");
    let starting = said.iter().filter(|p| *p == "Starting").count();
    assert_eq!(starting, 1, "the back-off is said once: {said:?}");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_survive_the_agent_and_exits_are_reported_once() {
    let (fake, dir, agent) = scene().await;
    fake.add_task(
        "long",
        sh("while ! [ -e stop ]; do sleep 0.05; done; exit 5"),
    );
    fake.add_task(
        "away",
        sh("while ! [ -e stop ]; do sleep 0.05; done; exit 6"),
    );
    let pid = fake.until_phase("long", "Running").await["pid"]
        .as_i64()
        .unwrap();
    let away = fake.until_phase("away", "Running").await["pid"]
        .as_i64()
        .unwrap();
    agent.vanish().await;
    std::fs::write(dir.path().join("node/tasks/ju-away/0/0/work/stop"), "").unwrap();
    fake.until("the task ended", |_| {
        (!std::path::Path::new(&format!("/proc/{away}")).exists()).then_some(())
    })
    .await;
    let agent = start(&fake, &dir, |_| {});
    let status = fake.until_phase("away", "Failed").await;
    assert_eq!(status["exitCode"], 6);
    assert_eq!(fake.task("long")["status"]["pid"], pid);
    std::fs::write(dir.path().join("node/tasks/ju-long/0/0/work/stop"), "").unwrap();
    let status = fake.until_phase("long", "Failed").await;
    assert_eq!(
        (status["exitCode"].as_i64(), status["pid"].as_i64()),
        (Some(5), Some(pid))
    );
    for name in ["away", "long"] {
        assert_eq!(
            fake.history(name).iter().filter(|p| *p == "Failed").count(),
            1
        );
    }
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_wait_for_the_server() {
    let (fake, dir, agent) = scene().await;
    fake.add_task("t", sh("while ! [ -e stop ]; do sleep 0.05; done; exit 2"));
    fake.until_phase("t", "Running").await;
    fake.down.store(true, Ordering::SeqCst);
    std::fs::write(dir.path().join("node/tasks/ju-t/0/0/work/stop"), "").unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(fake.task("t")["status"]["phase"], "Running");
    fake.down.store(false, Ordering::SeqCst);
    assert_eq!(fake.until_phase("t", "Failed").await["exitCode"], 2);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_epoch_stops_older_tasks() {
    let (fake, _dir, agent) = scene().await;
    fake.add_task("old", sh("trap '' TERM; while :; do sleep 0.05; done"));
    fake.until_phase("old", "Running").await;
    fake.edit(
        "/api/v1/nodes/n",
        json!({"metadata": {"annotations": {"rota.dev/epoch": "2"}}}),
    );
    // A task of the new epoch makes the agent look at once.
    fake.add_task_with("new", sh("exit 0"), json!({}), 2);
    assert_eq!(fake.until_phase("old", "Lost").await["reason"], "Fenced");
    fake.until_phase("new", "Succeeded").await;
    fake.until("adopted", |f| {
        (f.node()["metadata"]["annotations"]["rota.dev/observed-epoch"] == "2").then_some(())
    })
    .await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vanished_task_is_stopped() {
    let (fake, _dir, agent) = scene().await;
    fake.add_task("t", sh("exec sleep 1000"));
    let pid = fake.until_phase("t", "Running").await["pid"]
        .as_i64()
        .unwrap();
    fake.remove(&format!("{TASKS}/t"));
    fake.until("the process is gone", |_| {
        (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    })
    .await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_agent_takes_tasks_along_or_keeps_them() {
    let (fake, dir) = place().await;
    let agent = start(&fake, &dir, |c| c.on_exit = OnExit::Keep);
    fake.add_task("t", sh("exec sleep 1000"));
    let pid = fake.until_phase("t", "Running").await["pid"]
        .as_i64()
        .unwrap();
    agent.end().await;
    let there = || std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert!(there());
    let agent = start(&fake, &dir, |_| {});
    fake.until("ready again", |f| {
        (f.node()["status"]["conditions"][0]["status"] == "True").then_some(())
    })
    .await;
    agent.end().await;
    assert!(!there());
    assert_eq!(
        fake.task("t")["status"]["phase"],
        "Lost",
        "{}",
        fake.task("t")
    );
    assert_eq!(fake.task("t")["status"]["reason"], "NodeShutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_supervisor_may_die() {
    let (fake, dir, agent) = scene().await;
    fake.add_task("t", sh("while ! [ -e stop ]; do sleep 0.05; done; exit 4"));
    let pid = fake.until_phase("t", "Running").await["pid"]
        .as_i64()
        .unwrap();
    let parent = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent: i32 = parent
        .rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!(rota_supervisor::sys::kill(parent, 9));
    fake.until("a successor", |_| {
        dir.path()
            .join("node/supervisor-2/sock")
            .exists()
            .then_some(())
    })
    .await;
    assert!(
        std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "the task lives on"
    );
    fake.add_task("next", sh("exit 0"));
    fake.until_phase("next", "Succeeded").await;
    std::fs::write(dir.path().join("node/tasks/ju-t/0/0/work/stop"), "").unwrap();
    assert_eq!(
        fake.until_phase("t", "Lost").await["reason"],
        "SupervisorLost"
    );
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_go_in_few_requests() {
    let (fake, dir) = place().await;
    let agent = start(&fake, &dir, |c| {
        c.resources.insert("cpu".into(), "64".parse().unwrap());
    });
    fake.add_task(
        "first",
        json!({"command": ["/bin/true"], "restartPolicy": "Never"}),
    );
    fake.until_phase("first", "Succeeded").await;
    let n = 1_000;
    let begin = Instant::now();
    for i in 0..n {
        fake.bind(&format!("t{i}"), "r-first", json!({}), 1);
    }
    fake.until("all are done", |f| {
        let h = &f.inner.lock().history;
        (h.len() == n + 1
            && h.values()
                .all(|p| p.last().is_some_and(|p| p == "Succeeded")))
        .then_some(())
    })
    .await;
    let requests = fake.inner.lock().bulk_requests;
    eprintln!(
        "{n} tasks in {:?}, {requests} bulk requests",
        begin.elapsed()
    );
    assert!(requests < n, "{requests}");
    assert!(
        fake.inner
            .lock()
            .history
            .values()
            .all(|p| p.iter().filter(|p| *p == "Succeeded").count() == 1)
    );
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_end_without_a_server_it_still_stops_its_tasks() {
    let (fake, dir, agent) = scene().await;
    fake.add_task("t", sh("exec sleep 1000"));
    let pid = fake.until_phase("t", "Running").await["pid"]
        .as_i64()
        .unwrap();
    agent.vanish().await;
    fake.down.store(true, Ordering::SeqCst);
    let agent = start(&fake, &dir, |_| {});
    agent.end().await;
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    fake.down.store(false, Ordering::SeqCst);
    let agent = start(&fake, &dir, |_| {});
    // Nobody asked for its end in the API: it is not the task that failed.
    let status = fake.until_phase("t", "Lost").await;
    assert_eq!(status["reason"], "NodeShutdown");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_drains_gets_no_starts() {
    let (fake, dir, agent) = scene().await;
    fake.add_task("t", sh("while ! [ -e stop ]; do sleep 0.05; done; exit 2"));
    fake.until_phase("t", "Running").await;
    agent.vanish().await;
    let old = dir.path().join("node/supervisor-1");
    let (mut client, _) = rota_supervisor::client::Client::open(&old).unwrap();
    client
        .send(&rota_supervisor::protocol::Request::Drain)
        .unwrap();
    drop(client);
    let agent = start(&fake, &dir, |_| {});
    fake.add_task("next", sh("exit 0"));
    fake.until_phase("next", "Succeeded").await;
    std::fs::write(dir.path().join("node/tasks/ju-t/0/0/work/stop"), "").unwrap();
    assert_eq!(fake.until_phase("t", "Failed").await["exitCode"], 2);
    fake.until("the old one ends", |_| (!old.exists()).then_some(()))
        .await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_deleted_comes_back_with_a_higher_epoch() {
    let (fake, _dir, agent) = scene().await;
    fake.add_task("old", sh("exec sleep 1000"));
    fake.until_phase("old", "Running").await;
    fake.remove("/api/v1/nodes/n");
    // Makes the agent look at once.
    fake.add_task_with("new", sh("exit 0"), json!({}), 2);
    fake.until_phase("new", "Succeeded").await;
    assert_eq!(
        fake.node()["metadata"]["annotations"]["rota.dev/epoch"],
        "2"
    );
    assert_eq!(fake.until_phase("old", "Lost").await["reason"], "Fenced");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_an_earlier_agent_is_stopped_as_its_template_says() {
    let (fake, dir, agent) = scene().await;
    let mut spec = sh("trap 'exit 9' USR1; while :; do sleep 0.02; done");
    spec["killSignal"] = json!("SIGUSR1");
    fake.add_task("t", spec);
    fake.until_phase("t", "Running").await;
    agent.vanish().await;
    let agent = start(&fake, &dir, |_| {});
    fake.until("the next agent knows it", |f| {
        let running = f.history("t").iter().filter(|p| *p == "Running").count();
        (running == 2).then_some(())
    })
    .await;
    fake.edit(
        &format!("{TASKS}/t"),
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
    );
    assert_eq!(fake.until_phase("t", "Failed").await["exitCode"], 9);
    agent.end().await;
}
