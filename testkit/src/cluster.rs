//! The builder: API server, controllers and simulated agents over one store.

use std::sync::Arc;
use std::time::Duration;

use rota_apiserver::ApiServer;
use rota_apiserver::auth::User;
use rota_controllers::runtime::{Clock, Failure, Metrics, Rest, Timings};
use rota_controllers::{Options, run};
use rota_store::MemoryStore;
use rota_store::Store;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::eventually;
use crate::history::History;
use crate::hollow::{GroundTruth, HollowNode, Outcome, Script};

/// When the simulated world begins.
const EPOCH: &str = "2026-01-01T00:00:00Z";

/// What a cluster is made of.
pub struct Builder {
    nodes: u32,
    allocatable: Value,
    script: Script,
    store: Option<Arc<dyn Store>>,
    seed: u64,
}

impl Default for Builder {
    fn default() -> Self {
        Builder {
            nodes: 1,
            allocatable: json!({"cpu": "4", "memory": "8Gi", "rota.dev/ports": "1000"}),
            script: Arc::new(|_, _, _| Outcome {
                after: Duration::from_secs(1),
                exit_code: 0,
            }),
            store: None,
            seed: 1,
        }
    }
}

impl Builder {
    /// Simulated nodes.
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.nodes = nodes;
        self
    }

    /// What each node offers.
    pub fn allocatable(mut self, allocatable: Value) -> Self {
        self.allocatable = allocatable;
        self
    }

    /// What attempts do: `(Job's name, index, attempt)`. Without it each runs 1 s and succeeds.
    pub fn script(
        mut self,
        script: impl Fn(&str, u64, u64) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        self.script = Arc::new(script);
        self
    }

    /// Another store than a fresh one in memory, such as a [`crate::FaultyStore`].
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Seed of all jitter.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Starts everything and waits until the nodes are ready.
    pub async fn start(self) -> TestCluster {
        let store = self.store.unwrap_or_else(|| MemoryStore::new());
        let history = History::record(&*store).await;
        let api = ApiServer::start(store.clone(), Default::default()).await;
        let admin = Rest::new(api.kube_client(User::new("system:admin", &["system:masters"])));
        let clock = Clock::tokio(EPOCH.parse().unwrap_or_default());
        let mut cluster = TestCluster {
            admin,
            store,
            history,
            truth: GroundTruth::default(),
            nodes: Vec::new(),
            controllers: None,
            clock,
            seed: self.seed,
            api,
        };
        cluster.start_controllers("first");
        for n in 0..self.nodes {
            let name = format!("node-{n}");
            let user = format!("system:node:{name}");
            let client = cluster.api.kube_client(User::new(user, &["system:nodes"]));
            let node = HollowNode::start(
                Rest::new(client),
                &name,
                self.allocatable.clone(),
                self.script.clone(),
                cluster.truth.clone(),
                clock,
            );
            cluster.nodes.push(node.await);
        }
        let wanted = self.nodes as usize;
        eventually(Duration::from_secs(60), "all nodes are ready", async || {
            let ready = cluster
                .list("/api/v1/nodes")
                .await
                .iter()
                .filter(|n| condition(n, "Ready") == Some("True"))
                .count();
            if ready == wanted {
                Ok(())
            } else {
                Err(format!("{ready} of {wanted}"))
            }
        })
        .await;
        cluster
    }
}

/// A running cluster.
pub struct TestCluster {
    /// Requests as the administrator.
    pub admin: Rest,
    /// The store under everything.
    pub store: Arc<dyn Store>,
    /// Every write so far.
    pub history: History,
    /// When attempts really ran.
    pub truth: GroundTruth,
    /// The nodes.
    pub nodes: Vec<HollowNode>,
    /// The API server.
    pub api: Arc<ApiServer>,
    controllers: Option<(CancellationToken, JoinHandle<()>)>,
    clock: Clock,
    seed: u64,
}

impl TestCluster {
    /// A builder with one node of 4 CPUs.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts the controllers, as one process.
    pub fn start_controllers(&mut self, identity: &str) {
        let api = self.api.clone();
        let options = Options {
            clients: Arc::new(move |user: &str| {
                api.kube_client(User::new(user, &["system:controllers"]))
            }),
            identity: identity.into(),
            address: String::new(),
            timings: Timings::default(),
            only: Vec::new(),
            metrics: Metrics::new(&mut Default::default()),
            clock: self.clock,
            seed: self.seed,
        };
        let stop = CancellationToken::new();
        let done = tokio::spawn(run(options, stop.clone()));
        self.controllers = Some((stop, done));
    }

    /// Tears the controllers off, as `kill -9` does: nothing is released.
    pub fn kill_controllers(&mut self) {
        if let Some((_, done)) = self.controllers.take() {
            done.abort();
        }
    }

    /// Objects of a collection.
    pub async fn list(&self, path: &str) -> Vec<Value> {
        match self.admin.list(path, "").await {
            Ok((items, _)) => items,
            Err(failure) => panic!("{path}: {failure}"),
        }
    }

    /// Creates a Job in `default`.
    pub async fn create_job(&self, name: &str, spec: Value) -> Value {
        let body = json!({"apiVersion": "rota.dev/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec});
        match self
            .admin
            .post("/apis/rota.dev/v1/namespaces/default/jobs", &body)
            .await
        {
            Ok(job) => job,
            // With faults in the store the outcome may be unknown; then it may be there.
            Err(failure) => self
                .job(name)
                .await
                .unwrap_or_else(|| panic!("creating {name}: {failure}")),
        }
    }

    /// A Job of `default`, if it is there.
    pub async fn job(&self, name: &str) -> Option<Value> {
        let path = format!("/apis/rota.dev/v1/namespaces/default/jobs/{name}");
        match self.admin.get_as(&path, "application/json").await {
            Ok(job) => Some(job),
            Err(Failure::NotFound(_)) => None,
            Err(failure) => panic!("{path}: {failure}"),
        }
    }

    /// Tasks of a Job of `default`.
    pub async fn tasks(&self, job: &str) -> Vec<Value> {
        let mut tasks = self
            .list("/apis/rota.dev/v1/namespaces/default/tasks")
            .await;
        tasks.retain(|t| t["spec"]["jobName"] == job);
        tasks
    }

    /// Waits until a Job has a condition.
    pub async fn wait_job(&self, name: &str, type_: &str, deadline: Duration) -> Value {
        eventually(
            deadline,
            &format!("job {name} is {type_}"),
            async || match self.job(name).await {
                Some(job) if condition(&job, type_) == Some("True") => Ok(job),
                Some(job) => Err(job["status"].to_string()),
                None => Err("it is not there".into()),
            },
        )
        .await
    }

    /// What a server does when a node's tunnel is cut by its peer: says so on the node's Lease.
    pub async fn cut_tunnel(&self, node: &str) {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}");
        let patch = json!({"metadata": {"annotations": {"rota.dev/tunnel-closed": node}}});
        if let Err(failure) = self.admin.patch(&path, &patch).await {
            panic!("{path}: {failure}");
        }
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        self.kill_controllers();
        self.api.stop();
    }
}

/// Status of a condition.
pub fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a str> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == type_)?["status"]
        .as_str()
}
