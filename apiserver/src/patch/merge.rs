//! RFC 7386: objects merge, null removes, everything else replaces.

use serde_json::{Map, Value};

/// Applies a merge patch in place. Bodies are at most [`crate::body::DEPTH_MAX`] deep, so the
/// recursion is too.
pub fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            map.remove(&key);
        } else {
            merge(map.entry(key).or_insert(Value::Null), value);
        }
    }
}
