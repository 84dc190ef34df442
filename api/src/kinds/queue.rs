//! Queue: who pays for tasks, how much of the fleet it is owed, and who goes first in it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::Resources;

/// A share of the fleet that Jobs are charged to.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "rota.dev",
    version = "v1",
    kind = "Queue",
    plural = "queues",
    singular = "queue",
    category = "rota",
    status = "QueueStatus",
    derive = "PartialEq",
    printcolumn(name = "Parent", type_ = "string", json_path = ".spec.parent"),
    printcolumn(name = "Weight", type_ = "integer", json_path = ".spec.weight"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.running"),
    printcolumn(name = "Waiting", type_ = "integer", json_path = ".status.waiting"),
    printcolumn(name = "Share", type_ = "string", json_path = ".status.dominantShare"),
    printcolumn(
        name = "Order",
        type_ = "string",
        json_path = ".spec.order",
        priority = 1
    ),
    printcolumn(
        name = "Fair",
        type_ = "string",
        json_path = ".status.fairShare",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct QueueSpec {
    /// Queue above this one, whose share it divides with its siblings. Absent: the whole fleet.
    /// What a parent may not hold, its children together may not hold either. A parent that does
    /// not exist (yet), or a circle, makes the Queue Stalled, and it starts nothing meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub parent: Option<String>,
    /// Its part of what its parent has, beside the weights of its siblings that have work.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1, max = 10000))]
    pub weight: i32,
    /// What its tasks get back from other queues when they need it; what they do not use, others
    /// may borrow. Guarantees of siblings add up to at most their parent's, or the fleet; what is
    /// above that cannot be kept and is told by the condition Stalled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    pub guarantee: Option<Resources>,
    /// Most that the queue's tasks, and those of the queues below it, may hold at once, per
    /// resource; a resource that is absent is not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    pub limit: Option<Resources>,
    /// How it gets its guarantee back from queues that borrowed it.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
    /// Requests of tasks that state none, per resource. Where the Queue says nothing either: 100m cpu and 64Mi memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    pub default_resources: Option<Resources>,
    /// Who goes first inside the queue.
    #[serde(default)]
    pub order: QueueOrder,
    /// What may start past a Job that waits for room.
    #[serde(default)]
    pub backfill: Backfill,
    /// How nodes are chosen among those that fit.
    #[serde(default)]
    pub placement: Placement,
    /// Whom its Jobs may evict.
    #[serde(default)]
    pub preemption: QueuePreemption,
    /// Highest priority that counts here; a higher one of a Job counts as this. Absent: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1000000, max = 1000000))]
    pub max_priority: Option<i32>,
    /// After this long, use that is over counts half when shares are compared. 0: only what is
    /// held now counts.
    #[serde(default)]
    #[schemars(range(min = 0, max = 31536000))]
    pub usage_half_life_seconds: i64,
}

impl Default for QueueSpec {
    fn default() -> Self {
        QueueSpec {
            parent: None,
            weight: default_weight(),
            guarantee: None,
            limit: None,
            reclaim_policy: ReclaimPolicy::default(),
            default_resources: None,
            order: QueueOrder::default(),
            backfill: Backfill::default(),
            placement: Placement::default(),
            preemption: QueuePreemption::default(),
            max_priority: None,
            usage_half_life_seconds: 0,
        }
    }
}

fn default_weight() -> i32 {
    1
}

/// How a queue gets back what others borrowed of its guarantee.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ReclaimPolicy {
    /// Tasks of queues above their own guarantee are evicted for it.
    #[default]
    PreemptBorrowers,
    /// The same, and also until its share by weight is level with its siblings'.
    PreemptToShare,
    /// It waits until what they hold becomes free.
    WhenIdle,
}

/// Order inside a queue. Ties go by priority, then creation time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum QueueOrder {
    /// By creation time.
    Fifo,
    /// By priority, then creation time.
    #[default]
    Priority,
    /// By how long one task is expected to run, shortest first.
    ShortestJobFirst,
    /// By how much work is left: expected time times tasks that have not finished.
    ShortestRemainingTimeFirst,
    /// By namespace: the one whose tasks used least goes first, with `usageHalfLifeSeconds` as memory.
    Fair,
}

/// What may start past a Job that waits for room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Backfill {
    /// Everything that fits; a Job that needs much room may wait for long.
    Off,
    /// What does not delay the first Job that waits: that one holds a reservation for the earliest
    /// time at which it can start, by the expected durations of what runs.
    #[default]
    Easy,
    /// What delays none of the Jobs before it: each holds a reservation.
    Conservative,
}

/// How nodes are chosen among those that fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Placement {
    /// Fullest node first.
    #[default]
    BinPack,
    /// Emptiest node first.
    Spread,
    /// The node where the task leaves most room that waiting and running kinds of tasks can use;
    /// for fleets with shared devices.
    Fragmentation,
}

/// Whom a queue's Jobs may evict, and how often. Eviction for its guarantee is said by `reclaimPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueuePreemption {
    /// Whether a Job of the queue may evict tasks of the same queue.
    #[serde(default)]
    pub within_queue: WithinQueue,
    /// Most tasks that are evicted for this queue's Jobs in an hour, for either reason.
    #[serde(default = "default_budget")]
    #[schemars(range(min = 0, max = 1000000))]
    pub budget_per_hour: i32,
}

impl Default for QueuePreemption {
    fn default() -> Self {
        QueuePreemption {
            within_queue: WithinQueue::default(),
            budget_per_hour: default_budget(),
        }
    }
}

/// Low enough that a mistake in priorities does not turn a whole fleet over, high enough for daily work.
fn default_budget() -> i32 {
    1000
}

/// Which tasks of its own queue a Job may evict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum WithinQueue {
    /// None.
    Never,
    /// Those of lower priority.
    #[default]
    LowerPriority,
}

/// What is observed of a Queue; written by placement. Figures include the queues below it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// Generation that this status reflects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What its tasks hold now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub used: Option<Resources>,
    /// The part of `spec.guarantee` that can be kept now: no more than what its parent, or the
    /// fleet, has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub guaranteed: Option<Resources>,
    /// What its tasks hold above `guaranteed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub borrowed: Option<Resources>,
    /// What of `guaranteed` tasks of other queues hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub lent: Option<Resources>,
    /// The largest part that it holds of any one resource of the fleet, as a decimal number from 0
    /// to 1 with up to three places: `0.25` is a quarter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[0-9]+(\.[0-9]{1,3})?$"))]
    pub dominant_share: Option<String>,
    /// The dominant share that it is owed now by weights and guarantees, in the same form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[0-9]+(\.[0-9]{1,3})?$"))]
    pub fair_share: Option<String>,
    /// Tasks that have a node.
    #[serde(default)]
    pub running: i32,
    /// Tasks that wait.
    #[serde(default)]
    pub waiting: i32,
    /// Work of its tasks that evictions for other Jobs threw away, in resource-seconds since the
    /// queue was made: `cpu: 3600` is one cpu for an hour, memory is in byte-seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub wasted_by_preemption: Option<Resources>,
    /// Typed facts: Ready, Reconciling, Stalled. Stalled has the reason ParentNotFound, Cycle or
    /// GuaranteeTooLarge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Option<Vec<Condition>>,
}
