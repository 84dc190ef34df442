//! Job: work that users declare. Waiting work is a number on it; a Task exists only once it has a node.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::TemplateMeta;
use super::task_spec::TaskSpec;

/// A set of identical tasks: run to completion (Batch) or kept running (Service).
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "rota.dev",
    version = "v1",
    kind = "Job",
    plural = "jobs",
    singular = "job",
    shortname = "rj",
    category = "all",
    category = "rota",
    namespaced,
    status = "JobStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.running"),
    printcolumn(name = "Waiting", type_ = "integer", json_path = ".status.waiting"),
    printcolumn(name = "Succeeded", type_ = "integer", json_path = ".status.succeeded"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.failed"),
    printcolumn(
        name = "Type",
        type_ = "string",
        json_path = ".spec.type",
        priority = 1
    ),
    printcolumn(
        name = "Queue",
        type_ = "string",
        json_path = ".spec.queue",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct JobSpec {
    /// Batch runs tasks to completion; Service keeps `replicas` tasks running.
    #[serde(rename = "type", default)]
    pub type_: JobType,
    /// Queue that pays for the tasks.
    #[serde(default = "default_queue")]
    #[schemars(length(min = 1, max = 253))]
    pub queue: String,
    /// Higher goes first inside the queue.
    #[serde(default)]
    #[schemars(range(min = -1000000, max = 1000000))]
    pub priority: i32,
    /// Batch: tasks to complete, default 1. May only grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000000))]
    pub completions: Option<i32>,
    /// Tasks to run at once. Batch: an upper bound, default `completions`. Service: kept running, default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000000))]
    pub replicas: Option<i32>,
    /// True stops running tasks and starts none; what has completed stays completed.
    #[serde(default)]
    pub suspend: bool,
    /// How long one task is expected to run. Orders by shortest work, backfill and forecasts use it.
    /// Absent: learnt from earlier tasks of the same template. A Service has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 315360000))]
    pub expected_duration_seconds: Option<i64>,
    /// All or nothing: tasks start only when enough of them can start together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gang: Option<Gang>,
    /// Time by which the first task should have a node. The condition DeadlineFeasible says
    /// whether it can be kept; missing it stops nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_deadline_time: Option<Time>,
    /// Time by which the Job should have finished. The condition DeadlineFeasible says whether it
    /// can be kept; missing it stops nothing. A Service has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_deadline_time: Option<Time>,
    /// Whether running tasks may be evicted for others, and what that costs. Absent: they may, and
    /// start again from nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preemption: Option<JobPreemption>,
    /// Jobs of the same namespace that must have reached a condition before this one starts. A
    /// missing Job blocks; a cycle makes the Job Stalled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["job"]))]
    pub after: Option<Vec<After>>,
    /// Failures per index before the Job fails; attempts wait 1 s, 2 s, 4 s ... up to 5 min between
    /// each other. Evictions and lost nodes are not charged. A Service never fails by it. Default 6.
    #[serde(default = "default_backoff_limit")]
    #[schemars(range(min = 0, max = 1000000))]
    pub backoff_limit: i32,
    /// Rules by exit code, the first match counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), extend("x-kubernetes-list-type" = "atomic"))]
    pub failure_policy: Option<Vec<FailureRule>>,
    /// The Job fails, and its tasks are stopped, this many seconds after its start time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 315360000))]
    pub active_deadline_seconds: Option<i64>,
    /// The Job is deleted this many seconds after it finished. Absent: kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 315360000))]
    pub ttl_seconds_after_finished: Option<i64>,
    /// What happens to an index whose node was lost: Rerun starts it elsewhere at once and may
    /// overlap for a moment with a node that is only cut off; WaitForFence never overlaps.
    #[serde(default)]
    pub on_lost: OnLost,
    /// What each task runs. Immutable for Batch.
    pub template: TaskTemplate,
}

fn default_queue() -> String {
    "default".into()
}

fn default_backoff_limit() -> i32 {
    6
}

/// Kind of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum JobType {
    /// Run to completion.
    #[default]
    Batch,
    /// Keep running.
    Service,
}

/// An all-or-nothing start. What it says applies to tasks that have not started yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gang {
    /// Name of the gang. Jobs of the same namespace that name one gang start together. Default:
    /// the Job's own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// Jobs that the gang has: nothing of it starts before so many exist. Absent: those that exist;
    /// give it where Jobs of one gang are created one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub jobs: Option<i32>,
    /// Tasks of this Job that must have nodes at the same time; further ones join as room comes.
    /// Default: all that it may run at once. Never more than what is left to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000000))]
    pub min_available: Option<i32>,
    /// A gang that has nodes but does not run in full after this many seconds gives them back and
    /// waits again. Absent: it keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub timeout_seconds: Option<i64>,
}

/// What evicting a running task of a Job means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobPreemption {
    /// False: never evicted for other work. Drains and lost nodes still end tasks.
    #[serde(default = "yes")]
    pub preemptible: bool,
    /// How tasks save their work, which decides what an eviction loses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
}

impl Default for JobPreemption {
    fn default() -> Self {
        JobPreemption {
            preemptible: true,
            checkpoint: None,
        }
    }
}

fn yes() -> bool {
    true
}

/// How tasks save their work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// The task saves its work by itself this often: an eviction loses what came after the last
    /// time. Tasks that lose least are evicted first.
    #[schemars(range(min = 1, max = 31536000))]
    pub period_seconds: i64,
}

/// What to do about tasks of a lost node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnLost {
    /// Start elsewhere at once.
    #[default]
    Rerun,
    /// Start elsewhere only when the old task cannot run any more.
    WaitForFence,
}

/// One edge to an earlier Job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct After {
    /// Name of the Job waited for, in the same namespace.
    #[schemars(length(min = 1, max = 52))]
    pub job: String,
    /// What it must have done.
    #[serde(default)]
    pub condition: AfterCondition,
}

/// What an [`After`] edge waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AfterCondition {
    /// All of it succeeded.
    #[default]
    Succeeded,
    /// It failed.
    Failed,
    /// Either.
    Finished,
}

/// One rule of `failurePolicy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailureRule {
    /// Exit codes that this rule is about (128 + signal for a task ended by a signal).
    #[schemars(length(min = 1, max = 255), extend("x-kubernetes-list-type" = "set"), inner(range(min = 1, max = 255)))]
    pub on_exit_codes: Vec<i32>,
    /// What such a failure means.
    pub action: FailureAction,
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FailureAction {
    /// Try again without charging `backoffLimit`.
    Ignore,
    /// Charge `backoffLimit`, as without a rule.
    Count,
    /// The Job fails now.
    FailJob,
}

/// Template of a Job's tasks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskTemplate {
    /// Labels and annotations of the tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TemplateMeta>,
    /// How each task runs.
    pub spec: TaskSpec,
}

/// What is observed of a Job. Written by the job controller; `waitingFor` and the conditions
/// Admitted, Scheduled and DeadlineFeasible by placement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// Generation that this status reflects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people; derived from the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<JobPhase>,
    /// Live Tasks.
    #[serde(default)]
    pub replicas: i32,
    /// Tasks wanted now that have no node yet.
    #[serde(default)]
    pub waiting: i32,
    /// Tasks that have a node and have not started.
    #[serde(default)]
    pub starting: i32,
    /// Running tasks.
    #[serde(default)]
    pub running: i32,
    /// Running tasks that are ready.
    #[serde(default)]
    pub ready: i32,
    /// Indexes that succeeded.
    #[serde(default)]
    pub succeeded: i32,
    /// Indexes that failed for good.
    #[serde(default)]
    pub failed: i32,
    /// Attempts and restarts in place beyond the first of each index.
    #[serde(default)]
    pub restarts: i32,
    /// Indexes that succeeded, as ranges: `0-17,19`. Cut at 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub succeeded_indexes: Option<String>,
    /// Indexes that failed for good, as ranges. Cut at 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub failed_indexes: Option<String>,
    /// True when one of the two was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indexes_truncated: Option<bool>,
    /// When the Job first had something to run (not suspended, not blocked).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the Job finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Label selector of the Job's Tasks, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub selector: Option<String>,
    /// Name of the newest JobRevision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub revision: Option<String>,
    /// Why tasks wait, while any do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<WaitingFor>,
    /// Typed facts: Ready, Reconciling, Stalled, Admitted, Scheduled, Available, Complete, Failed, Suspended;
    /// and DeadlineFeasible, where the Job has a deadline: whether it can be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Option<Vec<Condition>>,
}

/// One word for a Job's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum JobPhase {
    /// Held by `suspend`.
    Suspended,
    /// Waits for another Job.
    Blocked,
    /// Nothing runs yet.
    Waiting,
    /// At least one task has a node.
    Running,
    /// All done.
    Succeeded,
    /// Given up; the condition Failed says why.
    Failed,
}

/// Why tasks wait and what would help.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaitingFor {
    /// All blockers at once.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub reasons: Vec<WaitReason>,
    /// The smallest change that would let one more task start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub smallest_change: Option<String>,
    /// When the next task is expected to start; absent where nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_start: Option<EstimatedStart>,
}

/// A forecast of a start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EstimatedStart {
    /// As likely before this time as after it.
    pub p50_time: Time,
    /// Nine times in ten before this time.
    pub p90_time: Time,
}

/// One blocker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaitReason {
    /// CamelCase word: InsufficientResource, NodeSelectorMismatch, TaintNotTolerated, PortInUse,
    /// NodeUnschedulable, NodeNotReady, NodeAffinityMismatch, Affinity, AntiAffinity, SpreadSkew, Gang,
    /// Reserved, QueueLimit, QueueNotFound, NoNodes, BackOff, AfterJob, NeverFits.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// The resource that lacks, where one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317))]
    pub resource: Option<String>,
    /// Nodes that this blocker rules out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<i32>,
    /// A sentence for people.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// Who holds most of what lacks, and until about when: Jobs, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub held_by: Option<String>,
}
