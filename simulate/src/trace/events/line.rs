//! The lines of an event log as they are written.

use std::collections::{BTreeMap, BTreeSet};

use rota_scheduler::{Backfill, Order, Policy, Reclaim, Time};
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds.
    pub time: Time,
    /// What.
    #[serde(flatten)]
    pub kind: Kind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Kind {
    /// A node came or was changed.
    Node(Node),
    /// A queue came or was changed.
    Queue(Queue),
    /// A job came.
    Submit(Submit),
    /// A task got a node.
    Start {
        /// Its job.
        job: String,
        /// Which of the job's tasks.
        #[serde(default)]
        index: u32,
        /// Where.
        node: String,
    },
    /// A task ended and will not run again.
    End {
        /// Its job.
        job: String,
        /// Which of the job's tasks.
        #[serde(default)]
        index: u32,
    },
    /// A task was stopped for others, or lost with its node; it waits again.
    Evict {
        /// Its job.
        job: String,
        /// Which of the job's tasks.
        #[serde(default)]
        index: u32,
    },
    /// A job was given up by its user.
    Cancel {
        /// Which.
        job: String,
    },
}

/// A node as logged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// It went away.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// It takes nothing new.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unschedulable: bool,
    /// What it has, in base units.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub allocatable: BTreeMap<String, i64>,
    /// Which of these come as whole devices.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub devices: BTreeSet<String>,
    /// Its labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Taints that keep tasks away, as `key` or `key=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<String>,
}

/// A queue as logged; absent fields are a queue's defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)] // The fields are those of `QueueSpec`.
pub struct Queue {
    pub name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub guarantee: BTreeMap<String, i64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limit: BTreeMap<String, i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reclaim: Option<ReclaimName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preempt_within: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backfill: Option<BackfillName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_life: Option<Time>,
}

/// A job as logged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Submit {
    /// Its name, of which there is one in a log.
    pub job: String,
    /// Its queue.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub queue: String,
    /// Whose it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// What kind of work, for learning run times.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub app: String,
    /// Higher goes first.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// Number of tasks; absent: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u32>,
    /// How many must start together; 0: none.
    #[serde(skip_serializing_if = "is_zero_u32")]
    pub min: u32,
    /// What each task asks for, in base units.
    pub requests: BTreeMap<String, i64>,
    /// Labels that its nodes must have, each with the values of which one must be there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<String, Vec<String>>,
    /// Taints that it accepts, as `key` or `key=value`; `*` is all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<String>,
    /// Milliseconds within which its user promised its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Time>,
    /// Milliseconds that tasks run whose start and end are not logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Time>,
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

fn is_zero_u32(n: &u32) -> bool {
    *n == 0
}

/// Names of the enums of a queue's rules, as the Queue kind writes them.
macro_rules! names {
    ($name:ident for $of:ident: $($variant:ident),+) => {
        #[doc = concat!("Names of [`", stringify!($of), "`].")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[allow(missing_docs)]
        pub enum $name { $($variant),+ }
        impl From<$name> for $of {
            fn from(name: $name) -> Self {
                match name { $($name::$variant => $of::$variant),+ }
            }
        }
        impl From<$of> for $name {
            fn from(of: $of) -> Self {
                match of { $($of::$variant => $name::$variant),+ }
            }
        }
    };
}
names!(OrderName for Order: Fifo, Priority, ShortestJobFirst, ShortestRemainingTimeFirst, Fair);
names!(PolicyName for Policy: BinPack, Spread, Fragmentation);
names!(BackfillName for Backfill: Off, Easy, Conservative);
names!(ReclaimName for Reclaim: PreemptBorrowers, PreemptToShare, WhenIdle);
