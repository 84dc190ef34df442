//! What the machine has and who it is.

use std::collections::BTreeMap;
use std::path::Path;

use rota_api::kinds::{Quantity, Resources};
use rota_api::names::{PORT_RANGE_DEFAULT, RESOURCE_PORTS};

use crate::config::AgentConfig;
use crate::servers::Server;

/// Share of free bytes or inodes below which the disk counts as full: below it, logs and work
/// directories soon fail.
const DISK_PRESSURE_PERCENT: u64 = 3;

/// Capacity: the machine's, overridden by configuration.
pub fn capacity(config: &AgentConfig) -> Resources {
    let mut r = Resources::new();
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get()) as i64;
    r.insert("cpu".into(), Quantity::from_units(cpus));
    r.insert("memory".into(), Quantity::from_bytes(memory_bytes()));
    if let Ok(s) = rustix::fs::statvfs(&config.data_dir) {
        let bytes = s.f_blocks.saturating_mul(s.f_frsize);
        r.insert(
            "ephemeral-storage".into(),
            Quantity::from_bytes(bytes.min(i64::MAX as u64) as i64),
        );
    }
    r.insert("pods".into(), Quantity::from_units(i64::from(u16::MAX)));
    r.extend(config.resources.clone());
    let (low, high) = PORT_RANGE_DEFAULT;
    r.insert(
        RESOURCE_PORTS.into(),
        Quantity::from_units(i64::from(high - low) + 1),
    );
    r
}

/// Memory of the machine, or of the container around us where that is less.
fn memory_bytes() -> i64 {
    let total = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|t| {
            let line = t.lines().find(|l| l.starts_with("MemTotal:"))?;
            line.split_whitespace().nth(1)?.parse::<i64>().ok()
        })
        .unwrap_or(0)
        .saturating_mul(1024);
    [
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory.max",
    ]
    .iter()
    .filter_map(|f| std::fs::read_to_string(f).ok()?.trim().parse::<i64>().ok())
    .filter(|limit| *limit > 0)
    .fold(total, i64::min)
}

/// Whether the data directory's disk is nearly full, with a sentence about it.
pub fn disk_pressure(dir: &Path) -> (bool, String) {
    match rustix::fs::statvfs(dir) {
        Ok(s) => {
            let low = |free: u64, all: u64| {
                all > 0 && free.saturating_mul(100) / all < DISK_PRESSURE_PERCENT
            };
            let bytes = low(s.f_bavail, s.f_blocks);
            let inodes = low(s.f_favail, s.f_files);
            let free = s.f_bavail.saturating_mul(s.f_frsize) >> 20;
            let what = if inodes { "inodes" } else { "space" };
            if bytes || inodes {
                (
                    true,
                    format!("{} is short of {what} ({free} MiB free)", dir.display()),
                )
            } else {
                (false, format!("{free} MiB free"))
            }
        }
        Err(e) => (true, format!("{} cannot be examined: {e}", dir.display())),
    }
}

/// Address by which the machine reaches the server, so that others may reach its tasks by it.
pub fn address_towards(server: &Server) -> String {
    let (host, port) = (server.host.as_str(), server.port);
    let probe = || {
        let any = if host.contains(':') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let socket = std::net::UdpSocket::bind(any).ok()?;
        socket.connect((host, port)).ok()?; // sends nothing
        Some(socket.local_addr().ok()?.ip().to_string())
    };
    probe().unwrap_or_else(|| "127.0.0.1".into())
}

fn first_line(path: &str) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .to_string()
}

/// `status.nodeInfo`.
pub fn node_info(boot_id: &str) -> serde_json::Value {
    let uname = rustix::system::uname();
    let os = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let os = os
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .unwrap_or("Linux")
        .trim_matches('"');
    serde_json::json!({
        "machineID": first_line("/etc/machine-id"),
        "systemUUID": first_line("/etc/machine-id"),
        "bootID": boot_id,
        "kernelVersion": uname.release().to_string_lossy(),
        "osImage": os,
        "containerRuntimeVersion": format!("process://{}", env!("CARGO_PKG_VERSION")),
        "kubeletVersion": format!("v{}", env!("CARGO_PKG_VERSION")),
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": architecture(),
    })
}

/// Architecture in Go's words, as labels of nodes have it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Resources in base units, rounded down, as a capacity counts.
pub fn base(resources: &Resources) -> BTreeMap<String, i64> {
    resources
        .iter()
        .map(|(k, v)| (k.clone(), v.base_floor(k)))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_read_and_overridden() {
        let dir = tempfile::tempdir().unwrap();
        let mut c = AgentConfig::new(["http://x"], "n", dir.path().into(), vec![]);
        let plain = capacity(&c);
        assert!(plain["cpu"].milli() >= 1000 && plain["memory"].units_floor() > 0);
        assert_eq!(plain[RESOURCE_PORTS], Quantity::from_units(12_000));
        c.resources.insert("cpu".into(), "250m".parse().unwrap());
        c.resources
            .insert("nvidia.com/gpu".into(), "2".parse().unwrap());
        let changed = capacity(&c);
        assert_eq!(changed["cpu"].milli(), 250);
        assert_eq!(changed["nvidia.com/gpu"].units_floor(), 2);
    }
}
