//! Every write of a run in order, and the promises that must hold after each of them.
//!
//! Checked, with the names of the list of invariants: N1 no node is over-allocated; N2 a Task is
//! bound once; N5 no Queue exceeds its limit by a new Task; A2 a terminal status never changes;
//! S1 acknowledged writes are in the history once, and versions follow real time; S4 a watch shows
//! exactly the history.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use parking_lot::Mutex;
use rota_api::quantity::Quantity;
use rota_store::{Event, Store, Version};
use serde_json::Value;
use tokio::task::JoinHandle;

const TASKS: &str = "/rota.dev/tasks/";
const QUEUES: &str = "/rota.dev/queues/";
const NODES: &str = "/core/nodes/";

/// A recording of all writes to a store.
pub struct History {
    events: Arc<Mutex<Vec<Event>>>,
    recorder: JoinHandle<()>,
}

impl History {
    /// Records from now on.
    pub async fn record(store: &dyn Store) -> History {
        let events = Arc::new(Mutex::new(Vec::new()));
        let from = match store.current().await {
            Ok(version) => version,
            Err(error) => panic!("cannot record: {error}"),
        };
        let mut watch = match store.watch(from).await {
            Ok(watch) => watch,
            Err(error) => panic!("cannot record: {error}"),
        };
        let into = events.clone();
        let recorder = tokio::spawn(async move {
            while let Some(Ok(batch)) = watch.next().await {
                into.lock().extend(batch.events);
            }
        });
        History { events, recorder }
    }

    /// What was written so far.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().clone()
    }

    /// Checks all promises about placement. Panics with the first broken one.
    #[track_caller]
    pub fn check(&self) {
        if let Err(broken) = check(&self.events()) {
            panic!("{broken}");
        }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.recorder.abort();
    }
}

/// What one Task holds.
struct Held {
    uid: String,
    node: String,
    queue: String,
    requests: BTreeMap<String, Quantity>,
    terminal: Option<Value>,
}

fn quantities(value: &Value) -> BTreeMap<String, Quantity> {
    serde_json::from_value(value.clone()).unwrap_or_default()
}

/// The first promise that a history of writes breaks.
pub fn check(events: &[Event]) -> Result<(), String> {
    let mut tasks: HashMap<Arc<str>, Held> = HashMap::new();
    let mut bound: HashMap<String, String> = HashMap::new();
    let mut allocatable: HashMap<String, BTreeMap<String, Quantity>> = HashMap::new();
    let mut limits: HashMap<String, BTreeMap<String, Quantity>> = HashMap::new();
    let mut last = 0;
    for event in events {
        let at = event.version;
        if at <= last {
            return Err(format!("S1: version {at} after {last}"));
        }
        last = at;
        let object: Value = match &event.value {
            Some(bytes) => serde_json::from_slice(bytes).unwrap_or(Value::Null),
            None => Value::Null,
        };
        if let Some(name) = event.key.strip_prefix(NODES) {
            allocatable.insert(name.into(), quantities(&object["status"]["allocatable"]));
        } else if let Some(name) = event.key.strip_prefix(QUEUES) {
            limits.insert(name.into(), quantities(&object["spec"]["limit"]));
        } else if event.key.starts_with(TASKS) {
            if event.value.is_none() {
                tasks.remove(&event.key);
                continue;
            }
            let created = task(&mut tasks, &mut bound, event, &object)?;
            if created {
                let held = &tasks[&event.key];
                let node = sum(&tasks, |t| t.node == held.node);
                over(&node, allocatable.get(&held.node))
                    .map_err(|e| format!("N1: version {at}: node {}: {e}", held.node))?;
                let queue = sum(&tasks, |t| t.queue == held.queue);
                over(&queue, limits.get(&held.queue))
                    .map_err(|e| format!("N5: version {at}: queue {}: {e}", held.queue))?;
            }
        }
    }
    Ok(())
}

/// Takes in one write of a Task; whether it is a new one.
fn task(
    tasks: &mut HashMap<Arc<str>, Held>,
    bound: &mut HashMap<String, String>,
    event: &Event,
    object: &Value,
) -> Result<bool, String> {
    let text = |v: &Value| v.as_str().unwrap_or("").to_string();
    let uid = text(&object["metadata"]["uid"]);
    let node = text(&object["spec"]["nodeName"]);
    let at = event.version;
    if let Some(before) = bound.insert(uid.clone(), node.clone())
        && before != node
    {
        return Err(format!(
            "N2: version {at}: {} moved from {before} to {node}",
            event.key
        ));
    }
    let status = &object["status"];
    let terminal = matches!(
        status["phase"].as_str(),
        Some("Succeeded" | "Failed" | "Lost")
    )
    .then(|| serde_json::json!([status["phase"], status["exitCode"]]));
    let before = tasks.get(&event.key).filter(|t| t.uid == uid);
    if let Some(Held {
        terminal: Some(ended),
        ..
    }) = before
        && terminal.as_ref() != Some(ended)
    {
        return Err(format!(
            "A2: version {at}: {} was {ended} and became {status}",
            event.key
        ));
    }
    let created = before.is_none();
    tasks.insert(
        event.key.clone(),
        Held {
            uid,
            node,
            queue: text(&object["spec"]["queue"]),
            requests: quantities(&object["spec"]["requests"]),
            terminal,
        },
    );
    Ok(created)
}

/// What live tasks hold together, in base units.
fn sum(tasks: &HashMap<Arc<str>, Held>, of: impl Fn(&Held) -> bool) -> BTreeMap<String, i128> {
    let mut total = BTreeMap::new();
    for task in tasks.values().filter(|t| t.terminal.is_none() && of(t)) {
        for (name, quantity) in &task.requests {
            *total.entry(name.clone()).or_insert(0) += i128::from(quantity.base_ceil(name));
        }
    }
    total
}

/// The first resource of which more is held than there is. Without a bound for it, anything goes.
fn over(
    held: &BTreeMap<String, i128>,
    most: Option<&BTreeMap<String, Quantity>>,
) -> Result<(), String> {
    for (name, held) in held {
        if let Some(most) = most.and_then(|m| m.get(name))
            && *held > i128::from(most.base_floor(name))
        {
            return Err(format!("{held} of {most:?} {name} are held"));
        }
    }
    Ok(())
}

/// One acknowledged write: its key and version, and when it was asked for and answered.
#[derive(Clone, Debug)]
pub struct Ack {
    /// Key written.
    pub key: String,
    /// Version answered.
    pub version: Version,
    /// When it was asked for, in any unit that only grows.
    pub called: u64,
    /// When it was answered.
    pub answered: u64,
}

/// S1: every acknowledged write is in the history once, and versions follow real time.
pub fn check_acks(events: &[Event], acks: &[Ack]) -> Result<(), String> {
    let written: HashMap<Version, &str> = events.iter().map(|e| (e.version, &*e.key)).collect();
    let mut seen = HashSet::new();
    for ack in acks {
        if written.get(&ack.version) != Some(&ack.key.as_str()) {
            return Err(format!("S1: {ack:?} is not in the history"));
        }
        if !seen.insert(ack.version) {
            return Err(format!(
                "S1: version {} was acknowledged twice",
                ack.version
            ));
        }
    }
    let mut by_call: Vec<&Ack> = acks.iter().collect();
    let mut by_answer = by_call.clone();
    by_call.sort_by_key(|a| a.called);
    by_answer.sort_by_key(|a| a.answered);
    let mut answered = by_answer.into_iter().peekable();
    let mut highest = 0;
    for ack in by_call {
        while let Some(earlier) = answered.next_if(|a| a.answered < ack.called) {
            highest = highest.max(earlier.version);
        }
        if ack.version <= highest {
            return Err(format!(
                "S1: {ack:?} is not above the earlier version {highest}"
            ));
        }
    }
    Ok(())
}

/// S4: a watch of a prefix from a version shows exactly the history there.
pub fn check_watch(
    events: &[Event],
    prefix: &str,
    from: Version,
    seen: &[Version],
) -> Result<(), String> {
    let until = seen.last().copied().unwrap_or(from);
    let wanted: Vec<Version> = events
        .iter()
        .filter(|e| e.key.starts_with(prefix) && e.version > from && e.version <= until)
        .map(|e| e.version)
        .collect();
    if wanted == seen {
        return Ok(());
    }
    let missing: Vec<_> = wanted
        .iter()
        .filter(|v| !seen.contains(v))
        .take(5)
        .collect();
    let extra: Vec<_> = seen
        .iter()
        .filter(|v| !wanted.contains(v))
        .take(5)
        .collect();
    Err(format!(
        "S4: a watch from {from} misses {missing:?}, shows {extra:?} too many, or is out of order"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(version: Version, key: &str, value: Option<Value>) -> Event {
        Event {
            version,
            key: key.into(),
            value: value.map(|v| v.to_string().into()),
            expires_at: None,
        }
    }

    fn task_on(node: &str, uid: &str, cpu: &str, status: Value) -> Value {
        json!({"metadata": {"uid": uid},
               "spec": {"nodeName": node, "queue": "q", "requests": {"cpu": cpu}}, "status": status})
    }

    fn node(cpu: &str) -> Event {
        event(
            1,
            "/core/nodes/n",
            Some(json!({"status": {"allocatable": {"cpu": cpu}}})),
        )
    }

    #[test]
    fn each_broken_promise_is_found() {
        let fine = [
            node("1"),
            event(
                2,
                "/rota.dev/tasks/d/a",
                Some(task_on("n", "1", "600m", json!({}))),
            ),
            event(
                3,
                "/rota.dev/tasks/d/a",
                Some(task_on("n", "1", "600m", json!({"phase": "Succeeded"}))),
            ),
            event(
                4,
                "/rota.dev/tasks/d/b",
                Some(task_on("n", "2", "600m", json!({}))),
            ),
        ];
        assert_eq!(check(&fine), Ok(()));

        let mut over = fine.to_vec();
        over.remove(2);
        assert!(check(&over).unwrap_err().starts_with("N1"));

        let mut queue = fine.to_vec();
        queue[0] = event(
            1,
            "/rota.dev/queues/q",
            Some(json!({"spec": {"limit": {"cpu": "500m"}}})),
        );
        assert!(check(&queue).unwrap_err().starts_with("N5"));

        let mut moved = fine.to_vec();
        moved.push(event(
            5,
            "/rota.dev/tasks/d/b",
            Some(task_on("m", "2", "600m", json!({}))),
        ));
        assert!(check(&moved).unwrap_err().starts_with("N2"));

        let mut revived = fine.to_vec();
        revived.push(event(
            5,
            "/rota.dev/tasks/d/a",
            Some(task_on("n", "1", "600m", json!({"phase": "Running"}))),
        ));
        assert!(check(&revived).unwrap_err().starts_with("A2"));

        let mut back = fine.to_vec();
        back.swap(0, 1);
        assert!(check(&back).unwrap_err().starts_with("S1"));
    }

    #[test]
    fn acknowledgements_and_watches_are_held_against_the_history() {
        let events = [
            event(5, "/a/x", Some(json!(1))),
            event(7, "/a/y", Some(json!(2))),
            event(9, "/b/z", None),
        ];
        let ack = |key: &str, version, called, answered| Ack {
            key: key.into(),
            version,
            called,
            answered,
        };
        assert_eq!(
            check_acks(&events, &[ack("/a/x", 5, 1, 2), ack("/a/y", 7, 3, 4)]),
            Ok(())
        );
        assert!(check_acks(&events, &[ack("/a/x", 6, 1, 2)]).is_err());
        assert!(check_acks(&events, &[ack("/a/x", 5, 3, 4), ack("/a/y", 7, 1, 2)]).is_err());
        assert_eq!(check_watch(&events, "/a/", 5, &[7]), Ok(()));
        assert_eq!(check_watch(&events, "/a/", 0, &[5, 7]), Ok(()));
        assert!(check_watch(&events, "/a/", 0, &[7]).is_err());
        assert!(check_watch(&events, "/a/", 0, &[5, 7, 9]).is_err());
        assert!(check_watch(&events, "/a/", 0, &[7, 5]).is_err());
    }
}
