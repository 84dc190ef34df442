//! RFC 6902, with bounds: on operations and on what `copy` can grow the object to.

use serde_json::Value;

use super::{Failure, RESULT_MAX};

/// Most operations of one patch, as in Kubernetes.
const OPERATIONS_MAX: usize = 10_000;
/// Most steps of a path: no object is deeper.
const STEPS_MAX: usize = 128;

/// Applies a list of operations to a copy of `current`; all or nothing.
pub(super) fn apply(current: &Value, ops: &Value) -> Result<Value, Failure> {
    let Value::Array(ops) = ops else {
        return Err(Failure::Malformed(
            "a JSON patch must be a list of operations".into(),
        ));
    };
    if ops.len() > OPERATIONS_MAX {
        return Err(Failure::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            ops.len()
        )));
    }
    let mut doc = current.clone();
    let mut grown = 0;
    for (i, op) in ops.iter().enumerate() {
        let text = |key: &str| {
            op[key].as_str().ok_or_else(|| {
                Failure::Malformed(format!(
                    "operation {i} of the JSON patch needs a text {key:?}"
                ))
            })
        };
        let value = || {
            op.get("value").cloned().ok_or_else(|| {
                Failure::Malformed(format!("operation {i} of the JSON patch needs a \"value\""))
            })
        };
        let (name, path) = (text("op")?, text("path")?);
        let at = steps(path).map_err(|e| bad_path(i, path, &e))?;
        let done = match name {
            "add" => add(&mut doc, &at, value()?),
            "remove" => remove(&mut doc, &at).map(|_| ()),
            "replace" => find_mut(&mut doc, &at).and_then(|slot| {
                *slot = op.get("value").cloned().ok_or("it needs a \"value\"")?;
                Ok(())
            }),
            "move" => {
                let from_path = text("from")?;
                let from = steps(from_path).map_err(|e| bad_path(i, from_path, &e))?;
                if at.len() > from.len() && at[..from.len()] == from[..] {
                    Err("a value cannot be moved into itself".into())
                } else {
                    remove(&mut doc, &from).and_then(|v| add(&mut doc, &at, v))
                }
            }
            "copy" => {
                let from_path = text("from")?;
                let from = steps(from_path).map_err(|e| bad_path(i, from_path, &e))?;
                match find(&doc, &from).cloned() {
                    Err(e) => Err(e),
                    Ok(v) => {
                        grown += size(&v);
                        if grown > RESULT_MAX {
                            return Err(Failure::TooLarge(format!(
                                "the copy operations of the JSON patch add more than {RESULT_MAX} bytes"
                            )));
                        }
                        add(&mut doc, &at, v)
                    }
                }
            }
            "test" => match find(&doc, &at) {
                Ok(found) if same(found, &value()?) => Ok(()),
                Ok(_) => Err("the value is not the tested one".into()),
                Err(e) => Err(e),
            },
            other => {
                let shown: String = other.chars().take(32).collect();
                return Err(Failure::Malformed(format!(
                    "operation {i} of the JSON patch: unknown op {shown:?}"
                )));
            }
        };
        done.map_err(|why| {
            Failure::invalid(
                path,
                format!("operation {i} ({name} {path:?}) failed: {why}"),
            )
        })?;
    }
    Ok(doc)
}

fn bad_path(i: usize, path: &str, why: &str) -> Failure {
    let shown: String = path.chars().take(128).collect();
    Failure::Malformed(format!(
        "operation {i} of the JSON patch: path {shown:?} {why}"
    ))
}

fn steps(path: &str) -> Result<Vec<String>, String> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let rest = path.strip_prefix('/').ok_or("must begin with /")?;
    if rest.split('/').count() > STEPS_MAX {
        return Err(format!("has more than {STEPS_MAX} steps"));
    }
    rest.split('/')
        .map(|raw| {
            let mut out = String::with_capacity(raw.len());
            let mut chars = raw.chars();
            while let Some(c) = chars.next() {
                match c {
                    '~' => match chars.next() {
                        Some('0') => out.push('~'),
                        Some('1') => out.push('/'),
                        _ => return Err("has a ~ that is neither ~0 nor ~1".into()),
                    },
                    c => out.push(c),
                }
            }
            Ok(out)
        })
        .collect()
}

fn index(step: &str, len: usize) -> Result<usize, String> {
    let digits = !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit());
    let plain = step == "0" || !step.starts_with('0');
    match step.parse::<usize>() {
        Ok(at) if digits && plain && at < len => Ok(at),
        Ok(_) if digits && plain => Err(format!("index {step} is beyond the list of {len}")),
        _ => Err(format!(
            "{:?} is no index of a list",
            step.chars().take(32).collect::<String>()
        )),
    }
}

const MISSING: &str = "the path does not exist";

fn find<'a>(doc: &'a Value, steps: &[String]) -> Result<&'a Value, String> {
    let mut at = doc;
    for step in steps {
        at = match at {
            Value::Object(map) => map.get(step).ok_or(MISSING)?,
            Value::Array(list) => &list[index(step, list.len())?],
            _ => return Err(MISSING.into()),
        };
    }
    Ok(at)
}

fn find_mut<'a>(doc: &'a mut Value, steps: &[String]) -> Result<&'a mut Value, String> {
    let mut at = doc;
    for step in steps {
        at = match at {
            Value::Object(map) => map.get_mut(step).ok_or(MISSING)?,
            Value::Array(list) => {
                let i = index(step, list.len())?;
                &mut list[i]
            }
            _ => return Err(MISSING.into()),
        };
    }
    Ok(at)
}

fn add(doc: &mut Value, steps: &[String], value: Value) -> Result<(), String> {
    let Some((last, parent)) = steps.split_last() else {
        *doc = value;
        return Ok(());
    };
    match find_mut(doc, parent)? {
        Value::Object(map) => {
            map.insert(last.clone(), value);
        }
        Value::Array(list) if last == "-" => list.push(value),
        Value::Array(list) => {
            let at = index(last, list.len() + 1)?;
            list.insert(at, value);
        }
        _ => return Err(MISSING.into()),
    }
    Ok(())
}

fn remove(doc: &mut Value, steps: &[String]) -> Result<Value, String> {
    let Some((last, parent)) = steps.split_last() else {
        return Ok(doc.take());
    };
    match find_mut(doc, parent)? {
        Value::Object(map) => map.remove(last).ok_or_else(|| MISSING.to_string()),
        Value::Array(list) => {
            let at = index(last, list.len())?;
            Ok(list.remove(at))
        }
        _ => Err(MISSING.into()),
    }
}

/// Equal as JSON: 1 and 1.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y))
        }
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(k, v)| y.get(k).is_some_and(|w| same(v, w)))
        }
        _ => a == b,
    }
}

/// About how many bytes a value is.
fn size(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len() + 2,
        Value::Array(list) => 2 + list.iter().map(|v| size(v) + 1).sum::<usize>(),
        Value::Object(map) => {
            2 + map
                .iter()
                .map(|(k, v)| k.len() + 4 + size(v))
                .sum::<usize>()
        }
        _ => 8,
    }
}
