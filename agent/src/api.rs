//! The agent's API client: few calls, minimal types, one place for errors.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::RwLock;
use rota_api::kinds::{TaskBinding, TaskPhase};
use serde::Deserialize;
use serde_json::Value;

use crate::config::AgentError;
use crate::identity::Identity;

/// Longest wait for the head of an answer, and for the whole of one that is no watch. Without it a
/// connection to a machine that vanished would hold a call for the quarter of an hour that the
/// kernel takes to give up.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer.
    #[error("the API server cannot be reached: {0}")]
    Transport(String),
    /// An answer that refuses.
    #[error("{code} {reason}: {message}")]
    Status {
        /// HTTP code.
        code: u16,
        /// Machine word.
        reason: String,
        /// For people.
        message: String,
    },
}

impl CallError {
    /// HTTP code, 0 without an answer.
    pub fn code(&self) -> u16 {
        match self {
            CallError::Transport(_) => 0,
            CallError::Status { code, .. } => *code,
        }
    }
}

/// Metadata as far as the agent needs it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// uid.
    pub uid: String,
    /// Version.
    pub resource_version: String,
    /// Set once deletion was asked for.
    pub deletion_timestamp: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Spec changes.
    pub generation: i64,
}

/// A Task as far as the agent needs it.
#[derive(Clone, Debug, Deserialize)]
pub struct TaskObject {
    /// Metadata.
    pub metadata: Meta,
    /// Binding.
    pub spec: TaskBinding,
    /// Status.
    #[serde(default)]
    pub status: StatusObject,
}

/// Status of a Task as far as the agent needs it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusObject {
    /// Phase.
    pub phase: Option<TaskPhase>,
}

/// The client; its certificate can change while it is in use.
pub struct Api {
    client: RwLock<kube::Client>,
}

impl Api {
    /// Builds the client.
    pub fn new(identity: &Identity) -> Result<Self, AgentError> {
        Ok(Api {
            client: RwLock::new(build(identity)?),
        })
    }

    /// Takes a renewed certificate into use.
    pub fn reload(&self, identity: &Identity) -> Result<(), AgentError> {
        *self.client.write() = build(identity)?;
        Ok(())
    }

    /// Sends a request and gives the answer as it comes.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<http::Response<Body>, CallError> {
        let client = self.client.read().clone();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .header("accept", "application/json")
            .body(Body::from(body))
            .map_err(|e| CallError::Transport(e.to_string()))?;
        let response = in_time(client.send(request))
            .await?
            .map_err(|e| CallError::Transport(e.to_string()))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status();
        let body = collect(response).await.unwrap_or_default();
        Err(refusal(code, &body))
    }

    /// Sends a request and gives the whole answer.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Bytes, CallError> {
        in_time(async { collect(self.open(method, path, content_type, body).await?).await }).await?
    }

    /// GET of an object.
    pub async fn get<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T, CallError> {
        parse(
            &self
                .call(Method::GET, path, "application/json", Vec::new())
                .await?,
        )
    }

    /// POST of an object.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, CallError> {
        let bytes = self
            .call(
                Method::POST,
                path,
                "application/json",
                body.to_string().into_bytes(),
            )
            .await?;
        parse(&bytes)
    }

    /// Merge patch of an object.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value, CallError> {
        let bytes = self
            .call(
                Method::PATCH,
                path,
                "application/merge-patch+json",
                body.to_string().into_bytes(),
            )
            .await?;
        parse(&bytes)
    }
}

async fn in_time<T>(answer: impl Future<Output = T>) -> Result<T, CallError> {
    tokio::time::timeout(ANSWER_WAIT, answer)
        .await
        .map_err(|_| CallError::Transport(format!("no answer within {ANSWER_WAIT:?}")))
}

async fn collect(response: http::Response<Body>) -> Result<Bytes, CallError> {
    response
        .into_body()
        .collect()
        .await
        .map(|b| b.to_bytes())
        .map_err(|e| CallError::Transport(e.to_string()))
}

fn parse<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, CallError> {
    serde_json::from_slice(bytes)
        .map_err(|e| CallError::Transport(format!("the answer cannot be read: {e}")))
}

fn refusal(code: StatusCode, body: &[u8]) -> CallError {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    CallError::Status {
        code: code.as_u16(),
        reason: status["reason"].as_str().unwrap_or("Unknown").to_string(),
        message: status["message"]
            .as_str()
            .unwrap_or("no reason given")
            .to_string(),
    }
}

fn build(identity: &Identity) -> Result<kube::Client, AgentError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut config = kube::Config::new(identity.server.clone());
    config.connect_timeout = Some(std::time::Duration::from_secs(5));
    config.read_timeout = None; // watches watch over themselves
    config.default_namespace = "default".into();
    if let Some(path) = &identity.ca {
        let pem = std::fs::read(path).map_err(AgentError::file(path))?;
        let roots = CertificateDer::pem_slice_iter(&pem)
            .map(|c| c.map(|c| c.to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| AgentError::Client(format!("{}: {e}", path.display())))?;
        config.root_cert = Some(roots);
        config.auth_info.client_certificate =
            Some(identity.certificate.to_string_lossy().into_owned());
        config.auth_info.client_key = Some(identity.key.to_string_lossy().into_owned());
    }
    kube::Client::try_from(config).map_err(|e| AgentError::Client(e.to_string()))
}
