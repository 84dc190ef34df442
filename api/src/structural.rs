//! From schemas as the types give them to the one structural schema that server and CRD share.
//!
//! Optional fields are absent, never null; every list says how it merges; sizes that a shared type
//! leaves open are bounded here.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::quantity::QUANTITY_PATTERN;

/// The schema that kube's derive made, as this project serves and installs it.
pub fn of_crd(mut schema: Value) -> Value {
    visit(&mut schema, "", &mut |_, node| {
        tidy(node);
        condition(node);
    });
    // The derive names a Rust type here; people who ask what the kind is want the spec's sentence.
    let about = schema["properties"]["spec"]["description"].clone();
    if about.is_string() {
        schema["description"] = about;
    }
    schema
}

/// The schema of a Kubernetes type, with references inlined and `overlay` applied to every node
/// with its field name (`items` and map values get the name of the field that holds them).
pub fn of_type<T: JsonSchema>(overlay: &mut dyn FnMut(&str, &mut Map<String, Value>)) -> Value {
    let mut settings = SchemaSettings::openapi3();
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    let schema = SchemaGenerator::new(settings).into_root_schema_for::<T>();
    let mut schema = serde_json::to_value(schema).unwrap_or(Value::Null);
    if let Some(root) = schema.as_object_mut() {
        for key in ["title", "$schema", "components", "definitions"] {
            root.remove(key);
        }
        if let Some(Value::Array(required)) = root.get_mut("required") {
            required.retain(|r| r != "metadata");
        }
        if let Some(Value::Object(properties)) = root.get_mut("properties") {
            for key in ["metadata", "apiVersion", "kind"] {
                properties.remove(key);
            }
        }
    }
    visit(&mut schema, "", &mut |name, node| {
        tidy(node);
        quantity(node);
        if node.get("type") == Some(&json!("array")) {
            let scalar = node["items"]["type"] != "object";
            node.entry("x-kubernetes-list-type")
                .or_insert_with(|| json!("atomic"));
            if name == "conditions" && !scalar {
                merge_by(node, "type");
            }
        }
        overlay(name, node);
    });
    schema
}

/// Marks a list of objects as merging by one key, for server-side apply and for strategic patches
/// that clients compute.
pub fn merge_by(list: &mut Map<String, Value>, key: &str) {
    list.insert("x-kubernetes-list-type".into(), json!("map"));
    list.insert("x-kubernetes-list-map-keys".into(), json!([key]));
    list.insert("x-kubernetes-patch-strategy".into(), json!("merge"));
    list.insert("x-kubernetes-patch-merge-key".into(), json!(key));
}

fn visit(schema: &mut Value, name: &str, edit: &mut dyn FnMut(&str, &mut Map<String, Value>)) {
    let Value::Object(node) = schema else { return };
    edit(name, node);
    if let Some(Value::Object(properties)) = node.get_mut("properties") {
        for (name, child) in properties.iter_mut() {
            visit(child, name, edit);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = node.get_mut(key) {
            visit(child, name, edit);
        }
    }
}

fn tidy(node: &mut Map<String, Value>) {
    node.remove("nullable");
    if node.get("default").is_some_and(Value::is_null) {
        node.remove("default");
    }
    // The derive writes bounds of whole numbers as floats.
    for key in ["minimum", "maximum"] {
        if let Some(bound) = node.get_mut(key)
            && let Some(n) = bound
                .as_f64()
                .filter(|n| n.fract() == 0.0 && n.abs() < 1e15)
        {
            *bound = json!(n as i64);
        }
    }
    // An optional enum lists null as a value.
    if let Some(Value::Array(values)) = node.get_mut("enum") {
        values.retain(|v| !v.is_null());
    }
    let labels = |name: &str, node: &mut Map<String, Value>, max: u64| {
        let map = node.get_mut("properties").and_then(|p| p.get_mut(name));
        if let Some(Value::Object(map)) = map
            && let Some(Value::Object(values)) = map.get_mut("additionalProperties")
            && values.get("type") == Some(&json!("string"))
        {
            values.entry("maxLength").or_insert_with(|| json!(max));
        }
    };
    labels("labels", node, 63);
    labels("nodeSelector", node, 63);
    labels("matchLabels", node, 63);
    labels("annotations", node, 262_144);
}

/// metav1.Condition carries its bounds only in Kubernetes' prose; the same numbers as there.
fn condition(node: &mut Map<String, Value>) {
    let Some(Value::Object(properties)) = node.get_mut("properties") else {
        return;
    };
    let is_condition = ["lastTransitionTime", "message", "reason", "status", "type"]
        .iter()
        .all(|k| properties.contains_key(*k));
    if !is_condition {
        return;
    }
    for (key, max) in [("message", 32_768), ("reason", 1_024), ("type", 316)] {
        properties[key]["maxLength"] = json!(max);
    }
    properties["status"]["enum"] = json!(["True", "False", "Unknown"]);
}

fn quantity(node: &mut Map<String, Value>) {
    let is_quantity = node.get("x-kubernetes-int-or-string") == Some(&json!(true))
        && node
            .get("description")
            .and_then(Value::as_str)
            .is_some_and(|d| d.starts_with("Quantity is"));
    if is_quantity {
        node.insert("pattern".into(), json!(QUANTITY_PATTERN));
        node.insert(
            "description".into(),
            json!("An amount such as 500m, 2 or 1Gi."),
        );
    }
}

/// Everything about a structural schema that would make an API server refuse it as a CRD, or that
/// this project wants bounded; empty when it is fine. Paths first.
pub fn problems(schema: &Value) -> Vec<String> {
    let mut out = Vec::new();
    inspect(schema, "", &mut out);
    out
}

fn inspect(node: &Value, path: &str, out: &mut Vec<String>) {
    let mut say = |what: &str| out.push(format!("{path}: {what}"));
    for key in ["$ref", "oneOf", "anyOf", "allOf", "nullable"] {
        if node.get(key).is_some() {
            say(&format!("has {key}"));
        }
    }
    let int_or_string = node["x-kubernetes-int-or-string"] == true;
    match node["type"].as_str() {
        Some("array") => {
            if !node["x-kubernetes-list-type"].is_string() {
                say("a list without x-kubernetes-list-type");
            }
            if !node["maxItems"].is_u64() {
                say("a list without maxItems");
            }
        }
        Some("object") => {
            if node.get("additionalProperties").is_some() && !node["maxProperties"].is_u64() {
                say("a map without maxProperties");
            }
        }
        Some("string") => {
            let bounded = node["maxLength"].is_u64()
                || node["enum"].is_array()
                || node["format"] == "date-time";
            if !bounded {
                say("a string without maxLength");
            }
        }
        Some(_) => {}
        None if int_or_string || node["x-kubernetes-preserve-unknown-fields"] == true => {}
        None => say("has no type"),
    }
    if int_or_string && !node["maxLength"].is_u64() {
        say("an int-or-string without maxLength");
    }
    for (name, child) in node["properties"].as_object().into_iter().flatten() {
        let at = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        if at == "metadata" || at == "apiVersion" || at == "kind" {
            continue;
        }
        inspect(child, &at, out);
    }
    for (key, step) in [("items", "[]"), ("additionalProperties", "{}")] {
        if node[key].is_object() {
            inspect(&node[key], &format!("{path}{step}"), out);
        }
    }
}
