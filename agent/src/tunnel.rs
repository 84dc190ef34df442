//! The connection by which the API server reaches the agent: dialled out, then HTTP/2 with the
//! agent as the server, for logs, metrics and health.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsConnector;

use crate::identity::{self, Identity};
use crate::logs::{self, Attempts, Query};
use crate::servers::Server;

/// Log streams at a time: each occupies a thread.
const READERS_MAX: usize = 64;
/// Pings find a server that vanished.
const PING: Duration = Duration::from_secs(5);
/// Longest wait for the upgrade.
const OPEN_WAIT: Duration = Duration::from_secs(10);
/// Longest pause between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What is served.
pub struct Served {
    /// Directory of the tasks.
    pub tasks: PathBuf,
    /// Which attempts are there.
    pub attempts: Arc<Attempts>,
    /// Figures.
    pub registry: Registry,
    /// Free readers.
    pub readers: Arc<Semaphore>,
}

impl Served {
    /// Everything that the tunnel shows.
    pub fn new(tasks: PathBuf, attempts: Arc<Attempts>, registry: Registry) -> Self {
        Served {
            tasks,
            attempts,
            registry,
            readers: Arc::new(Semaphore::new(READERS_MAX)),
        }
    }
}

type Body = BoxBody<Bytes, Infallible>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Keeps a tunnel open for ever.
pub async fn run(identity: Identity, node: String, served: Arc<Served>) {
    let mut pause = Duration::from_millis(100);
    loop {
        let begin = tokio::time::Instant::now();
        match once(&identity, &node, &served).await {
            Ok(()) => tracing::info!("the tunnel was closed"),
            Err(e) => tracing::info!(error = %e, "the tunnel broke"),
        }
        if begin.elapsed() > BACKOFF_MAX * 2 {
            pause = Duration::from_millis(100);
        }
        tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>())).await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

async fn once(identity: &Identity, node: &str, served: &Arc<Served>) -> Result<(), Failure> {
    let tls = match identity.ca {
        Some(_) => Some(identity::client_config(identity)?),
        None => None,
    };
    let server = identity.servers.current();
    let response = tokio::time::timeout(OPEN_WAIT, dial(server, tls, node))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", OPEN_WAIT.as_secs()).into()))
        .inspect_err(|e| identity.servers.failed(server, e))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("{} answered {}", server.url, response.status()).into());
    }
    let upgraded = hyper::upgrade::on(response).await?;
    let served = served.clone();
    let service = hyper::service::service_fn(move |request| {
        let served = served.clone();
        async move { Ok::<_, Infallible>(answer(&served, request).await) }
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING * 2)
        .serve_connection(upgraded, service)
        .await?;
    Ok(())
}

/// Asks a server for a tunnel, on a connection of its own. An error means that it did not answer.
async fn dial(
    server: &Server,
    tls: Option<ClientConfig>,
    node: &str,
) -> Result<Response<Incoming>, Failure> {
    let (host, port) = (server.host.as_str(), server.port);
    let tcp = TcpStream::connect((host, port)).await?;
    tcp.set_nodelay(true)?;
    let request = Request::get(format!("/rota/v1/nodes/{node}/tunnel"))
        .header("host", format!("{host}:{port}"))
        .header("connection", "Upgrade")
        .header("upgrade", "rota-tunnel/1")
        .body(Empty::<Bytes>::new())?;
    if let Some(mut tls) = tls {
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::try_from(host.to_string())?;
        exchange(
            TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?,
            request,
        )
        .await
    } else {
        exchange(tcp, request).await
    }
}

async fn exchange<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender.send_request(request).await?)
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut r = Response::new(Full::new(body.into()).boxed());
    *r.status_mut() = status;
    r.headers_mut().insert(
        "content-type",
        http::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    r
}

async fn answer(served: &Arc<Served>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts[..] {
        ["healthz"] => text(StatusCode::OK, "ok"),
        ["metrics"] => {
            let mut out = String::new();
            match prometheus_client::encoding::text::encode(&mut out, &served.registry) {
                Ok(()) => text(StatusCode::OK, out),
                Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
            }
        }
        ["logs", uid, index, attempt] => {
            let (Ok(index), Ok(attempt)) = (index.parse(), attempt.parse()) else {
                return text(StatusCode::BAD_REQUEST, "index and attempt must be numbers");
            };
            match Query::parse(request.uri().query().unwrap_or("")) {
                Ok(query) => stream_logs(served, (uid.to_string(), index, attempt), query),
                Err(why) => text(StatusCode::BAD_REQUEST, why),
            }
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "the agent serves /logs, /metrics and /healthz",
        ),
    }
}

fn stream_logs(served: &Arc<Served>, attempt: logs::Attempt, query: Query) -> Response<Body> {
    if !logs::exists(&served.tasks, &served.attempts, &attempt) {
        return text(
            StatusCode::NOT_FOUND,
            "no output of this attempt is on the node; it never ran here, or its retention is over",
        );
    }
    let Ok(permit) = served.readers.clone().try_acquire_owned() else {
        return text(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many logs are being read on the node",
        );
    };
    let (out, pieces) = mpsc::channel::<Bytes>(4);
    let served = served.clone();
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        logs::read(&served.tasks, &served.attempts, &attempt, query, &out);
    });
    let stream = futures::stream::unfold(
        pieces,
        |mut p| async move { p.recv().await.map(|b| (b, p)) },
    );
    let body = StreamBody::new(stream.map(|b| Ok(Frame::data(b))));
    let mut r = Response::new(BodyExt::boxed(body));
    r.headers_mut().insert(
        "content-type",
        http::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    r
}
