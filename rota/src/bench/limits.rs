//! The limits that the server is held against, measured in the same run: raw etcd, ready bytes over
//! TLS, and bare process starts.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use http::header;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use super::client::Target;
use super::cluster::{cpu_seconds, free_port};

/// Arguments of the hidden limit server.
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    #[arg(long)]
    port: u16,
    #[arg(long)]
    cert: PathBuf,
    #[arg(long)]
    key: PathBuf,
    /// Size of the body.
    #[arg(long)]
    bytes: usize,
}

/// Serves `bytes` ready bytes at every path until standard input ends.
pub(crate) async fn serve(args: ServerArgs) -> Result<()> {
    let certs = CertificateDer::pem_file_iter(&args.cert)
        .context("reading the certificate")?
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&args.key).context("reading the key")?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certs, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let body = Bytes::from(vec![b'x'; args.bytes]);
    let app = Router::new().fallback(get(move || {
        let body = body.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], body).into_response() }
    }));
    let listener = TcpListener::bind(("127.0.0.1", args.port)).await?;
    let accept = async move {
        loop {
            let Ok((tcp, _)) = listener.accept().await else {
                continue;
            };
            let _ = tcp.set_nodelay(true);
            let acceptor = acceptor.clone();
            let app = app.clone();
            tokio::spawn(async move {
                if let Ok(tls) = acceptor.accept(tcp).await {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(tls), TowerToHyperService::new(app))
                        .await;
                }
            });
        }
    };
    let stdin = tokio::task::spawn_blocking(|| {
        std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())
    });
    tokio::select! {
        () = accept => {}
        _ = stdin => {}
    }
    Ok(())
}

/// The limit server as a child process, so that its CPU time can be told from the client's.
pub(crate) struct ReadyBytes {
    child: Child,
    /// Requests go here.
    pub(crate) target: Target,
}

impl ReadyBytes {
    /// Starts it with the certificate of the cluster's own server.
    pub(crate) async fn start(
        near: &Target,
        data_dir: &std::path::Path,
        bytes: usize,
    ) -> Result<Self> {
        let port = free_port()?;
        let child = Command::new(std::env::current_exe()?)
            .args(["bench", "limit-server"])
            .args(["--port", &port.to_string(), "--bytes", &bytes.to_string()])
            .arg("--cert")
            .arg(data_dir.join("pki/server.crt"))
            .arg("--key")
            .arg(data_dir.join("pki/server.key"))
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting the limit server")?;
        let target = near.at_port(port);
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = target.connect().await {
            if Instant::now() > deadline {
                return Err(error.context("the limit server did not start"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(ReadyBytes { child, target })
    }

    /// CPU seconds that it has used.
    pub(crate) fn cpu_seconds(&self) -> Option<f64> {
        cpu_seconds(self.child.id()?)
    }
}

/// Starts of `command` per second, from a small tokio process with as many at once as there are CPUs.
pub(crate) async fn process_starts(command: &[String], starts: usize) -> Result<f64> {
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get());
    let left = Arc::new(std::sync::atomic::AtomicUsize::new(starts));
    let begun = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..workers {
        let left = left.clone();
        let command = command.to_vec();
        running.spawn(async move {
            use std::sync::atomic::Ordering;
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok()
            {
                Command::new(&command[0])
                    .args(&command[1..])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .await
                    .with_context(|| format!("starting {}", command[0]))?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(result) = running.join_next().await {
        result??;
    }
    Ok(starts as f64 / begun.elapsed().as_secs_f64())
}

#[cfg(feature = "etcd")]
pub(crate) use with_etcd::Etcd;
#[cfg(not(feature = "etcd"))]
pub(crate) use without_etcd::Etcd;

#[cfg(not(feature = "etcd"))]
mod without_etcd {
    use super::*;

    /// This binary was built without etcd: there is no such limit.
    pub(crate) struct Etcd {
        never: std::convert::Infallible,
    }

    impl Etcd {
        pub(crate) async fn connect(_: &str) -> Result<Self> {
            anyhow::bail!("built without etcd")
        }
        pub(crate) async fn puts(&self, _: usize, _: usize, _: Duration) -> Result<f64> {
            match self.never {}
        }
        pub(crate) async fn txns(&self, _: usize, _: usize, _: Duration) -> Result<f64> {
            match self.never {}
        }
        pub(crate) async fn seed(&self, _: usize, _: usize) -> Result<()> {
            match self.never {}
        }
        pub(crate) async fn pages(&self, _: usize, _: i64, _: usize) -> Result<f64> {
            match self.never {}
        }
        pub(crate) async fn fan_out(&self, _: usize, _: usize, _: usize, _: usize) -> Result<f64> {
            match self.never {}
        }
    }
}

#[cfg(feature = "etcd")]
mod with_etcd {
    use std::sync::atomic::{AtomicU64, Ordering};

    use etcd_client::{
        Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, KvClient, Txn,
        TxnOp, WatchOptions,
    };

    use super::*;

    /// Everything that the limits write is below this, away from the server's own prefix.
    const PREFIX: &str = "/rota-bench-limit/";
    /// One transaction of the bulk limit; etcd's default allows 128 operations.
    const TXN_PUTS: usize = 100;

    /// A raw etcd.
    pub(crate) struct Etcd {
        endpoint: String,
        run: AtomicU64,
    }

    impl Etcd {
        /// Checks that it answers.
        pub(crate) async fn connect(endpoints: &str) -> Result<Self> {
            let etcd = Etcd {
                endpoint: endpoints.split(',').next().unwrap_or("").to_string(),
                run: AtomicU64::new(0),
            };
            etcd.client().await?.status().await.context("etcd status")?;
            Ok(etcd)
        }

        /// Each caller has a connection of its own, as each client of the API has.
        async fn client(&self) -> Result<Client> {
            let options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(5));
            Client::connect([&self.endpoint], Some(options))
                .await
                .context("connecting to etcd")
        }

        fn fresh_prefix(&self) -> String {
            let n = self.run.fetch_add(1, Ordering::Relaxed);
            format!("{PREFIX}{}-{n}/", std::process::id())
        }

        /// Objects written per second by this many clients. Each calls `write` again and again with
        /// a key of its own; it tells how many objects it wrote.
        async fn writes<F>(
            &self,
            clients: usize,
            time: Duration,
            write: impl Fn(KvClient, String) -> F + Clone + Send + 'static,
        ) -> Result<f64>
        where
            F: Future<Output = Result<u64>> + Send + 'static,
        {
            let prefix = self.fresh_prefix();
            let mut running = tokio::task::JoinSet::new();
            for c in 0..clients {
                let client = self.client().await?.kv_client();
                let (prefix, write) = (prefix.clone(), write.clone());
                running.spawn(async move {
                    let begun = Instant::now();
                    let (mut calls, mut written) = (0u64, 0);
                    while begun.elapsed() < time {
                        written += write(client.clone(), format!("{prefix}{c}-{calls}")).await?;
                        calls += 1;
                    }
                    anyhow::Ok(written as f64 / begun.elapsed().as_secs_f64())
                });
            }
            let rate = sum(running).await?;
            self.clear(&prefix).await?;
            Ok(rate)
        }

        /// Puts per second of `bytes` each, by this many clients.
        pub(crate) async fn puts(
            &self,
            clients: usize,
            bytes: usize,
            time: Duration,
        ) -> Result<f64> {
            let put = move |mut client: KvClient, key: String| async move {
                client.put(key, vec![b'x'; bytes], None).await?;
                anyhow::Ok(1u64)
            };
            self.writes(clients, time, put).await
        }

        /// Puts per second in transactions of 100 guarded creations, by this many clients.
        pub(crate) async fn txns(
            &self,
            clients: usize,
            bytes: usize,
            time: Duration,
        ) -> Result<f64> {
            let create = move |mut client: KvClient, key: String| async move {
                let keys = (0..TXN_PUTS).map(|i| format!("{key}-{i}"));
                let absent = |key| Compare::version(key, CompareOp::Equal, 0);
                let put = |key| TxnOp::put(key, vec![b'x'; bytes], None);
                let txn = Txn::new()
                    .when(keys.clone().map(absent).collect::<Vec<_>>())
                    .and_then(keys.map(put).collect::<Vec<_>>());
                client.txn(txn).await?;
                anyhow::Ok(TXN_PUTS as u64)
            };
            self.writes(clients, time, create).await
        }

        fn seeded_prefix() -> String {
            format!("{PREFIX}{}-pages/", std::process::id())
        }

        /// Writes `n` keys to page over.
        pub(crate) async fn seed(&self, n: usize, bytes: usize) -> Result<()> {
            let mut client = self.client().await?;
            let prefix = Self::seeded_prefix();
            let value = vec![b'x'; bytes];
            for from in (0..n).step_by(TXN_PUTS) {
                let ops: Vec<TxnOp> = (from..n.min(from + TXN_PUTS))
                    .map(|i| TxnOp::put(format!("{prefix}{i:09}"), value.clone(), None))
                    .collect();
                client.txn(Txn::new().and_then(ops)).await?;
            }
            Ok(())
        }

        /// Keys per second when paging over what [`Etcd::seed`] wrote. A page costs as much as what
        /// is left of the range, so a number of pages evenly spaced over the range is measured.
        pub(crate) async fn pages(&self, n: usize, page: i64, sampled: usize) -> Result<f64> {
            let mut client = self.client().await?;
            let prefix = Self::seeded_prefix();
            let pages = n.div_ceil(page as usize);
            let step = pages.div_ceil(sampled).max(1);
            let mut keys = 0usize;
            let begun = Instant::now();
            for at in (0..pages).step_by(step) {
                let from = format!("{prefix}{:09}", at * page as usize);
                let end = format!("{prefix}~");
                let options = GetOptions::new().with_range(end).with_limit(page);
                keys += client.get(from, Some(options)).await?.kvs().len();
            }
            Ok(keys as f64 / begun.elapsed().as_secs_f64())
        }

        /// Events delivered per second to `watchers` while `writers` put `events` values.
        pub(crate) async fn fan_out(
            &self,
            watchers: usize,
            writers: usize,
            events: usize,
            bytes: usize,
        ) -> Result<f64> {
            let prefix = self.fresh_prefix();
            let mut watching = tokio::task::JoinSet::new();
            for _ in 0..watchers {
                let mut client = self.client().await?;
                let mut stream = client
                    .watch(prefix.clone(), Some(WatchOptions::new().with_prefix()))
                    .await?;
                watching.spawn(async move {
                    let mut seen = 0;
                    while seen < events {
                        match stream.message().await? {
                            Some(answer) => seen += answer.events().len(),
                            None => anyhow::bail!("etcd ended a watch"),
                        }
                    }
                    anyhow::Ok(seen as f64)
                });
            }
            let begun = Instant::now();
            let mut writing = tokio::task::JoinSet::new();
            for w in 0..writers {
                let mut client = self.client().await?;
                let prefix = prefix.clone();
                writing.spawn(async move {
                    let value = vec![b'x'; bytes];
                    for n in (w..events).step_by(writers) {
                        client
                            .put(format!("{prefix}{n}"), value.clone(), None)
                            .await?;
                    }
                    anyhow::Ok(0.0)
                });
            }
            sum(writing).await?;
            let delivered = sum(watching).await?;
            let rate = delivered / begun.elapsed().as_secs_f64();
            self.clear(&prefix).await?;
            Ok(rate)
        }

        async fn clear(&self, prefix: &str) -> Result<()> {
            self.client()
                .await?
                .delete(prefix, Some(DeleteOptions::new().with_prefix()))
                .await?;
            Ok(())
        }
    }

    async fn sum(mut running: tokio::task::JoinSet<Result<f64>>) -> Result<f64> {
        let mut total = 0.0;
        while let Some(result) = running.join_next().await {
            total += result??;
        }
        Ok(total)
    }
}
