//! The TLS front of the API server: accept loop, handshake, limits, and who the peer is.
//!
//! Promises: no client can hold more than one connection's worth of memory before it has sent a
//! complete request; a peer that is silent, slow or talks plain HTTP is cut or answered within
//! [`Options::header_timeout`]; callers with a certificate still get in when others have used
//! every other connection; a stop is seen by each connection, and all are gone by the deadline.
//! A peer certificate that our authority signed appears as `Arc<User>` in the request's extensions.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::future::RouteFuture;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::RwLock;
use rustix::net::sockopt;
use rustls::crypto::ring::{Ticketer, cipher_suite, default_provider};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::auth::User;
use crate::auth::authn::user_of_certificate;
use crate::auth::pki::{Pki, PkiError, certificates, private_key};

/// Most header fields of a request; ours have below 20, proxies add a dozen.
const HEADERS_MAX: usize = 100;
/// Most bytes of a request head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Streams that one HTTP/2 connection may have open: what Kubernetes allows.
const H2_STREAMS_MAX: u32 = 250;
/// What an HTTP/2 client may send ahead on one stream: a large object in one round trip.
const H2_STREAM_WINDOW: u32 = 1 << 20;
/// What an HTTP/2 client may send ahead in all; this bounds the memory of a connection.
const H2_CONNECTION_WINDOW: u32 = 2 << 20;
/// HTTP/2 pings find peers that vanished; an answer may take as long as the interval.
const H2_PING: Duration = Duration::from_secs(30);
/// How long accepting rests after the process ran out of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// TCP keepalive of accepted connections: a machine that died is noticed after idle + 3 intervals.
/// Tunnels rely on these (their peer is declared gone when the kernel closes the connection).
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(5), Duration::from_secs(2), 3);
/// First byte of every TLS connection: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;
/// Sent to clients that speak plain HTTP.
const PLAIN_HTTP_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 72\r\n\r\nThis port speaks HTTPS only: use https:// and the cluster's certificate\n";

/// Limits of [`serve`]; the default suits a cluster of thousands of nodes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connections at a time; more wait in the kernel's backlog.
    pub connections_max: usize,
    /// Of these, kept for peers with a certificate.
    pub connections_reserved: usize,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// For a complete request head, from its first byte (from the handshake for the first one).
    pub header_timeout: Duration,
    /// A connection without requests is closed after this long.
    pub idle_timeout: Duration,
    /// After a stop, open requests may go on for this long.
    pub drain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            connections_max: 20_000,
            connections_reserved: 1_000,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            drain: Duration::from_secs(5),
        }
    }
}

/// The server's TLS identity, which can be renewed while it serves.
pub struct ServerTls {
    config: RwLock<Arc<ServerConfig>>,
}

impl ServerTls {
    /// From the authority and its server certificate.
    pub fn new(pki: &Pki) -> Result<Arc<Self>, PkiError> {
        Ok(Arc::new(ServerTls {
            config: RwLock::new(config(pki)?),
        }))
    }

    /// New connections use this certificate and authority from now on.
    pub fn reload(&self, pki: &Pki) -> Result<(), PkiError> {
        *self.config.write() = config(pki)?;
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.read().clone())
    }
}

fn config(pki: &Pki) -> Result<Arc<ServerConfig>, PkiError> {
    let crypto = |e: &dyn std::fmt::Display| PkiError::Crypto(e.to_string());
    let mut provider = default_provider();
    // AES-128 first: as safe here as AES-256 and measurably cheaper on large lists.
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != cipher_suite::TLS13_AES_128_GCM_SHA256.suite());
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    roots.add(pki.ca_der().clone()).map_err(|e| crypto(&e))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| crypto(&e))?;
    // The authority goes along, so that a joining agent finds the one that its token names.
    let mut chain = certificates(&pki.server().certificate)?;
    chain.push(pki.ca_der().clone());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| crypto(&e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, private_key(&pki.server().key)?)
        .map_err(|e| crypto(&e))?;
    config.ignore_client_order = true;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Ticketer::new().map_err(|e| crypto(&e))?;
    Ok(Arc::new(config))
}

/// Has the kernel find out when the machine at the other end is gone.
pub(crate) fn keep_alive(socket: &impl std::os::fd::AsFd) -> std::io::Result<()> {
    let (idle, step, count) = KEEPALIVE;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, idle)?;
    sockopt::set_tcp_keepintvl(socket, step)?;
    sockopt::set_tcp_keepcnt(socket, count)?;
    Ok(())
}

/// Serves until `shutdown`; returns when every connection is gone or [`Options::drain`] is over.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Arc<ServerTls>,
    options: Options,
    shutdown: CancellationToken,
) {
    // Accepted sockets inherit these, so that no connection pays for the calls.
    let set = keep_alive(&listener).and_then(|()| Ok(sockopt::set_tcp_nodelay(&listener, true)?));
    if let Err(e) = set {
        tracing::warn!(error = %e, "cannot set TCP options");
    }
    let permits = Arc::new(Semaphore::new(options.connections_max));
    let tracker = TaskTracker::new();
    let abort = CancellationToken::new();
    let front = Arc::new(Front {
        router,
        tls,
        permits: permits.clone(),
        shutdown: shutdown.clone(),
        abort: abort.clone(),
        options,
    });
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((stream, peer, permit)) = accepted else {
            break;
        };
        tracker.spawn(front.clone().connection(stream, peer, permit));
    }
    drop(listener);
    tracker.close();
    if timeout(front.options.drain, tracker.wait()).await.is_err() {
        tracing::debug!(left = tracker.len(), "closing connections that did not end");
        abort.cancel();
        tracker.wait().await;
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return Some((stream, peer, permit)),
            Err(e) if of_one_connection(&e) => {}
            Err(e) => {
                tracing::error!(error = %e, "cannot accept connections; trying again");
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Errors that concern the connection that was being accepted, not the listener.
fn of_one_connection(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

/// What all connections share.
struct Front {
    router: Router,
    tls: Arc<ServerTls>,
    permits: Arc<Semaphore>,
    shutdown: CancellationToken,
    abort: CancellationToken,
    options: Options,
}

impl Front {
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        _permit: OwnedSemaphorePermit,
    ) {
        let handshake = timeout(self.options.handshake_timeout, self.handshake(stream));
        let stream = tokio::select! {
            () = self.shutdown.cancelled() => return,
            done = handshake => match done {
                Ok(Ok(stream)) => stream,
                Ok(Err(e)) => return tracing::debug!(%peer, error = %e, "TLS handshake failed"),
                Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
            },
        };
        let session = stream.get_ref().1;
        let certificate = session.peer_certificates().and_then(|c| c.first());
        let user = match certificate {
            None => None,
            Some(der) => match user_of_certificate(der, jiff::Timestamp::now()) {
                Some(user) => Some(user),
                // Verified, but by now expired or without a name: not the same as no certificate.
                None => return tracing::debug!(%peer, "client certificate names nobody"),
            },
        };
        if user.is_none() && self.permits.available_permits() < self.options.connections_reserved {
            return tracing::warn!(%peer, "too many connections; the rest is for certificates");
        }
        let h2 = session.alpn_protocol() == Some(b"h2");
        let activity = Arc::new(Activity::default());
        let service = RequestService {
            router: self.router.clone(),
            user,
            activity: activity.clone(),
        };
        let io = TokioIo::new(CountReads {
            stream,
            activity: activity.clone(),
        });
        let result = if h2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(H2_STREAMS_MAX)
                .max_header_list_size(HEAD_BYTES_MAX as u32)
                .initial_stream_window_size(H2_STREAM_WINDOW)
                .initial_connection_window_size(H2_CONNECTION_WINDOW)
                .keep_alive_interval(H2_PING)
                .keep_alive_timeout(H2_PING);
            let connection = builder.serve_connection(io, service);
            self.drive(connection, &activity, false, |c| c.graceful_shutdown())
                .await
        } else {
            let mut builder = http1::Builder::new();
            builder
                .max_headers(HEADERS_MAX)
                .max_header_size(HEAD_BYTES_MAX)
                // The watch over `Activity` does this for less than a timer per request.
                .header_read_timeout(None)
                .writev(true)
                .pipeline_flush(true);
            let connection = builder.serve_connection(io, service).with_upgrades();
            self.drive(connection, &activity, true, |c| c.graceful_shutdown())
                .await
        };
        if let Err(e) = result {
            tracing::debug!(%peer, error = %e, "connection ended");
        }
    }

    /// TLS; a peer that begins with anything else gets an answer in plain HTTP.
    async fn handshake(&self, mut stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let mut first = [0];
        // Looked at before rustls does, which would put an alert before the answer.
        if stream.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE {
            stream.write_all(PLAIN_HTTP_ANSWER).await?;
            stream.shutdown().await?;
            // What the client sent must be read: closing with unread bytes resets the connection,
            // and the answer with it.
            let mut rest = [0; 1024];
            while stream.read(&mut rest).await? > 0 {}
            return Err(io::Error::other("the client does not speak TLS"));
        }
        self.tls.acceptor().accept(stream).await
    }

    /// Runs a connection to its end, a stop, or a time-out.
    async fn drive<C>(
        &self,
        connection: C,
        activity: &Activity,
        heads: bool,
        stop: impl Fn(Pin<&mut C>),
    ) -> Result<(), hyper::Error>
    where
        C: Future<Output = Result<(), hyper::Error>>,
    {
        let mut connection = pin!(connection);
        let mut shutdown = pin!(self.shutdown.cancelled());
        let mut abort = pin!(self.abort.cancelled());
        let mut watch = IdleWatch::new(&self.options, heads);
        let mut ticks = interval(watch.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let mut stopping = false;
        loop {
            tokio::select! {
                biased;
                result = connection.as_mut() => return result,
                () = shutdown.as_mut(), if !stopping => {
                    stopping = true;
                    stop(connection.as_mut());
                }
                () = abort.as_mut() => return Ok(()),
                _ = ticks.tick() => match watch.look(activity) {
                    Verdict::Fine => {}
                    Verdict::Close => return Ok(()),
                    Verdict::Finish if stopping => {}
                    Verdict::Finish => {
                        stopping = true;
                        stop(connection.as_mut());
                    }
                },
            }
        }
    }
}

/// What a connection has been doing, for its idle watch.
#[derive(Default)]
struct Activity {
    /// Reads that brought bytes.
    reads: AtomicU64,
    /// Requests begun.
    requests: AtomicU64,
    /// Requests whose answer is not complete.
    open: AtomicUsize,
    /// `reads` when the last answer was complete.
    reads_when_idle: AtomicU64,
}

/// Ends one open request when dropped.
struct OpenRequest(Arc<Activity>);

impl OpenRequest {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.requests.fetch_add(1, Ordering::Relaxed);
        activity.open.fetch_add(1, Ordering::Relaxed);
        OpenRequest(activity.clone())
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let reads = self.0.reads.load(Ordering::Relaxed);
        self.0.reads_when_idle.store(reads, Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// Say goodbye properly.
    Finish,
    /// Cut.
    Close,
}

/// Judges a connection at each tick by what changed since the last.
struct IdleWatch {
    tick: Duration,
    ticks_head: u32,
    ticks_idle: u32,
    heads: bool,
    requests: u64,
    quiet: u32,
    partial: u32,
}

impl IdleWatch {
    fn new(options: &Options, heads: bool) -> Self {
        // Two looks within the shorter limit.
        let tick =
            (options.header_timeout.min(options.idle_timeout) / 2).max(Duration::from_millis(1));
        let ticks = |d: Duration| (d.as_millis() / tick.as_millis()).max(1) as u32;
        IdleWatch {
            tick,
            ticks_head: ticks(options.header_timeout),
            ticks_idle: ticks(options.idle_timeout),
            heads,
            requests: 0,
            quiet: 0,
            partial: 0,
        }
    }

    fn look(&mut self, activity: &Activity) -> Verdict {
        let requests = activity.requests.load(Ordering::Relaxed);
        if activity.open.load(Ordering::Relaxed) > 0 || requests != self.requests {
            (self.requests, self.quiet, self.partial) = (requests, 0, 0);
            return Verdict::Fine;
        }
        self.quiet += 1;
        let begun = activity.reads.load(Ordering::Relaxed)
            != activity.reads_when_idle.load(Ordering::Relaxed);
        self.partial = if self.heads && begun {
            self.partial + 1
        } else {
            0
        };
        if (requests == 0 && self.quiet >= self.ticks_head) || self.partial >= self.ticks_head {
            Verdict::Close
        } else if self.quiet >= self.ticks_idle {
            Verdict::Finish
        } else {
            Verdict::Fine
        }
    }
}

/// Counts reads that brought something.
struct CountReads<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for CountReads<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.reads.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CountReads<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}

/// The router as hyper wants it, with the peer's identity added to each request.
struct RequestService {
    router: Router,
    user: Option<Arc<User>>,
    activity: Arc<Activity>,
}

impl hyper::service::Service<Request<Incoming>> for RequestService {
    type Response = Response<TrackedBody>;
    type Error = Infallible;
    type Future = TrackedFuture;

    fn call(&self, mut request: Request<Incoming>) -> TrackedFuture {
        let open = OpenRequest::new(&self.activity);
        if let Some(user) = &self.user {
            request.extensions_mut().insert(user.clone());
        }
        TrackedFuture {
            future: self.router.clone().call(request),
            open: Some(open),
        }
    }
}

/// The router's answer to come.
struct TrackedFuture {
    future: RouteFuture<Infallible>,
    open: Option<OpenRequest>,
}

impl Future for TrackedFuture {
    type Output = Result<Response<TrackedBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Poll::Ready(Ok(response)) = Pin::new(&mut self.future).poll(cx) else {
            return Poll::Pending;
        };
        let open = self.open.take();
        Poll::Ready(Ok(response.map(|body| TrackedBody { body, _open: open })))
    }
}

/// A body that keeps its request open until it is dropped.
struct TrackedBody {
    body: Body,
    _open: Option<OpenRequest>,
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
