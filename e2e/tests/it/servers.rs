//! Several API servers on one etcd: each answers for what is connected to another, and one may die.

use std::fs::{DirBuilder, read_to_string};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::harness::cluster::{condition, free_port};
use crate::harness::etcd::Etcd;
use crate::harness::http::{Http, kubeconfig_pems};
use crate::harness::process::{Background, Output, end_all, run, run_ok, run_with_input};
use crate::harness::wait::check;
use crate::harness::{eventually, eventually_for, rota_bin, skip};

/// Leaders change within five seconds; the rest is for a busy machine.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(60);

struct Server {
    dir: PathBuf,
    port: u16,
    process: Option<Background>,
}

impl Server {
    fn new(dir: PathBuf) -> Server {
        Server {
            dir,
            port: free_port(),
            process: None,
        }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    fn launch(&mut self, etcd: &Etcd) {
        let process = Background::start(
            Command::new(rota_bin())
                .arg("server")
                .arg("--data-dir")
                .arg(&self.dir)
                .args(["--listen", &format!("127.0.0.1:{}", self.port)])
                .args(["--etcd-endpoints", &etcd.endpoint()])
                .env_remove("KUBECONFIG"),
            &self.dir.with_extension("log"),
        );
        self.process = Some(process);
        eventually("the server is ready", || {
            let text = read_to_string(self.kubeconfig()).map_err(|e| e.to_string())?;
            let (ca, _, _) = kubeconfig_pems(&text);
            let answer = Http::anonymous(self.port, &ca)
                .try_request("GET", "/readyz", &[], b"")
                .map_err(|e| e.to_string())?;
            check(answer.status == 200, || answer.text())
        });
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill_9();
        }
    }

    fn http(&self) -> Http {
        Http::from_kubeconfig(self.port, &read_to_string(self.kubeconfig()).unwrap())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(rota_bin());
        command.args(args).env("KUBECONFIG", self.kubeconfig());
        command
    }

    fn rota(&self, args: &[&str]) -> Output {
        run(&mut self.command(args))
    }

    fn create_job(&self, name: &str, script: &str, cpu: &str) {
        self.http()
            .post(
                "/apis/rota.dev/v1/namespaces/default/jobs",
                &json!({
                    "apiVersion": "rota.dev/v1", "kind": "Job", "metadata": {"name": name},
                    "spec": {"template": {"spec": {
                        "command": ["/bin/sh", "-c", script],
                        "resources": {"requests": {"cpu": cpu}},
                    }}},
                }),
            )
            .ok();
    }

    fn wait_job(&self, name: &str) {
        let mut http = self.http();
        let path = format!("/apis/rota.dev/v1/namespaces/default/jobs/{name}");
        eventually_for(TAKEOVER_LIMIT, &format!("job {name} is complete"), || {
            let answer = http
                .try_request("GET", &path, &[], b"")
                .map_err(|e| e.to_string())?;
            let job = answer.json();
            let done = condition(&job, "Complete").as_deref() == Some("True");
            check(done, || job["status"].to_string())
        });
    }

    /// What the log of a Job's only task says here, as soon as it can be asked for.
    fn wait_logs(&self, job: &str, wanted: &str) {
        let target = format!("job/{job}");
        eventually_for(TAKEOVER_LIMIT, &format!("the log of {job}"), || {
            let logs = self.rota(&["logs", &target]);
            check(logs.status.success() && logs.stdout == wanted, || {
                logs.text()
            })
        });
    }

    fn join(&self, name: &str, servers: &[&Server], below: &Path) -> Background {
        let token = self.rota(&["token", "create"]);
        assert!(token.status.success(), "{}", token.text());
        let mut command = Command::new(rota_bin());
        command.arg("agent").args(["--name", name]);
        for server in servers {
            command.args(["--server", &server.url()]);
        }
        command
            .args(["--token", token.stdout.trim()])
            .args(["--resources", "cpu=2,memory=1Gi"])
            .arg("--data-dir")
            .arg(below.join(name))
            .env_remove("KUBECONFIG");
        let agent = Background::start(&mut command, &below.join(format!("{name}.log")));
        let mut http = self.http();
        eventually(&format!("the node {name} is ready"), || {
            let node = http.get(&format!("/api/v1/nodes/{name}")).json();
            let ready = condition(&node, "Ready").as_deref() == Some("True");
            check(ready, || node["status"]["conditions"].to_string())
        });
        agent
    }
}

/// Ends what the agent started, which outlives it.
struct Cleaned(tempfile::TempDir);

impl Drop for Cleaned {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["first.log", "second.log", "far.log"] {
                let log = read_to_string(self.0.path().join(name)).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(30).collect();
                eprintln!("--- last lines of {name} ---");
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        end_all(&self.0.path().to_string_lossy());
    }
}

#[test]
fn servers_answer_for_each_other_and_one_may_die() {
    let Some(etcd) = Etcd::start() else {
        return skip("there is no etcd on the PATH");
    };
    let temp = tempfile::Builder::new()
        .prefix("rota-e2e-servers-")
        .tempdir()
        .unwrap();
    let cleaned = Cleaned(temp);
    let temp = cleaned.0.path();
    let mut first = Server::new(temp.join("first"));
    let mut second = Server::new(temp.join("second"));
    first.launch(&etcd);
    // One cluster has one authority: its directory goes to every server.
    DirBuilder::new().mode(0o700).create(&second.dir).unwrap();
    run_ok(
        Command::new("cp")
            .arg("-a")
            .arg(first.dir.join("pki"))
            .arg(&second.dir),
    );
    second.launch(&etcd);
    let _agent = first.join("far", &[&first, &second], temp);

    // The agent's tunnel ends at the first; the second asks there.
    second.create_job("said", "echo one; echo two", "1");
    second.wait_job("said");
    for server in [&first, &second] {
        server.wait_logs("said", "one\ntwo\n");
        let metrics = server.http().get("/rota/v1/nodes/far/metrics");
        assert_eq!(metrics.status, 200, "{}", metrics.text());
        assert!(metrics.text().contains("rota_agent_"), "{}", metrics.text());
    }
    let go = temp.join("go");
    let script = format!(
        "echo begun; while [ ! -e {} ]; do sleep 0.05; done; echo ended",
        go.display()
    );
    second.create_job("follows", &script, "1");
    eventually("the task has begun", || {
        let logs = second.rota(&["logs", "job/follows"]);
        check(logs.stdout == "begun\n", || logs.text())
    });
    let log = temp.join("follow.log");
    let mut following =
        Background::start(&mut second.command(&["logs", "-f", "job/follows"]), &log);
    let read = || read_to_string(&log).unwrap_or_default();
    eventually("what is there is shown", || {
        check(read().contains("begun\n"), read)
    });
    std::fs::write(&go, "").unwrap();
    eventually("the rest is shown, and the log ends", || {
        let ended = following.ended().is_some_and(|status| status.success());
        check(ended && read().contains("begun\nended\n"), read)
    });

    // Either may be the one that placement's leader is connected to.
    first.create_job("huge", "true", "64");
    let plan = "apiVersion: rota.dev/v1\nkind: Job\nmetadata: {name: planned}\nspec: {template: {spec: {command: [\"true\"]}}}\n";
    for server in [&first, &second] {
        eventually("either says why a Job waits", || {
            let why = server.rota(&["why", "job/huge"]);
            check(why.status.success() && why.stdout.contains("cpu"), || {
                why.text()
            })
        });
        let planned = run_with_input(&mut server.command(&["plan", "-f", "-"]), plan.as_bytes());
        assert!(planned.status.success(), "{}", planned.text());
    }

    // Only servers hand questions on, and a name that nobody has is told as such.
    let lost = second.http().get("/rota/v1/nodes/nobody/metrics");
    assert_eq!(lost.status, 503, "{}", lost.text());
    assert!(lost.text().contains("nobody"), "{}", lost.text());
    let pem = |name: &str| std::fs::read(temp.join("far").join(name)).unwrap();
    let (ca, crt, key) = (pem("ca.crt"), pem("agent.crt"), pem("agent.key"));
    let mut node = Http::with_certificate(second.port, &ca, &crt, &key);
    node.get("/rota/v1/relay/nodes/far/metrics").refused(403);

    // The one that the agent talks to dies: the node goes on with the other.
    first.kill();
    second.create_job("after", "echo still here", "1");
    second.wait_job("after");
    second.wait_logs("after", "still here\n");
    first.launch(&etcd);
    first.wait_logs("after", "still here\n");
    first.wait_logs("said", "one\ntwo\n");
}
