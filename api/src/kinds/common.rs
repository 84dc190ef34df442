//! Pieces that several kinds share.

use std::collections::BTreeMap;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::quantity::Quantity;

/// Amounts of named resources: `cpu`, `memory`, `ephemeral-storage`, `nvidia.com/gpu` or any
/// extended resource.
pub type Resources = BTreeMap<String, Quantity>;

/// Labels and annotations that a template gives to what is made from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateMeta {
    /// Labels of every Task made from the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations of every Task made from the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A named port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Name, unique in the task: lower-case letters, digits and dashes. The task finds its number in `$PORT_<NAME>`.
    #[schemars(
        length(min = 1, max = 15),
        regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Port number. 0 takes a free one from the node's dynamic range (20000-31999 by default); a
    /// fixed number must lie outside that range, and only one task per node can have it.
    #[schemars(range(min = 0, max = 65535))]
    #[serde(default)]
    pub port: i32,
}
