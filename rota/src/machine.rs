//! What this machine is: its name, its size, and a share of it.

use std::fs::read_to_string;

/// The machine's name, made fit for a Node's name; `node` when there is nothing usable.
pub fn node_base_name() -> String {
    let raw = read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    clean(raw.trim())
}

fn clean(raw: &str) -> String {
    let mapped: String = raw
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(50)
        .collect();
    let name = mapped.trim_matches('-');
    if name.is_empty() {
        "node".into()
    } else {
        name.into()
    }
}

/// The machine's host name, if it can stand in a certificate.
pub fn host_name() -> Option<String> {
    let raw = read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = raw.trim();
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    (!name.is_empty() && name.len() <= 253 && name.chars().all(fits)).then(|| name.into())
}

/// One of `n` equal shares of the machine, as `--resources` takes it.
pub fn share(n: u32) -> String {
    let cpus = std::thread::available_parallelism().map_or(1, |c| c.get() as u64);
    let memory_kib = read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| mem_total_kib(&text))
        .unwrap_or(1 << 20);
    share_of(cpus, memory_kib, n)
}

fn share_of(cpus: u64, memory_kib: u64, n: u32) -> String {
    let n = u64::from(n.max(1));
    format!("cpu={}m,memory={}Ki", cpus * 1000 / n, memory_kib / n)
}

fn mem_total_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|l| l.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Raises the limit on open files to what the administrator allows: every connection is one.
pub fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(error = %e, "cannot raise the limit on open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_fit_for_nodes() {
        assert_eq!(clean("Box_7.Example"), "box-7-example");
        assert_eq!(clean("--"), "node");
        assert_eq!(clean(&"x".repeat(80)).len(), 50);
    }

    #[test]
    fn shares_never_add_up_to_more_than_the_machine() {
        assert_eq!(share_of(2, 1000, 1), "cpu=2000m,memory=1000Ki");
        assert_eq!(share_of(2, 1000, 3), "cpu=666m,memory=333Ki");
        assert_eq!(mem_total_kib("MemTotal:   77 kB\nMemFree: 1 kB"), Some(77));
    }
}
