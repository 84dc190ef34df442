//! What a Job may run, as pure functions of the Job and its ledger. The job controller tells it,
//! placement carries it out; both decide here.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::Arc;

use rota_api::index_set::IndexSet;
use rota_api::names::{FINALIZER_LEDGER, LEDGER_CHUNK, short_hash};
use rota_api::{After, AfterCondition, Job, JobLedger, JobType, LedgerAttempt, Task, TaskPhase};

/// All chunks of a Job's ledger together.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Indexes that succeeded.
    pub succeeded: IndexSet,
    /// Indexes that failed for good.
    pub failed: IndexSet,
    /// Indexes that were tried before.
    pub attempts: BTreeMap<u32, LedgerAttempt>,
    /// A chunk cannot be read: nothing may be started or stopped by it.
    pub unreadable: bool,
}

impl Ledger {
    /// From the chunks.
    pub fn of<L: Borrow<JobLedger>>(chunks: &[L]) -> Self {
        let mut ledger = Ledger::default();
        for chunk in chunks {
            let chunk: &JobLedger = chunk.borrow();
            let base = (chunk.spec.chunk.max(0) as u32).saturating_mul(LEDGER_CHUNK);
            let mut unreadable = false;
            let mut read = |text: &str| {
                IndexSet::from_bitmap(text, base, LEDGER_CHUNK).unwrap_or_else(|error| {
                    tracing::error!(job = %chunk.spec.job_name, %error, "ledger bitmap");
                    unreadable = true;
                    IndexSet::new()
                })
            };
            let (succeeded, failed) = (read(&chunk.spec.succeeded), read(&chunk.spec.failed));
            ledger.succeeded = ledger.succeeded.union(&succeeded);
            ledger.failed = ledger.failed.union(&failed);
            ledger.unreadable |= unreadable;
            for (index, attempt) in &chunk.spec.attempts {
                if let Ok(index) = index.parse() {
                    ledger.attempts.insert(index, attempt.clone());
                }
            }
        }
        ledger
    }
}

/// Why a Job runs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It runs.
    No,
    /// It is being deleted.
    Deleted,
    /// Complete or Failed.
    Finished,
    /// `spec.suspend`.
    Suspended,
    /// The job controller has not started it: new, or an `after` edge is open.
    NotStarted,
    /// Its ledger cannot be read: what became of its indexes is unknown, so nothing is touched.
    LedgerUnreadable,
}

/// What a Job wants to run now.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Why nothing, if nothing: then every live Task of the Job is surplus.
    pub hold: Hold,
    /// Indexes (Service: replica slots) that shall have a Task, before `parallelism`.
    pub indexes: IndexSet,
    /// Most Tasks at once.
    pub parallelism: u32,
    /// Name of the JobRevision for new Tasks; it exists.
    pub revision: String,
}

impl Wanted {
    /// Whether anything may run.
    pub fn runnable(&self) -> bool {
        self.hold == Hold::No
    }

    /// How many more Tasks are wanted when `live` indexes have one.
    pub fn missing(&self, live: &IndexSet) -> u32 {
        if !self.runnable() {
            return 0;
        }
        let room = u64::from(self.parallelism).saturating_sub(live.len());
        let open = self.indexes.difference(live).len();
        room.min(open).min(u64::from(u32::MAX)) as u32
    }
}

/// Number of indexes of a Batch Job.
pub fn completions(job: &Job) -> u32 {
    job.spec.completions.unwrap_or(1).max(1) as u32
}

/// Most Tasks at once.
pub fn parallelism(job: &Job) -> u32 {
    let default = match job.spec.type_ {
        JobType::Batch => completions(job),
        JobType::Service => 1,
    };
    job.spec.replicas.map_or(default, |r| r.max(0) as u32)
}

/// Whether the condition of this type is True.
pub fn is_true(job: &Job, type_: &str) -> bool {
    job.status
        .as_ref()
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|c| c.iter().any(|c| c.type_ == type_ && c.status == "True"))
}

/// Complete or Failed; both are final.
pub fn is_finished(job: &Job) -> bool {
    is_true(job, "Complete") || is_true(job, "Failed")
}

/// Whether placement's finalizer is on the Job; without it nothing is started.
pub fn is_guarded(job: &Job) -> bool {
    job.metadata
        .finalizers
        .as_ref()
        .is_some_and(|f| f.iter().any(|f| f == FINALIZER_LEDGER))
}

/// Name of the JobRevision of the present template.
pub fn revision_name(job: &Job) -> String {
    // A fixed field order and no nulls: the same template always gives the same text.
    let template = serde_json::to_string(&job.spec.template).unwrap_or_default();
    let on_lost = format!("{:?}", job.spec.on_lost);
    let name = job.metadata.name.as_deref().unwrap_or("");
    format!("{name}-{}", short_hash(&[&template, &on_lost], 8))
}

/// What the Job wants to run now. The job controller has the first word: it sets
/// `status.startTime` when nothing blocks the Job and its JobRevision exists, and the conditions
/// that end it. Suspension and scale are taken from the spec at once.
pub fn wanted(job: &Job, ledger: &Ledger) -> Wanted {
    let status = job.status.as_ref();
    let revision = status.and_then(|s| s.revision.clone());
    let hold = if job.metadata.deletion_timestamp.is_some() {
        Hold::Deleted
    } else if is_finished(job) || (job.spec.type_ == JobType::Batch && !ledger.failed.is_empty()) {
        Hold::Finished
    } else if job.spec.suspend {
        Hold::Suspended
    } else if status.is_none_or(|s| s.start_time.is_none())
        || revision.is_none()
        || !is_guarded(job)
    {
        Hold::NotStarted
    } else if ledger.unreadable {
        Hold::LedgerUnreadable
    } else {
        Hold::No
    };
    let indexes = match job.spec.type_ {
        JobType::Batch => IndexSet::below(completions(job))
            .difference(&ledger.succeeded)
            .difference(&ledger.failed),
        JobType::Service => IndexSet::below(parallelism(job)),
    };
    Wanted {
        hold,
        indexes,
        parallelism: parallelism(job),
        revision: revision.unwrap_or_default(),
    }
}

/// The phase of a Task; one that its agent has not seen is Starting.
pub fn phase(task: &Task) -> TaskPhase {
    task.status
        .as_ref()
        .and_then(|s| s.phase)
        .unwrap_or(TaskPhase::Starting)
}

/// Occupies its index: not terminal.
pub fn is_live(task: &Task) -> bool {
    !phase(task).is_terminal()
}

fn is_leaving(task: &Task) -> bool {
    task.metadata.deletion_timestamp.is_some()
}

/// Live Tasks that shall be stopped (deleted), of all of the Job's Tasks: everything when the Job
/// runs nothing; otherwise what is beyond its scale (the least advanced and highest indexes first)
/// and at most one Task that makes room for a new revision of a Service.
pub fn surplus(job: &Job, wanted: &Wanted, tasks: &[Arc<Task>]) -> Vec<Arc<Task>> {
    let mut live: Vec<&Arc<Task>> = tasks.iter().filter(|t| is_live(t)).collect();
    if !wanted.runnable() {
        // Without a decision on a start there is nothing to take back either.
        if matches!(wanted.hold, Hold::NotStarted | Hold::LedgerUnreadable) {
            return Vec::new();
        }
        live.retain(|t| !is_leaving(t));
        return live.into_iter().cloned().collect();
    }
    match job.spec.type_ {
        JobType::Batch => {
            let keep = wanted.parallelism as usize;
            let leaving = live.iter().filter(|t| is_leaving(t)).count();
            let excess = live.len().saturating_sub(keep).saturating_sub(leaving);
            live.retain(|t| !is_leaving(t));
            live.sort_by_key(|t| {
                (
                    phase(t) == TaskPhase::Running,
                    std::cmp::Reverse(t.spec.index),
                )
            });
            live.truncate(excess);
            live.into_iter().cloned().collect()
        }
        JobType::Service => {
            let (inside, outside): (Vec<_>, Vec<_>) = live
                .into_iter()
                .partition(|t| wanted.indexes.contains(t.spec.index.max(0) as u32));
            outside
                .into_iter()
                .filter(|t| !is_leaving(t))
                .chain(replaceable(wanted, &inside))
                .cloned()
                .collect()
        }
    }
}

/// The one Task of a Service that may go now for a newer revision: only when no replacement is
/// under way, those that do not run first.
fn replaceable<'a>(wanted: &Wanted, live: &[&'a Arc<Task>]) -> Option<&'a Arc<Task>> {
    let mut slots = IndexSet::new();
    for task in live {
        slots.insert(task.spec.index.max(0) as u32);
    }
    let whole = wanted.indexes.difference(&slots).is_empty();
    let settled = live.iter().all(|t| {
        !is_leaving(t) && (t.spec.revision != wanted.revision || phase(t) == TaskPhase::Running)
    });
    if !whole || !settled {
        return None;
    }
    live.iter()
        .filter(|t| t.spec.revision != wanted.revision)
        .min_by_key(|t| (phase(t) == TaskPhase::Running, t.spec.index))
        .copied()
}

/// How a Job's `after` edges stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edges {
    /// Nothing is waited for.
    Open,
    /// These are waited for, in words.
    Waiting(String),
    /// Can no longer come true without somebody's help, in words.
    Never(String),
    /// Waits for itself, through these names.
    Cycle(Vec<String>),
}

/// Longest chain of edges that is followed in search of a cycle.
const CHAIN_MAX: usize = 10_000;

/// How the edges of `job` stand, given the Jobs of its namespace. Edges count until the first start.
pub fn edges(job: &Job, find: &dyn Fn(&str) -> Option<Arc<Job>>) -> Edges {
    let started = job.status.as_ref().is_some_and(|s| s.start_time.is_some());
    let after = match &job.spec.after {
        Some(after) if !started && !after.is_empty() => after,
        _ => return Edges::Open,
    };
    if let Some(cycle) = cycle(job, find) {
        return Edges::Cycle(cycle);
    }
    let mut waiting = Vec::new();
    for edge in after {
        let Some(other) = find(&edge.job) else {
            waiting.push(format!("Job {} does not exist", edge.job));
            continue;
        };
        let complete = is_true(&other, "Complete");
        let failed = is_true(&other, "Failed");
        let met = match edge.condition {
            AfterCondition::Succeeded => complete,
            AfterCondition::Failed => failed,
            AfterCondition::Finished => complete || failed,
        };
        if met {
            continue;
        }
        if complete || failed {
            let is = if complete {
                "has succeeded"
            } else {
                "has failed"
            };
            let word = word(edge);
            return Edges::Never(format!("waits for Job {} to {word}, but it {is}", edge.job));
        }
        waiting.push(format!("waits for Job {} to {}", edge.job, word(edge)));
    }
    if waiting.is_empty() {
        Edges::Open
    } else {
        Edges::Waiting(waiting.join("; "))
    }
}

fn word(edge: &After) -> &'static str {
    match edge.condition {
        AfterCondition::Succeeded => "succeed",
        AfterCondition::Failed => "fail",
        AfterCondition::Finished => "finish",
    }
}

/// The names along a way from `job` back to itself.
fn cycle(job: &Job, find: &dyn Fn(&str) -> Option<Arc<Job>>) -> Option<Vec<String>> {
    let start = job.metadata.name.clone()?;
    // Name -> through whom it was reached.
    let mut reached: BTreeMap<String, String> = BTreeMap::new();
    let mut open: Vec<(String, String)> = job
        .spec
        .after
        .iter()
        .flatten()
        .map(|e| (e.job.clone(), start.clone()))
        .collect();
    while let Some((name, from)) = open.pop() {
        if name == start {
            let mut way = vec![start.clone()];
            let mut at = from;
            while at != start {
                way.push(at.clone());
                at = reached.get(&at)?.clone();
            }
            way.push(start);
            way.reverse();
            return Some(way);
        }
        if reached.contains_key(&name) || reached.len() > CHAIN_MAX {
            continue;
        }
        reached.insert(name.clone(), from);
        if let Some(next) = find(&name)
            && !is_finished(&next)
        {
            for edge in next.spec.after.iter().flatten() {
                open.push((edge.job.clone(), name.clone()));
            }
        }
    }
    None
}
