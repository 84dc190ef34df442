//! JobLedger: what became of a Job's indexes. Internal: placement is the only writer.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Outcome of up to 4,096 consecutive indexes of a Job.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "rota.dev",
    version = "v1",
    kind = "JobLedger",
    plural = "jobledgers",
    singular = "jobledger",
    namespaced,
    derive = "PartialEq",
    printcolumn(name = "Job", type_ = "string", json_path = ".spec.jobName"),
    printcolumn(name = "Chunk", type_ = "integer", json_path = ".spec.chunk"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct JobLedgerSpec {
    /// The Job.
    #[schemars(length(min = 1, max = 52))]
    pub job_name: String,
    /// Its uid.
    #[schemars(length(min = 1, max = 64))]
    pub job_uid: String,
    /// Covers indexes `chunk * 4096 .. (chunk + 1) * 4096`.
    #[schemars(range(min = 0, max = 10000))]
    pub chunk: i32,
    /// Bitmap of succeeded indexes, base64, bit i of byte i/8 (least significant first), trailing zero bytes cut.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub succeeded: String,
    /// Bitmap of indexes that failed for good, likewise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub failed: String,
    /// Indexes (absolute, in decimal) whose next attempt is not 0.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 4096))]
    pub attempts: BTreeMap<String, LedgerAttempt>,
    /// Node on which the last attempt of finished indexes ran: node name to index ranges (`0-17,19`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 4096, "additionalProperties" = {"type": "string", "maxLength": 32768}))]
    pub last_nodes: BTreeMap<String, String>,
}

/// Where an index stands that was tried before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LedgerAttempt {
    /// Number of the next attempt; a fold applies only to this one.
    #[schemars(range(min = 0))]
    pub next: i32,
    /// Failures charged to `backoffLimit`, restarts in place included.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failures: i32,
    /// The next attempt starts no earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_time: Option<Time>,
    /// Exit code of the last failed attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit_code: Option<i32>,
    /// Work of earlier attempts that checkpoints have saved, in seconds: what the next one need not
    /// do again, as far as orders by remaining time go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub saved_seconds: Option<i64>,
}
