//! delete and deletecollection.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use rota_store::{Expect, Guard, Write};
use serde_json::{Value, json};

use super::create::now;
use super::update::{Preconditions, is_finished};
use crate::error::{ApiError, ApiResult};
use crate::objects::{Object, encode};
use crate::request::Query;
use crate::server::{Caller, Served, Server};
use crate::storage::{Done, Outcome, Prepared};

/// Deletes of a collection that are under way at once.
const COLLECTION_CONCURRENCY: usize = 64;

/// How a deletion treats what the object owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// The object goes at once, dependents later.
    #[default]
    Background,
    /// Dependents first.
    Foreground,
    /// Dependents stay.
    Orphan,
}

/// DeleteOptions, from the body and the query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Validate only.
    pub dry_run: bool,
    /// Dependents.
    pub propagation: Propagation,
    /// Uid and version.
    pub preconditions: Preconditions,
    /// Removed in the same operation; bulk only.
    pub drop_finalizers: Vec<String>,
}

impl DeleteOptions {
    /// Reads both places; the body wins.
    pub fn parse(query: &Query, body: &[u8]) -> ApiResult<Self> {
        let body: Value = if body.iter().all(u8::is_ascii_whitespace) {
            Value::Null
        } else {
            crate::body::parse_json(body)?.value
        };
        if !body.is_null() && !body.is_object() {
            return Err(ApiError::bad_request("DeleteOptions must be an object"));
        }
        if body["kind"].as_str().is_some_and(|k| k != "DeleteOptions") {
            return Err(ApiError::bad_request(
                "the body of a DELETE must be DeleteOptions",
            ));
        }
        let dry_run = match (&body["dryRun"], query.get("dryRun")) {
            (Value::Null, None) => false,
            (Value::Array(list), _) if list.iter().all(|v| v == "All") => !list.is_empty(),
            (Value::Null, Some("All")) => true,
            (given, asked) => {
                let shown = if given.is_null() {
                    json!(asked)
                } else {
                    given.clone()
                };
                return Err(ApiError::new(
                    422,
                    "Invalid",
                    format!("dryRun: Unsupported value: {shown}: supported values: \"All\""),
                ));
            }
        };
        let policy = body["propagationPolicy"]
            .as_str()
            .or(query.get("propagationPolicy"));
        let propagation = match policy {
            None if body["orphanDependents"] == true
                || query.get("orphanDependents") == Some("true") =>
            {
                Propagation::Orphan
            }
            None | Some("Background") => Propagation::Background,
            Some("Foreground") => Propagation::Foreground,
            Some("Orphan") => Propagation::Orphan,
            Some(other) => {
                return Err(ApiError::new(
                    422,
                    "Invalid",
                    format!(
                        "propagationPolicy: Unsupported value: {other:?}: supported values: \"Background\", \"Foreground\", \"Orphan\""
                    ),
                ));
            }
        };
        let text = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(String::from);
        let preconditions = Preconditions {
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
        };
        Ok(DeleteOptions {
            dry_run,
            propagation,
            preconditions,
            drop_finalizers: Vec::new(),
        })
    }
}

/// DELETE of one object.
pub async fn delete(
    server: &Server,
    caller: &Caller,
    served: &Served,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> ApiResult<Done> {
    server
        .commit_change(caller, served, namespace, name, options.dry_run, |object| {
            prepare(served, namespace, name, object, options)
        })
        .await
}

/// From the present object to its removal or to the mark that it is going.
pub fn prepare(
    served: &Served,
    namespace: &str,
    name: &str,
    object: &Arc<Object>,
    options: &DeleteOptions,
) -> ApiResult<Prepared> {
    if served.kind.kind == "Namespace"
        && matches!(
            name,
            "default" | "kube-system" | "kube-node-lease" | "rota-system"
        )
    {
        return Err(ApiError::forbidden(
            "",
            "namespaces",
            name,
            "this namespace may not be deleted",
        ));
    }
    let mut new = object.value();
    options
        .preconditions
        .check(served, name, &new, object.version)?;
    let key = served.key(namespace, name);
    let guards = vec![Guard {
        key: key.clone(),
        expect: Expect::Version(object.version),
    }];
    let before = new.clone();
    let Some(meta) = new["metadata"].as_object_mut() else {
        return Err(ApiError::internal(format!(
            "stored object {key} has no metadata"
        )));
    };
    let mut finalizers: Vec<Value> = meta
        .get("finalizers")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    finalizers.retain(|f| {
        f.as_str()
            .is_none_or(|f| !options.drop_finalizers.iter().any(|d| d == f))
    });
    let extra = match options.propagation {
        Propagation::Background => None,
        Propagation::Foreground => Some(("foregroundDeletion", "orphan")),
        Propagation::Orphan => Some(("orphan", "foregroundDeletion")),
    };
    let marked = meta.contains_key("deletionTimestamp");
    if let Some((add, drop)) = extra
        && !marked
    {
        finalizers.retain(|f| f != drop && f != add);
        finalizers.push(json!(add));
    }
    if finalizers.is_empty() {
        meta.remove("finalizers");
    } else {
        meta.insert("finalizers".into(), Value::Array(finalizers));
    }
    if !marked {
        meta.insert("deletionTimestamp".into(), json!(now()));
        meta.insert("deletionGracePeriodSeconds".into(), json!(0));
        if served.kind.generation {
            let generation = meta.get("generation").and_then(Value::as_i64).unwrap_or(0) + 1;
            meta.insert("generation".into(), json!(generation));
        }
        if served.kind.kind == "Namespace" {
            new["status"]["phase"] = json!("Terminating");
        }
    }
    let warnings = Vec::new();
    if is_finished(&new) {
        return Ok(Prepared {
            guards,
            writes: vec![Write::Delete { key }],
            outcome: Outcome::Removed(object.clone()),
            warnings,
        });
    }
    if new == before {
        return Ok(Prepared {
            guards: Vec::new(),
            writes: Vec::new(),
            outcome: Outcome::Unchanged(object.clone()),
            warnings,
        });
    }
    let stored = encode(&new);
    let writes = vec![Write::Put {
        key,
        value: stored.clone(),
        expires_at: super::create::expiry(served),
    }];
    Ok(Prepared {
        guards,
        writes,
        outcome: Outcome::Stored {
            stored,
            code: 200,
            uid: new["metadata"]["uid"].as_str().unwrap_or("").into(),
        },
        warnings,
    })
}

/// The Status that answers a removal.
pub fn removed_status(served: &Served, done: &Done) -> Value {
    let object: Value = serde_json::from_slice(&done.bytes).unwrap_or(Value::Null);
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {
            "name": object["metadata"]["name"], "group": served.kind.group,
            "kind": served.kind.plural, "uid": object["metadata"]["uid"],
        },
    })
}

/// DELETE of a collection: every object that the selectors choose, each by itself.
pub async fn delete_collection(
    server: &Server,
    caller: &Caller,
    served: &Served,
    objects: Vec<Arc<Object>>,
    options: &DeleteOptions,
) -> ApiResult<Vec<Value>> {
    let results: Vec<ApiResult<Option<Value>>> = stream::iter(objects)
        .map(|object| async move {
            match delete(
                server,
                caller,
                served,
                object.namespace(),
                object.name(),
                options,
            )
            .await
            {
                Ok(done) => Ok(serde_json::from_slice(&done.bytes).ok()),
                // Gone meanwhile is what was wanted.
                Err(e) if e.code == 404 => Ok(None),
                Err(e) => Err(e),
            }
        })
        .buffered(COLLECTION_CONCURRENCY)
        .collect()
        .await;
    results.into_iter().filter_map(Result::transpose).collect()
}
