//! What controllers stand on: informers, leadership, work queue, and the one place that writes.
//!
//! # A keyed controller
//! Implement [`controller::Controller`] in one file and add `keyed::<YourController>()` to
//! `registry.rs`. `wire` registers handlers on informers which add keys to the queue; `observe`
//! copies a World out of the caches; `reconcile` is pure and returns a [`plan::Plan`]. The loop
//! applies the plan, waits until the caches have seen it, backs off per key, isolates panics.
//!
//! # A controller with its own loop (placement)
//! Write `pub async fn run(ctx: Context) -> Result<(), Failure>` (and `pub fn warm(&Informers)`)
//! and add `Entry { name: "placement", warm: placement::warm, run: |ctx| Box::pin(placement::run(ctx)) }`
//! to `registry.rs`. `run` is called
//! once per term and returns soon after `ctx.stop` fires; an `Err` or a panic ends the term and it
//! is called again after a pause, in a new term. On [`Failure::LeaseLost`] call `ctx.stop.cancel()`
//! and return.
//! ```ignore
//! let tasks = ctx.informers.get::<Task>();          // one shared list+watch per kind
//! tasks.synced().await;
//! tasks.catch_up(version).await;                    // a new leader: at least as new as `version`
//! let all = tasks.cache().by(BY_NODE, "n1");        // Vec<Arc<Task>>; also get, list, in_namespace
//! let changes = tasks.subscribe();                  // merged per key, never lags
//! changes.ready().await;
//! for change in changes.take() { /* change.key, change.old, change.new */ }
//! let answers = ctx.rest.bulk(items, false, false).await?;   // fenced; one Result per item
//! let (list, version) = ctx.rest.list::<Job>("/apis/rota.dev/v1/jobs", "").await?;
//! let (stored, result) = plan::apply(&ctx.rest, &plan).await;
//! ctx.events.tell(Note::warning(Regarding::of::<Job>(&job.metadata), "Reason", "message"));
//! ```
//! Every request of `ctx.rest` (and of `ctx.rest.kube()`, a `kube::Client`) carries the term.
//! `ctx.clock.now()` is wall-clock time; durations are measured with `tokio::time::Instant`.

pub mod backoff;
pub mod cache;
pub mod client;
pub mod clock;
pub mod controller;
pub mod events;
pub mod informer;
pub mod key;
pub mod kinds;
pub mod lease;
pub mod metrics;
pub mod plan;
pub mod queue;

pub use cache::{Cache, Change, Index, Item};
pub use client::{Failure, Rest};
pub use clock::Clock;
pub use controller::{Context, Controller};
pub use events::{Note, Recorder, Regarding};
pub use informer::{Cached, HandlerGuard, Informer, Informers, Progress, Source, Subscription};
pub use key::Key;
pub use kinds::{BY_JOB_UID, BY_NODE, BY_QUEUE};
pub use lease::Timings;
pub use metrics::{Metrics, Of};
pub use plan::{Next, Plan, Stored, Target, Verb, Write};
pub use queue::Queue;
