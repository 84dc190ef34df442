//! The cluster that is measured: an existing one, or one of its own in a temporary directory.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::Where;
use super::client::Target;

/// A server that is not ready by then will not be.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// After this the server is killed instead of asked.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// etcd's default of 2 GiB is too little for a million objects.
const ETCD_QUOTA_BYTES: u64 = 8 << 30;
/// Ticks per second of /proc/PID/stat: fixed by the kernel's user interface.
const USER_HZ: f64 = 100.0;

/// What is measured.
pub(crate) struct Cluster {
    /// Where requests go.
    pub(crate) target: Target,
    /// `embedded`, `etcd` or what the server says of itself.
    pub(crate) backend: String,
    /// What an acknowledgement means.
    pub(crate) durability: String,
    /// Endpoint of an etcd for the limit, on the same disk.
    pub(crate) etcd: Option<String>,
    /// Data directory, if it is an own cluster.
    pub(crate) data_dir: Option<PathBuf>,
    server_pid: Option<u32>,
    /// The etcd, if it is our own.
    etcd_pid: Option<u32>,
    children: Vec<Child>,
    temp: Option<tempfile::TempDir>,
    keep: bool,
}

impl Cluster {
    /// Connects, or starts one: `rota up` with this many local nodes, or without any an API server
    /// alone, so that no controller touches what is measured. `etcd_limit`: start an etcd to measure
    /// against even when the store is embedded.
    pub(crate) async fn start(at: &Where, nodes: Option<u32>, etcd_limit: bool) -> Result<Cluster> {
        if at.server.is_some() || at.kubeconfig.is_some() {
            let target =
                Target::from_kubeconfig(at.kubeconfig.as_deref(), at.server.as_deref()).await?;
            let mut cluster = Cluster {
                target,
                backend: String::new(),
                durability: String::new(),
                etcd: at.etcd_endpoints.clone(),
                data_dir: None,
                server_pid: at.server_pid,
                etcd_pid: None,
                children: Vec::new(),
                temp: None,
                keep: at.keep,
            };
            cluster.read_store_info().await;
            return Ok(cluster);
        }
        let temp = match &at.temp_dir {
            Some(dir) => tempfile::Builder::new()
                .prefix("rota-bench-")
                .tempdir_in(dir),
            None => tempfile::Builder::new().prefix("rota-bench-").tempdir(),
        }
        .context("making a temporary directory")?;

        let mut children = Vec::new();
        let mut etcd_pid = None;
        let mut etcd = at.etcd_endpoints.clone();
        if etcd.is_none() && (at.etcd || etcd_limit) {
            match start_etcd(temp.path()).await {
                Ok((child, endpoint)) => {
                    etcd_pid = child.id();
                    children.push(child);
                    etcd = Some(endpoint);
                }
                Err(error) if at.etcd => return Err(error),
                Err(error) => eprintln!("no limit to compare with: {error:#}"),
            }
        }
        let data_dir = temp.path().join("data");
        let store_in = (at.etcd || at.etcd_endpoints.is_some())
            .then(|| etcd.clone())
            .flatten();
        let (child, target) = start_rota(&data_dir, nodes, store_in.as_deref()).await?;
        let server_pid = child.id();
        children.push(child);
        let mut cluster = Cluster {
            target,
            backend: if store_in.is_some() {
                "etcd"
            } else {
                "embedded"
            }
            .into(),
            durability: String::new(),
            etcd,
            data_dir: Some(data_dir),
            server_pid,
            etcd_pid,
            children,
            temp: Some(temp),
            keep: at.keep,
        };
        cluster.read_store_info().await;
        Ok(cluster)
    }

    /// CPU seconds that the server has used so far, where its process is known.
    pub(crate) fn server_cpu_seconds(&self) -> Option<f64> {
        cpu_seconds(self.server_pid?)
    }

    /// Resident bytes of the server, where its process is known.
    pub(crate) fn server_rss_bytes(&self) -> Option<u64> {
        rss_bytes(self.server_pid?)
    }

    /// Resident bytes of an etcd of our own.
    pub(crate) fn etcd_rss_bytes(&self) -> Option<u64> {
        rss_bytes(self.etcd_pid?)
    }

    /// Whether objects are to stay.
    pub(crate) fn keep(&self) -> bool {
        self.keep
    }

    /// Stops what was started. Returns the directory if it was to be kept.
    pub(crate) async fn stop(mut self) -> Option<PathBuf> {
        // The server first, so that it does not see its store go.
        while let Some(mut child) = self.children.pop() {
            stop_child(&mut child).await;
        }
        let temp = self.temp.take()?;
        self.keep.then(|| temp.keep())
    }

    /// What the server's own metrics say of its store.
    async fn read_store_info(&mut self) {
        let text = match self.target.connect().await {
            Ok(mut conn) => conn.send(Method::GET, "/metrics", Bytes::new()).await,
            Err(error) => Err(error),
        };
        let text = match &text {
            Ok((StatusCode::OK, body)) => String::from_utf8_lossy(body).into_owned(),
            _ => String::new(),
        };
        let line = text
            .lines()
            .find(|l| l.starts_with("rota_store_info"))
            .unwrap_or("");
        if let Some(backend) = label(line, "backend") {
            self.backend = backend;
        }
        self.durability =
            label(line, "durability").unwrap_or_else(|| "not stated by the server".into());
    }
}

/// Value of a label in a line of the Prometheus text format.
fn label(line: &str, name: &str) -> Option<String> {
    let rest = line.split_once(&format!("{name}=\""))?.1;
    Some(rest.split_once('"')?.0.to_string())
}

/// CPU seconds of a process so far.
pub(crate) fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and parentheses; the fields after it are fixed.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let user: f64 = fields.get(11)?.parse().ok()?;
    let system: f64 = fields.get(12)?.parse().ok()?;
    Some((user + system) / USER_HZ)
}

/// Resident bytes of a process now.
fn rss_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

async fn start_rota(
    data: &Path,
    nodes: Option<u32>,
    etcd: Option<&str>,
) -> Result<(Child, Target)> {
    let port = free_port()?;
    let log = std::fs::File::create(data.with_extension("log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    match nodes {
        Some(nodes) => command.arg("up").args(["--nodes", &nodes.to_string()]),
        None => command.arg("apiserver"),
    };
    command
        .arg("--data-dir")
        .arg(data)
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .env_remove("KUBECONFIG")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true);
    if let Some(endpoints) = etcd {
        command.args(["--etcd-endpoints", endpoints]);
    }
    let mut child = command.spawn().context("starting the server")?;
    let kubeconfig = data.join("admin.kubeconfig");
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            let log = std::fs::read_to_string(data.with_extension("log")).unwrap_or_default();
            bail!("the server ended ({status}): {}", log.trim());
        }
        if kubeconfig.exists()
            && let Ok(target) = Target::from_kubeconfig(Some(&kubeconfig), None).await
            && let Ok(mut conn) = target.connect().await
            && let Ok((StatusCode::OK, _)) = conn.send(Method::GET, "/readyz", Bytes::new()).await
        {
            return Ok((child, target));
        }
        if Instant::now() > deadline {
            bail!("the server was not ready within {START_TIMEOUT:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn start_etcd(dir: &Path) -> Result<(Child, String)> {
    let (client, peer) = (free_port()?, free_port()?);
    let endpoint = format!("http://127.0.0.1:{client}");
    let peer = format!("http://127.0.0.1:{peer}");
    let log = std::fs::File::create(dir.join("etcd.log"))?;
    let child = Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.join("etcd"))
        .args(["--listen-client-urls", &endpoint])
        .args(["--advertise-client-urls", &endpoint])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(["--quota-backend-bytes", &ETCD_QUOTA_BYTES.to_string()])
        .args(["--log-level", "error"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("starting etcd (is it installed?)")?;
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let listening = tokio::net::TcpStream::connect(("127.0.0.1", client)).await;
        if listening.is_ok() {
            return Ok((child, endpoint));
        }
        if Instant::now() > deadline {
            bail!("etcd was not ready within {START_TIMEOUT:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn stop_child(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) {
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_TIMEOUT, child.wait())
        .await
        .is_err()
    {
        let _ = child.kill().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read() {
        let line = r#"rota_store_info{backend="embedded",durability="fdatasync first"} 1"#;
        assert_eq!(label(line, "backend").as_deref(), Some("embedded"));
        assert_eq!(
            label(line, "durability").as_deref(),
            Some("fdatasync first")
        );
        assert_eq!(label(line, "none"), None);
    }

    #[test]
    fn cpu_time_of_this_process_is_known() {
        assert!(cpu_seconds(std::process::id()).is_some());
        assert!(cpu_seconds(u32::MAX).is_none());
    }
}
