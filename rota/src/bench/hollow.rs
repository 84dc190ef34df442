//! Simulated agents for the control plane's own limit: they register and renew as real ones do, and
//! report every Task as succeeded at once, in groups.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::client::{Conn, Target};

/// Marks the nodes, so that nothing else is placed on them and their tasks go nowhere else.
pub(crate) const LABEL: &str = "bench.rota.dev/hollow";
/// Well inside the 10 s after which a node counts as silent.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Items per bulk request, for registration, renewals and statuses.
const BATCH: usize = 500;
/// Statuses that may wait; a full queue slows the watch down, and the server then cuts it, which is seen.
const QUEUE: usize = 100_000;

/// A set of running hollow nodes.
pub(crate) struct Hollow {
    nodes: u32,
    tasks: Vec<JoinHandle<()>>,
}

impl Hollow {
    /// Registers the nodes and starts to play their agents.
    pub(crate) async fn start(target: &Target, nodes: u32) -> Result<Hollow> {
        let mut conn = target.connect().await?;
        let names: Vec<String> = (0..nodes).map(name).collect();
        let creates: Vec<Value> = names.iter().flat_map(|n| [node(n), lease(n)]).collect();
        bulk(&mut conn, &creates)
            .await
            .context("registering hollow nodes")?;
        let ready: Vec<Value> = names.iter().map(|n| ready(n)).collect();
        bulk(&mut conn, &ready)
            .await
            .context("making hollow nodes ready")?;

        let (send, receive) = mpsc::channel(QUEUE);
        let watch = tokio::spawn(report_end(watch_tasks(target.clone(), send)));
        let statuses = tokio::spawn(report_end(write_statuses(target.connect().await?, receive)));
        let renewals = tokio::spawn(report_end(renew(target.connect().await?, names)));
        Ok(Hollow {
            nodes,
            tasks: vec![watch, statuses, renewals],
        })
    }

    /// Stops playing, and removes the nodes unless they are to stay.
    pub(crate) async fn stop(self, admin: &mut Conn, keep: bool) {
        for task in &self.tasks {
            task.abort();
        }
        if keep {
            return;
        }
        let deletes: Vec<Value> = (0..self.nodes)
            .map(|i| json!({"verb": "delete", "path": format!("/api/v1/nodes/{}", name(i))}))
            .collect();
        if let Err(error) = bulk(admin, &deletes).await {
            eprintln!("hollow nodes are left behind: {error:#}");
        }
    }
}

async fn report_end(work: impl Future<Output = Result<()>>) {
    if let Err(error) = work.await {
        eprintln!("hollow agents: {error:#}");
    }
}

fn name(i: u32) -> String {
    format!("hollow-{i:05}")
}

fn node(name: &str) -> Value {
    json!({"verb": "create", "path": "/api/v1/nodes", "body": {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"rota.dev/agent": "true", "kubernetes.io/hostname": name, LABEL: "true"},
            "annotations": {"rota.dev/epoch": "0"},
        },
        "spec": {},
    }})
}

fn lease(name: &str) -> Value {
    json!({"verb": "create", "path": "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", "body": {
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 15, "leaseTransitions": 1, "renewTime": now()},
    }})
}

fn ready(name: &str) -> Value {
    let resources = json!({"cpu": "64", "memory": "256Gi", "rota.dev/ports": "12000"});
    json!({"verb": "status", "path": format!("/api/v1/nodes/{name}"), "body": {"status": {
        "capacity": resources, "allocatable": resources,
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "AgentReady", "message": "simulated",
            "lastHeartbeatTime": now_seconds(), "lastTransitionTime": now_seconds(),
        }],
        "addresses": [{"type": "Hostname", "address": name}],
        "nodeInfo": {
            "machineID": name, "systemUUID": name, "bootID": name, "kernelVersion": "", "osImage": "",
            "containerRuntimeVersion": "hollow://1", "kubeletVersion": "", "kubeProxyVersion": "",
            "operatingSystem": "linux", "architecture": "amd64",
        },
    }}})
}

/// RFC 3339 with microseconds, as Leases have it.
fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
        .to_string()
}

fn now_seconds() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

async fn bulk(conn: &mut Conn, items: &[Value]) -> Result<()> {
    for some in items.chunks(BATCH) {
        let body = json!({"atomic": false, "answer": "Version", "items": some}).to_string();
        let (status, answer) = conn
            .send(Method::POST, "/apis/rota.dev/v1/bulk", body.into())
            .await?;
        if status != StatusCode::OK {
            bail!("{status}: {}", String::from_utf8_lossy(&answer));
        }
        let answer: Value = serde_json::from_slice(&answer)?;
        if let Some(failure) = answer["items"]
            .as_array()
            .into_iter()
            .flatten()
            // A task that was removed meanwhile needs no report, nor does one registered before.
            .find(|i| {
                i["status"] == "Failure" && i["code"] != 404 && i["reason"] != "AlreadyExists"
            })
        {
            bail!("{}", failure["message"]);
        }
    }
    Ok(())
}

async fn renew(mut conn: Conn, names: Vec<String>) -> Result<()> {
    let mut tick = tokio::time::interval(RENEW_EVERY);
    loop {
        tick.tick().await;
        let items: Vec<Value> = names
            .iter()
            .map(|n| {
                json!({
                    "verb": "patch",
                    "path": format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{n}"),
                    "body": {"spec": {"renewTime": now()}},
                })
            })
            .collect();
        bulk(&mut conn, &items).await?;
    }
}

/// Every Task that is bound to a hollow node, once: its path and uid.
async fn watch_tasks(target: Target, send: mpsc::Sender<(String, Value)>) -> Result<()> {
    let mut conn = target.connect().await?;
    let list = conn
        .json(Method::GET, "/apis/rota.dev/v1/tasks?limit=1", None)
        .await?;
    let from = list["metadata"]["resourceVersion"]
        .as_str()
        .context("no resourceVersion")?;
    let path =
        format!("/apis/rota.dev/v1/tasks?watch=true&timeoutSeconds=86400&resourceVersion={from}");
    let mut body = conn.stream(&path).await?;
    let mut pending = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        pending.extend_from_slice(data);
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let line: Bytes = pending.split_to(end + 1).freeze();
            let event: Value = serde_json::from_slice(&line)?;
            let task = &event["object"];
            let hollow = task["spec"]["nodeName"]
                .as_str()
                .is_some_and(|n| n.starts_with("hollow-"));
            if event["type"] == "ERROR" {
                bail!("the watch of tasks failed: {task}");
            }
            if event["type"] == "ADDED" && hollow {
                let path = format!(
                    "/apis/rota.dev/v1/namespaces/{}/tasks/{}",
                    task["metadata"]["namespace"].as_str().unwrap_or(""),
                    task["metadata"]["name"].as_str().unwrap_or("")
                );
                if send
                    .send((path, task["metadata"]["uid"].clone()))
                    .await
                    .is_err()
                {
                    return Ok(());
                }
            }
        }
    }
    bail!("the watch of tasks ended")
}

async fn write_statuses(mut conn: Conn, mut tasks: mpsc::Receiver<(String, Value)>) -> Result<()> {
    let mut some = Vec::new();
    while tasks.recv_many(&mut some, BATCH).await > 0 {
        let at = now_seconds();
        let items: Vec<Value> = some
            .drain(..)
            .map(|(path, uid)| {
                json!({"verb": "status", "path": path, "preconditions": {"uid": uid}, "body": {"status": {
                    "phase": "Succeeded", "exitCode": 0, "reason": "Completed",
                    "startedTime": at, "finishedTime": at,
                }}})
            })
            .collect();
        bulk(&mut conn, &items).await?;
    }
    Ok(())
}
