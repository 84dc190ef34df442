//! From an HTTP request to a verb, and back.

mod paths;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use rota_api::names::HEADER_FENCE;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::auth::{Attributes, User, authn};
use crate::body;
use crate::error::{ApiError, ApiResult};
use crate::request::{self, Query, ResourcePath, Target};
use crate::respond::{self, Format};
use crate::server::{Caller, Served, Server};
use crate::storage::Done;
use crate::verbs::delete::DeleteOptions;
use crate::verbs::selectors::Selectors;
use crate::verbs::update::{self, Part, Preconditions};
use crate::verbs::{WriteOptions, ask, bulk, create, delete, logs, read, scale, watch};

/// Largest body of a request other than bulk: as in Kubernetes.
const BODY_MAX: usize = 3 << 20;

/// Bytes of a body over the limit that are read and thrown away before it is refused.
const DRAIN_MAX: usize = 64 << 20;

/// Requests of people and frameworks that run at once; the rest waits for [`LANE_WAIT`].
const LANE_USERS: usize = 400;

/// Requests of nodes and controllers that run at once: they have their own lane, so that no
/// flood of others costs a lease.
const LANE_SYSTEM: usize = 2_000;

/// Longest wait for a place.
const LANE_WAIT: Duration = Duration::from_secs(5);

/// Longest time for a request that is no watch and no log.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest time to read a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Places for requests in flight.
pub struct Lanes {
    users: Semaphore,
    system: Semaphore,
}

impl Default for Lanes {
    fn default() -> Self {
        Lanes {
            users: Semaphore::new(LANE_USERS),
            system: Semaphore::new(LANE_SYSTEM),
        }
    }
}

/// Handles every request.
pub async fn handle(State(server): State<Arc<Server>>, request: Request<Body>) -> Response {
    let started = Instant::now();
    let (mut parts, body) = request.into_parts();
    let audit = audit_id(&parts.headers);
    let mut info = Info::default();
    let result = dispatch(&server, &mut parts, body, &mut info).await;
    let mut response = result.unwrap_or_else(|e| {
        if e.code >= 500 && e.code != 503 && e.code != 504 {
            tracing::error!(audit, path = parts.uri.path(), error = %e, "request failed");
        }
        e.into_response()
    });
    let code = response.status().as_u16();
    let took = started.elapsed();
    server
        .metrics
        .request(info.verb, &info.resource, code, took);
    tracing::debug!(
        audit,
        verb = info.verb,
        path = parts.uri.path(),
        user = info.user,
        code,
        ms = took.as_millis() as u64,
        "request"
    );
    if let Ok(v) = HeaderValue::from_str(&audit) {
        response.headers_mut().insert("audit-id", v);
    }
    if parts.method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

#[derive(Default)]
struct Info {
    verb: &'static str,
    resource: String,
    user: String,
}

fn audit_id(headers: &HeaderMap) -> String {
    let given = headers
        .get("audit-id")
        .and_then(|v| v.to_str().ok())
        .filter(|v| !v.is_empty() && v.len() <= 128);
    given.map_or_else(|| uuid::Uuid::new_v4().to_string(), String::from)
}

async fn dispatch(
    server: &Arc<Server>,
    parts: &mut Parts,
    body: Body,
    info: &mut Info,
) -> ApiResult<Response> {
    let target = request::target(parts.uri.path())?;
    if let Target::Other(path) = &target
        && let Some(response) = paths::open(server, path)
    {
        info.verb = "get";
        return Ok(response);
    }
    let peer = parts.extensions.get::<Arc<User>>().cloned();
    let user = authn::authenticate(&parts.headers, peer, &**server, jiff::Timestamp::now())?
        .ok_or_else(ApiError::unauthorized)?;
    info.user.clone_from(&user.name);
    let query = Query::parse(parts.uri.query())?;
    let caller = Caller {
        fence: fence(server, &user, &parts.headers)?,
        user,
    };
    match target {
        Target::Other(path) => {
            info.verb = "get";
            paths::other(server, parts, body, &caller, &path).await
        }
        Target::Resource(path) => {
            let is_watch = query.flag("watch")?;
            let verb = request::verb(&parts.method, &path, is_watch)
                .ok_or_else(ApiError::method_not_allowed)?;
            info.verb = verb;
            info.resource.clone_from(&path.plural);
            if path.group == rota_api::names::GROUP && path.plural == "bulk" && path.name.is_empty()
            {
                if parts.method != Method::POST {
                    return Err(ApiError::method_not_allowed());
                }
                let _place = place(server, &caller.user).await?;
                let body = read_body(body, bulk::BODY_MAX).await?;
                return Ok(respond::json_bytes(
                    200,
                    bulk::bulk(server, &caller, &body).await?.into(),
                ));
            }
            if path.group == rota_api::names::GROUP && path.plural == "plans" {
                if verb != "create" || !path.name.is_empty() || path.namespace.is_empty() {
                    return Err(ApiError::method_not_allowed());
                }
                let _place = place(server, &caller.user).await?;
                let body = read_body(body, BODY_MAX).await?;
                let work = ask::plan(server, &caller, &path.namespace, &parts.headers, &body);
                return in_time(work).await;
            }
            resource(server, parts, body, &caller, &path, verb, &query).await
        }
    }
}

/// The leadership that the caller claims, if it may claim it.
fn fence(
    server: &Server,
    user: &User,
    headers: &HeaderMap,
) -> ApiResult<Option<(String, String, u64)>> {
    let Some(value) = headers.get(HEADER_FENCE) else {
        return Ok(None);
    };
    let parsed = value.to_str().ok().and_then(|text| {
        let (lease, term) = text.split_once('@')?;
        let (namespace, name) = lease.split_once('/')?;
        Some((
            namespace.to_string(),
            name.to_string(),
            term.parse::<u64>().ok()?,
        ))
    });
    let (namespace, name, term) = parsed.ok_or_else(|| {
        ApiError::bad_request("header Rota-Fence must be <namespace>/<lease>@<term>")
    })?;
    server.authorize(
        user,
        &Attributes {
            verb: "update",
            group: "coordination.k8s.io".into(),
            resource: "leases".into(),
            namespace: namespace.clone(),
            name: name.clone(),
            ..Attributes::default()
        },
    )?;
    Ok(Some((namespace, name, term)))
}

async fn place<'a>(server: &'a Server, user: &User) -> ApiResult<tokio::sync::SemaphorePermit<'a>> {
    let system = user
        .groups
        .iter()
        .any(|g| g.starts_with("system:") && g != "system:bootstrappers");
    let lane = if system {
        &server.lanes.system
    } else {
        &server.lanes.users
    };
    if let Ok(permit) = lane.try_acquire() {
        return Ok(permit);
    }
    match tokio::time::timeout(LANE_WAIT, lane.acquire()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(ApiError::too_many_requests(
            "too many requests are in flight, please try again later",
            1,
        )),
    }
}

/// Reads a whole body. Of one that is too large no more than the limit is kept, and so much is read
/// on that ordinary clients, which send first and then listen, get to see the refusal.
pub async fn read_body(mut body: Body, most: usize) -> ApiResult<Bytes> {
    let deadline = tokio::time::Instant::now() + BODY_TIMEOUT;
    let read = Limited::new(&mut body, most).collect();
    match tokio::time::timeout_at(deadline, read).await {
        Err(_) => Err(ApiError::new(
            408,
            "Timeout",
            "the request body did not arrive in time",
        )),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            let rest = async {
                let mut left = DRAIN_MAX;
                while let Some(Ok(frame)) = body.frame().await {
                    let len = frame.data_ref().map_or(0, Bytes::len);
                    let Some(less) = left.checked_sub(len) else {
                        return;
                    };
                    left = less;
                }
            };
            let _ = tokio::time::timeout_at(deadline, rest).await;
            Err(ApiError::too_large(format!(
                "Request entity too large: limit is {most}"
            )))
        }
        Ok(Err(e)) => Err(ApiError::bad_request(format!(
            "the request body could not be read: {e}"
        ))),
    }
}

async fn resource(
    server: &Arc<Server>,
    parts: &Parts,
    body: Body,
    caller: &Caller,
    path: &ResourcePath,
    verb: &'static str,
    query: &Query,
) -> ApiResult<Response> {
    let served = server
        .find(&path.group, &path.version, &path.plural)
        .ok_or_else(ApiError::no_resource)?;
    let kind = &served.kind;
    if !kind.namespaced && !path.namespace.is_empty() {
        return Err(ApiError::no_resource());
    }
    if kind.namespaced && path.namespace.is_empty() && (!path.name.is_empty() || verb == "create") {
        return Err(if path.name.is_empty() {
            ApiError::method_not_allowed()
        } else {
            ApiError::no_resource()
        });
    }
    let reads = matches!(verb, "get" | "list" | "watch");
    let selectors = if reads && path.subresource.is_empty() {
        Some(Selectors::parse(served, query)?)
    } else {
        None
    };
    let attributes = Attributes {
        verb,
        group: path.group.clone(),
        resource: path.plural.clone(),
        subresource: path.subresource.clone(),
        namespace: path.namespace.clone(),
        name: if path.name.is_empty() {
            selectors
                .as_ref()
                .and_then(|s| s.name.clone())
                .unwrap_or_default()
        } else {
            path.name.clone()
        },
        selected_node: selectors.and_then(|s| s.node),
        path: String::new(),
    };
    if server.authorize(&caller.user, &attributes).is_err() {
        // What a node may do depends on the Tasks bound to it, and this cache may not have seen the newest.
        server
            .cache
            .fresh()
            .await
            .map_err(crate::storage::store_error)?;
        server.authorize(&caller.user, &attributes)?;
    }
    if !server.cache.synced() {
        return Err(ApiError::unavailable(
            "the server is still reading its store",
        ));
    }
    if verb == "watch" {
        let format = respond::negotiate(&parts.headers, query)?;
        if !path.name.is_empty() {
            return watch::watch(
                server,
                served,
                &path.namespace,
                &query.with_name(&path.name),
                format,
            )
            .await;
        }
        return watch::watch(server, served, &path.namespace, query, format).await;
    }
    if path.subresource == "log" {
        return logs::log(server, served, path, query).await;
    }
    let _place = place(server, &caller.user).await?;
    let work = async {
        if path.subresource == "why" && verb == "get" {
            return ask::why(server, served, path).await;
        }
        if reads {
            let format = respond::negotiate(&parts.headers, query)?;
            return get_or_list(server, served, path, query, format).await;
        }
        let body = read_body(body, BODY_MAX).await?;
        write(
            server,
            caller,
            served,
            path,
            verb,
            query,
            &parts.headers,
            &body,
        )
        .await
    };
    in_time(work).await
}

/// The answer, or that it took too long.
async fn in_time(work: impl Future<Output = ApiResult<Response>>) -> ApiResult<Response> {
    tokio::time::timeout(REQUEST_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| {
            Err(ApiError::new(
                504,
                "Timeout",
                "the request did not complete within 60 s",
            ))
        })
}

async fn get_or_list(
    server: &Server,
    served: &Served,
    path: &ResourcePath,
    query: &Query,
    format: Format,
) -> ApiResult<Response> {
    if path.name.is_empty() {
        return read::list(server, served, &path.namespace, query, format).await;
    }
    match path.subresource.as_str() {
        "" => {}
        "status" if served.kind.status => {}
        "scale" if served.kind.scale.is_some() => {
            let object = server
                .current(served, &path.namespace, &path.name)
                .await?
                .ok_or_else(|| served.not_found(&path.name))?;
            return Ok(respond::json_value(
                200,
                &scale::scale_of(served, &served.shown(&object))?,
            ));
        }
        _ => return Err(ApiError::no_resource()),
    }
    read::get(server, served, &path.namespace, &path.name, query, format).await
}

#[allow(clippy::too_many_arguments)]
async fn write(
    server: &Arc<Server>,
    caller: &Caller,
    served: &Served,
    path: &ResourcePath,
    verb: &'static str,
    query: &Query,
    headers: &HeaderMap,
    raw: &Bytes,
) -> ApiResult<Response> {
    let kind = &served.kind;
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok());
    let format = respond::negotiate(headers, query)?;
    if verb == "delete" || verb == "deletecollection" {
        let options = DeleteOptions::parse(query, raw)?;
        if !path.subresource.is_empty() {
            return Err(ApiError::method_not_allowed());
        }
        if verb == "deletecollection" {
            let selectors = Selectors::parse(served, query)?;
            let objects = read::all(server, served, &path.namespace, &selectors).await?;
            let items =
                delete::delete_collection(server, caller, served, objects, &options).await?;
            let version = server.cache.applied().to_string();
            return Ok(respond::json_value(
                200,
                &json!({"kind": served.list_kind, "apiVersion": served.api_version, "metadata": {"resourceVersion": version}, "items": items}),
            ));
        }
        let done = delete::delete(
            server,
            caller,
            served,
            &path.namespace,
            &path.name,
            &options,
        )
        .await?;
        if done.removed {
            return Ok(respond::json_value(
                200,
                &delete::removed_status(served, &done),
            ));
        }
        return Ok(respond_done(served, done, format));
    }
    let options = WriteOptions::parse(query)?;
    let part = match path.subresource.as_str() {
        "" => Part::Main,
        "status" if kind.status => Part::Status,
        "finalize" if kind.kind == "Namespace" && verb == "update" => Part::Finalize,
        "scale" if kind.scale.is_some() && matches!(verb, "update" | "patch") => {
            let decoded;
            let change = if verb == "patch" {
                scale::Change::Patch(content_type.unwrap_or(""), raw)
            } else {
                decoded = body::decode_object(raw, content_type)?;
                scale::Change::Replace(&decoded.value)
            };
            let done = scale::write(
                server,
                caller,
                served,
                &path.namespace,
                &path.name,
                change,
                options,
            )
            .await?;
            let object: serde_json::Value = serde_json::from_slice(&done.bytes).unwrap_or_default();
            return Ok(respond::json_value(
                done.code,
                &scale::scale_of(served, &object)?,
            ));
        }
        _ => return Err(ApiError::no_resource()),
    };
    let target = update::Target {
        served,
        namespace: &path.namespace,
        name: &path.name,
        part,
    };
    let done = match verb {
        "create" if path.name.is_empty() => {
            let decoded = body::decode(raw, content_type, kind)?;
            create::create(server, caller, served, &path.namespace, decoded, options).await?
        }
        "update" => {
            let decoded = body::decode(raw, content_type, kind)?;
            update::update(server, caller, &target, decoded, options).await?
        }
        "patch" => {
            let content_type = content_type.unwrap_or("");
            update::patch(
                server,
                caller,
                &target,
                content_type,
                raw,
                &Preconditions::default(),
                options,
            )
            .await?
        }
        _ => return Err(ApiError::method_not_allowed()),
    };
    Ok(respond_done(served, done, format))
}

fn respond_done(served: &Served, done: Done, format: Format) -> Response {
    let mut response = if format == Format::Object && !served.view {
        respond::json_bytes(done.code, done.bytes)
    } else {
        let object = crate::objects::Object {
            key: "".into(),
            version: done.version,
            bytes: done.bytes,
            labels: Box::default(),
            fields: Box::default(),
        };
        read::render_one(served, &object, format, done.code)
    };
    respond::add_warnings(&mut response, &done.warnings);
    response
}
