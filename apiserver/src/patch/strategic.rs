//! Strategic merge patches for the core kinds: merge patches that know which lists merge by a key.
//!
//! Directives: `$patch: replace|delete|merge`, `$retainKeys`, `$setElementOrder/<list>`,
//! `$deleteFromPrimitiveList/<list>`.

use serde_json::{Map, Value};

/// How a list of the core kinds merges.
enum Merge {
    /// Items are objects, the same if these fields agree.
    By(&'static [&'static str]),
    /// Items are scalars; new ones are appended.
    Set,
    /// The patch's list replaces.
    Replace,
}

/// The lists of the core kinds that merge, by the field's name (no two of them differ by place).
fn merge_of(field: &str) -> Merge {
    match field {
        "conditions" | "addresses" => Merge::By(&["type"]),
        "ownerReferences" => Merge::By(&["uid"]),
        "secrets" | "containers" | "initContainers" | "env" | "volumes" => Merge::By(&["name"]),
        "ports" => Merge::By(&["containerPort"]),
        "volumeMounts" => Merge::By(&["mountPath"]),
        "finalizers" | "podCIDRs" => Merge::Set,
        // Taints and a ServiceAccount's imagePullSecrets too: kubectl taint sends the whole list
        // and counts on what it left out being gone.
        _ => Merge::Replace,
    }
}

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";

/// Applies the patch, which must be an object, to a copy of `current`.
pub(super) fn apply(current: &Value, patch: Value) -> Result<Value, String> {
    let Value::Object(patch) = patch else {
        return Err("a strategic merge patch must be an object".into());
    };
    let mut result = current.as_object().cloned().unwrap_or_default();
    if directive(&patch)? == Some("delete") {
        return Err("a strategic merge patch cannot delete the object itself".into());
    }
    merge_maps(&mut result, patch)?;
    Ok(Value::Object(result))
}

fn directive(map: &Map<String, Value>) -> Result<Option<&str>, String> {
    match map.get(DIRECTIVE) {
        None => Ok(None),
        Some(Value::String(s)) if matches!(s.as_str(), "replace" | "delete" | "merge") => {
            Ok(Some(s))
        }
        Some(other) => Err(format!(
            "unknown directive $patch: {other}; it must be \"replace\", \"delete\" or \"merge\""
        )),
    }
}

fn list_of(value: Value, what: &str) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(list) => Ok(list),
        other => Err(format!(
            "{what} must be a list, not {}",
            crate::body::type_of(&other)
        )),
    }
}

fn merge_maps(
    target: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<(), String> {
    match directive(&patch)? {
        Some("replace") => {
            patch.remove(DIRECTIVE);
            *target = without_directives(patch)?;
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        _ => {
            patch.remove(DIRECTIVE);
        }
    }
    if let Some(keep) = patch.remove(RETAIN) {
        let keep = list_of(keep, RETAIN)?;
        target.retain(|k, _| keep.iter().any(|v| v == k));
        if let Some(key) = patch
            .keys()
            .find(|k| !k.starts_with('$') && !keep.iter().any(|v| v == *k))
        {
            return Err(format!(
                "{RETAIN} does not list {key:?}, which the patch sets"
            ));
        }
    }
    let (mut orders, mut fields) = (Vec::new(), Vec::new());
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(ORDER) {
            orders.push((list.to_string(), list_of(value, &key)?));
        } else if let Some(list) = key.strip_prefix(DELETE) {
            let gone = list_of(value, &key)?;
            if let Some(Value::Array(items)) = target.get_mut(list) {
                items.retain(|i| !gone.contains(i));
            }
        } else if key.starts_with('$') {
            return Err(format!("unknown directive {key:?}"));
        } else {
            fields.push((key, value));
        }
    }
    for (key, value) in fields {
        match value {
            Value::Null => {
                target.remove(&key);
            }
            Value::Object(sub) => match target.get_mut(&key) {
                Some(Value::Object(old)) => {
                    if directive(&sub)? == Some("delete") {
                        target.remove(&key);
                    } else {
                        merge_maps(old, sub)?;
                    }
                }
                _ => {
                    if directive(&sub)? != Some("delete") {
                        target.insert(key, Value::Object(without_directives(sub)?));
                    }
                }
            },
            Value::Array(items) => {
                let old = match target.remove(&key) {
                    Some(Value::Array(old)) => old,
                    _ => Vec::new(),
                };
                let merged = merge_lists(&key, old, items)?;
                target.insert(key, Value::Array(merged));
            }
            scalar => {
                target.insert(key, scalar);
            }
        }
    }
    for (key, order) in orders {
        if let Some(Value::Array(items)) = target.get_mut(&key) {
            reorder(&key, items, &order);
        }
    }
    Ok(())
}

fn merge_lists(field: &str, mut old: Vec<Value>, patch: Vec<Value>) -> Result<Vec<Value>, String> {
    match merge_of(field) {
        Merge::Replace => patch
            .into_iter()
            .filter(|v| v.get(DIRECTIVE).is_none())
            .map(clean)
            .collect(),
        Merge::Set => {
            for item in patch {
                if !old.contains(&item) {
                    old.push(item);
                }
            }
            Ok(old)
        }
        Merge::By(keys) => {
            // An item that holds only the directive makes the patch's list replace.
            if patch
                .iter()
                .any(|v| v.get(DIRECTIVE).is_some_and(|d| d == "replace"))
            {
                return patch
                    .into_iter()
                    .filter(|v| v.get(DIRECTIVE).is_none())
                    .map(clean)
                    .collect();
            }
            for item in patch {
                let Value::Object(item) = item else {
                    return Err(format!("items of {field} must be objects"));
                };
                if !item.contains_key(keys[0]) {
                    return Err(format!(
                        "items of {field} need {:?}, by which they are merged",
                        keys[0]
                    ));
                }
                let same = |o: &Value| {
                    keys.iter()
                        .all(|k| item.get(*k).is_none() || o.get(k) == item.get(*k))
                };
                if directive(&item)? == Some("delete") {
                    old.retain(|o| !same(o));
                } else {
                    match old.iter_mut().find(|o| same(o)) {
                        Some(Value::Object(o)) => merge_maps(o, item)?,
                        _ => old.push(Value::Object(without_directives(item)?)),
                    }
                }
            }
            Ok(old)
        }
    }
}

/// Items named in `order` come in that order; others keep their place after the item before them.
fn reorder(field: &str, items: &mut Vec<Value>, order: &[Value]) {
    let rank = |item: &Value| -> Option<usize> {
        order.iter().position(|o| match merge_of(field) {
            Merge::By(keys) => keys
                .iter()
                .all(|k| o.get(k).is_none() || o.get(k) == item.get(k)),
            _ => o == item,
        })
    };
    let mut ranked = Vec::with_capacity(items.len());
    let mut last = 0;
    for (i, item) in items.drain(..).enumerate() {
        let r = rank(&item).map(|r| r + 1);
        last = r.unwrap_or(last);
        ranked.push(((last, r.is_none(), i), item));
    }
    ranked.sort_by_key(|r| r.0);
    items.extend(ranked.into_iter().map(|r| r.1));
}

fn clean(value: Value) -> Result<Value, String> {
    Ok(match value {
        Value::Object(map) => Value::Object(without_directives(map)?),
        other => other,
    })
}

/// A patch's map as it is stored where nothing was before: without directives and nulls.
fn without_directives(map: Map<String, Value>) -> Result<Map<String, Value>, String> {
    directive(&map)?;
    let mut out = Map::new();
    for (key, value) in map {
        if key == DIRECTIVE || key == RETAIN || key.starts_with(ORDER) || key.starts_with(DELETE) {
            continue;
        }
        let value = match value {
            Value::Null => continue,
            Value::Object(m) => Value::Object(without_directives(m)?),
            Value::Array(list) => Value::Array(
                list.into_iter()
                    .filter(|v| v.get(DIRECTIVE).is_none_or(|d| d == "merge"))
                    .map(clean)
                    .collect::<Result<_, _>>()?,
            ),
            v => v,
        };
        out.insert(key, value);
    }
    Ok(out)
}
