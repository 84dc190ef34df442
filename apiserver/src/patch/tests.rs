//! Every patch type, and those who mean harm with it.
#![allow(clippy::unwrap_used)]

use rota_api::registry;
use serde_json::{Value, json};

use super::*;

fn kind(core: bool) -> Kind {
    let mut kind = registry::all().remove(0);
    kind.core = core;
    kind
}

fn patched(media: &str, current: Value, patch: Value) -> ApiResult<Value> {
    apply(&kind(true), media, &current, patch.to_string().as_bytes())
}

#[test]
fn merge_patch() {
    let got = patched(
        MERGE_PATCH,
        json!({"a": {"b": 1, "c": [1, 2]}, "d": 1}),
        json!({"a": {"b": null, "c": [3], "x": {"y": null, "z": 1}}}),
    );
    assert_eq!(
        got.unwrap(),
        json!({"a": {"c": [3], "x": {"z": 1}}, "d": 1})
    );
    for top in ["[]", "null", "1", "\"x\""] {
        let e = apply(&kind(false), MERGE_PATCH, &json!({}), top.as_bytes()).unwrap_err();
        assert_eq!(e.code, 400, "{top}");
    }
    assert!(
        apply(
            &kind(false),
            "application/merge-patch+json; charset=utf-8",
            &json!({}),
            b"{}"
        )
        .is_ok()
    );
}

#[test]
fn json_patch() {
    let got = patched(
        JSON_PATCH,
        json!({"a": [1, 2], "m": {"x/y": 1}}),
        json!([
            {"op": "test", "path": "/a/0", "value": 1.0},
            {"op": "add", "path": "/a/-", "value": 3},
            {"op": "add", "path": "/a/0", "value": 0},
            {"op": "remove", "path": "/a/1"},
            {"op": "replace", "path": "/m/x~1y", "value": 2},
            {"op": "copy", "from": "/a", "path": "/b"},
            {"op": "move", "from": "/m/x~1y", "path": "/n"},
        ]),
    );
    assert_eq!(
        got.unwrap(),
        json!({"a": [0, 2, 3], "b": [0, 2, 3], "m": {}, "n": 2})
    );
}

#[test]
fn json_patch_failures() {
    let o = json!({"metadata": {"name": "x"}, "a": [1]});
    for (op, code) in [
        (json!({"op": "test", "path": "/zz", "value": 1}), 422),
        (json!({"op": "test", "path": "/a/0", "value": 2}), 422),
        (json!({"op": "remove", "path": "/zz"}), 422),
        (json!({"op": "replace", "path": "/zz", "value": 1}), 422),
        (json!({"op": "add", "path": "/zz/y", "value": 1}), 422),
        (json!({"op": "remove", "path": "/a/-1"}), 422),
        (
            json!({"op": "remove", "path": "/a/9223372036854775808"}),
            422,
        ),
        (
            json!({"op": "remove", "path": "/a/99999999999999999999999"}),
            422,
        ),
        (json!({"op": "add", "path": "/a/2", "value": 1}), 422),
        (json!({"op": "add", "path": "/a/00", "value": 1}), 422),
        (json!({"op": "move", "from": "/a", "path": "/a/0"}), 422),
        (json!({"op": "remove", "path": ""}), 422),
        (json!({"op": "add", "path": "", "value": []}), 422),
        (json!({"op": "remove", "path": "/~2"}), 400),
        (json!({"op": "remove", "path": "a"}), 400),
        (json!({"op": "jump", "path": "/a"}), 400),
        (json!({"path": "/a"}), 400),
        (json!({"op": "add", "path": "/a"}), 400),
        (json!(7), 400),
    ] {
        let e = patched(JSON_PATCH, o.clone(), json!([op])).unwrap_err();
        assert_eq!(e.code, code, "{op}: {}", e.message);
        if code == 422 {
            assert_eq!(e.reason, "Invalid");
            assert_eq!(e.details.unwrap().name, "x");
        }
    }
    assert_eq!(
        patched(JSON_PATCH, o.clone(), json!({})).unwrap_err().code,
        400
    );
    let many: Vec<Value> = vec![json!({"op": "test", "path": "/a/0", "value": 1}); 10_001];
    assert_eq!(
        patched(JSON_PATCH, o.clone(), json!(many))
            .unwrap_err()
            .code,
        413
    );
    assert!(patched(JSON_PATCH, o, json!(many[..10_000])).is_ok());
}

#[test]
fn copies_cannot_fill_memory() {
    let ops: Vec<Value> = (0..40)
        .map(|i| json!({"op": "copy", "from": "", "path": format!("/c{i}")}))
        .collect();
    let e = patched(JSON_PATCH, json!({"data": "x".repeat(1000)}), json!(ops)).unwrap_err();
    assert_eq!(e.code, 413);
}

#[test]
fn types_that_are_not_taken_list_those_that_are() {
    for media in [STRATEGIC_MERGE_PATCH, APPLY_PATCH, "text/plain", ""] {
        let e = apply(&kind(false), media, &json!({}), b"{}").unwrap_err();
        assert_eq!(e.code, 415, "{media}");
        assert!(e.message.contains(MERGE_PATCH) && !e.message.contains("strategic"));
    }
    let e = apply(&kind(true), "text/plain", &json!({}), b"{}").unwrap_err();
    assert!(e.message.contains(STRATEGIC_MERGE_PATCH));
}

fn strategic(current: Value, patch: Value) -> Value {
    patched(STRATEGIC_MERGE_PATCH, current, patch).unwrap()
}

#[test]
fn strategic_lists_merge_by_key() {
    let node = json!({
        "metadata": {"finalizers": ["a", "b"], "ownerReferences": [{"uid": "1", "name": "x"}]},
        "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}, {"key": "k", "effect": "NoExecute"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "r"}, {"type": "Disk", "status": "False"}]},
    });
    let got = strategic(
        node.clone(),
        json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}, {"type": "New", "status": "True"}]},
               "metadata": {"finalizers": ["b", "c"]},
               "spec": {"taints": [{"key": "k", "effect": "NoExecute", "value": "v"}]}}),
    );
    assert_eq!(
        got["status"]["conditions"],
        json!([{"type": "Ready", "status": "Unknown", "reason": "r"}, {"type": "Disk", "status": "False"}, {"type": "New", "status": "True"}])
    );
    assert_eq!(got["metadata"]["finalizers"], json!(["a", "b", "c"]));
    assert_eq!(
        got["spec"]["taints"],
        json!([{"key": "k", "effect": "NoExecute", "value": "v"}])
    );
    let got = strategic(
        node.clone(),
        json!({"status": {"conditions": [{"type": "Ready", "$patch": "delete"}]},
               "metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "ownerReferences": [{"uid": "1", "$patch": "delete"}]},
               "spec": {"taints": [{"key": "z", "effect": "NoSchedule"}]}}),
    );
    assert_eq!(
        got["status"]["conditions"],
        json!([{"type": "Disk", "status": "False"}])
    );
    assert_eq!(
        got["metadata"],
        json!({"finalizers": ["b"], "ownerReferences": []})
    );
    assert_eq!(
        got["spec"]["taints"],
        json!([{"key": "z", "effect": "NoSchedule"}])
    );
    let got = strategic(
        node,
        json!({"status": {"$setElementOrder/conditions": [{"type": "New"}, {"type": "Disk"}, {"type": "Ready"}],
                          "conditions": [{"type": "New", "status": "True"}]}}),
    );
    let types: Vec<&str> = got["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["New", "Disk", "Ready"]);
}

#[test]
fn strategic_maps() {
    let o = json!({"data": {"a": "1", "b": "2"}, "m": {"x": 1}});
    assert_eq!(
        strategic(o.clone(), json!({"data": {"a": null, "c": "3"}})),
        json!({"data": {"b": "2", "c": "3"}, "m": {"x": 1}})
    );
    assert_eq!(
        strategic(o.clone(), json!({"data": {"$patch": "replace", "c": "3"}})),
        json!({"data": {"c": "3"}, "m": {"x": 1}})
    );
    assert_eq!(
        strategic(o.clone(), json!({"m": {"$patch": "delete"}})),
        json!({"data": {"a": "1", "b": "2"}})
    );
    assert_eq!(
        strategic(
            o.clone(),
            json!({"data": {"$retainKeys": ["b", "c"], "c": "3"}})
        ),
        json!({"data": {"b": "2", "c": "3"}, "m": {"x": 1}})
    );
    assert_eq!(
        strategic(
            o.clone(),
            json!({"new": {"deep": {"$patch": "merge", "y": null, "z": 1}}})
        )["new"],
        json!({"deep": {"z": 1}})
    );
    for bad in [
        json!({"data": {"$patch": "explode"}}),
        json!({"data": {"$patch": 1}}),
        json!({"$patch": "delete"}),
        json!({"data": {"$retainKeys": "a"}}),
        json!({"data": {"$retainKeys": ["a"], "b": "1"}}),
        json!({"$unknown": 1}),
        json!({"conditions": ["x"]}),
        json!({"conditions": [{"status": "True"}]}),
        json!({"$setElementOrder/x": 1}),
    ] {
        let e = patched(STRATEGIC_MERGE_PATCH, o.clone(), bad.clone()).unwrap_err();
        assert_eq!(e.code, 400, "{bad}");
    }
}
