//! Three-way merge for `apply`: what the user wrote last time, what they write now, what is there.
//! The annotation is kubectl's, byte for byte, so both tools can take turns on one object.

use serde_json::{Map, Value, json};

/// Where the last applied manifest is kept.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The manifest with the annotation that records it.
pub fn annotated(manifest: &Value) -> Value {
    let mut bare = manifest.clone();
    if !bare["metadata"].is_object() {
        bare["metadata"] = json!({});
    }
    if !bare["metadata"]["annotations"].is_object() {
        bare["metadata"]["annotations"] = json!({});
    }
    if let Some(a) = bare["metadata"]["annotations"].as_object_mut() {
        a.remove(LAST_APPLIED);
    }
    let mut text = String::new();
    canonical(&bare, &mut text);
    text.push('\n');
    bare["metadata"]["annotations"][LAST_APPLIED] = text.into();
    bare
}

/// The manifest that was applied last, if this object was ever applied.
pub fn last_applied(live: &Value) -> Option<Value> {
    let text = live["metadata"]["annotations"][LAST_APPLIED].as_str()?;
    serde_json::from_str(text).ok()
}

/// JSON as Go writes it: sorted keys, and `<`, `>`, `&` escaped.
fn canonical(v: &Value, out: &mut String) {
    match v {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for (i, k) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(&Value::String(k.clone()), out);
                out.push(':');
                canonical(&map[k], out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        Value::String(_) => {
            for c in v.to_string().chars() {
                match c {
                    '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                        out.push_str(&format!("\\u{:04x}", c as u32))
                    }
                    c => out.push(c),
                }
            }
        }
        other => out.push_str(&other.to_string()),
    }
}

/// The JSON merge patch that brings `live` to `wanted` and removes what `last` had and `wanted` has
/// no more; fields that only others set stay. An empty object when there is nothing to do.
pub fn three_way(last: &Value, wanted: &Value, live: &Value) -> Value {
    let mut patch = Map::new();
    let empty = Map::new();
    let (last, wanted, live) = (
        last.as_object().unwrap_or(&empty),
        wanted.as_object().unwrap_or(&empty),
        live.as_object().unwrap_or(&empty),
    );
    for (key, want) in wanted {
        // A merge patch cannot say null; to Kubernetes null means absent.
        if want.is_null() {
            if live.get(key).is_some_and(|v| !v.is_null()) {
                patch.insert(key.clone(), Value::Null);
            }
            continue;
        }
        match live.get(key) {
            Some(have) if have.is_object() && want.is_object() => {
                let inner = three_way(last.get(key).unwrap_or(&Value::Null), want, have);
                if inner.as_object().is_some_and(|m| !m.is_empty()) {
                    patch.insert(key.clone(), inner);
                }
            }
            Some(have) if have == want => {}
            _ => {
                patch.insert(key.clone(), without_nulls(want));
            }
        }
    }
    for key in last.keys() {
        if !wanted.contains_key(key) && live.contains_key(key) {
            patch.insert(key.clone(), Value::Null);
        }
    }
    Value::Object(patch)
}

/// A value without null members, which a merge patch would read as removals.
fn without_nulls(v: &Value) -> Value {
    match v {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k.clone(), without_nulls(v)))
                .collect(),
        ),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_annotation_is_what_kubectl_writes() {
        let m = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "x", "namespace": "default"}, "data": {"b": "<&>", "a": "1"}});
        let text = annotated(&m)["metadata"]["annotations"][LAST_APPLIED]
            .as_str()
            .unwrap()
            .to_string();
        assert_eq!(
            text,
            "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"1\",\"b\":\"\\u003c\\u0026\\u003e\"},\"kind\":\"ConfigMap\",\"metadata\":{\"annotations\":{},\"name\":\"x\",\"namespace\":\"default\"}}\n"
        );
        assert_eq!(annotated(&annotated(&m)), annotated(&m));
    }

    #[test]
    fn adds_changes_and_removes_only_what_is_ours() {
        let last = json!({"spec": {"a": 1, "gone": true, "deep": {"x": 1, "y": 2}}});
        let wanted = json!({"spec": {"a": 2, "new": [1], "deep": {"x": 1}}});
        let live = json!({"spec": {"a": 1, "gone": true, "default": "server", "deep": {"x": 1, "y": 2, "z": 3}}, "status": {}});
        assert_eq!(
            three_way(&last, &wanted, &live),
            json!({"spec": {"a": 2, "new": [1], "gone": null, "deep": {"y": null}}})
        );
    }

    #[test]
    fn nothing_to_do_is_an_empty_patch() {
        let m = json!({"spec": {"a": [1, {"b": 2}]}, "metadata": {"name": "x"}});
        let live =
            json!({"spec": {"a": [1, {"b": 2}], "d": 1}, "metadata": {"name": "x", "uid": "u"}});
        assert_eq!(three_way(&m, &m, &live), json!({}));
    }

    #[test]
    fn what_others_removed_is_not_removed_again_and_lists_are_whole() {
        assert_eq!(
            three_way(&json!({"a": 1}), &json!({}), &json!({})),
            json!({})
        );
        assert_eq!(
            three_way(&json!({}), &json!({"l": [1, 2]}), &json!({"l": [2]})),
            json!({"l": [1, 2]})
        );
        assert_eq!(
            three_way(
                &json!({}),
                &json!({"n": null, "o": {"p": null, "q": 1}}),
                &json!({"n": 1})
            ),
            json!({"n": null, "o": {"q": 1}})
        );
    }
}
