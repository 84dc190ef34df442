//! A cluster made by `rota up` in a directory of its own. Whatever happens in a test, every process
//! that belongs to it is gone afterwards.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::etcd::Etcd;
use super::http::{Http, kubeconfig_pems};
use super::process::{self, Background, Output, run, run_with_input};
use super::{eventually, on_path, rota_bin};

/// Where a cluster keeps its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// In its own files.
    Embedded,
    /// In a real etcd.
    Etcd,
}

/// How to start a cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// Local agents.
    pub nodes: u32,
    /// Store.
    pub store: Store,
    /// Further arguments of `rota up`.
    pub args: Vec<String>,
    /// Program and arguments in front of `rota`, such as strace.
    pub wrapper: Vec<String>,
    /// Data directory; absent: below the cluster's temporary directory.
    pub data_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            nodes: 1,
            store: Store::Embedded,
            args: Vec::new(),
            wrapper: Vec::new(),
            data_dir: None,
        }
    }
}

/// A running cluster.
pub struct Cluster {
    temp: tempfile::TempDir,
    options: Options,
    data_dir: PathBuf,
    port: u16,
    server: Option<Background>,
    /// The etcd, if that is the store.
    pub etcd: Option<Etcd>,
}

/// Ports of one run of the tests.
const BLOCK: u16 = 100;

/// A port that was free a moment ago and that no other test takes.
pub fn free_port() -> u16 {
    static FIRST: OnceLock<u16> = OnceLock::new();
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = *FIRST.get_or_init(own_ports);
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % BLOCK;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// First port of a block that no other run on this machine uses while this one lasts. Below the
/// kernel's ephemeral range, so that no outgoing connection takes one while its server is down.
fn own_ports() -> u16 {
    for block in 0..80 {
        let lock = std::env::temp_dir().join(format!("rota-e2e-ports-{block}"));
        let lock = File::create(lock).expect("a lock file in the temporary directory");
        if lock.try_lock().is_ok() {
            // Held until the process ends, however it does.
            std::mem::forget(lock);
            return 10_000 + block * BLOCK;
        }
    }
    panic!("80 other runs of these tests hold all ports");
}

impl Cluster {
    /// One node on the embedded store.
    pub fn one_node() -> Cluster {
        Cluster::start(Options::default())
    }

    /// Two nodes on a store. `None` if that store is not on this machine.
    pub fn two_nodes(store: Store) -> Option<Cluster> {
        if store == Store::Etcd && on_path("etcd").is_none() {
            super::skip("there is no etcd on the PATH");
            return None;
        }
        Some(Cluster::start(Options {
            nodes: 2,
            store,
            ..Options::default()
        }))
    }

    /// Starts a cluster and waits until it and its nodes are ready.
    pub fn start(options: Options) -> Cluster {
        let mut cluster = Cluster::prepare(options);
        cluster.launch();
        cluster.wait_ready();
        cluster.wait_nodes();
        cluster
    }

    /// Everything but the server process.
    pub fn prepare(options: Options) -> Cluster {
        let temp = tempfile::Builder::new()
            .prefix("rota-e2e-")
            .tempdir()
            .unwrap();
        let etcd = (options.store == Store::Etcd).then(|| Etcd::start().expect("etcd"));
        let data_dir = options
            .data_dir
            .clone()
            .unwrap_or_else(|| temp.path().join("data"));
        Cluster {
            temp,
            data_dir,
            options,
            port: free_port(),
            server: None,
            etcd,
        }
    }

    /// Starts the server process and does not wait for it.
    pub fn launch(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        let mut command = match self.options.wrapper.split_first() {
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(rota_bin());
                command
            }
            None => Command::new(rota_bin()),
        };
        command
            .arg("up")
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .args(["--nodes", &self.options.nodes.to_string()])
            .args(&self.options.args)
            .env_remove("KUBECONFIG")
            .current_dir(self.temp.path());
        if let Some(etcd) = &self.etcd {
            command.args(["--etcd-endpoints", &etcd.endpoint()]);
        }
        self.server = Some(Background::start(&mut command, &self.log_path()));
    }

    /// Waits until `/readyz` says so.
    pub fn wait_ready(&mut self) {
        let kubeconfig = self.kubeconfig();
        let port = self.port;
        let log = self.log_path();
        let server = self.server.as_mut().expect("the server was launched");
        eventually("the server is ready", || {
            if let Some(status) = server.ended() {
                panic!(
                    "rota up ended ({status}):\n{}",
                    std::fs::read_to_string(&log).unwrap_or_default()
                );
            }
            let text = std::fs::read_to_string(&kubeconfig).map_err(|e| e.to_string())?;
            let (ca, _, _) = kubeconfig_pems(&text);
            let answer = Http::anonymous(port, &ca)
                .try_request("GET", "/readyz", &[], b"")
                .map_err(|e| e.to_string())?;
            if answer.status == 200 {
                Ok(())
            } else {
                Err(format!("HTTP {}: {}", answer.status, answer.text()))
            }
        });
    }

    /// Waits until all nodes are Ready.
    pub fn wait_nodes(&self) {
        let wanted = self.options.nodes as usize;
        let mut http = self.http();
        eventually("all nodes are ready", || {
            let nodes = http.get("/api/v1/nodes").ok();
            let ready = items(&nodes)
                .iter()
                .filter(|n| condition(n, "Ready") == Some("True".into()))
                .count();
            super::wait::check(ready == wanted, || format!("{ready} of {wanted}"))
        });
    }

    /// An agent that joins by token, with a directory of its own below the cluster's, and that
    /// nobody restarts; waits until its node is ready.
    pub fn join(&self, name: &str, args: &[&str]) -> Background {
        let token = self.rota(&["token", "create"]);
        assert!(token.status.success(), "{}", token.text());
        let log = self.scratch().join(format!("{name}.log"));
        let agent = Background::start(
            Command::new(rota_bin())
                .arg("agent")
                .args(["--server", &format!("https://127.0.0.1:{}", self.port)])
                .args(["--token", token.stdout.trim()])
                .args(["--name", name])
                .args(args)
                .arg("--data-dir")
                .arg(self.data_dir.join(name))
                .env_remove("KUBECONFIG"),
            &log,
        );
        let mut http = self.http();
        eventually(&format!("the node {name} is ready"), || {
            let node = http.get(&format!("/api/v1/nodes/{name}")).json();
            super::wait::check(condition(&node, "Ready").as_deref() == Some("True"), || {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                format!("{}\n{log}", node["status"]["conditions"])
            })
        });
        agent
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A directory for a test's own files, removed with the cluster.
    pub fn scratch(&self) -> PathBuf {
        let dir = self.temp.path().join("scratch");
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// The admin kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn log_path(&self) -> PathBuf {
        self.temp.path().join("up.log")
    }

    /// What the server said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A client with the administrator's certificate.
    pub fn http(&self) -> Http {
        let text = std::fs::read_to_string(self.kubeconfig()).unwrap();
        Http::from_kubeconfig(self.port, &text)
    }

    /// A client without a certificate.
    pub fn anonymous(&self) -> Http {
        let text = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let (ca, _, _) = kubeconfig_pems(&text);
        Http::anonymous(self.port, &ca)
    }

    /// `kill -9` of the server alone; agents and tasks live on.
    pub fn kill_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill_9();
            // Dropping the handle would kill the group, and with it the agents.
            std::mem::forget(server);
        }
    }

    /// Asks the server to end.
    pub fn stop_server(&mut self) -> Option<std::process::ExitStatus> {
        self.server.take()?.terminate(Duration::from_secs(30))
    }

    /// A kubectl command line for this cluster.
    pub fn kubectl_command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--cache-dir")
            .arg(self.temp.path().join("kubectl-cache"))
            .args(args)
            .env("HOME", self.temp.path())
            .env_remove("KUBECONFIG");
        command
    }

    /// Runs kubectl.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        run(&mut self.kubectl_command(Path::new("kubectl"), args))
    }

    /// Runs kubectl with a manifest on its standard input.
    pub fn kubectl_stdin(&self, args: &[&str], manifest: &str) -> Output {
        run_with_input(
            &mut self.kubectl_command(Path::new("kubectl"), args),
            manifest.as_bytes(),
        )
    }

    /// A `rota` command line for this cluster.
    pub fn rota_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(rota_bin());
        command
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.temp.path());
        command
    }

    /// Runs `rota`.
    pub fn rota(&self, args: &[&str]) -> Output {
        run(&mut self.rota_command(args))
    }

    /// Runs `rota` with a manifest on its standard input.
    pub fn rota_stdin(&self, args: &[&str], manifest: &str) -> Output {
        run_with_input(&mut self.rota_command(args), manifest.as_bytes())
    }

    /// Creates an object of a namespaced rota.dev kind in `default`.
    #[track_caller]
    pub fn create_job(&self, name: &str, spec: Value) -> Value {
        self.http()
            .post(
                "/apis/rota.dev/v1/namespaces/default/jobs",
                &serde_json::json!({
                    "apiVersion": "rota.dev/v1", "kind": "Job",
                    "metadata": {"name": name}, "spec": spec,
                }),
            )
            .ok()
    }

    /// A Job of `default`.
    pub fn job(&self, name: &str) -> Value {
        let path = format!("/apis/rota.dev/v1/namespaces/default/jobs/{name}");
        self.http().get(&path).ok()
    }

    /// The Tasks of a Job of `default`.
    pub fn tasks(&self, job: &str) -> Vec<Value> {
        let path = format!(
            "/apis/rota.dev/v1/namespaces/default/tasks?labelSelector=rota.dev%2Fjob%3D{job}"
        );
        items(&self.http().get(&path).ok()).to_vec()
    }

    /// Waits until a Job has a condition, and gives the Job.
    #[track_caller]
    pub fn wait_job(&self, name: &str, type_: &str, limit: Duration) -> Value {
        let mut http = self.http();
        let path = format!("/apis/rota.dev/v1/namespaces/default/jobs/{name}");
        super::eventually_for(limit, &format!("job {name} is {type_}"), || {
            let answer = http
                .try_request("GET", &path, &[], b"")
                .map_err(|e| e.to_string())?;
            let job = answer.json();
            match condition(&job, type_).as_deref() {
                Some("True") => Ok(job),
                _ => Err(format!("{}", job["status"])),
            }
        })
    }

    /// Pids of the agents, in the order of their nodes' names.
    pub fn agents(&self) -> Vec<i32> {
        let mut agents: Vec<(String, i32)> = process::mentioning(&self.data_dir.to_string_lossy())
            .into_iter()
            .map(|pid| (process::command_line(pid), pid))
            .filter(|(line, _)| line.contains(" agent ") && !line.contains("supervisor"))
            .collect();
        agents.sort();
        agents.into_iter().map(|(_, pid)| pid).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- last lines of rota up ---");
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
            for node in std::fs::read_dir(self.data_dir.join("nodes"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let log =
                    std::fs::read_to_string(node.path().join("agent.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                eprintln!(
                    "--- last lines of the agent in {} ---",
                    node.path().display()
                );
                for line in tail.iter().rev() {
                    eprintln!("{line}");
                }
            }
        }
        let data_dir = self.data_dir.to_string_lossy().into_owned();
        // Stopped processes take no SIGTERM.
        for pid in process::mentioning(&data_dir) {
            process::signal(pid, Signal::CONT);
        }
        if let Some(mut server) = self.server.take() {
            server.terminate(Duration::from_secs(10));
        }
        // Tasks are in sessions of their own; what a broken cluster left is found by its directory.
        process::end_all(&data_dir);
    }
}

/// Items of a list.
pub fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

/// Status of a condition.
pub fn condition(object: &Value, type_: &str) -> Option<String> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == type_)?["status"]
        .as_str()
        .map(String::from)
}

/// Reason of a condition.
pub fn reason(object: &Value, type_: &str) -> String {
    object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["type"] == type_)
        .and_then(|c| c["reason"].as_str())
        .unwrap_or("")
        .to_string()
}
