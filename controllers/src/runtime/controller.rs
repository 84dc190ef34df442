//! The shape of a controller, and the loop that runs one.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff;
use super::client::{Failure, Rest};
use super::clock::Clock;
use super::events::Recorder;
use super::informer::{HandlerGuard, Informers};
use super::key::Key;
use super::metrics::{Metrics, Of};
use super::plan::{Next, Plan, apply};
use super::queue::{Queue, Taken};

/// Longest wait for the cache to show one's own write before looking again anyway.
const OWN_WRITES: Duration = Duration::from_secs(5);

/// What a controller works with during one term of leadership.
#[derive(Clone)]
pub struct Context {
    /// The controller's name.
    pub name: &'static str,
    /// The API as the controller's user, fenced with the term.
    pub rest: Rest,
    /// The shared informers.
    pub informers: Informers,
    /// The term.
    pub term: u64,
    /// Fires when the term ends or the process stops: stop at once. Whoever learns that the term
    /// is over ([`Failure::LeaseLost`]) fires it.
    pub stop: CancellationToken,
    /// Tells Events.
    pub events: Recorder,
    /// Figures.
    pub metrics: Metrics,
    /// Wall-clock time.
    pub clock: Clock,
    /// For jitter.
    pub seed: u64,
}

/// A controller: watches, observes one key, decides purely.
///
/// One file implements this; one line in `registry` runs it.
pub trait Controller: Sized + Send + Sync + 'static {
    /// Name: of its Lease, its user (`rota:<name>`) and its metrics.
    const NAME: &'static str;
    /// Keys handled at the same time.
    const WORKERS: usize = 4;
    /// Each key is looked at again after this long even if nothing changed.
    const RESYNC: Duration = Duration::from_secs(600);
    /// An owned picture of all that the decision needs.
    type World: Send + Sync;

    /// Made anew for each term.
    fn new(ctx: &Context) -> Self;

    /// Starts the informers that it needs, before it leads, so that a take-over starts warm.
    fn warm(informers: &Informers);

    /// Registers the handlers that put keys into `queue`, and waits until the caches are synced.
    fn wire(
        &self,
        ctx: &Context,
        queue: &Arc<Queue>,
    ) -> impl Future<Output = Vec<HandlerGuard>> + Send;

    /// The world around `key`, or None if there is nothing to decide.
    fn observe(
        &self,
        key: &Key,
    ) -> impl Future<Output = Result<Option<Self::World>, Failure>> + Send;

    /// The decision. Pure: the same world and time give the same plan.
    fn reconcile(world: &Self::World, now: Timestamp) -> Plan;

    /// Called after a plan's writes have succeeded.
    fn applied(&self, _key: &Key, _plan: &Plan) {}
}

/// Runs a controller until its term ends.
pub async fn run<C: Controller>(ctx: Context) -> Result<(), Failure> {
    let controller = Arc::new(C::new(&ctx));
    let queue = Arc::new(Queue::new(ctx.seed));
    let guards = match ctx
        .stop
        .run_until_cancelled(controller.wire(&ctx, &queue))
        .await
    {
        Some(guards) => guards,
        None => return Ok(()),
    };
    let mut workers = JoinSet::new();
    for _ in 0..C::WORKERS {
        workers.spawn(work(controller.clone(), queue.clone(), ctx.clone()));
    }
    while workers.join_next().await.is_some() {}
    drop(guards);
    Ok(())
}

async fn work<C: Controller>(controller: Arc<C>, queue: Arc<Queue>, ctx: Context) {
    let of = Of {
        controller: C::NAME,
    };
    // Conflicts in a row, for this worker's present key.
    let conflicts: parking_lot::Mutex<std::collections::HashMap<Key, u32>> = Default::default();
    while let Some(taken) = ctx.stop.run_until_cancelled(queue.take()).await {
        let started = Instant::now();
        ctx.metrics
            .depth
            .get_or_create(&of)
            .set(queue.depth() as i64);
        ctx.metrics
            .waited
            .get_or_create(&of)
            .observe(started.saturating_duration_since(taken.since).as_secs_f64());
        ctx.metrics.reconciles.get_or_create(&of).inc();
        let key = taken.key.clone();
        let look = AssertUnwindSafe(look(&*controller, &key, &ctx, &of)).catch_unwind();
        // A write that is on its way is not torn off: its outcome would be unknown. It ends soon,
        // by its own time-out, and a late one is stopped by the fence.
        let outcome = look.await;
        ctx.metrics
            .took
            .get_or_create(&of)
            .observe(started.elapsed().as_secs_f64());
        settle::<C>(&queue, taken, outcome, &ctx, &of, &conflicts);
    }
}

/// What came of one look.
enum Looked {
    Gone,
    Done(Next, Duration),
}

async fn look<C: Controller>(
    controller: &C,
    key: &Key,
    ctx: &Context,
    of: &Of,
) -> Result<Looked, Failure> {
    let Some(world) = controller.observe(key).await? else {
        return Ok(Looked::Gone);
    };
    let plan = C::reconcile(&world, ctx.clock.now());
    if ctx.stop.is_cancelled() {
        return Ok(Looked::Gone);
    }
    let (stored, result) = apply(&ctx.rest, &plan).await;
    ctx.metrics
        .writes
        .get_or_create(of)
        .inc_by(stored.len() as u64);
    if result.is_ok() {
        controller.applied(key, &plan);
        for note in &plan.events {
            ctx.events.tell(note.clone());
        }
    }
    // The next look at this key must see what this one wrote, or it would decide it again.
    let mut newest: std::collections::BTreeMap<&str, u64> = Default::default();
    for s in &stored {
        let version = newest.entry(&s.collection).or_default();
        *version = (*version).max(s.version);
    }
    for (collection, version) in newest {
        let seen = ctx.informers.seen(collection, version, OWN_WRITES);
        ctx.stop.run_until_cancelled(seen).await;
    }
    result?;
    Ok(Looked::Done(plan.next, plan.calm))
}

fn settle<C: Controller>(
    queue: &Queue,
    taken: Taken,
    outcome: Result<Result<Looked, Failure>, Box<dyn std::any::Any + Send>>,
    ctx: &Context,
    of: &Of,
    conflicts: &parking_lot::Mutex<std::collections::HashMap<Key, u32>>,
) {
    let key = taken.key.clone();
    if !matches!(outcome, Ok(Err(Failure::Conflict(_)))) {
        conflicts.lock().remove(&key);
    }
    match outcome {
        Ok(Ok(Looked::Gone)) => queue.done(taken, None, Duration::ZERO),
        Ok(Ok(Looked::Done(next, calm))) => {
            let resync = backoff::jitter(ctx.seed, &key.to_string(), 0, C::RESYNC);
            let after = match next {
                Next::OnChange => resync,
                Next::After(after) => after.min(resync),
            };
            queue.done(taken, Some(after), calm);
        }
        Ok(Err(Failure::Conflict(message))) => {
            ctx.metrics.conflicts.get_or_create(of).inc();
            tracing::debug!(controller = C::NAME, %key, message, "conflict, looking again");
            let count = {
                let mut conflicts = conflicts.lock();
                let count = conflicts.entry(key).or_default();
                *count += 1;
                *count
            };
            queue.conflict(taken, count);
        }
        Ok(Err(Failure::LeaseLost(message))) => {
            tracing::warn!(controller = C::NAME, message, "another leader writes");
            ctx.stop.cancel();
            queue.done(taken, None, Duration::ZERO);
        }
        Ok(Err(Failure::Terminal(message))) => {
            ctx.metrics.errors.get_or_create(of).inc();
            tracing::warn!(controller = C::NAME, %key, message, "refused; waiting for a change");
            queue.done(taken, Some(C::RESYNC), Duration::ZERO);
        }
        Ok(Err(failure)) => {
            ctx.metrics.errors.get_or_create(of).inc();
            let at_least = match &failure {
                Failure::Transient { retry_after, .. } => *retry_after,
                _ => None,
            };
            let failures = queue.failed(taken, at_least);
            tracing::debug!(controller = C::NAME, %key, %failure, failures, "failed, trying again");
        }
        Err(panic) => {
            ctx.metrics.panics.get_or_create(of).inc();
            let message = panic
                .downcast_ref::<&str>()
                .map(|s| s.to_string())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            let failures = queue.failed(taken, None);
            tracing::error!(controller = C::NAME, %key, message, failures, "a look panicked");
        }
    }
}
