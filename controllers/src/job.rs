//! The job controller: tells what became of a Job, and gives placement the word to start.
//!
//! It owns the Job's JobRevisions and all of `Job.status` but `waitingFor` and the conditions
//! Admitted, Scheduled and DeadlineFeasible, which it leaves as they are. It writes a status when
//! the phase or a condition changes, and counts at most once a second.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use rota_api::index_set::IndexSet;
use rota_api::names::{FINALIZER_LEDGER, LABEL_JOB_UID};
use rota_api::{Job, JobLedger, JobPhase, JobRevision, JobStatus, JobType, Task, TaskPhase, Time};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::conditions;
use crate::lifecycle::{self, Edges, Hold, Ledger};
use crate::runtime::{
    BY_JOB_UID, Cache, Context, Controller, Failure, HandlerGuard, Informer, Informers, Key, Note,
    Plan, Queue, Regarding, Target, Verb, Write,
};

/// Counts alone are written at most this often per Job.
const STATUS_PERIOD: Duration = Duration::from_secs(1);
/// JobRevisions kept beside the present one and those that Tasks run.
const REVISIONS_KEPT: usize = 3;
/// Pause between looks per Task that a look counts, so that a large Job whose Tasks change by the
/// thousand costs a small part of a core.
const CALM_PER_TASK: Duration = Duration::from_micros(20);
/// Longest index text in a status.
const INDEX_TEXT: usize = 16 * 1024;

/// The job controller.
pub struct JobController {
    jobs: Informer<Job>,
    tasks: Informer<Task>,
    ledgers: Informer<JobLedger>,
    revisions: Informer<JobRevision>,
    written: Mutex<HashMap<Key, Instant>>,
    /// For each Job (by key), the Jobs that wait for it.
    dependants: Arc<Mutex<HashMap<Key, BTreeSet<Key>>>>,
}

/// A Job and what there is of it.
#[derive(Clone, Debug)]
pub struct World {
    /// The Job.
    pub job: Arc<Job>,
    /// What became of its indexes.
    pub ledger: Ledger,
    /// Its Tasks.
    pub tasks: Vec<Arc<Task>>,
    /// Its JobRevisions.
    pub revisions: Vec<Arc<JobRevision>>,
    /// How its `after` edges stand.
    pub edges: Edges,
    /// Time since its status was last written by this process.
    pub since_write: Option<Duration>,
}

impl Controller for JobController {
    const NAME: &'static str = "job";
    type World = World;

    fn new(ctx: &Context) -> Self {
        JobController {
            jobs: ctx.informers.get(),
            tasks: ctx.informers.get(),
            ledgers: ctx.informers.get(),
            revisions: ctx.informers.get(),
            written: Mutex::default(),
            dependants: Arc::default(),
        }
    }

    fn warm(informers: &Informers) {
        informers.get::<Job>();
        informers.get::<Task>();
        informers.get::<JobLedger>();
        informers.get::<JobRevision>();
    }

    async fn wire(&self, _ctx: &Context, queue: &Arc<Queue>) -> Vec<HandlerGuard> {
        tokio::join!(
            self.jobs.synced(),
            self.tasks.synced(),
            self.ledgers.synced(),
            self.revisions.synced(),
        );
        let (q, dependants) = (queue.clone(), self.dependants.clone());
        let jobs = self.jobs.on_change(move |change| {
            q.add(&change.key);
            let edges = |job: &Option<Arc<Job>>| -> BTreeSet<Key> {
                job.iter()
                    .flat_map(|j| j.spec.after.iter().flatten())
                    .map(|e| Key::new(change.key.namespace(), &e.job))
                    .collect()
            };
            let mut dependants = dependants.lock();
            for gone in edges(&change.old).difference(&edges(&change.new)) {
                if let Some(waiting) = dependants.get_mut(gone) {
                    waiting.remove(&change.key);
                    if waiting.is_empty() {
                        dependants.remove(gone);
                    }
                }
            }
            for edge in edges(&change.new) {
                dependants
                    .entry(edge)
                    .or_default()
                    .insert(change.key.clone());
            }
            for waiting in dependants.get(&change.key).into_iter().flatten() {
                q.add(waiting);
            }
        });
        let q = queue.clone();
        let tasks = self.tasks.on_change(move |change| {
            if let Some(task) = change.new.as_ref().or(change.old.as_ref()) {
                q.add(&Key::new(change.key.namespace(), &task.spec.job_name));
            }
        });
        let q = queue.clone();
        let ledgers = self.ledgers.on_change(move |change| {
            if let Some(ledger) = change.new.as_ref().or(change.old.as_ref()) {
                q.add(&Key::new(change.key.namespace(), &ledger.spec.job_name));
            }
        });
        let q = queue.clone();
        let revisions = self.revisions.on_change(move |change| {
            if let Some(revision) = change.new.as_ref().or(change.old.as_ref()) {
                q.add(&Key::new(change.key.namespace(), &revision.spec.job_name));
            }
        });
        vec![jobs, tasks, ledgers, revisions]
    }

    async fn observe(&self, key: &Key) -> Result<Option<World>, Failure> {
        let Some(job) = self.jobs.cache().get(key) else {
            self.written.lock().remove(key);
            return Ok(None);
        };
        let uid = job.metadata.uid.clone().unwrap_or_default();
        let jobs: &Cache<Job> = self.jobs.cache();
        let find = |name: &str| jobs.get(&Key::new(key.namespace(), name));
        let edges = lifecycle::edges(&job, &find);
        Ok(Some(World {
            ledger: Ledger::of(&self.ledgers.cache().by(BY_JOB_UID, &uid)),
            tasks: self.tasks.cache().by(BY_JOB_UID, &uid),
            revisions: self.revisions.cache().by(BY_JOB_UID, &uid),
            edges,
            since_write: self.written.lock().get(key).map(|at| at.elapsed()),
            job,
        }))
    }

    fn reconcile(world: &World, now: Timestamp) -> Plan {
        reconcile(world, now)
    }

    fn applied(&self, key: &Key, plan: &Plan) {
        if plan.writes().any(|w| w.verb == Verb::Status) {
            self.written.lock().insert(key.clone(), Instant::now());
        }
    }
}

/// Everything that the job controller decides about one Job.
pub fn reconcile(world: &World, now: Timestamp) -> Plan {
    let job = &*world.job;
    let key = Key::of(&job.metadata);
    let mut plan = Plan::none();
    let calm = CALM_PER_TASK * world.tasks.len().min(10_000) as u32;
    if calm > Duration::from_millis(1) {
        plan.calm = calm;
    }
    if job.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    // Time that ends things.
    let old = job.status.clone().unwrap_or_default();
    if lifecycle::is_finished(job)
        && let Some(ttl) = job.spec.ttl_seconds_after_finished
        && let Some(done) = &old.completion_time
    {
        match left(done, ttl, now) {
            None => {
                let mut delete =
                    Write::delete(Target::of::<Job>(&key)).if_uid(job.metadata.uid.as_deref());
                delete.body = json!({"propagationPolicy": "Background"});
                plan.write(delete);
                return plan;
            }
            Some(left) => {
                plan.look_after(left);
            }
        }
    }
    if !lifecycle::is_guarded(job) {
        let mut finalizers = job.metadata.finalizers.clone().unwrap_or_default();
        finalizers.push(FINALIZER_LEDGER.into());
        let patch = json!({"metadata": {"finalizers": finalizers}});
        plan.write(
            Write::patch(Target::of::<Job>(&key), patch)
                .if_uid(job.metadata.uid.as_deref())
                .if_version(job.metadata.resource_version.as_deref()),
        );
    }
    let name = lifecycle::revision_name(job);
    let there = world
        .revisions
        .iter()
        .any(|r| r.metadata.name.as_deref() == Some(&name));
    if !there {
        let target = Target::of::<JobRevision>(&Key::new(key.namespace(), &name));
        plan.write(Write::create(target, revision(job, &key, &name)));
    }
    prune(world, &name, &mut plan);
    if !lifecycle::is_guarded(job) || !there {
        // The status follows once the caches show both.
        return plan;
    }
    let mut new = old.clone();
    let mut notes = Vec::new();
    let look = status(world, &name, &mut new, &mut notes, now);
    if let Some(look) = look {
        plan.look_after(look);
    }
    let Some(patch) = difference(&old, &new) else {
        return plan;
    };
    let telling = old.phase != new.phase
        || old.conditions != new.conditions
        || old.revision != new.revision
        || old.start_time != new.start_time
        || old.observed_generation != new.observed_generation;
    if !telling
        && let Some(since) = world.since_write
        && since < STATUS_PERIOD
    {
        plan.look_after(STATUS_PERIOD - since);
        return plan;
    }
    plan.write(
        Write::status(Target::of::<Job>(&key), patch)
            .if_uid(job.metadata.uid.as_deref())
            .if_version(job.metadata.resource_version.as_deref()),
    );
    plan.events = notes;
    plan
}

/// Time left of `seconds` since `start`, or None if it is over.
fn left(start: &Time, seconds: i64, now: Timestamp) -> Option<Duration> {
    let over = start
        .0
        .checked_add(jiff::SignedDuration::from_secs(seconds))
        .ok()?;
    let left = over.duration_since(now);
    (left > jiff::SignedDuration::ZERO)
        .then(|| Duration::try_from(left).unwrap_or(Duration::from_secs(1)))
}

fn revision(job: &Job, key: &Key, name: &str) -> Value {
    let uid = job.metadata.uid.clone().unwrap_or_default();
    json!({
        "apiVersion": "rota.dev/v1",
        "kind": "JobRevision",
        "metadata": {
            "name": name,
            "namespace": key.namespace(),
            "labels": {"rota.dev/job": key.name(), "rota.dev/job-uid": uid},
            "ownerReferences": [{
                "apiVersion": "rota.dev/v1",
                "kind": "Job",
                "name": key.name(),
                "uid": uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "jobName": key.name(),
            "jobUid": uid,
            "onLost": job.spec.on_lost,
            "template": job.spec.template,
        },
    })
}

/// Deletes revisions that nothing uses, but for the last few.
fn prune(world: &World, current: &str, plan: &mut Plan) {
    if world.revisions.len() <= REVISIONS_KEPT + 1 {
        return;
    }
    let used: BTreeSet<&str> = world.tasks.iter().map(|t| &*t.spec.revision).collect();
    let mut idle: Vec<&Arc<JobRevision>> = world
        .revisions
        .iter()
        .filter(|r| {
            let name = r.metadata.name.as_deref().unwrap_or("");
            r.metadata.deletion_timestamp.is_none() && name != current && !used.contains(name)
        })
        .collect();
    idle.sort_by_key(|r| {
        let created = r.metadata.creation_timestamp.clone();
        (std::cmp::Reverse(created), r.metadata.name.clone())
    });
    for old in idle.into_iter().skip(REVISIONS_KEPT) {
        plan.write(
            Write::delete(Target::of::<JobRevision>(&Key::of(&old.metadata)))
                .if_uid(old.metadata.uid.as_deref()),
        );
    }
}

/// What a Job comes to.
enum Verdict {
    Failed(&'static str, String),
    Complete,
    Suspended,
    Never(&'static str, String),
    Blocked(String),
    Runs,
}

fn verdict(world: &World, new: &JobStatus, now: Timestamp) -> (Verdict, Option<Duration>) {
    let job = &*world.job;
    let batch = job.spec.type_ == JobType::Batch;
    let conditions = new.conditions.as_deref().unwrap_or(&[]);
    if let Some(failed) = conditions::get(conditions, "Failed").filter(|c| c.status == "True") {
        // Final: only its words are repeated.
        let reason = match failed.reason.as_str() {
            "DeadlineExceeded" => "DeadlineExceeded",
            "FailJob" => "FailJob",
            _ => "BackoffLimitExceeded",
        };
        return (Verdict::Failed(reason, failed.message.clone()), None);
    }
    if lifecycle::is_true(job, "Complete") {
        return (Verdict::Complete, None);
    }
    if batch && let Some(index) = world.ledger.failed.first() {
        let attempt = world.ledger.attempts.get(&index);
        let failures = attempt.map_or(0, |a| a.failures);
        let code = attempt
            .and_then(|a| a.last_exit_code)
            .map(|c| format!(", last with exit code {c}"))
            .unwrap_or_default();
        let verdict = if failures > job.spec.backoff_limit {
            let message = format!(
                "index {index} failed {failures} times{code}; backoffLimit is {}",
                job.spec.backoff_limit
            );
            Verdict::Failed("BackoffLimitExceeded", message)
        } else {
            Verdict::Failed("FailJob", format!("index {index} failed for good{code}"))
        };
        return (verdict, None);
    }
    let whole = IndexSet::below(lifecycle::completions(job));
    if batch && whole.difference(&world.ledger.succeeded).is_empty() {
        return (Verdict::Complete, None);
    }
    let mut look = None;
    if let (Some(seconds), Some(start)) = (job.spec.active_deadline_seconds, &new.start_time) {
        look = left(start, seconds, now);
        if look.is_none() {
            let message = format!("ran longer than activeDeadlineSeconds, {seconds} s");
            return (Verdict::Failed("DeadlineExceeded", message), None);
        }
    }
    if job.spec.suspend {
        return (Verdict::Suspended, look);
    }
    let verdict = match &world.edges {
        Edges::Open => Verdict::Runs,
        Edges::Waiting(why) => Verdict::Blocked(why.clone()),
        Edges::Never(why) => Verdict::Never("DependencyNotMet", why.clone()),
        Edges::Cycle(way) => Verdict::Never(
            "DependencyCycle",
            format!("waits for itself: {}", way.join(" -> ")),
        ),
    };
    (verdict, look)
}

/// Brings `new` up to date; tells what is worth an Event; says when time alone will change it.
fn status(
    world: &World,
    revision: &str,
    new: &mut JobStatus,
    notes: &mut Vec<Note>,
    now: Timestamp,
) -> Option<Duration> {
    let job = &*world.job;
    let batch = job.spec.type_ == JobType::Batch;
    let generation = job.metadata.generation;
    let (verdict, look) = verdict(world, new, now);
    new.observed_generation = generation;
    new.revision = Some(revision.into());
    new.selector = Some(format!(
        "{LABEL_JOB_UID}={}",
        job.metadata.uid.as_deref().unwrap_or("")
    ));
    if matches!(verdict, Verdict::Runs) && new.start_time.is_none() {
        new.start_time = Some(Time(conditions::whole(now)));
    }
    let finished = matches!(verdict, Verdict::Failed(..) | Verdict::Complete);
    if finished && new.completion_time.is_none() {
        new.completion_time = Some(Time(conditions::whole(now)));
    }
    // Counts. `job` does not show yet what is decided here, so the hold is taken from the verdict.
    let mut wanted = lifecycle::wanted(job, &world.ledger);
    wanted.hold = match verdict {
        Verdict::Runs => Hold::No,
        Verdict::Suspended => Hold::Suspended,
        Verdict::Blocked(_) | Verdict::Never(..) => Hold::NotStarted,
        Verdict::Failed(..) | Verdict::Complete => Hold::Finished,
    };
    count(world, &wanted, new);
    // Conditions.
    let regarding = || Regarding::of::<Job>(&job.metadata);
    let mut list = new.conditions.take().unwrap_or_default();
    let was =
        |type_: &str| -> bool { conditions::get(&list, type_).is_some_and(|c| c.status == "True") };
    let (was_complete, was_failed, was_suspended, was_stalled) = (
        was("Complete"),
        was("Failed"),
        was("Suspended"),
        was("Stalled"),
    );
    let never_fits = conditions::get(&list, "Scheduled")
        .filter(|c| c.status == "False" && c.reason == "NeverFits" && new.waiting > 0)
        .map(|c| c.message.clone());
    let replicas = lifecycle::parallelism(job) as i32;
    let mut put = |type_: &str, status: bool, reason: &str, message: &str| {
        conditions::set(&mut list, type_, status, reason, message, generation, now);
    };
    let mut health = |ready: bool, reconciling: bool, stalled: bool, reason: &str, text: &str| {
        put("Ready", ready, reason, text);
        put("Reconciling", reconciling, reason, text);
        put("Stalled", stalled, reason, text);
    };
    match &verdict {
        Verdict::Failed(reason, message) => {
            health(false, false, true, reason, message);
            put("Failed", true, reason, message);
            new.phase = Some(JobPhase::Failed);
            if !was_failed {
                notes.push(Note::warning(regarding(), reason, message));
            }
        }
        Verdict::Complete => {
            let message = format!("{} of {} indexes succeeded", new.succeeded, new.succeeded);
            health(true, false, false, "Complete", &message);
            put("Complete", true, "Complete", &message);
            new.phase = Some(JobPhase::Succeeded);
            if !was_complete {
                notes.push(Note::normal(regarding(), "Complete", message));
            }
        }
        Verdict::Suspended => {
            health(false, false, false, "Suspended", "spec.suspend is true");
            put("Suspended", true, "Suspended", "spec.suspend is true");
            new.phase = Some(JobPhase::Suspended);
            if !was_suspended {
                notes.push(Note::normal(
                    regarding(),
                    "Suspended",
                    "spec.suspend is true",
                ));
            }
        }
        Verdict::Never(reason, message) => {
            health(false, false, true, reason, message);
            new.phase = Some(JobPhase::Blocked);
            if !was_stalled {
                notes.push(Note::warning(regarding(), reason, message));
            }
        }
        Verdict::Blocked(message) => {
            // A Job that waits for another is accepted, as one that waits for room is.
            health(batch, !batch, false, "Blocked", message);
            new.phase = Some(JobPhase::Blocked);
        }
        Verdict::Runs => {
            new.phase = Some(if new.replicas > 0 {
                JobPhase::Running
            } else {
                JobPhase::Waiting
            });
            let nothing_runs = new.replicas == 0;
            match never_fits {
                Some(message) if nothing_runs || !batch => {
                    health(false, false, true, "NeverFits", &message);
                    if !was_stalled {
                        notes.push(Note::warning(regarding(), "NeverFits", message));
                    }
                }
                _ if batch && nothing_runs => {
                    health(true, false, false, "Queued", "accepted; waits for a node");
                }
                _ if batch => health(true, false, false, "Running", "tasks run"),
                _ => {
                    let current = world
                        .tasks
                        .iter()
                        .filter(|t| lifecycle::is_live(t) && t.spec.revision == revision)
                        .count() as i32;
                    let message = format!("{} of {replicas} replicas are ready", new.ready);
                    let up = new.ready >= replicas;
                    if up && current >= replicas && new.replicas == replicas {
                        health(true, false, false, "AllReady", &message);
                    } else if up {
                        health(false, true, false, "Updating", &message);
                    } else {
                        health(false, true, false, "ReplicasMissing", &message);
                    }
                }
            }
        }
    }
    if !matches!(verdict, Verdict::Suspended) && was_suspended {
        put("Suspended", false, "Resumed", "spec.suspend is false");
        notes.push(Note::normal(
            regarding(),
            "Resumed",
            "spec.suspend is false",
        ));
    }
    if !batch {
        let up = new.ready >= replicas;
        let reason = if up { "AllReady" } else { "ReplicasMissing" };
        let message = format!("{} of {replicas} replicas are ready", new.ready);
        put("Available", up, reason, &message);
    }
    new.conditions = Some(list);
    look
}

/// The counts of a status.
fn count(world: &World, wanted: &lifecycle::Wanted, new: &mut JobStatus) {
    let batch = world.job.spec.type_ == JobType::Batch;
    let (mut starting, mut running, mut ready, mut restarts) = (0, 0, 0, 0);
    let mut occupied = IndexSet::new();
    for task in &world.tasks {
        let index = task.spec.index.max(0) as u32;
        let state = task.status.as_ref();
        if lifecycle::is_live(task) {
            restarts += state.map_or(0, |s| s.restarts);
            occupied.insert(index);
        }
        match lifecycle::phase(task) {
            TaskPhase::Starting => starting += 1,
            TaskPhase::Running => {
                running += 1;
                ready += i32::from(state.is_some_and(|s| s.ready));
            }
            // Not folded yet, but no longer wanted.
            TaskPhase::Succeeded if batch => {
                occupied.insert(index);
            }
            _ => {}
        }
    }
    for (index, attempt) in &world.ledger.attempts {
        let done = world.ledger.succeeded.contains(*index) || world.ledger.failed.contains(*index);
        restarts += (attempt.next - i32::from(done)).max(0);
    }
    new.replicas = starting + running;
    new.starting = starting;
    new.running = running;
    new.ready = ready;
    new.waiting = wanted.missing(&occupied).min(i32::MAX as u32) as i32;
    // In-place restarts of a folded task count as one attempt; the sum must not go back for it.
    new.restarts = restarts.max(new.restarts);
    if batch {
        new.succeeded = world.ledger.succeeded.len().min(i32::MAX as u64) as i32;
        new.failed = world.ledger.failed.len().min(i32::MAX as u64) as i32;
        let (succeeded, cut) = world.ledger.succeeded.to_text(INDEX_TEXT);
        let (failed, cut_too) = world.ledger.failed.to_text(INDEX_TEXT);
        new.succeeded_indexes = Some(succeeded).filter(|t| !t.is_empty());
        new.failed_indexes = Some(failed).filter(|t| !t.is_empty());
        new.indexes_truncated = (cut || cut_too).then_some(true);
    }
}

/// The merge patch from one status to the other, without what placement writes.
fn difference(old: &JobStatus, new: &JobStatus) -> Option<Value> {
    let fields = |status: &JobStatus| -> Map<String, Value> {
        match serde_json::to_value(status) {
            Ok(Value::Object(mut map)) => {
                map.remove("waitingFor");
                map
            }
            _ => Map::new(),
        }
    };
    let (old, new) = (fields(old), fields(new));
    let mut patch = Map::new();
    for (field, value) in &new {
        if old.get(field) != Some(value) {
            patch.insert(field.clone(), value.clone());
        }
    }
    for field in old.keys() {
        if !new.contains_key(field) {
            patch.insert(field.clone(), Value::Null);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
