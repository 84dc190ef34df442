//! What a reconcile decided, and the one place that carries it out.

use std::time::Duration;

use serde_json::{Value, json};

use super::client::{BULK_ATOMIC_MAX, Failure, Rest};
use super::events::Note;
use super::key::Key;

/// Items per bulk request of a plan: an answer in well under a second, so that a term that ends
/// is noticed soon.
pub const BULK_CHUNK: usize = 500;

/// An object (or, for a create, the object to be) by its place in the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `/api/v1` or `/apis/<group>/<version>`.
    pub base: String,
    /// Plural of the kind.
    pub plural: String,
    /// Namespace, empty for cluster-wide objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Target {
    /// An object of a kind known by its type.
    pub fn of<K: kube::Resource<DynamicType = ()>>(key: &Key) -> Self {
        let group = K::group(&());
        let base = if group.is_empty() {
            format!("/api/{}", K::version(&()))
        } else {
            format!("/apis/{group}/{}", K::version(&()))
        };
        Target {
            base,
            plural: K::plural(&()).into_owned(),
            namespace: key.namespace().into(),
            name: key.name().into(),
        }
    }

    /// Collection in its namespace.
    pub fn collection(&self) -> String {
        if self.namespace.is_empty() {
            format!("{}/{}", self.base, self.plural)
        } else {
            format!(
                "{}/namespaces/{}/{}",
                self.base, self.namespace, self.plural
            )
        }
    }

    /// Path of the object.
    pub fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }

    /// Collection over all namespaces, by which informers are known.
    pub fn everywhere(&self) -> String {
        format!("{}/{}", self.base, self.plural)
    }
}

/// What is done to the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Create; success as well if it exists with the same controlling owner.
    Create,
    /// JSON merge patch of all but status.
    Patch,
    /// JSON merge patch of the status subresource; the body is `{"status": ...}`.
    Status,
    /// Delete; success as well if it is gone.
    Delete,
    /// Replace through a subresource, such as a Namespace's `finalize`.
    Put(&'static str),
}

/// One write with its preconditions.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Which object.
    pub target: Target,
    /// What is done.
    pub verb: Verb,
    /// Object, patch or delete options.
    pub body: Value,
    /// The object must have this uid.
    pub uid: Option<String>,
    /// The object must be at this version.
    pub resource_version: Option<String>,
    /// Deletes only: finalizers removed in the same operation.
    pub drop_finalizers: Vec<&'static str>,
}

impl Write {
    fn new(target: Target, verb: Verb, body: Value) -> Self {
        Write {
            target,
            verb,
            body,
            uid: None,
            resource_version: None,
            drop_finalizers: Vec::new(),
        }
    }

    /// Creates `body` (with apiVersion, kind and metadata).
    pub fn create(target: Target, body: Value) -> Self {
        Self::new(target, Verb::Create, body)
    }

    /// Merges `body` into the object.
    pub fn patch(target: Target, body: Value) -> Self {
        Self::new(target, Verb::Patch, body)
    }

    /// Merges `status` into the object's status.
    pub fn status(target: Target, status: Value) -> Self {
        Self::new(target, Verb::Status, json!({ "status": status }))
    }

    /// Deletes the object.
    pub fn delete(target: Target) -> Self {
        Self::new(target, Verb::Delete, json!({}))
    }

    /// Replaces the object through a subresource.
    pub fn put(target: Target, subresource: &'static str, body: Value) -> Self {
        Self::new(target, Verb::Put(subresource), body)
    }

    /// Only if the object has this uid.
    pub fn if_uid(mut self, uid: Option<&str>) -> Self {
        self.uid = uid.map(String::from);
        self
    }

    /// Only if the object is at this version.
    pub fn if_version(mut self, version: Option<&str>) -> Self {
        self.resource_version = version.map(String::from);
        self
    }

    /// As an item of the bulk endpoint. `Put` has no such form.
    pub fn bulk_item(&self) -> Option<Value> {
        let (verb, path) = match self.verb {
            Verb::Create => ("create", self.target.collection()),
            Verb::Patch => ("patch", self.target.path()),
            Verb::Status => ("status", self.target.path()),
            Verb::Delete => ("delete", self.target.path()),
            Verb::Put(_) => return None,
        };
        let mut item = json!({"verb": verb, "path": path});
        let mut preconditions = serde_json::Map::new();
        if let Some(uid) = &self.uid {
            preconditions.insert("uid".into(), json!(uid));
        }
        if let Some(version) = &self.resource_version {
            preconditions.insert("resourceVersion".into(), json!(version));
        }
        if !preconditions.is_empty() {
            item["preconditions"] = Value::Object(preconditions);
        }
        if !self.drop_finalizers.is_empty() {
            item["dropFinalizers"] = json!(self.drop_finalizers);
        }
        if self.verb != Verb::Delete || self.body.as_object().is_some_and(|b| !b.is_empty()) {
            item["body"] = self.body.clone();
        }
        Some(item)
    }

    /// As a plain request of its own.
    async fn send(&self, rest: &Rest) -> Result<Value, Failure> {
        let mut body = self.body.clone();
        if matches!(self.verb, Verb::Patch | Verb::Status | Verb::Put(_)) {
            // In a body these two are preconditions.
            if let Some(uid) = &self.uid {
                body["metadata"]["uid"] = json!(uid);
            }
            if let Some(version) = &self.resource_version {
                body["metadata"]["resourceVersion"] = json!(version);
            }
        }
        let path = self.target.path();
        match &self.verb {
            Verb::Create => rest.post(&self.target.collection(), &body).await,
            Verb::Patch => rest.patch(&path, &body).await,
            Verb::Status => rest.patch(&format!("{path}/status"), &body).await,
            Verb::Put(subresource) => rest.put(&format!("{path}/{subresource}"), &body).await,
            Verb::Delete => {
                let mut preconditions = serde_json::Map::new();
                if let Some(uid) = &self.uid {
                    preconditions.insert("uid".into(), json!(uid));
                }
                if let Some(version) = &self.resource_version {
                    preconditions.insert("resourceVersion".into(), json!(version));
                }
                if !preconditions.is_empty() {
                    body["preconditions"] = Value::Object(preconditions);
                }
                rest.delete(&path, &body).await
            }
        }
    }
}

/// When a key wants its next look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Next {
    /// When something changes (or at the slow resync).
    #[default]
    OnChange,
    /// After this time, or earlier when something changes.
    After(Duration),
}

impl Next {
    /// The earlier of the two.
    pub fn sooner(self, other: Next) -> Next {
        match (self, other) {
            (Next::After(a), Next::After(b)) => Next::After(a.min(b)),
            (Next::OnChange, next) | (next, Next::OnChange) => next,
        }
    }
}

/// The decision of one reconcile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Writes in stages: those of a stage are independent of each other, and a stage begins only
    /// when all of the one before have succeeded.
    pub stages: Vec<Vec<Write>>,
    /// Events to tell when the writes have succeeded.
    pub events: Vec<Note>,
    /// When to look again.
    pub next: Next,
    /// Not again before this: for keys whose look is dear and whose changes are many.
    pub calm: Duration,
}

impl Plan {
    /// Nothing to do.
    pub fn none() -> Self {
        Plan::default()
    }

    /// Adds a write to the present stage.
    pub fn write(&mut self, write: Write) -> &mut Self {
        match self.stages.last_mut() {
            Some(stage) => stage.push(write),
            None => self.stages.push(vec![write]),
        }
        self
    }

    /// Later writes wait for those so far.
    pub fn then(&mut self) -> &mut Self {
        if self.stages.last().is_some_and(|s| !s.is_empty()) {
            self.stages.push(Vec::new());
        }
        self
    }

    /// Adds an event.
    pub fn note(&mut self, note: Note) -> &mut Self {
        self.events.push(note);
        self
    }

    /// Looks again no later than after this time.
    pub fn look_after(&mut self, after: Duration) -> &mut Self {
        self.next = self.next.sooner(Next::After(after));
        self
    }

    /// All writes.
    pub fn writes(&self) -> impl Iterator<Item = &Write> {
        self.stages.iter().flatten()
    }
}

/// A write that was stored: the kind's collection and the new version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Collection over all namespaces.
    pub collection: String,
    /// Version of the object after the write.
    pub version: u64,
}

/// Carries out a plan's writes. On a failure later stages are left; the worst failure of the stage
/// is returned, with what was stored until then.
pub async fn apply(rest: &Rest, plan: &Plan) -> (Vec<Stored>, Result<(), Failure>) {
    let mut stored = Vec::new();
    for stage in &plan.stages {
        let mut worst: Option<Failure> = None;
        for chunk in stage.chunks(BULK_CHUNK) {
            for (write, answer) in chunk.iter().zip(send(rest, chunk).await) {
                match settle(rest, write, answer).await {
                    Ok(value) => stored.extend(version(write, &value)),
                    Err(failure) => {
                        if worst.as_ref().is_none_or(|w| rank(&failure) > rank(w)) {
                            worst = Some(failure);
                        }
                    }
                }
            }
            if matches!(worst, Some(Failure::LeaseLost(_))) {
                break;
            }
        }
        if let Some(failure) = worst {
            return (stored, Err(failure));
        }
    }
    (stored, Ok(()))
}

/// Writes all (at most [`BULK_ATOMIC_MAX`], each another object) or none.
pub async fn apply_atomic(rest: &Rest, writes: &[Write]) -> Result<Vec<Stored>, Failure> {
    debug_assert!(writes.len() <= BULK_ATOMIC_MAX);
    let items = writes.iter().filter_map(Write::bulk_item).collect();
    let answers = rest.bulk(items, true, false).await?;
    let mut stored = Vec::new();
    let mut worst: Option<Failure> = None;
    for (write, answer) in writes.iter().zip(answers) {
        match answer {
            Ok(value) => stored.extend(version(write, &value)),
            Err(failure) if worst.as_ref().is_none_or(|w| rank(&failure) > rank(w)) => {
                worst = Some(failure);
            }
            Err(_) => {}
        }
    }
    worst.map_or(Ok(stored), Err)
}

async fn send(rest: &Rest, chunk: &[Write]) -> Vec<Result<Value, Failure>> {
    let plain = chunk.len() == 1 && chunk[0].drop_finalizers.is_empty();
    let items: Vec<Value> = chunk.iter().filter_map(Write::bulk_item).collect();
    if plain || items.len() != chunk.len() {
        let mut answers = Vec::with_capacity(chunk.len());
        for write in chunk {
            answers.push(write.send(rest).await);
        }
        return answers;
    }
    match rest.bulk(items, false, false).await {
        Ok(answers) => answers,
        Err(failure) => chunk.iter().map(|_| Err(failure.clone())).collect(),
    }
}

/// What the answer means for this kind of write.
async fn settle(
    rest: &Rest,
    write: &Write,
    answer: Result<Value, Failure>,
) -> Result<Value, Failure> {
    match (&write.verb, answer) {
        (Verb::Delete, Err(Failure::NotFound(_))) => Ok(Value::Null),
        (Verb::Create, Err(Failure::AlreadyExists(message))) => {
            let wanted = &write.body["metadata"]["ownerReferences"][0]["uid"];
            let there: Value = rest.get(&write.target.path()).await?;
            let same = wanted.is_string()
                && there["metadata"]["ownerReferences"]
                    .as_array()
                    .is_some_and(|owners| owners.iter().any(|o| o["uid"] == *wanted));
            if same {
                Ok(there)
            } else {
                // A namesake that somebody (mostly the garbage collector) is about to remove.
                Err(Failure::transient(message))
            }
        }
        // The cache was behind: the object is gone, look again.
        (Verb::Patch | Verb::Status | Verb::Put(_), Err(Failure::NotFound(message))) => {
            Err(Failure::Conflict(message))
        }
        (_, answer) => answer,
    }
}

fn rank(failure: &Failure) -> u8 {
    match failure {
        Failure::LeaseLost(_) => 5,
        Failure::Transient { .. } => 4,
        Failure::Gone(_) | Failure::Conflict(_) => 3,
        Failure::NotFound(_) | Failure::AlreadyExists(_) => 2,
        Failure::Terminal(_) => 1,
    }
}

fn version(write: &Write, answer: &Value) -> Option<Stored> {
    Some(Stored {
        collection: write.target.everywhere(),
        version: answer["metadata"]["resourceVersion"]
            .as_str()?
            .parse()
            .ok()?,
    })
}
