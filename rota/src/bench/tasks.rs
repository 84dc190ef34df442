//! `rota bench tasks`: one Job of many short tasks, from its creation until it is complete, against
//! bare process starts of the same command.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Method;
use serde_json::{Value, json};

use super::Where;
use super::client::Conn;
use super::cluster::Cluster;
use super::hollow::Hollow;
use super::limits::process_starts;
use super::report::{Report, limit_json, round};

/// How often the Job is looked at: each look costs the server little, and is the error of the result.
const POLL: Duration = Duration::from_millis(20);
/// How often a sample of progress is taken.
const SAMPLE: Duration = Duration::from_secs(1);
/// Process starts measured before and after the Job.
const LIMIT_STARTS: usize = 2000;
/// A Job that makes no progress for so long will not finish.
const STALLED_AFTER: Duration = Duration::from_secs(120);
/// What stalls the most: nodes that never become ready.
const NODES_TIMEOUT: Duration = Duration::from_secs(60);

/// Arguments of `rota bench tasks`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Tasks.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    count: u32,
    /// Instead of a real agent, this many simulated ones that report every task as succeeded at once.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    hollow_nodes: u32,
    /// Own cluster: real agents.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    nodes: u32,
    /// CPU request of each task; it bounds how many run at once.
    #[arg(long, default_value = "10m")]
    cpu: String,
    /// Memory request of each task.
    #[arg(long, default_value = "1Mi")]
    memory: String,
    /// Do not measure the limit.
    #[arg(long)]
    no_limit: bool,
    #[command(flatten)]
    at: Where,
    /// What each task runs; a static program that ends at once measures the cluster and not the program.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the benchmark.
pub(crate) async fn run(args: Args) -> Result<Report> {
    let nodes = if args.hollow_nodes > 0 { 0 } else { args.nodes };
    let cluster = Cluster::start(&args.at, Some(nodes), false).await?;
    let report = measure(&args, &cluster).await;
    let kept = cluster.stop().await;
    let mut report = report?;
    report.json["kept"] = json!(kept);
    Ok(report)
}

async fn measure(args: &Args, cluster: &Cluster) -> Result<Report> {
    let mut admin = cluster.target.connect().await?;
    let hollow = match args.hollow_nodes {
        0 => None,
        n => Some(Hollow::start(&cluster.target, n).await?),
    };
    nodes_ready(&mut admin, args).await?;

    let mut limits = Vec::new();
    let compare = !args.no_limit && hollow.is_none();
    if compare {
        limits.push(process_starts(&args.command, LIMIT_STARTS).await?);
    }
    let name = format!("bench-{:x}", std::process::id());
    let jobs = "/apis/rota.dev/v1/namespaces/default/jobs";
    let path = format!("{jobs}/{name}");
    let mut spec = json!({
        "type": "Batch",
        "completions": args.count,
        "backoffLimit": 0,
        "template": {"spec": {
            "command": args.command,
            "resources": {"requests": {"cpu": args.cpu, "memory": args.memory}},
        }},
    });
    if hollow.is_some() {
        spec["template"]["spec"]["nodeSelector"] = json!({super::hollow::LABEL: "true"});
    }
    let cpu_before = cluster.server_cpu_seconds();
    let begun = Instant::now();
    let created = admin
        .json(
            Method::POST,
            jobs,
            Some(&json!({
                "apiVersion": "rota.dev/v1", "kind": "Job",
                "metadata": {"name": name, "namespace": "default"},
                "spec": spec,
            })),
        )
        .await?;
    let (job, samples) = finished(&mut admin, &path, begun).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = cpu_before
        .zip(cluster.server_cpu_seconds())
        .map(|(b, a)| a - b);
    if compare {
        limits.push(process_starts(&args.command, LIMIT_STARTS).await?);
    }
    let succeeded = job["status"]["succeeded"].as_u64().unwrap_or(0);
    let failed = u64::from(args.count) - succeeded.min(u64::from(args.count));
    let uid = created["metadata"]["uid"].as_str().unwrap_or("");
    let recorded = ledger_count(&mut admin, uid).await?;
    if !cluster.keep() {
        let _ = admin.json(Method::DELETE, &path, None).await;
    }
    if let Some(hollow) = hollow {
        hollow.stop(&mut admin, cluster.keep()).await;
    }
    let rate = succeeded as f64 / seconds;
    Ok(Report {
        sound: failed == 0 && recorded == succeeded,
        json: json!({
            "bench": "tasks",
            "backend": cluster.backend,
            "durability": cluster.durability,
            "hollow_nodes": args.hollow_nodes,
            "command": args.command,
            "count": args.count,
            "seconds": round(seconds),
            "tasks_per_s": round(rate),
            "failed": failed,
            "server_cpu_seconds": cpu.map(round),
            "server_rss_bytes": cluster.server_rss_bytes(),
            "samples": samples,
            "limit": limit_json("tokio process starts of the same command", "starts per second", &limits),
            "ratio": super::report::ratio(&[rate], &limits),
            "objects": {
                "namespace": "default", "job": name, "uid": uid,
                "succeeded_in_ledger": recorded,
                "resource_version": job["metadata"]["resourceVersion"],
            },
        }),
    })
}

async fn nodes_ready(admin: &mut Conn, args: &Args) -> Result<()> {
    let wanted = if args.hollow_nodes > 0 {
        args.hollow_nodes
    } else {
        1
    } as usize;
    let begun = Instant::now();
    loop {
        let nodes = admin.json(Method::GET, "/api/v1/nodes", None).await?;
        let ready = nodes["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|n| condition(n, "Ready"))
            .count();
        if ready >= wanted {
            return Ok(());
        }
        if begun.elapsed() > NODES_TIMEOUT {
            bail!("only {ready} of {wanted} nodes became ready within {NODES_TIMEOUT:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn condition(object: &Value, name: &str) -> bool {
    object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == name && c["status"] == "True")
}

/// Waits for Complete or Failed, sampling the progress that the Job's status shows.
async fn finished(admin: &mut Conn, path: &str, begun: Instant) -> Result<(Value, Vec<Value>)> {
    let mut samples = Vec::new();
    let mut sampled = begun;
    let (mut progress, mut progressed) = (0, Instant::now());
    loop {
        let job = admin.json(Method::GET, path, None).await?;
        let status = &job["status"];
        let done =
            status["succeeded"].as_u64().unwrap_or(0) + status["failed"].as_u64().unwrap_or(0);
        if done != progress {
            (progress, progressed) = (done, Instant::now());
        }
        let over = condition(&job, "Complete") || condition(&job, "Failed");
        if sampled.elapsed() >= SAMPLE || over {
            sampled = Instant::now();
            samples.push(json!({
                "seconds": round(begun.elapsed().as_secs_f64()),
                "succeeded": status["succeeded"],
                "failed": status["failed"],
                "running": status["running"],
                "waiting": status["waiting"],
            }));
        }
        if over {
            return Ok((job, samples));
        }
        if progressed.elapsed() > STALLED_AFTER {
            bail!("no task ended for {STALLED_AFTER:?}; the Job's status is {status}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Succeeded indexes by the ledger, which a different part of the server writes than the Job's status.
async fn ledger_count(admin: &mut Conn, uid: &str) -> Result<u64> {
    let ledgers = admin
        .json(
            Method::GET,
            "/apis/rota.dev/v1/namespaces/default/jobledgers",
            None,
        )
        .await?;
    let mut n = 0;
    for ledger in ledgers["items"].as_array().into_iter().flatten() {
        if ledger["spec"]["jobUid"] == uid {
            let bitmap = ledger["spec"]["succeeded"].as_str().unwrap_or("");
            n += ones(bitmap).context("a ledger's bitmap is not base64")?;
        }
    }
    Ok(n)
}

/// Set bits of base64 bytes. Six bits a letter; padding adds none.
fn ones(base64: &str) -> Option<u64> {
    base64
        .bytes()
        .filter(|b| *b != b'=')
        .map(|b| {
            let value = match b {
                b'A'..=b'Z' => b - b'A',
                b'a'..=b'z' => b - b'a' + 26,
                b'0'..=b'9' => b - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            Some(u64::from(value.count_ones()))
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_base64_are_counted() {
        assert_eq!(ones("//8="), Some(16));
        assert_eq!(ones("AQ=="), Some(1));
        assert_eq!(ones(""), Some(0));
        assert_eq!(ones("*"), None);
    }

    #[test]
    fn conditions_are_found() {
        let job = json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}});
        assert!(condition(&job, "Complete"));
        assert!(!condition(&job, "Failed"));
        assert!(!condition(&json!({}), "Failed"));
    }
}
