//! `rota bench api`: one kind of request at a fixed concurrency, against the limit for that kind.

mod bodies;
mod limit;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::ValueEnum;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::Where;
use super::client::{Conn, Target, count, digits_after};
use super::cluster::Cluster;
use bodies::{bulk, configmap, task};
use limit::Limit;

use super::report::{Latencies, Report, limit_json, median, ratio, round};

/// Objects that `get` chooses among: enough that no single one is hot.
const GET_OBJECTS: usize = 1000;
/// Bytes of the list that `list` reads, unless --objects says otherwise.
const LIST_BYTES: usize = 10_000_000;
/// Objects that `page` walks over, unless --objects says otherwise.
const PAGE_OBJECTS: usize = 100_000;
/// Objects per page, as kubectl asks.
const PAGE: usize = 500;
/// Pages of the limit that are measured in each slice.
const LIMIT_PAGES: usize = 40;
/// Time for background work after the objects are there: merging of tables, garbage collection.
const REST: Duration = Duration::from_secs(10);
/// Seconds that a server may take to catch up before its objects are counted.
const RECOUNT_TRIES: u32 = 30;
/// Items per request when objects are made before the measurement.
const SEED_BATCH: usize = 500;
/// etcd's best bulk rate is reached at this concurrency, whatever ours is.
const TXN_CLIENTS: usize = 16;

/// Arguments of `rota bench api`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to ask for.
    #[arg(long)]
    op: Op,
    /// Connections, each with one request at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    concurrency: u32,
    /// Seconds of measurement in all; the limit takes as long again.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Size of each object's JSON.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(512..=1_000_000))]
    object_bytes: u32,
    /// get, list, page: objects to make first.
    #[arg(long)]
    objects: Option<usize>,
    /// bulk: what to create. Tasks, unless --server or --kubeconfig leads to a cluster whose
    /// controllers would remove them again: then ConfigMaps.
    #[arg(long)]
    resource: Option<Resource>,
    /// bulk: items per request.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=5000))]
    batch: u32,
    /// Slices of limit and measurement that take turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Do not measure the limit.
    #[arg(long)]
    no_limit: bool,
    #[command(flatten)]
    at: Where,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Op {
    /// Create one object per request.
    Create,
    /// Create many objects per request.
    Bulk,
    /// Read one object per request.
    Get,
    /// Read all objects in one answer.
    List,
    /// Read all objects in pages of 500; operations are objects.
    Page,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Op::Create => "create",
            Op::Bulk => "bulk",
            Op::Get => "get",
            Op::List => "list",
            Op::Page => "page",
        }
    }

    fn writes(self) -> bool {
        matches!(self, Op::Create | Op::Bulk)
    }
}

/// What `bulk` creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Resource {
    /// Tasks, which is what placement writes.
    Tasks,
    /// ConfigMaps.
    Configmaps,
}

/// What the workers share.
struct Load {
    op: Op,
    tasks: bool,
    namespace: String,
    collection: String,
    object_bytes: usize,
    batch: usize,
    objects: usize,
    stop: AtomicBool,
    serial: AtomicU64,
    first_version: AtomicU64,
    last_version: AtomicU64,
}

/// What one slice brought.
#[derive(Default)]
struct Slice {
    ops: u64,
    errors: u64,
    error: Option<String>,
    seconds: f64,
    latencies: Latencies,
}

/// Runs the benchmark.
pub(crate) async fn run(args: Args) -> Result<Report> {
    let etcd_limit = !args.no_limit && matches!(args.op, Op::Create | Op::Bulk | Op::Page);
    let cluster = Cluster::start(&args.at, None, etcd_limit).await?;
    let report = measure(&args, &cluster).await;
    let kept = cluster.stop().await;
    let mut report = report?;
    report.json["kept"] = json!(kept);
    Ok(report)
}

async fn measure(args: &Args, cluster: &Cluster) -> Result<Report> {
    let object_bytes = args.object_bytes as usize;
    let objects = match (args.op, args.objects) {
        (Op::Create | Op::Bulk, _) => 0,
        (_, Some(n)) => n.max(1),
        (Op::Get, None) => GET_OBJECTS,
        (Op::List, None) => LIST_BYTES / object_bytes,
        (Op::Page, None) => PAGE_OBJECTS,
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
    let own = cluster.data_dir.is_some();
    let tasks = args.op == Op::Bulk
        && match args.resource {
            Some(resource) => resource == Resource::Tasks,
            None => own,
        };
    let (resource, collection) = if tasks {
        (
            "tasks",
            format!("/apis/rota.dev/v1/namespaces/{namespace}/tasks"),
        )
    } else {
        (
            "configmaps",
            format!("/api/v1/namespaces/{namespace}/configmaps"),
        )
    };
    let load = Arc::new(Load {
        op: args.op,
        tasks,
        namespace: namespace.clone(),
        collection: collection.clone(),
        object_bytes,
        batch: args.batch as usize,
        objects,
        stop: AtomicBool::new(false),
        serial: AtomicU64::new(0),
        first_version: AtomicU64::new(u64::MAX),
        last_version: AtomicU64::new(0),
    });
    if objects > 0 {
        seed(&mut admin, &load).await?;
    }

    let limit = Limit::prepare(args, cluster, &mut admin, &load).await;
    let memory = memory(&limit, cluster).await;
    let slice_time = Duration::from_secs_f64(f64::from(args.seconds) / f64::from(args.rounds));
    let (mut limits, mut rates, mut samples) = (Vec::new(), Vec::new(), Vec::new());
    let mut total = Slice::default();
    let mut cpu_total = None;
    for n in 0..args.rounds {
        let limit_rate = limit.slice(args, objects, slice_time).await?;
        let cpu_before = cluster.server_cpu_seconds();
        let mut slice = drive(&cluster.target, &load, args.concurrency, slice_time).await?;
        let cpu = cpu_before
            .zip(cluster.server_cpu_seconds())
            .map(|(before, after)| after - before);
        let per_second = slice.ops as f64 / slice.seconds;
        let per_cpu = cpu.filter(|c| *c > 0.0).map(|c| slice.ops as f64 / c);
        limits.extend(limit_rate);
        rates.extend(if limit.per_cpu_second() {
            per_cpu
        } else {
            Some(per_second)
        });
        samples.push(json!({
            "round": n,
            "ops": slice.ops,
            "seconds": round(slice.seconds),
            "ops_per_s": round(per_second),
            "ops_per_server_cpu_s": per_cpu.map(round),
            "server_cpu_seconds": cpu.map(round),
            "p50_ms": slice.latencies.quantile_ms(0.5),
            "p99_ms": slice.latencies.quantile_ms(0.99),
            "errors": slice.errors,
            "limit": limit_rate.map(round),
        }));
        cpu_total = cpu.map(|c| c + cpu_total.unwrap_or(0.0));
        total.ops += slice.ops;
        total.errors += slice.errors;
        total.seconds += slice.seconds;
        total.error = total.error.or(slice.error);
        total.latencies.merge(slice.latencies);
    }

    // The recount does not go through anything that the measurement used.
    let created = if args.op.writes() {
        total.ops
    } else {
        objects as u64
    };
    let listed = recount(&mut admin, &collection).await?;
    if let Some(error) = &total.error {
        eprintln!("first error: {error}");
    }
    if !cluster.keep() {
        delete_namespace(&mut admin, &namespace).await;
    }
    let per_s: Vec<f64> = samples
        .iter()
        .filter_map(|s| s["ops_per_s"].as_f64())
        .collect();
    let json = json!({
        "bench": "api",
        "op": args.op.name(),
        "backend": cluster.backend,
        "durability": cluster.durability,
        "concurrency": args.concurrency,
        "object_bytes": object_bytes,
        "ops": total.ops,
        "seconds": round(total.seconds),
        "ops_per_s": median(&per_s).map(round),
        "p50_ms": total.latencies.quantile_ms(0.5),
        "p99_ms": total.latencies.quantile_ms(0.99),
        "errors": total.errors,
        "server_cpu_seconds": cpu_total.map(round),
        "server_rss_bytes": cluster.server_rss_bytes(),
        "memory": memory,
        "samples": samples,
        "limit": limit_json(limit.what(), limit.unit(), &limits),
        "ratio": ratio(&rates, &limits),
        "objects": {
            "namespace": namespace,
            "resource": resource,
            "created": created,
            "listed": listed,
            "first_resource_version": Some(load.first_version.load(Ordering::Relaxed)).filter(|v| *v != u64::MAX),
            "last_resource_version": Some(load.last_version.load(Ordering::Relaxed)).filter(|v| *v != 0),
        },
    });
    // A create that timed out may still have happened, so more than acknowledged is possible then.
    let counted = listed == created || (total.errors > 0 && listed > created);
    Ok(Report {
        sound: total.errors == 0 && counted && total.ops > 0,
        json,
    })
}

/// What the server and an etcd of our own hold in memory, once they are at rest with as many objects
/// of as many bytes each and before any is read back.
async fn memory(limit: &Limit, cluster: &Cluster) -> Value {
    // A store in etcd would put our objects into the etcd that we compare with.
    if !matches!(limit, Limit::Pages(_)) || cluster.backend != "embedded" {
        return Value::Null;
    }
    tokio::time::sleep(REST).await;
    let (server, etcd) = (cluster.server_rss_bytes(), cluster.etcd_rss_bytes());
    let ratio = server.zip(etcd).map(|(s, e)| round(s as f64 / e as f64));
    json!({"server_bytes": server, "etcd_bytes": etcd, "ratio": ratio})
}

async fn drive(target: &Target, load: &Arc<Load>, workers: u32, time: Duration) -> Result<Slice> {
    let mut connections = Vec::new();
    for _ in 0..workers {
        connections.push(target.connect().await?);
    }
    load.stop.store(false, Ordering::Relaxed);
    let begun = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for conn in connections {
        running.spawn(worker(conn, load.clone()));
    }
    tokio::time::sleep(time).await;
    load.stop.store(true, Ordering::Relaxed);
    let mut all = Slice::default();
    while let Some(slice) = running.join_next().await {
        let slice = slice?;
        all.ops += slice.ops;
        all.errors += slice.errors;
        all.error = all.error.or(slice.error);
        all.latencies.merge(slice.latencies);
    }
    all.seconds = begun.elapsed().as_secs_f64();
    Ok(all)
}

async fn worker(mut conn: Conn, load: Arc<Load>) -> Slice {
    let mut slice = Slice::default();
    let mut next_page: Option<String> = None;
    while !load.stop.load(Ordering::Relaxed) {
        let serial = load.serial.fetch_add(1, Ordering::Relaxed);
        let (method, path, body) = load.request(serial, next_page.as_deref());
        let begun = Instant::now();
        let answer = conn.send(method, &path, body).await;
        slice
            .latencies
            .0
            .push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
        match answer {
            Ok((status, body)) if status.is_success() => {
                let (ok, failed) = load.outcome(&body);
                slice.ops += ok;
                slice.errors += failed;
                if failed > 0 && slice.error.is_none() {
                    slice.error = Some(first_failure(&body));
                }
                next_page = (load.op == Op::Page)
                    .then(|| continue_token(&body))
                    .flatten();
            }
            Ok((status, body)) => {
                slice.errors += 1;
                next_page = None;
                slice
                    .error
                    .get_or_insert_with(|| format!("{status}: {}", String::from_utf8_lossy(&body)));
            }
            Err(error) => {
                slice.errors += 1;
                next_page = None;
                slice.error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
    slice
}

impl Load {
    fn request(&self, serial: u64, next_page: Option<&str>) -> (Method, String, Bytes) {
        match self.op {
            Op::Create => {
                let name = format!("o-{serial:012}");
                let body = configmap(&name, self.object_bytes);
                (Method::POST, self.collection.clone(), body.into())
            }
            Op::Bulk => {
                let items = (0..self.batch as u64)
                    .map(|i| {
                        let name = format!("t-{:012}", serial * self.batch as u64 + i);
                        if self.tasks {
                            task(&self.namespace, &name, self.object_bytes)
                        } else {
                            configmap(&name, self.object_bytes)
                        }
                    })
                    .collect::<Vec<_>>();
                let body = bulk(&self.collection, &items);
                (Method::POST, "/apis/rota.dev/v1/bulk".into(), body.into())
            }
            Op::Get => {
                // A fixed odd multiplier walks over the objects without order or repetition.
                let n = serial.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.objects as u64;
                (
                    Method::GET,
                    format!("{}/o-{n:012}", self.collection),
                    Bytes::new(),
                )
            }
            Op::List => (Method::GET, self.collection.clone(), Bytes::new()),
            Op::Page => {
                let path = match next_page {
                    Some(token) => format!("{}?limit={PAGE}&continue={token}", self.collection),
                    None => format!("{}?limit={PAGE}", self.collection),
                };
                (Method::GET, path, Bytes::new())
            }
        }
    }

    /// Operations that an answer acknowledges, and those that failed inside it.
    fn outcome(&self, body: &[u8]) -> (u64, u64) {
        match self.op {
            Op::Create => {
                if let Some(version) = digits_after(body, b"\"resourceVersion\"") {
                    self.saw(version);
                }
                (1, 0)
            }
            Op::Bulk => {
                let failed = count(body, b"\"Failure\"") as u64;
                if let Some(version) = digits_after(body, b"\"resourceVersion\"") {
                    self.saw(version);
                }
                (self.batch as u64 - failed, failed)
            }
            Op::Get | Op::List => (1, 0),
            Op::Page => (count(body, b"\"uid\"") as u64, 0),
        }
    }

    fn saw(&self, version: u64) {
        self.first_version.fetch_min(version, Ordering::Relaxed);
        self.last_version.fetch_max(version, Ordering::Relaxed);
    }
}

fn first_failure(body: &[u8]) -> String {
    let answer: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    answer["items"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|i| i["status"] == "Failure")
        .map_or_else(|| "an item failed".into(), |i| i["message"].to_string())
}

/// The continue token, percent-encoded for a query. It comes early in a list, so this is cheap.
fn continue_token(body: &[u8]) -> Option<String> {
    let key = b"\"continue\":\"";
    let at = super::client::find(body, key)? + key.len();
    let len = body[at..].iter().position(|b| *b == b'"')?;
    let token = std::str::from_utf8(&body[at..at + len]).ok()?;
    (!token.is_empty()).then(|| {
        token
            .replace('%', "%25")
            .replace('+', "%2B")
            .replace('/', "%2F")
            .replace('=', "%3D")
    })
}

async fn seed(admin: &mut Conn, load: &Load) -> Result<()> {
    for from in (0..load.objects).step_by(SEED_BATCH) {
        let items: Vec<String> = (from..load.objects.min(from + SEED_BATCH))
            .map(|n| configmap(&format!("o-{n:012}"), load.object_bytes))
            .collect();
        let body = bulk(&load.collection, &items);
        let (status, answer) = admin
            .send(Method::POST, "/apis/rota.dev/v1/bulk", body.into())
            .await
            .context("making objects")?;
        if status != StatusCode::OK || count(&answer, b"\"Failure\"") > 0 {
            bail!("making objects: {status}: {}", first_failure(&answer));
        }
    }
    Ok(())
}

/// Counts objects by pages of metadata only, which shares nothing with what was measured but the store.
async fn recount(admin: &mut Conn, collection: &str) -> Result<u64> {
    let mut n = 0;
    let mut token = String::new();
    loop {
        let path = format!("{collection}?limit=5000&continue={token}");
        let (mut status, mut body) = admin.send(Method::GET, &path, Bytes::new()).await?;
        // Right after the load the server's cache may be behind for a while, and says so.
        for _ in 0..RECOUNT_TRIES {
            if status != StatusCode::SERVICE_UNAVAILABLE {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            (status, body) = admin.send(Method::GET, &path, Bytes::new()).await?;
        }
        if status != StatusCode::OK {
            bail!(
                "counting objects: {status}: {}",
                String::from_utf8_lossy(&body)
            );
        }
        let page: Value = serde_json::from_slice(&body)?;
        n += page["items"].as_array().map_or(0, Vec::len) as u64;
        match continue_token(&body) {
            Some(next) => token = next,
            None => return Ok(n),
        }
    }
}

/// What is left is the namespace controller's work; an own cluster is removed anyway.
async fn delete_namespace(admin: &mut Conn, namespace: &str) {
    let path = format!("/api/v1/namespaces/{namespace}");
    if let Err(error) = admin.json(Method::DELETE, &path, None).await {
        eprintln!("the namespace {namespace} is left behind: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_json_of_the_size_asked_for() {
        let map = configmap("o-1", 1024);
        assert_eq!(map.len(), 1024);
        let map: Value = serde_json::from_str(&map).unwrap();
        assert_eq!(map["metadata"]["name"], "o-1");

        let one = task("ns", "t-1", 1024);
        assert_eq!(one.len(), 1024);
        let value: Value = serde_json::from_str(&one).unwrap();
        assert_eq!(value["spec"]["nodeName"], "bench-none");
        assert!(value["metadata"]["annotations"]["fill"].is_string());

        let all: Value = serde_json::from_str(&bulk("/c", &[one.clone(), one])).unwrap();
        assert_eq!(all["items"].as_array().map(Vec::len), Some(2));
        assert_eq!(all["items"][1]["path"], "/c");
    }

    #[test]
    fn continue_tokens_survive_a_query() {
        let body = br#"{"metadata":{"continue":"a+b/c=","resourceVersion":"1"}}"#;
        assert_eq!(continue_token(body).as_deref(), Some("a%2Bb%2Fc%3D"));
        assert_eq!(continue_token(br#"{"metadata":{"continue":""}}"#), None);
        assert_eq!(continue_token(b"{}"), None);
    }
}
