//! The disk is full, or etcd is gone: writes get a clear 503, what was acknowledged stays, and the
//! server recovers by itself when the cause is gone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::cluster::{Options, items};
use crate::harness::wait::check;
use crate::harness::{Cluster, Http, Store, eventually, on_path, run, skip};

const COLLECTION: &str = "/api/v1/namespaces/default/configmaps";
/// A write that cannot be made must be refused within this, not wait for better times.
const REFUSED_WITHIN: Duration = Duration::from_secs(35);

/// A small file system of its own.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(mebibytes: u32) -> Option<SmallDisk> {
        let dir = tempfile::Builder::new()
            .prefix("rota-e2e-disk-")
            .tempdir()
            .unwrap();
        let mounted = run(Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={mebibytes}m"),
                "rota-e2e",
            ])
            .arg(dir.path()));
        if mounted.status.success() {
            return Some(SmallDisk { dir });
        }
        skip(&format!(
            "cannot mount a small file system: {}",
            mounted.stderr.trim()
        ));
        None
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// A file that leaves this much room.
    fn ballast(&self, leave: u64) -> PathBuf {
        let path = self.path().join("ballast");
        let size = self.free_bytes().saturating_sub(leave);
        run(Command::new("fallocate")
            .args(["-l", &size.to_string()])
            .arg(&path));
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(self.dir.path()));
    }
}

fn create(http: &mut Http, name: &str, bytes: usize) -> u16 {
    let body = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"fill": "x".repeat(bytes)},
    });
    let begun = Instant::now();
    let answer = http.post(COLLECTION, &body);
    let took = begun.elapsed();
    assert!(took < REFUSED_WITHIN, "an answer after {took:?}");
    if answer.status == 201 {
        return 201;
    }
    let status = answer.status;
    let (reason, message) = answer.refused(503);
    assert_eq!(reason, "ServiceUnavailable", "{message}");
    status
}

fn names(http: &mut Http) -> BTreeSet<String> {
    items(&http.get(&format!("{COLLECTION}?limit=0")).ok())
        .iter()
        .map(|i| i["metadata"]["name"].as_str().unwrap().to_string())
        .collect()
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let Some(disk) = SmallDisk::mount(256) else {
        return;
    };
    let mut cluster = Cluster::prepare(Options {
        nodes: 0,
        data_dir: Some(disk.path().join("data")),
        ..Options::default()
    });
    cluster.launch();
    cluster.wait_ready();
    let mut http = cluster.http();
    let mut acknowledged = BTreeSet::new();
    assert_eq!(create(&mut http, "before", 100), 201);
    acknowledged.insert("before".to_string());
    let ballast = disk.ballast(8 << 20);

    // Until it is full, and then a few more.
    let mut refused = 0;
    for n in 0..400 {
        let name = format!("full-{n}");
        match create(&mut http, &name, 400_000) {
            201 => drop(acknowledged.insert(name)),
            _ => refused += 1,
        }
        if refused >= 5 {
            break;
        }
    }
    assert!(
        refused >= 5,
        "the disk never became full: {} bytes free",
        disk.free_bytes()
    );
    // It still answers questions, and says that it is alive.
    assert_eq!(http.get("/livez").status, 200);
    assert!(names(&mut http).is_superset(&acknowledged));

    std::fs::remove_file(ballast).unwrap();
    eventually("writes succeed again", || {
        let name = format!("after-{}", rand::random::<u32>());
        let status = create(&mut http, &name, 1000);
        check(status == 201, || status.to_string())?;
        acknowledged.insert(name);
        Ok(())
    });
    assert!(names(&mut http).is_superset(&acknowledged));

    cluster.kill_server();
    cluster.launch();
    cluster.wait_ready();
    let there = names(&mut cluster.http());
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    drop(cluster);
}

#[test]
fn etcd_gone_refuses_and_recovers() {
    if on_path("etcd").is_none() {
        return skip("there is no etcd on the PATH");
    }
    let mut cluster = Cluster::start(Options {
        nodes: 0,
        store: Store::Etcd,
        ..Options::default()
    });
    let mut http = cluster.http();
    let mut acknowledged = BTreeSet::new();
    for n in 0..20 {
        let name = format!("before-{n}");
        assert_eq!(create(&mut http, &name, 100), 201);
        acknowledged.insert(name);
    }
    let version = http.get(&format!("{COLLECTION}?limit=1")).ok()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_string();
    cluster.etcd.as_mut().unwrap().kill();
    for n in 0..3 {
        assert_eq!(create(&mut http, &format!("gone-{n}"), 100), 503);
    }
    assert_eq!(http.get("/livez").status, 200);
    // A reader that accepts what is cached is still served.
    let cached = http.get(&format!("{COLLECTION}?resourceVersion=0")).ok();
    assert_eq!(
        items(&cached)
            .iter()
            .filter(|i| acknowledged.contains(i["metadata"]["name"].as_str().unwrap()))
            .count(),
        20
    );

    cluster.etcd.as_mut().unwrap().resume();
    eventually("writes succeed again", || {
        let name = format!("after-{}", rand::random::<u32>());
        let status = create(&mut http, &name, 100);
        check(status == 201, || status.to_string())?;
        acknowledged.insert(name);
        Ok(())
    });
    assert!(names(&mut http).is_superset(&acknowledged));
    // A watch from before shows what came after.
    let newest = acknowledged
        .iter()
        .find(|n| n.starts_with("after-"))
        .unwrap();
    let found = http
        .watch(&format!(
            "{COLLECTION}?watch=true&resourceVersion={version}&timeoutSeconds=20"
        ))
        .unwrap()
        .any(|e| e["object"]["metadata"]["name"] == newest.as_str());
    assert!(found, "a watch from {version} does not show {newest}");
}
