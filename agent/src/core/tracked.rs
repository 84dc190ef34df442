//! What the agent knows of one task: what the API wants, what its runs did, what it holds of the
//! node. Kept by uid; nothing here decides or sends.
//!
//! Promise: the [`Tag`] that goes with every start is enough to know a task again after the agent
//! was replaced, before the API was heard.

use std::collections::BTreeMap;

use rota_api::kinds::Port;
use rota_supervisor::protocol::{Exit, Started};
use serde::{Deserialize, Serialize};

use crate::logs::Attempt;
use crate::plan::{Desired, Observed};

/// What the supervisor keeps for us about a start.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Tag {
    pub(super) ns: String,
    pub(super) n: String,
    pub(super) u: String,
    pub(super) ju: String,
    pub(super) i: i32,
    pub(super) a: i32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) p: Vec<Port>,
    #[serde(default)]
    pub(super) rq: BTreeMap<String, i64>,
}

/// Everything about one task.
pub(super) struct Tracked {
    pub(super) desired: Option<Desired>,
    pub(super) generation: i64,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) observed: Observed,
    pub(super) tag: Tag,
    /// Supervisor of the newest run.
    pub(super) supervisor: Option<u64>,
    pub(super) started: Option<Started>,
    /// Exits to acknowledge once the terminal status is taken.
    pub(super) acks: Vec<(u64, String)>,
    /// Its requests count against the node.
    pub(super) charged: bool,
    pub(super) last_exit: Option<Exit>,
    /// Its directories were given away.
    pub(super) tidied: bool,
}

impl Tracked {
    pub(super) fn attempt(&self) -> Attempt {
        (self.tag.ju.clone(), self.tag.i, self.tag.a)
    }
    pub(super) fn run_id(&self) -> String {
        format!("{}.{}", self.tag.u, self.observed.restarts)
    }
    pub(super) fn path(&self) -> String {
        format!(
            "/apis/rota.dev/v1/namespaces/{}/tasks/{}",
            self.tag.ns, self.tag.n
        )
    }
}

/// Uid and number of the run from a run's id.
pub(super) fn split(id: &str) -> Option<(&str, u32)> {
    let (uid, n) = id.rsplit_once('.')?;
    Some((uid, n.parse().ok()?))
}
