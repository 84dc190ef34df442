//! Kubernetes' own rules on the core kinds.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn kind(plural: &str) -> Kind {
    all().into_iter().find(|k| k.plural == plural).unwrap()
}

#[test]
fn schemas_are_inlined_and_lists_typed() {
    fn check(path: &str, s: &Value) {
        assert!(s.get("$ref").is_none(), "{path}");
        assert!(
            s["type"] != "array" || s["x-kubernetes-list-type"].is_string(),
            "{path}"
        );
        for (k, v) in s["properties"].as_object().into_iter().flatten() {
            check(&format!("{path}.{k}"), v);
        }
        for key in ["items", "additionalProperties"] {
            if s[key].is_object() {
                check(&format!("{path}.{key}"), &s[key]);
            }
        }
    }
    for k in all() {
        check(k.kind, &k.schema);
        assert!(k.schema["properties"].is_object(), "{}", k.kind);
        assert!(
            k.schema["properties"].get("metadata").is_none(),
            "{}",
            k.kind
        );
    }
    let node = kind("nodes").schema;
    let status = &node["properties"]["status"]["properties"];
    assert_eq!(
        status["conditions"]["x-kubernetes-list-map-keys"],
        json!(["type"])
    );
    assert_eq!(
        status["capacity"]["additionalProperties"]["pattern"],
        crate::quantity::QUANTITY_PATTERN
    );
}

#[test]
fn secrets_fold_their_texts() {
    let k = kind("secrets");
    let mut s = json!({"data": {"a": "eA=="}, "stringData": {"a": "y", "b": ""}});
    (k.prepare)(&mut s, None);
    assert_eq!(s, json!({"data": {"a": "eQ==", "b": ""}, "type": "Opaque"}));
    let mut s = json!({"stringData": {"a": 1}, "data": null});
    (k.prepare)(&mut s, None);
    assert_eq!(s["stringData"], json!({"a": 1}), "left for validation");
    for odd in [
        json!(null),
        json!([]),
        json!({"data": 7, "stringData": {"a": "b"}}),
    ] {
        (k.prepare)(&mut odd.clone(), None);
    }
    let old = json!({"type": "Opaque", "immutable": true, "data": {"a": "eA=="}});
    let mut new = old.clone();
    assert!((k.rules)(&new, Some(&old)).is_empty());
    new["data"]["a"] = json!("eQ==");
    new["type"] = json!("other");
    assert_eq!((k.rules)(&new, Some(&old)).len(), 2);
    new["immutable"] = json!(false);
    assert_eq!((k.rules)(&new, Some(&old)).len(), 3);
    assert_eq!(
        (k.rules)(
            &json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
            None
        )[0]
        .field,
        "data[tls.key]"
    );
    assert_eq!(
        (k.rules)(&json!({"data": {"a/b": "", "..": ""}}), None).len(),
        2
    );
    assert_eq!(
        (k.rules)(&json!({"data": {"a": "x".repeat(1 << 21)}}), None).len(),
        1
    );
}

#[test]
fn config_maps() {
    let k = kind("configmaps");
    assert_eq!(
        (k.rules)(
            &json!({"data": {"a": "x"}, "binaryData": {"a": "eA=="}}),
            None
        )
        .len(),
        1
    );
    let old = json!({"immutable": true, "data": {"a": "x"}});
    assert_eq!((k.rules)(&json!({"immutable": true}), Some(&old)).len(), 1);
}

#[test]
fn namespaces_get_label_and_finalizer() {
    let k = kind("namespaces");
    let mut n = json!({"metadata": {"name": "x", "labels": null}});
    (k.prepare)(&mut n, None);
    assert_eq!(
        n["metadata"]["labels"],
        json!({"kubernetes.io/metadata.name": "x"})
    );
    assert_eq!(n["spec"], json!({"finalizers": ["kubernetes"]}));
    assert_eq!(n["status"]["phase"], "Active");
    let old = n.clone();
    n["spec"]["finalizers"] = json!([]);
    n["metadata"]["labels"] = json!({"a": "b"});
    (k.prepare)(&mut n, Some(&old));
    assert_eq!(n["spec"]["finalizers"], json!([]));
    assert_eq!(n["metadata"]["labels"]["kubernetes.io/metadata.name"], "x");
    for odd in [
        json!(null),
        json!({}),
        json!({"metadata": {"name": "x", "labels": 3}, "spec": 1, "status": []}),
    ] {
        (k.prepare)(&mut odd.clone(), None);
    }
}

#[test]
fn events_convert_both_ways() {
    let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "n"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "regarding": {"kind": "Job", "name": "pi"}, "note": "hello",
        "reason": "Started", "type": "Normal", "action": "Start", "reportingController": "c", "reportingInstance": "i",
        "series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}});
    let core = event::to_core_v1(&new);
    assert_eq!(core["apiVersion"], "v1");
    assert_eq!(core["involvedObject"], json!({"kind": "Job", "name": "pi"}));
    assert_eq!(
        (&core["message"], &core["reportingComponent"]),
        (&json!("hello"), &json!("c"))
    );
    assert_eq!(event::to_events_v1(&core), new);
    let old = json!({"kind": "Event", "apiVersion": "v1", "metadata": {}, "involvedObject": {}, "count": 3,
        "firstTimestamp": "2026-01-01T00:00:00Z", "source": {"component": "x"}});
    let seen = event::to_events_v1(&old);
    assert_eq!(seen["deprecatedCount"], 3);
    assert_eq!(seen["eventTime"], "2026-01-01T00:00:00Z");
    let (a, b) = (kind("events"), all().pop().unwrap());
    assert_eq!(b.group, "events.k8s.io");
    assert_eq!(a.selectable.len(), b.selectable.len());
    assert_eq!(
        (a.rules)(
            &json!({"metadata": {"namespace": "n"}, "involvedObject": {"namespace": "m"}}),
            None
        )
        .len(),
        1
    );
}
