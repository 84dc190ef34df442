//! The node controller: notices that a node is lost, says so, and frees its tasks.
//!
//! A node is late by what this process observed on its monotonic clock, never by times written in
//! a Lease. The clock starts anew when the process's own watch was broken, and stands still while
//! more than half of the nodes look late, for then the fault is more likely here. A node whose
//! API server saw the agent's connection die does not count as a look: it is known.
//!
//! What is lost gets a higher epoch, which is what makes its tasks' fate decidable: a task of an
//! older epoch is Lost at once if its Job says Rerun, and only when it cannot run any more if it
//! says WaitForFence.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use rota_api::names::{ANNOTATION_EPOCH, LABEL_AGENT};
use rota_api::{JobRevision, OnLost, Task};
use serde_json::json;
use tokio::time::Instant;

use crate::conditions::whole;
use crate::lifecycle;
use crate::runtime::{
    BY_NODE, Context, Controller, Failure, HandlerGuard, Informer, Informers, Key, Note, Plan,
    Queue, Regarding, Rest, Target, Write,
};

/// Without a renewal for this long, Ready becomes Unknown and nothing new is placed.
pub const UNKNOWN_AFTER: Duration = Duration::from_secs(10);
/// Without a renewal for this long, the node is lost and its tasks are replaced.
pub const LOST_AFTER: Duration = Duration::from_secs(15);
/// A watch that has said nothing for longer than a bookmark's period and a bit is not trusted.
const SILENCE: Duration = Duration::from_secs(7);
/// The share of late nodes is counted at most this often.
const WEATHER_PERIOD: Duration = Duration::from_millis(250);
/// Taint of a lost node.
pub const TAINT_LOST: &str = "rota.dev/lost";
/// Node annotation: the epoch that its agent has adopted, having stopped all older tasks.
pub const ANNOTATION_OBSERVED_EPOCH: &str = "rota.dev/observed-epoch";
/// Node annotation: boot id at the time the node was declared lost.
pub const ANNOTATION_LOST_BOOT: &str = "rota.dev/lost-boot-id";
/// Lease annotation: the tunnel that the node has, or had last.
const ANNOTATION_TUNNEL_ID: &str = "rota.dev/tunnel-id";
/// Lease annotation: the tunnel that its peer has closed.
const ANNOTATION_TUNNEL_CLOSED: &str = "rota.dev/tunnel-closed";
/// Reasons that this controller gives to the Ready condition; only these it takes back.
const REASON_LATE: &str = "HeartbeatMissing";
const REASON_LOST: &str = "NodeLost";

/// The node controller.
pub struct NodeController {
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    tasks: Informer<Task>,
    revisions: Informer<JobRevision>,
    rest: Rest,
    beats: Arc<Mutex<Beats>>,
}

#[derive(Default)]
struct Beats {
    nodes: HashMap<String, Beat>,
    /// When the share of late nodes was counted, and whether all had to wait then.
    counted: Option<(Instant, bool)>,
    /// End of the last time that all had to wait.
    resumed: Option<Instant>,
}

struct Beat {
    /// The renewal that was seen last.
    renewal: Option<String>,
    /// When it was seen.
    at: Instant,
    /// The node's connection is known to be dead.
    gone: bool,
}

/// What is known of a node's heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heartbeat {
    /// Nothing can be said: the own watch is broken, or too many look late.
    Unknowable,
    /// Observed this long ago.
    Ago(Duration),
}

/// A node, or the lack of one, and its tasks.
#[derive(Clone, Debug)]
pub struct World {
    /// The key: the node's name.
    pub name: String,
    /// The Node; None if it is deleted for sure.
    pub node: Option<Arc<Node>>,
    /// Its last renewal.
    pub heartbeat: Heartbeat,
    /// Its agent's process is known to be gone.
    pub tunnel_closed: bool,
    /// Its live Tasks, each with its Job's rule.
    pub tasks: Vec<(Arc<Task>, OnLost)>,
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// A node's epoch, 0 before the first.
pub fn epoch(node: &Node) -> i64 {
    annotation(&node.metadata, ANNOTATION_EPOCH)
        .and_then(|e| e.parse().ok())
        .unwrap_or(0)
}

/// Registered by one of our agents.
pub fn is_ours(node: &Node) -> bool {
    node.metadata
        .labels
        .as_ref()
        .is_some_and(|l| l.get(LABEL_AGENT).is_some_and(|v| v == "true"))
}

fn is_lost(node: &Node) -> bool {
    node.spec
        .as_ref()
        .and_then(|s| s.taints.as_ref())
        .is_some_and(|t| t.iter().any(|t| t.key == TAINT_LOST))
}

fn tunnel_closed(lease: &Lease) -> bool {
    let id = annotation(&lease.metadata, ANNOTATION_TUNNEL_ID);
    id.is_some() && id == annotation(&lease.metadata, ANNOTATION_TUNNEL_CLOSED)
}

impl Controller for NodeController {
    const NAME: &'static str = "node";
    type World = World;

    fn new(ctx: &Context) -> Self {
        NodeController {
            nodes: ctx.informers.get(),
            leases: ctx.informers.get(),
            tasks: ctx.informers.get(),
            revisions: ctx.informers.get(),
            rest: ctx.rest.clone(),
            beats: Arc::default(),
        }
    }

    fn warm(informers: &Informers) {
        informers.get::<Node>();
        informers.get::<Lease>();
        informers.get::<Task>();
        informers.get::<JobRevision>();
    }

    async fn wire(&self, _ctx: &Context, queue: &Arc<Queue>) -> Vec<HandlerGuard> {
        tokio::join!(
            self.nodes.synced(),
            self.leases.synced(),
            self.tasks.synced(),
            self.revisions.synced(),
        );
        let (q, beats) = (queue.clone(), self.beats.clone());
        let leases = self.leases.on_change(move |change| {
            let name = change.key.name();
            let mut beats = beats.lock();
            let Some(lease) = &change.new else {
                return;
            };
            let renewal = lease
                .spec
                .as_ref()
                .and_then(|s| s.renew_time.as_ref())
                .map(|t| t.0.to_string());
            let gone = tunnel_closed(lease);
            let now = Instant::now();
            let beat = beats.nodes.entry(name.to_string()).or_insert(Beat {
                renewal: None,
                at: now,
                gone,
            });
            let was_late = beat.at.elapsed() >= UNKNOWN_AFTER;
            if beat.renewal != renewal {
                beat.renewal = renewal;
                beat.at = now;
            }
            let turned = beat.gone != gone;
            beat.gone = gone;
            drop(beats);
            // A renewal in time changes nothing: the node's next look is set already.
            if was_late || turned {
                q.add(&Key::new("", name));
            }
        });
        let (q, beats) = (queue.clone(), self.beats.clone());
        let nodes = self.nodes.on_change(move |change| {
            let name = change.key.name();
            if change.new.as_deref().is_some_and(is_ours) {
                beats.lock().nodes.entry(name.to_string()).or_insert(Beat {
                    renewal: None,
                    at: Instant::now(),
                    gone: false,
                });
            } else {
                beats.lock().nodes.remove(name);
            }
            q.add(&change.key);
        });
        let (q, cache) = (queue.clone(), self.nodes.clone());
        let tasks = self.tasks.on_change(move |change| {
            let Some(task) = change.new.as_deref().filter(|t| lifecycle::is_live(t)) else {
                return;
            };
            let key = Key::new("", &task.spec.node_name);
            let node = cache.cache().get(&key);
            if node.is_none_or(|n| epoch(&n) > task.spec.epoch) {
                q.add(&key);
            }
        });
        vec![leases, nodes, tasks]
    }

    async fn observe(&self, key: &Key) -> Result<Option<World>, Failure> {
        let name = key.name().to_string();
        let tasks: Vec<(Arc<Task>, OnLost)> = self
            .tasks
            .cache()
            .by(BY_NODE, &name)
            .into_iter()
            .filter(|t| lifecycle::is_live(t))
            .map(|task| {
                let namespace = task.metadata.namespace.as_deref().unwrap_or("");
                let revision = Key::new(namespace, &task.spec.revision);
                // Unknown rule: the careful one.
                let rule = self
                    .revisions
                    .cache()
                    .get(&revision)
                    .map_or(OnLost::WaitForFence, |r| r.spec.on_lost);
                (task, rule)
            })
            .collect();
        let node = self.nodes.cache().get(key);
        match &node {
            None => {
                if tasks.is_empty() {
                    return Ok(None);
                }
                // The watches of Nodes and Tasks run apart: make sure that it is gone.
                match self
                    .rest
                    .get::<serde_json::Value>(&Target::of::<Node>(key).path())
                    .await
                {
                    Err(Failure::NotFound(_)) => {}
                    Ok(_) => return Err(Failure::transient("the Node is not in the cache yet")),
                    Err(failure) => return Err(failure),
                }
            }
            Some(node) if !is_ours(node) => return Ok(None),
            Some(_) => {}
        }
        let tunnel_closed = self
            .leases
            .cache()
            .get(&Key::new(rota_api::names::NODE_LEASE_NAMESPACE, &name))
            .is_some_and(|l| tunnel_closed(&l));
        Ok(Some(World {
            heartbeat: self.heartbeat(&name),
            name,
            node,
            tunnel_closed,
            tasks,
        }))
    }

    fn reconcile(world: &World, now: Timestamp) -> Plan {
        reconcile(world, now)
    }
}

impl NodeController {
    /// What can be said about a node's heartbeat now.
    fn heartbeat(&self, name: &str) -> Heartbeat {
        let progress = self.leases.progress();
        let now = Instant::now();
        let mut beats = self.beats.lock();
        let heard = progress.heard.is_some_and(|h| now - h < SILENCE);
        let Some(live) = progress.live_since.filter(|_| heard) else {
            beats.resumed = Some(now);
            beats.counted = None;
            return Heartbeat::Unknowable;
        };
        let wait = match beats.counted {
            Some((at, wait)) if now - at < WEATHER_PERIOD => wait,
            _ => {
                let looks: Vec<(Duration, bool)> = beats
                    .nodes
                    .values()
                    .map(|b| (now - b.at.max(live), b.gone))
                    .collect();
                let wait = too_many_late(&looks);
                beats.counted = Some((now, wait));
                wait
            }
        };
        if wait {
            beats.resumed = Some(now);
            return Heartbeat::Unknowable;
        }
        let Some(beat) = beats.nodes.get(name) else {
            return Heartbeat::Unknowable;
        };
        let mut from = beat.at.max(live);
        if let Some(resumed) = beats.resumed {
            from = from.max(resumed);
        }
        Heartbeat::Ago(now - from)
    }
}

/// Whether more than half of the nodes look late, given the age of each one's last renewal and
/// whether its connection is known to be dead.
pub fn too_many_late(nodes: &[(Duration, bool)]) -> bool {
    let late = nodes
        .iter()
        .filter(|(age, gone)| *age >= UNKNOWN_AFTER && !gone)
        .count();
    late * 2 > nodes.len()
}

/// Everything that the node controller decides about one node.
pub fn reconcile(world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(node) = &world.node else {
        for (task, _) in &world.tasks {
            plan.write(lost(task, "NodeDeleted", "its Node was deleted", now));
        }
        return plan;
    };
    let lost_now = is_lost(node);
    let age = match world.heartbeat {
        Heartbeat::Unknowable => None,
        Heartbeat::Ago(age) => Some(age),
    };
    if let Some(write) = health(world, node, lost_now, age, now, &mut plan) {
        plan.write(write);
    }
    // Tasks of an older epoch.
    for (task, rule) in &world.tasks {
        if task.spec.epoch >= epoch(node) {
            continue;
        }
        if *rule == OnLost::Rerun || fenced(world, node, lost_now) {
            let message = format!("node {} was lost", world.name);
            plan.write(lost(task, REASON_LOST, &message, now));
        }
    }
    plan
}

/// Tasks of an older epoch cannot run on this node any more.
fn fenced(world: &World, node: &Node, lost_now: bool) -> bool {
    // Not lost (any more): the epoch was raised by a new boot, or its agent has confirmed that it
    // stopped what was older.
    if !lost_now {
        return true;
    }
    // The agent's process is gone and the grace has passed (else the node were not lost), so the
    // supervisor's own watchdog has fired.
    if world.tunnel_closed {
        return true;
    }
    let boot = node
        .status
        .as_ref()
        .and_then(|s| s.node_info.as_ref())
        .map(|i| i.boot_id.as_str());
    let before = annotation(&node.metadata, ANNOTATION_LOST_BOOT);
    matches!((before, boot), (Some(before), Some(boot)) if before != boot && !boot.is_empty())
}

/// The next write about the node itself: one at a time, each guarded by its version.
fn health(
    world: &World,
    node: &Node,
    lost_now: bool,
    age: Option<Duration>,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<Write> {
    let target = Target::of::<Node>(&Key::new("", &world.name));
    let guard = |write: Write| {
        write
            .if_uid(node.metadata.uid.as_deref())
            .if_version(node.metadata.resource_version.as_deref())
    };
    let ready = node
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref())
        .and_then(|c| c.iter().find(|c| c.type_ == "Ready"));
    let reason = ready.and_then(|c| c.reason.as_deref()).unwrap_or("");
    let regarding = Regarding::of::<Node>(&node.metadata);
    let Some(age) = age else {
        plan.look_after(Duration::from_secs(1));
        return None;
    };
    if !lost_now && age >= LOST_AFTER {
        let mut taints = node
            .spec
            .as_ref()
            .and_then(|s| s.taints.clone())
            .map_or(json!([]), |t| json!(t));
        if let Some(list) = taints.as_array_mut() {
            list.push(json!({
                "key": TAINT_LOST,
                "effect": "NoExecute",
                "timeAdded": whole(now).to_string(),
            }));
        }
        let boot = node
            .status
            .as_ref()
            .and_then(|s| s.node_info.as_ref())
            .map(|i| i.boot_id.clone());
        plan.note(Note::warning(
            regarding,
            "NodeLost",
            format!("no heartbeat for {} s", LOST_AFTER.as_secs()),
        ));
        // Epoch and taint in one write; the condition follows.
        return Some(guard(Write::patch(
            target,
            json!({
                "metadata": {"annotations": {
                    ANNOTATION_EPOCH: (epoch(node) + 1).to_string(),
                    ANNOTATION_LOST_BOOT: boot,
                }},
                "spec": {"taints": taints},
            }),
        )));
    }
    if age < UNKNOWN_AFTER {
        let late = UNKNOWN_AFTER - age + Duration::from_millis(50);
        plan.look_after(late);
        if lost_now {
            let adopted = annotation(&node.metadata, ANNOTATION_OBSERVED_EPOCH)
                .and_then(|e| e.parse().ok())
                .unwrap_or(-1i64);
            if adopted < epoch(node) {
                return None;
            }
            let taints: Vec<_> = node
                .spec
                .iter()
                .flat_map(|s| s.taints.iter().flatten())
                .filter(|t| t.key != TAINT_LOST)
                .collect();
            return Some(guard(Write::patch(
                target,
                json!({
                    "metadata": {"annotations": {ANNOTATION_LOST_BOOT: null}},
                    "spec": {"taints": taints},
                }),
            )));
        }
        if reason == REASON_LATE || reason == REASON_LOST {
            plan.note(Note::normal(regarding, "NodeReady", "heartbeats are back"));
            let message = "the agent renews its Lease";
            return Some(guard(ready_is(
                node,
                "True",
                "AgentReady",
                message,
                target,
                now,
            )));
        }
        return None;
    }
    if lost_now {
        plan.look_after(LOST_AFTER);
        if reason != REASON_LOST {
            let message = format!("no heartbeat for {} s", LOST_AFTER.as_secs());
            return Some(guard(ready_is(
                node,
                "Unknown",
                REASON_LOST,
                &message,
                target,
                now,
            )));
        }
        return None;
    }
    plan.look_after(LOST_AFTER.saturating_sub(age) + Duration::from_millis(50));
    if ready.is_none_or(|c| c.status != "Unknown") {
        let message = format!("no heartbeat for {} s", UNKNOWN_AFTER.as_secs());
        return Some(guard(ready_is(
            node,
            "Unknown",
            REASON_LATE,
            &message,
            target,
            now,
        )));
    }
    None
}

/// Sets the Ready condition.
fn ready_is(
    node: &Node,
    status: &str,
    reason: &str,
    message: &str,
    target: Target,
    now: Timestamp,
) -> Write {
    let mut conditions: Vec<serde_json::Value> = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .filter(|c| c.type_ != "Ready")
        .map(|c| json!(c))
        .collect();
    let old = node
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref())
        .and_then(|c| c.iter().find(|c| c.type_ == "Ready"));
    let since = match old {
        Some(old) if old.status == status => json!(old.last_transition_time),
        _ => json!(whole(now).to_string()),
    };
    let heartbeat = old.map_or(serde_json::Value::Null, |o| json!(o.last_heartbeat_time));
    let mut ready = json!({
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": since,
    });
    if !heartbeat.is_null() {
        ready["lastHeartbeatTime"] = heartbeat;
    }
    conditions.push(ready);
    Write::status(target, json!({"conditions": conditions}))
}

/// Declares a Task lost; guarded by its version, since a terminal status never changes.
fn lost(task: &Task, reason: &str, message: &str, now: Timestamp) -> Write {
    Write::status(
        Target::of::<Task>(&Key::of(&task.metadata)),
        json!({
            "phase": "Lost",
            "ready": false,
            "reason": reason,
            "message": message,
            "finishedTime": whole(now).to_string(),
        }),
    )
    .if_uid(task.metadata.uid.as_deref())
    .if_version(task.metadata.resource_version.as_deref())
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
