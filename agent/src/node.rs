//! The Node object and its Lease: registration, epoch, heartbeat, conditions.

use std::sync::Arc;
use std::time::Duration;

use rota_api::names::*;
use rota_supervisor::sys;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::api::{Api, CallError};
use crate::config::{AgentConfig, AgentError};
use crate::machine;

/// Renewal period of the Lease; the node counts as Unknown after five of them.
pub const RENEW: Duration = Duration::from_secs(2);
/// Duration that the Lease names, for people and for tools that look at it.
const LEASE_SECONDS: i32 = 15;
/// A gap between renewals from which the node may have been given up meanwhile: the epoch is
/// read again before anything is reported. Below the 10 s after which a node becomes Unknown.
pub const GAP_MS: u64 = 8_000;
/// How often Node and disk are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Longest wait for one call: a renewal that takes longer is tried again on a new connection,
/// to the next server if there is one.
const CALL_WAIT: Duration = Duration::from_secs(4);

/// What the heartbeat tells.
#[derive(Debug)]
pub enum Beat {
    /// The Lease was renewed by a request sent at this moment.
    Renewed {
        /// CLOCK_BOOTTIME, milliseconds.
        sent_boot_ms: u64,
    },
    /// The Node says this epoch; read at this moment or later.
    Epoch {
        /// The epoch.
        epoch: i64,
        /// CLOCK_BOOTTIME of the request, milliseconds.
        read_boot_ms: u64,
    },
}

/// What the core knows that belongs on the Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Why limits are not enforced; empty when they are.
    pub unlimited: String,
    /// The agent is ending.
    pub stopping: bool,
}

fn lease_path(name: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{NODE_LEASE_NAMESPACE}/leases/{name}")
}

fn node_path(name: &str) -> String {
    format!("/api/v1/nodes/{name}")
}

/// Epoch in a Node's annotations; 0 without.
pub fn epoch_of(node: &Value) -> i64 {
    node["metadata"]["annotations"][ANNOTATION_EPOCH]
        .as_str()
        .and_then(|e| e.parse().ok())
        .unwrap_or(0)
}

/// Epoch at registration: raised when the machine was booted since, kept otherwise, at least 1.
pub fn registration_epoch(existing: &Value, boot_id: &str) -> i64 {
    let known = existing["status"]["nodeInfo"]["bootID"]
        .as_str()
        .unwrap_or("");
    let epoch = epoch_of(existing);
    if known.is_empty() || known == boot_id {
        epoch.max(1)
    } else {
        epoch + 1
    }
}

/// What a registration leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The node's epoch.
    pub epoch: i64,
    /// When the request that renewed the Lease was sent: CLOCK_BOOTTIME, milliseconds.
    pub renewed_ms: u64,
}

/// Creates or updates Node and Lease. A Node that has to be made begins with the epoch `first`.
pub async fn register(
    api: &Api,
    config: &AgentConfig,
    boot_id: &str,
    facts: &Facts,
    first: i64,
) -> Result<Registered, CallError> {
    let path = node_path(&config.name);
    let labels = labels(config);
    let existing: Value = match api.get(&path).await {
        Ok(node) => node,
        Err(e) if e.code() == 404 => {
            let node = json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {
                    "name": config.name, "labels": labels,
                    "annotations": {ANNOTATION_EPOCH: first.to_string(), ANNOTATION_PORT_RANGE: port_range()},
                },
            });
            match api.post("/api/v1/nodes", &node).await {
                Ok(node) => node,
                Err(e) if e.code() == 409 => api.get(&path).await?,
                Err(e) => return Err(e),
            }
        }
        Err(e) => return Err(e),
    };
    let epoch = registration_epoch(&existing, boot_id);
    // Only what differs is sent: reserved labels cannot be changed by a node once it exists.
    let have = &existing["metadata"]["labels"];
    let missing: serde_json::Map<String, Value> = labels
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(k, v)| have[k.as_str()] != **v)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let mut metadata = json!({});
    if !missing.is_empty() {
        metadata["labels"] = Value::Object(missing);
    }
    if epoch != epoch_of(&existing) {
        metadata["annotations"] = json!({ANNOTATION_EPOCH: epoch.to_string()});
    }
    // Epoch before boot id: a crash in between must not leave the new boot id with the old epoch.
    if metadata != json!({}) {
        api.patch(&path, &json!({ "metadata": metadata })).await?;
    }
    let capacity = json!(machine::capacity(config));
    let status = json!({"status": {
        "capacity": capacity, "allocatable": capacity,
        "addresses": [
            {"type": "InternalIP", "address": machine::address_towards(api.servers().current())},
            {"type": "Hostname", "address": rustix::system::uname().nodename().to_string_lossy()},
        ],
        "nodeInfo": machine::node_info(boot_id),
        "conditions": conditions(config, facts, &existing),
    }});
    api.patch(&format!("{path}/status"), &status).await?;
    let renewed_ms = sys::boot_ms();
    renew(api, &config.name).await?;
    Ok(Registered { epoch, renewed_ms })
}

fn port_range() -> String {
    format!("{}-{}", PORT_RANGE_DEFAULT.0, PORT_RANGE_DEFAULT.1)
}

fn labels(config: &AgentConfig) -> Value {
    let mut labels = json!({
        LABEL_AGENT: "true",
        "kubernetes.io/hostname": config.name,
        "kubernetes.io/arch": machine::architecture(),
        "kubernetes.io/os": "linux",
    });
    if let Some(pool) = &config.pool {
        labels[LABEL_POOL] = json!(pool);
    }
    for (k, v) in &config.labels {
        labels[k.as_str()] = json!(v);
    }
    labels
}

fn conditions(config: &AgentConfig, facts: &Facts, existing: &Value) -> Value {
    let (disk_full, disk) = machine::disk_pressure(&config.data_dir);
    let now = jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string();
    let mut list = Vec::new();
    let mut add = |kind: &str, status: bool, reason: &str, message: &str| {
        let status = if status { "True" } else { "False" };
        let old = existing["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|c| c["type"] == kind && c["status"] == status);
        let since = old
            .and_then(|c| c["lastTransitionTime"].as_str())
            .unwrap_or(&now);
        list.push(
            json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since, "lastHeartbeatTime": now}),
        );
    };
    if facts.stopping {
        add("Ready", false, "AgentStopped", "the agent was told to end");
    } else {
        add("Ready", true, "AgentReady", "the agent is ready for tasks");
    }
    let reason = if disk_full {
        "DiskNearlyFull"
    } else {
        "DiskHasSpace"
    };
    add("DiskPressure", disk_full, reason, &disk);
    if facts.unlimited.is_empty() {
        add(
            "ResourceLimitsEnforced",
            true,
            "ControlGroups",
            "cpu and memory limits are enforced",
        );
    } else {
        add(
            "ResourceLimitsEnforced",
            false,
            "ControlGroupsUnavailable",
            &facts.unlimited,
        );
    }
    Value::Array(list)
}

/// Renews the Lease, or creates it.
pub async fn renew(api: &Api, name: &str) -> Result<(), CallError> {
    let now = jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
        .to_string();
    match api
        .patch(&lease_path(name), &json!({"spec": {"renewTime": now}}))
        .await
    {
        Err(e) if e.code() == 404 => {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": name, "namespace": NODE_LEASE_NAMESPACE},
                "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now},
            });
            let path =
                format!("/apis/coordination.k8s.io/v1/namespaces/{NODE_LEASE_NAMESPACE}/leases");
            api.post(&path, &lease).await.map(|_| ())
        }
        other => other.map(|_| ()),
    }
}

/// Writes the epoch that the agent has adopted.
pub async fn adopt_epoch(api: &Api, name: &str, epoch: i64) -> Result<(), CallError> {
    let body = json!({"metadata": {"annotations": {ANNOTATION_OBSERVED_EPOCH: epoch.to_string()}}});
    api.patch(&node_path(name), &body).await.map(|_| ())
}

/// Tells on the Node that the agent ends.
pub async fn say_stopping(
    api: &Api,
    config: &AgentConfig,
    unlimited: &str,
) -> Result<(), CallError> {
    let facts = Facts {
        unlimited: unlimited.to_string(),
        stopping: true,
    };
    let body = json!({"status": {"conditions": conditions(config, &facts, &Value::Null)}});
    api.patch(&format!("{}/status", node_path(&config.name)), &body)
        .await
        .map(|_| ())
}

/// Beats for ever, from a registration on. `look_now` asks for the Node's epoch at once.
pub async fn run(
    api: Arc<Api>,
    config: Arc<AgentConfig>,
    boot_id: String,
    facts: Facts,
    registered: Registered,
    tell: mpsc::Sender<Beat>,
    look_now: Arc<tokio::sync::Notify>,
) {
    let mut last_success = registered.renewed_ms;
    let mut looked = last_success;
    let mut known_epoch = registered.epoch;
    let mut conditions_sent = Value::Null;
    loop {
        let sent = sys::boot_ms();
        let renewed = tokio::time::timeout(CALL_WAIT, renew(&api, &config.name)).await;
        let mut look = sent.saturating_sub(looked) >= LOOK.as_millis() as u64;
        match renewed {
            Ok(Ok(())) => {
                look |= sent.saturating_sub(last_success) >= GAP_MS;
                last_success = sent;
                if tell
                    .send(Beat::Renewed { sent_boot_ms: sent })
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Ok(Err(e)) => {
                tracing::warn!(error = %e, "the lease cannot be renewed");
                if e.code() == 503 {
                    api.look_for_a_ready_one(&e).await;
                }
            }
            Err(_) => tracing::warn!("the lease cannot be renewed: no answer"),
        }
        if look && last_success == sent {
            match tokio::time::timeout(
                CALL_WAIT,
                look_at_node(
                    &api,
                    &config,
                    &boot_id,
                    &facts,
                    known_epoch,
                    &mut conditions_sent,
                ),
            )
            .await
            {
                Ok(Ok(epoch)) => {
                    looked = sent;
                    known_epoch = known_epoch.max(epoch);
                    if tell
                        .send(Beat::Epoch {
                            epoch,
                            read_boot_ms: sent,
                        })
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                Ok(Err(e)) => tracing::warn!(error = %e, "the node cannot be read"),
                Err(_) => tracing::warn!("the node cannot be read: no answer"),
            }
        }
        let spent = Duration::from_millis(sys::boot_ms().saturating_sub(sent));
        tokio::select! {
            () = tokio::time::sleep(RENEW.saturating_sub(spent)) => {}
            () = look_now.notified() => looked = 0,
        }
    }
}

/// Reads the epoch; writes conditions that changed; registers again when the Node is gone.
async fn look_at_node(
    api: &Api,
    config: &AgentConfig,
    boot_id: &str,
    facts: &Facts,
    known_epoch: i64,
    sent: &mut Value,
) -> Result<i64, CallError> {
    let path = node_path(&config.name);
    let node: Value = match api.get(&path).await {
        Ok(n) => n,
        Err(e) if e.code() == 404 => {
            // Above all that was bound to the Node that is gone: that was given up with it.
            let first = known_epoch + 1;
            let registered = register(api, config, boot_id, facts, first).await?;
            return Ok(registered.epoch);
        }
        Err(e) => return Err(e),
    };
    let wanted = conditions(config, facts, &node);
    let essence = |v: &Value| -> Vec<(Value, Value)> {
        v.as_array()
            .into_iter()
            .flatten()
            .map(|c| (c["type"].clone(), c["status"].clone()))
            .collect()
    };
    // Another writer (the node controller) may have set Ready to Unknown: the API's list counts.
    let there = essence(&node["status"]["conditions"]);
    if essence(&wanted).iter().any(|c| !there.contains(c)) || sent.is_null() {
        let others: Vec<Value> = node["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|c| {
                !wanted
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|w| w["type"] == c["type"])
            })
            .cloned()
            .collect();
        let mut all = wanted.as_array().cloned().unwrap_or_default();
        all.extend(others);
        api.patch(
            &format!("{path}/status"),
            &json!({"status": {"conditions": all}}),
        )
        .await?;
        *sent = wanted;
    }
    Ok(epoch_of(&node))
}

/// Registers, trying again until it works or the configuration is refused.
pub async fn register_until_done(
    api: &Api,
    config: &AgentConfig,
    boot_id: &str,
    facts: &Facts,
) -> Result<Registered, AgentError> {
    let mut pause = Duration::from_millis(200);
    loop {
        match tokio::time::timeout(CALL_WAIT * 2, register(api, config, boot_id, facts, 1)).await {
            Ok(Ok(registered)) => return Ok(registered),
            Ok(Err(e)) if matches!(e.code(), 400 | 401 | 403 | 422) => {
                return Err(AgentError::Config(format!(
                    "the server refuses node {:?}: {e}",
                    config.name
                )));
            }
            Ok(Err(e)) => {
                tracing::warn!(error = %e, "the node cannot be registered yet");
                if e.code() == 503 {
                    api.look_for_a_ready_one(&e).await;
                }
            }
            Err(_) => tracing::warn!("the node cannot be registered yet: no answer"),
        }
        tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>())).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_new_boot_raises_the_epoch_and_nothing_else_does() {
        let node = |epoch: &str, boot: &str| json!({"metadata": {"annotations": {ANNOTATION_EPOCH: epoch}}, "status": {"nodeInfo": {"bootID": boot}}});
        assert_eq!(registration_epoch(&json!({}), "b"), 1);
        assert_eq!(registration_epoch(&node("4", "b"), "b"), 4);
        assert_eq!(registration_epoch(&node("4", "a"), "b"), 5);
        assert_eq!(registration_epoch(&node("x", "b"), "b"), 1);
    }
}
