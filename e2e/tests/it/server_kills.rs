//! `kill -9` of the server under load: what was acknowledged is there, once, at the version that was
//! acknowledged; and no acknowledgement is sent before the disk has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::Rng;
use serde_json::{Value, json};

use crate::harness::cluster::{Options, items};
use crate::harness::wait::check;
use crate::harness::{Cluster, Http, Store, env_number, eventually, on_path, skip};

/// Clients that write at once.
const WRITERS: usize = 8;
/// Acknowledgements that there must be between two kills.
const ACKS_BETWEEN_KILLS: usize = 50;
/// Where the writers write.
const COLLECTION: &str = "/api/v1/namespaces/default/configmaps";

#[test]
fn nothing_acknowledged_is_lost_on_the_embedded_store() {
    campaign(Store::Embedded, env_number("ROTA_E2E_KILLS", 15), None);
}

#[test]
fn nothing_acknowledged_is_lost_on_etcd() {
    if on_path("etcd").is_none() {
        return skip("there is no etcd on the PATH");
    }
    campaign(
        Store::Etcd,
        env_number("ROTA_E2E_KILLS", 15).div_ceil(3),
        None,
    );
}

/// With so little history the server compacts all the time, so kills fall into compactions too.
#[test]
fn nothing_acknowledged_is_lost_while_history_is_forgotten() {
    let kills = env_number("ROTA_E2E_KILLS", 15).div_ceil(5);
    campaign(Store::Embedded, kills, Some(3));
}

/// What a writer did to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// It holds this number.
    Holds(u64),
    /// It is gone.
    Gone,
}

/// One acknowledged write.
#[derive(Clone, Debug)]
struct Ack {
    name: String,
    state: State,
    version: u64,
    called: Instant,
    answered: Instant,
}

/// A write whose outcome the writer never learnt: it may have happened, once.
#[derive(Clone, Debug)]
struct Unknown {
    name: String,
    state: State,
}

#[derive(Default)]
struct Log {
    acks: Vec<Ack>,
    unknown: Vec<Unknown>,
}

struct Shared {
    stop: AtomicBool,
    acks: AtomicUsize,
    log: Mutex<Log>,
}

fn campaign(store: Store, kills: usize, history_seconds: Option<u64>) {
    let history = history_seconds.map(|s| ["--history-seconds".to_string(), s.to_string()]);
    let mut cluster = Cluster::prepare(Options {
        nodes: 0,
        store,
        args: history.into_iter().flatten().collect(),
        ..Options::default()
    });
    cluster.launch();
    cluster.wait_ready();
    let http = cluster.http();
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        acks: AtomicUsize::new(0),
        log: Mutex::new(Log::default()),
    });
    let start_version = list_version(&mut http.clone());
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| {
            let (http, shared) = (http.clone(), shared.clone());
            std::thread::spawn(move || write(w, http, &shared))
        })
        .collect();

    let mut random = rand::rng();
    let mut seen: BTreeMap<u64, (String, State)> = BTreeMap::new();
    let mut killed_in_start = 0;
    for kill in 0..kills {
        let before = shared.acks.load(Ordering::Relaxed);
        let mut from = None;
        eventually(
            &format!("writes are acknowledged before kill {kill}"),
            || {
                let since = shared.acks.load(Ordering::Relaxed) - before;
                if from.is_none() && since >= ACKS_BETWEEN_KILLS / 2 {
                    let log = shared.log.lock().unwrap();
                    // Deletions are acknowledged without a version.
                    from = log.acks.iter().rev().map(|a| a.version).find(|v| *v > 0);
                }
                check(since >= ACKS_BETWEEN_KILLS, || format!("{since} so far"))
            },
        );
        if let Some(seconds) = history_seconds {
            // Lives long enough to compact, and dies at any point of doing so.
            std::thread::sleep(Duration::from_millis(
                random.random_range(seconds * 1000..seconds * 2000),
            ));
            let log = shared.log.lock().unwrap();
            from = log.acks.iter().rev().map(|a| a.version).find(|v| *v > 0);
        }
        cluster.kill_server();
        if kill % 4 == 1 && history_seconds.is_none() {
            // Killed again at any point of its start.
            cluster.launch();
            std::thread::sleep(Duration::from_millis(random.random_range(1..400)));
            cluster.kill_server();
            killed_in_start += 1;
        }
        cluster.launch();
        cluster.wait_ready();
        let from = from.unwrap();
        for (version, event) in watch_to_now(&http, from) {
            if let Some(earlier) = seen.insert(version, event.clone()) {
                assert_eq!(earlier, event, "version {version} changed its meaning");
            }
        }
        let log = shared.log.lock().unwrap();
        let newest = seen.keys().next_back().copied().unwrap_or(0);
        for ack in log
            .acks
            .iter()
            .rev()
            .take_while(|a| a.answered.elapsed() < Duration::from_secs(300))
        {
            if ack.version > from && ack.version <= newest {
                let event = seen.get(&ack.version);
                assert_eq!(
                    event,
                    Some(&(ack.name.clone(), ack.state.clone())),
                    "kill {kill}: a watch resumed at {from} does not show the acknowledged version {}",
                    ack.version
                );
            }
        }
    }
    shared.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.join().unwrap();
    }
    let log = shared.log.lock().unwrap();
    eprintln!(
        "{kills} kills, {killed_in_start} of them twice; {} acknowledged, {} unknown",
        log.acks.len(),
        log.unknown.len()
    );
    versions_follow_time(&log.acks);
    list_is_explained(&mut http.clone(), &log);
    watch_is_explained(&seen, &log, start_version);
}

/// Creates, changes and deletes objects of its own, and writes down what was acknowledged.
fn write(writer: usize, mut http: Http, shared: &Shared) {
    let mut random = rand::rng();
    let mut mine: Vec<(String, u64)> = Vec::new();
    for n in 0u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let pick = (!mine.is_empty()).then(|| random.random_range(0..mine.len()));
        let (name, state, at) = match (random.random_range(0..10), pick) {
            (0..=3, Some(at)) => (mine[at].0.clone(), State::Holds(n), Some(at)),
            (4..=5, Some(at)) => (mine[at].0.clone(), State::Gone, Some(at)),
            _ => (format!("w{writer}-{n}"), State::Holds(n), None),
        };
        let path = format!("{COLLECTION}/{name}");
        let called = Instant::now();
        let answer = match (&state, at) {
            (State::Gone, _) => http.try_request("DELETE", &path, &[], b""),
            (State::Holds(n), Some(_)) => http.try_request(
                "PATCH",
                &path,
                &[("Content-Type", "application/merge-patch+json")],
                json!({"data": {"n": n.to_string()}}).to_string().as_bytes(),
            ),
            (State::Holds(n), None) => http.try_request(
                "POST",
                COLLECTION,
                &[("Content-Type", "application/json")],
                json!({
                    "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": name}, "data": {"n": n.to_string(), "fill": "x".repeat(600)},
                })
                .to_string()
                .as_bytes(),
            ),
        };
        let answered = Instant::now();
        let mut log = shared.log.lock().unwrap();
        match answer {
            Ok(answer) if (200..300).contains(&answer.status) => {
                let json = answer.json();
                // A deletion answers with a Status, which has no version of the object: the watch tells it.
                let version = json["metadata"]["resourceVersion"]
                    .as_str()
                    .and_then(|v| v.parse().ok())
                    .filter(|_| state != State::Gone);
                match (&state, at) {
                    (State::Gone, Some(at)) => drop(mine.swap_remove(at)),
                    (State::Holds(n), Some(at)) => mine[at].1 = *n,
                    (State::Holds(n), None) => mine.push((name.clone(), *n)),
                    (State::Gone, None) => unreachable!("only own objects are deleted"),
                }
                if state != State::Gone {
                    assert!(version.is_some(), "acknowledged without a version: {json}");
                }
                log.acks.push(Ack {
                    name,
                    state,
                    version: version.unwrap_or(0),
                    called,
                    answered,
                });
                shared.acks.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => {
                assert!(
                    answer.status >= 500,
                    "HTTP {} for a write that nothing contradicts: {}",
                    answer.status,
                    answer.text()
                );
                log.unknown.push(Unknown { name, state });
                if let Some(at) = at {
                    mine.swap_remove(at);
                }
            }
            Err(_) => {
                log.unknown.push(Unknown { name, state });
                if let Some(at) = at {
                    mine.swap_remove(at);
                }
                drop(log);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn list_version(http: &mut Http) -> u64 {
    let list = http.get(&format!("{COLLECTION}?limit=1")).ok();
    list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

/// Everything that a watch from a version shows, up to a write that is made now.
fn watch_to_now(http: &Http, from: u64) -> Vec<(u64, (String, State))> {
    let watch = http
        .watch(&format!(
            "{COLLECTION}?watch=true&resourceVersion={from}&timeoutSeconds=60"
        ))
        .unwrap();
    let marker = http
        .clone()
        .post(
            COLLECTION,
            &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "marker-"}}),
        )
        .ok();
    let until = version(&marker);
    let mut events = Vec::new();
    let mut last = from;
    for event in watch {
        let object = &event["object"];
        assert_ne!(
            event["type"], "ERROR",
            "a watch from {from} failed: {object}"
        );
        let at = version(object);
        assert!(at > last, "version {at} after {last}");
        last = at;
        let name = object["metadata"]["name"].as_str().unwrap().to_string();
        if name.starts_with('w') {
            events.push((at, (name, state(&event))));
        }
        if at >= until {
            return events;
        }
    }
    panic!("the watch from {from} ended before version {until}")
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

fn state(event: &Value) -> State {
    if event["type"] == "DELETED" {
        State::Gone
    } else {
        State::Holds(
            event["object"]["data"]["n"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap(),
        )
    }
}

/// If one write was acknowledged before another was asked for, its version is lower.
fn versions_follow_time(acks: &[Ack]) {
    let mut by_call: Vec<&Ack> = acks.iter().filter(|a| a.version > 0).collect();
    let mut by_answer = by_call.clone();
    by_call.sort_by_key(|a| a.called);
    by_answer.sort_by_key(|a| a.answered);
    let mut answered = by_answer.into_iter().peekable();
    let mut highest = 0;
    for ack in by_call {
        while let Some(earlier) = answered.next_if(|a| a.answered < ack.called) {
            highest = highest.max(earlier.version);
        }
        assert!(ack.version > highest, "{ack:?} is not above {highest}");
    }
}

/// The newest state of every object is what was acknowledged last, or an unknown write after it.
fn list_is_explained(http: &mut Http, log: &Log) {
    let mut listed: HashMap<String, (u64, u64)> = HashMap::new();
    let mut token = String::new();
    loop {
        let page = http
            .get(&format!("{COLLECTION}?limit=500&continue={token}"))
            .ok();
        for item in items(&page) {
            let name = item["metadata"]["name"].as_str().unwrap().to_string();
            if name.starts_with('w') {
                let n = item["data"]["n"].as_str().unwrap().parse().unwrap();
                listed.insert(name, (n, version(item)));
            }
        }
        match page["metadata"]["continue"].as_str() {
            Some(next) if !next.is_empty() => {
                token = next
                    .replace('+', "%2B")
                    .replace('/', "%2F")
                    .replace('=', "%3D")
            }
            _ => break,
        }
    }
    let mut acked: BTreeMap<&str, &Ack> = BTreeMap::new();
    for ack in &log.acks {
        acked.insert(&ack.name, ack);
    }
    let unknown: HashMap<&str, &State> = log
        .unknown
        .iter()
        .map(|u| (u.name.as_str(), &u.state))
        .collect();
    for (name, ack) in &acked {
        let now = listed.get(*name);
        let as_acknowledged = match (&ack.state, now) {
            (State::Gone, None) => true,
            (State::Holds(n), Some((held, at))) => n == held && ack.version == *at,
            _ => false,
        };
        let as_unknown = match (unknown.get(name), now) {
            (Some(State::Gone), None) => true,
            (Some(State::Holds(n)), Some((held, at))) => n == held && *at > ack.version,
            _ => false,
        };
        assert!(
            as_acknowledged || as_unknown,
            "{name}: acknowledged {ack:?}, unknown {:?}, listed {now:?}",
            unknown.get(name)
        );
    }
    for name in listed.keys() {
        assert!(
            acked.contains_key(name.as_str()) || unknown.contains_key(name.as_str()),
            "{name} is listed and nobody wrote it"
        );
    }
}

/// Every event is an acknowledged write at its version, an acknowledged deletion, or one unknown write.
fn watch_is_explained(seen: &BTreeMap<u64, (String, State)>, log: &Log, start: u64) {
    let acked: HashMap<u64, &Ack> = log
        .acks
        .iter()
        .filter(|a| a.version > 0)
        .map(|a| (a.version, a))
        .collect();
    let deleted: BTreeSet<&str> = log
        .acks
        .iter()
        .filter(|a| a.state == State::Gone)
        .map(|a| a.name.as_str())
        .collect();
    let mut unknown: Vec<(&str, &State)> = log
        .unknown
        .iter()
        .map(|u| (u.name.as_str(), &u.state))
        .collect();
    let mut deletions = BTreeSet::new();
    for (version, (name, state)) in seen {
        assert!(*version > start);
        if let Some(ack) = acked.get(version) {
            assert_eq!((&ack.name, &ack.state), (name, state), "version {version}");
            continue;
        }
        if *state == State::Gone && deleted.contains(name.as_str()) {
            assert!(deletions.insert(name), "{name} was deleted twice");
            continue;
        }
        match unknown.iter().position(|u| *u == (name.as_str(), state)) {
            Some(at) => drop(unknown.swap_remove(at)),
            None => panic!("version {version} ({name} {state:?}) was written by nobody, or twice"),
        }
    }
}

/// System calls that put data on the disk.
const SYNCS: &str = "fsync,fdatasync,msync,sync_file_range";

#[test]
fn a_sync_precedes_every_acknowledgement() {
    if on_path("strace").is_none() {
        return skip("there is no strace on the PATH");
    }
    let trace_dir = tempfile::tempdir().unwrap();
    let trace = trace_dir.path().join("trace");
    let mut cluster = Cluster::prepare(Options {
        nodes: 0,
        wrapper: [
            "strace",
            "-f",
            "-y",
            "-ttt",
            "-T",
            "-e",
            &format!("trace={SYNCS}"),
            "-o",
            &trace.to_string_lossy(),
        ]
        .map(String::from)
        .to_vec(),
        ..Options::default()
    });
    cluster.launch();
    cluster.wait_ready();
    let http = cluster.http();
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| {
            let mut http = http.clone();
            std::thread::spawn(move || {
                let mut times = Vec::new();
                for n in 0..25 {
                    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("s{w}-{n}")}});
                    let called = unix_time();
                    http.post(COLLECTION, &body).ok();
                    times.push((called, unix_time()));
                }
                times
            })
        })
        .collect();
    let acks: Vec<(f64, f64)> = writers
        .into_iter()
        .flat_map(|w| w.join().unwrap())
        .collect();
    cluster.stop_server();
    let text = std::fs::read_to_string(&trace).unwrap();
    let store = cluster
        .data_dir()
        .join("store")
        .to_string_lossy()
        .into_owned();
    let syncs = syncs(&text, &store);
    assert!(!syncs.is_empty(), "no sync below {store} in\n{text}");
    for (called, answered) in &acks {
        assert!(
            syncs
                .iter()
                .any(|(begun, ended)| begun > called && ended < answered),
            "no sync between the request at {called} and its acknowledgement at {answered}"
        );
    }
    eprintln!("{} acknowledgements, {} syncs", acks.len(), syncs.len());
    // Groups are the point of it: fewer syncs than acknowledgements under load.
    assert!(syncs.len() < acks.len() * 2);
}

fn unix_time() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

/// Begin and end of every successful sync of a file below a directory.
fn syncs(trace: &str, dir: &str) -> Vec<(f64, f64)> {
    let mut begun: HashMap<&str, (f64, bool)> = HashMap::new();
    let mut all = Vec::new();
    for line in trace.lines() {
        let mut words = line.split_whitespace();
        let (Some(pid), Some(at)) = (
            words.next(),
            words.next().and_then(|t| t.parse::<f64>().ok()),
        ) else {
            continue;
        };
        if line.ends_with("<unfinished ...>") {
            begun.insert(pid, (at, line.contains(dir)));
        } else if line.contains(" resumed>") {
            if let Some((start, ours)) = begun.remove(pid)
                && ours
                && line.contains(") = 0")
            {
                all.push((start, at));
            }
        } else if line.contains(dir)
            && line.contains(") = 0")
            && let Some(took) = line
                .rsplit_once('<')
                .and_then(|(_, t)| t.trim_end_matches('>').parse::<f64>().ok())
        {
            all.push((at, at + took));
        }
    }
    all
}
