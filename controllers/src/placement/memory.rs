//! Memory: everything that placement knows, advanced by watched changes and by the answers to its
//! own writes. No I/O and no clock here, so that a simulation can drive it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use rota_api::names::{ANNOTATION_EPOCH, LABEL_AGENT};
use rota_api::{Job, JobLedger, JobRevision, JobType, Queue, Resources};
use rota_scheduler::check;
use rota_scheduler::{Class, Cluster, QueueId, TaskId};

use super::ask::{Ids, Terms};
use super::body::{Mould, Owner};
use super::book::Book;
use super::fold::{End, Rules};
use super::need;
use super::node::node_spec;
use super::outlook::Outlook;
use super::promise::{Behind, Promised};
use crate::lifecycle::{Hold, Wanted};
use crate::runtime::{Change, Key, Note};

/// How long the Task of a succeeded index is kept, and how many per Job.
pub(super) const KEEP_SUCCEEDED: (SignedDuration, usize) = (SignedDuration::from_secs(60), 1000);
/// The same for failed and lost ones.
pub(super) const KEEP_FAILED: (SignedDuration, usize) = (SignedDuration::from_secs(3600), 100);

/// Where a Task stands between its creation and its removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// It has a node whose present tasks must leave first: nothing is written yet.
    Promised,
    /// Its create is on its way, or nobody knows.
    Creating,
    /// It occupies its index.
    Live,
    /// It ended; the ledger does not show it yet.
    Folding,
    /// It may be removed as far as the ledger goes.
    Folded,
    /// Another attempt has taken its place, or its Job is gone, and it still runs.
    Superseded,
}

#[derive(Debug)]
pub(super) struct TaskMem {
    pub job: u64,
    pub uid: Option<String>,
    pub index: u32,
    pub attempt: u32,
    pub node: String,
    /// What it holds in the cluster; none once it ended.
    pub held: Option<TaskId>,
    pub stand: Stand,
    pub end: Option<End>,
    pub deleting: bool,
    pub stop_sent: bool,
    pub remove_sent: bool,
}

/// What is needed to make Tasks of a Job now.
pub(super) struct Make {
    pub mould: Mould,
    pub class: Class,
    pub queue: QueueId,
}

pub(super) struct JobMem {
    pub owner: Owner,
    /// None when the Job's object is gone and only remains are left to clear.
    pub job: Option<Arc<Job>>,
    pub rules: Rules,
    pub book: Book,
    pub wanted: Wanted,
    pub n: u32,
    pub make: Option<Make>,
    pub terms: Option<Terms>,
    /// All its Tasks that exist or may exist.
    pub tasks: BTreeSet<Key>,
    /// Tasks whose fold is not acknowledged, by index.
    pub folding: BTreeMap<u32, Key>,
    /// Finished Tasks that are kept, oldest first.
    pub kept: [BTreeSet<(Timestamp, Key)>; 2],
    /// Nothing of it fitted at the last look.
    pub starved: bool,
    /// What stood in its way then, beyond nodes and queue.
    pub behind: Option<Behind>,
    /// Creates were refused, or its gang gave up: nothing is tried before.
    pub paused_until: Option<Timestamp>,
    /// Since when its gang has nodes and too few running members.
    pub short_since: Option<Timestamp>,
    /// A write that ends the Job's deletion is on its way.
    pub releasing: bool,
    pub told: super::status::Told,
}

#[derive(Default)]
pub(super) struct QueueMem {
    pub queue: Option<Arc<Queue>>,
    pub told: Option<(serde_json::Value, i64)>,
    pub in_flight: bool,
    /// Resource-seconds thrown away by evictions in this term.
    pub wasted: BTreeMap<String, i64>,
    /// The same of earlier terms, as the status said when this one began.
    pub wasted_before: Option<BTreeMap<String, i64>>,
    /// Tasks evicted for it within the last hour, oldest first.
    pub evicted: VecDeque<Timestamp>,
}

impl QueueMem {
    /// Resource-seconds thrown away by evictions since the queue was made.
    pub fn wasted(&self) -> BTreeMap<String, i64> {
        let mut sum = self.wasted_before.clone().unwrap_or_default();
        for (resource, amount) in &self.wasted {
            let all = sum.entry(resource.clone()).or_default();
            *all = all.saturating_add(*amount);
        }
        sum
    }
}

/// See the module docs.
pub struct Memory {
    pub(super) cluster: Cluster,
    pub(super) jobs: BTreeMap<u64, JobMem>,
    pub(super) by_uid: HashMap<String, u64>,
    by_key: HashMap<Key, u64>,
    pub(super) serial: u64,
    pub(super) tasks: HashMap<Key, TaskMem>,
    pub(super) revisions: HashMap<Key, Arc<JobRevision>>,
    pub(super) queues: BTreeMap<String, QueueMem>,
    pub(super) epochs: HashMap<String, i64>,
    /// Ledgers found at the start, until their Job is seen.
    ledgers: HashMap<String, Vec<Arc<JobLedger>>>,
    /// Jobs to decide about again.
    pub(super) dirty: BTreeSet<u64>,
    /// Jobs with ready indexes and room.
    pub(super) hungry: BTreeSet<u64>,
    /// Capacity or limits changed since the last look at the hungry.
    pub(super) freed: bool,
    /// Ledger chunks to write.
    pub(super) chunks: BTreeSet<(u64, u32)>,
    pub(super) stops: BTreeSet<Key>,
    pub(super) removals: BTreeSet<Key>,
    /// Creates whose outcome is unknown, to be sent again.
    pub(super) resend: Vec<super::decide::Write>,
    /// Retention: when to remove what.
    pub(super) expiry: BTreeSet<(Timestamp, Key)>,
    /// Back-offs: when to look at which Job.
    pub(super) wakes: BTreeSet<(Timestamp, u64)>,
    /// Jobs whose status may need a word.
    pub(super) status: BTreeSet<u64>,
    /// Where the next look at them begins.
    pub(super) status_from: u64,
    pub(super) creating: usize,
    pub(super) namespaces: Ids<String>,
    /// By namespace and name.
    pub(super) gangs: Ids<(String, String)>,
    /// Jobs of each gang, by its number.
    pub(super) gang_jobs: HashMap<u64, BTreeSet<u64>>,
    /// Which Task holds what in the cluster.
    pub(super) holders: HashMap<TaskId, Key>,
    /// Tasks that have a node and are created when others have left it.
    pub(super) promised: Promised,
    pub(super) outlook: Outlook,
    /// What people should be told, until somebody takes it.
    pub(super) notes: Vec<Note>,
    /// Jobs that are being deleted or are gone, until nothing of them is left.
    pub(super) leaving: BTreeSet<u64>,
}

impl Memory {
    /// With the ledgers of a consistent view; everything else is told by changes: Queues, Nodes,
    /// JobRevisions, Jobs, then Tasks.
    pub fn new(ledgers: Vec<Arc<JobLedger>>) -> Self {
        let mut by_job: HashMap<String, Vec<Arc<JobLedger>>> = HashMap::new();
        for ledger in ledgers {
            by_job
                .entry(ledger.spec.job_uid.clone())
                .or_default()
                .push(ledger);
        }
        Memory {
            cluster: Cluster::new(),
            jobs: BTreeMap::new(),
            by_uid: HashMap::new(),
            by_key: HashMap::new(),
            serial: 0,
            tasks: HashMap::new(),
            revisions: HashMap::new(),
            queues: BTreeMap::new(),
            epochs: HashMap::new(),
            ledgers: by_job,
            dirty: BTreeSet::new(),
            hungry: BTreeSet::new(),
            freed: true,
            chunks: BTreeSet::new(),
            stops: BTreeSet::new(),
            removals: BTreeSet::new(),
            resend: Vec::new(),
            expiry: BTreeSet::new(),
            wakes: BTreeSet::new(),
            status: BTreeSet::new(),
            status_from: 0,
            creating: 0,
            namespaces: Ids::default(),
            gangs: Ids::default(),
            gang_jobs: HashMap::new(),
            holders: HashMap::new(),
            promised: Promised::default(),
            notes: Vec::new(),
            outlook: Outlook::default(),
            leaving: BTreeSet::new(),
        }
    }

    /// After everything of the consistent view was told: what is left of Jobs that are gone is cleared.
    pub fn complete(&mut self) {
        let uids: Vec<String> = self.ledgers.keys().cloned().collect();
        for uid in uids {
            if let Some(ledger) = self.ledgers.get(&uid).and_then(|l| l.first()).cloned() {
                let namespace = ledger.metadata.namespace.clone().unwrap_or_default();
                self.remains(&namespace, &ledger.spec.job_name, &uid);
            }
        }
    }

    /// A Node came, changed or went. Only nodes that our agents registered count.
    pub fn apply_node(&mut self, change: &Change<Node>) {
        let name = change.key.name();
        let ours = change.new.as_ref().filter(|node| {
            let labels = node.metadata.labels.as_ref();
            labels
                .and_then(|l| l.get(LABEL_AGENT))
                .is_some_and(|v| v == "true")
        });
        self.freed = true;
        let Some(node) = ours else {
            self.cluster.remove_node(name);
            self.epochs.remove(name);
            return;
        };
        let epoch = node.metadata.annotations.as_ref();
        let epoch = epoch.and_then(|a| a.get(ANNOTATION_EPOCH)?.parse().ok());
        self.epochs.insert(name.to_owned(), epoch.unwrap_or(0));
        self.cluster.upsert_node(name, node_spec(node));
    }

    /// A Queue came, changed or went.
    pub fn apply_queue(&mut self, change: &Change<Queue>) {
        let name = change.key.name().to_owned();
        let rules = |q: &Option<Arc<Queue>>| q.as_ref().map(|q| q.spec.clone());
        let memory = self.queues.entry(name.clone()).or_default();
        let changed = rules(&memory.queue) != rules(&change.new);
        memory.queue = change.new.clone();
        if memory.wasted_before.is_none()
            && let Some(queue) = &change.new
        {
            let status = queue.status.as_ref();
            let told = status.and_then(|s| s.wasted_by_preemption.as_ref());
            memory.wasted_before = Some(need::base(told.unwrap_or(&Resources::new())));
        }
        if changed || change.new.is_none() {
            let spec = change.new.as_ref().map(|q| need::queue(&q.spec));
            self.cluster.set_queue(&name, spec);
            self.freed = true;
            // Defaults of the Queue are part of what its Jobs' tasks ask for.
            for (serial, job) in &self.jobs {
                if job.job.as_ref().is_some_and(|j| j.spec.queue == name) {
                    self.dirty.insert(*serial);
                }
            }
        }
    }

    /// A JobRevision came or went.
    pub fn apply_revision(&mut self, change: &Change<JobRevision>) {
        match &change.new {
            Some(revision) => {
                self.revisions.insert(change.key.clone(), revision.clone());
                if let Some(serial) = self.by_uid.get(&revision.spec.job_uid) {
                    self.dirty.insert(*serial);
                }
            }
            None => {
                self.revisions.remove(&change.key);
            }
        }
    }

    /// A Job came, changed or went.
    pub fn apply_job(&mut self, change: &Change<Job>) {
        let uid = |job: &Arc<Job>| job.metadata.uid.clone().unwrap_or_default();
        let new = change.new.as_ref().map(uid);
        if let Some(old) = self.by_key.get(&change.key).copied()
            && let Some(job) = self.jobs.get_mut(&old)
            && Some(&job.owner.uid) != new.as_ref()
        {
            job.job = None;
            self.by_key.remove(&change.key);
            self.dirty.insert(old);
        }
        let (Some(job), Some(uid)) = (&change.new, new) else {
            return;
        };
        let serial = match self.by_uid.get(&uid) {
            Some(serial) => *serial,
            None => self.admit(change.key.namespace(), change.key.name(), &uid),
        };
        self.by_key.insert(change.key.clone(), serial);
        let left = self.jobs.get(&serial).map_or(0, JobMem::left);
        let terms = self.terms(job, left);
        self.set_terms(serial, Some(terms));
        if let Some(memory) = self.jobs.get_mut(&serial) {
            memory.rules = Rules::of(job);
            memory.job = Some(job.clone());
        }
        self.dirty.insert(serial);
        self.status.insert(serial);
    }

    /// Our number of the Job of this name.
    pub(super) fn serial_of(&self, namespace: &str, name: &str) -> Option<u64> {
        self.by_key.get(&Key::new(namespace, name)).copied()
    }

    /// The Job of this name as last seen.
    pub(super) fn job_named(&self, namespace: &str, name: &str) -> Option<Arc<Job>> {
        let serial = self.serial_of(namespace, name)?;
        self.jobs.get(&serial)?.job.clone()
    }

    fn admit(&mut self, namespace: &str, name: &str, uid: &str) -> u64 {
        self.serial += 1;
        let found = self.ledgers.remove(uid).unwrap_or_default();
        let book = Book::restore(found.iter().map(|ledger| {
            let version = ledger.metadata.resource_version.clone();
            (version.unwrap_or_default(), &ledger.spec)
        }));
        if book.unreadable {
            tracing::error!(
                namespace,
                name,
                "the Job's ledger cannot be read; nothing is started"
            );
        }
        let memory = JobMem {
            owner: Owner {
                namespace: namespace.into(),
                name: name.into(),
                uid: uid.into(),
            },
            job: None,
            rules: Rules {
                type_: JobType::Batch,
                backoff_limit: 0,
                policy: Vec::new(),
            },
            book,
            wanted: Wanted {
                hold: Hold::NotStarted,
                indexes: Default::default(),
                parallelism: 0,
                revision: String::new(),
            },
            n: 0,
            make: None,
            tasks: BTreeSet::new(),
            folding: BTreeMap::new(),
            kept: [BTreeSet::new(), BTreeSet::new()],
            starved: false,
            behind: None,
            terms: None,
            paused_until: None,
            short_since: None,
            releasing: false,
            told: Default::default(),
        };
        self.jobs.insert(self.serial, memory);
        self.by_uid.insert(uid.into(), self.serial);
        self.serial
    }

    /// A Job that is gone and has left something.
    pub(super) fn remains(&mut self, namespace: &str, name: &str, uid: &str) -> u64 {
        let serial = match self.by_uid.get(uid) {
            Some(serial) => *serial,
            None => self.admit(namespace, name, uid),
        };
        self.dirty.insert(serial);
        serial
    }

    /// Everything of a Job is gone.
    pub(super) fn forget(&mut self, serial: u64) {
        self.set_terms(serial, None);
        if let Some(job) = self.jobs.remove(&serial) {
            self.by_uid.remove(&job.owner.uid);
            let key = Key::new(&job.owner.namespace, &job.owner.name);
            if self.by_key.get(&key) == Some(&serial) {
                self.by_key.remove(&key);
            }
        }
        self.leaving.remove(&serial);
        self.hungry.remove(&serial);
        self.status.remove(&serial);
    }

    /// What is wrong with the picture that is decided on, one sentence each: sums that do not agree,
    /// nodes and limits that are overdrawn. A node that shrank or a limit that was lowered does
    /// that too, until enough tasks have ended. Costs one look at every task.
    pub fn broken_promises(&self) -> Vec<String> {
        let mut wrong = check::check(&self.cluster);
        wrong.extend(check::snapshot(&self.cluster, &BTreeMap::new()));
        wrong
    }
}
