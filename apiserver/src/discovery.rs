//! Discovery: what the server serves, in the legacy form and in the aggregated one.
//!
//! Everything follows from the table of kinds, in its order, so that `kubectl get jobs` finds
//! rota.dev first.

use rota_api::registry::Kind;
use serde_json::{Value, json};

/// Verbs of a stored kind.
const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// Verbs of the status and scale subresources.
const SUB_VERBS: &[&str] = &["get", "patch", "update"];

/// `Content-Type` of the aggregated form, version 2.
pub const AGGREGATED_V2: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// `Content-Type` of the aggregated form, version 2beta1.
pub const AGGREGATED_V2BETA1: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// A subresource of a kind.
struct Sub {
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
}

fn subresources(kind: &Kind) -> Vec<Sub> {
    let mut subs = Vec::new();
    if kind.group == rota_api::names::GROUP && matches!(kind.kind, "Job" | "Task") {
        subs.push(Sub {
            name: "log",
            group: kind.group,
            version: kind.version,
            kind: kind.kind,
            verbs: &["get"],
        });
    }
    if kind.scale.is_some() {
        subs.push(Sub {
            name: "scale",
            group: "autoscaling",
            version: "v1",
            kind: "Scale",
            verbs: SUB_VERBS,
        });
    }
    if kind.status {
        subs.push(Sub {
            name: "status",
            group: kind.group,
            version: kind.version,
            kind: kind.kind,
            verbs: SUB_VERBS,
        });
    }
    if kind.group == rota_api::names::GROUP && kind.kind == "Job" {
        subs.push(Sub {
            name: "why",
            group: kind.group,
            version: kind.version,
            kind: "Why",
            verbs: &["get"],
        });
    }
    subs
}

/// Groups in table order, without the core group, each with its versions in table order.
fn groups(kinds: &[Kind]) -> Vec<(&str, Vec<&str>)> {
    let mut out: Vec<(&str, Vec<&str>)> = Vec::new();
    for k in kinds.iter().filter(|k| !k.group.is_empty()) {
        match out.iter_mut().find(|g| g.0 == k.group) {
            Some((_, versions)) if versions.contains(&k.version) => {}
            Some((_, versions)) => versions.push(k.version),
            None => out.push((k.group, vec![k.version])),
        }
    }
    out
}

/// `GET /api`.
pub fn api_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

fn group_value(group: &str, versions: &[&str]) -> Value {
    let all: Vec<Value> = versions
        .iter()
        .map(|v| json!({"groupVersion": format!("{group}/{v}"), "version": v}))
        .collect();
    json!({"name": group, "versions": all, "preferredVersion": all.first()})
}

/// `GET /apis`.
pub fn api_group_list(kinds: &[Kind]) -> Value {
    let all: Vec<Value> = groups(kinds)
        .iter()
        .map(|(g, versions)| group_value(g, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all})
}

/// `GET /apis/{group}`.
pub fn api_group(kinds: &[Kind], group: &str) -> Option<Value> {
    let (g, versions) = groups(kinds).into_iter().find(|g| g.0 == group)?;
    let mut value = group_value(g, &versions);
    value["kind"] = json!("APIGroup");
    value["apiVersion"] = json!("v1");
    Some(value)
}

/// `GET /api/v1` (group empty) or `GET /apis/{group}/{version}`.
pub fn resource_list(kinds: &[Kind], group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for k in kinds
        .iter()
        .filter(|k| k.group == group && k.version == version)
    {
        let mut r = json!({"name": k.plural, "singularName": k.singular, "namespaced": k.namespaced,
            "kind": k.kind, "verbs": VERBS, "storageVersionHash": crate::openapi::short_hash(&k.qualified())});
        if !k.short_names.is_empty() {
            r["shortNames"] = json!(k.short_names);
        }
        if !k.categories.is_empty() {
            r["categories"] = json!(k.categories);
        }
        resources.push(r);
        for s in subresources(k) {
            let mut r = json!({"name": format!("{}/{}", k.plural, s.name), "singularName": "",
                "namespaced": k.namespaced, "kind": s.kind, "verbs": s.verbs});
            if s.group != k.group {
                r["group"] = json!(s.group);
                r["version"] = json!(s.version);
            }
            resources.push(r);
        }
    }
    if resources.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() {
        version.to_string()
    } else {
        format!("{group}/{version}")
    };
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}),
    )
}

fn aggregated_version(kinds: &[Kind], group: &str, version: &str) -> Value {
    let resources: Vec<Value> = kinds
        .iter()
        .filter(|k| k.group == group && k.version == version)
        .map(|k| {
            let mut r = json!({
                "resource": k.plural, "singularResource": k.singular, "verbs": VERBS,
                "responseKind": {"group": k.group, "version": k.version, "kind": k.kind},
                "scope": if k.namespaced { "Namespaced" } else { "Cluster" },
            });
            if !k.short_names.is_empty() {
                r["shortNames"] = json!(k.short_names);
            }
            if !k.categories.is_empty() {
                r["categories"] = json!(k.categories);
            }
            let subs: Vec<Value> = subresources(k)
                .iter()
                .map(|s| {
                    json!({"subresource": s.name, "verbs": s.verbs,
                        "responseKind": {"group": s.group, "version": s.version, "kind": s.kind}})
                })
                .collect();
            if !subs.is_empty() {
                r["subresources"] = json!(subs);
            }
            r
        })
        .collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated(kinds: &[Kind], groups: &[(&str, Vec<&str>)]) -> Value {
    let items: Vec<Value> = groups
        .iter()
        .map(|(g, versions)| {
            let metadata = if g.is_empty() {
                json!({})
            } else {
                json!({"name": g})
            };
            let versions: Vec<Value> = versions
                .iter()
                .map(|v| aggregated_version(kinds, g, v))
                .collect();
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

/// `GET /api` in the aggregated form, version 2; the beta form differs by its apiVersion only, see [`as_beta`].
pub fn aggregated_core(kinds: &[Kind]) -> Value {
    aggregated(kinds, &[("", vec!["v1"])])
}

/// `GET /apis` in the aggregated form, version 2.
pub fn aggregated_groups(kinds: &[Kind]) -> Value {
    aggregated(kinds, &groups(kinds))
}

/// The same answer as `apidiscovery.k8s.io/v2beta1`.
pub fn as_beta(mut value: Value) -> Value {
    value["apiVersion"] = json!("apidiscovery.k8s.io/v2beta1");
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rota_api::registry;

    use super::*;

    #[test]
    fn rota_comes_first_in_both_forms() {
        let kinds = registry::all();
        assert_eq!(api_group_list(&kinds)["groups"][0]["name"], "rota.dev");
        assert_eq!(
            aggregated_groups(&kinds)["items"][0]["metadata"]["name"],
            "rota.dev"
        );
        assert_eq!(
            api_group(&kinds, "rota.dev").unwrap()["preferredVersion"]["groupVersion"],
            "rota.dev/v1"
        );
        assert!(api_group(&kinds, "nope").is_none());
        assert!(resource_list(&kinds, "rota.dev", "v9").is_none());
    }

    #[test]
    fn resources_carry_what_kubectl_needs() {
        let kinds = registry::all();
        let list = resource_list(&kinds, "rota.dev", "v1").unwrap();
        let names: Vec<&str> = list["resources"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["name"].as_str().unwrap())
            .collect();
        for name in [
            "jobs",
            "jobs/log",
            "jobs/scale",
            "jobs/status",
            "tasks/log",
            "queues",
        ] {
            assert!(names.contains(&name), "{name}");
        }
        let jobs = &list["resources"][0];
        assert_eq!(jobs["shortNames"], json!(["rj"]));
        assert_eq!(jobs["singularName"], "job");
        assert_eq!(jobs["categories"], json!(["all", "rota"]));
        let aggregated = aggregated_groups(&kinds);
        let jobs = &aggregated["items"][0]["versions"][0]["resources"][0];
        assert_eq!(jobs["scope"], "Namespaced");
        assert_eq!(jobs["responseKind"]["kind"], "Job");
        let scale = jobs["subresources"]
            .as_array()
            .unwrap()
            .iter()
            .find(|s| s["subresource"] == "scale")
            .unwrap();
        assert_eq!(scale["responseKind"]["group"], "autoscaling");
        assert_eq!(
            as_beta(aggregated_core(&kinds))["apiVersion"],
            "apidiscovery.k8s.io/v2beta1"
        );
    }
}
