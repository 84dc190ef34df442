//! The kinds that have a shared informer, and how each is indexed.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node};
use rota_api::names::NODE_LEASE_NAMESPACE;
use rota_api::{Job, JobLedger, JobRevision, Queue, Task};

use super::cache::Index;
use super::informer::Cached;

/// Index of Tasks, JobLedgers and JobRevisions: the uid of their Job.
pub const BY_JOB_UID: &str = "job-uid";
/// Index of Tasks: their node.
pub const BY_NODE: &str = "node";
/// Index of Jobs: their queue.
pub const BY_QUEUE: &str = "queue";

impl Cached for Job {
    const INDEXES: &'static [Index<Self>] = &[Index {
        name: BY_QUEUE,
        of: |j| Some(&j.spec.queue),
    }];
}

impl Cached for Task {
    const INDEXES: &'static [Index<Self>] = &[
        Index {
            name: BY_JOB_UID,
            of: |t| Some(&t.spec.job_uid),
        },
        Index {
            name: BY_NODE,
            of: |t| Some(&t.spec.node_name),
        },
    ];
}

impl Cached for JobLedger {
    const INDEXES: &'static [Index<Self>] = &[Index {
        name: BY_JOB_UID,
        of: |l| Some(&l.spec.job_uid),
    }];
}

impl Cached for JobRevision {
    const INDEXES: &'static [Index<Self>] = &[Index {
        name: BY_JOB_UID,
        of: |r| Some(&r.spec.job_uid),
    }];
}

impl Cached for Queue {}
impl Cached for Node {}
impl Cached for Namespace {}

/// Only the heartbeats of nodes.
impl Cached for Lease {
    const NAMESPACE: Option<&'static str> = Some(NODE_LEASE_NAMESPACE);
}
