//! Figures of the agent, in the OpenMetrics text format.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The agent's figures.
#[derive(Default)]
pub struct Metrics {
    /// Processes asked for.
    pub starts: Counter,
    /// Processes that ended.
    pub exits: Counter,
    /// Restarts in place.
    pub restarts: Counter,
    /// Tasks refused for want of resources.
    pub refused: Counter,
    /// Statuses that the server took.
    pub reported: Counter,
    /// Statuses that it never will take.
    pub dropped: Counter,
    /// Bulk requests that failed as a whole.
    pub report_errors: Counter,
    /// Statuses that wait.
    pub outbox: Gauge,
    /// Tasks with a process.
    pub running: Gauge,
    /// The node's epoch.
    pub epoch: Gauge,
}

impl Metrics {
    /// With a registry that shows them.
    pub fn new() -> (Self, Registry) {
        let m = Metrics::default();
        let mut r = Registry::with_prefix("rota_agent");
        r.register("task_starts", "Processes asked for", m.starts.clone());
        r.register("task_exits", "Processes that ended", m.exits.clone());
        r.register("task_restarts", "Restarts in place", m.restarts.clone());
        r.register(
            "tasks_refused",
            "Tasks refused for want of resources",
            m.refused.clone(),
        );
        r.register(
            "statuses_reported",
            "Statuses that the server took",
            m.reported.clone(),
        );
        r.register(
            "statuses_dropped",
            "Statuses that the server never will take",
            m.dropped.clone(),
        );
        r.register(
            "report_errors",
            "Bulk requests that failed as a whole",
            m.report_errors.clone(),
        );
        r.register("outbox", "Statuses that wait", m.outbox.clone());
        r.register("tasks_running", "Tasks with a process", m.running.clone());
        r.register("node_epoch", "The node's epoch", m.epoch.clone());
        (m, r)
    }
}
