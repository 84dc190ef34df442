//! The front over real sockets on loopback. Time-outs are short and real: sockets do not know
//! paused time.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::auth::pki::{ADMIN_LIFE, Issued};
use axum::Extension;
use axum::routing::{get, post};
use rustls::ClientConfig;
use std::time::Instant;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;

struct Server {
    address: SocketAddr,
    pki: Pki,
    tls: Arc<ServerTls>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

fn options() -> Options {
    Options {
        header_timeout: Duration::from_millis(200),
        handshake_timeout: Duration::from_millis(400),
        idle_timeout: Duration::from_millis(600),
        drain: Duration::from_millis(300),
        ..Options::default()
    }
}

async fn start(options: Options) -> Server {
    let dir = std::env::temp_dir().join(format!("rota-serve-{:016x}", rand::random::<u64>()));
    let pki = Pki::ensure(&dir, &[]).unwrap();
    let endless = || async {
        Body::from_stream(
            futures::stream::once(async { Ok::<_, Infallible>("first\n") })
                .chain(futures::stream::pending::<Result<&str, Infallible>>()),
        )
    };
    use futures::StreamExt;
    let router = Router::new()
        .route(
            "/who",
            get(|user: Option<Extension<Arc<User>>>| async move {
                user.map_or("nobody".into(), |Extension(u)| u.name.clone())
            }),
        )
        .route("/echo", post(|body: Bytes| async move { body }))
        .route("/endless", get(endless));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = ServerTls::new(&pki).unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(serve(
        listener,
        router,
        tls.clone(),
        options,
        shutdown.clone(),
    ));
    Server {
        address,
        pki,
        tls,
        shutdown,
        task,
    }
}

impl Server {
    async fn connect(
        &self,
        who: Option<&Issued>,
        alpn: &[u8],
    ) -> io::Result<ClientStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.pki.ca_der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match who {
            None => builder.with_no_client_auth(),
            Some(i) => builder
                .with_client_auth_cert(
                    certificates(&i.certificate).unwrap(),
                    private_key(&i.key).unwrap(),
                )
                .unwrap(),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config))
            .connect("localhost".try_into().unwrap(), tcp)
            .await
    }

    async fn h1(&self) -> ClientStream<TcpStream> {
        self.connect(None, b"http/1.1").await.unwrap()
    }

    fn issue(&self, user: &str) -> Issued {
        self.pki.issue_client(user, "g", ADMIN_LIFE).unwrap()
    }
}

const WHO: &[u8] = b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n";

/// Reads until `end` is in what came, or the connection closes, within 5 seconds.
async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut got = Vec::new();
    let mut chunk = [0; 4096];
    timeout(Duration::from_secs(5), async {
        loop {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(n) => got.extend_from_slice(&chunk[..n]),
            }
            if !end.is_empty() && String::from_utf8_lossy(&got).contains(end) {
                break;
            }
        }
    })
    .await
    .expect("neither the text nor the end came");
    String::from_utf8_lossy(&got).into_owned()
}

#[tokio::test]
async fn the_peer_certificate_is_the_user() {
    let server = start(options()).await;
    let ann = server.issue("ann");
    for (who, want) in [(None, "nobody"), (Some(&ann), "ann")] {
        let mut s = server.connect(who, b"http/1.1").await.unwrap();
        for _ in 0..2 {
            s.write_all(WHO).await.unwrap();
            let answer = read_until(&mut s, want).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }
    // Pipelined requests are answered in order.
    let mut s = server.h1().await;
    s.write_all(&WHO.repeat(3)).await.unwrap();
    let mut all = String::new();
    while all.matches("nobody").count() < 3 {
        let more = read_until(&mut s, "nobody").await;
        assert!(!more.is_empty(), "{all}");
        all += &more;
    }
}

#[tokio::test]
async fn http2_carries_many_requests_of_one_user() {
    let server = start(options()).await;
    let ann = server.issue("ann");
    let s = server.connect(Some(&ann), b"h2").await.unwrap();
    assert_eq!(s.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(s))
            .await
            .unwrap();
    let driver = tokio::spawn(connection);
    for _ in 0..3 {
        let request = Request::get("https://localhost/who")
            .body(Body::empty())
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let body = axum::body::to_bytes(Body::new(answer.into_body()), 1000)
            .await
            .unwrap();
        assert_eq!(&body[..], b"ann");
    }
    // An idle connection is said goodbye to.
    timeout(Duration::from_secs(5), driver)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused() {
    let server = start(options()).await;
    let other = start(options()).await;
    let mallory = other.issue("system:admin");
    // TLS 1.3 clients learn of the refusal with the first read.
    if let Ok(mut s) = server.connect(Some(&mallory), b"http/1.1").await {
        let _ = s.write_all(WHO).await;
        assert_eq!(read_until(&mut s, "").await, "");
    }
}

#[tokio::test]
async fn plain_http_is_told_so() {
    let server = start(options()).await;
    let mut s = TcpStream::connect(server.address).await.unwrap();
    s.write_all(WHO).await.unwrap();
    let answer = read_until(&mut s, "").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("https://"), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())));
}

#[tokio::test]
async fn silent_and_slow_peers_are_cut() {
    let server = start(options()).await;
    let begun = Instant::now();
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut quiet = server.h1().await;
    let mut slow = server.h1().await;
    slow.write_all(WHO).await.unwrap();
    read_until(&mut slow, "nobody").await;
    slow.write_all(b"GET /who HTTP/1.1\r\nhost").await.unwrap();
    let mut idle = server.h1().await;
    idle.write_all(WHO).await.unwrap();
    read_until(&mut idle, "nobody").await;
    assert_eq!(read_until(&mut silent, "").await, "");
    assert_eq!(read_until(&mut quiet, "").await, "");
    assert_eq!(read_until(&mut slow, "").await, "");
    assert_eq!(read_until(&mut idle, "").await, "");
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn an_open_answer_outlives_every_idle_limit_and_ends_at_the_stop() {
    let server = start(options()).await;
    let mut s = server.h1().await;
    s.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut s, "first").await;
    let mut byte = [0];
    assert!(
        timeout(Duration::from_millis(1200), s.read(&mut byte))
            .await
            .is_err(),
        "it must still be open after twice the idle limit"
    );
    server.shutdown.cancel();
    timeout(Duration::from_secs(3), server.task)
        .await
        .expect("the deadline must end it")
        .unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn heads_are_bounded_and_bodies_are_not_mistaken_for_heads() {
    let server = start(options()).await;
    let mut s = server.h1().await;
    let long = format!(
        "GET /who HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "y".repeat(HEAD_BYTES_MAX)
    );
    let _ = s.write_all(long.as_bytes()).await;
    let answer = read_until(&mut s, "\r\n\r\n").await;
    // The rest of the head was not read, so the close may overtake the answer.
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    let mut s = server.h1().await;
    let many = format!(
        "GET /who HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "a: b\r\n".repeat(HEADERS_MAX)
    );
    s.write_all(many.as_bytes()).await.unwrap();
    let answer = read_until(&mut s, "\r\n\r\n").await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    let mut s = server.h1().await;
    let enough = format!(
        "GET /who HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "a: b\r\n".repeat(HEADERS_MAX - 1)
    );
    s.write_all(enough.as_bytes()).await.unwrap();
    assert!(read_until(&mut s, "nobody").await.contains("200 OK"));
    // A slow body is a matter of the handler, not of the head's limit.
    let mut s = server.h1().await;
    s.write_all(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n")
        .await
        .unwrap();
    for byte in [b"a", b"b", b"c", b"d"] {
        sleep(Duration::from_millis(150)).await;
        s.write_all(byte).await.unwrap();
    }
    assert!(read_until(&mut s, "abcd").await.contains("200 OK"));
}

#[tokio::test]
async fn the_reserve_is_for_certificates() {
    let server = start(Options {
        connections_max: 3,
        connections_reserved: 2,
        idle_timeout: Duration::from_secs(60),
        ..options()
    })
    .await;
    let mut first = server.h1().await;
    first.write_all(WHO).await.unwrap();
    read_until(&mut first, "nobody").await;
    let mut second = server.h1().await;
    let _ = second.write_all(WHO).await;
    assert_eq!(read_until(&mut second, "nobody").await, "");
    let ann = server.issue("ann");
    let mut third = server.connect(Some(&ann), b"http/1.1").await.unwrap();
    third.write_all(WHO).await.unwrap();
    read_until(&mut third, "ann").await;
    server.tls.reload(&server.pki).unwrap();
    let mut fourth = server.connect(Some(&ann), b"http/1.1").await.unwrap();
    fourth.write_all(WHO).await.unwrap();
    assert!(read_until(&mut fourth, "ann").await.contains("200 OK"));
}
