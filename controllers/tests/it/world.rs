//! A cluster in one process: API server, memory store, controllers.

use std::sync::Arc;
use std::time::Duration;

use rota_apiserver::ApiServer;
use rota_apiserver::auth::User;
use rota_controllers::registry::Entry;
use rota_controllers::runtime::{Clock, Failure, Metrics, Rest, Timings};
use rota_controllers::{Clients, Options, run_entries};
use rota_store::MemoryStore;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest (virtual) wait for anything.
pub const LIMIT: Duration = Duration::from_secs(120);

pub struct World {
    pub api: Arc<ApiServer>,
    pub admin: Rest,
}

/// One process that runs controllers.
pub struct Process {
    pub stop: CancellationToken,
    pub done: JoinHandle<()>,
}

impl Process {
    pub async fn shut_down(self) {
        self.stop.cancel();
        self.done.await.unwrap();
    }
}

impl World {
    pub async fn start() -> World {
        let store = MemoryStore::new();
        let api = ApiServer::start(store, Default::default()).await;
        let admin = Rest::new(api.kube_client(User::new("system:admin", &["system:masters"])));
        World { api, admin }
    }

    pub fn client(&self, user: &str) -> kube::Client {
        self.api
            .kube_client(User::new(user, &["system:controllers"]))
    }

    pub fn clients(&self) -> Clients {
        let api = self.api.clone();
        Arc::new(move |user: &str| api.kube_client(User::new(user, &["system:controllers"])))
    }

    pub fn options(&self, identity: &str) -> Options {
        Options {
            clients: self.clients(),
            identity: identity.into(),
            address: String::new(),
            timings: Timings::default(),
            only: Vec::new(),
            metrics: Metrics::new(&mut Default::default()),
            clock: Clock::tokio("2026-01-01T00:00:00Z".parse().unwrap()),
            seed: 7,
        }
    }

    /// Runs the named controllers.
    pub fn controllers(&self, identity: &str, names: &[&str]) -> Process {
        let mut options = self.options(identity);
        options.only = names.iter().map(|n| n.to_string()).collect();
        self.process(rota_controllers::registry::all(), options)
    }

    pub fn process(&self, entries: Vec<Entry>, options: Options) -> Process {
        let stop = CancellationToken::new();
        let done = tokio::spawn(run_entries(entries, options, stop.clone()));
        Process { stop, done }
    }

    pub async fn get(&self, path: &str) -> Option<Value> {
        match self.admin.get(path).await {
            Ok(value) => Some(value),
            Err(Failure::NotFound(_)) => None,
            Err(failure) => panic!("{path}: {failure}"),
        }
    }

    /// Waits until the object at `path` is as wanted (None: gone).
    pub async fn until(
        &self,
        path: &str,
        wanted: impl Fn(Option<&Value>) -> bool,
    ) -> Option<Value> {
        let start = tokio::time::Instant::now();
        loop {
            let value = self.get(path).await;
            if wanted(value.as_ref()) {
                return value;
            }
            assert!(
                start.elapsed() < LIMIT,
                "{path} stays {}",
                serde_json::to_string_pretty(&value).unwrap()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn namespace(&self, name: &str) {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.admin.post("/api/v1/namespaces", &body).await.unwrap();
    }

    /// Versions of all objects but Leases: unchanged means nothing was written.
    pub async fn versions(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for resource in rota_controllers::discovery::discover(&self.admin)
            .await
            .unwrap()
        {
            if !resource.can(&["list"]) || resource.kind == "Lease" {
                continue;
            }
            let path = resource.everywhere();
            let (items, _) = self.admin.list::<Value>(&path, "").await.unwrap();
            for item in items {
                let meta = &item["metadata"];
                all.push((
                    format!("{path} {} {}", meta["namespace"], meta["name"]),
                    meta["resourceVersion"].to_string(),
                ));
            }
        }
        all
    }
}

pub const JOBS: &str = "/apis/rota.dev/v1/namespaces/default/jobs";
pub const TASKS: &str = "/apis/rota.dev/v1/namespaces/default/tasks";
/// Events of the default namespace.
pub const EVENTS: &str = "/api/v1/namespaces/default/events";

pub fn job(name: &str, spec: Value) -> Value {
    let mut all = json!({"template": {"spec": {"command": ["true"]}}});
    for (k, v) in spec.as_object().unwrap() {
        all[k] = v.clone();
    }
    json!({"apiVersion": "rota.dev/v1", "kind": "Job", "metadata": {"name": name}, "spec": all})
}

/// The status of a condition.
pub fn condition(object: &Value, type_: &str) -> String {
    object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["type"] == type_)
        .map_or("absent".into(), |c| {
            format!(
                "{}:{}",
                c["status"].as_str().unwrap(),
                c["reason"].as_str().unwrap_or("")
            )
        })
}
