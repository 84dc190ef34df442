//! A small HTTP/1.1 client over TLS. It does as little per request as possible, because it shares
//! the machine with the server that is measured.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// No single request of a benchmark may take longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A server and the credentials for it.
#[derive(Clone)]
pub(crate) struct Target {
    host: String,
    port: u16,
    connector: TlsConnector,
    bearer: Option<HeaderValue>,
}

impl Target {
    /// From a kubeconfig, perhaps with another server address.
    pub(crate) async fn from_kubeconfig(
        path: Option<&Path>,
        server: Option<&str>,
    ) -> Result<Target> {
        let kubeconfig = match path {
            Some(path) => Kubeconfig::read_from(path)
                .with_context(|| format!("reading {}", path.display()))?,
            None => Kubeconfig::read().context("reading the kubeconfig")?,
        };
        let mut config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .context("using the kubeconfig")?;
        if let Some(server) = server {
            config.cluster_url = server.parse().context("parsing --server")?;
        }
        let mut tls = config
            .rustls_client_config()
            .context("loading the certificates of the kubeconfig")?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Target {
            host: config
                .cluster_url
                .host()
                .context("the server address has no host")?
                .trim_matches(['[', ']'])
                .to_string(),
            port: config.cluster_url.port_u16().unwrap_or(443),
            connector: TlsConnector::from(Arc::new(tls)),
            bearer: None,
        })
    }

    /// The same credentials against another local port.
    pub(crate) fn at_port(&self, port: u16) -> Target {
        Target {
            port,
            ..self.clone()
        }
    }

    /// Opens one connection.
    pub(crate) async fn connect(&self) -> Result<Conn> {
        let address = (self.host.as_str(), self.port);
        let tcp = TcpStream::connect(address)
            .await
            .with_context(|| format!("connecting to {}:{}", self.host, self.port))?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.clone())?;
        let tls = self.connector.connect(name, tcp).await.context("TLS")?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(async move {
            // A broken connection shows as an error of the request on it.
            let _ = connection.await;
        });
        Ok(Conn {
            target: self.clone(),
            host: HeaderValue::from_str(&format!("{}:{}", self.host, self.port))?,
            sender,
        })
    }
}

/// One keep-alive connection; opens itself again after the server has closed it.
pub(crate) struct Conn {
    target: Target,
    host: HeaderValue,
    sender: SendRequest<Full<Bytes>>,
}

impl Conn {
    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes)> {
        let content_type = if method == Method::PATCH {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let answer = async {
            let response = self.start(method, path, content_type, body).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            Ok((status, body))
        };
        tokio::time::timeout(REQUEST_TIMEOUT, answer)
            .await
            .context("request timed out")?
    }

    /// Sends a GET and hands out the body as it comes.
    pub(crate) async fn stream(&mut self, path: &str) -> Result<Incoming> {
        let response = self
            .start(Method::GET, path, "application/json", Bytes::new())
            .await?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            bail!("GET {path}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(response.into_body())
    }

    async fn start(
        &mut self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<http::Response<Incoming>> {
        if self.sender.ready().await.is_err() {
            *self = self.target.connect().await?;
        }
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.host.clone());
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        if let Some(bearer) = &self.target.bearer {
            request = request.header(header::AUTHORIZATION, bearer.clone());
        }
        Ok(self
            .sender
            .send_request(request.body(Full::new(body))?)
            .await?)
    }

    /// Sends a request whose success matters more than its speed; the answer as JSON.
    pub(crate) async fn json(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<serde_json::Value> {
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let (status, answer) = self.send(method.clone(), path, bytes).await?;
        if !status.is_success() {
            bail!(
                "{method} {path}: {status}: {}",
                String::from_utf8_lossy(&answer)
            );
        }
        serde_json::from_slice(&answer).with_context(|| format!("answer of {method} {path}"))
    }
}

/// The first `"<key>":"<digits>"` in JSON bytes. Enough for `resourceVersion`, at a small part of the cost of parsing.
pub(crate) fn digits_after(bytes: &[u8], key: &[u8]) -> Option<u64> {
    let at = find(bytes, key)? + key.len();
    let rest = &bytes[at..];
    let start = rest.iter().position(|b| !matches!(b, b'"' | b':' | b' '))?;
    let number = &rest[start..];
    let end = number
        .iter()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(number.len());
    std::str::from_utf8(&number[..end]).ok()?.parse().ok()
}

/// Position of `needle` in `haystack`.
pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(i) = haystack[from..].iter().position(|b| *b == first) {
        let at = from + i;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// How often `needle` occurs.
pub(crate) fn count(haystack: &[u8], needle: &[u8]) -> usize {
    let mut rest = haystack;
    let mut n = 0;
    while let Some(at) = find(rest, needle) {
        n += 1;
        rest = &rest[at + needle.len()..];
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_without_parsing() {
        let json = br#"{"metadata":{"name":"a","resourceVersion":"123","uid":"x"}}"#;
        assert_eq!(digits_after(json, b"\"resourceVersion\""), Some(123));
        assert_eq!(digits_after(json, b"\"missing\""), None);
        assert_eq!(
            digits_after(b"\"resourceVersion\":", b"\"resourceVersion\""),
            None
        );
        assert_eq!(digits_after(b"\"n\": 7}", b"\"n\""), Some(7));
    }

    #[test]
    fn occurrences_are_counted() {
        assert_eq!(count(b"ababa", b"ab"), 2);
        assert_eq!(count(b"", b"ab"), 0);
        assert_eq!(find(b"aab", b"ab"), Some(1));
    }
}
