//! The API server: one generic set of handlers over a table of kinds, a watch cache over the store.
//!
//! It is the only part that touches the store, and it keeps nothing that the store does not have:
//! any number of servers may run on one store. No handler knows a kind; what differs between kinds
//! is in their rows ([`rota_api::registry`]).

pub mod auth;
pub mod background;
pub mod body;
pub mod cache;
pub mod discovery;
pub mod documents;
pub mod error;
mod local;
pub mod metrics;
pub mod objects;
pub mod openapi;
pub mod patch;
pub mod relay;
pub mod request;
pub mod respond;
pub mod router;
pub mod schema;
pub mod serve;
pub mod server;
pub mod storage;
pub mod table;
pub mod tunnel;
pub mod verbs;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use parking_lot::Mutex;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use rota_api::registry::Kind;
use rota_store::Store;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::auth::User;
use crate::auth::authn::{TokenLookup, TokenRecord};
use crate::server::Server;

/// How long a start waits for the store before it gives up waiting (the server goes on trying).
const START_WAIT: Duration = Duration::from_secs(30);

/// What a server is made of.
pub struct Config {
    /// The kinds, in discovery order; [`rota_api::registry::all`] unless a test adds one.
    pub kinds: Vec<Kind>,
    /// CA that signs node certificates; `None` on servers without its key.
    pub pki: Option<Arc<auth::pki::Pki>>,
    /// URL by which agents and other servers reach this one.
    pub advertise: String,
    /// History that is kept at least: clients may be away this long and still resume their watches.
    pub history: Duration,
    /// Where metrics are registered; shared with whatever else runs in the process.
    pub registry: Arc<Mutex<Registry>>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            kinds: rota_api::registry::all(),
            pki: None,
            advertise: String::new(),
            history: background::HISTORY_DEFAULT,
            registry: Arc::default(),
        }
    }
}

/// A running API server. Dropping the handle does not stop it; [`ApiServer::stop`] does.
pub struct ApiServer {
    server: Arc<Server>,
    router: Router,
}

impl ApiServer {
    /// Starts on a store and waits until the cache is filled and the basic objects exist. When the
    /// store is away for longer than 30 s this returns all the same: /readyz says 503 until it is back.
    pub async fn start(store: Arc<dyn Store>, config: Config) -> Arc<ApiServer> {
        let info = store.info();
        config.registry.lock().register(
            "rota_store",
            "The store behind the server, and what its acknowledgements mean",
            Info::new(vec![
                ("backend", info.backend),
                ("durability", info.durability),
            ]),
        );
        let metrics = metrics::Metrics::new(config.registry);
        let server = Arc::new(Server::new(
            store,
            config.kinds,
            config.pki,
            config.advertise,
            metrics,
            CancellationToken::new(),
        ));
        let cache = server.cache.clone();
        let stop = server.stop.clone();
        tokio::spawn(async move { cache.run(stop).await });
        let ready = {
            let server = server.clone();
            async move {
                while !server.cache.synced() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                while let Err(e) = background::bootstrap(&server).await {
                    tracing::warn!(error = %e, "cannot create the basic objects yet");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        };
        let ready = tokio::spawn(ready);
        let _ = tokio::time::timeout(START_WAIT, ready).await;
        tokio::spawn(background::sweep(server.clone(), config.history));
        tokio::spawn(verbs::logs::record_tunnels(server.clone()));
        let router = Router::new()
            .fallback(router::handle)
            .with_state(server.clone());
        Arc::new(ApiServer { server, router })
    }

    /// The HTTP service. Whoever serves it puts the caller into the extensions as `Arc<User>`.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// The parts behind the router.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// A client that calls this server in process, without a socket, as the given user.
    pub fn kube_client(&self, user: Arc<User>) -> kube::Client {
        local::client(self.router.clone(), user)
    }

    /// Ends watches and background work. Requests in flight finish.
    pub fn stop(&self) {
        self.server.tunnels.stop();
        self.server.stop.cancel();
    }
}

impl TokenLookup for Server {
    fn bootstrap(&self, id: &str) -> Option<TokenRecord> {
        let secrets = self.known("", "secrets").ok()?;
        let name = format!("bootstrap-token-{id}");
        let value = self
            .cached(secrets, rota_api::names::SYSTEM_NAMESPACE, &name)?
            .value();
        if value["type"] != "bootstrap.rota.dev/token" {
            return None;
        }
        let text = |key: &str| {
            use base64::Engine;
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(value["data"][key].as_str()?)
                .ok()?;
            String::from_utf8(bytes).ok()
        };
        // An expiration that cannot be read must not turn into a token for ever.
        let expiration =
            text("expiration").map(|t| t.trim().parse().unwrap_or(jiff::Timestamp::UNIX_EPOCH));
        Some(TokenRecord {
            hash: text("hash")?,
            expiration,
        })
    }
}

/// What /version answers. The version is that of the Kubernetes API that is spoken; `rota` is ours.
pub fn version() -> Value {
    json!({
        "major": "1", "minor": "32", "gitVersion": format!("v1.32.0+rota-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc", "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        "rota": env!("CARGO_PKG_VERSION"),
    })
}
