//! update and patch: PUT and PATCH of an object and of its subresources.

use std::sync::Arc;

use rota_api::registry::FieldError;
use rota_store::{Expect, Guard, Write};
use serde_json::{Map, Value, json};

use super::WriteOptions;
use super::create::{admit, check_namespace, expiry, lease_fence, metadata_of};
use crate::body::Decoded;
use crate::error::{ApiError, ApiResult};
use crate::objects::{Object, encode};
use crate::schema::Mode;
use crate::server::{Caller, Served, Server};
use crate::storage::{Done, Outcome, Prepared, check_size};

/// Which part of an object a request writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but status.
    Main,
    /// status only.
    Status,
    /// A namespace's spec.finalizers.
    Finalize,
}

/// What is being written, from whom.
pub struct Target<'a> {
    /// The kind.
    pub served: &'a Served,
    /// Namespace; empty for cluster scope.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// Part.
    pub part: Part,
}

/// Preconditions of bulk items and delete options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// The object must have this uid.
    pub uid: Option<String>,
    /// And this version.
    pub resource_version: Option<String>,
}

impl Preconditions {
    /// 409 unless they hold.
    pub fn check(
        &self,
        served: &Served,
        name: &str,
        current: &Value,
        version: u64,
    ) -> ApiResult<()> {
        let (group, plural) = (served.kind.group, served.kind.plural);
        if let Some(uid) = &self.uid {
            let actual = current["metadata"]["uid"].as_str().unwrap_or("");
            if uid != actual {
                return Err(ApiError::conflict(
                    group,
                    plural,
                    name,
                    &format!(
                        "Precondition failed: UID in precondition: {uid}, UID in object meta: {actual}"
                    ),
                ));
            }
        }
        if let Some(rv) = &self.resource_version
            && *rv != version.to_string()
        {
            return Err(ApiError::conflict(
                group,
                plural,
                name,
                &format!(
                    "Precondition failed: ResourceVersion in precondition: {rv}, ResourceVersion in object meta: {version}"
                ),
            ));
        }
        Ok(())
    }
}

/// PUT.
pub async fn update(
    server: &Server,
    caller: &Caller,
    target: &Target<'_>,
    body: Decoded,
    options: WriteOptions,
) -> ApiResult<Done> {
    let served = target.served;
    let given = body.value["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or("")
        .to_string();
    if given.is_empty() && !served.kind.core {
        return Err(ApiError::invalid(
            served.kind.group,
            served.kind.kind,
            target.name,
            vec![FieldError {
                reason: "FieldValueInvalid",
                field: "metadata.resourceVersion".into(),
                message: "Invalid value: 0: must be specified for an update".into(),
            }],
        ));
    }
    server
        .commit_change(
            caller,
            served,
            target.namespace,
            target.name,
            options.dry_run,
            |object| {
                let current = served.shown(object);
                prepare(
                    caller,
                    target,
                    object,
                    &current,
                    body.value.clone(),
                    body.duplicates.clone(),
                    options,
                )
            },
        )
        .await
}

/// PATCH.
#[allow(clippy::too_many_arguments)]
pub async fn patch(
    server: &Server,
    caller: &Caller,
    target: &Target<'_>,
    content_type: &str,
    body: &[u8],
    preconditions: &Preconditions,
    options: WriteOptions,
) -> ApiResult<Done> {
    let served = target.served;
    server
        .commit_change(
            caller,
            served,
            target.namespace,
            target.name,
            options.dry_run,
            |object| {
                let current = served.shown(object);
                preconditions.check(served, target.name, &current, object.version)?;
                let patched = crate::patch::apply(&served.kind, content_type, &current, body)?;
                prepare(
                    caller,
                    target,
                    object,
                    &current,
                    patched,
                    Vec::new(),
                    options,
                )
            },
        )
        .await
}

/// From the wanted new object to the write: managed metadata, isolation of parts, admission,
/// generation, finalisation.
#[allow(clippy::too_many_arguments)]
pub fn prepare(
    caller: &Caller,
    target: &Target<'_>,
    object: &Arc<Object>,
    current: &Value,
    wanted: Value,
    duplicates: Vec<String>,
    options: WriteOptions,
) -> ApiResult<Prepared> {
    let served = target.served;
    let kind = &served.kind;
    let mut new = wanted;
    let given = {
        let meta = metadata_of(&mut new)?;
        check_namespace(served, meta, target.namespace)?;
        if meta
            .get("name")
            .and_then(Value::as_str)
            .is_some_and(|n| !n.is_empty() && n != target.name)
        {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                meta["name"].as_str().unwrap_or(""),
                target.name
            )));
        }
        meta.insert("name".into(), json!(target.name));
        meta.get("resourceVersion")
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_string()
    };
    for (field, is) in [
        ("apiVersion", served.api_version.as_str()),
        ("kind", kind.kind),
    ] {
        if new[field].as_str().is_some_and(|v| v != is) {
            return Err(ApiError::bad_request(format!(
                "the {field} in the body ({}) does not match the one expected ({is})",
                new[field].as_str().unwrap_or("")
            )));
        }
        new[field] = json!(is);
    }
    if !given.is_empty() && given != object.version.to_string() {
        return Err(ApiError::modified(kind.group, kind.plural, target.name));
    }
    let old_meta = current["metadata"].as_object().cloned().unwrap_or_default();
    let uid = new["metadata"]["uid"].as_str().unwrap_or("");
    if !uid.is_empty() && old_meta.get("uid").and_then(Value::as_str) != Some(uid) {
        let preconditions = Preconditions {
            uid: Some(uid.to_string()),
            resource_version: None,
        };
        preconditions.check(served, target.name, current, object.version)?;
    }
    match target.part {
        Part::Main => {
            if kind.status {
                carry(&mut new, current, "status");
            }
            if kind.kind == "Namespace" {
                carry(&mut new, current, "spec");
            }
        }
        Part::Status => {
            let status = new.get("status").cloned();
            new = current.clone();
            set(&mut new, "status", status);
        }
        Part::Finalize => {
            let spec = new.get("spec").cloned();
            new = current.clone();
            set(&mut new, "spec", spec);
        }
    }
    keep_managed(&mut new, &old_meta);
    (kind.prepare)(&mut new, Some(current));
    let mode = if target.part == Part::Status {
        Mode::Status
    } else {
        Mode::Full
    };
    let warnings = admit(served, &mut new, Some(current), duplicates, mode, options)?;
    let (mut new, old) = if served.view {
        (
            rota_api::core_kinds::event::to_core_v1(&new),
            object.value(),
        )
    } else {
        (new, current.clone())
    };
    check_finalizers(served, target.name, &old, &new)?;
    if caller
        .user
        .name
        .starts_with(rota_api::names::USER_NODE_PREFIX)
    {
        crate::auth::authorizer::check_node_change(&caller.user, &old, &new)
            .map_err(|why| ApiError::forbidden(kind.group, kind.plural, target.name, why))?;
    }
    if let Some(meta) = new["metadata"].as_object_mut() {
        meta.remove("resourceVersion");
    }
    let mut before = old;
    if let Some(meta) = before["metadata"].as_object_mut() {
        meta.remove("resourceVersion");
    }
    if new == before {
        return Ok(Prepared {
            guards: Vec::new(),
            writes: Vec::new(),
            outcome: Outcome::Unchanged(object.clone()),
            warnings,
        });
    }
    if kind.generation && target.part == Part::Main && differs_outside_status(&new, &before) {
        let generation = before["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        new["metadata"]["generation"] = json!(generation);
    }
    let key = served.key(target.namespace, target.name);
    let guards = vec![Guard {
        key: key.clone(),
        expect: Expect::Version(object.version),
    }];
    if is_finished(&new) {
        return Ok(Prepared {
            guards,
            writes: vec![Write::Delete { key }],
            outcome: Outcome::Removed(object.clone()),
            warnings,
        });
    }
    let stored = encode(&new);
    check_size(&stored)?;
    let mut writes = vec![Write::Put {
        key,
        value: stored.clone(),
        expires_at: expiry(served),
    }];
    if let Some(fence) = lease_fence(served, Some(&before), &new)? {
        writes.push(fence);
    }
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

fn carry(new: &mut Value, old: &Value, field: &str) {
    set(new, field, old.get(field).cloned());
}

fn set(object: &mut Value, field: &str, value: Option<Value>) {
    if let Some(top) = object.as_object_mut() {
        match value {
            Some(v) => top.insert(field.into(), v),
            None => top.remove(field),
        };
    }
}

/// Metadata that only the server writes stays as it was.
fn keep_managed(new: &mut Value, old: &Map<String, Value>) {
    let Some(meta) = new["metadata"].as_object_mut() else {
        return;
    };
    for field in [
        "uid",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
        "managedFields",
        "selfLink",
    ] {
        match old.get(field) {
            Some(v) => meta.insert(field.into(), v.clone()),
            None => meta.remove(field),
        };
    }
}

fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn check_finalizers(served: &Served, name: &str, old: &Value, new: &Value) -> ApiResult<()> {
    if old["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    let had = finalizers(old);
    let added: Vec<&str> = finalizers(new)
        .into_iter()
        .filter(|f| !had.contains(f))
        .collect();
    if added.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(
        served.kind.group,
        served.kind.kind,
        name,
        vec![FieldError {
            reason: "FieldValueForbidden",
            field: "metadata.finalizers".into(),
            message: format!(
                "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            ),
        }],
    ))
}

/// Whether a deletion has nothing left to wait for.
pub fn is_finished(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
        && finalizers(object).is_empty()
        && (object["kind"] != "Namespace"
            || object["spec"]["finalizers"]
                .as_array()
                .is_none_or(Vec::is_empty))
}

fn differs_outside_status(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else {
        return true;
    };
    let part = |m: &Map<String, Value>, k: &String| m.get(k).cloned();
    new.keys()
        .chain(old.keys())
        .any(|k| k != "metadata" && k != "status" && part(new, k) != part(old, k))
}
