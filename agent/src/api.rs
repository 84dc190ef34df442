//! The agent's API client: few calls, minimal types, one place for errors.
//!
//! Calls go to the current server of [`Servers`]. One that gets no answer tells so there, and those
//! after it go to the next server; one that can be repeated without harm is, at once. Any answer
//! keeps the server, a refusal too: all servers share one store, so the others would refuse as well,
//! unless they say that they are ready ([`Api::look_for_a_ready_one`]).

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryFutureExt;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::RwLock;
use rota_api::kinds::{TaskBinding, TaskPhase};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};

use crate::config::AgentError;
use crate::identity::Identity;
use crate::servers::{Server, Servers};

/// Longest wait for the head of an answer, and then for its body unless that is a watch. Without
/// it a connection to a machine that vanished would hold a call for the quarter of an hour that the
/// kernel takes to give up.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Longest wait for a connection, with TLS. A lease renewal has 4 s: what is left of it after a
/// machine that does not take connections is for the next server.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// Longest wait for a server to say whether it is ready. The lease has 10 s, and a renewal that was
/// refused has cost some of it.
const READY_WAIT: Duration = Duration::from_secs(1);
/// Longest wait for a server's next word once other calls have gone on to the next server: it
/// seems to be gone, but may only be slow. Above the 5 s between the bookmarks of a watch, so that
/// a watch on a server that lives stays there.
const LEFT_WAIT: Duration = Duration::from_secs(6);

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
    servers: Arc<Servers>,
    /// One for each server, in the order of the list.
    clients: RwLock<Vec<kube::Client>>,
}

/// An answer whose body comes bit by bit.
pub struct Stream {
    body: Body,
    server: Server,
    servers: Arc<Servers>,
}

impl Stream {
    /// The next piece of the body, `None` at its end. Silence of more than `silence` is an error.
    pub async fn next(&mut self, silence: Duration) -> Result<Option<Bytes>, CallError> {
        loop {
            let frame = tokio::select! {
                frame = self.body.frame() => frame,
                why = silence_of(&self.servers, &self.server, silence) => {
                    return Err(lost(&self.server, &why));
                }
            };
            match frame {
                None => return Ok(None),
                Some(Err(e)) => return Err(lost(&self.server, &e)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// Something that a server was asked for. Unless it answers, it has failed: also when whoever
/// asked gives up waiting and drops this.
struct Asked<'a> {
    servers: &'a Servers,
    server: &'a Server,
    answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.servers.failed(self.server, &"no answer in time");
        }
    }
}

/// Why a server gave no answer.
struct Lost {
    why: String,
    /// No connection was made: nothing was sent, and the request can have had no effect.
    unsent: bool,
}

impl Lost {
    fn sent(why: impl Display) -> Self {
        Lost {
            why: why.to_string(),
            unsent: false,
        }
    }
}

impl From<kube::Error> for Lost {
    fn from(error: kube::Error) -> Self {
        let causes = || {
            let first: &(dyn Error + 'static) = &error;
            std::iter::successors(Some(first), |e| (*e).source())
        };
        let unsent = causes()
            .filter_map(|e| e.downcast_ref::<hyper_util::client::legacy::Error>())
            .any(|e| e.is_connect());
        // Only the innermost cause says what the network did.
        let root = causes().skip(1).last();
        let root = root.map_or(String::new(), |e| format!(": {e}"));
        Lost {
            why: format!("{error}{root}"),
            unsent,
        }
    }
}

impl Api {
    /// Builds the client.
    pub fn new(identity: &Identity) -> Result<Self, AgentError> {
        Ok(Api {
            servers: identity.servers.clone(),
            clients: RwLock::new(build_all(identity)?),
        })
    }

    /// Takes a renewed certificate into use.
    pub fn reload(&self, identity: &Identity) -> Result<(), AgentError> {
        *self.clients.write() = build_all(identity)?;
        Ok(())
    }

    /// The servers.
    pub fn servers(&self) -> &Servers {
        &self.servers
    }

    /// For when the current server refuses with 503: all servers share one store, but this one alone
    /// may be cut off from it. Goes on with the first that says it is ready, if there is one.
    pub async fn look_for_a_ready_one(&self, why: &CallError) {
        let current = self.servers.current();
        for server in self.servers.in_turn().filter(|s| s.at != current.at) {
            let client = self.clients.read()[server.at].clone();
            let Ok(request) = Request::get("/readyz").body(Body::empty()) else {
                return;
            };
            let answer = tokio::time::timeout(READY_WAIT, client.send(request)).await;
            if matches!(answer, Ok(Ok(response)) if response.status().is_success()) {
                return self.servers.prefer(server, current, why);
            }
        }
    }

    /// Sends a request and gives the answer as it comes.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> Result<Stream, CallError> {
        let body = body.into();
        let mut others = self.servers.all().len() - 1;
        loop {
            let server = self.servers.current();
            let request = Request::builder()
                .method(&method)
                .uri(path)
                .header("content-type", content_type)
                .header("accept", "application/json")
                .body(Body::from(body.clone()))
                .map_err(|e| lost(server, &e))?;
            let client = self.clients.read()[server.at].clone();
            let response = client.send(request).map_err(Lost::from);
            match self.ask(server, response).await {
                Ok(response) => return self.accept(server, response).await,
                Err(e) if others > 0 && (e.unsent || method == Method::GET) => others -= 1,
                Err(e) => return Err(lost(server, &e.why)),
            }
        }
    }

    async fn accept(
        &self,
        server: &Server,
        response: http::Response<Body>,
    ) -> Result<Stream, CallError> {
        let code = response.status();
        let body = response.into_body();
        if code.is_success() {
            return Ok(Stream {
                body,
                server: server.clone(),
                servers: self.servers.clone(),
            });
        }
        let body = self.ask(server, collect(body)).await.unwrap_or_default();
        Err(refusal(code, &body))
    }

    /// Waits for what a server was asked for, and tells [`Servers`] when it does not come.
    async fn ask<T>(
        &self,
        server: &Server,
        answer: impl Future<Output = Result<T, Lost>>,
    ) -> Result<T, Lost> {
        let mut asked = Asked {
            servers: &self.servers,
            server,
            answered: false,
        };
        let result = tokio::select! {
            result = answer => result,
            why = silence_of(&self.servers, server, ANSWER_WAIT) => Err(Lost::sent(why)),
        };
        match &result {
            Ok(_) => asked.answered = true,
            Err(e) => self.servers.failed(server, &e.why),
        }
        result
    }

    /// Sends a request and gives the whole answer.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> Result<Bytes, CallError> {
        let Stream { body, server, .. } = self.open(method, path, content_type, body).await?;
        let whole = self.ask(&server, collect(body)).await;
        whole.map_err(|e| lost(&server, &e.why))
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

/// Waits until nothing can be expected from a server any more: `most` at the longest, less when
/// other calls have left it meanwhile. Says why.
async fn silence_of(servers: &Servers, server: &Server, most: Duration) -> String {
    let begin = Instant::now();
    tokio::select! {
        () = sleep(most) => format!("silent for {} s", most.as_secs()),
        () = async {
            servers.left(server).await;
            sleep_until(begin + LEFT_WAIT).await;
        } => "silent, and other calls have gone on to the next server".to_string(),
    }
}

fn lost(server: &Server, why: &dyn Display) -> CallError {
    CallError::Transport(format!("{}: {why}", server.url))
}

async fn collect(body: Body) -> Result<Bytes, Lost> {
    let whole = body.collect().await.map_err(Lost::sent)?;
    Ok(whole.to_bytes())
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

fn build_all(identity: &Identity) -> Result<Vec<kube::Client>, AgentError> {
    let servers = identity.servers.all().iter();
    servers.map(|s| build(identity, s)).collect()
}

fn build(identity: &Identity, server: &Server) -> Result<kube::Client, AgentError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut config = kube::Config::new(server.url.clone());
    config.connect_timeout = Some(CONNECT_WAIT);
    // Who calls tries again; here a 503 that is being retried would look like no answer.
    config.default_retry = false;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_other_calls_left_gets_less_time() {
        let servers = Servers::new(&["http://a".into(), "http://b".into()]).unwrap();
        let a = servers.current();
        let most = LEFT_WAIT * 3;
        let begin = Instant::now();
        silence_of(&servers, a, most).await;
        assert_eq!(begin.elapsed(), most);
        servers.failed(a, &"test");
        let begin = Instant::now();
        silence_of(&servers, a, most).await;
        assert_eq!(begin.elapsed(), LEFT_WAIT);
    }
}
