//! Questions to whoever holds the other end of a tunnel, wherever that tunnel ends.
//!
//! An agent keeps one tunnel to one API server, and the placement leader too; a request may come to
//! any server. The one that holds the tunnel is written in the Lease of the node, or of placement.
//! Promises: a question goes at most one server further, over mutual TLS under this cluster's
//! authority; the user was authorised by the server that was asked first; what cannot be reached is
//! named in the error.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use rota_api::names::{GROUP_SERVERS, PATH_RELAY, USER_SERVER};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::auth::pki::{Pki, certificates, private_key};
use crate::error::{ApiError, ApiResult};
use crate::server::Server;
use crate::tunnel::{TunnelError, Tunnels};

/// Bytes of a question: a plan of as many bytes as a request may have, with defaults filled in.
pub const BODY_MAX: usize = 16 << 20;

/// Longest wait for a connection to another server.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Longest wait for another server's answer to begin: it waits for the tunnel's own first.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// Life of the certificate that one relayed request is sent with. A new one for each needs no
/// renewal, and costs less than the connection.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(3600);

/// Says that the answer is the far end's and not the other server's own.
const HEADER_FAR_END: &str = "rota-far-end";

/// Bytes of another server's refusal that are looked at.
const REFUSAL_MAX: usize = 64 << 10;

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The agent of a node.
    Node(String),
    /// The placement leader of a term.
    Placement(u64),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Node(name) => write!(f, "node {name:?}"),
            End::Placement(_) => f.write_str("the placement leader"),
        }
    }
}

impl End {
    /// From the segments after [`PATH_RELAY`], which are given back without those that name the end.
    pub fn parse<'a>(segments: &'a [&'a str]) -> Option<(End, &'a [&'a str])> {
        match segments {
            ["nodes", name, rest @ ..] => Some((End::Node((*name).to_string()), rest)),
            ["placement", term, rest @ ..] => Some((End::Placement(term.parse().ok()?), rest)),
            _ => None,
        }
    }

    /// Such a path's beginning.
    fn path(&self) -> String {
        match self {
            End::Node(name) => format!("{PATH_RELAY}/nodes/{name}"),
            End::Placement(term) => format!("{PATH_RELAY}/placement/{term}"),
        }
    }

    /// Where this server keeps such tunnels, and under which name.
    fn tunnels<'a>(&self, server: &'a Server) -> (&'a Tunnels, String) {
        match self {
            End::Node(name) => (&server.tunnels, name.clone()),
            End::Placement(term) => (&server.leaders, term.to_string()),
        }
    }
}

/// A question: what the far end's own little HTTP server understands.
#[derive(Clone, Debug)]
pub struct Question {
    /// GET or POST.
    pub method: Method,
    /// Such as `/metrics`.
    pub path: String,
    /// For POST.
    pub body: Bytes,
}

impl Question {
    /// A GET.
    pub fn get(path: impl Into<String>) -> Self {
        Question {
            method: Method::GET,
            path: path.into(),
            body: Bytes::new(),
        }
    }

    fn request(self, before: &str, host: &str) -> ApiResult<Request<Body>> {
        Request::builder()
            .method(self.method)
            .uri(format!("{before}{}", self.path))
            .header(http::header::HOST, host)
            .body(Body::new(Full::new(self.body)))
            .map_err(|e| ApiError::bad_request(e.to_string()))
    }
}

/// Asks, over the tunnel here or through the server at `elsewhere`, by its Lease the tunnel's holder.
pub async fn ask(
    server: &Server,
    end: &End,
    elsewhere: Option<&str>,
    question: Question,
) -> ApiResult<http::Response<hyper::body::Incoming>> {
    let here = local(server, end, question.clone()).await?;
    let there = elsewhere.filter(|url| !url.is_empty() && *url != server.advertise);
    match (here, there) {
        (Ok(answer), _) => Ok(answer),
        (Err(TunnelError::NoTunnel), Some(url)) => {
            let pki = server.signer.as_deref();
            let answer = remote(pki, url, end, question).await.map_err(|why| {
                ApiError::unavailable(format!(
                    "{end} cannot be asked: its tunnel ends at {url}, and that server cannot be asked: {why}"
                ))
            })?;
            if answer.headers().contains_key(HEADER_FAR_END) {
                return Ok(answer);
            }
            let code = answer.status();
            let body = Body::new(answer.into_body());
            let text = crate::router::read_body(body, REFUSAL_MAX).await?;
            let status: Value = serde_json::from_slice(&text).unwrap_or_default();
            let why = status["message"].as_str().unwrap_or("no reason given");
            Err(ApiError::unavailable(format!(
                "its tunnel ends at {url}, and that server answers {code}: {why}"
            )))
        }
        (Err(e), _) => Err(ApiError::unavailable(format!("{end} cannot be asked: {e}"))),
    }
}

async fn local(
    server: &Server,
    end: &End,
    question: Question,
) -> ApiResult<Result<http::Response<hyper::body::Incoming>, TunnelError>> {
    let (tunnels, name) = end.tunnels(server);
    let request = question.request("http://tunnel", "tunnel")?;
    Ok(tunnels.request(&name, request).await)
}

/// Answers another server's question from the tunnel here; never asks a third.
pub async fn serve(server: &Server, end: &End, question: Question) -> ApiResult<Response> {
    match local(server, end, question).await? {
        Ok(answer) => {
            let mut answer = answer.map(Body::new);
            let yes = HeaderValue::from_static("true");
            answer.headers_mut().insert(HEADER_FAR_END, yes);
            Ok(answer)
        }
        Err(e) => Err(ApiError::unavailable(format!("{end} cannot be asked: {e}"))),
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn remote(
    pki: Option<&Pki>,
    url: &str,
    end: &End,
    question: Question,
) -> Result<http::Response<hyper::body::Incoming>, Failure> {
    let pki = pki.ok_or("this server has no CA key, and so no certificate to show there")?;
    let uri: Uri = url.parse()?;
    let host = uri.host().ok_or("its URL names no host")?;
    let host = host.trim_matches(['[', ']']).to_string();
    let port = uri.port_u16().unwrap_or(443);
    let tls = TlsConnector::from(Arc::new(client_config(pki)?));
    let connect = async {
        let tcp = TcpStream::connect((host.as_str(), port)).await?;
        tcp.set_nodelay(true)?;
        crate::serve::keep_alive(&tcp)?;
        let name = ServerName::try_from(host.clone())?;
        let stream = TokioIo::new(tls.connect(name, tcp).await?);
        Ok::<_, Failure>(hyper::client::conn::http1::handshake(stream).await?)
    };
    let (mut requests, connection) = tokio::time::timeout(CONNECT_WAIT, connect)
        .await
        .map_err(|_| format!("no connection within {} s", CONNECT_WAIT.as_secs()))??;
    // Lives as long as the answer is read; its error is the answer's error.
    tokio::spawn(connection);
    let path: PathAndQuery = format!("{}{}", end.path(), question.path).parse()?;
    let question = Question {
        path: path.to_string(),
        ..question
    };
    let request = question
        .request("", &format!("{host}:{port}"))
        .map_err(|e| e.message)?;
    let answer = tokio::time::timeout(ANSWER_WAIT, requests.send_request(request))
        .await
        .map_err(|_| format!("no answer within {} s", ANSWER_WAIT.as_secs()))??;
    Ok(answer)
}

fn client_config(pki: &Pki) -> Result<ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    roots.add(pki.ca_der().clone())?;
    let own = pki.issue_client(USER_SERVER, GROUP_SERVERS, CERTIFICATE_LIFE)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&own.certificate)?, private_key(&own.key)?)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_end_is_read_from_the_path_that_it_is_written_to() {
        for end in [End::Node("n-1".into()), End::Placement(7)] {
            let path = format!("{}/logs/u/1/0", end.path());
            let rest = path.strip_prefix(PATH_RELAY).unwrap();
            let segments: Vec<&str> = rest.split('/').skip(1).collect();
            let (read, rest) = End::parse(&segments).unwrap();
            assert_eq!((read, rest), (end, &["logs", "u", "1", "0"][..]));
        }
        assert!(End::parse(&["placement", "x", "why"]).is_none());
        assert!(End::parse(&["elsewhere"]).is_none() && End::parse(&[]).is_none());
    }
}
