//! [`Api`]: plain JSON requests over a `kube::Client`, with bounds of our own on time and retries.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};

/// Tries of one request in all. A server that restarts is back well within the delays between them.
const MAX_TRIES: u32 = 4;
/// Delay before the second try; doubles after that.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// A server may ask for more patience than this; the user then decides.
const MAX_DELAY: Duration = Duration::from_secs(3);

/// Accept header for server-side tables.
pub const ACCEPT_TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const ACCEPT_JSON: &str = "application/json";

/// Why a request failed.
#[derive(Debug)]
pub enum Failure {
    /// The server answered with a failure.
    Status {
        /// HTTP code.
        code: u16,
        /// The Status object, or one made from a plain answer.
        body: Value,
    },
    /// No answer.
    Transport {
        /// Server.
        url: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// No answer in time.
    Timeout {
        /// Server.
        url: String,
        /// Bound.
        seconds: u64,
    },
    /// The request could not be made, or its answer not be read.
    Other(String),
}

impl Failure {
    /// HTTP code, 0 without an answer.
    pub fn code(&self) -> u16 {
        match self {
            Failure::Status { code, .. } => *code,
            _ => 0,
        }
    }

    /// The Status reason, empty without.
    pub fn reason(&self) -> &str {
        match self {
            Failure::Status { body, .. } => body["reason"].as_str().unwrap_or(""),
            _ => "",
        }
    }

    /// 404.
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }
}

/// The text of the last error in a chain, which says what really happened.
pub fn innermost(e: &dyn std::error::Error) -> String {
    let mut last: &dyn std::error::Error = e;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

/// Requests to one server.
#[derive(Clone)]
pub struct Api {
    client: kube::Client,
    url: String,
    timeout: Option<Duration>,
}

type Answer = http::Response<Body>;

impl Api {
    /// Over this client; `url` names the server in messages.
    pub fn new(client: kube::Client, url: String, timeout: Option<Duration>) -> Self {
        Api {
            client,
            url,
            timeout,
        }
    }

    /// Where the server is, for messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    async fn once(
        &self,
        method: &Method,
        path: &str,
        content: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<Answer, Failure> {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(header::ACCEPT, accept)
            .header(
                header::USER_AGENT,
                concat!("rota/", env!("CARGO_PKG_VERSION")),
            );
        if !content.is_empty() {
            request = request.header(header::CONTENT_TYPE, content);
        }
        let request = request
            .body(Body::from(body))
            .map_err(|e| Failure::Other(format!("request {path}: {e}")))?;
        let send = self.client.send(request);
        let answer = match self.timeout {
            Some(t) => tokio::time::timeout(t, send)
                .await
                .map_err(|_| Failure::Timeout {
                    url: self.url.clone(),
                    seconds: t.as_secs(),
                })?,
            None => send.await,
        };
        answer.map_err(|e| Failure::Transport {
            url: self.url.clone(),
            source: Box::new(e),
        })
    }

    /// Sends until the answer is not "busy": within bounds, and a create only where the server
    /// refused it unread (429), since after any other answer it may have happened.
    async fn send(
        &self,
        method: Method,
        path: &str,
        content: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<Answer, Failure> {
        let mut delay = FIRST_DELAY;
        for attempt in 1.. {
            let answer = self
                .once(&method, path, content, accept, body.clone())
                .await?;
            let status = answer.status();
            if status.is_success() {
                return Ok(answer);
            }
            let again = status == StatusCode::TOO_MANY_REQUESTS
                || (method != Method::POST
                    && matches!(
                        status,
                        StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
                    ));
            let asked = answer
                .headers()
                .get(header::RETRY_AFTER)
                .and_then(|v| v.to_str().ok()?.parse().ok())
                .map(Duration::from_secs);
            if !again || attempt >= MAX_TRIES {
                return Err(self.failure(answer).await);
            }
            tokio::time::sleep(asked.unwrap_or(delay).min(MAX_DELAY)).await;
            delay *= 2;
        }
        Err(Failure::Other("no try left".into()))
    }

    async fn failure(&self, answer: Answer) -> Failure {
        let code = answer.status().as_u16();
        let body = match self.read(answer).await {
            Ok(b) => b,
            Err(e) => return e,
        };
        let body = match serde_json::from_slice::<Value>(&body) {
            Ok(v) if v["kind"] == "Status" => v,
            _ => json!({"message": String::from_utf8_lossy(&body).trim()}),
        };
        Failure::Status { code, body }
    }

    async fn read(&self, answer: Answer) -> Result<Bytes, Failure> {
        let collect = answer.into_body().collect();
        let read = match self.timeout {
            Some(t) => tokio::time::timeout(t, collect)
                .await
                .map_err(|_| Failure::Timeout {
                    url: self.url.clone(),
                    seconds: t.as_secs(),
                })?,
            None => collect.await,
        };
        read.map(|c| c.to_bytes()).map_err(|e| Failure::Transport {
            url: self.url.clone(),
            source: Box::new(e),
        })
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        content: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<Value, Failure> {
        let answer = self.send(method, path, content, accept, body).await?;
        let bytes = self.read(answer).await?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Failure::Other(format!("the answer of {}{path} is not JSON: {e}", self.url))
        })
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.json(Method::GET, path, "", ACCEPT_JSON, Bytes::new())
            .await
    }

    /// GET with an Accept header.
    pub async fn get_as(&self, path: &str, accept: &str) -> Result<Value, Failure> {
        self.json(Method::GET, path, "", accept, Bytes::new()).await
    }

    /// GET of text.
    pub async fn get_text(&self, path: &str) -> Result<String, Failure> {
        let answer = self
            .send(Method::GET, path, "", "*/*", Bytes::new())
            .await?;
        let bytes = self.read(answer).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// GET of an answer that may never end.
    pub async fn stream(&self, path: &str, accept: &str) -> Result<Body, Failure> {
        Ok(self
            .send(Method::GET, path, "", accept, Bytes::new())
            .await?
            .into_body())
    }

    /// POST.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(Method::POST, path, ACCEPT_JSON, ACCEPT_JSON, bytes(body))
            .await
    }

    /// PATCH with a JSON merge patch.
    pub async fn merge_patch(&self, path: &str, patch: &Value) -> Result<Value, Failure> {
        self.json(
            Method::PATCH,
            path,
            "application/merge-patch+json",
            ACCEPT_JSON,
            bytes(patch),
        )
        .await
    }

    /// DELETE with DeleteOptions.
    pub async fn delete(&self, path: &str, options: &Value) -> Result<Value, Failure> {
        self.json(
            Method::DELETE,
            path,
            ACCEPT_JSON,
            ACCEPT_JSON,
            bytes(options),
        )
        .await
    }
}

fn bytes(v: &Value) -> Bytes {
    Bytes::from(v.to_string())
}

/// One path segment or query value, percent-encoded.
pub fn encode(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for b in s.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(b as char)
            }
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// A path with its query.
pub fn with_query(path: &str, query: &[(&str, String)]) -> String {
    let mut out = path.to_string();
    for (i, (k, v)) in query.iter().filter(|(_, v)| !v.is_empty()).enumerate() {
        out.push(if i == 0 && !path.contains('?') {
            '?'
        } else {
            '&'
        });
        out.push_str(k);
        out.push('=');
        out.push_str(&encode(v));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded_and_empty_ones_left_out() {
        assert_eq!(
            with_query(
                "/a",
                &[
                    ("x", "b=c,d in (e)".into()),
                    ("y", String::new()),
                    ("z", "1".into())
                ]
            ),
            "/a?x=b%3Dc%2Cd%20in%20%28e%29&z=1"
        );
        assert_eq!(with_query("/a?b=1", &[("c", "2".into())]), "/a?b=1&c=2");
    }
}
