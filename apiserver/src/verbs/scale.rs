//! The scale subresource: `autoscaling/v1 Scale` over the paths in a kind's row.

use rota_api::registry::ScalePaths;
use serde_json::{Value, json};

use super::WriteOptions;
use super::update::{Part, Preconditions, Target, prepare};
use crate::error::{ApiError, ApiResult};
use crate::server::{Caller, Served, Server};
use crate::storage::Done;

fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.')
        .filter(|p| !p.is_empty())
        .fold(object, |v, p| &v[p])
}

fn paths(served: &Served) -> ApiResult<&ScalePaths> {
    served.kind.scale.as_ref().ok_or_else(ApiError::no_resource)
}

/// The Scale of an object.
pub fn scale_of(served: &Served, object: &Value) -> ApiResult<Value> {
    let paths = paths(served)?;
    let meta = &object["metadata"];
    let mut status = json!({"replicas": at(object, &paths.status).as_i64().unwrap_or(0)});
    if let Some(selector) = at(object, &paths.selector).as_str() {
        status["selector"] = json!(selector);
    }
    let replicas = at(object, &paths.spec)
        .as_i64()
        .unwrap_or_else(|| default_replicas(object));
    Ok(json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"], "creationTimestamp": meta["creationTimestamp"],
        },
        "spec": {"replicas": replicas},
        "status": status,
    }))
}

/// What an absent `spec.replicas` means: as many as `spec.completions`, else one.
fn default_replicas(object: &Value) -> i64 {
    object["spec"]["completions"].as_i64().unwrap_or(1)
}

/// How the new Scale is made from the present one.
pub enum Change<'a> {
    /// PUT.
    Replace(&'a Value),
    /// PATCH: content type and body.
    Patch(&'a str, &'a [u8]),
}

/// Writes `spec.replicas` through a Scale; answers the object's write.
pub async fn write(
    server: &Server,
    caller: &Caller,
    served: &Served,
    namespace: &str,
    name: &str,
    change: Change<'_>,
    options: WriteOptions,
) -> ApiResult<Done> {
    let path = paths(served)?.spec.clone();
    let scale_kind = scale_kind(served);
    server
        .commit_change(caller, served, namespace, name, options.dry_run, |object| {
            let current = served.shown(object);
            let scale = scale_of(served, &current)?;
            let wanted = match &change {
                Change::Replace(body) => (*body).clone(),
                Change::Patch(content_type, body) => {
                    crate::patch::apply(&scale_kind, content_type, &scale, body)?
                }
            };
            let given = wanted["metadata"]["resourceVersion"]
                .as_str()
                .filter(|v| !v.is_empty());
            let uid = wanted["metadata"]["uid"].as_str().filter(|v| !v.is_empty());
            if given.is_some_and(|v| v != object.version.to_string()) {
                return Err(ApiError::modified(
                    served.kind.group,
                    served.kind.plural,
                    name,
                ));
            }
            let uid = Preconditions {
                uid: uid.map(String::from),
                resource_version: None,
            };
            uid.check(served, name, &current, object.version)?;
            let replicas = match &wanted["spec"]["replicas"] {
                Value::Null => json!(0),
                v if v
                    .as_i64()
                    .is_some_and(|n| (0..=i64::from(i32::MAX)).contains(&n)) =>
                {
                    v.clone()
                }
                v => {
                    return Err(ApiError::invalid(
                        "autoscaling",
                        "Scale",
                        name,
                        vec![rota_api::registry::FieldError {
                            reason: "FieldValueInvalid",
                            field: "spec.replicas".into(),
                            message: format!(
                                "Invalid value: {v}: must be an integer from 0 to 2147483647"
                            ),
                        }],
                    ));
                }
            };
            let mut new = current.clone();
            set_at(&mut new, &path, replicas);
            let target = Target {
                served,
                namespace,
                name,
                part: Part::Main,
            };
            prepare(caller, &target, object, &current, new, Vec::new(), options)
        })
        .await
}

fn set_at(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for part in path.split('.').filter(|p| !p.is_empty()) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[part];
    }
    *place = value;
}

/// A stand-in row, so that patches of a Scale follow the same rules as others; Scale is a core
/// type, so strategic merge is accepted.
fn scale_kind(served: &Served) -> rota_api::registry::Kind {
    let mut kind = served.kind.clone();
    kind.group = "autoscaling";
    kind.kind = "Scale";
    kind.core = true;
    kind
}
