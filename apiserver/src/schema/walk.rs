//! The one walk over an object.

use std::collections::HashSet;
use std::fmt;

use rota_api::quantity::Quantity;
use rota_api::registry::FieldError;
use serde_json::{Map, Value};

use super::compile::{Format, ListType, Node, Type};
use super::{Admitted, Mode};
use crate::body::type_of;

/// Most errors and most unknown fields that are told at once.
const FINDINGS_MAX: usize = 64;
/// Most characters of a value that a message repeats.
const SHOWN_MAX: usize = 256;

/// Walks the whole object.
pub(super) fn run(root: &Node, object: &mut Value, mode: Mode, out: &mut Admitted) {
    let path = Path {
        parent: None,
        step: Step::Root,
    };
    let mut walk = Walk { out };
    match mode {
        Mode::Full => walk.node(root, object, &path),
        Mode::Status => {
            for key in ["metadata", "status"] {
                let is_null = object.get(key).is_some_and(Value::is_null);
                if let (Some(node), Some(map)) = (root.field(key), object.as_object_mut()) {
                    if is_null {
                        map.remove(key);
                    }
                    if let Some(value) = map.get_mut(key) {
                        walk.node(node, value, &path.field(key));
                    }
                }
            }
        }
    }
}

struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

enum Step<'a> {
    Root,
    Field(&'a str),
    /// Key of a map whose keys are data.
    Key(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    fn field(&'a self, name: &'a str) -> Path<'a> {
        Path {
            parent: Some(self),
            step: Step::Field(name),
        }
    }
    fn key(&'a self, name: &'a str) -> Path<'a> {
        Path {
            parent: Some(self),
            step: Step::Key(name),
        }
    }
    fn index(&'a self, at: usize) -> Path<'a> {
        Path {
            parent: Some(self),
            step: Step::Index(at),
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut dot = false;
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            dot = !matches!(parent.step, Step::Root);
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) if dot => write!(f, ".{name}"),
            Step::Field(name) => f.write_str(name),
            Step::Key(name) if name.contains(['.', '/', ' ']) => write!(f, "[{name}]"),
            Step::Key(name) if dot => write!(f, ".{name}"),
            Step::Key(name) => f.write_str(name),
            Step::Index(at) => write!(f, "[{at}]"),
        }
    }
}

/// A value for a message: JSON, cut.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

struct Walk<'o> {
    out: &'o mut Admitted,
}

impl Walk<'_> {
    fn error(&mut self, reason: &'static str, path: &Path, message: String) {
        if self.out.errors.len() < FINDINGS_MAX {
            self.out.errors.push(FieldError {
                reason,
                field: path.to_string(),
                message,
            });
        }
    }

    fn invalid(&mut self, path: &Path, value: &Value, why: impl fmt::Display) {
        let message = format!("Invalid value: {}: {path} in body {why}", shown(value));
        self.error("FieldValueInvalid", path, message);
    }

    fn wrong_type(&mut self, path: &Path, wanted: &str, value: &Value) {
        let found = type_of(value);
        let message =
            format!("Invalid value: {found:?}: {path} in body must be of type {wanted}: {found:?}");
        self.error("FieldValueTypeInvalid", path, message);
    }

    fn node(&mut self, node: &Node, value: &mut Value, path: &Path) {
        match node.ty {
            Type::Any => return,
            Type::Object => match value {
                Value::Object(map) => self.object(node, map, path),
                other => return self.wrong_type(path, "object", other),
            },
            Type::Array => match value {
                Value::Array(list) => self.array(node, list, path),
                other => return self.wrong_type(path, "array", other),
            },
            Type::String => match value {
                Value::String(_) => self.string(node, value, path),
                other => return self.wrong_type(path, "string", other),
            },
            Type::Integer => return self.integer(node, value, path),
            Type::Number => match value {
                Value::Number(_) => self.range(node, value, path),
                other => return self.wrong_type(path, "number", other),
            },
            Type::Boolean => {
                if !value.is_boolean() {
                    return self.wrong_type(path, "boolean", value);
                }
            }
            Type::IntOrString => match value {
                Value::String(_) => self.string(node, value, path),
                Value::Number(n) if !n.is_f64() => self.range(node, value, path),
                other => return self.wrong_type(path, "integer,string", other),
            },
            Type::Quantity => return self.quantity(value, path),
        }
        if !node.allowed.is_empty() && !node.allowed.contains(value) {
            let list: Vec<String> = node.allowed.iter().map(shown).collect();
            let message = format!(
                "Unsupported value: {}: supported values: {}",
                shown(value),
                list.join(", ")
            );
            self.error("FieldValueNotSupported", path, message);
        }
        for (rule, message) in &node.rules {
            if !rule(value) {
                let message = format!("Invalid value: \"{}\": {message}", type_of(value));
                self.error("FieldValueInvalid", path, message);
            }
        }
    }

    fn object(&mut self, node: &Node, map: &mut Map<String, Value>, path: &Path) {
        let closed = !node.preserve;
        map.retain(|key, value| {
            if value.is_null() {
                return false;
            }
            match node.properties.binary_search_by(|p| p.0.as_str().cmp(key)) {
                Ok(at) => self.node(&node.properties[at].1, value, &path.field(key)),
                Err(_) => match &node.additional {
                    Some(additional) => self.node(additional, value, &path.key(key)),
                    None if closed => {
                        if self.out.unknown.len() < FINDINGS_MAX {
                            self.out.unknown.push(path.field(key).to_string());
                        }
                        return false;
                    }
                    None => {}
                },
            }
            true
        });
        for (key, default) in &node.defaults {
            if !map.contains_key(key) {
                map.insert(key.clone(), default.clone());
            }
        }
        for key in &node.required {
            if !map.contains_key(key) {
                self.error(
                    "FieldValueRequired",
                    &path.field(key),
                    "Required value".into(),
                );
            }
        }
        if let Some(max) = node.max_properties
            && map.len() > max
        {
            let message = format!("Too many: {}: must have at most {max} items", map.len());
            self.error("FieldValueTooMany", path, message);
        }
        if let Some(min) = node.min_properties
            && map.len() < min
        {
            let message = format!(
                "Invalid value: {}: {path} in body should have at least {min} properties",
                map.len()
            );
            self.error("FieldValueInvalid", path, message);
        }
    }

    fn array(&mut self, node: &Node, list: &mut [Value], path: &Path) {
        if let Some(max) = node.max_items
            && list.len() > max
        {
            // Items beyond the bound are not looked at: there may be very many.
            let message = format!("Too many: {}: must have at most {max} items", list.len());
            return self.error("FieldValueTooMany", path, message);
        }
        if let Some(min) = node.min_items
            && list.len() < min
        {
            let message = format!(
                "Invalid value: {}: {path} in body should have at least {min} items",
                list.len()
            );
            self.error("FieldValueInvalid", path, message);
        }
        if let Some(items) = &node.items {
            for (at, item) in list.iter_mut().enumerate() {
                self.node(items, item, &path.index(at));
            }
        }
        if list.len() < 2 {
            return;
        }
        let key_of = |item: &Value| -> Option<String> {
            match &node.list {
                ListType::Atomic => None,
                ListType::Set => Some(item.to_string()),
                ListType::Map(keys) => {
                    let part: Vec<String> = keys
                        .iter()
                        .filter_map(|k| {
                            item.get(k)
                                .map(|v| format!("{}:{v}", Value::from(k.as_str())))
                        })
                        .collect();
                    Some(format!("{{{}}}", part.join(",")))
                }
            }
        };
        let mut seen = HashSet::new();
        for (at, item) in list.iter().enumerate() {
            let Some(key) = key_of(item) else { return };
            if seen.contains(&key) {
                let message = format!("Duplicate value: {key}");
                self.error("FieldValueDuplicate", &path.index(at), message);
            } else {
                seen.insert(key);
            }
        }
    }

    fn string(&mut self, node: &Node, value: &Value, path: &Path) {
        let Value::String(text) = value else { return };
        if let Some(max) = node.max_length
            && text.len() > max
            && text.chars().count() > max
        {
            let message = format!("Too long: may not be more than {max} bytes");
            return self.error("FieldValueTooLong", path, message);
        }
        if let Some(min) = node.min_length
            && text.len() < min * 4
            && text.chars().count() < min
        {
            self.invalid(
                path,
                value,
                format_args!("should be at least {min} chars long"),
            );
        }
        if let Some(pattern) = &node.pattern
            && !pattern.is_match(text)
        {
            self.invalid(
                path,
                value,
                format_args!("should match '{}'", pattern.as_str()),
            );
        }
        match node.format {
            Format::DateTime if text.parse::<jiff::Timestamp>().is_err() => {
                self.invalid(
                    path,
                    value,
                    format_args!("must be of type date-time: {}", shown(value)),
                );
            }
            Format::Byte if !is_base64(text) => {
                self.invalid(path, value, "must be base64");
            }
            _ => {}
        }
    }

    fn integer(&mut self, node: &Node, value: &mut Value, path: &Path) {
        let Value::Number(n) = value else {
            return self.wrong_type(path, "integer", value);
        };
        if let Some(f) = n.as_f64().filter(|_| n.is_f64()) {
            // 1.0 is a whole number in JSON; stored as one so that typed clients can read it.
            if f.fract() != 0.0 || f.abs() >= 9_007_199_254_740_992.0 {
                return self.wrong_type(path, "integer", value);
            }
            *value = Value::from(f as i64);
        }
        let fits = match (node.format, value.as_i64()) {
            (Format::Int32, Some(i)) => i32::try_from(i).is_ok(),
            (_, Some(_)) => true,
            (_, None) => false,
        };
        if !fits {
            let wanted = if node.format == Format::Int32 {
                "int32"
            } else {
                "int64"
            };
            return self.invalid(path, value, format_args!("must fit into {wanted}"));
        }
        self.range(node, value, path);
        if !node.allowed.is_empty() && !node.allowed.contains(value) {
            let list: Vec<String> = node.allowed.iter().map(shown).collect();
            let message = format!(
                "Unsupported value: {}: supported values: {}",
                shown(value),
                list.join(", ")
            );
            self.error("FieldValueNotSupported", path, message);
        }
    }

    fn range(&mut self, node: &Node, value: &Value, path: &Path) {
        let Some(n) = value.as_f64() else { return };
        if let Some(min) = node.minimum
            && n < min
        {
            self.invalid(
                path,
                value,
                format_args!("should be greater than or equal to {min}"),
            );
        }
        if let Some(max) = node.maximum
            && n > max
        {
            self.invalid(
                path,
                value,
                format_args!("should be less than or equal to {max}"),
            );
        }
    }

    fn quantity(&mut self, value: &mut Value, path: &Path) {
        let read = match &*value {
            Value::String(s) => s.parse::<Quantity>(),
            Value::Number(n) => n.to_string().parse::<Quantity>(),
            other => return self.wrong_type(path, "integer,string", other),
        };
        match read {
            Err(e) => {
                let message = format!("Invalid value: {}: {e}", shown(value));
                self.error("FieldValueInvalid", path, message);
            }
            // Half a cpu written as a number: kept as text, since the schema knows integers and text.
            Ok(_) if value.is_f64() => *value = Value::from(value.to_string()),
            Ok(_) => {}
        }
    }
}

/// Standard base64 with padding, as Kubernetes' byte fields are written.
fn is_base64(text: &str) -> bool {
    let b = text.as_bytes();
    if !b.len().is_multiple_of(4) {
        return false;
    }
    let padding = b.iter().rev().take_while(|c| **c == b'=').count();
    padding <= 2
        && b[..b.len() - padding]
            .iter()
            .all(|c| c.is_ascii_alphanumeric() || *c == b'+' || *c == b'/')
}
