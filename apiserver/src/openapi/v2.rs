//! OpenAPI version 2: one document of everything.

use rota_api::registry::Kind;
use serde_json::{Map, Value, json};

use super::{
    Operation, each_node, gvk, list_schema, operation_id, paths, published, query_type, schema_name,
};

const DEFINITIONS: &str = "#/definitions/";

/// `GET /openapi/v2` as JSON.
pub fn v2_json(kinds: &[Kind]) -> Value {
    let (mut all_paths, mut definitions) = (Map::new(), Map::new());
    for kind in kinds {
        let name = schema_name(kind);
        for (url, parameters, operations) in paths(kind) {
            let mut item = Map::new();
            for op in operations {
                item.insert(op.method.into(), operation(kind, op, &url, &name));
            }
            let parameters: Vec<Value> = parameters
                .iter()
                .map(|p| json!({"name": p, "in": "path", "required": true, "type": "string"}))
                .collect();
            if !parameters.is_empty() {
                item.insert("parameters".into(), json!(parameters));
            }
            all_paths.insert(url, Value::Object(item));
        }
        let mut schema = published(kind);
        each_node(&mut schema, &mut version_2);
        definitions.insert(
            format!("{name}List"),
            list_schema(kind, &format!("{DEFINITIONS}{name}")),
        );
        definitions.insert(name, schema);
    }
    json!({"swagger": "2.0", "info": {"title": "Rota", "version": "v1"},
        "paths": all_paths, "definitions": definitions})
}

/// Version 2 knows neither nullable nor unions of types; clients treat a node without a type as anything.
fn version_2(node: &mut Map<String, Value>) {
    for key in ["nullable", "x-kubernetes-validations", "default"] {
        node.remove(key);
    }
    if node.remove("x-kubernetes-int-or-string").is_some() {
        for key in ["type", "pattern", "maxLength", "anyOf"] {
            node.remove(key);
        }
    }
    if node.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true)) {
        node.remove("type");
        node.remove("properties");
    }
}

fn operation(kind: &Kind, op: &Operation, url: &str, name: &str) -> Value {
    let reference = if op.list {
        format!("{DEFINITIONS}{name}List")
    } else {
        format!("{DEFINITIONS}{name}")
    };
    let mut parameters: Vec<Value> = op
        .queries
        .iter()
        .map(|q| json!({"name": q, "in": "query", "type": query_type(q), "uniqueItems": true}))
        .collect();
    let mut consumes = json!(["application/json", "application/yaml"]);
    if op.body {
        let schema = if op.method == "patch" {
            consumes = json!(crate::patch::accepted(kind).split(", ").collect::<Vec<_>>());
            json!({"type": "object"})
        } else {
            json!({"$ref": format!("{DEFINITIONS}{name}")})
        };
        parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": schema}));
    }
    json!({
        "operationId": operation_id(op, kind, url),
        "consumes": consumes, "produces": ["application/json"],
        "x-kubernetes-action": op.action,
        "x-kubernetes-group-version-kind": gvk(kind),
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "schema": {"$ref": reference}}},
    })
}
