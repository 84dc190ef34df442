//! The namespace controller: empties a namespace that is being deleted, then lets it go.
//!
//! It deletes every object of every kind that discovery names, but leaves Tasks and JobLedgers to
//! placement (their Jobs are deleted, which is what makes placement remove them), and takes the
//! `kubernetes` finalizer off only after a look in which nothing was left.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::discovery::{Resource, discover};
use crate::runtime::client::METADATA_LIST;
use crate::runtime::{
    Context, Controller, Failure, HandlerGuard, Informer, Informers, Key, Plan, Queue, Rest,
    Target, Write,
};

/// Pause between looks at a namespace that is not empty yet: what is left waits for others.
const AGAIN: Duration = Duration::from_secs(1);
/// Finalizer in `spec.finalizers` that stands for this controller.
const FINALIZER: &str = "kubernetes";
/// Objects of one kind that one look deletes; the next look takes the rest.
const BATCH: usize = 2000;

/// The namespace controller.
pub struct NamespaceController {
    namespaces: Informer<Namespace>,
    rest: Rest,
}

/// A namespace that is being deleted.
#[derive(Clone, Debug)]
pub struct World {
    /// The Namespace, as the API has it now.
    pub namespace: Value,
    /// What is in it.
    pub contents: Vec<Content>,
}

/// One object in the namespace.
#[derive(Clone, Debug)]
pub struct Content {
    /// Which.
    pub target: Target,
    /// Its uid.
    pub uid: Option<String>,
    /// Nothing needs to be done but wait: it is being deleted, or another removes it.
    pub leaving: bool,
}

impl Controller for NamespaceController {
    const NAME: &'static str = "namespace";
    type World = World;

    fn new(ctx: &Context) -> Self {
        NamespaceController {
            namespaces: ctx.informers.get(),
            rest: ctx.rest.clone(),
        }
    }

    fn warm(informers: &Informers) {
        informers.get::<Namespace>();
    }

    async fn wire(&self, _ctx: &Context, queue: &Arc<Queue>) -> Vec<HandlerGuard> {
        self.namespaces.synced().await;
        let queue = queue.clone();
        vec![self.namespaces.on_change(move |change| {
            let new = change.new.as_ref();
            if new.is_some_and(|n| n.metadata.deletion_timestamp.is_some()) {
                queue.add(&change.key);
            }
        })]
    }

    async fn observe(&self, key: &Key) -> Result<Option<World>, Failure> {
        let there = self.namespaces.cache().get(key);
        if there.is_none_or(|n| n.metadata.deletion_timestamp.is_none()) {
            return Ok(None);
        }
        let namespace: Value = match self.rest.get(&Target::of::<Namespace>(key).path()).await {
            Ok(namespace) => namespace,
            Err(Failure::NotFound(_)) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        if namespace["metadata"]["deletionTimestamp"].is_null() {
            return Ok(None);
        }
        let mut contents = Vec::new();
        // Discovery anew each time: a kind that was added a moment ago must not be left behind.
        for resource in discover(&self.rest).await? {
            if resource.namespaced && resource.can(&["list"]) {
                contents.extend(self.contents(&resource, key.name()).await?);
            }
        }
        Ok(Some(World {
            namespace,
            contents,
        }))
    }

    fn reconcile(world: &World, _now: Timestamp) -> Plan {
        reconcile(world)
    }
}

impl NamespaceController {
    async fn contents(&self, resource: &Resource, name: &str) -> Result<Vec<Content>, Failure> {
        #[derive(serde::Deserialize)]
        struct Only {
            metadata: ObjectMeta,
        }
        // Kinds that cannot be deleted are views of others, or placement's: only wait for them.
        let others = resource.is_placements() || !resource.can(&["delete"]);
        let collection = resource.target(name, "").collection();
        let mut contents = Vec::new();
        let mut token: Option<String> = None;
        while contents.len() < BATCH {
            let page = self
                .rest
                .page(&collection, "", METADATA_LIST, token.as_deref())
                .await?;
            for raw in &page.items {
                let object: Only = serde_json::from_str(raw.get())
                    .map_err(|e| Failure::Terminal(format!("{collection}: {e}")))?;
                let meta = object.metadata;
                contents.push(Content {
                    target: resource.target(name, meta.name.as_deref().unwrap_or("")),
                    uid: meta.uid,
                    leaving: others || meta.deletion_timestamp.is_some(),
                });
            }
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        Ok(contents)
    }
}

/// Everything that the namespace controller decides about one namespace.
pub fn reconcile(world: &World) -> Plan {
    let mut plan = Plan::none();
    if !world.contents.is_empty() {
        for content in world.contents.iter().filter(|c| !c.leaving) {
            let mut delete = Write::delete(content.target.clone()).if_uid(content.uid.as_deref());
            delete.body = json!({"propagationPolicy": "Background"});
            plan.write(delete);
        }
        plan.look_after(AGAIN);
        return plan;
    }
    let finalizers: Vec<&Value> = world.namespace["spec"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    if !finalizers.iter().any(|f| **f == FINALIZER) {
        return plan;
    }
    let left: Vec<Value> = finalizers
        .into_iter()
        .filter(|f| **f != FINALIZER)
        .cloned()
        .collect();
    let mut body = world.namespace.clone();
    body["spec"]["finalizers"] = json!(left);
    let name = body["metadata"]["name"].as_str().unwrap_or("").to_string();
    plan.write(Write::put(
        Target::of::<Namespace>(&Key::new("", &name)),
        "finalize",
        body,
    ));
    plan
}

#[cfg(test)]
#[path = "namespace_tests.rs"]
mod tests;
