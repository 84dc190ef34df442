//! The server's shared state: the served kinds over the cache and the store.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rota_api::registry::Kind;
use rota_store::{Store, Version};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::auth::authorizer::{self, NodeView};
use crate::auth::{Attributes, User};
use crate::cache::{Cache, CachedKind};
use crate::error::{ApiError, ApiResult};
use crate::metrics::Metrics;
use crate::objects::{FieldIndex, Object, splice_offset};
use crate::schema::Compiled;
use crate::tunnel::Tunnels;

/// A kind with all that is derived from its row at start.
pub struct Served {
    /// The row.
    pub kind: Kind,
    /// Its schema, compiled.
    pub compiled: Compiled,
    /// Where its objects are in the cache.
    pub cache: usize,
    /// `JobList`.
    pub list_kind: String,
    /// `rota.dev/v1`.
    pub api_version: String,
    /// Key prefix in the store.
    pub prefix: String,
    /// Offset of the version in ready bytes.
    pub offset: usize,
    /// Whether objects are converted on the way in and out (`stored_as`).
    pub view: bool,
    /// Names accepted in field selectors, each with its position in `Object::fields`.
    pub fields: Vec<String>,
}

impl Served {
    /// Store key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> Arc<str> {
        if namespace.is_empty() {
            format!("{}{name}", self.prefix).into()
        } else {
            format!("{}{namespace}/{name}", self.prefix).into()
        }
    }

    /// Cache key of an object.
    pub fn cache_key(&self, namespace: &str, name: &str) -> String {
        if namespace.is_empty() {
            name.to_string()
        } else {
            format!("{namespace}/{name}")
        }
    }

    /// 404 about an object of this kind.
    pub fn not_found(&self, name: &str) -> ApiError {
        ApiError::not_found(self.kind.group, self.kind.plural, name)
    }

    /// The object as this kind shows it.
    pub fn shown(&self, object: &Object) -> Value {
        let value = object.value();
        if self.view {
            rota_api::core_kinds::event::to_events_v1(&value)
        } else {
            value
        }
    }
}

/// Everything that handlers need.
pub struct Server {
    /// Persistence.
    pub store: Arc<dyn Store>,
    /// Objects in memory.
    pub cache: Arc<Cache>,
    /// Kinds, in discovery order.
    pub kinds: Vec<Kind>,
    served: Vec<Arc<Served>>,
    by_path: HashMap<(String, String, String), usize>,
    /// Connections to agents.
    pub tunnels: Arc<Tunnels>,
    /// Connections of placement leaders, by their term.
    pub leaders: Arc<Tunnels>,
    /// Counters.
    pub metrics: Metrics,
    /// Signs node certificates; absent where this server has no CA key.
    pub signer: Option<Arc<crate::auth::pki::Pki>>,
    /// Address that other servers and agents reach this one by.
    pub advertise: String,
    /// Ends background work.
    pub stop: CancellationToken,
    /// Documents that are made once: discovery and OpenAPI.
    pub documents: crate::documents::Documents,
    /// Requests in flight.
    pub lanes: crate::router::Lanes,
    acknowledged: AtomicU64,
}

/// Who calls, and under which leadership.
#[derive(Clone)]
pub struct Caller {
    /// The user.
    pub user: Arc<User>,
    /// `namespace/lease` and term, from the fence header.
    pub fence: Option<(String, String, u64)>,
}

impl Server {
    /// Puts the parts together; nothing runs yet.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        store: Arc<dyn Store>,
        kinds: Vec<Kind>,
        signer: Option<Arc<crate::auth::pki::Pki>>,
        advertise: String,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Self {
        let mut cached = Vec::new();
        let mut served: Vec<Arc<Served>> = Vec::new();
        let mut by_path = HashMap::new();
        for kind in &kinds {
            if kind.stored_as.is_none() {
                let offset = splice_offset(&kind.api_version(), kind.kind);
                cached.push(CachedKind {
                    prefix: kind.key_prefix(),
                    index: FieldIndex::new(&kind.selectable, offset),
                    namespaced: kind.namespaced,
                    watch_field: kind.selectable.iter().position(|f| f == "spec.nodeName"),
                });
            }
        }
        for (i, kind) in kinds.iter().enumerate() {
            let of = kind
                .stored_as
                .and_then(|(g, p)| kinds.iter().find(|k| k.group == g && k.plural == p))
                .unwrap_or(kind);
            let prefix = of.key_prefix();
            let cache = cached.iter().position(|c| c.prefix == prefix).unwrap_or(0);
            by_path.insert(
                (
                    kind.group.to_string(),
                    kind.version.to_string(),
                    kind.plural.to_string(),
                ),
                i,
            );
            served.push(Arc::new(Served {
                compiled: Compiled::new(kind),
                cache,
                list_kind: format!("{}List", kind.kind),
                api_version: kind.api_version(),
                prefix,
                offset: splice_offset(&of.api_version(), of.kind),
                view: kind.stored_as.is_some(),
                fields: kind.selectable.clone(),
                kind: kind.clone(),
            }));
        }
        Server {
            cache: Cache::new(store.clone(), cached),
            store,
            documents: crate::documents::Documents::new(&kinds),
            kinds,
            served,
            by_path,
            tunnels: Tunnels::new(),
            leaders: Tunnels::unrecorded(),
            metrics,
            signer,
            advertise,
            stop,
            lanes: crate::router::Lanes::default(),
            acknowledged: AtomicU64::new(0),
        }
    }

    /// The newest version that this server has acknowledged in a bulk answer.
    pub fn acknowledged(&self) -> Version {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Notes such a version.
    pub fn acknowledge(&self, version: Version) {
        self.acknowledged.fetch_max(version, Ordering::Relaxed);
    }

    /// All served kinds.
    pub fn served(&self) -> &[Arc<Served>] {
        &self.served
    }

    /// A kind by its place in URLs.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Served>> {
        self.by_path
            .get(&(group.to_string(), version.to_string(), plural.to_string()))
            .map(|i| &self.served[*i])
    }

    /// One of our own kinds that every server has.
    pub fn known(&self, group: &str, plural: &str) -> ApiResult<&Arc<Served>> {
        self.served
            .iter()
            .find(|s| s.kind.group == group && s.kind.plural == plural)
            .ok_or_else(|| ApiError::internal(format!("kind {plural}.{group} is not served")))
    }

    /// An object from the cache, as it is there now.
    pub fn cached(&self, served: &Served, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.cache
            .kind(served.cache)
            .get(&served.cache_key(namespace, name))
    }

    /// An object, not older than anything acknowledged before this call.
    pub async fn current(
        &self,
        served: &Served,
        namespace: &str,
        name: &str,
    ) -> ApiResult<Option<Arc<Object>>> {
        self.cache
            .fresh()
            .await
            .map_err(crate::storage::store_error)?;
        Ok(self.cached(served, namespace, name))
    }

    /// 403 unless the caller may.
    pub fn authorize(&self, user: &User, attributes: &Attributes) -> ApiResult<()> {
        authorizer::authorize(user, attributes, self).map_err(|reason| {
            let mut e = ApiError::forbidden(
                &attributes.group,
                &attributes.resource,
                &attributes.name,
                reason,
            );
            if attributes.resource.is_empty() {
                e.message = format!(
                    "forbidden: User {:?} cannot {} path {:?}",
                    user.name, attributes.verb, attributes.path
                );
            }
            e
        })
    }
}

impl NodeView for Server {
    fn task_node(&self, namespace: &str, name: &str) -> Option<String> {
        let tasks = self.known(rota_api::names::GROUP, "tasks").ok()?;
        let field = tasks.fields.iter().position(|f| f == "spec.nodeName")?;
        self.cached(tasks, namespace, name)
            .map(|o| o.fields[field].to_string())
    }

    fn node_needs(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let Ok(tasks) = self.known(rota_api::names::GROUP, "tasks") else {
            return false;
        };
        let Some(field) = tasks.fields.iter().position(|f| f == "spec.nodeName") else {
            return false;
        };
        let filter = |o: &Object| *o.fields[field] == *node;
        let request = crate::cache::PageRequest {
            namespace,
            filter: Some(&filter),
            ..Default::default()
        };
        let Ok(page) = self.cache.page(tasks.cache, &request) else {
            return false;
        };
        let mut revisions: Vec<String> = page
            .items
            .iter()
            .filter_map(|o| o.value()["spec"]["revision"].as_str().map(String::from))
            .collect();
        revisions.sort_unstable();
        revisions.dedup();
        if resource == "jobrevisions" {
            return revisions.iter().any(|r| r == name);
        }
        let member = match resource {
            "secrets" => "secret",
            "configmaps" => "configMap",
            _ => return false,
        };
        let Ok(kind) = self.known(rota_api::names::GROUP, "jobrevisions") else {
            return false;
        };
        revisions
            .iter()
            .filter_map(|r| self.cached(kind, namespace, r))
            .any(|revision| {
                let value = revision.value();
                let env = value["spec"]["template"]["spec"]["env"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                env.iter().any(|e| e["valueFrom"][member]["name"] == name)
            })
    }
}
