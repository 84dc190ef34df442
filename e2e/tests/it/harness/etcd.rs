//! A real etcd for a test, in memory-backed storage so that it does not wait for the disk.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::cluster::free_port;
use super::process::Background;
use super::{eventually_for, on_path};

/// One running etcd.
pub struct Etcd {
    dir: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    process: Option<Background>,
}

impl Etcd {
    /// Starts one, or says that there is none on this machine.
    pub fn start() -> Option<Etcd> {
        on_path("etcd")?;
        let memory = Path::new("/dev/shm");
        let mut builder = tempfile::Builder::new();
        builder.prefix("rota-e2e-etcd-");
        let dir = if memory.is_dir() {
            builder.tempdir_in(memory)
        } else {
            builder.tempdir()
        };
        let mut etcd = Etcd {
            dir: dir.unwrap(),
            client_port: free_port(),
            peer_port: free_port(),
            process: None,
        };
        etcd.resume();
        Some(etcd)
    }

    /// Where clients connect.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill_9();
        }
    }

    /// Starts it again on the same data and address.
    pub fn resume(&mut self) {
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let process = Background::start(
            Command::new("etcd")
                .arg("--data-dir")
                .arg(self.dir.path().join("data"))
                .args(["--listen-client-urls", &self.endpoint()])
                .args(["--advertise-client-urls", &self.endpoint()])
                .args(["--listen-peer-urls", &peer])
                .args(["--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &format!("default={peer}")])
                .args(["--log-level", "error"]),
            &self.dir.path().join("etcd.log"),
        );
        self.process = Some(process);
        let port = self.client_port;
        eventually_for(Duration::from_secs(30), "etcd answers", || {
            std::net::TcpStream::connect(("127.0.0.1", port))
                .map(drop)
                .map_err(|e| e.to_string())
        });
    }
}
