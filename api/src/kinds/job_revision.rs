//! JobRevision: one immutable template of a Job, so that Tasks need not carry it.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::job::{OnLost, TaskTemplate};

/// A frozen template. Named `<job>-<hash of template>`, owned by the Job, kept while a Task refers to it.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "rota.dev",
    version = "v1",
    kind = "JobRevision",
    plural = "jobrevisions",
    singular = "jobrevision",
    category = "rota",
    namespaced,
    derive = "PartialEq",
    printcolumn(name = "Job", type_ = "string", json_path = ".spec.jobName"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct JobRevisionSpec {
    /// The Job.
    #[schemars(length(min = 1, max = 52))]
    pub job_name: String,
    /// Its uid.
    #[schemars(length(min = 1, max = 64))]
    pub job_uid: String,
    /// The Job's rule for lost nodes, which the agent needs to fence itself.
    #[serde(default)]
    pub on_lost: OnLost,
    /// The template.
    pub template: TaskTemplate,
}
