//! What only the embedded store must prove: kill -9, power cuts, damage, full disks, sync before acknowledgement.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rota_store::{EmbeddedOptions, EmbeddedStore, ListRequest, Store, StoreError, Txn};

use crate::support::{create, list_all, options, put, under};

/// Names the directory in which this binary, run again, writes until it is ended.
pub const CHILD_DIR: &str = "ROTA_STORE_TEST_CHILD";
/// How many tasks the child writes from, unless 8.
const CHILD_TASKS: &str = "ROTA_STORE_TEST_TASKS";
/// How many writes each task makes; unset for no end.
pub const CHILD_WRITES: &str = "ROTA_STORE_TEST_WRITES";

/// Not a test of its own: what the other tests run as a child process. Writes from many tasks and
/// prints `key version` for every acknowledged write, after it was acknowledged.
#[test]
fn child_writer() {
    let Ok(dir) = std::env::var(CHILD_DIR) else {
        return;
    };
    let writes: u64 = std::env::var(CHILD_WRITES).map_or(u64::MAX, |n| n.parse().unwrap());
    let tasks: u64 = std::env::var(CHILD_TASKS).map_or(8, |n| n.parse().unwrap());
    let options = EmbeddedOptions {
        // Small, so that a short run writes tables and replaces journals too.
        memtable_bytes: 1 << 20,
        ..options()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store: Arc<dyn Store> = EmbeddedStore::open(&dir, options).unwrap();
        let base = store.current().await.unwrap();
        println!("\nopened {base}");
        let tasks = (0..tasks).map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..writes {
                    // Values of all sizes, some of many pages; keys come again, so values are replaced.
                    let size = [10, 300, 1500, 5000, 40_000][((i + task) % 5) as usize];
                    let name = format!("/k/{task}/{}", i % 37);
                    let text = format!("{base}.{i}.{}", "x".repeat(size));
                    let txn = Txn {
                        guards: vec![],
                        writes: vec![put(&name, &text), put(&format!("{name}/pair"), &text)],
                    };
                    let versions = store.commit(txn).await.unwrap();
                    println!("acked {name} {} {base}.{i}.", versions[0]);
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        if writes < u64::MAX {
            println!("done");
            // No clean end: what follows looks at the files as they are.
            std::process::exit(0);
        }
    });
}

pub fn child(dir: &Path) -> Command {
    child_of("durability::child_writer", dir)
}

/// This binary, to run one of its writers; an ignored one too.
pub fn child_of(writer: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", writer, "--include-ignored", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// What a child said was acknowledged: key → (version, start of the value).
pub type Acked = BTreeMap<String, (u64, String)>;

pub fn note(line: &str, acked: &mut Acked) {
    let words: Vec<&str> = line.split(' ').collect();
    if let ["acked", key, version, start] = words[..] {
        // A line cut by the kill is no claim.
        if let (Ok(version), true) = (version.parse(), start.ends_with('.')) {
            let newer = acked.get(key).is_none_or(|(seen, _)| *seen < version);
            if newer {
                acked.insert(key.to_owned(), (version, start.to_owned()));
            }
        }
    }
}

/// Every acknowledged write is there, or was replaced by a later one; no pair is torn.
pub async fn check(store: &Arc<dyn Store>, acked: &Acked) {
    let newest = store.current().await.unwrap();
    let records: BTreeMap<String, _> = list_all(store, "/k/")
        .await
        .0
        .into_iter()
        .map(|record| (record.key.to_string(), record))
        .collect();
    for (key, (version, start)) in acked {
        assert!(newest > *version, "{key} at {version}, store at {newest}");
        let record = records.get(key).unwrap_or_else(|| panic!("{key} is gone"));
        assert!(record.version >= *version, "{key} went back");
        if record.version == *version {
            assert!(record.value.starts_with(start.as_bytes()), "{key} differs");
        }
    }
    for (key, record) in &records {
        if let Some(main) = key.strip_suffix("/pair") {
            let main = &records[main];
            assert_eq!(main.version + 1, record.version, "{key} is torn");
            assert_eq!(main.value, record.value, "{key} is torn");
        }
    }
    // The history is whole as well, and says the same.
    let oldest = store.resume_point(100_000).await.unwrap();
    if oldest < newest {
        let mut state: BTreeMap<_, _> = under(store, "/k/", Some(oldest))
            .await
            .into_iter()
            .map(|record| (record.key, record.value))
            .collect();
        for event in crate::support::collect(store, oldest, newest).await {
            match event.value {
                Some(value) => drop(state.insert(event.key, value)),
                None => drop(state.remove(&event.key)),
            }
        }
        let listed: BTreeMap<_, _> = records
            .into_values()
            .map(|record| (record.key, record.value))
            .collect();
        assert!(state == listed, "history and state differ");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acked = Acked::new();
    for round in 0..8u64 {
        let mut child = child(dir.path()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A different number of acknowledgements each time, then the axe.
        let mut left = 5 + round * round * 11;
        for line in lines.by_ref() {
            let line = line.unwrap();
            note(&line, &mut acked);
            if line.starts_with("acked") {
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        child.kill().unwrap();
        for line in lines.map_while(Result::ok) {
            note(&line, &mut acked);
        }
        child.wait().unwrap();
        let store: Arc<dyn Store> = EmbeddedStore::open(dir.path(), options()).unwrap();
        check(&store, &acked).await;
    }
    assert!(acked.len() > 50);
}

#[tokio::test]
async fn a_second_opening_is_refused_and_a_closed_store_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let first: Arc<dyn Store> = EmbeddedStore::open(dir.path(), options()).unwrap();
    let version = create(&first, "/a", "x").await;
    let incarnation = first.info().incarnation;
    match EmbeddedStore::open(dir.path(), options()).map(|_| ()) {
        Err(StoreError::Unavailable(text)) => {
            assert!(text.contains("in use"), "{text}");
            assert!(text.contains(&std::process::id().to_string()), "{text}");
        }
        other => panic!("{other:?}"),
    }
    drop(first);
    let again: Arc<dyn Store> = EmbeddedStore::open(dir.path(), options()).unwrap();
    assert_eq!(again.current().await.unwrap(), version);
    assert_eq!(again.info().incarnation, incarnation);
}

#[tokio::test]
async fn a_version_floor_starts_above_it_and_turns_older_watchers_away() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = EmbeddedStore::open(dir.path(), options()).unwrap();
    let version = create(&store, "/a", "x").await;
    let incarnation = store.info().incarnation;
    drop(store);
    let floor = EmbeddedOptions {
        version_floor: 5000,
        ..options()
    };
    for _ in 0..2 {
        let store: Arc<dyn Store> = EmbeddedStore::open(dir.path(), floor.clone()).unwrap();
        assert!(store.current().await.unwrap() >= 5000);
        assert_ne!(store.info().incarnation, incarnation);
        let old = store.watch(version).await.err();
        assert!(matches!(old, Some(StoreError::Compacted { .. })), "{old:?}");
        assert_eq!(list_all(&store, "/").await.0.len(), 1);
    }
    let store: Arc<dyn Store> = EmbeddedStore::open(dir.path(), floor).unwrap();
    assert!(create(&store, "/b", "x").await > 5000);
}

#[tokio::test]
async fn a_disk_without_reserve_refuses_writes_and_goes_on_reading() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = EmbeddedStore::open(dir.path(), options()).unwrap();
    create(&store, "/a", "x").await;
    drop(store);
    let full = EmbeddedOptions {
        free_bytes_min: u64::MAX,
        ..options()
    };
    let store: Arc<dyn Store> = EmbeddedStore::open(dir.path(), full).unwrap();
    let txn = Txn {
        guards: vec![],
        writes: vec![put("/b", "x")],
    };
    match store.commit(txn).await {
        Err(StoreError::Unavailable(text)) => assert!(text.contains("disk full"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(store.get("/a").await.unwrap().is_some());
    assert_eq!(list_all(&store, "/").await.0.len(), 1);
    assert_eq!(store.stats().failures, 1);
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for item in std::fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else if path.metadata().unwrap().len() > 0 {
            out.push(path);
        }
    }
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let path = item.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Reads everything; `Ok` only if nothing acknowledged is missing.
async fn open_and_read(dir: &Path, count: usize) -> Result<(), StoreError> {
    let store: Arc<dyn Store> = EmbeddedStore::open(dir, options())?;
    let request = ListRequest {
        prefix: "/".into(),
        ..ListRequest::default()
    };
    let page = store.list(request).await?;
    assert_eq!(page.items.len(), count, "silently lost");
    for (i, record) in page.items.iter().enumerate() {
        let expected = format!("{i:05}");
        assert!(record.value.starts_with(expected.as_bytes()), "changed");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_an_error_or_harmless_but_never_silent() {
    const COUNT: usize = 300;
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = EmbeddedStore::open(dir.path(), options()).unwrap();
    for i in 0..COUNT {
        let text = format!("{i:05}{}", "v".repeat(600));
        create(&store, &format!("/d/{i:05}"), &text).await;
    }
    drop(store);
    let mut names = Vec::new();
    files(dir.path(), &mut names);
    let mut refused = 0;
    for name in names {
        let relative = name.strip_prefix(dir.path()).unwrap();
        let bytes = std::fs::read(&name).unwrap();
        // Where there is something: the preallocated zeros behind a journal carry no data.
        let used = bytes.iter().rposition(|b| *b != 0).map_or(1, |at| at + 1);
        for k in 0..6 {
            let at = used * k / 6;
            for zero_page in [false, true] {
                let work = tempfile::tempdir().unwrap();
                copy(dir.path(), work.path());
                let mut damaged = bytes.clone();
                if zero_page {
                    let end = (at + 4096).min(used);
                    damaged[at..end].fill(0);
                } else {
                    damaged[at] ^= 0x10;
                }
                std::fs::write(work.path().join(relative), damaged).unwrap();
                match open_and_read(work.path(), COUNT).await {
                    Ok(()) => {}
                    Err(error) => {
                        refused += 1;
                        assert!(error.to_string().len() > 10);
                    }
                }
            }
        }
    }
    assert!(refused > 0, "no damage was noticed at all");
    // A database that is gone is not an empty one.
    std::fs::remove_dir_all(dir.path().join("db")).unwrap();
    let gone = EmbeddedStore::open(dir.path(), options()).map(|_| ());
    assert!(matches!(gone, Err(StoreError::Corrupt(_))), "{gone:?}");
}

/// Runs the child under strace, or says why not.
fn traced(dir: &Path, calls: &str, writes: u64, trace: &Path) -> bool {
    let found = Command::new("strace").arg("-V").output();
    if !found.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: strace is not installed");
        return false;
    }
    let plain = child(dir);
    let mut command = Command::new("strace");
    command
        .args(["-f", "-y", "-s", "200", "-e", calls, "-o"])
        .arg(trace)
        .arg(plain.get_program())
        .args(plain.get_args())
        .env(CHILD_DIR, dir)
        .env(CHILD_WRITES, writes.to_string())
        .env(CHILD_TASKS, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let started = Instant::now();
    let status = command.status().unwrap();
    assert!(started.elapsed() < Duration::from_secs(120));
    if !status.success() {
        eprintln!("skipped: strace cannot trace here ({status})");
    }
    status.success()
}

#[test]
fn a_sync_precedes_every_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let store = dir.path().join("store");
    if !traced(&store, "trace=write,fsync,fdatasync", 60, &trace) {
        return;
    }
    let text = std::fs::read_to_string(&trace).unwrap();
    // Between the last write to a journal and an acknowledgement there must be a finished sync of it.
    let mut dirty = false;
    let mut pending: BTreeMap<&str, bool> = BTreeMap::new();
    let (mut acks, mut syncs) = (0, 0);
    for line in text.lines() {
        let Some((pid, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        let journal = call.contains(".jnl>");
        let sync = call.starts_with("fdatasync(") || call.starts_with("fsync(");
        let done = call.ends_with("= 0")
            && ((sync && journal)
                || (call.contains("sync resumed") && pending.remove(pid).is_some()));
        if call.starts_with("write(") && journal {
            dirty = true;
        } else if sync && journal && call.contains("unfinished") {
            pending.insert(pid, true);
        } else if done {
            dirty = false;
            syncs += 1;
        } else if call.starts_with("write(1<") && call.contains("acked") {
            acks += 1;
            // One writer: nothing else is on its way, so nothing may be unsynced now.
            assert!(!dirty, "acknowledged before it was synced: {call}");
        }
    }
    assert!(acks >= 60, "{acks} acknowledgements seen");
    assert!(syncs >= 60, "{syncs} syncs seen");
}

/// A small file system of our own, gone when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`, with the reason printed, where mounting is not allowed.
    fn mount(megabytes: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped: mounting a tmpfs is not allowed here");
            return None;
        }
        Some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Nothing to do about a failure but to leave the mount behind.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_and_recovers_by_itself() {
    let Some(disk) = SmallDisk::mount(48) else {
        return;
    };
    let filler = disk.0.path().join("filler");
    std::fs::write(&filler, vec![1; 24 << 20]).unwrap();
    // Without a reserve, so that the database itself meets the full disk.
    let dir = disk.0.path().join("store");
    let store: Arc<dyn Store> = EmbeddedStore::open(&dir, options()).unwrap();
    let mut acked = Acked::new();
    let text = "x".repeat(100_000);
    let write = |i: usize| Txn {
        guards: vec![],
        writes: vec![
            put(&format!("/k/{i}"), &text),
            put(&format!("/k/{i}/pair"), &text),
        ],
    };
    let mut i = 0;
    let error = loop {
        match store.commit(write(i)).await {
            Ok(versions) => drop(acked.insert(format!("/k/{i}"), (versions[0], "xxx".into()))),
            Err(error) => break error,
        }
        i += 1;
        assert!(i < 1000, "the disk does not fill up");
    };
    assert!(
        matches!(error, StoreError::Unknown(_) | StoreError::Unavailable(_)),
        "{error:?}"
    );
    assert!(acked.len() > 10);
    std::fs::remove_file(&filler).unwrap();
    let deadline = Instant::now() + crate::support::PATIENCE;
    let versions = loop {
        match store.commit(write(i + 1)).await {
            Ok(versions) => break versions,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    acked.insert(format!("/k/{}", i + 1), (versions[0], "xxx".into()));
    check(&store, &acked).await;
    drop(store);
    let store: Arc<dyn Store> = EmbeddedStore::open(&dir, options()).unwrap();
    check(&store, &acked).await;
}
