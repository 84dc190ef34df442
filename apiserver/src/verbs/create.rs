//! create: POST to a collection.

use std::sync::Arc;

use rota_api::registry::{FieldError, NameRule};
use rota_store::{Expect, Guard, Write};
use serde_json::{Value, json};

use super::{FieldValidation, WriteOptions};
use crate::auth::authorizer::check_node_create;
use crate::body::Decoded;
use crate::error::{ApiError, ApiResult};
use crate::objects::encode;
use crate::schema::Mode;
use crate::server::{Caller, Served, Server};
use crate::storage::{Done, Outcome, Prepared, check_size, fence_key};

/// Letters of generated name suffixes: no vowels and nothing that reads alike.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Creates an object from a decoded body.
pub async fn create(
    server: &Server,
    caller: &Caller,
    served: &Served,
    namespace: &str,
    body: Decoded,
    options: WriteOptions,
) -> ApiResult<Done> {
    let template = Template::new(caller, served, namespace, body, options)?;
    commit(server, caller, served, namespace, template, options.dry_run).await
}

/// Stores what was checked, under another name suffix while a generated one is taken.
pub async fn commit(
    server: &Server,
    caller: &Caller,
    served: &Served,
    namespace: &str,
    template: Template,
    dry_run: bool,
) -> ApiResult<Done> {
    if !namespace.is_empty() && namespace_guard(server, namespace)?.is_none() {
        server
            .cache
            .fresh()
            .await
            .map_err(crate::storage::store_error)?;
    }
    server
        .commit_new(caller, served, dry_run, |server| {
            let (prepared, key) = template.prepare(server, served, namespace)?;
            Ok((prepared, key, template.generates_name()))
        })
        .await
}

/// A validated object that only lacks its name suffix, if that is generated.
pub struct Template {
    object: Value,
    generate: Option<String>,
    warnings: Vec<String>,
}

impl Template {
    /// Checks and completes a body.
    pub fn new(
        caller: &Caller,
        served: &Served,
        namespace: &str,
        body: Decoded,
        options: WriteOptions,
    ) -> ApiResult<Self> {
        let kind = &served.kind;
        let Decoded {
            value: mut object,
            duplicates,
        } = body;
        let meta = metadata_of(&mut object)?;
        if meta
            .get("resourceVersion")
            .is_some_and(|v| v != "" && !v.is_null())
        {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        check_namespace(served, meta, namespace)?;
        for managed in [
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "managedFields",
        ] {
            meta.remove(managed);
        }
        let mut generate = None;
        if meta
            .get("name")
            .and_then(Value::as_str)
            .is_none_or(str::is_empty)
        {
            meta.remove("name");
            match meta
                .get("generateName")
                .and_then(Value::as_str)
                .filter(|s| !s.is_empty())
            {
                Some(prefix) => {
                    let most = match kind.name_rule {
                        NameRule::Subdomain(n) => n.min(63),
                        NameRule::Label => 63,
                    };
                    let cut: String = prefix.chars().take(most - 5).collect();
                    meta.insert("name".into(), json!(format!("{cut}xxxxx")));
                    generate = Some(cut);
                }
                None => {
                    return Err(ApiError::invalid(
                        kind.group,
                        kind.kind,
                        "",
                        vec![FieldError {
                            reason: "FieldValueRequired",
                            field: "metadata.name".into(),
                            message: "Required value: name or generateName is required".into(),
                        }],
                    ));
                }
            }
        }
        meta.insert("uid".into(), json!(new_uid()));
        meta.insert("creationTimestamp".into(), json!(now()));
        if kind.generation {
            meta.insert("generation".into(), json!(1));
        }
        if kind.status
            && !kind.core
            && let Some(top) = object.as_object_mut()
        {
            top.remove("status");
        }
        (kind.prepare)(&mut object, None);
        let warnings = admit(served, &mut object, None, duplicates, Mode::Full, options)?;
        let object = if served.view {
            rota_api::core_kinds::event::to_core_v1(&object)
        } else {
            object
        };
        check_node_create(&caller.user, kind.plural, &object).map_err(|why| {
            ApiError::forbidden(
                kind.group,
                kind.plural,
                object["metadata"]["name"].as_str().unwrap_or(""),
                why,
            )
        })?;
        Ok(Template {
            object,
            generate,
            warnings,
        })
    }

    /// Whether each [`Template::prepare`] makes another name.
    pub fn generates_name(&self) -> bool {
        self.generate.is_some()
    }

    /// The write, with its key.
    pub fn prepare(
        &self,
        server: &Server,
        served: &Served,
        namespace: &str,
    ) -> ApiResult<(Prepared, Arc<str>)> {
        let mut guards = Vec::with_capacity(3);
        let object = match &self.generate {
            None => std::borrow::Cow::Borrowed(&self.object),
            Some(prefix) => {
                let mut object = self.object.clone();
                object["metadata"]["name"] = json!(format!("{prefix}{}", suffix()));
                std::borrow::Cow::Owned(object)
            }
        };
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or("")
            .to_string();
        let key = served.key(namespace, &name);
        guards.push(Guard {
            key: key.clone(),
            expect: Expect::Absent,
        });
        if !namespace.is_empty() {
            match namespace_guard(server, namespace)? {
                Some(guard) => guards.push(guard),
                None => return Err(ApiError::not_found("", "namespaces", namespace)),
            }
        }
        let stored = encode(&object);
        check_size(&stored)?;
        let mut writes = vec![Write::Put {
            key: key.clone(),
            value: stored.clone(),
            expires_at: expiry(served),
        }];
        if let Some(fence) = lease_fence(served, None, &object)? {
            writes.push(fence);
        }
        let outcome = Outcome::Stored {
            stored,
            code: 201,
            uid: object["metadata"]["uid"].as_str().unwrap_or("").into(),
        };
        Ok((
            Prepared {
                guards,
                writes,
                outcome,
                warnings: self.warnings.clone(),
            },
            key,
        ))
    }
}

/// When an object written now expires, in Unix seconds.
pub fn expiry(served: &Served) -> Option<u64> {
    served
        .kind
        .ttl_seconds
        .map(|ttl| unix_now() + u64::from(ttl))
}

/// Unix seconds.
pub fn unix_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// RFC 3339 in seconds, as metadata times are written.
pub fn now() -> String {
    jiff::Timestamp::from_second(unix_now() as i64)
        .map_or_else(|_| String::new(), |t| t.to_string())
}

/// A random UUID. The bits come from the thread's generator, which is as good a source as the
/// kernel's and costs no system call per object.
fn new_uid() -> String {
    uuid::Builder::from_random_bytes(rand::random())
        .into_uuid()
        .to_string()
}

fn suffix() -> String {
    (0..5)
        .map(|_| SUFFIX_LETTERS[rand::random_range(0..SUFFIX_LETTERS.len())] as char)
        .collect()
}

/// metadata of an object as a map; made if absent.
pub fn metadata_of(object: &mut Value) -> ApiResult<&mut serde_json::Map<String, Value>> {
    let top = object
        .as_object_mut()
        .ok_or_else(|| ApiError::bad_request("the body must be a JSON object"))?;
    let meta = top.entry("metadata").or_insert_with(|| json!({}));
    if meta.is_null() {
        *meta = json!({});
    }
    meta.as_object_mut()
        .ok_or_else(|| ApiError::bad_request("metadata must be an object"))
}

/// The body's namespace must be absent or the URL's; it is set to the URL's.
pub fn check_namespace(
    served: &Served,
    meta: &mut serde_json::Map<String, Value>,
    namespace: &str,
) -> ApiResult<()> {
    let given = meta.get("namespace").and_then(Value::as_str).unwrap_or("");
    if !served.kind.namespaced {
        meta.remove("namespace");
        return Ok(());
    }
    if !given.is_empty() && given != namespace {
        return Err(ApiError::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request: {given:?} is not {namespace:?}"
        )));
    }
    meta.insert("namespace".into(), json!(namespace));
    Ok(())
}

/// Prunes, defaults and validates; answers the warnings.
pub fn admit(
    served: &Served,
    object: &mut Value,
    old: Option<&Value>,
    duplicates: Vec<String>,
    mode: Mode,
    options: WriteOptions,
) -> ApiResult<Vec<String>> {
    let kind = &served.kind;
    let admitted = served.compiled.admit(object, mode);
    let mut notes: Vec<String> = admitted
        .unknown
        .iter()
        .map(|p| format!("unknown field {p:?}"))
        .collect();
    notes.extend(duplicates.iter().map(|p| format!("duplicate field {p:?}")));
    if options.field_validation == FieldValidation::Strict && !notes.is_empty() {
        return Err(ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
            kind.kind,
            kind.version,
            kind.kind,
            notes.join(", ")
        )));
    }
    let mut errors = admitted.errors;
    if errors.is_empty() {
        errors.extend((kind.rules)(object, old));
    }
    if !errors.is_empty() {
        let name = object["metadata"]["name"].as_str().unwrap_or("");
        return Err(ApiError::invalid(kind.group, kind.kind, name, errors));
    }
    Ok(if options.field_validation == FieldValidation::Warn {
        notes
    } else {
        Vec::new()
    })
}

/// The namespace must exist, and must still be as it was when the object is committed. `None`: not in the cache.
fn namespace_guard(server: &Server, namespace: &str) -> ApiResult<Option<Guard>> {
    let namespaces = server.known("", "namespaces")?;
    let Some(object) = server.cached(namespaces, "", namespace) else {
        return Ok(None);
    };
    if object
        .fields
        .first()
        .is_some_and(|phase| &**phase == "Terminating")
    {
        return Err(ApiError::forbidden(
            "",
            "namespaces",
            namespace,
            format!("unable to create new content in namespace {namespace} because it is being terminated"),
        )
        .with(|d| {
            d.causes.push(crate::error::Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".into(),
            });
        }));
    }
    Ok(Some(Guard {
        key: namespaces.key("", namespace),
        expect: Expect::Version(object.version),
    }))
}

/// A Lease that changes hands raises its term, and the fence key follows in the same transaction.
pub fn lease_fence(served: &Served, old: Option<&Value>, new: &Value) -> ApiResult<Option<Write>> {
    if served.kind.kind != "Lease" {
        return Ok(None);
    }
    let holder = |v: &Value| {
        v["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or("")
            .to_string()
    };
    let term = |v: &Value| v["spec"]["leaseTransitions"].as_i64().unwrap_or(0);
    let (to, new_term) = (holder(new), term(new));
    let name = new["metadata"]["name"].as_str().unwrap_or("");
    let namespace = new["metadata"]["namespace"].as_str().unwrap_or("");
    if let Some(old) = old {
        // A release leaves the term: until somebody else takes over, nobody else's writes are mixed with the holder's.
        if to.is_empty() || holder(old) == to {
            if new_term < term(old) {
                return Err(lease_rule(served, name, new_term, "must not go down"));
            }
            return Ok(None);
        }
        if new_term <= term(old) {
            return Err(lease_rule(
                served,
                name,
                new_term,
                "must be raised when holderIdentity changes",
            ));
        }
    } else if to.is_empty() {
        return Ok(None);
    }
    Ok(Some(Write::Put {
        key: fence_key(namespace, name),
        value: new_term.to_string().into(),
        expires_at: None,
    }))
}

fn lease_rule(served: &Served, name: &str, value: i64, why: &str) -> ApiError {
    ApiError::invalid(
        served.kind.group,
        served.kind.kind,
        name,
        vec![FieldError {
            reason: "FieldValueInvalid",
            field: "spec.leaseTransitions".into(),
            message: format!("Invalid value: {value}: {why}"),
        }],
    )
}
