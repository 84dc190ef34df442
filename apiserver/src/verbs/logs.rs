//! Logs of tasks, and the tunnels over which they come.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use rota_api::index_set::IndexSet;
use rota_api::names::{GROUP, LEDGER_CHUNK, NODE_LEASE_NAMESPACE, ledger_name};
use serde_json::{Value, json};

use super::WriteOptions;
use super::update::{self, Part, Preconditions, Target};
use crate::background::itself;
use crate::error::{ApiError, ApiResult};
use crate::relay::{self, End, Question};
use crate::request::{Query, ResourcePath};
use crate::server::{Caller, Served, Server};
use crate::tunnel::{self, TunnelEventKind};

/// Query parameters that are handed on to the agent.
const FORWARDED: &[&str] = &[
    "follow",
    "tailLines",
    "sinceSeconds",
    "timestamps",
    "stream",
];

/// The attempt whose log is asked for.
struct Attempt {
    node: String,
    job_uid: String,
    index: u64,
    attempt: u64,
}

/// GET of `tasks/NAME/log` or `jobs/NAME/log?index=N`.
pub async fn log(
    server: &Server,
    served: &Served,
    path: &ResourcePath,
    query: &Query,
) -> ApiResult<Response> {
    if served.kind.group != GROUP {
        return Err(ApiError::no_resource());
    }
    let attempt = match served.kind.plural {
        "tasks" => of_task(server, served, path).await?,
        "jobs" => of_job(server, served, path, query).await?,
        _ => return Err(ApiError::no_resource()),
    };
    query.flag("follow")?;
    query.flag("timestamps")?;
    query.number("tailLines")?;
    query.number("sinceSeconds")?;
    let mut pairs = Vec::new();
    for key in FORWARDED {
        if let Some(value) = query.get(key) {
            if !value.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(crate::request::bad_parameter(
                    key,
                    value,
                    "must be a word or a number",
                ));
            }
            pairs.push(format!("{key}={value}"));
        }
    }
    let uri = format!(
        "/logs/{}/{}/{}?{}",
        attempt.job_uid,
        attempt.index,
        attempt.attempt,
        pairs.join("&")
    );
    forward(server, &attempt.node, &uri).await
}

async fn of_task(server: &Server, served: &Served, path: &ResourcePath) -> ApiResult<Attempt> {
    let task = server
        .current(served, &path.namespace, &path.name)
        .await?
        .ok_or_else(|| served.not_found(&path.name))?
        .value();
    let spec = &task["spec"];
    Ok(Attempt {
        node: spec["nodeName"].as_str().unwrap_or("").into(),
        job_uid: spec["jobUid"].as_str().unwrap_or("").into(),
        index: spec["index"].as_u64().unwrap_or(0),
        attempt: spec["attempt"].as_u64().unwrap_or(0),
    })
}

/// The live Task of the index if there is one, else what the ledger remembers.
async fn of_job(
    server: &Server,
    served: &Served,
    path: &ResourcePath,
    query: &Query,
) -> ApiResult<Attempt> {
    let job = server
        .current(served, &path.namespace, &path.name)
        .await?
        .ok_or_else(|| served.not_found(&path.name))?
        .value();
    let job_uid = job["metadata"]["uid"].as_str().unwrap_or("").to_string();
    let index = query.number("index")?.unwrap_or(0);
    let wanted = query.number("attempt")?;
    let tasks = server.known(GROUP, "tasks")?;
    let field = tasks.fields.iter().position(|f| f == "spec.jobName");
    let filter = |o: &crate::objects::Object| field.is_some_and(|f| *o.fields[f] == *path.name);
    let request = crate::cache::PageRequest {
        namespace: &path.namespace,
        filter: Some(&filter),
        ..Default::default()
    };
    let live = server
        .cache
        .page(tasks.cache, &request)
        .map(|p| p.items)
        .unwrap_or_default();
    let live = live
        .iter()
        .map(|o| o.value())
        .filter(|t| {
            t["spec"]["jobUid"] == json!(job_uid) && t["spec"]["index"].as_u64() == Some(index)
        })
        .filter(|t| wanted.is_none_or(|w| t["spec"]["attempt"].as_u64() == Some(w)))
        .max_by_key(|t| t["spec"]["attempt"].as_u64());
    if let Some(task) = live {
        let attempt = task["spec"]["attempt"].as_u64().unwrap_or(0);
        return Ok(Attempt {
            node: task["spec"]["nodeName"].as_str().unwrap_or("").into(),
            job_uid,
            index,
            attempt,
        });
    }
    let ledgers = server.known(GROUP, "jobledgers")?;
    let name = ledger_name(
        &path.name,
        &job_uid,
        (index / u64::from(LEDGER_CHUNK)) as u32,
    );
    let ledger = server
        .cached(ledgers, &path.namespace, &name)
        .map(|o| o.value())
        .unwrap_or(Value::Null);
    let node = ledger["spec"]["lastNodes"]
        .as_object()
        .into_iter()
        .flatten()
        .find_map(|(node, ranges)| {
            let set: IndexSet = ranges.as_str()?.parse().ok()?;
            set.contains(index as u32).then(|| node.clone())
        });
    let node = node.ok_or_else(|| {
        ApiError::new(
            404,
            "NotFound",
            format!(
                "index {index} of job {:?} has not run yet, so there is no log",
                path.name
            ),
        )
        .about(GROUP, "jobs", &path.name)
    })?;
    let next = ledger["spec"]["attempts"][index.to_string()]["next"].as_u64();
    // A success leaves `next` at its own attempt; a failure moves it one past.
    let failed = next.is_some() && !succeeded(&ledger, index);
    let last = next.unwrap_or(0).saturating_sub(u64::from(failed));
    Ok(Attempt {
        node,
        job_uid,
        index,
        attempt: wanted.unwrap_or(last),
    })
}

fn succeeded(ledger: &Value, index: u64) -> bool {
    let text = ledger["spec"]["succeeded"].as_str().unwrap_or("");
    let first = index - index % u64::from(LEDGER_CHUNK);
    IndexSet::from_bitmap(text, first as u32, LEDGER_CHUNK)
        .is_ok_and(|set| set.contains(index as u32))
}

/// Metrics of an agent.
pub async fn node_metrics(server: &Server, node: &str) -> ApiResult<Response> {
    forward(server, node, "/metrics").await
}

async fn forward(server: &Server, node: &str, path: &str) -> ApiResult<Response> {
    let lease = server
        .known("coordination.k8s.io", "leases")
        .ok()
        .and_then(|leases| server.cached(leases, NODE_LEASE_NAMESPACE, node))
        .map(|lease| lease.value());
    let holder = lease.as_ref().and_then(|lease| {
        lease["metadata"]["annotations"][rota_api::names::ANNOTATION_TUNNEL_SERVER].as_str()
    });
    let end = End::Node(node.to_string());
    let response = relay::ask(server, &end, holder, Question::get(path)).await?;
    let (parts, body) = response.into_parts();
    if !parts.status.is_success() {
        let text = crate::router::read_body(Body::new(body), 64 * 1024)
            .await
            .unwrap_or_default();
        let text = String::from_utf8_lossy(&text).trim().to_string();
        return Err(match parts.status {
            StatusCode::NOT_FOUND => {
                ApiError::new(404, "NotFound", format!("node {node:?}: {text}"))
            }
            StatusCode::BAD_REQUEST => ApiError::bad_request(text),
            other => ApiError::unavailable(format!("node {node:?} answered {other}: {text}")),
        });
    }
    let mut out = Response::new(Body::new(body));
    out.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    Ok(out)
}

/// GET of `/rota/v1/nodes/NAME/tunnel` with `Upgrade: rota-tunnel/1`, by the node itself.
pub fn tunnel(
    server: &Arc<Server>,
    parts: &mut Parts,
    caller: &Caller,
    node: &str,
) -> ApiResult<Response> {
    let (upgrade, response) = tunnel::upgrade(parts)?;
    tracing::debug!(node, user = caller.user.name, "tunnel");
    server.tunnels.accept(node, upgrade);
    Ok(response)
}

/// Writes into each node's Lease which server holds its tunnel, and when the node's end went away:
/// the node controller reads a paused agent (connection stays) from a dead one (connection gone) by it.
pub async fn record_tunnels(server: Arc<Server>) {
    let mut events = server.tunnels.events();
    loop {
        let event = tokio::select! {
            () = server.stop.cancelled() => return,
            event = events.recv() => match event {
                Some(event) => event,
                None => return,
            },
        };
        let annotations = match event.kind {
            TunnelEventKind::Opened => json!({
                rota_api::names::ANNOTATION_TUNNEL_SERVER: server.advertise,
                rota_api::names::ANNOTATION_TUNNEL_ID: event.id,
            }),
            TunnelEventKind::PeerClosed => {
                json!({rota_api::names::ANNOTATION_TUNNEL_CLOSED: event.id})
            }
        };
        let server = server.clone();
        tokio::spawn(async move {
            let patch = json!({"metadata": {"annotations": annotations}}).to_string();
            // The Lease may not exist yet when a new node connects; it will within seconds.
            for _ in 0..60 {
                match patch_lease(&server, &event.node, &patch).await {
                    Ok(()) => return,
                    Err(e) => {
                        tracing::debug!(node = event.node, error = %e, "cannot record the tunnel yet")
                    }
                }
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
        });
    }
}

async fn patch_lease(server: &Server, node: &str, patch: &str) -> ApiResult<()> {
    let leases = server.known("coordination.k8s.io", "leases")?;
    let target = Target {
        served: leases,
        namespace: NODE_LEASE_NAMESPACE,
        name: node,
        part: Part::Main,
    };
    update::patch(
        server,
        &itself(),
        &target,
        "application/merge-patch+json",
        patch.as_bytes(),
        &Preconditions::default(),
        WriteOptions::default(),
    )
    .await
    .map(|_| ())
}
