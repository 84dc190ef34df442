//! OpenAPI documents from the table of kinds: version 3 as JSON per group version, version 2 as
//! JSON and as the protobuf that older kubectl insists on.
//!
//! Clients look for three things: the schema of a kind by its group-version-kind, the parameters
//! `dryRun` and `fieldValidation` on its writes, and fields for `explain`.

mod protobuf;
mod v2;
mod v3;

use rota_api::registry::Kind;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

pub use v2::v2_json;
pub use v3::{v3_group, v3_index};

/// `Content-Type` of [`v2_protobuf`]; with dots, since Go's parser refuses the `@` that clients ask with.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `GET /openapi/v2` for clients that ask for protobuf.
pub fn v2_protobuf(kinds: &[Kind]) -> Vec<u8> {
    protobuf::document(&v2_json(kinds))
}

/// A short stable hash for storage versions and document addresses.
pub(crate) fn short_hash(text: &str) -> String {
    use base64::Engine;
    let digest = Sha256::digest(text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

fn hex_hash(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|b| format!("{b:02X}")).collect()
}

/// `api/v1` or `apis/rota.dev/v1`.
fn group_path(kind: &Kind) -> String {
    if kind.group.is_empty() {
        format!("api/{}", kind.version)
    } else {
        format!("apis/{}/{}", kind.group, kind.version)
    }
}

/// Name of a kind's schema: `dev.rota.v1.Job`, `io.k8s.api.core.v1.Secret`.
fn schema_name(kind: &Kind) -> String {
    let prefix = match kind.group {
        "" => "io.k8s.api.core".to_string(),
        g => match g.strip_suffix(".k8s.io") {
            Some(short) => format!("io.k8s.api.{short}"),
            None => g.rsplit('.').collect::<Vec<_>>().join("."),
        },
    };
    format!("{prefix}.{}.{}", kind.version, kind.kind)
}

fn gvk(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

/// The kind's schema as it is published: type and metadata described, group-version-kind attached.
fn published(kind: &Kind) -> Value {
    let mut schema = kind.schema.clone();
    if schema["properties"].is_object() {
        let properties = &mut schema["properties"];
        properties["apiVersion"] = json!({"type": "string",
            "description": "APIVersion is the version of the schema of this object."});
        properties["kind"] = json!({"type": "string",
            "description": "Kind is the type of this object."});
        let mut metadata = crate::schema::object_meta_schema();
        metadata["description"] =
            json!("Standard object metadata: name, namespace, labels, annotations and so on.");
        properties["metadata"] = metadata;
    }
    schema["x-kubernetes-group-version-kind"] = json!([gvk(kind)]);
    schema
}

fn list_schema(kind: &Kind, reference: &str) -> Value {
    json!({"type": "object", "required": ["items"],
        "description": format!("A list of {}.", kind.kind),
        "x-kubernetes-group-version-kind": [{"group": kind.group, "version": kind.version, "kind": format!("{}List", kind.kind)}],
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {
                "resourceVersion": {"type": "string"}, "continue": {"type": "string"},
                "remainingItemCount": {"type": "integer", "format": "int64"}}},
            "items": {"type": "array", "items": {"$ref": reference}}}})
}

/// An operation: HTTP method, Kubernetes' action, and names of its query parameters.
struct Operation {
    method: &'static str,
    action: &'static str,
    queries: &'static [&'static str],
    /// Whether it answers a list.
    list: bool,
    /// Whether it has a body.
    body: bool,
}

const LIST_QUERIES: &[&str] = &[
    "labelSelector",
    "fieldSelector",
    "limit",
    "continue",
    "resourceVersion",
    "resourceVersionMatch",
    "timeoutSeconds",
    "watch",
    "allowWatchBookmarks",
    "sendInitialEvents",
];
const WRITE_QUERIES: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const DELETE_QUERIES: &[&str] = &["dryRun", "gracePeriodSeconds", "propagationPolicy"];

const LIST: Operation = Operation {
    method: "get",
    action: "list",
    queries: LIST_QUERIES,
    list: true,
    body: false,
};
const POST: Operation = Operation {
    method: "post",
    action: "post",
    queries: WRITE_QUERIES,
    list: false,
    body: true,
};
const DELETE_COLLECTION: Operation = Operation {
    method: "delete",
    action: "deletecollection",
    queries: DELETE_QUERIES,
    list: true,
    body: false,
};
const GET: Operation = Operation {
    method: "get",
    action: "get",
    queries: &["resourceVersion"],
    list: false,
    body: false,
};
const PUT: Operation = Operation {
    method: "put",
    action: "put",
    queries: WRITE_QUERIES,
    list: false,
    body: true,
};
const PATCH: Operation = Operation {
    method: "patch",
    action: "patch",
    queries: &["dryRun", "fieldManager", "fieldValidation", "force"],
    list: false,
    body: true,
};
const DELETE: Operation = Operation {
    method: "delete",
    action: "delete",
    queries: DELETE_QUERIES,
    list: false,
    body: false,
};

/// All paths of a kind with their operations and path parameters.
fn paths(kind: &Kind) -> Vec<(String, Vec<&'static str>, Vec<&'static Operation>)> {
    let base = format!("/{}", group_path(kind));
    let (collection, mut parameters) = if kind.namespaced {
        (
            format!("{base}/namespaces/{{namespace}}/{}", kind.plural),
            vec!["namespace"],
        )
    } else {
        (format!("{base}/{}", kind.plural), vec![])
    };
    let mut out = vec![(
        collection.clone(),
        parameters.clone(),
        vec![&LIST, &POST, &DELETE_COLLECTION],
    )];
    if kind.namespaced {
        out.push((format!("{base}/{}", kind.plural), vec![], vec![&LIST]));
    }
    parameters.push("name");
    let item = format!("{collection}/{{name}}");
    out.push((
        item.clone(),
        parameters.clone(),
        vec![&GET, &PUT, &PATCH, &DELETE],
    ));
    if kind.status {
        out.push((
            format!("{item}/status"),
            parameters,
            vec![&GET, &PUT, &PATCH],
        ));
    }
    out
}

fn query_type(name: &str) -> &'static str {
    match name {
        "limit" | "timeoutSeconds" | "gracePeriodSeconds" => "integer",
        "watch" | "allowWatchBookmarks" | "sendInitialEvents" | "force" => "boolean",
        _ => "string",
    }
}

fn operation_id(op: &Operation, kind: &Kind, path: &str) -> String {
    let mut id = String::from(op.action);
    let mut upper = true;
    for c in format!("{} {}", kind.group, path).chars() {
        if c.is_ascii_alphanumeric() {
            id.push(if upper { c.to_ascii_uppercase() } else { c });
            upper = false;
        } else {
            upper = true;
        }
    }
    id
}

/// Walks a schema tree and lets `edit` change every node.
fn each_node(schema: &mut Value, edit: &mut impl FnMut(&mut Map<String, Value>)) {
    let Value::Object(node) = schema else { return };
    edit(node);
    if let Some(Value::Object(properties)) = node.get_mut("properties") {
        for child in properties.values_mut() {
            each_node(child, edit);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = node.get_mut(key) {
            each_node(child, edit);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rota_api::registry;

    use super::*;

    #[test]
    fn version_3_has_what_kubectl_looks_for() {
        let kinds = registry::all();
        let index = v3_index(&kinds);
        let url = index["paths"]["apis/rota.dev/v1"]["serverRelativeURL"]
            .as_str()
            .unwrap();
        assert!(url.starts_with("/openapi/v3/apis/rota.dev/v1?hash="));
        let doc = v3_group(&kinds, "apis/rota.dev/v1").unwrap();
        assert!(v3_group(&kinds, "apis/nope/v1").is_none());
        let patch = &doc["paths"]["/apis/rota.dev/v1/namespaces/{namespace}/jobs/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-action"], "patch");
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "rota.dev", "version": "v1", "kind": "Job"})
        );
        for (method, path, wanted) in [
            (
                "patch",
                "/apis/rota.dev/v1/namespaces/{namespace}/jobs/{name}",
                "fieldValidation",
            ),
            (
                "post",
                "/apis/rota.dev/v1/namespaces/{namespace}/jobs",
                "dryRun",
            ),
            ("put", "/apis/rota.dev/v1/queues/{name}", "fieldManager"),
            ("delete", "/apis/rota.dev/v1/queues/{name}", "dryRun"),
        ] {
            let parameters = doc["paths"][path][method]["parameters"].as_array().unwrap();
            assert!(
                parameters.iter().any(|p| p["name"] == wanted),
                "{method} {path}"
            );
        }
        let job = &doc["components"]["schemas"]["dev.rota.v1.Job"];
        assert_eq!(job["x-kubernetes-group-version-kind"][0]["kind"], "Job");
        assert_eq!(
            job["properties"]["spec"]["properties"]["suspend"]["type"],
            "boolean"
        );
        assert!(job["properties"]["metadata"]["properties"]["labels"].is_object());
        assert_eq!(doc["openapi"], "3.0.0");
    }

    #[test]
    fn version_2_refers_only_to_what_it_defines() {
        fn references(v: &Value, out: &mut Vec<String>) {
            match v {
                Value::Object(m) => {
                    if let Some(r) = m.get("$ref").and_then(Value::as_str) {
                        out.push(r.to_string());
                    }
                    m.values().for_each(|v| references(v, out));
                }
                Value::Array(l) => l.iter().for_each(|v| references(v, out)),
                _ => {}
            }
        }
        let kinds = registry::all();
        let doc = v2_json(&kinds);
        let mut found = Vec::new();
        references(&doc, &mut found);
        assert!(!found.is_empty());
        for r in found {
            let name = r.strip_prefix("#/definitions/").unwrap();
            assert!(doc["definitions"][name].is_object(), "{r}");
        }
        let v3 = v3_group(&kinds, "apis/rota.dev/v1").unwrap();
        let mut found = Vec::new();
        references(&v3, &mut found);
        for r in found {
            let name = r.strip_prefix("#/components/schemas/").unwrap();
            assert!(v3["components"]["schemas"][name].is_object(), "{r}");
        }
    }

    /// A protobuf message as `(field number, bytes)`, for the length-delimited fields.
    fn fields(mut b: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(b: &mut &[u8]) -> u64 {
            let (mut v, mut shift) = (0, 0);
            loop {
                let byte = b[0];
                *b = &b[1..];
                v |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    return v;
                }
                shift += 7;
            }
        }
        let mut out = Vec::new();
        while !b.is_empty() {
            let key = varint(&mut b);
            match key & 7 {
                0 => {
                    varint(&mut b);
                }
                1 => b = &b[8..],
                2 => {
                    let n = varint(&mut b) as usize;
                    out.push((key >> 3, b[..n].to_vec()));
                    b = &b[n..];
                }
                w => panic!("wire type {w}"),
            }
        }
        out
    }

    fn get(message: &[u8], number: u64) -> Vec<Vec<u8>> {
        fields(message)
            .into_iter()
            .filter(|f| f.0 == number)
            .map(|f| f.1)
            .collect()
    }

    #[test]
    fn protobuf_reads_back() {
        let kinds = registry::all();
        let bytes = v2_protobuf(&kinds);
        assert_eq!(get(&bytes, 1), [b"2.0"]);
        // Document.paths(8).path(2).value(2).patch(8): the vendor extension names the kind, and
        // parameters(8).parameter(1).non_body(2).query(3).name(4) has dryRun.
        let paths = get(&get(&bytes, 8)[0], 2);
        let jobs = paths
            .iter()
            .find(|p| get(p, 1)[0] == b"/apis/rota.dev/v1/namespaces/{namespace}/jobs/{name}")
            .unwrap();
        let patch = &get(&get(jobs, 2)[0], 8)[0];
        let extensions = get(patch, 13);
        let gvk = extensions
            .iter()
            .find(|e| get(e, 1)[0] == b"x-kubernetes-group-version-kind")
            .unwrap();
        let yaml: Value = serde_json::from_slice(&get(&get(gvk, 2)[0], 2)[0]).unwrap();
        assert_eq!(yaml["kind"], "Job");
        let names: Vec<Vec<u8>> = get(patch, 8)
            .iter()
            .filter_map(|p| get(&get(p, 1)[0], 2).first().cloned())
            .filter_map(|n| get(&n, 3).first().cloned())
            .map(|q| get(&q, 4)[0].clone())
            .collect();
        assert!(names.contains(&b"dryRun".to_vec()));
        // Document.definitions(9).additional_properties(1): name(1), Schema(2).
        let definitions = get(&get(&bytes, 9)[0], 1);
        let job = definitions
            .iter()
            .find(|d| get(d, 1)[0] == b"dev.rota.v1.Job")
            .unwrap();
        let schema = &get(job, 2)[0];
        assert_eq!(get(&get(schema, 22)[0], 1), [b"object"]);
        let properties = get(&get(schema, 25)[0], 1);
        assert!(properties.iter().any(|p| get(p, 1)[0] == b"spec"));
    }
}
