//! OpenAPI version 3: an index and one document per group version.

use rota_api::registry::Kind;
use serde_json::{Map, Value, json};

use super::{
    Operation, each_node, group_path, gvk, hex_hash, list_schema, operation_id, paths, published,
    query_type, schema_name,
};

const SCHEMAS: &str = "#/components/schemas/";

/// `GET /openapi/v3`. It builds every document to hash it: compute it once per table of kinds.
pub fn v3_index(kinds: &[Kind]) -> Value {
    let mut out = Map::new();
    for kind in kinds {
        let path = group_path(kind);
        if out.contains_key(&path) {
            continue;
        }
        let document = v3_group(kinds, &path).unwrap_or_default().to_string();
        let url = format!("/openapi/v3/{path}?hash={}", hex_hash(document.as_bytes()));
        out.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": out})
}

/// `GET /openapi/v3/{path}`, where path is such as `apis/rota.dev/v1`.
pub fn v3_group(kinds: &[Kind], path: &str) -> Option<Value> {
    let (mut all_paths, mut schemas) = (Map::new(), Map::new());
    for kind in kinds.iter().filter(|k| group_path(k) == path) {
        let name = schema_name(kind);
        for (url, parameters, operations) in paths(kind) {
            let mut item = Map::new();
            for op in operations {
                item.insert(op.method.into(), operation(kind, op, &url, &name));
            }
            let parameters: Vec<Value> = parameters
                .iter()
                .map(|p| json!({"name": p, "in": "path", "required": true, "schema": {"type": "string"}}))
                .collect();
            if !parameters.is_empty() {
                item.insert("parameters".into(), json!(parameters));
            }
            all_paths.insert(url, Value::Object(item));
        }
        let mut schema = published(kind);
        each_node(&mut schema, &mut |node| {
            node.remove("nullable");
        });
        schemas.insert(
            format!("{name}List"),
            list_schema(kind, &format!("{SCHEMAS}{name}")),
        );
        schemas.insert(name, schema);
    }
    if schemas.is_empty() {
        return None;
    }
    Some(
        json!({"openapi": "3.0.0", "info": {"title": "Rota", "version": "v1"},
        "paths": all_paths, "components": {"schemas": schemas}}),
    )
}

fn operation(kind: &Kind, op: &Operation, url: &str, name: &str) -> Value {
    let reference = if op.list {
        format!("{SCHEMAS}{name}List")
    } else {
        format!("{SCHEMAS}{name}")
    };
    let parameters: Vec<Value> = op
        .queries
        .iter()
        .map(|q| json!({"name": q, "in": "query", "schema": {"type": query_type(q), "uniqueItems": true}}))
        .collect();
    let mut value = json!({
        "operationId": operation_id(op, kind, url),
        "x-kubernetes-action": op.action,
        "x-kubernetes-group-version-kind": gvk(kind),
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": {"$ref": reference}}}}},
    });
    if op.body {
        let content: Map<String, Value> = if op.method == "patch" {
            crate::patch::accepted(kind)
                .split(", ")
                .map(|m| (m.to_string(), json!({"schema": {}})))
                .collect()
        } else {
            let schema = json!({"schema": {"$ref": format!("{SCHEMAS}{name}")}});
            ["application/json", "application/yaml"]
                .iter()
                .map(|m| (m.to_string(), schema.clone()))
                .collect()
        };
        value["requestBody"] = json!({"content": content, "required": true});
    }
    value
}
