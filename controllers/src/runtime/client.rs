//! Requests to the API: one thin layer over `kube::Client` that controllers share.
//!
//! It owns how an answer becomes a value or a [`Failure`] of a known class, and it puts the
//! leader's fence on every request of a leader. It never retries: back-off belongs to the queue.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use rota_api::names::{HEADER_FENCE, REASON_LEASE_LOST};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::time::Duration;

/// Objects per page of a list: large enough that a page costs more than its round trip, small
/// enough that an answer stays far below a message limit.
pub const PAGE: usize = 500;
/// Longest wait for the answer to a request that is not a watch.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Media type of lists that carry only metadata.
pub const METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
/// Media type of watches that carry only metadata.
pub const METADATA: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

/// What went wrong, by what to do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// May succeed later: no connection, time-out, 408, 429, 5xx.
    #[error("{message}")]
    Transient {
        /// Cause, for people.
        message: String,
        /// The server's Retry-After.
        retry_after: Option<Duration>,
    },
    /// A precondition no longer holds: look again at once.
    #[error("{0}")]
    Conflict(String),
    /// The object is not there (any more).
    #[error("{0}")]
    NotFound(String),
    /// A create found the name taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The resourceVersion or continue token is too old: list again.
    #[error("{0}")]
    Gone(String),
    /// Another leader has taken over; nothing more may be written in this term.
    #[error("{0}")]
    LeaseLost(String),
    /// Repeating will not help until something changes.
    #[error("{0}")]
    Terminal(String),
}

impl Failure {
    /// A failure that back-off may cure.
    pub fn transient(message: impl Into<String>) -> Self {
        Failure::Transient {
            message: message.into(),
            retry_after: None,
        }
    }

    /// The class of a `Status` object (or of an answer whose body is none).
    pub fn from_status(code: u16, body: &Value) -> Self {
        let reason = body["reason"].as_str().unwrap_or("");
        let message = match body["message"].as_str() {
            Some(m) if !m.is_empty() => m.to_string(),
            _ => format!("the API answered {code} {reason}")
                .trim_end()
                .to_string(),
        };
        let retry_after = body["details"]["retryAfterSeconds"]
            .as_u64()
            .map(Duration::from_secs);
        match (code, reason) {
            (_, r) if r == REASON_LEASE_LOST => Failure::LeaseLost(message),
            (_, "AlreadyExists") => Failure::AlreadyExists(message),
            (409, _) => Failure::Conflict(message),
            (404, _) => Failure::NotFound(message),
            (410, _) => Failure::Gone(message),
            (408 | 429, _) | (500..=599, _) => Failure::Transient {
                message,
                retry_after,
            },
            _ => Failure::Terminal(message),
        }
    }

    /// Whether trying again without a change may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Failure::Transient { .. })
    }
}

/// One page of a list.
#[derive(Debug)]
pub struct Page {
    /// The objects, unparsed.
    pub items: Vec<Box<RawValue>>,
    /// Version of the snapshot that the whole list shows.
    pub resource_version: u64,
    /// Token of the next page.
    pub next: Option<String>,
}

/// The API as one user sees it, perhaps as a leader.
#[derive(Clone)]
pub struct Rest {
    client: kube::Client,
    fence: Option<HeaderValue>,
}

impl Rest {
    /// Requests as the client's user.
    pub fn new(client: kube::Client) -> Self {
        Rest {
            client,
            fence: None,
        }
    }

    /// The same user, with `<namespace>/<lease>@<term>` on every request.
    pub fn fenced(&self, namespace: &str, lease: &str, term: u64) -> Self {
        Rest {
            client: self.client.clone(),
            fence: HeaderValue::from_str(&format!("{namespace}/{lease}@{term}")).ok(),
        }
    }

    /// A `kube::Client` that adds the same fence, for code that uses `kube::Api`.
    pub fn kube(&self) -> kube::Client {
        let Some(fence) = self.fence.clone() else {
            return self.client.clone();
        };
        let client = self.client.clone();
        let namespace = client.default_namespace().to_string();
        let service = tower::service_fn(move |mut request: Request<Body>| {
            let (client, fence) = (client.clone(), fence.clone());
            request.headers_mut().insert(HEADER_FENCE, fence);
            async move { client.send(request).await }
        });
        kube::Client::new(service, namespace)
    }

    /// Sends one request and waits for the head of the answer.
    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        accept: &str,
        body: Vec<u8>,
    ) -> Result<http::Response<Body>, Failure> {
        let mut request = Request::builder().method(method).uri(path);
        if !body.is_empty() {
            request = request.header(http::header::CONTENT_TYPE, content_type);
        }
        request = request.header(http::header::ACCEPT, accept);
        if let Some(fence) = &self.fence {
            request = request.header(HEADER_FENCE, fence.clone());
        }
        let request = request
            .body(Body::from(body))
            .map_err(|e| Failure::Terminal(format!("cannot build a request to {path}: {e}")))?;
        match tokio::time::timeout(REQUEST_TIMEOUT, self.client.send(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) => Err(Failure::transient(format!("{path}: {e}"))),
            Err(_) => Err(Failure::transient(format!(
                "{path}: no answer in {} s",
                REQUEST_TIMEOUT.as_secs()
            ))),
        }
    }

    /// Turns a request into a connection on which the server speaks `protocol`.
    pub async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<hyper::upgrade::Upgraded, Failure> {
        let mut request = Request::get(path)
            .header(http::header::CONNECTION, "Upgrade")
            .header(http::header::UPGRADE, protocol);
        if let Some(fence) = &self.fence {
            request = request.header(HEADER_FENCE, fence.clone());
        }
        let request = request
            .body(Body::empty())
            .map_err(|e| Failure::Terminal(format!("cannot build a request to {path}: {e}")))?;
        let broken = |e: &dyn std::fmt::Display| Failure::transient(format!("{path}: {e}"));
        let opened = async {
            let response = self.client.send(request).await.map_err(|e| broken(&e))?;
            let status = response.status();
            if status != StatusCode::SWITCHING_PROTOCOLS {
                let body = response.into_body().collect().await;
                return Err(failure(status, &body.map_err(|e| broken(&e))?.to_bytes()));
            }
            hyper::upgrade::on(response).await.map_err(|e| broken(&e))
        };
        match tokio::time::timeout(REQUEST_TIMEOUT, opened).await {
            Ok(opened) => opened,
            Err(_) => Err(broken(&"the connection was not handed over in time")),
        }
    }

    /// Sends one request and reads the whole answer; anything but 2xx is a [`Failure`].
    async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        accept: &str,
        body: Vec<u8>,
    ) -> Result<Bytes, Failure> {
        let response = self.send(method, path, content_type, accept, body).await?;
        let status = response.status();
        let bytes =
            match tokio::time::timeout(REQUEST_TIMEOUT, response.into_body().collect()).await {
                Ok(Ok(body)) => body.to_bytes(),
                Ok(Err(e)) => return Err(Failure::transient(format!("{path}: {e}"))),
                Err(_) => return Err(Failure::transient(format!("{path}: the answer stopped"))),
            };
        if status.is_success() {
            Ok(bytes)
        } else {
            Err(failure(status, &bytes))
        }
    }

    /// GET of one object or anything else that is JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.get_as(path, "application/json").await
    }

    /// GET with an Accept header.
    pub async fn get_as<T: DeserializeOwned>(
        &self,
        path: &str,
        accept: &str,
    ) -> Result<T, Failure> {
        let bytes = self
            .call(Method::GET, path, "application/json", accept, Vec::new())
            .await?;
        parse(path, &bytes)
    }

    /// POST of a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let bytes = self
            .call(
                Method::POST,
                path,
                "application/json",
                "application/json",
                encode(body),
            )
            .await?;
        parse(path, &bytes)
    }

    /// PUT of a JSON body.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let bytes = self
            .call(
                Method::PUT,
                path,
                "application/json",
                "application/json",
                encode(body),
            )
            .await?;
        parse(path, &bytes)
    }

    /// PATCH with a JSON merge patch.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let bytes = self
            .call(
                Method::PATCH,
                path,
                "application/merge-patch+json",
                "application/json",
                encode(body),
            )
            .await?;
        parse(path, &bytes)
    }

    /// DELETE with options such as preconditions and propagationPolicy.
    pub async fn delete(&self, path: &str, options: &Value) -> Result<Value, Failure> {
        let mut options = options.clone();
        if let Some(map) = options.as_object_mut() {
            map.insert("kind".into(), json!("DeleteOptions"));
            map.insert("apiVersion".into(), json!("v1"));
        }
        let bytes = self
            .call(
                Method::DELETE,
                path,
                "application/json",
                "application/json",
                encode(&options),
            )
            .await?;
        parse(path, &bytes)
    }

    /// One page of a list; `query` may hold selectors, `token` the `next` of the page before.
    pub async fn page(
        &self,
        path: &str,
        query: &str,
        accept: &str,
        token: Option<&str>,
    ) -> Result<Page, Failure> {
        #[derive(serde::Deserialize)]
        struct Wire {
            metadata: WireMeta,
            #[serde(default = "Vec::new")]
            items: Vec<Box<RawValue>>,
        }
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct WireMeta {
            resource_version: String,
            #[serde(default, rename = "continue")]
            next: Option<String>,
        }
        let mut uri = format!("{path}?limit={PAGE}");
        if !query.is_empty() {
            uri.push('&');
            uri.push_str(query);
        }
        if let Some(token) = token {
            uri.push_str("&continue=");
            uri.push_str(&escape(token));
        }
        let bytes = self
            .call(Method::GET, &uri, "application/json", accept, Vec::new())
            .await?;
        let wire: Wire = parse(&uri, &bytes)?;
        Ok(Page {
            items: wire.items,
            resource_version: wire
                .metadata
                .resource_version
                .parse()
                .map_err(|_| Failure::Terminal(format!("{path}: resourceVersion is no number")))?,
            next: wire.metadata.next.filter(|t| !t.is_empty()),
        })
    }

    /// A whole list as of one version, read page by page, and that version.
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &str,
    ) -> Result<(Vec<T>, u64), Failure> {
        let mut all = Vec::new();
        let mut token: Option<String> = None;
        let mut version = 0;
        loop {
            let page = self
                .page(path, query, "application/json", token.as_deref())
                .await?;
            if token.is_none() {
                version = page.resource_version;
            }
            for item in page.items {
                all.push(
                    serde_json::from_str(item.get())
                        .map_err(|e| Failure::Terminal(format!("{path}: {e}")))?,
                );
            }
            match page.next {
                Some(next) => token = Some(next),
                None => return Ok((all, version)),
            }
        }
    }

    /// Opens a watch; the body is one JSON event per line, without end.
    pub async fn watch(&self, uri: &str, accept: &str) -> Result<Body, Failure> {
        let response = self
            .send(Method::GET, uri, "application/json", accept, Vec::new())
            .await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let bytes =
            match tokio::time::timeout(REQUEST_TIMEOUT, response.into_body().collect()).await {
                Ok(Ok(body)) => body.to_bytes(),
                _ => Bytes::new(),
            };
        Err(failure(status, &bytes))
    }

    /// Several writes in one request; the answers in order. Each item is as the bulk endpoint
    /// takes it. With `answer_objects` a success is the object, else a short `Status`.
    pub async fn bulk(
        &self,
        items: Vec<Value>,
        atomic: bool,
        answer_objects: bool,
    ) -> Result<Vec<Result<Value, Failure>>, Failure> {
        let count = items.len();
        let body = json!({
            "atomic": atomic,
            "answer": if answer_objects { "Object" } else { "Version" },
            "items": items,
        });
        let mut answer = self.post(BULK_PATH, &body).await?;
        let answers = match answer["items"].take() {
            Value::Array(a) if a.len() == count => a,
            _ => {
                return Err(Failure::transient(
                    "the bulk answer has another number of items",
                ));
            }
        };
        Ok(answers
            .into_iter()
            .map(|a| {
                if a["kind"] == "Status" && a["status"] == "Failure" {
                    Err(Failure::from_status(
                        a["code"].as_u64().unwrap_or(500) as u16,
                        &a,
                    ))
                } else {
                    Ok(a)
                }
            })
            .collect())
    }
}

/// Path of the bulk endpoint.
pub const BULK_PATH: &str = "/apis/rota.dev/v1/bulk";
/// Most items that one bulk request takes.
pub const BULK_MAX: usize = 5000;
/// Most items of an atomic bulk request.
pub const BULK_ATOMIC_MAX: usize = 100;

fn encode(value: &Value) -> Vec<u8> {
    // A `Value` has only string keys and finite numbers, so this cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}

fn parse<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes)
        .map_err(|e| Failure::transient(format!("{path}: the answer is not as expected: {e}")))
}

fn failure(status: StatusCode, bytes: &[u8]) -> Failure {
    let body = serde_json::from_slice(bytes).unwrap_or(Value::Null);
    Failure::from_status(status.as_u16(), &body)
}

/// Percent-encodes a query value.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~') {
            out.push(b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}
