//! The API server over the memory store, spoken to as HTTP without a socket.
#![allow(clippy::unwrap_used, missing_docs)]

mod bulk;
mod cache;
mod crud;
mod cutoff;
mod hostile;
mod reads;
mod watches;

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use rota_apiserver::auth::User;
use rota_apiserver::{ApiServer, Config};
use rota_store::MemoryStore;
use serde_json::{Value, json};
use tower::ServiceExt;

pub const JOBS: &str = "/apis/rota.dev/v1/namespaces/default/jobs";
pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const MERGE: &str = "application/merge-patch+json";

pub struct Api {
    pub server: Arc<ApiServer>,
    user: Arc<User>,
}

pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Api {
    pub async fn start() -> Api {
        let server = ApiServer::start(MemoryStore::new(), Config::default()).await;
        Api {
            server,
            user: User::new("system:admin", &["system:masters"]),
        }
    }

    pub fn as_user(&self, name: &str, groups: &[&str]) -> Api {
        Api {
            server: self.server.clone(),
            user: User::new(name, groups),
        }
    }

    pub async fn raw(&self, request: Request<Body>) -> http::Response<Body> {
        let mut request = request;
        request.extensions_mut().insert(self.user.clone());
        self.server.router().oneshot(request).await.unwrap()
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        content_type: Option<&str>,
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(t) = content_type {
            request = request.header("content-type", t);
        }
        let response = self.raw(request.body(body.into()).unwrap()).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None, "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, Some("application/json"), body.to_string())
            .await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, Some("application/json"), body.to_string())
            .await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send("PATCH", path, Some(MERGE), body.to_string())
            .await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, None, "").await
    }
}

impl Answer {
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.code < 300, "{}: {}", self.code, self.body);
        self.body
    }

    #[track_caller]
    pub fn fails(self, code: u16, reason: &str) -> Value {
        assert_eq!(
            (self.code, self.body["reason"].as_str().unwrap_or("")),
            (code, reason),
            "{}",
            self.body
        );
        assert_eq!(self.body["kind"], "Status");
        assert_eq!(self.body["code"], code);
        self.body
    }
}

pub fn job(name: &str) -> Value {
    json!({"apiVersion": "rota.dev/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"spec": {"command": ["true"]}}}})
}

pub fn map(name: &str, value: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"v": value}}, "data": {"k": value}})
}

pub fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}
