//! Paths that are no resources: health, metrics, discovery and schemas, and Rota's own.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::json;

use super::{BODY_MAX, read_body};
use crate::auth::Attributes;
use crate::error::{ApiError, ApiResult};
use crate::relay::{self, End, Question};
use crate::respond;
use crate::server::{Caller, Server};
use crate::verbs::{ask, logs};

/// Paths that need no identity: health and version, nothing else.
pub(super) fn open(server: &Server, path: &[String]) -> Option<Response> {
    let first: Vec<&str> = path.iter().map(String::as_str).collect();
    match first.as_slice() {
        ["livez"] => Some(text(200, "ok")),
        ["readyz"] if server.cache.synced() && server.cache.healthy() => Some(text(200, "ok")),
        ["readyz"] => Some(text(503, "the server does not follow its store yet")),
        ["version"] => Some(respond::json_value(200, &crate::version())),
        _ => None,
    }
}

fn text(code: u16, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

pub(super) async fn other(
    server: &Arc<Server>,
    parts: &mut Parts,
    body: Body,
    caller: &Caller,
    path: &[String],
) -> ApiResult<Response> {
    let verb = match parts.method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "post",
        _ => return Err(ApiError::method_not_allowed()),
    };
    let attributes = Attributes {
        verb,
        path: format!("/{}", path.join("/")),
        ..Attributes::default()
    };
    server.authorize(&caller.user, &attributes)?;
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    match (verb, names.as_slice()) {
        ("get", []) => Ok(respond::json_value(
            200,
            &json!({"paths": ["/api", "/apis", "/livez", "/readyz", "/version", "/metrics", "/openapi/v2", "/openapi/v3"]}),
        )),
        ("get", ["healthz"]) => Ok(text(200, "ok")),
        ("get", ["metrics"]) => Ok(text(200, server.metrics.page(server))),
        ("get", ["rota", "v1", "placement", "tunnel"]) => ask::tunnel(server, parts, caller).await,
        ("get", ["rota", "v1", "nodes", node, "tunnel"]) => {
            logs::tunnel(server, parts, caller, node)
        }
        ("get", ["rota", "v1", "nodes", node, "metrics"]) => logs::node_metrics(server, node).await,
        ("get" | "post", ["rota", "v1", "relay", rest @ ..]) => {
            let (end, rest) = End::parse(rest).ok_or_else(ApiError::no_resource)?;
            let query = parts.uri.query().map(|q| format!("?{q}"));
            let question = Question {
                method: parts.method.clone(),
                path: format!("/{}{}", rest.join("/"), query.unwrap_or_default()),
                body: read_body(body, relay::BODY_MAX).await?,
            };
            relay::serve(server, &end, question).await
        }
        ("post", ["rota", "v1", "certificates"]) => {
            let body = read_body(body, BODY_MAX).await?;
            let pki = server.signer.as_ref().ok_or_else(|| {
                ApiError::unavailable(
                    "this server has no CA key and signs no certificates; ask another one",
                )
            })?;
            Ok(respond::json_value(
                201,
                &crate::auth::csr::handle(pki, &caller.user, &body)?,
            ))
        }
        ("get", _) => server
            .documents
            .get(path, &parts.headers)
            .ok_or_else(ApiError::no_resource),
        _ => Err(ApiError::no_resource()),
    }
}
