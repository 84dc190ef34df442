//! `POST /apis/rota.dev/v1/bulk`: many independent writes in one request.
//!
//! Items are authorised, checked and committed each by itself and answered in order; the store
//! combines them into few transactions. With `atomic: true` all or none apply.

use std::sync::Arc;

use futures::future::join_all;
use rota_store::{StoreError, Txn, Version};
use serde_json::{Value, json};

use super::create::{self, Template};
use super::delete::{self, DeleteOptions};
use super::update::{self, Part, Preconditions, Target};
use super::{FieldValidation, WriteOptions};
use crate::auth::Attributes;
use crate::body::Decoded;
use crate::error::{ApiError, ApiResult};
use crate::objects::Object;
use crate::request::{self, ResourcePath};
use crate::server::{Caller, Served, Server};
use crate::storage::{Done, Prepared, lease_lost, store_error};

/// Items in one request: bounds the memory and the time of one request.
pub const ITEMS_MAX: usize = 5_000;

/// Items of an atomic request: one store transaction.
pub const ATOMIC_MAX: usize = 100;

/// Bytes of one request: 5,000 tasks of 1 KiB with room to spare.
pub const BODY_MAX: usize = 16 << 20;

struct Item {
    verb: Verb,
    served: Arc<Served>,
    path: ResourcePath,
    preconditions: Preconditions,
    drop_finalizers: Vec<String>,
    body: Value,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Create,
    Patch,
    Status,
    Delete,
}

const OPTIONS: WriteOptions = WriteOptions {
    dry_run: false,
    field_validation: FieldValidation::Warn,
};

/// Handles the request body; answers the result object.
pub async fn bulk(server: &Arc<Server>, caller: &Caller, body: &[u8]) -> ApiResult<String> {
    let Value::Object(mut request) = crate::body::parse_json(body)?.value else {
        return Err(ApiError::bad_request(
            "a bulk request must be an object with items",
        ));
    };
    let atomic = request
        .get("atomic")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let whole = match request.get("answer").and_then(Value::as_str) {
        None | Some("Object") => true,
        Some("Version") => false,
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "answer {other:?} is neither \"Object\" nor \"Version\""
            )));
        }
    };
    let Some(Value::Array(items)) = request.remove("items") else {
        return Err(ApiError::bad_request(
            "a bulk request needs a list named items",
        ));
    };
    let most = if atomic { ATOMIC_MAX } else { ITEMS_MAX };
    if items.len() > most {
        return Err(ApiError::bad_request(format!(
            "{} items are more than the {most} that one request may hold",
            items.len()
        )));
    }
    if crate::auth::authorizer::node_of(&caller.user).is_some() {
        // What a node may write depends on the Tasks bound to it: look at the newest ones.
        server.cache.fresh().await.map_err(store_error)?;
    }
    let parsed: Vec<ApiResult<Item>> = items
        .into_iter()
        .map(|i| parse(server, caller, i))
        .collect();
    let results: Vec<ApiResult<(Done, bool)>> = if atomic {
        run_atomic(server, caller, parsed).await
    } else {
        join_all(
            parsed
                .into_iter()
                .map(|item| async { run(server, caller, item?).await }),
        )
        .await
    };
    Ok(render(results, whole))
}

fn render(results: Vec<ApiResult<(Done, bool)>>, whole: bool) -> String {
    let mut out = String::with_capacity(results.len() * if whole { 1024 } else { 160 } + 64);
    out.push_str(r#"{"kind":"BulkResult","apiVersion":"rota.dev/v1","items":["#);
    for (i, result) in results.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        match result {
            Err(e) => out.push_str(&e.status().to_string()),
            Ok((done, _)) if whole => {
                out.push_str(std::str::from_utf8(&done.bytes).unwrap_or("null"))
            }
            Ok((done, removed)) => {
                let (name, uid) = name_and_uid(&done.bytes);
                let reason = if removed {
                    r#","reason":"Removed""#
                } else {
                    ""
                };
                out.push_str(&format!(
                    r#"{{"kind":"Status","apiVersion":"v1","status":"Success"{reason},"code":{},"metadata":{{"resourceVersion":"{}"}},"details":{{"name":{},"uid":{}}}}}"#,
                    done.code, done.version, json!(name), json!(uid)
                ));
            }
        }
    }
    out.push_str("]}");
    out
}

fn name_and_uid(bytes: &[u8]) -> (String, String) {
    #[derive(serde::Deserialize)]
    struct Meta {
        #[serde(default)]
        name: String,
        #[serde(default)]
        uid: String,
    }
    #[derive(serde::Deserialize)]
    struct Head {
        metadata: Meta,
    }
    serde_json::from_slice::<Head>(bytes)
        .map(|h| (h.metadata.name, h.metadata.uid))
        .unwrap_or_default()
}

fn parse(server: &Server, caller: &Caller, item: Value) -> ApiResult<Item> {
    let Value::Object(mut item) = item else {
        return Err(ApiError::bad_request("an item must be an object"));
    };
    let verb = match item.get("verb").and_then(Value::as_str) {
        Some("create") => Verb::Create,
        Some("patch") => Verb::Patch,
        Some("status") => Verb::Status,
        Some("delete") => Verb::Delete,
        other => {
            return Err(ApiError::bad_request(format!(
                "verb {other:?} is none of create, patch, status, delete"
            )));
        }
    };
    let text = item
        .get("path")
        .and_then(Value::as_str)
        .ok_or_else(|| ApiError::bad_request("an item needs a path"))?;
    let request::Target::Resource(path) = request::target(text)? else {
        return Err(ApiError::no_resource());
    };
    let served = server
        .find(&path.group, &path.version, &path.plural)
        .ok_or_else(ApiError::no_resource)?
        .clone();
    if path.name.is_empty() != (verb == Verb::Create) || !path.subresource.is_empty() {
        return Err(ApiError::bad_request(
            "create takes the path of a collection, the other verbs that of an object",
        ));
    }
    if served.kind.namespaced == path.namespace.is_empty() {
        return Err(ApiError::no_resource());
    }
    if verb == Verb::Status && !served.kind.status {
        return Err(ApiError::no_resource());
    }
    server.authorize(
        &caller.user,
        &Attributes {
            verb: match verb {
                Verb::Create => "create",
                Verb::Patch | Verb::Status => "patch",
                Verb::Delete => "delete",
            },
            group: path.group.clone(),
            resource: path.plural.clone(),
            subresource: if verb == Verb::Status {
                "status".into()
            } else {
                String::new()
            },
            namespace: path.namespace.clone(),
            name: path.name.clone(),
            ..Attributes::default()
        },
    )?;
    let preconditions = item.get("preconditions").cloned().unwrap_or(Value::Null);
    let string = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(String::from);
    Ok(Item {
        verb,
        served,
        preconditions: Preconditions {
            uid: string(&preconditions["uid"]),
            resource_version: string(&preconditions["resourceVersion"]),
        },
        drop_finalizers: item
            .get("dropFinalizers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|f| f.as_str().map(String::from))
            .collect(),
        body: item.remove("body").unwrap_or(Value::Null),
        path,
    })
}

impl Item {
    fn target(&self) -> Target<'_> {
        Target {
            served: &self.served,
            namespace: &self.path.namespace,
            name: &self.path.name,
            part: if self.verb == Verb::Status {
                Part::Status
            } else {
                Part::Main
            },
        }
    }

    fn delete_options(&self) -> DeleteOptions {
        DeleteOptions {
            preconditions: self.preconditions.clone(),
            drop_finalizers: self.drop_finalizers.clone(),
            ..DeleteOptions::default()
        }
    }

    fn template(&mut self, caller: &Caller) -> ApiResult<Template> {
        let mut value = std::mem::take(&mut self.body);
        crate::body::check_kind(&mut value, &self.served.kind)?;
        Template::new(
            caller,
            &self.served,
            &self.path.namespace,
            Decoded {
                value,
                duplicates: Vec::new(),
            },
            OPTIONS,
        )
    }

    /// The write on an object that exists.
    fn prepare(&self, caller: &Caller, object: &Arc<Object>) -> ApiResult<Prepared> {
        let (served, name) = (&*self.served, self.path.name.as_str());
        if self.verb == Verb::Delete {
            return delete::prepare(
                served,
                &self.path.namespace,
                name,
                object,
                &self.delete_options(),
            );
        }
        let current = served.shown(object);
        self.preconditions
            .check(served, name, &current, object.version)?;
        if !self.body.is_object() {
            return Err(ApiError::bad_request(
                "the body of a patch or status item must be a merge patch object",
            ));
        }
        let mut wanted = current.clone();
        json_patch::merge(&mut wanted, &self.body);
        update::prepare(
            caller,
            &self.target(),
            object,
            &current,
            wanted,
            Vec::new(),
            OPTIONS,
        )
    }
}

async fn run(server: &Arc<Server>, caller: &Caller, mut item: Item) -> ApiResult<(Done, bool)> {
    let served = item.served.clone();
    if item.verb == Verb::Create {
        let mut value = std::mem::take(&mut item.body);
        crate::body::check_kind(&mut value, &served.kind)?;
        let body = Decoded {
            value,
            duplicates: Vec::new(),
        };
        let done =
            create::create(server, caller, &served, &item.path.namespace, body, OPTIONS).await?;
        return Ok((done, false));
    }
    let (namespace, name) = (&item.path.namespace, &item.path.name);
    if item.verb == Verb::Delete {
        let done = delete::delete(
            server,
            caller,
            &served,
            namespace,
            name,
            &item.delete_options(),
        )
        .await?;
        let removed = done.removed;
        return Ok((done, removed));
    }
    let done = server
        .commit_change(caller, &served, namespace, name, false, |object| {
            item.prepare(caller, object)
        })
        .await?;
    let removed = done.removed;
    Ok((done, removed))
}

/// One transaction of all items. A lost race on an object without a stated version starts over.
async fn run_atomic(
    server: &Arc<Server>,
    caller: &Caller,
    items: Vec<ApiResult<Item>>,
) -> Vec<ApiResult<(Done, bool)>> {
    let count = items.len();
    let mut good = Vec::with_capacity(count);
    for (i, item) in items.into_iter().enumerate() {
        match item {
            Ok(item) => good.push(item),
            Err(e) => return all_failed(count, i, e),
        }
    }
    let mut templates = Vec::with_capacity(count);
    for (i, item) in good.iter_mut().enumerate() {
        let template = if item.verb == Verb::Create {
            item.template(caller).map(Some)
        } else {
            Ok(None)
        };
        match template {
            Ok(t) => templates.push(t),
            Err(e) => return all_failed(count, i, e),
        }
    }
    for attempt in 0..8 {
        if attempt > 0
            && let Err(e) = server.cache.fresh().await
        {
            return all_failed(count, 0, store_error(e));
        }
        let mut prepared = Vec::with_capacity(count);
        let mut failed = None;
        for (i, (item, template)) in good.iter().zip(&templates).enumerate() {
            let one = match template {
                Some(t) => t
                    .prepare(server, &item.served, &item.path.namespace)
                    .map(|(p, _, _)| p),
                None => match server.cached(&item.served, &item.path.namespace, &item.path.name) {
                    Some(object) => item.prepare(caller, &object),
                    None => Err(item.served.not_found(&item.path.name)),
                },
            };
            match one {
                Ok(p) => prepared.push(p),
                Err(e) => {
                    failed = Some((i, e));
                    break;
                }
            }
        }
        if let Some((i, e)) = failed {
            // A refusal counts only when it was made on fresh state.
            if attempt == 0 {
                continue;
            }
            return all_failed(count, i, e);
        }
        let mut txn = Txn {
            guards: caller.guard().into_iter().collect(),
            writes: Vec::new(),
        };
        for p in &prepared {
            for guard in &p.guards {
                if !txn.guards.contains(guard) {
                    txn.guards.push(guard.clone());
                }
            }
            txn.writes.extend(p.writes.iter().cloned());
        }
        if txn.writes.is_empty() {
            return finish(good, prepared, &[]);
        }
        match server.store.commit(txn).await {
            Ok(versions) => return finish(good, prepared, &versions),
            Err(StoreError::Conflict { guard, actual }) => {
                if guard.key.starts_with("/fence/")
                    && caller.guard().is_some_and(|g| g.key == guard.key)
                {
                    return all_failed(count, 0, lease_lost(actual.as_ref()));
                }
                if attempt == 7 {
                    return all_failed(
                        count,
                        0,
                        store_error(StoreError::Conflict { guard, actual }),
                    );
                }
                // A taken name is a refusal as soon as the cache shows it; everything else is a race.
                if let Some(i) = prepared
                    .iter()
                    .position(|p| p.guards.first().is_some_and(|g| g.key == guard.key))
                    && templates[i].is_some()
                {
                    let kind = &good[i].served.kind;
                    let name = guard.key.rsplit('/').next().unwrap_or("");
                    return all_failed(
                        count,
                        i,
                        ApiError::already_exists(kind.group, kind.plural, name),
                    );
                }
            }
            Err(e) => return all_failed(count, 0, store_error(e)),
        }
    }
    all_failed(
        count,
        0,
        ApiError::new(409, "Conflict", "the objects kept changing; try again"),
    )
}

fn finish(
    items: Vec<Item>,
    prepared: Vec<Prepared>,
    versions: &[Version],
) -> Vec<ApiResult<(Done, bool)>> {
    let mut at = 0;
    items
        .iter()
        .zip(prepared)
        .map(|(item, p)| {
            let n = p.writes.len();
            let mine = versions.get(at..at + n).unwrap_or(&[]);
            at += n;
            let done = p.done(&item.served, mine);
            let removed = done.removed;
            Ok((done, removed))
        })
        .collect()
}

fn all_failed(count: usize, at: usize, e: ApiError) -> Vec<ApiResult<(Done, bool)>> {
    let others = ApiError::new(
        409,
        "Conflict",
        format!("not written, because item {at} failed: {}", e.message),
    );
    (0..count)
        .map(|i| Err(if i == at { e.clone() } else { others.clone() }))
        .collect()
}
