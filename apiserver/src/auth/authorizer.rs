//! The fixed authorizer: who may do what before RBAC exists.
//!
//! Promises: everything that no row of [`RULES`] allows is denied; a row names its role, so that
//! what a role may do is read in one place; nothing here depends on the order of rows.

use rota_api::names::{
    ANNOTATION_EPOCH, ANNOTATION_TUNNEL_SERVER, GROUP, GROUP_BOOTSTRAPPERS, GROUP_MASTERS,
    GROUP_NODES, GROUP_SERVERS, LEASE_PLACEMENT, NODE_LEASE_NAMESPACE, PATH_PLACEMENT_TUNNEL,
    PATH_RELAY, SYSTEM_NAMESPACE, USER_CONTROLLER_PREFIX, USER_NODE_PREFIX,
};
use serde_json::Value;

use super::authn::GROUP_UNAUTHENTICATED;
use super::{Attributes, User};

/// Group of the controllers' users.
pub const GROUP_CONTROLLERS: &str = "system:controllers";
/// Path of certificate requests.
pub const PATH_CERTIFICATES: &str = "/rota/v1/certificates";
/// Path of bulk writes; each item is authorised by itself.
pub const PATH_BULK: &str = "/apis/rota.dev/v1/bulk";

/// What the authorizer must know of the cluster's state.
pub trait NodeView {
    /// The node that a Task is bound to.
    fn task_node(&self, namespace: &str, name: &str) -> Option<String>;
    /// Whether a Task on the node names this object. `resource`: `secrets`, `configmaps` or `jobrevisions`.
    fn node_needs(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool;
}

/// Who a row is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Every caller with an identity.
    Authenticated,
    /// A join token.
    Bootstrapper,
    /// An agent, `system:node:<name>`.
    Node,
    /// Another API server.
    Server,
    /// Every controller.
    Controller,
    /// One controller by its short name, such as `placement`.
    The(&'static str),
}

/// What else must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Only {
    /// Nothing.
    Any,
    /// The object is named as the node. A create may come without a name, then
    /// [`check_node_create`] looks at the object.
    OwnName,
    /// As `OwnName`, and in this namespace.
    OwnNameIn(&'static str),
    /// In this namespace.
    In(&'static str),
    /// A Task bound to the node.
    OwnTask,
    /// A list or watch restricted to the node's Tasks.
    OwnTasks,
    /// An object that a Task of the node names.
    Needed,
    /// The controller's own leader Lease.
    LeaderLease,
}

struct Rule {
    role: Role,
    verbs: &'static [&'static str],
    group: &'static str,
    resources: &'static [&'static str],
    /// Allowed subresources; `""` is the object itself.
    subs: &'static [&'static str],
    only: Only,
}

const fn rule(
    role: Role,
    verbs: &'static [&'static str],
    group: &'static str,
    resources: &'static [&'static str],
    subs: &'static [&'static str],
    only: Only,
) -> Rule {
    Rule {
        role,
        verbs,
        group,
        resources,
        subs,
        only,
    }
}

const ALL: &str = "*";
const OBJECT: &[&str] = &[""];
const STATUS: &[&str] = &["status"];
const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["update", "patch"];
const COORDINATION: &str = "coordination.k8s.io";
/// What a controller with the right to delete nearly everything must still leave alone: their
/// removal is placement's, after the ledger has counted them.
const LEDGERED: &[(&str, &str)] = &[(GROUP, "tasks"), (GROUP, "jobledgers")];

#[rustfmt::skip]
const RULES: &[Rule] = &[
    rule(Role::Authenticated, &["create"], "authentication.k8s.io", &["selfsubjectreviews"], OBJECT, Only::Any),
    rule(Role::Authenticated, &["create"], "authorization.k8s.io", &["selfsubjectaccessreviews", "selfsubjectrulesreviews"], OBJECT, Only::Any),

    rule(Role::Node, &["get", "list", "watch", "create", "update", "patch"], "", &["nodes"], OBJECT, Only::OwnName),
    rule(Role::Node, &["get", "update", "patch"], "", &["nodes"], STATUS, Only::OwnName),
    rule(Role::Node, &["get", "create", "update", "patch"], COORDINATION, &["leases"], OBJECT, Only::OwnNameIn(NODE_LEASE_NAMESPACE)),
    rule(Role::Node, &["list", "watch"], GROUP, &["tasks"], OBJECT, Only::OwnTasks),
    rule(Role::Node, &["get"], GROUP, &["tasks"], OBJECT, Only::OwnTask),
    rule(Role::Node, &["get", "update", "patch"], GROUP, &["tasks"], STATUS, Only::OwnTask),
    rule(Role::Node, &["get"], GROUP, &["jobrevisions"], OBJECT, Only::Needed),
    rule(Role::Node, &["get"], "", &["secrets", "configmaps"], OBJECT, Only::Needed),
    rule(Role::Node, &["create", "update", "patch"], "", &["events"], OBJECT, Only::Any),
    rule(Role::Node, &["create", "update", "patch"], "events.k8s.io", &["events"], OBJECT, Only::Any),

    rule(Role::Controller, READ, GROUP, &[ALL], &["", "status", "scale"], Only::Any),
    rule(Role::Controller, READ, "", &["nodes", "namespaces", "events"], &["", "status"], Only::Any),
    rule(Role::Controller, READ, COORDINATION, &["leases"], OBJECT, Only::Any),
    rule(Role::Controller, &["create", "update", "patch"], "", &["events"], OBJECT, Only::Any),
    rule(Role::Controller, &["create", "update", "patch"], "events.k8s.io", &["events"], OBJECT, Only::Any),
    rule(Role::Controller, &["create", "get", "update", "patch"], COORDINATION, &["leases"], OBJECT, Only::LeaderLease),

    rule(Role::The("placement"), &["create", "delete", "update", "patch"], GROUP, &["tasks", "jobledgers"], OBJECT, Only::Any),
    rule(Role::The("placement"), WRITE, GROUP, &["jobs"], OBJECT, Only::Any),
    rule(Role::The("placement"), WRITE, GROUP, &["jobs", "queues"], STATUS, Only::Any),

    rule(Role::The("job"), WRITE, GROUP, &["jobs"], STATUS, Only::Any),
    rule(Role::The("job"), &["update", "patch", "delete"], GROUP, &["jobs"], OBJECT, Only::Any),
    rule(Role::The("job"), &["create", "update", "patch", "delete"], GROUP, &["jobrevisions"], OBJECT, Only::Any),

    rule(Role::The("node"), WRITE, "", &["nodes"], &["", "status"], Only::Any),
    rule(Role::The("node"), WRITE, GROUP, &["tasks"], STATUS, Only::Any),
    rule(Role::The("node"), &["create", "update", "patch", "delete"], COORDINATION, &["leases"], OBJECT, Only::In(NODE_LEASE_NAMESPACE)),

    rule(Role::The("namespace"), READ, ALL, &[ALL], OBJECT, Only::Any),
    rule(Role::The("namespace"), &["delete", "deletecollection"], ALL, &[ALL], OBJECT, Only::Any),
    rule(Role::The("namespace"), WRITE, "", &["namespaces"], &["", "status", "finalize"], Only::Any),

    rule(Role::The("gc"), READ, ALL, &[ALL], OBJECT, Only::Any),
    rule(Role::The("gc"), &["delete", "update", "patch"], ALL, &[ALL], OBJECT, Only::Any),
];

/// Paths that need no identity.
const PUBLIC_PATHS: &[&str] = &["/livez", "/readyz", "/version"];
/// Paths, and everything below them, that every identity may read: discovery and schemas.
const DISCOVERY_PATHS: &[&str] = &["/api", "/apis", "/openapi", "/healthz"];

/// Whether `user` may do this; the error is the text for a 403.
pub fn authorize(user: &User, attributes: &Attributes, view: &dyn NodeView) -> Result<(), String> {
    if user.in_group(GROUP_MASTERS) {
        return Ok(());
    }
    let allowed = if attributes.resource.is_empty() {
        path_allowed(user, attributes)
    } else {
        RULES
            .iter()
            .any(|rule| matches(rule, user, attributes, view))
    };
    if allowed {
        Ok(())
    } else {
        Err(reason(user, attributes))
    }
}

/// The node that a user is, if it is one.
pub fn node_of(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix(USER_NODE_PREFIX)?;
    (user.in_group(GROUP_NODES) && !name.is_empty()).then_some(name)
}

/// The controller that a user is, if it is one.
pub fn controller_of(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix(USER_CONTROLLER_PREFIX)?;
    user.in_group(GROUP_CONTROLLERS).then_some(name)
}

fn has_role(role: Role, user: &User) -> bool {
    match role {
        Role::Authenticated => !user.in_group(GROUP_UNAUTHENTICATED),
        Role::Bootstrapper => user.in_group(GROUP_BOOTSTRAPPERS),
        Role::Node => node_of(user).is_some(),
        Role::Server => user.in_group(GROUP_SERVERS),
        Role::Controller => controller_of(user).is_some(),
        Role::The(name) => controller_of(user) == Some(name),
    }
}

fn path_allowed(user: &User, a: &Attributes) -> bool {
    let below = |paths: &[&str]| {
        paths.iter().any(|p| {
            a.path
                .strip_prefix(p)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    };
    let read = matches!(a.verb, "get" | "head" | "options");
    if read && below(PUBLIC_PATHS) {
        return true;
    }
    if !has_role(Role::Authenticated, user) {
        return false;
    }
    if a.path == PATH_CERTIFICATES {
        return a.verb == "post"
            && (has_role(Role::Bootstrapper, user) || has_role(Role::Node, user));
    }
    // A join token is for joining and nothing else.
    if has_role(Role::Bootstrapper, user) {
        return false;
    }
    if has_role(Role::Server, user) {
        let relayed = a.path.strip_prefix(PATH_RELAY);
        return relayed.is_some_and(|end| end.starts_with('/')) && matches!(a.verb, "get" | "post");
    }
    if a.path == PATH_BULK {
        return a.verb == "post";
    }
    if a.path == PATH_PLACEMENT_TUNNEL {
        return a.verb == "get" && has_role(Role::The(LEASE_PLACEMENT), user);
    }
    if let Some(rest) = a.path.strip_prefix("/rota/v1/nodes/") {
        return a.verb == "get"
            && node_of(user).is_some_and(|n| rest.strip_suffix("/tunnel") == Some(n));
    }
    read && below(DISCOVERY_PATHS)
}

fn matches(rule: &Rule, user: &User, a: &Attributes, view: &dyn NodeView) -> bool {
    let listed = |list: &[&str], item: &str| list.contains(&item) || list.contains(&ALL);
    if !rule.verbs.contains(&a.verb)
        || !(rule.group == ALL || rule.group == a.group)
        || !listed(rule.resources, &a.resource)
        || !rule.subs.contains(&a.subresource.as_str())
        || !has_role(rule.role, user)
    {
        return false;
    }
    if rule.role == Role::The("gc")
        && !READ.contains(&a.verb)
        && LEDGERED.contains(&(a.group.as_str(), a.resource.as_str()))
    {
        return false;
    }
    let node = node_of(user).unwrap_or("");
    let own_name = |name: &str| a.name == name || (a.name.is_empty() && a.verb == "create");
    match rule.only {
        Only::Any => true,
        Only::OwnName => own_name(node),
        Only::OwnNameIn(ns) => a.namespace == ns && own_name(node),
        Only::In(ns) => a.namespace == ns,
        Only::OwnTask => view
            .task_node(&a.namespace, &a.name)
            .is_some_and(|n| n == node),
        Only::OwnTasks => a.selected_node.as_deref() == Some(node),
        Only::Needed => {
            !a.name.is_empty() && view.node_needs(node, &a.resource, &a.namespace, &a.name)
        }
        Only::LeaderLease => {
            a.namespace == SYSTEM_NAMESPACE && own_name(controller_of(user).unwrap_or(""))
        }
    }
}

/// The text of a 403, as Kubernetes words it.
fn reason(user: &User, a: &Attributes) -> String {
    if a.resource.is_empty() {
        return format!("User {:?} cannot {} path {:?}", user.name, a.verb, a.path);
    }
    let resource = if a.subresource.is_empty() {
        a.resource.clone()
    } else {
        format!("{}/{}", a.resource, a.subresource)
    };
    let place = if a.namespace.is_empty() {
        "at the cluster scope".to_string()
    } else {
        format!("in the namespace {:?}", a.namespace)
    };
    format!(
        "User {:?} cannot {} resource {resource:?} in API group {:?} {place}",
        user.name, a.verb, a.group
    )
}

/// What an agent may create is also a matter of the object: its Node and its Lease carry its name.
/// For other users and kinds this says nothing.
pub fn check_node_create(user: &User, plural: &str, new: &Value) -> Result<(), String> {
    let Some(node) = node_of(user) else {
        return Ok(());
    };
    if !matches!(plural, "nodes" | "leases") {
        return Ok(());
    }
    if new["metadata"]["name"].as_str() != Some(node) {
        return Err(format!(
            "node {node:?} may create only objects named {node:?} here"
        ));
    }
    if !new["metadata"]["annotations"][ANNOTATION_TUNNEL_SERVER].is_null() {
        return Err(format!(
            "a node may not set the annotation {ANNOTATION_TUNNEL_SERVER:?}"
        ));
    }
    Ok(())
}

/// Labels under a reserved domain that an agent may still correct later: facts of the machine.
const NODE_FACTS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
];
/// Domains whose labels steer placement and belong to the operator once the node is registered.
const RESERVED_DOMAINS: &[&str] = &["rota.dev", "kubernetes.io", "k8s.io"];

fn reserved(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else {
        return false;
    };
    !NODE_FACTS.contains(&key)
        && RESERVED_DOMAINS.iter().any(|d| {
            domain
                .strip_suffix(d)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
}

/// Whether an agent may change its Node so: labels under reserved domains, taints, cordon, owners
/// and finalizers are the operator's after registration, and the epoch never goes down. For
/// other users this says nothing.
pub fn check_node_change(user: &User, old: &Value, new: &Value) -> Result<(), String> {
    if node_of(user).is_none() {
        return Ok(());
    }
    let empty = serde_json::Map::new();
    let labels = |v: &Value| v["metadata"]["labels"].as_object().cloned();
    let (before, after) = (
        labels(old).unwrap_or(empty.clone()),
        labels(new).unwrap_or(empty),
    );
    if let Some(key) = before
        .keys()
        .chain(after.keys())
        .find(|k| reserved(k) && before.get(*k) != after.get(*k))
    {
        return Err(format!("a node may not change its label {key:?}"));
    }
    let none = |v: &Value| match v {
        Value::Array(a) if a.is_empty() => Value::Null,
        Value::Bool(false) => Value::Null,
        other => other.clone(),
    };
    for path in [
        "/spec/taints",
        "/spec/unschedulable",
        "/metadata/ownerReferences",
        "/metadata/finalizers",
    ] {
        let at = |v: &Value| none(v.pointer(path).unwrap_or(&Value::Null));
        if at(old) != at(new) {
            let field = path.trim_start_matches('/').replace('/', ".");
            return Err(format!("a node may not change its {field}"));
        }
    }
    // Servers connect to where this points.
    let holder = |v: &Value| v["metadata"]["annotations"][ANNOTATION_TUNNEL_SERVER].clone();
    if holder(old) != holder(new) {
        return Err(format!(
            "a node may not change its annotation {ANNOTATION_TUNNEL_SERVER:?}"
        ));
    }
    let epoch = |v: &Value| {
        v["metadata"]["annotations"][ANNOTATION_EPOCH]
            .as_str()
            .and_then(|e| e.parse::<u64>().ok())
    };
    if epoch(new) < epoch(old) {
        return Err(format!(
            "a node may not lower its annotation {ANNOTATION_EPOCH:?}"
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "authorizer_tests.rs"]
mod tests;
