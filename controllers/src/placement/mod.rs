//! Placement: the one allocator. It turns waiting work into bound Tasks, folds Tasks that ended
//! into the ledger, and removes them. Under its fenced lease it is the only creator and remover of
//! Tasks and the only writer of JobLedgers, so its memory is the truth between its own writes.
//!
//! A term begins with one consistent view of everything; after that memory advances by the answers
//! to its own writes and by what watches tell of Jobs, Nodes, Queues and Task statuses. Decisions
//! are pure ([`memory`], [`book`], [`fold`], the scheduler); this file only carries them out.
//!
//! Two lanes of writes are on their way at the same time: creates, which somebody waits for, and
//! everything else, so that folding and removing never hold back a start.
//!
//! Between two cycles placement answers questions about what it would do ([`questions`]).

mod answers;
mod ask;
mod body;
pub mod book;
pub mod decide;
pub mod fold;
mod gang;
mod line;
pub mod memory;
pub mod need;
pub mod node;
mod outlook;
mod promise;
pub mod questions;
pub mod rules;
mod shares;
mod status;
mod tasks;
pub mod trial;
pub mod why;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Node;
use rota_api::{Job, JobLedger, JobRevision, Queue, Task};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::decide::{Answer, Op, Write};
use self::line::Asked;
use self::memory::Memory;
use crate::runtime::{
    BY_JOB_UID, Context, Failure, Informer, Informers, Of, Rest, Subscription, backoff,
};

/// Cycles begin at least this far apart, so that what comes together is decided together.
const CYCLE_GAP: Duration = Duration::from_millis(3);
/// Tidying (folds, removals) begins at least this far apart: larger batches, fewer writes.
const TIDY_GAP: Duration = Duration::from_millis(10);
/// Items of one tidying request.
const TIDY_MAX: usize = 1000;
/// Creates are sent in requests of this many.
const CREATE_CHUNK: usize = 500;
/// Most objects that the API stores in one transaction.
const ATOMIC_MAX: usize = 100;
/// How often Jobs are told why they wait.
const JOB_STATUS_EVERY: Duration = Duration::from_millis(200);
/// How often Queues are told how full they are.
const QUEUE_STATUS_EVERY: Duration = Duration::from_secs(1);
/// How often placement looks over all that it believes, and says what does not hold.
const LOOK_OVER_EVERY: Duration = Duration::from_secs(300);
/// Broken promises that are told one by one.
const BROKEN_TOLD_MAX: usize = 10;
/// Longest sleep without a reason.
const IDLE: Duration = Duration::from_secs(5);

/// Starts the informers that a term needs.
pub fn warm(informers: &Informers) {
    informers.get::<Job>();
    informers.get::<JobLedger>();
    informers.get::<JobRevision>();
    informers.get::<Task>();
    informers.get::<Node>();
    informers.get::<Queue>();
}

/// One term.
pub async fn run(ctx: Context) -> Result<(), Failure> {
    let opened = ctx.stop.run_until_cancelled(Feeds::open(&ctx)).await;
    let Some((feeds, memory)) = opened.transpose()? else {
        return Ok(());
    };
    let (line, asked) = line::open(&ctx);
    let _line = line;
    let mut desk = Desk::new(ctx, feeds, memory, asked);
    desk.take_changes();
    desk.memory.complete();
    desk.work().await
}

/// Changes of everything that placement watches.
struct Feeds {
    tasks: Informer<Task>,
    queue: Subscription<Queue>,
    node: Subscription<Node>,
    revision: Subscription<JobRevision>,
    job: Subscription<Job>,
    task: Subscription<Task>,
}

impl Feeds {
    /// Waits for one consistent view: everything that earlier terms wrote is in it, since their
    /// fence no longer holds.
    async fn open(ctx: &Context) -> Result<(Self, Memory), Failure> {
        let (_, version) = ctx
            .rest
            .list::<Queue>("/apis/rota.dev/v1/queues", "")
            .await?;
        let informers = &ctx.informers;
        let tasks = informers.get::<Task>();
        let ledgers = informers.get::<JobLedger>();
        let (jobs, revisions) = (informers.get::<Job>(), informers.get::<JobRevision>());
        let (nodes, queues) = (informers.get::<Node>(), informers.get::<Queue>());
        tokio::join!(
            tasks.catch_up(version),
            ledgers.catch_up(version),
            jobs.catch_up(version),
            revisions.catch_up(version),
            nodes.catch_up(version),
            queues.catch_up(version),
        );
        let memory = Memory::new(ledgers.cache().list());
        let feeds = Feeds {
            queue: queues.subscribe(),
            node: nodes.subscribe(),
            revision: revisions.subscribe(),
            job: jobs.subscribe(),
            task: tasks.subscribe(),
            tasks,
        };
        Ok((feeds, memory))
    }

    async fn ready(&self) {
        tokio::select! {
            _ = self.task.ready() => {}
            _ = self.job.ready() => {}
            _ = self.revision.ready() => {}
            _ = self.node.ready() => {}
            _ = self.queue.ready() => {}
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Create,
    Tidy,
}

/// A lane's pace: how many requests are on their way, and when the next may start.
struct Pace {
    on_the_way: usize,
    failures: u32,
    not_before: Instant,
}

impl Pace {
    fn new() -> Self {
        Pace {
            on_the_way: 0,
            failures: 0,
            not_before: Instant::now(),
        }
    }
}

/// A request that came back: its lane, and each write with its answer.
type Answered = (Lane, Vec<(Write, Answer)>);

struct Desk {
    ctx: Context,
    feeds: Feeds,
    memory: Memory,
    sent: FuturesUnordered<BoxFuture<'static, Answered>>,
    asked: mpsc::Receiver<Asked>,
    create: Pace,
    tidy: Pace,
    job_status: Instant,
    queue_status: Instant,
    look_over: Instant,
}

impl Desk {
    fn new(ctx: Context, feeds: Feeds, memory: Memory, asked: mpsc::Receiver<Asked>) -> Self {
        Desk {
            ctx,
            feeds,
            memory,
            sent: FuturesUnordered::new(),
            asked,
            create: Pace::new(),
            tidy: Pace::new(),
            job_status: Instant::now(),
            queue_status: Instant::now(),
            look_over: Instant::now() + LOOK_OVER_EVERY,
        }
    }

    async fn work(&mut self) -> Result<(), Failure> {
        loop {
            self.act();
            let wake = self.next_wake();
            let mut question = None;
            tokio::select! {
                biased;
                _ = self.ctx.stop.cancelled() => return Ok(()),
                Some((lane, answers)) = self.sent.next(), if !self.sent.is_empty() => {
                    self.take_answers(lane, answers)?;
                }
                Some(asked) = self.asked.recv() => question = Some(asked),
                _ = self.feeds.ready() => {}
                _ = tokio::time::sleep_until(wake) => {}
            }
            // Read before the changes are taken, so that those are all in the answer.
            let version = question.is_some().then(|| line::seen(&self.ctx.informers));
            self.take_changes();
            if let (Some(asked), Some(version)) = (question, version) {
                self.decide();
                let now = self.ctx.clock.now();
                asked.answer(&mut self.memory, version, now);
            }
        }
    }

    /// Tells memory what changed, in an order in which each thing finds what it refers to.
    fn take_changes(&mut self) {
        let now = self.ctx.clock.now();
        for change in self.feeds.queue.take() {
            self.memory.apply_queue(&change);
        }
        for change in self.feeds.node.take() {
            self.memory.apply_node(&change);
        }
        for change in self.feeds.revision.take() {
            self.memory.apply_revision(&change);
        }
        for change in self.feeds.job.take() {
            self.memory.apply_job(&change);
        }
        for change in self.feeds.task.take() {
            self.memory.apply_task(&change, now);
        }
    }

    fn take_answers(&mut self, lane: Lane, answers: Vec<(Write, Answer)>) -> Result<(), Failure> {
        let now = self.ctx.clock.now();
        let mut failed = false;
        for (write, answer) in answers {
            if let Answer::Failed(failure) = &answer {
                if let Failure::LeaseLost(message) = failure {
                    tracing::warn!(message, "another leader writes");
                    self.ctx.stop.cancel();
                    return Ok(());
                }
                failed |= failure.is_transient();
            }
            self.memory.answered(write, answer, now);
        }
        let (seed, name) = (self.ctx.seed, self.ctx.name);
        let pace = match lane {
            Lane::Create => &mut self.create,
            Lane::Tidy => &mut self.tidy,
        };
        pace.on_the_way -= 1;
        if failed {
            pace.failures += 1;
            pace.not_before = Instant::now() + backoff::delay(seed, name, pace.failures);
        } else {
            pace.failures = 0;
        }
        Ok(())
    }

    /// Decides again about Jobs that changed.
    fn decide(&mut self) {
        let cache = self.feeds.tasks.cache();
        let tasks_of = |uid: &str| cache.by(BY_JOB_UID, uid);
        self.memory.decide(&tasks_of, self.ctx.clock.now());
    }

    /// Decides, and sends what is due.
    fn act(&mut self) {
        self.decide();
        let now = self.ctx.clock.now();
        let instant = Instant::now();
        if instant >= self.look_over {
            self.look_over = instant + LOOK_OVER_EVERY;
            let broken = self.memory.broken_promises();
            for sentence in broken.iter().take(BROKEN_TOLD_MAX) {
                tracing::error!(sentence, "a promise does not hold");
            }
            let of = Of {
                controller: self.ctx.name,
            };
            let count = i64::try_from(broken.len()).unwrap_or(i64::MAX);
            self.ctx.metrics.broken.get_or_create(&of).set(count);
        }
        if instant >= self.create.not_before && self.memory.wants_to_place() {
            let writes = self.memory.place(now);
            self.create.not_before = instant + CYCLE_GAP;
            for chunk in requests(writes) {
                self.send(Lane::Create, chunk);
            }
        }
        if instant >= self.tidy.not_before && self.tidy.on_the_way == 0 {
            let mut writes = self.memory.tidy(TIDY_MAX);
            writes.extend(self.memory.farewells());
            if instant >= self.job_status {
                self.job_status = instant + JOB_STATUS_EVERY;
                let (statuses, notes) = self.memory.job_statuses(now);
                writes.extend(statuses);
                for note in notes {
                    self.ctx.events.tell(note);
                }
            }
            if instant >= self.queue_status {
                self.queue_status = instant + QUEUE_STATUS_EVERY;
                writes.extend(self.memory.queue_statuses(now));
            }
            if !writes.is_empty() {
                self.tidy.not_before = instant + TIDY_GAP;
                self.send(Lane::Tidy, writes);
            }
        }
    }

    fn send(&mut self, lane: Lane, writes: Vec<Write>) {
        match lane {
            Lane::Create => self.create.on_the_way += 1,
            Lane::Tidy => self.tidy.on_the_way += 1,
        }
        let rest = self.ctx.rest.clone();
        self.sent.push(Box::pin(
            async move { (lane, carry_out(rest, writes).await) },
        ));
    }

    /// When to act again even if nothing comes in.
    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let mut wake = now + IDLE;
        if self.memory.wants_to_place() {
            wake = wake.min(self.create.not_before);
        }
        if self.tidy.on_the_way == 0 {
            if self.memory.wants_to_tidy() {
                wake = wake.min(self.tidy.not_before);
            }
            let paused = self.tidy.not_before;
            if self.memory.wants_to_tell() {
                wake = wake.min(self.job_status.max(paused));
            }
            wake = wake.min(self.queue_status.max(paused));
        }
        if let Some(due) = self.memory.next_look() {
            let left = due.duration_since(self.ctx.clock.now());
            let left = Duration::try_from(left).unwrap_or(Duration::ZERO);
            wake = wake.min(now + left.max(Duration::from_millis(1)));
        }
        wake
    }
}

/// Splits creates into requests: a gang that one transaction holds has one of its own.
fn requests(writes: Vec<Write>) -> Vec<Vec<Write>> {
    let mut single = Vec::new();
    let mut gangs: BTreeMap<u64, Vec<Write>> = BTreeMap::new();
    for write in writes {
        match write.together {
            0 => single.push(write),
            gang => gangs.entry(gang).or_default().push(write),
        }
    }
    let mut out = Vec::new();
    for mut gang in gangs.into_values() {
        if gang.len() <= ATOMIC_MAX {
            out.push(gang);
        } else {
            // Several transactions, shared with others: nothing in them stands or falls together.
            for write in &mut gang {
                write.together = 0;
            }
            single.append(&mut gang);
        }
    }
    let mut single = single.into_iter().peekable();
    while single.peek().is_some() {
        out.push(single.by_ref().take(CREATE_CHUNK).collect());
    }
    out
}

/// Sends writes as one bulk request, and looks at what stood in the way of those that failed.
async fn carry_out(rest: Rest, writes: Vec<Write>) -> Vec<(Write, Answer)> {
    let items: Vec<Value> = writes.iter().map(|w| w.item.clone()).collect();
    // Writes that belong together come in a request of their own, see `requests`.
    let together = writes.first().is_some_and(|w| w.together != 0);
    let answers = match rest.bulk(items, together, false).await {
        Ok(answers) => answers,
        Err(failure) => writes.iter().map(|_| Err(failure.clone())).collect(),
    };
    let mut out = Vec::with_capacity(writes.len());
    for (write, answer) in writes.into_iter().zip(answers) {
        let answer = match answer {
            Ok(value) => Answer::Done(value),
            Err(failure) => look(&rest, &write, failure).await,
        };
        out.push((write, answer));
    }
    out
}

/// What a failed write means, after a look at the object where that decides.
async fn look(rest: &Rest, write: &Write, failure: Failure) -> Answer {
    let path = write.item["path"].as_str().unwrap_or("");
    let path = match write.item["verb"].as_str() {
        Some("create") => {
            let name = &write.item["body"]["metadata"]["name"];
            format!("{path}/{}", name.as_str().unwrap_or(""))
        }
        _ => path.to_owned(),
    };
    match (&write.op, &failure) {
        (Op::Create(_), Failure::AlreadyExists(_)) => match rest.get::<Value>(&path).await {
            Ok(object) => {
                let owner = |o: &Value| o["metadata"]["ownerReferences"][0]["uid"].clone();
                if owner(&object) == owner(&write.item["body"]) {
                    Answer::Done(object)
                } else {
                    Answer::Seen(Some(object))
                }
            }
            // Gone between the two: the next try creates it.
            Err(Failure::NotFound(message)) => Answer::Failed(Failure::transient(message)),
            Err(failure) => Answer::Failed(failure),
        },
        (Op::Fold(..), Failure::AlreadyExists(_) | Failure::Conflict(_) | Failure::NotFound(_)) => {
            match rest.get::<Value>(&path).await {
                Ok(object) => Answer::Seen(Some(object)),
                Err(Failure::NotFound(_)) => Answer::Seen(None),
                Err(failure) => Answer::Failed(failure),
            }
        }
        _ => Answer::Failed(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Key;

    #[test]
    fn only_a_gang_that_one_transaction_holds_is_stored_together() {
        let write = |together: u64| Write {
            op: Op::Create(Key::new("a", "t")),
            item: Value::Null,
            together,
        };
        let mut writes = vec![write(0), write(7), write(7)];
        writes.extend((0..CREATE_CHUNK + 10).map(|_| write(8)));
        let out = requests(writes);
        let shape = |r: &Vec<Write>| (r.len(), r.iter().map(|w| w.together).max());
        let shapes: Vec<_> = out.iter().map(shape).collect();
        assert_eq!(
            shapes,
            [(2, Some(7)), (CREATE_CHUNK, Some(0)), (11, Some(0))]
        );
    }
}
