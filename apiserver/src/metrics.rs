//! The API server's metrics, in one catalogue.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::server::Server;

/// Labels of a request.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabels {
    /// get, list, watch, create ...
    pub verb: &'static str,
    /// Plural; empty for paths that are no resource.
    pub resource: String,
    /// HTTP code.
    pub code: u16,
}

/// Labels of a duration.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct VerbLabels {
    /// get, list, create ...
    pub verb: &'static str,
}

/// Labels of a kind's gauges.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabels {
    /// `jobs.rota.dev`.
    pub resource: String,
}

/// The catalogue; the registry is shared with whatever else runs in the process.
#[derive(Clone)]
pub struct Metrics {
    /// Everything that /metrics shows.
    pub registry: Arc<Mutex<Registry>>,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<VerbLabels, Histogram>,
    objects: Family<KindLabels, Gauge>,
    bytes: Family<KindLabels, Gauge>,
    watchers: Family<KindLabels, Gauge>,
    store_commits: Gauge,
    store_writes: Gauge,
    store_groups: Gauge,
    store_conflicts: Gauge,
    store_failures: Gauge,
    tunnels: Gauge,
}

impl Metrics {
    /// Registers the catalogue.
    pub fn new(registry: Arc<Mutex<Registry>>) -> Self {
        let m = Metrics {
            registry: registry.clone(),
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_1, 2.0, 18))
            }),
            objects: Family::default(),
            bytes: Family::default(),
            watchers: Family::default(),
            store_commits: Gauge::default(),
            store_writes: Gauge::default(),
            store_groups: Gauge::default(),
            store_conflicts: Gauge::default(),
            store_failures: Gauge::default(),
            tunnels: Gauge::default(),
        };
        let mut r = registry.lock();
        r.register(
            "rota_api_requests",
            "Requests answered, by verb, resource and code",
            m.requests.clone(),
        );
        r.register(
            "rota_api_request_seconds",
            "Time to the answer's head, watches excluded",
            m.seconds.clone(),
        );
        r.register(
            "rota_api_objects",
            "Objects in the watch cache",
            m.objects.clone(),
        );
        r.register(
            "rota_api_object_bytes",
            "Bytes of objects in the watch cache",
            m.bytes.clone(),
        );
        r.register(
            "rota_api_watchers",
            "Watches that are open",
            m.watchers.clone(),
        );
        r.register(
            "rota_store_commits",
            "Transactions that applied since start",
            m.store_commits.clone(),
        );
        r.register(
            "rota_store_writes",
            "Writes in them",
            m.store_writes.clone(),
        );
        r.register(
            "rota_store_groups",
            "Synced groups that carried them",
            m.store_groups.clone(),
        );
        r.register(
            "rota_store_conflicts",
            "Transactions refused by a guard",
            m.store_conflicts.clone(),
        );
        r.register(
            "rota_store_failures",
            "Store calls that ended unavailable or unknown",
            m.store_failures.clone(),
        );
        r.register(
            "rota_api_tunnels",
            "Agents connected to this server",
            m.tunnels.clone(),
        );
        drop(r);
        m
    }

    /// Counts one request.
    pub fn request(&self, verb: &'static str, resource: &str, code: u16, took: Duration) {
        self.requests
            .get_or_create(&RequestLabels {
                verb,
                resource: resource.to_string(),
                code,
            })
            .inc();
        if verb != "watch" {
            self.seconds
                .get_or_create(&VerbLabels { verb })
                .observe(took.as_secs_f64());
        }
    }

    /// The page that Prometheus reads.
    pub fn page(&self, server: &Server) -> String {
        for served in server.served() {
            if served.view {
                continue;
            }
            let labels = KindLabels {
                resource: served.kind.qualified(),
            };
            let cache = server.cache.kind(served.cache);
            let (count, bytes) = cache.size();
            self.objects.get_or_create(&labels).set(count as i64);
            self.bytes.get_or_create(&labels).set(bytes as i64);
            self.watchers
                .get_or_create(&labels)
                .set(cache.watchers() as i64);
        }
        let stats = server.store.stats();
        self.store_commits.set(stats.commits as i64);
        self.store_writes.set(stats.writes as i64);
        self.store_groups.set(stats.groups as i64);
        self.store_conflicts.set(stats.conflicts as i64);
        self.store_failures.set(stats.failures as i64);
        self.tunnels.set(server.tunnels.count() as i64);
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry.lock());
        text
    }
}
