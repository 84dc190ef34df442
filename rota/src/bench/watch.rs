//! `rota bench watch`: writers, and watchers that must see every write once and in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use serde_json::json;

use super::Where;
use super::client::{Conn, digits_after, find};
use super::cluster::Cluster;
use super::limits::Etcd;
use super::report::{Latencies, Report, limit_json, median, ratio, round};

/// A watcher that hears nothing for so long has lost something.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Arguments of `rota bench watch`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Connections that watch.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    watchers: u32,
    /// Connections that write.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    writers: u32,
    /// Writes in all; every watcher must see each.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    events: u32,
    /// Size of each object's JSON.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(512..=1_000_000))]
    object_bytes: u32,
    /// Slices of limit and measurement that take turns.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Do not measure the limit.
    #[arg(long)]
    no_limit: bool,
    #[command(flatten)]
    at: Where,
}

/// What one watcher saw.
struct Seen {
    versions: Vec<u64>,
    reordered: u64,
    latencies: Latencies,
    last: Instant,
}

/// Runs the benchmark.
pub(crate) async fn run(args: Args) -> Result<Report> {
    let cluster = Cluster::start(&args.at, None, !args.no_limit).await?;
    let report = measure(&args, &cluster).await;
    let kept = cluster.stop().await;
    let mut report = report?;
    report.json["kept"] = json!(kept);
    Ok(report)
}

async fn measure(args: &Args, cluster: &Cluster) -> Result<Report> {
    let etcd = match (&cluster.etcd, args.no_limit) {
        (Some(endpoints), false) => Some(Etcd::connect(endpoints).await?),
        _ => None,
    };
    let mut admin = cluster.target.connect().await?;
    let namespace = format!("bench-{:x}", std::process::id());
    admin
        .json(
            Method::POST,
            "/api/v1/namespaces",
            Some(
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
            ),
        )
        .await?;
    let collection = format!("/api/v1/namespaces/{namespace}/configmaps");
    let per_round = (args.events / args.rounds).max(1);
    let mut limits = Vec::new();
    let mut rates = Vec::new();
    let mut samples = Vec::new();
    let mut latencies = Latencies::default();
    let (mut lost, mut doubled, mut reordered, mut delivered) = (0, 0, 0, 0);
    let (mut seconds, mut cpu_total) = (0.0, None);
    for n in 0..args.rounds {
        let limit = match &etcd {
            Some(etcd) => Some(
                etcd.fan_out(
                    args.watchers as usize,
                    args.writers as usize,
                    per_round as usize,
                    args.object_bytes as usize,
                )
                .await?,
            ),
            None => None,
        };
        let cpu_before = cluster.server_cpu_seconds();
        let slice = Slice::run(args, cluster, &mut admin, &collection, n, per_round).await?;
        let cpu = cpu_before
            .zip(cluster.server_cpu_seconds())
            .map(|(b, a)| a - b);
        let rate = slice.delivered as f64 / slice.seconds;
        samples.push(json!({
            "round": n,
            "events": slice.delivered,
            "writes": per_round,
            "seconds": round(slice.seconds),
            "events_per_s": round(rate),
            "lost": slice.lost,
            "doubled": slice.doubled,
            "reordered": slice.reordered,
            "server_cpu_seconds": cpu.map(round),
            "limit": limit.map(round),
        }));
        limits.extend(limit);
        rates.push(rate);
        lost += slice.lost;
        doubled += slice.doubled;
        reordered += slice.reordered;
        delivered += slice.delivered;
        seconds += slice.seconds;
        cpu_total = cpu.map(|c| c + cpu_total.unwrap_or(0.0));
        latencies.merge(slice.latencies);
    }
    if !cluster.keep() {
        let _ = admin
            .json(
                Method::DELETE,
                &format!("/api/v1/namespaces/{namespace}"),
                None,
            )
            .await;
    }
    Ok(Report {
        sound: lost == 0 && doubled == 0 && reordered == 0,
        json: json!({
            "bench": "watch",
            "backend": cluster.backend,
            "durability": cluster.durability,
            "watchers": args.watchers,
            "writers": args.writers,
            "object_bytes": args.object_bytes,
            "events": delivered,
            "writes": per_round * args.rounds,
            "seconds": round(seconds),
            "events_per_s": median(&rates).map(round),
            "lost": lost,
            "doubled": doubled,
            "reordered": reordered,
            "p50_ms": latencies.quantile_ms(0.5),
            "p99_ms": latencies.quantile_ms(0.99),
            "server_cpu_seconds": cpu_total.map(round),
            "server_rss_bytes": cluster.server_rss_bytes(),
            "samples": samples,
            "limit": limit_json("etcd watch, as many watchers and writers", "events delivered per second", &limits),
            "ratio": ratio(&rates, &limits),
            "objects": {"namespace": namespace, "resource": "configmaps", "created": per_round * args.rounds},
        }),
    })
}

/// One slice of the measurement.
struct Slice {
    delivered: u64,
    lost: u64,
    doubled: u64,
    reordered: u64,
    seconds: f64,
    latencies: Latencies,
}

impl Slice {
    async fn run(
        args: &Args,
        cluster: &Cluster,
        admin: &mut Conn,
        collection: &str,
        n: u32,
        events: u32,
    ) -> Result<Slice> {
        let list = admin
            .json(Method::GET, &format!("{collection}?limit=1"), None)
            .await?;
        let from = list["metadata"]["resourceVersion"]
            .as_str()
            .context("the list has no resourceVersion")?
            .to_string();
        let clock = Instant::now();
        let mut watching = tokio::task::JoinSet::new();
        for _ in 0..args.watchers {
            let mut conn = cluster.target.connect().await?;
            let path = format!("{collection}?watch=true&resourceVersion={from}");
            let body = conn.stream(&path).await?;
            watching.spawn(async move {
                let seen = watch(body, events as usize, clock).await;
                drop(conn);
                seen
            });
        }
        let begun = Instant::now();
        let serial = Arc::new(AtomicU64::new(0));
        let mut writing = tokio::task::JoinSet::new();
        for _ in 0..args.writers {
            let mut conn = cluster.target.connect().await?;
            let (serial, collection) = (serial.clone(), collection.to_string());
            let bytes = args.object_bytes as usize;
            writing.spawn(async move {
                let mut versions = Vec::new();
                loop {
                    let i = serial.fetch_add(1, Ordering::Relaxed);
                    if i >= u64::from(events) {
                        return anyhow::Ok(versions);
                    }
                    let body = stamped(&format!("o-{n}-{i:09}"), clock, bytes);
                    let (status, answer) = conn.send(Method::POST, &collection, body).await?;
                    if !status.is_success() {
                        bail!("{status}: {}", String::from_utf8_lossy(&answer));
                    }
                    versions.push(
                        digits_after(&answer, b"\"resourceVersion\"")
                            .context("a created object has no resourceVersion")?,
                    );
                }
            });
        }
        let mut acknowledged = Vec::new();
        while let Some(versions) = writing.join_next().await {
            acknowledged.extend(versions??);
        }
        acknowledged.sort_unstable();
        let mut slice = Slice {
            delivered: 0,
            lost: 0,
            doubled: 0,
            reordered: 0,
            seconds: 0.0,
            latencies: Latencies::default(),
        };
        let mut end = begun;
        while let Some(seen) = watching.join_next().await {
            let seen = seen??;
            end = end.max(seen.last);
            slice.reordered += seen.reordered;
            slice.delivered += seen.versions.len() as u64;
            slice.latencies.merge(seen.latencies);
            let mut versions = seen.versions;
            let all = versions.len();
            versions.sort_unstable();
            versions.dedup();
            slice.doubled += (all - versions.len()) as u64;
            slice.lost += acknowledged
                .iter()
                .filter(|v| versions.binary_search(v).is_err())
                .count() as u64;
        }
        slice.seconds = (end - begun).as_secs_f64();
        Ok(slice)
    }
}

/// An object that carries the time at which it was sent, in microseconds of `clock`.
fn stamped(name: &str, clock: Instant, bytes: usize) -> Bytes {
    let mut body = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"sent":"{}","fill":""#,
        clock.elapsed().as_micros()
    );
    let room = bytes.saturating_sub(body.len() + 3);
    body.extend(std::iter::repeat_n('x', room));
    body.push_str("\"}}");
    body.into()
}

async fn watch(mut body: hyper::body::Incoming, events: usize, clock: Instant) -> Result<Seen> {
    let mut seen = Seen {
        versions: Vec::with_capacity(events),
        reordered: 0,
        latencies: Latencies::default(),
        last: Instant::now(),
    };
    let mut pending = BytesMut::new();
    while seen.versions.len() < events {
        let Ok(frame) = tokio::time::timeout(SILENCE_MAX, body.frame()).await else {
            // Bookmarks would have come: what is missing is counted as lost.
            break;
        };
        let frame = frame.context("the server ended a watch")??;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        pending.extend_from_slice(data);
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let line = pending.split_to(end + 1);
            take(&line, &mut seen, clock)?;
        }
    }
    Ok(seen)
}

fn take(line: &[u8], seen: &mut Seen, clock: Instant) -> Result<()> {
    let head = &line[..line.len().min(64)];
    if find(head, b"\"BOOKMARK\"").is_some() {
        return Ok(());
    }
    if find(head, b"\"ERROR\"").is_some() {
        bail!("the watch failed: {}", String::from_utf8_lossy(line));
    }
    let Some(version) = digits_after(line, b"\"resourceVersion\"") else {
        return Ok(());
    };
    if seen.versions.last().is_some_and(|last| *last > version) {
        seen.reordered += 1;
    }
    seen.versions.push(version);
    seen.last = Instant::now();
    if let Some(sent) = digits_after(line, b"\"sent\"") {
        let now = clock.elapsed().as_micros() as u64;
        seen.latencies.0.push(now.saturating_sub(sent) as u32);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen {
            versions: Vec::new(),
            reordered: 0,
            latencies: Latencies::default(),
            last: Instant::now(),
        }
    }

    #[test]
    fn order_is_checked_and_bookmarks_are_not_events() {
        let mut s = seen();
        let clock = Instant::now();
        for v in [5, 7, 6] {
            let line = format!(
                r#"{{"type":"ADDED","object":{{"metadata":{{"resourceVersion":"{v}"}},"data":{{"sent":"1"}}}}}}"#
            );
            take(line.as_bytes(), &mut s, clock).unwrap();
        }
        take(
            br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#,
            &mut s,
            clock,
        )
        .unwrap();
        assert_eq!(s.versions, [5, 7, 6]);
        assert_eq!(s.reordered, 1);
        assert_eq!(s.latencies.0.len(), 3);
        assert!(take(br#"{"type":"ERROR","object":{}}"#, &mut s, clock).is_err());
    }

    #[test]
    fn stamped_objects_have_the_size_asked_for() {
        let body = stamped("o-1", Instant::now(), 1024);
        assert_eq!(body.len(), 1024);
        assert!(digits_after(&body, b"\"sent\"").is_some());
    }
}
