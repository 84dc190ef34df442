//! Opening backends and writing short cases.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use rota_store::{
    EmbeddedOptions, EmbeddedStore, Event, Expect, Guard, ListRequest, MemoryStore, Record, Store,
    Txn, Version, Write,
};
use tempfile::TempDir;

/// Nothing in these tests takes this long on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub async fn memory() -> Arc<dyn Store> {
    MemoryStore::new()
}

/// Options for tests: any disk is large enough.
pub fn options() -> EmbeddedOptions {
    EmbeddedOptions {
        free_bytes_min: 0,
        ..EmbeddedOptions::default()
    }
}

pub async fn embedded() -> (Arc<dyn Store>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), options()).unwrap();
    (store, dir)
}

pub fn key(name: &str) -> Arc<str> {
    name.into()
}

pub fn value(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn guard(on: &str, expect: Expect) -> Guard {
    Guard {
        key: key(on),
        expect,
    }
}

pub fn put(name: &str, text: &str) -> Write {
    Write::Put {
        key: key(name),
        value: value(text),
        expires_at: None,
    }
}

/// Replaces exactly this version.
pub fn put_txn(name: &str, version: Version, text: &str) -> Txn {
    Txn {
        guards: vec![guard(name, Expect::Version(version))],
        writes: vec![put(name, text)],
    }
}

pub async fn create(store: &Arc<dyn Store>, name: &str, text: &str) -> Version {
    let txn = Txn {
        guards: vec![guard(name, Expect::Absent)],
        writes: vec![put(name, text)],
    };
    store.commit(txn).await.unwrap()[0]
}

pub async fn update(store: &Arc<dyn Store>, name: &str, version: Version, text: &str) -> Version {
    store.commit(put_txn(name, version, text)).await.unwrap()[0]
}

pub async fn delete(store: &Arc<dyn Store>, name: &str, version: Version) -> Version {
    let txn = Txn {
        guards: vec![guard(name, Expect::Version(version))],
        writes: vec![Write::Delete { key: key(name) }],
    };
    store.commit(txn).await.unwrap()[0]
}

/// Everything under a prefix now, and the version of that state.
pub async fn list_all(store: &Arc<dyn Store>, prefix: &str) -> (Vec<Record>, Version) {
    let request = ListRequest {
        prefix: prefix.into(),
        ..ListRequest::default()
    };
    let page = store.list(request).await.unwrap();
    assert!(!page.more);
    (page.items, page.version)
}

pub async fn under(store: &Arc<dyn Store>, prefix: &str, at: Option<Version>) -> Vec<Record> {
    let request = ListRequest {
        prefix: prefix.into(),
        at,
        ..ListRequest::default()
    };
    store.list(request).await.unwrap().items
}

/// Events after `from` up to `to`, from a fresh watch.
pub async fn collect(store: &Arc<dyn Store>, from: Version, to: Version) -> Vec<Event> {
    let mut watch = store.watch(from).await.unwrap();
    let mut events = Vec::new();
    let mut delivered = from;
    while delivered < to {
        let next = tokio::time::timeout(PATIENCE, watch.next()).await;
        let batch = next.expect("the watch is stuck").unwrap().unwrap();
        delivered = batch.version;
        events.extend(batch.events);
    }
    events.retain(|event| event.version <= to);
    events
}

/// A number of kibibytes from /proc/self/status.
pub fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(field));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.unwrap_or(0)
}

/// An etcd of our own, on free ports, with its data in memory.
#[cfg(feature = "etcd")]
pub struct Etcd {
    pub url: String,
    process: Leashed,
}

/// An etcd process behind a shell that holds our pipe: the shell passes signals on, and when the pipe
/// closes, however this process ends, it kills etcd and removes its directory.
#[cfg(feature = "etcd")]
pub struct Leashed {
    shell: std::process::Child,
    /// Process id of etcd, whose parent is the shell.
    pid: u32,
}

#[cfg(feature = "etcd")]
impl Leashed {
    /// Starts etcd with a directory of its own in memory, in addition to these arguments.
    pub fn start(args: &[String]) -> Self {
        use std::process::{Command, Stdio};
        const SCRIPT: &str = "etcd \"$@\" >/dev/null 2>&1 & P=$!; echo $P; \
             while read line; do kill -$line $P; done; kill -CONT $P; kill -9 $P; wait $P; rm -rf \"$DIR\"";
        let base = std::path::Path::new("/dev/shm");
        let mut dir = tempfile::Builder::new();
        dir.prefix("rota-store-etcd-");
        let dir = if base.is_dir() {
            dir.tempdir_in(base)
        } else {
            dir.tempdir()
        };
        let dir = dir.unwrap().keep();
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "sh", "--data-dir"])
            .arg(&dir)
            .args(args)
            .env("DIR", &dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let stdout = shell.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut said).unwrap();
        Self {
            shell,
            pid: said.trim().parse().unwrap(),
        }
    }

    /// Waits until it takes connections; `false` if it ends instead.
    pub fn listens(&self, port: u16) -> bool {
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if self.threads_are("Z") {
                return false;
            }
            assert!(std::time::Instant::now() < deadline, "etcd does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    fn signal(&mut self, name: &str) {
        use std::io::Write as _;
        let pipe = self.shell.stdin.as_mut().unwrap();
        writeln!(pipe, "{name}").unwrap();
    }

    /// Whether every thread is in this state of proc(5).
    fn threads_are(&self, state: &str) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
        threads.flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The name before the state is in brackets and may itself hold some.
            stat.rsplit_once(") ")
                .is_none_or(|(_, rest)| rest.starts_with(state))
        })
    }
}

/// A port that was free a moment ago.
#[cfg(feature = "etcd")]
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[cfg(feature = "etcd")]
impl Etcd {
    /// `None`, with the reason printed, if etcd is not installed.
    pub fn start() -> Option<Self> {
        let found = std::process::Command::new("etcd").arg("--version").output();
        if !found.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: etcd is not installed");
            return None;
        }
        // Between looking for a port and its use someone else may take it.
        (0..5)
            .find_map(|_| Self::launch())
            .or_else(|| panic!("etcd does not start"))
    }

    fn launch() -> Option<Self> {
        let (client, peer) = (free_port(), free_port());
        let (url, peer) = (
            format!("http://127.0.0.1:{client}"),
            format!("http://127.0.0.1:{peer}"),
        );
        let args = [
            "--name=t".to_owned(),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=t={peer}"),
        ];
        let process = Leashed::start(&args);
        process.listens(client).then_some(Self { url, process })
    }

    /// Stops etcd, and returns when none of its threads runs: the signal by itself only asks for
    /// that, and a busy machine lets them go on for a while.
    pub fn freeze(&mut self) {
        self.process.signal("STOP");
        let deadline = std::time::Instant::now() + PATIENCE;
        while !self.process.threads_are("T") {
            assert!(std::time::Instant::now() < deadline, "etcd does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets a frozen etcd go on.
    pub fn thaw(&mut self) {
        self.process.signal("CONT");
    }

    pub async fn connect(&self, prefix: &str) -> Arc<rota_store::EtcdStore> {
        connect(&rota_store::EtcdOptions {
            endpoints: vec![self.url.clone()],
            prefix: format!("/{prefix}"),
            history_time: Duration::ZERO,
            ..rota_store::EtcdOptions::default()
        })
        .await
    }
}

/// Connects as soon as etcd is ready.
#[cfg(feature = "etcd")]
pub async fn connect(options: &rota_store::EtcdOptions) -> Arc<rota_store::EtcdStore> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        match rota_store::EtcdStore::connect(options.clone()).await {
            Ok(store) => return store,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
    }
}

/// A prefix of the shared etcd; cases that compact (which concerns the whole cluster) get their own.
#[cfg(feature = "etcd")]
pub async fn etcd(case: &str) -> Option<Arc<dyn Store>> {
    static SHARED: std::sync::OnceLock<Option<Etcd>> = std::sync::OnceLock::new();
    const COMPACTING: [&str; 2] = ["compaction_edges", "a_slow_watch_is_cut_or_catches_up"];
    if COMPACTING.contains(&case) {
        // Ends with the process: the case holds the store, not the server.
        let own = Box::leak(Box::new(Etcd::start()?));
        return Some(own.connect(case).await);
    }
    let shared = tokio::task::spawn_blocking(|| SHARED.get_or_init(Etcd::start));
    let shared = shared.await.unwrap().as_ref()?;
    Some(shared.connect(case).await)
}
