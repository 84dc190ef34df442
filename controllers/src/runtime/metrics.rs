//! Figures that every controller shows.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Label: which controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Of {
    /// Its name.
    pub controller: &'static str,
}

fn seconds() -> Histogram {
    // 0.5 ms to 16 s.
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

/// The metrics, registered once per process.
#[derive(Clone)]
pub struct Metrics {
    /// Looks at a key.
    pub reconciles: Family<Of, Counter>,
    /// Looks that failed, conflicts aside.
    pub errors: Family<Of, Counter>,
    /// Preconditions that no longer held.
    pub conflicts: Family<Of, Counter>,
    /// Looks that panicked.
    pub panics: Family<Of, Counter>,
    /// Writes that were stored.
    pub writes: Family<Of, Counter>,
    /// Keys that wait.
    pub depth: Family<Of, Gauge>,
    /// Time from wanting a look to having it.
    pub waited: Family<Of, Histogram, fn() -> Histogram>,
    /// Time of a look, writes included.
    pub took: Family<Of, Histogram, fn() -> Histogram>,
    /// Promises that did not hold when the controller last looked over what it believes.
    pub broken: Family<Of, Gauge>,
    /// 1 while this process leads.
    pub leader: Family<Of, Gauge>,
}

impl Metrics {
    /// Registers everything under `rota_controller_...`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Metrics {
            reconciles: Family::default(),
            errors: Family::default(),
            conflicts: Family::default(),
            panics: Family::default(),
            writes: Family::default(),
            depth: Family::default(),
            waited: Family::new_with_constructor(seconds as fn() -> Histogram),
            took: Family::new_with_constructor(seconds as fn() -> Histogram),
            broken: Family::default(),
            leader: Family::default(),
        };
        let r = registry.sub_registry_with_prefix("rota_controller");
        r.register("reconciles", "Looks at a key", metrics.reconciles.clone());
        r.register("errors", "Looks that failed", metrics.errors.clone());
        r.register(
            "conflicts",
            "Preconditions that no longer held",
            metrics.conflicts.clone(),
        );
        r.register("panics", "Looks that panicked", metrics.panics.clone());
        r.register("writes", "Writes that were stored", metrics.writes.clone());
        r.register("queue_depth", "Keys that wait", metrics.depth.clone());
        r.register(
            "wait_seconds",
            "Time from wanting a look to having it",
            metrics.waited.clone(),
        );
        r.register(
            "reconcile_seconds",
            "Time of a look, writes included",
            metrics.took.clone(),
        );
        r.register(
            "broken_promises",
            "Promises that did not hold at the last look; the log says which",
            metrics.broken.clone(),
        );
        r.register(
            "leader",
            "1 while this process leads",
            metrics.leader.clone(),
        );
        metrics
    }
}
