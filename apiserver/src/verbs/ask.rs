//! What only the placement leader can answer: why a Job waits now, and what would happen to Jobs that
//! are not there yet. The leader dials in and is asked over that connection; nothing is stored.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, header};
use rota_api::names::{ANNOTATION_ADDRESS, GROUP, LEASE_PLACEMENT, SYSTEM_NAMESPACE};
use serde_json::{Value, json};

use super::update::{self, Part, Preconditions, Target};
use super::{WriteOptions, create};
use crate::auth::Attributes;
use crate::body::{self, Decoded};
use crate::error::{ApiError, ApiResult};
use crate::relay::{self, End, Question};
use crate::request::ResourcePath;
use crate::respond;
use crate::server::{Caller, Served, Server};
use crate::storage::{Done, store_error};
use crate::tunnel;

/// Objects of one plan: what a person writes into a file, far below what would hold placement up.
const ITEMS_MAX: usize = 500;

/// Bytes of an answer.
const ANSWER_MAX: usize = 8 << 20;

/// Writes that only pretend.
const DRY_RUN: WriteOptions = WriteOptions {
    dry_run: true,
    field_validation: super::FieldValidation::Strict,
};

/// The leader by its Lease, as far as this server has seen.
struct Leader {
    term: u64,
    /// URL of the server that it dialled; empty if it does not say.
    address: String,
}

fn leader(server: &Server) -> ApiResult<Option<Leader>> {
    let leases = server.known("coordination.k8s.io", "leases")?;
    let lease = server.cached(leases, SYSTEM_NAMESPACE, LEASE_PLACEMENT);
    Ok(lease.map(|l| l.value()).and_then(|lease| {
        let held = lease["spec"]["holderIdentity"]
            .as_str()
            .is_some_and(|h| !h.is_empty());
        let address = lease["metadata"]["annotations"][ANNOTATION_ADDRESS].as_str();
        held.then(|| Leader {
            term: lease["spec"]["leaseTransitions"].as_u64().unwrap_or(0),
            address: address.unwrap_or("").to_string(),
        })
    }))
}

/// GET of the tunnel, by the holder of placement's Lease, which its fence header names.
pub async fn tunnel(
    server: &Arc<Server>,
    parts: &mut Parts,
    caller: &Caller,
) -> ApiResult<Response> {
    let term = match &caller.fence {
        Some((namespace, name, term))
            if namespace == SYSTEM_NAMESPACE && name == LEASE_PLACEMENT =>
        {
            *term
        }
        _ => {
            return Err(ApiError::bad_request(format!(
                "this path wants the header Rota-Fence: {SYSTEM_NAMESPACE}/{LEASE_PLACEMENT}@<term>"
            )));
        }
    };
    server.cache.fresh().await.map_err(store_error)?;
    if leader(server)?.is_none_or(|l| l.term != term) {
        return Err(ApiError::new(
            409,
            rota_api::names::REASON_LEASE_LOST,
            format!("term {term} of placement is over"),
        ));
    }
    let (upgrade, response) = tunnel::upgrade(parts)?;
    server.leaders.accept(&term.to_string(), upgrade);
    Ok(response)
}

/// Asks the leader. Only the holder of the present term is asked: an older one answers nothing.
async fn ask(server: &Server, question: Question) -> ApiResult<Bytes> {
    let leader = leader(server)?.ok_or_else(|| {
        ApiError::unavailable("placement has no leader at the moment, so nobody can tell")
    })?;
    let end = End::Placement(leader.term);
    let answer = relay::ask(server, &end, Some(&leader.address), question).await?;
    let status = answer.status();
    let bytes = crate::router::read_body(Body::new(answer.into_body()), ANSWER_MAX).await?;
    if status.is_success() {
        return Ok(bytes);
    }
    let text = String::from_utf8_lossy(&bytes).trim().to_string();
    Err(match status {
        StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE => ApiError::unavailable(text),
        other => ApiError::internal(format!("the placement leader answered {other}: {text}")),
    })
}

/// GET of `jobs/NAME/why`.
pub async fn why(server: &Server, served: &Served, path: &ResourcePath) -> ApiResult<Response> {
    if served.kind.group != GROUP || served.kind.plural != "jobs" {
        return Err(ApiError::no_resource());
    }
    let job = server
        .current(served, &path.namespace, &path.name)
        .await?
        .ok_or_else(|| served.not_found(&path.name))?;
    // The leader may not have seen the Job as it is now: it waits until it has.
    let question = Question::get(format!(
        "/why/{}/{}?seen={}",
        path.namespace, path.name, job.version
    ));
    let answer = ask(server, question).await?;
    Ok(respond::json_bytes(200, answer))
}

/// POST to `plans`: the body is a list of Jobs and Queues, or one of them. Each is checked and
/// authorised as if it were applied now.
pub async fn plan(
    server: &Server,
    caller: &Caller,
    namespace: &str,
    headers: &HeaderMap,
    raw: &Bytes,
) -> ApiResult<Response> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok());
    let body = body::decode_object(raw, content_type)?;
    if !body.duplicates.is_empty() {
        return Err(ApiError::bad_request(format!(
            "duplicate fields: {}",
            body.duplicates.join(", ")
        )));
    }
    let items = match body.value {
        Value::Object(mut list) if list.contains_key("items") => match list.remove("items") {
            Some(Value::Array(items)) => items,
            _ => return Err(ApiError::bad_request("items must be a list")),
        },
        one => vec![one],
    };
    if items.len() > ITEMS_MAX {
        return Err(ApiError::bad_request(format!(
            "{} objects are more than the {ITEMS_MAX} that one plan may hold",
            items.len()
        )));
    }
    server.cache.fresh().await.map_err(store_error)?;
    let (mut jobs, mut queues) = (Vec::new(), Vec::new());
    let mut seen = 0;
    for item in items {
        let (plural, into) = match (item["apiVersion"].as_str(), item["kind"].as_str()) {
            (Some("rota.dev/v1"), Some("Job")) => ("jobs", &mut jobs),
            (Some("rota.dev/v1"), Some("Queue")) => ("queues", &mut queues),
            (version, kind) => {
                return Err(ApiError::bad_request(format!(
                    "a plan is made for Jobs and Queues of rota.dev/v1, not for {} of {}",
                    kind.unwrap_or("an object without kind"),
                    version.unwrap_or("no apiVersion"),
                )));
            }
        };
        let served = server.known(GROUP, plural)?;
        let namespace = if served.kind.namespaced {
            namespace
        } else {
            ""
        };
        let (done, known) = pretend(server, caller, served, namespace, item).await?;
        seen = seen.max(known);
        into.push(serde_json::from_slice::<Value>(&done.bytes).unwrap_or_default());
    }
    let question = Question {
        method: Method::POST,
        path: format!("/plan?seen={seen}"),
        body: json!({"jobs": jobs, "queues": queues}).to_string().into(),
    };
    let answer = ask(server, question).await?;
    Ok(respond::json_bytes(200, answer))
}

/// Creates the object, or changes the one that is there, without storing it. Also answers the
/// version of the one that is there.
async fn pretend(
    server: &Server,
    caller: &Caller,
    served: &Served,
    namespace: &str,
    item: Value,
) -> ApiResult<(Done, u64)> {
    let name = item["metadata"]["name"].as_str().unwrap_or("").to_string();
    let old = server.cached(served, namespace, &name);
    server.authorize(
        &caller.user,
        &Attributes {
            verb: if old.is_some() { "patch" } else { "create" },
            group: GROUP.into(),
            resource: served.kind.plural.into(),
            namespace: namespace.into(),
            name: name.clone(),
            ..Attributes::default()
        },
    )?;
    let Some(old) = old else {
        let body = Decoded {
            value: item,
            duplicates: Vec::new(),
        };
        let done = create::create(server, caller, served, namespace, body, DRY_RUN).await?;
        return Ok((done, 0));
    };
    let target = Target {
        served,
        namespace,
        name: &name,
        part: Part::Main,
    };
    let done = update::patch(
        server,
        caller,
        &target,
        "application/merge-patch+json",
        item.to_string().as_bytes(),
        &Preconditions::default(),
        DRY_RUN,
    )
    .await?;
    Ok((done, old.version))
}
