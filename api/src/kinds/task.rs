//! Task: one attempt of one index of a Job, bound to a node. Placement alone creates and removes it;
//! the agent alone writes its status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{Port, Resources};

/// One attempt of one index of a Job on a node. Small and fixed: what it runs is in its JobRevision.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "rota.dev",
    version = "v1",
    kind = "Task",
    plural = "tasks",
    singular = "task",
    category = "all",
    category = "rota",
    namespaced,
    status = "TaskStatus",
    derive = "PartialEq",
    selectable = ".spec.nodeName",
    selectable = ".spec.jobName",
    selectable = ".status.phase",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Index", type_ = "integer", json_path = ".spec.index"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Exit", type_ = "integer", json_path = ".status.exitCode"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.reason",
        priority = 1
    ),
    printcolumn(
        name = "Attempt",
        type_ = "integer",
        json_path = ".spec.attempt",
        priority = 1
    ),
    printcolumn(
        name = "Restarts",
        type_ = "integer",
        json_path = ".status.restarts",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct TaskBinding {
    /// The Job.
    #[schemars(length(min = 1, max = 52))]
    pub job_name: String,
    /// Its uid.
    #[schemars(length(min = 1, max = 64))]
    pub job_uid: String,
    /// Index in the Job (Service: replica slot).
    #[schemars(range(min = 0))]
    pub index: i32,
    /// Number of this attempt at the index, from 0.
    #[schemars(range(min = 0))]
    pub attempt: i32,
    /// The node's epoch at bind; the agent refuses a Task whose epoch is not its own.
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// Node that runs it.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// Queue that pays.
    #[schemars(length(min = 1, max = 253))]
    pub queue: String,
    /// The Job's priority at bind.
    #[serde(default)]
    pub priority: i32,
    /// What is set aside for it on the node.
    #[schemars(extend("maxProperties" = 32))]
    pub requests: Resources,
    /// Ports asked for; 0 where the agent picks one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub ports: Option<Vec<Port>>,
    /// JobRevision that says what it runs.
    #[schemars(length(min = 1, max = 253))]
    pub revision: String,
}

/// What the agent reports. A terminal phase never changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskStatus {
    /// Generation that this status reflects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it stands; absent until the agent has seen it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<TaskPhase>,
    /// Running and ready.
    #[serde(default)]
    pub ready: bool,
    /// Exit code of the last process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended the last process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// CamelCase cause of the phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub message: Option<String>,
    /// When the (last) process started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_time: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_time: Option<Time>,
    /// Ports as assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub ports: Option<Vec<Port>>,
    /// Address of the node for those ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub address: Option<String>,
    /// Process id on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i64>,
    /// Restarts in place.
    #[serde(default)]
    pub restarts: i32,
    /// Typed facts: Ready, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Option<Vec<Condition>>,
}

/// Where a Task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaskPhase {
    /// The agent prepares it.
    Starting,
    /// Its process runs.
    Running,
    /// Exit code 0.
    Succeeded,
    /// Anything else; reason and message say what.
    Failed,
    /// The node or the supervisor was lost; the exit code is unknown.
    Lost,
}

impl TaskPhase {
    /// Whether the phase never changes any more.
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            TaskPhase::Succeeded | TaskPhase::Failed | TaskPhase::Lost
        )
    }
}
