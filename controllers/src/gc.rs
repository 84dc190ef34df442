//! The garbage collector: what has lost all its owners goes.
//!
//! It follows ownerReferences by uid over metadata-only watches of every kind but Tasks and
//! JobLedgers (placement removes those) and Events (nobody owns them, and they are many). Before
//! it deletes it asks the API for the owner: a cache that is behind must not cost an object. An
//! owner in another namespace counts as absent. Deletion in the background, in the foreground
//! (finalizer `foregroundDeletion`) and with orphans (finalizer `orphan`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::{DynamicObject, PartialObjectMeta};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::discovery::{Resource, discover};
use crate::runtime::client::{METADATA, METADATA_LIST};
use crate::runtime::{
    Change, Context, Controller, Failure, HandlerGuard, Informer, Informers, Key, Plan, Queue,
    Rest, Source, Write, backoff,
};

/// New kinds (users' own) are noticed after this long.
const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

type Meta = PartialObjectMeta<DynamicObject>;

/// The garbage collector.
pub struct Collector {
    rest: Rest,
    graph: Arc<Mutex<Graph>>,
    kinds: Arc<Mutex<Vec<Resource>>>,
}

/// An object as far as ownership goes.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its kind.
    pub resource: Arc<Resource>,
    /// Its metadata.
    pub meta: Arc<ObjectMeta>,
}

impl Item {
    fn has(&self, finalizer: &str) -> bool {
        self.meta
            .finalizers
            .as_ref()
            .is_some_and(|f| f.iter().any(|f| f == finalizer))
    }

    fn deleting(&self) -> bool {
        self.meta.deletion_timestamp.is_some()
    }

    fn owners(&self) -> &[OwnerReference] {
        self.meta.owner_references.as_deref().unwrap_or(&[])
    }

    fn delete(&self, policy: &str) -> Write {
        let mut write = Write::delete(self.target()).if_uid(self.meta.uid.as_deref());
        write.body = json!({"propagationPolicy": policy});
        write
    }

    fn target(&self) -> crate::runtime::Target {
        self.resource.target(
            self.meta.namespace.as_deref().unwrap_or(""),
            self.meta.name.as_deref().unwrap_or(""),
        )
    }

    /// A patch of its metadata, if it is still as seen.
    fn patch(&self, metadata: Value) -> Write {
        Write::patch(self.target(), json!({"metadata": metadata}))
            .if_uid(self.meta.uid.as_deref())
            .if_version(self.meta.resource_version.as_deref())
    }

    fn without_owners(&self, gone: &BTreeSet<String>) -> Write {
        let left: Vec<&OwnerReference> = self
            .owners()
            .iter()
            .filter(|o| !gone.contains(&o.uid))
            .collect();
        self.patch(json!({"ownerReferences": left}))
    }

    fn without_finalizer(&self, finalizer: &str) -> Write {
        let left: Vec<&String> = self
            .meta
            .finalizers
            .iter()
            .flatten()
            .filter(|f| *f != finalizer)
            .collect();
        self.patch(json!({"finalizers": left}))
    }
}

/// Who owns whom, by uid.
#[derive(Default)]
struct Graph {
    items: HashMap<String, Item>,
    dependants: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Takes a change in and returns the uids that want a look.
    fn take(&mut self, resource: &Arc<Resource>, change: &Change<Meta>) -> Vec<String> {
        let mut look = Vec::new();
        let old_uid = change.old.as_ref().and_then(|o| o.metadata.uid.clone());
        let new_uid = change.new.as_ref().and_then(|o| o.metadata.uid.clone());
        if let (Some(uid), Some(old)) = (&old_uid, &change.old) {
            for owner in old.metadata.owner_references.iter().flatten() {
                if let Some(set) = self.dependants.get_mut(&owner.uid) {
                    set.remove(uid);
                    if set.is_empty() {
                        self.dependants.remove(&owner.uid);
                    }
                }
                // An owner may wait for this one to go or to let go.
                look.push(owner.uid.clone());
            }
            if old_uid != new_uid {
                self.items.remove(uid);
                look.extend(self.dependants.get(uid).into_iter().flatten().cloned());
            }
        }
        if let (Some(uid), Some(new)) = (new_uid, &change.new) {
            for owner in new.metadata.owner_references.iter().flatten() {
                let set = self.dependants.entry(owner.uid.clone()).or_default();
                set.insert(uid.clone());
            }
            let item = Item {
                resource: resource.clone(),
                meta: Arc::new(new.metadata.clone()),
            };
            if !item.owners().is_empty() || item.deleting() {
                look.push(uid.clone());
            }
            if item.deleting() {
                look.extend(self.dependants.get(&uid).into_iter().flatten().cloned());
            }
            self.items.insert(uid, item);
        }
        look
    }
}

/// How an owner stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// There, or of a kind that nobody knows: keeps its dependants.
    Present,
    /// There, but waits for its dependants to go first.
    Waiting,
    /// Not there.
    Absent,
}

/// An object, its owners and its dependants.
#[derive(Clone, Debug)]
pub struct World {
    /// The object.
    pub item: Item,
    /// Its owners' uids and how they stand.
    pub owners: Vec<(String, Owner)>,
    /// What it owns.
    pub dependants: Vec<Item>,
}

impl Controller for Collector {
    const NAME: &'static str = "gc";
    const WORKERS: usize = 2;
    type World = World;

    fn new(ctx: &Context) -> Self {
        Collector {
            rest: ctx.rest.clone(),
            graph: Arc::default(),
            kinds: Arc::default(),
        }
    }

    fn warm(_: &Informers) {}

    async fn wire(&self, ctx: &Context, queue: &Arc<Queue>) -> Vec<HandlerGuard> {
        // Watches of a term, so that a standby does not hold the whole cluster's metadata.
        let stop = ctx.stop.child_token();
        let follow = Follow {
            rest: self.rest.clone(),
            graph: self.graph.clone(),
            kinds: self.kinds.clone(),
            queue: queue.clone(),
            seed: ctx.seed,
            stop: stop.clone(),
        };
        tokio::spawn(stop.run_until_cancelled_owned(follow.run()));
        Vec::new()
    }

    async fn observe(&self, key: &Key) -> Result<Option<World>, Failure> {
        let uid = key.name();
        let (item, known, dependants) = {
            let graph = self.graph.lock();
            let Some(item) = graph.items.get(uid).cloned() else {
                return Ok(None);
            };
            let known: Vec<(OwnerReference, Option<Item>)> = item
                .owners()
                .iter()
                .map(|o| (o.clone(), graph.items.get(&o.uid).cloned()))
                .collect();
            let dependants = graph
                .dependants
                .get(uid)
                .into_iter()
                .flatten()
                .filter_map(|d| graph.items.get(d).cloned())
                .collect();
            (item, known, dependants)
        };
        let mut owners = Vec::new();
        for (reference, owner) in known {
            let state = match owner {
                Some(owner) if reachable(&owner, &item) => {
                    if owner.deleting() && owner.has(FOREGROUND) {
                        Owner::Waiting
                    } else {
                        Owner::Present
                    }
                }
                Some(_) => Owner::Absent,
                None => self.ask(&reference, &item).await?,
            };
            owners.push((reference.uid, state));
        }
        Ok(Some(World {
            item,
            owners,
            dependants,
        }))
    }

    fn reconcile(world: &World, _now: Timestamp) -> Plan {
        reconcile(world)
    }
}

/// An owner is in the same namespace, or cluster-wide.
fn reachable(owner: &Item, item: &Item) -> bool {
    owner.meta.namespace.is_none() || owner.meta.namespace == item.meta.namespace
}

impl Collector {
    /// Asks the API whether an owner that no watch shows is there.
    async fn ask(&self, reference: &OwnerReference, item: &Item) -> Result<Owner, Failure> {
        let group = reference
            .api_version
            .rsplit_once('/')
            .map_or("", |(group, _)| group);
        let kind = self
            .kinds
            .lock()
            .iter()
            .find(|k| k.group == group && k.kind == reference.kind)
            .cloned();
        let Some(kind) = kind else {
            // Perhaps a kind whose definition is away for a moment: never delete on that.
            return Ok(Owner::Present);
        };
        let namespace = match (&item.meta.namespace, kind.namespaced) {
            (Some(namespace), true) => namespace.as_str(),
            // A cluster-wide object cannot be owned by one in a namespace.
            (None, true) => return Ok(Owner::Absent),
            (_, false) => "",
        };
        match self
            .rest
            .get::<Value>(&kind.target(namespace, &reference.name).path())
            .await
        {
            Ok(there) if there["metadata"]["uid"] == json!(reference.uid) => Ok(Owner::Present),
            Ok(_) | Err(Failure::NotFound(_)) => Ok(Owner::Absent),
            Err(failure) => Err(failure),
        }
    }
}

/// Keeps a metadata watch on every kind, as kinds come.
struct Follow {
    rest: Rest,
    graph: Arc<Mutex<Graph>>,
    kinds: Arc<Mutex<Vec<Resource>>>,
    queue: Arc<Queue>,
    seed: u64,
    stop: CancellationToken,
}

impl Follow {
    async fn run(self) {
        let mut running: BTreeMap<String, (CancellationToken, HandlerGuard)> = BTreeMap::new();
        let mut failures = 0;
        loop {
            let pause = match discover(&self.rest).await {
                Ok(kinds) => {
                    failures = 0;
                    self.follow(&kinds, &mut running);
                    *self.kinds.lock() = kinds;
                    backoff::jitter(self.seed, "discovery", 0, DISCOVERY_PERIOD)
                }
                Err(failure) => {
                    failures += 1;
                    tracing::debug!(%failure, "discovery failed");
                    backoff::delay(self.seed, "discovery", failures)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn follow(
        &self,
        kinds: &[Resource],
        running: &mut BTreeMap<String, (CancellationToken, HandlerGuard)>,
    ) {
        let wanted: BTreeMap<String, &Resource> = kinds
            .iter()
            .filter(|k| k.can(&["list", "watch"]) && !k.is_placements() && k.kind != "Event")
            .map(|k| (k.everywhere(), k))
            .collect();
        running.retain(|path, (stop, _)| {
            let keep = wanted.contains_key(path);
            if !keep {
                stop.cancel();
            }
            keep
        });
        for (path, kind) in wanted {
            running.entry(path).or_insert_with_key(|path| {
                let stop = self.stop.child_token();
                let source = Source {
                    path: path.clone(),
                    query: String::new(),
                    accept_list: METADATA_LIST,
                    accept_watch: METADATA,
                };
                let informer = Informer::<Meta>::start(
                    self.rest.clone(),
                    source,
                    &[],
                    self.seed,
                    stop.clone(),
                );
                let (graph, queue) = (self.graph.clone(), self.queue.clone());
                let resource = Arc::new(kind.clone());
                let guard = informer.on_change(move |change| {
                    let look = graph.lock().take(&resource, change);
                    for uid in look {
                        queue.add(&Key::new("", &uid));
                    }
                });
                (stop, guard)
            });
        }
    }
}

/// Everything that the collector decides about one object.
pub fn reconcile(world: &World) -> Plan {
    let mut plan = Plan::none();
    let item = &world.item;
    let uid = item.meta.uid.clone().unwrap_or_default();
    let mine: Vec<&Item> = world
        .dependants
        .iter()
        .filter(|d| reachable(item, d))
        .collect();
    if item.deleting() {
        if item.has(ORPHAN) {
            for dependant in &mine {
                plan.write(dependant.without_owners(&BTreeSet::from([uid.clone()])));
            }
            plan.then();
            plan.write(item.without_finalizer(ORPHAN));
        } else if item.has(FOREGROUND) {
            let blocking = mine.iter().any(|d| {
                d.owners()
                    .iter()
                    .any(|o| o.uid == uid && o.block_owner_deletion == Some(true))
            });
            if !blocking {
                plan.write(item.without_finalizer(FOREGROUND));
            }
        }
        return plan;
    }
    if world.owners.is_empty() {
        return plan;
    }
    let of = |state: Owner| -> BTreeSet<String> {
        world
            .owners
            .iter()
            .filter(|(_, s)| *s == state)
            .map(|(uid, _)| uid.clone())
            .collect()
    };
    let (present, waiting, absent) = (of(Owner::Present), of(Owner::Waiting), of(Owner::Absent));
    if !present.is_empty() {
        // Somebody keeps it: only let go of those who are gone or want to go.
        let gone: BTreeSet<String> = absent.union(&waiting).cloned().collect();
        if !gone.is_empty() {
            plan.write(item.without_owners(&gone));
        }
    } else if !waiting.is_empty() && !mine.is_empty() {
        plan.write(item.delete("Foreground"));
    } else {
        plan.write(item.delete("Background"));
    }
    plan
}

#[cfg(test)]
#[path = "gc_tests.rs"]
mod tests;
