//! CustomResourceDefinitions from the table of kinds, so that the same kinds can be installed on a
//! Kubernetes API server. They carry the schema that this server validates with.

use serde_json::{Map, Value, json};

use crate::registry::Kind;

/// The CustomResourceDefinition of a kind of ours.
pub fn of(kind: &Kind) -> Value {
    let mut names = json!({"kind": kind.kind, "plural": kind.plural, "singular": kind.singular,
        "listKind": format!("{}List", kind.kind)});
    if !kind.short_names.is_empty() {
        names["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        names["categories"] = json!(kind.categories);
    }
    let columns: Vec<Value> = kind
        .columns
        .iter()
        .map(|c| {
            let mut column = json!({"name": c.name, "type": c.type_, "jsonPath": c.json_path});
            if !c.description.is_empty() {
                column["description"] = json!(c.description);
            }
            if c.priority != 0 {
                column["priority"] = json!(c.priority);
            }
            column
        })
        .collect();
    let mut subresources = Map::new();
    if kind.status {
        subresources.insert("status".into(), json!({}));
    }
    if let Some(scale) = &kind.scale {
        let mut paths = json!({"specReplicasPath": scale.spec, "statusReplicasPath": scale.status});
        if !scale.selector.is_empty() {
            paths["labelSelectorPath"] = json!(scale.selector);
        }
        subresources.insert("scale".into(), paths);
    }
    let mut schema = kind.schema.clone();
    schema["properties"]["apiVersion"] = json!({"type": "string"});
    schema["properties"]["kind"] = json!({"type": "string"});
    schema["properties"]["metadata"] = json!({"type": "object"});
    let mut version = json!({"name": kind.version, "served": true, "storage": true,
        "schema": {"openAPIV3Schema": schema}, "subresources": subresources});
    if !columns.is_empty() {
        version["additionalPrinterColumns"] = json!(columns);
    }
    if !kind.selectable.is_empty() {
        let fields: Vec<Value> = kind
            .selectable
            .iter()
            .map(|f| json!({"jsonPath": format!(".{f}")}))
            .collect();
        version["selectableFields"] = json!(fields);
    }
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.qualified()},
        "spec": {"group": kind.group, "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
            "names": names, "versions": [version]}})
}
