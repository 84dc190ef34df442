//! Runs controllers: one election each, one term of work after the other.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use rota_api::names::{SYSTEM_NAMESPACE, USER_CONTROLLER_PREFIX};

use crate::registry::{self, Entry};
use crate::runtime::lease::Candidate;
use crate::runtime::metrics::Of;
use crate::runtime::{
    Clock, Context, Failure, Informers, Metrics, Recorder, Rest, Timings, backoff,
};

/// How long the work of a term may take to end before it is torn off.
const WIND_DOWN: Duration = Duration::from_secs(2);

/// Makes a client that acts as a user.
pub type Clients = Arc<dyn Fn(&str) -> kube::Client + Send + Sync>;

/// What the controllers need from outside.
#[derive(Clone)]
pub struct Options {
    /// Clients by user name (`rota:job` ...).
    pub clients: Clients,
    /// Holder name in Leases; unique to this process.
    pub identity: String,
    /// URL of the API server at which this process can be asked, told in its Leases; may be empty.
    pub address: String,
    /// Speed of leader election.
    pub timings: Timings,
    /// Names of the controllers to run; empty: all.
    pub only: Vec<String>,
    /// Where figures go.
    pub metrics: Metrics,
    /// Wall-clock time.
    pub clock: Clock,
    /// Seed of all jitter; random in production.
    pub seed: u64,
}

/// Runs the controllers until `shutdown`; then ends their work, releases their Leases and returns.
pub async fn run(options: Options, shutdown: CancellationToken) {
    run_entries(registry::all(), options, shutdown).await;
}

/// As [`run`], with another table of controllers.
pub async fn run_entries(entries: Vec<Entry>, options: Options, shutdown: CancellationToken) {
    // Informers outlive the work, so that it can wind down on them.
    let informers_stop = CancellationToken::new();
    let _stop_informers = informers_stop.clone().drop_guard();
    // The garbage collector's user may read all kinds.
    let reader = Rest::new((options.clients)(&format!("{USER_CONTROLLER_PREFIX}gc")));
    let informers = Informers::new(reader, options.seed, informers_stop);
    let mut all = JoinSet::new();
    for entry in entries {
        if !options.only.is_empty() && !options.only.iter().any(|n| n == entry.name) {
            continue;
        }
        (entry.warm)(&informers);
        all.spawn(serve(
            entry,
            options.clone(),
            informers.clone(),
            shutdown.clone(),
        ));
    }
    while let Some(ended) = all.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller's election ended");
        }
    }
}

/// Leads whenever it can, until `shutdown`.
async fn serve(entry: Entry, options: Options, informers: Informers, shutdown: CancellationToken) {
    let of = Of {
        controller: entry.name,
    };
    let user = format!("{USER_CONTROLLER_PREFIX}{}", entry.name);
    // Leases have a client of their own, so that renewals never queue behind work.
    let candidate = Candidate::new(
        Rest::new((options.clients)(&user)),
        entry.name,
        &options.identity,
        &options.address,
        options.timings,
        options.clock,
        options.seed,
    );
    let rest = Rest::new((options.clients)(&user));
    let mut failures = 0u32;
    loop {
        let Some(mut leadership) = candidate.acquire(&shutdown).await else {
            return;
        };
        let term = leadership.term;
        tracing::info!(controller = entry.name, term, "leading");
        options.metrics.leader.get_or_create(&of).set(1);
        let stop = shutdown.child_token();
        let fenced = rest.fenced(SYSTEM_NAMESPACE, entry.name, term);
        let ctx = Context {
            name: entry.name,
            rest: fenced.clone(),
            informers: informers.clone(),
            term,
            stop: stop.clone(),
            events: Recorder::start(
                fenced,
                &format!("rota-{}", entry.name),
                options.clock,
                stop.clone(),
            ),
            metrics: options.metrics.clone(),
            clock: options.clock,
            seed: options.seed,
        };
        let guard = stop.clone().drop_guard();
        let run = entry.run;
        let mut work = tokio::spawn(async move {
            // However it ends, the term ends with it.
            let _guard = guard;
            run(ctx).await
        });
        candidate.keep(&mut leadership, &stop).await;
        stop.cancel();
        let ended = match tokio::time::timeout(WIND_DOWN, &mut work).await {
            Ok(ended) => ended,
            Err(_) => {
                work.abort();
                work.await
            }
        };
        options.metrics.leader.get_or_create(&of).set(0);
        match ended {
            Ok(Ok(())) => failures = 0,
            Ok(Err(Failure::LeaseLost(_))) => failures = 0,
            Ok(Err(failure)) => {
                failures += 1;
                tracing::warn!(controller = entry.name, %failure, "term ended");
            }
            Err(error) if error.is_cancelled() => {
                tracing::warn!(controller = entry.name, "work did not end in time");
            }
            Err(error) => {
                failures += 1;
                options.metrics.panics.get_or_create(&of).inc();
                tracing::error!(controller = entry.name, %error, "panicked");
            }
        }
        candidate.release(leadership).await;
        if shutdown.is_cancelled() {
            return;
        }
        if failures > 0 {
            let pause = backoff::delay(options.seed, entry.name, failures);
            shutdown
                .run_until_cancelled(tokio::time::sleep(pause))
                .await;
        }
    }
}
