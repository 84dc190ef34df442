//! Every combination of role, verb, resource and place is asked; what is allowed must be exactly
//! what the lists here say, so that a new rule without a line here fails.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use rota_api::names::USER_SERVER;

use super::*;
use crate::auth::authn::anonymous;

struct View;
impl NodeView for View {
    fn task_node(&self, ns: &str, name: &str) -> Option<String> {
        match (ns, name) {
            ("default", "mine") => Some("n1".into()),
            ("default", "other") => Some("n2".into()),
            _ => None,
        }
    }
    fn node_needs(&self, node: &str, _: &str, ns: &str, name: &str) -> bool {
        (node, ns, name) == ("n1", "default", "needed")
    }
}

const VERBS: &[&str] = &[
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
];
const RESOURCES: &[(&str, &str)] = &[
    (GROUP, "jobs"),
    (GROUP, "tasks"),
    (GROUP, "queues"),
    (GROUP, "jobrevisions"),
    (GROUP, "jobledgers"),
    ("", "nodes"),
    ("", "secrets"),
    ("", "configmaps"),
    ("", "namespaces"),
    ("", "events"),
    ("events.k8s.io", "events"),
    (COORDINATION, "leases"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
];
const SUBS: &[&str] = &["", "status", "scale", "log", "why", "finalize"];

fn node() -> Arc<User> {
    User::new("system:node:n1", &[GROUP_NODES])
}
fn controller(name: &str) -> Arc<User> {
    User::new(format!("rota:{name}"), &[GROUP_CONTROLLERS])
}
fn ask(user: &User, a: &Attributes) -> bool {
    authorize(user, a, &View).is_ok()
}

fn attributes(
    verb: &'static str,
    group: &str,
    resource: &str,
    sub: &str,
    ns: &str,
    name: &str,
) -> Attributes {
    Attributes {
        verb,
        group: group.into(),
        resource: resource.into(),
        subresource: sub.into(),
        namespace: ns.into(),
        name: name.into(),
        ..Default::default()
    }
}

/// `group/resource[/sub] verb` for all that is allowed to a user for some object of a strange
/// name in namespace `default`.
fn allowed(user: &User, ns: &str, name: &str) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for (group, resource) in RESOURCES {
        for sub in SUBS {
            for verb in VERBS {
                let a = attributes(verb, group, resource, sub, ns, name);
                if ask(user, &a) {
                    let sub = if sub.is_empty() {
                        String::new()
                    } else {
                        format!("/{sub}")
                    };
                    out.insert(format!("{group}/{resource}{sub} {verb}"));
                }
            }
        }
    }
    out
}

fn expand(lines: &[(&str, &[&str])]) -> BTreeSet<String> {
    lines
        .iter()
        .flat_map(|(r, verbs)| verbs.iter().map(move |v| format!("{r} {v}")))
        .collect()
}

const EVENT_WRITES: &[(&str, &[&str])] = &[
    ("/events", &["create", "update", "patch"]),
    ("events.k8s.io/events", &["create", "update", "patch"]),
];

fn controller_base() -> BTreeSet<String> {
    let mut out = expand(EVENT_WRITES);
    for r in ["jobs", "tasks", "queues", "jobrevisions", "jobledgers"] {
        for sub in ["", "/status", "/scale"] {
            for verb in READ {
                out.insert(format!("rota.dev/{r}{sub} {verb}"));
            }
        }
    }
    for r in ["/nodes", "/namespaces", "/events"] {
        for sub in ["", "/status"] {
            for verb in READ {
                out.insert(format!("{r}{sub} {verb}"));
            }
        }
    }
    out.extend(expand(&[("coordination.k8s.io/leases", READ)]));
    out
}

fn check(user: &User, extra: &[(&str, &[&str])]) {
    let mut want = controller_base();
    want.extend(expand(extra));
    let got = allowed(user, "default", "strange");
    let more: Vec<_> = got.difference(&want).collect();
    let less: Vec<_> = want.difference(&got).collect();
    assert!(
        more.is_empty() && less.is_empty(),
        "{}: too much {more:?}, too little {less:?}",
        user.name
    );
}

#[test]
fn callers_without_a_role_may_touch_no_object() {
    for user in [
        anonymous(),
        User::new("ann", &["devs"]),
        User::new("system:bootstrap:x", &[GROUP_BOOTSTRAPPERS]),
        // The name alone, or the group alone, is no role.
        User::new("system:node:n1", &[]),
        User::new("n1", &[GROUP_NODES]),
        User::new("system:node:", &[GROUP_NODES]),
        User::new("rota:placement", &[]),
        User::new("placement", &[GROUP_CONTROLLERS]),
    ] {
        assert_eq!(
            allowed(&user, "default", "mine"),
            BTreeSet::new(),
            "{user:?}"
        );
        assert_eq!(allowed(&user, "", ""), BTreeSet::new(), "{user:?}");
    }
}

#[test]
fn masters_may_do_everything() {
    let admin = User::new("system:admin", &[GROUP_MASTERS]);
    let all = RESOURCES.len() * SUBS.len() * VERBS.len();
    assert_eq!(allowed(&admin, "default", "x").len(), all);
}

#[test]
fn a_node_may_touch_only_its_own() {
    let lines = |user: &User, ns: &str, name: &str| allowed(user, ns, name);
    let events = expand(EVENT_WRITES);
    assert_eq!(lines(&node(), "default", "strange"), events);
    let mut tasks = expand(&[
        ("rota.dev/tasks", &["get"]),
        ("rota.dev/tasks/status", &["get", "update", "patch"]),
    ]);
    tasks.extend(events.clone());
    assert_eq!(lines(&node(), "default", "mine"), tasks);
    assert_eq!(lines(&node(), "default", "other"), events);
    let mut needed = expand(&[
        ("/secrets", &["get"]),
        ("/configmaps", &["get"]),
        ("rota.dev/jobrevisions", &["get"]),
    ]);
    needed.extend(events.clone());
    assert_eq!(lines(&node(), "default", "needed"), needed);
    assert_eq!(
        lines(
            &User::new("system:node:n2", &[GROUP_NODES]),
            "default",
            "needed"
        ),
        events
    );
    let mut own = expand(&[
        (
            "/nodes",
            &["get", "list", "watch", "create", "update", "patch"],
        ),
        ("/nodes/status", &["get", "update", "patch"]),
    ]);
    own.extend(events.clone());
    assert_eq!(lines(&node(), "", "n1"), own);
    let mut lease = expand(&[
        (
            "/nodes",
            &["get", "list", "watch", "create", "update", "patch"],
        ),
        ("/nodes/status", &["get", "update", "patch"]),
        (
            "coordination.k8s.io/leases",
            &["get", "create", "update", "patch"],
        ),
    ]);
    lease.extend(events.clone());
    assert_eq!(lines(&node(), NODE_LEASE_NAMESPACE, "n1"), lease);
    assert_eq!(lines(&node(), NODE_LEASE_NAMESPACE, "n2"), events);
    assert_eq!(lines(&node(), SYSTEM_NAMESPACE, "placement"), events);
}

#[test]
fn a_node_lists_tasks_only_by_its_own_name() {
    for (selected, want) in [(Some("n1"), true), (Some("n2"), false), (None, false)] {
        for verb in ["list", "watch"] {
            for ns in ["", "default"] {
                let mut a = attributes(verb, GROUP, "tasks", "", ns, "");
                a.selected_node = selected.map(String::from);
                assert_eq!(ask(&node(), &a), want, "{verb} {selected:?}");
                a.resource = "jobs".into();
                assert!(!ask(&node(), &a));
            }
        }
    }
}

#[test]
fn each_controller_has_its_table() {
    check(
        &controller("placement"),
        &[
            ("rota.dev/tasks", &["create", "delete", "update", "patch"]),
            (
                "rota.dev/jobledgers",
                &["create", "delete", "update", "patch"],
            ),
            ("rota.dev/jobs", WRITE),
            ("rota.dev/jobs/status", WRITE),
            ("rota.dev/queues/status", WRITE),
        ],
    );
    check(
        &controller("job"),
        &[
            ("rota.dev/jobs", &["update", "patch", "delete"]),
            ("rota.dev/jobs/status", WRITE),
            (
                "rota.dev/jobrevisions",
                &["create", "update", "patch", "delete"],
            ),
        ],
    );
    check(
        &controller("node"),
        &[
            ("/nodes", WRITE),
            ("/nodes/status", WRITE),
            ("rota.dev/tasks/status", WRITE),
        ],
    );
    check(&controller("unheard-of"), &[]);
    let resources: Vec<String> = RESOURCES.iter().map(|(g, r)| format!("{g}/{r}")).collect();
    let mut namespace: Vec<(&str, &[&str])> = vec![
        ("/namespaces", WRITE),
        ("/namespaces/status", WRITE),
        ("/namespaces/finalize", WRITE),
    ];
    let mut gc: Vec<(&str, &[&str])> = Vec::new();
    for r in &resources {
        namespace.push((r, &["get", "list", "watch", "delete", "deletecollection"]));
        gc.push((r, READ));
        if !matches!(r.as_str(), "rota.dev/tasks" | "rota.dev/jobledgers") {
            gc.push((r, &["update", "patch", "delete"]));
        }
    }
    check(&controller("namespace"), &namespace);
    check(&controller("gc"), &gc);
}

#[test]
fn controllers_hold_only_their_own_lease() {
    let lease = |verb, ns: &str, name: &str| attributes(verb, COORDINATION, "leases", "", ns, name);
    for verb in ["create", "update", "patch"] {
        assert!(ask(
            &controller("job"),
            &lease(verb, SYSTEM_NAMESPACE, "job")
        ));
        assert!(!ask(
            &controller("job"),
            &lease(verb, SYSTEM_NAMESPACE, "placement")
        ));
        assert!(!ask(&controller("job"), &lease(verb, "default", "job")));
    }
    assert!(ask(
        &controller("node"),
        &lease("patch", NODE_LEASE_NAMESPACE, "n1")
    ));
    assert!(!ask(
        &controller("job"),
        &lease("patch", NODE_LEASE_NAMESPACE, "n1")
    ));
}

#[test]
fn paths() {
    let path = |user: &User, verb: &'static str, path: &str| {
        let a = Attributes {
            verb,
            path: path.into(),
            ..Default::default()
        };
        ask(user, &a)
    };
    let token = User::new("system:bootstrap:x", &[GROUP_BOOTSTRAPPERS]);
    let ann = User::new("ann", &[]);
    for p in ["/livez", "/readyz", "/version", "/readyz/store"] {
        assert!(path(&anonymous(), "get", p), "{p}");
        assert!(!path(&anonymous(), "post", p), "{p}");
    }
    for p in [
        "/",
        "/api",
        "/apis",
        "/openapi/v3",
        "/metrics",
        "/livezz",
        PATH_BULK,
        PATH_CERTIFICATES,
    ] {
        for verb in ["get", "post"] {
            assert!(!path(&anonymous(), verb, p), "{p}");
        }
        assert!(!path(&token, "get", p), "{p}");
    }
    assert!(path(&token, "post", PATH_CERTIFICATES));
    assert!(path(&node(), "post", PATH_CERTIFICATES));
    assert!(!path(&ann, "post", PATH_CERTIFICATES));
    assert!(!path(&token, "post", PATH_BULK));
    assert!(path(&ann, "get", "/apis/rota.dev/v1") && path(&ann, "get", "/openapi/v3"));
    assert!(!path(&ann, "get", "/metrics") && !path(&node(), "get", "/metrics"));
    assert!(path(&node(), "get", "/rota/v1/nodes/n1/tunnel"));
    assert!(!path(&node(), "get", "/rota/v1/nodes/n2/tunnel"));
    assert!(!path(&node(), "get", "/rota/v1/nodes/n1"));
    assert!(!path(&ann, "get", "/rota/v1/nodes/n1/tunnel"));
    assert!(!path(
        &controller("node"),
        "get",
        "/rota/v1/nodes/n1/tunnel"
    ));
    assert!(path(&controller("placement"), "get", PATH_PLACEMENT_TUNNEL));
    for user in [node(), ann.clone(), controller("job")] {
        assert!(!path(&user, "get", PATH_PLACEMENT_TUNNEL), "{user:?}");
    }
    let server = User::new(USER_SERVER, &[GROUP_SERVERS]);
    let relayed = "/rota/v1/relay/nodes/n1/logs/u/0/0";
    for verb in ["get", "post"] {
        assert!(path(&server, verb, relayed));
        for user in [node(), ann.clone(), controller("placement")] {
            assert!(!path(&user, verb, relayed), "{user:?}");
        }
        for other in [
            "/rota/v1/relayed/nodes/n1",
            "/rota/v1/nodes/n1/metrics",
            PATH_BULK,
            PATH_PLACEMENT_TUNNEL,
        ] {
            assert!(!path(&server, verb, other), "{other}");
        }
    }
    assert!(!path(&server, "delete", relayed));
}

#[test]
fn the_text_is_kubernetes() {
    let a = attributes("delete", GROUP, "jobs", "", "n", "x");
    assert_eq!(
        authorize(&User::new("u", &[]), &a, &View).unwrap_err(),
        r#"User "u" cannot delete resource "jobs" in API group "rota.dev" in the namespace "n""#
    );
    let a = attributes("patch", "", "nodes", "status", "", "x");
    assert_eq!(
        authorize(&User::new("u", &[]), &a, &View).unwrap_err(),
        r#"User "u" cannot patch resource "nodes/status" in API group "" at the cluster scope"#
    );
}

#[test]
fn a_node_keeps_what_the_operator_set() {
    let old = json!({
        "metadata": {"name": "n1", "labels": {"rota.dev/pool": "a", "kubernetes.io/hostname": "h", "mine": "1"},
                     "annotations": {"rota.dev/epoch": "3"}},
        "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}
    });
    let change = |pointer: &str, value: Value| {
        let mut new = old.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        new.pointer_mut(parent).unwrap()[key.replace("~1", "/")] = value;
        (
            check_node_change(&node(), &old, &new),
            check_node_change(&controller("node"), &old, &new),
        )
    };
    for (pointer, value) in [
        ("/metadata/labels/mine", json!("2")),
        ("/metadata/labels/example.com~1x", json!("2")),
        ("/metadata/labels/notrota.dev~1x", json!("2")),
        ("/metadata/labels/kubernetes.io~1hostname", json!("g")),
        ("/metadata/annotations/rota.dev~1epoch", json!("4")),
        ("/metadata/finalizers", json!([])),
        ("/spec/unschedulable", json!(false)),
        ("/status", json!({"capacity": {"cpu": "1"}})),
    ] {
        let (by_node, _) = change(pointer, value);
        assert_eq!(by_node, Ok(()), "{pointer}");
    }
    for (pointer, value) in [
        ("/metadata/labels/rota.dev~1pool", json!("b")),
        (
            "/metadata/labels/node-role.kubernetes.io~1control-plane",
            json!(""),
        ),
        ("/metadata/labels/x.rota.dev~1y", json!("")),
        ("/metadata/labels", json!({})),
        ("/metadata/annotations/rota.dev~1epoch", json!("2")),
        ("/metadata/annotations/rota.dev~1epoch", json!("x")),
        (
            "/metadata/annotations/rota.dev~1tunnel-server",
            json!("https://elsewhere"),
        ),
        ("/metadata/annotations", json!({})),
        ("/metadata/finalizers", json!(["a/b"])),
        ("/spec/unschedulable", json!(true)),
        ("/spec/taints", json!([])),
        ("/spec", json!({})),
    ] {
        let (by_node, by_controller) = change(pointer, value);
        assert!(by_node.is_err(), "{pointer}");
        assert_eq!(by_controller, Ok(()), "{pointer}");
    }
    let named = |n: &str| json!({"metadata": {"name": n}});
    for plural in ["nodes", "leases"] {
        assert!(check_node_create(&node(), plural, &named("n1")).is_ok());
        assert!(check_node_create(&node(), plural, &named("n2")).is_err());
        assert!(check_node_create(&controller("node"), plural, &named("n2")).is_ok());
    }
    assert!(check_node_create(&node(), "events", &named("x")).is_ok());
}
