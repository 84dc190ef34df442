//! Small caches of what tasks refer to: JobRevisions (immutable), Secrets and ConfigMaps (briefly).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use rota_api::kinds::{JobRevisionSpec, OnLost, TaskSpec};
use serde::Deserialize;

use crate::api::{Api, CallError};

/// A Secret or ConfigMap is read again for a start after this long: a storm of starts reads it
/// once, a start after a change sees the change.
const VALUES_FRESH: Duration = Duration::from_secs(2);
/// An object that is not there is looked for again after this long.
const ABSENT_FRESH: Duration = Duration::from_secs(1);
/// How long a missing or refused object may be a matter of the server's lag.
const LAG: Duration = Duration::from_secs(10);
/// Entries kept.
const ENTRIES_MAX: usize = 1_000;

/// Which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// JobRevision.
    Revision,
    /// Secret.
    Secret,
    /// ConfigMap.
    ConfigMap,
}

/// Namespace, kind, name.
pub type Key = (String, Kind, String);

/// What was loaded.
#[derive(Clone, Debug)]
pub enum Loaded {
    /// A template.
    Revision(Arc<Template>),
    /// Values.
    Values(Arc<BTreeMap<String, String>>),
    /// There is no such object.
    Absent,
    /// The server does not let us.
    Refused(String),
}

/// The parts of a JobRevision that matter here.
#[derive(Debug)]
pub struct Template {
    /// How a task runs.
    pub spec: TaskSpec,
    /// Fenced or not.
    pub on_lost: OnLost,
}

struct Entry {
    value: Option<Loaded>,
    at: Instant,
    first_trouble: Option<Instant>,
    loading: bool,
}

/// The caches.
#[derive(Default)]
pub struct Sources {
    entries: HashMap<Key, Entry>,
}

impl Sources {
    /// What is known, if it is fresh; `Err(true)` when it must be loaded now, `Err(false)` when it is being loaded.
    pub fn get(&mut self, key: &Key) -> Result<Loaded, bool> {
        let now = Instant::now();
        if let Some(e) = self.entries.get_mut(key) {
            let age = now.saturating_duration_since(e.at);
            if let Some(value) = &e.value {
                let fresh = match value {
                    Loaded::Revision(_) => true,
                    Loaded::Values(_) => age < VALUES_FRESH,
                    // Perhaps the server has not seen it yet; only trouble that lasts counts.
                    Loaded::Absent if key.1 != Kind::Revision => age < ABSENT_FRESH,
                    Loaded::Absent | Loaded::Refused(_) => {
                        e.first_trouble
                            .is_some_and(|t| now.saturating_duration_since(t) >= LAG)
                            && age < LAG
                    }
                };
                if fresh {
                    return Ok(value.clone());
                }
            }
            let load = !e.loading;
            e.loading = true;
            return Err(load);
        }
        if self.entries.len() >= ENTRIES_MAX {
            self.entries.retain(|_, e| e.loading);
        }
        self.entries.insert(
            key.clone(),
            Entry {
                value: None,
                at: now,
                first_trouble: None,
                loading: true,
            },
        );
        Err(true)
    }

    /// Takes a result; `None` is trouble on the way. Says after which pause it should be loaded again, if so.
    pub fn put(&mut self, key: &Key, value: Option<Loaded>) -> Option<Duration> {
        let e = self.entries.get_mut(key)?;
        let now = Instant::now();
        e.at = now;
        let pause = Duration::from_millis(500);
        let good = matches!(value, Some(Loaded::Revision(_) | Loaded::Values(_)));
        if good {
            e.first_trouble = None;
        } else {
            e.first_trouble.get_or_insert(now);
        }
        let lasting = e
            .first_trouble
            .is_some_and(|t| now.saturating_duration_since(t) >= LAG);
        let again = match &value {
            None => true,
            Some(Loaded::Refused(_)) => !lasting,
            Some(Loaded::Absent) => key.1 == Kind::Revision && !lasting,
            Some(_) => false,
        };
        e.loading = again;
        if value.is_some() {
            e.value = value;
        }
        again.then_some(pause)
    }
}

#[derive(Deserialize)]
struct RevisionObject {
    spec: JobRevisionSpec,
}
#[derive(Deserialize)]
struct ValuesObject {
    #[serde(default)]
    data: BTreeMap<String, String>,
}

/// Loads one object; `None` when the server cannot be asked now.
pub async fn load(api: &Api, key: &Key) -> Option<Loaded> {
    let (namespace, kind, name) = key;
    let result = match kind {
        Kind::Revision => api
            .get::<RevisionObject>(&format!(
                "/apis/rota.dev/v1/namespaces/{namespace}/jobrevisions/{name}"
            ))
            .await
            .map(|r| {
                Loaded::Revision(Arc::new(Template {
                    spec: r.spec.template.spec,
                    on_lost: r.spec.on_lost,
                }))
            }),
        Kind::Secret => api
            .get::<ValuesObject>(&format!("/api/v1/namespaces/{namespace}/secrets/{name}"))
            .await
            .map(|v| {
                Loaded::Values(Arc::new(
                    v.data
                        .into_iter()
                        .filter_map(|(k, v)| Some((k, decoded(&v)?)))
                        .collect(),
                ))
            }),
        Kind::ConfigMap => api
            .get::<ValuesObject>(&format!("/api/v1/namespaces/{namespace}/configmaps/{name}"))
            .await
            .map(|v| Loaded::Values(Arc::new(v.data))),
    };
    match result {
        Ok(v) => Some(v),
        Err(e) if e.code() == 404 => Some(Loaded::Absent),
        Err(e @ CallError::Status { .. }) if e.code() == 403 => {
            Some(Loaded::Refused(e.to_string()))
        }
        Err(e) => {
            tracing::warn!(name, error = %e, "what a task refers to cannot be read yet");
            None
        }
    }
}

fn decoded(text: &str) -> Option<String> {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .ok()?;
    // Environment variables are bytes without NUL; what is no text is passed as well as it goes.
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
