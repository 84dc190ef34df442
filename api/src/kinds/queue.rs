//! Queue: who pays for tasks, and how much at once.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::Resources;

/// A share of the fleet that Jobs are charged to.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "rota.dev",
    version = "v1",
    kind = "Queue",
    plural = "queues",
    singular = "queue",
    category = "rota",
    status = "QueueStatus",
    derive = "PartialEq",
    printcolumn(name = "Order", type_ = "string", json_path = ".spec.order"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.running"),
    printcolumn(name = "Waiting", type_ = "integer", json_path = ".status.waiting"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct QueueSpec {
    /// Most that the queue's tasks may hold at once, per resource; a resource that is absent is not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    pub limit: Option<Resources>,
    /// Requests of tasks that state none, per resource. Where the Queue says nothing either: 100m cpu and 64Mi memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    pub default_resources: Option<Resources>,
    /// Fifo goes by creation time; Priority by `priority`, then creation time.
    #[serde(default)]
    pub order: QueueOrder,
    /// BinPack fills nodes up, Spread levels them.
    #[serde(default)]
    pub placement: Placement,
}

/// Order inside a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum QueueOrder {
    /// By creation time; a Job that cannot start does not hold back later ones.
    Fifo,
    /// By priority, then creation time.
    #[default]
    Priority,
}

/// How nodes are chosen among those that fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Placement {
    /// Fullest node first.
    #[default]
    BinPack,
    /// Emptiest node first.
    Spread,
}

/// What is observed of a Queue; written by placement.
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
    /// Tasks that have a node.
    #[serde(default)]
    pub running: i32,
    /// Tasks that wait.
    #[serde(default)]
    pub waiting: i32,
    /// Typed facts: Ready, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Option<Vec<Condition>>,
}
