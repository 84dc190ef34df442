//! TaskSpec: how one task runs. It is part of a Job's template and, frozen, of a JobRevision.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::affinity::{Affinity, Spread};
use super::common::{Port, Resources};

/// How one task runs: a process on the node's own file system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskSpec {
    /// Program and its first arguments, not run in a shell. A name without a slash is looked up in
    /// the task's PATH. `$(VAR)` is replaced from `env` and the ROTA_ variables; `$$(VAR)` stays as `$(VAR)`.
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-list-type" = "atomic"), inner(length(max = 131072)))]
    pub command: Vec<String>,
    /// Further arguments, appended to `command`; `$(VAR)` is replaced likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), extend("x-kubernetes-list-type" = "atomic"), inner(length(max = 131072)))]
    pub args: Option<Vec<String>>,
    /// Directory to start in. Absent: the attempt's own fresh work directory. Relative: below that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub working_dir: Option<String>,
    /// Environment variables, added to PATH, HOME and the ROTA_ variables; nothing else is inherited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Option<Vec<EnvVar>>,
    /// What the task needs and what it may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Ports that the task listens on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub ports: Option<Vec<Port>>,
    /// OnFailure restarts a failed process in place (counted in `restarts` and against
    /// `backoffLimit`); Always also restarts one that succeeded; Never makes a new attempt, perhaps
    /// on another node. Default: Never for Batch, Always for Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// Labels that a node must carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Which nodes the task needs and prefers, and which tasks it wants near it or away from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How tasks are levelled out over racks, zones or other domains; all of these hold together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["topologyKey", "whenUnsatisfiable"]))]
    pub spread: Option<Vec<Spread>>,
    /// Taints that the task accepts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Option<Vec<Toleration>>,
    /// Seconds between the kill signal and SIGKILL when a task is stopped. Default 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub termination_grace_period_seconds: Option<i64>,
    /// Signal that asks the task to stop. Default SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_signal: Option<KillSignal>,
}

/// What happens in place when a task's process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RestartPolicy {
    /// Restart whatever the exit code.
    Always,
    /// Restart after a failure.
    OnFailure,
    /// Never restart in place.
    Never,
}

/// Signals that may ask a task to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum KillSignal {
    SIGTERM,
    SIGINT,
    SIGQUIT,
    SIGHUP,
    SIGUSR1,
    SIGUSR2,
    SIGKILL,
}

/// Resource requests and limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceRequirements {
    /// What is set aside on the node. Where cpu or memory is absent the limit counts, else the Queue's default.
    /// Below one, a resource whose name ends in `/gpu` is a share of one device (`500m` is half of
    /// it); from one on it counts whole devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    pub requests: Option<Resources>,
    /// Most the task may use; cpu and memory are enforced where the host has cgroups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    pub limits: Option<Resources>,
}

/// One environment variable: a value, or where to take it from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!(has(self.value) && has(self.valueFrom))", "message": "value and valueFrom exclude each other"}]))]
pub struct EnvVar {
    /// Name of the variable.
    #[schemars(
        length(min = 1, max = 256),
        regex(pattern = r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")
    )]
    pub name: String,
    /// The value; `$(VAR)` refers to variables defined before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 131072))]
    pub value: Option<String>,
    /// Where the value comes from; the agent reads it when the task starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvVarSource>,
}

/// Source of an environment variable; `type` names the one field that is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "(self.type == 'Secret') == has(self.secret) && (self.type == 'ConfigMap') == has(self.configMap) && (self.type == 'Field') == has(self.field)", "message": "set exactly the field that type names: secret, configMap or field"}]))]
pub struct EnvVarSource {
    /// Which source.
    #[serde(rename = "type")]
    pub type_: EnvVarSourceType,
    /// A key of a Secret in the Job's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<KeyReference>,
    /// A key of a ConfigMap in the Job's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<KeyReference>,
    /// A field of the Task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<FieldReference>,
}

/// Kind of an [`EnvVarSource`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EnvVarSourceType {
    /// A Secret's key.
    Secret,
    /// A ConfigMap's key.
    ConfigMap,
    /// A field of the Task.
    Field,
}

/// A key of a Secret or ConfigMap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyReference {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
    /// Start without the variable when the object or key is missing. Default false: the task fails with the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
}

/// A field of the Task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FieldReference {
    /// `metadata.name`, `metadata.namespace`, `metadata.uid`, `metadata.labels['KEY']`,
    /// `metadata.annotations['KEY']`, `spec.nodeName`, `spec.index` or `spec.attempt`.
    #[schemars(length(min = 1, max = 512))]
    pub field_path: String,
}

/// A taint that is accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    /// Taint key; absent with operator Exists matches every taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317))]
    pub key: Option<String>,
    /// Equal (default) compares the value, Exists does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,
    /// Taint value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// Effect; absent matches all effects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

/// How a toleration compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum TolerationOperator {
    Equal,
    Exists,
}

/// What a taint does to tasks that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    /// Nothing new is placed.
    NoSchedule,
    /// Other nodes are tried first.
    PreferNoSchedule,
    /// Nothing new is placed and what runs is evicted.
    NoExecute,
}
