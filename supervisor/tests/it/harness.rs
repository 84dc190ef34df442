//! A supervisor of one's own, ended with the test.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rota_supervisor::client::{self, Client};
use rota_supervisor::protocol::*;

pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Rig {
    pub root: tempfile::TempDir,
    pub child: Child,
    pub client: Client,
    pub welcome: Welcome,
    pub started: Vec<Started>,
    pub exits: Vec<Exit>,
    generation: u64,
    group: Option<String>,
}

pub fn until<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(t) = f() {
            return t;
        }
        assert!(Instant::now() < end, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn alive(pid: i32) -> bool {
    rota_supervisor::sys::start_ticks(pid).is_some_and(|t| rota_supervisor::sys::is_alive(pid, t))
}

fn dir_of(root: &Path, generation: u64) -> PathBuf {
    root.join(format!("supervisor-{generation}"))
}

fn launch(
    root: &Path,
    generation: u64,
    import: &[&Path],
    group: Option<&str>,
) -> (Child, Client, Welcome) {
    let exe = vec![env!("CARGO_BIN_EXE_rota-supervisor").into()];
    let dir = dir_of(root, generation);
    let child = client::launch(&exe, &dir, generation, import, group).unwrap();
    let (client, welcome) = until("connect", || Client::open(&dir).ok());
    (child, client, welcome)
}

impl Rig {
    pub fn new() -> Rig {
        Self::with_group(None)
    }
    pub fn with_group(group: Option<String>) -> Rig {
        let root = tempfile::tempdir().unwrap();
        let (child, client, welcome) = launch(root.path(), 1, &[], group.as_deref());
        Rig {
            root,
            child,
            client,
            welcome,
            started: vec![],
            exits: vec![],
            generation: 1,
            group,
        }
    }
    pub fn dir(&self) -> PathBuf {
        dir_of(self.root.path(), self.generation)
    }
    pub fn attempt(&self, id: &str) -> PathBuf {
        self.root.path().join("tasks").join(id).join("0")
    }
    pub fn spec(&self, id: &str, argv: &[&str]) -> StartSpec {
        let mark = format!("ROTA_TASK={id}");
        StartSpec {
            id: id.into(),
            tag: format!("tag-{id}"),
            argv: argv.iter().map(|s| s.to_string()).collect(),
            env: vec!["PATH=/usr/local/bin:/usr/bin:/bin".into(), mark.clone()],
            mark,
            attempt_dir: self.attempt(id).to_string_lossy().into_owned(),
            ..StartSpec::default()
        }
    }
    pub fn start(&mut self, spec: StartSpec) {
        self.client.send(&Request::Start(vec![spec])).unwrap();
    }
    pub fn sh(&mut self, id: &str, script: &str) {
        let spec = self.spec(id, &["sh", "-c", script]);
        self.start(spec);
    }
    pub fn stop(&mut self, id: &str, grace_ms: u64) {
        self.client
            .send(&Request::Stop(vec![StopSpec {
                id: id.into(),
                signal: 15,
                grace_ms,
            }]))
            .unwrap();
    }
    fn pump(&mut self) {
        if let Some(Event::Report(r)) = self.client.next(Duration::from_millis(20)).unwrap() {
            self.started.extend(r.started);
            self.exits.extend(r.exits);
        }
    }
    pub fn wait_exit(&mut self, id: &str) -> Exit {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(e) = self.exits.iter().find(|e| e.id == id) {
                return e.clone();
            }
            assert!(Instant::now() < end, "no exit of {id}");
            self.pump();
        }
    }
    pub fn wait_started(&mut self, id: &str) -> Started {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(e) = self.started.iter().find(|e| e.id == id) {
                return e.clone();
            }
            assert!(Instant::now() < end, "no start of {id}");
            self.pump();
        }
    }
    pub fn wait_file(&self, id: &str, name: &str) -> String {
        let path = self.attempt(id).join("work").join(name);
        until(&format!("{path:?}"), || {
            std::fs::read_to_string(&path)
                .ok()
                .filter(|t| t.ends_with('\n'))
        })
    }
    pub fn log(&self, id: &str) -> String {
        std::fs::read_to_string(self.attempt(id).join("log")).unwrap_or_default()
    }
    /// The agent goes away and another one comes.
    pub fn reconnect(&mut self) {
        let (client, welcome) = Client::open(&self.dir()).unwrap();
        self.client = client;
        self.welcome = welcome;
        self.started.clear();
        self.exits.clear();
    }
    pub fn kill_supervisor(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
    /// A successor takes over.
    pub fn succeed(&mut self) {
        let old = self.dir();
        self.generation += 1;
        let (child, client, welcome) = launch(
            self.root.path(),
            self.generation,
            &[&old],
            self.group.as_deref(),
        );
        self.child = child;
        self.client = client;
        self.welcome = welcome;
        self.started.clear();
        self.exits.clear();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // SIGTERM lets it end its tasks; whatever is left after that goes by force.
        rota_supervisor::sys::kill(self.child.id() as i32, 15);
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            let ids = self.exits.iter().map(|e| e.id.clone()).collect();
            let _ = self.client.send(&Request::Ack(ids));
            if let Ok(Some(Event::Report(r))) = self.client.next(Duration::from_millis(10)) {
                self.exits.extend(r.exits);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
