//! Events that tell users what a controller did and why.
//!
//! The same fact about the same object is one Event object with a count, written at most once a
//! minute; a stream of ever new facts about one object is cut. Best effort: an Event that cannot
//! be written is dropped, never waited for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use rota_api::names::short_hash;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{Failure, Rest, escape};
use super::clock::Clock;

/// A repeated Event is written at most this often.
const REPEAT: Duration = Duration::from_secs(60);
/// Distinct Events about one object before it is held to [`REFILL`].
const BURST: f64 = 25.0;
/// Time in which one more Event about such an object becomes free.
const REFILL: Duration = Duration::from_secs(30);
/// Facts and objects that are remembered; above that the memory starts anew, which costs only
/// a repeated write.
const MEMORY: usize = 8192;
/// Events that wait to be written.
const WAITING: usize = 1024;

/// The object that an Event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Regarding {
    /// apiVersion.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Namespace, empty for cluster-wide objects.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
}

impl Regarding {
    /// From an object of a known kind.
    pub fn of<K: kube::Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Self {
        Regarding {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }
}

/// One fact to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// About what.
    pub regarding: Regarding,
    /// Something that a user should look at.
    pub warning: bool,
    /// CamelCase cause.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

impl Note {
    /// An ordinary fact.
    pub fn normal(regarding: Regarding, reason: &str, message: impl Into<String>) -> Self {
        Note {
            regarding,
            warning: false,
            reason: reason.into(),
            message: message.into(),
        }
    }

    /// A fact that a user should look at.
    pub fn warning(regarding: Regarding, reason: &str, message: impl Into<String>) -> Self {
        Note {
            warning: true,
            ..Note::normal(regarding, reason, message)
        }
    }

    /// Name of its Event: the same for the same fact about the same object.
    fn event_name(&self) -> String {
        let cut: String = self.regarding.name.chars().take(200).collect();
        let hash = short_hash(&[&self.regarding.uid, &self.reason, &self.message], 16);
        format!("{cut}.{hash}")
    }
}

struct Seen {
    written: Instant,
    /// Times told in all, and of these not yet written.
    count: u64,
    unwritten: u64,
}

struct Budget {
    tokens: f64,
    at: Instant,
}

#[derive(Default)]
struct Memory {
    seen: HashMap<String, Seen>,
    budgets: HashMap<String, Budget>,
}

/// Tells Events in the background.
#[derive(Clone)]
pub struct Recorder {
    memory: Arc<Mutex<Memory>>,
    send: mpsc::Sender<(Note, Option<u64>)>,
}

impl Recorder {
    /// Starts a recorder for `component` that writes with `rest` until `stop`.
    pub fn start(rest: Rest, component: &str, clock: Clock, stop: CancellationToken) -> Self {
        let (send, mut receive) = mpsc::channel::<(Note, Option<u64>)>(WAITING);
        let component = component.to_string();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Some((note, count)) = receive.recv().await {
                if let Err(failure) = write(&rest, &component, &clock, &note, count).await {
                    tracing::debug!(reason = %note.reason, %failure, "event dropped");
                }
            }
        }));
        Recorder {
            memory: Arc::new(Mutex::new(Memory::default())),
            send,
        }
    }

    /// Tells a fact, unless it was told a moment ago.
    pub fn tell(&self, note: Note) {
        let Some(count) = self.admit(&note, Instant::now()) else {
            return;
        };
        if self.send.try_send((note, count)).is_err() {
            tracing::debug!("too many events wait, one is dropped");
        }
    }

    /// Whether to write now; Some(Some(n)) = add n to the count of the Event that is there.
    fn admit(&self, note: &Note, now: Instant) -> Option<Option<u64>> {
        let mut memory = self.memory.lock();
        if memory.seen.len() > MEMORY {
            memory.seen.clear();
        }
        if memory.budgets.len() > MEMORY {
            memory.budgets.clear();
        }
        let name = note.event_name();
        if let Some(seen) = memory.seen.get_mut(&name) {
            seen.count += 1;
            seen.unwritten += 1;
            if now.saturating_duration_since(seen.written) < REPEAT {
                return None;
            }
            seen.written = now;
            return Some(Some(std::mem::take(&mut seen.unwritten)));
        }
        let budget = memory
            .budgets
            .entry(note.regarding.uid.clone())
            .or_insert(Budget {
                tokens: BURST,
                at: now,
            });
        let gained = now.saturating_duration_since(budget.at).as_secs_f64() / REFILL.as_secs_f64();
        budget.tokens = (budget.tokens + gained).min(BURST);
        budget.at = now;
        if budget.tokens < 1.0 {
            return None;
        }
        budget.tokens -= 1.0;
        memory.seen.insert(
            name,
            Seen {
                written: now,
                count: 1,
                unwritten: 0,
            },
        );
        Some(None)
    }
}

async fn write(
    rest: &Rest,
    component: &str,
    clock: &Clock,
    note: &Note,
    more: Option<u64>,
) -> Result<(), Failure> {
    let regarding = &note.regarding;
    let namespace = if regarding.namespace.is_empty() {
        "default"
    } else {
        &regarding.namespace
    };
    let collection = format!("/api/v1/namespaces/{namespace}/events");
    let name = note.event_name();
    // v1 times have whole seconds.
    let now = format!("{:.0}", clock.now());
    if more.is_none() {
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": regarding.api_version,
                "kind": regarding.kind,
                "namespace": regarding.namespace,
                "name": regarding.name,
                "uid": regarding.uid,
            },
            "type": if note.warning { "Warning" } else { "Normal" },
            "reason": note.reason,
            "message": note.message.chars().take(1024).collect::<String>(),
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": component},
            "reportingComponent": component,
            "reportingInstance": "",
        });
        match rest.post(&collection, &event).await {
            Err(Failure::AlreadyExists(_)) => {}
            other => return other.map(|_| ()),
        }
    }
    let path = format!("{collection}/{}", escape(&name));
    let there: Value = rest.get(&path).await?;
    let count = there["count"].as_u64().unwrap_or(0) + more.unwrap_or(1);
    let patch = json!({"count": count, "lastTimestamp": now});
    rest.patch(&path, &patch).await.map(|_| ())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn recorder() -> (Recorder, mpsc::Receiver<(Note, Option<u64>)>) {
        let (send, receive) = mpsc::channel(WAITING);
        let recorder = Recorder {
            memory: Arc::new(Mutex::new(Memory::default())),
            send,
        };
        (recorder, receive)
    }

    fn note(message: &str) -> Note {
        let regarding = Regarding {
            uid: "u".into(),
            name: "x".into(),
            ..Default::default()
        };
        Note::normal(regarding, "Because", message)
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeated_fact_is_counted_and_written_once_a_minute() {
        let (recorder, mut receive) = recorder();
        for _ in 0..10 {
            recorder.tell(note("same"));
        }
        tokio::time::advance(REPEAT).await;
        recorder.tell(note("same"));
        assert_eq!(receive.recv().await.unwrap().1, None);
        assert_eq!(receive.recv().await.unwrap().1, Some(10));
        assert!(receive.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn ever_new_facts_about_one_object_are_cut() {
        let (recorder, mut receive) = recorder();
        for i in 0..100 {
            recorder.tell(note(&i.to_string()));
        }
        let mut written = 0;
        while receive.try_recv().is_ok() {
            written += 1;
        }
        assert_eq!(written, BURST as usize);
    }
}
