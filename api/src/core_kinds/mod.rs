//! The standard Kubernetes kinds that are served beside our own: one file each.
//!
//! Shapes come from `k8s-openapi`; what its schemas do not carry (list types, merge keys, defaults)
//! and Kubernetes' own rules are in these files.

mod config_map;
pub mod event;
mod lease;
mod namespace;
mod node;
mod secret;
mod service_account;

use schemars::JsonSchema;
use serde_json::{Map, Value};

use crate::registry::{Column, FieldError, Kind, NameRule};

/// Rows of all core kinds, in discovery order.
pub fn all() -> Vec<Kind> {
    vec![
        namespace::kind(),
        node::kind(),
        event::kind(),
        secret::kind(),
        config_map::kind(),
        service_account::kind(),
        lease::kind(),
        event::kind_of_events_group(),
    ]
}

/// A row with what is common to core kinds.
fn row<K: k8s_openapi::Resource + JsonSchema>(
    namespaced: bool,
    short_name: &str,
    overlay: &mut dyn FnMut(&str, &mut Map<String, Value>),
) -> Kind {
    let singular: &'static str = Box::leak(K::KIND.to_lowercase().into_boxed_str());
    Kind {
        group: K::GROUP,
        version: K::VERSION,
        kind: K::KIND,
        plural: K::URL_PATH_SEGMENT,
        singular,
        short_names: Some(short_name)
            .filter(|s| !s.is_empty())
            .map(String::from)
            .into_iter()
            .collect(),
        categories: Vec::new(),
        namespaced,
        schema: crate::structural::of_type::<K>(overlay),
        columns: Vec::new(),
        status: false,
        scale: None,
        selectable: Vec::new(),
        name_rule: NameRule::Subdomain(253),
        core: true,
        generation: false,
        ttl_seconds: None,
        rules: |_, _| Vec::new(),
        prepare: |_, _| {},
        stored_as: None,
    }
}

fn no_overlay(_: &str, _: &mut Map<String, Value>) {}

fn column(name: &str, type_: &str, json_path: &str, priority: i32, description: &str) -> Column {
    Column {
        name: name.into(),
        type_: type_.into(),
        format: String::new(),
        description: description.into(),
        priority,
        json_path: json_path.into(),
    }
}

fn age() -> Column {
    column(
        "Age",
        "date",
        ".metadata.creationTimestamp",
        0,
        "Time since creation.",
    )
}

/// Longest total of a Secret's or ConfigMap's data, as in Kubernetes.
const DATA_SIZE_MAX: usize = 1024 * 1024;

fn error(reason: &'static str, field: impl Into<String>, message: impl Into<String>) -> FieldError {
    FieldError {
        reason,
        field: field.into(),
        message: message.into(),
    }
}

fn forbidden(field: impl Into<String>, why: &str) -> FieldError {
    error("FieldValueForbidden", field, format!("Forbidden: {why}"))
}

/// Rules that Secret and ConfigMap share: keys, size, and nothing changes once immutable.
fn data_rules(new: &Value, old: Option<&Value>, maps: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut total = 0;
    for map in maps {
        for (key, value) in new[*map].as_object().into_iter().flatten() {
            total += value.as_str().map_or(0, str::len);
            let plain = !key.is_empty()
                && key.len() <= 253
                && key != "."
                && !key.starts_with("..")
                && key
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if !plain {
                errors.push(error("FieldValueInvalid", format!("{map}[{key}]"), format!(
                    "Invalid value: {key:?}: a valid config key must consist of alphanumeric characters, '-', '_' or '.', be at most 253 characters and not begin with '..'"
                )));
            }
        }
    }
    if total > DATA_SIZE_MAX {
        errors.push(error(
            "FieldValueTooLong",
            maps[0],
            format!("Too long: may not be more than {DATA_SIZE_MAX} bytes"),
        ));
    }
    if let Some(old) = old.filter(|o| o["immutable"] == true) {
        const WHY: &str = "field is immutable when `immutable` is set";
        if new["immutable"] != true {
            errors.push(forbidden("immutable", WHY));
        }
        for map in maps {
            if new.get(map) != old.get(map) {
                errors.push(forbidden(*map, WHY));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests;
