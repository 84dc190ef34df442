//! `metadata`: its schema, which all kinds share, and the checks that a schema cannot express.

use rota_api::labels;
use rota_api::registry::{FieldError, NameRule};
use serde_json::{Map, Value, json};

use super::walk::shown;

/// Most bytes of all labels, and of all annotations, of an object.
const TOTAL_SIZE_MAX: usize = 256 * 1024;
/// Most entries of a metadata list: far above real use, far below what makes an object slow to handle.
const ENTRIES_MAX: usize = 1_000;

/// The structural schema of ObjectMeta.
pub fn object_meta_schema() -> Value {
    let text = json!({"type": "string"});
    let time = json!({"type": "string", "format": "date-time"});
    let texts = json!({"type": "object", "additionalProperties": {"type": "string"}});
    json!({"type": "object", "properties": {
        "name": text, "generateName": text, "namespace": text, "uid": text,
        "resourceVersion": text, "selfLink": text,
        "generation": {"type": "integer", "format": "int64"},
        "creationTimestamp": time, "deletionTimestamp": time,
        "deletionGracePeriodSeconds": {"type": "integer", "format": "int64"},
        "labels": texts, "annotations": texts,
        "finalizers": {"type": "array", "maxItems": ENTRIES_MAX, "x-kubernetes-list-type": "set",
            "items": {"type": "string", "maxLength": 317}},
        "ownerReferences": {"type": "array", "maxItems": ENTRIES_MAX, "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["uid"],
            "items": {"type": "object", "required": ["apiVersion", "kind", "name", "uid"], "properties": {
                "apiVersion": {"type": "string", "minLength": 1, "maxLength": 317},
                "kind": {"type": "string", "minLength": 1, "maxLength": 63},
                "name": {"type": "string", "minLength": 1, "maxLength": 253},
                "uid": {"type": "string", "minLength": 1, "maxLength": 128},
                "controller": {"type": "boolean"}, "blockOwnerDeletion": {"type": "boolean"}}}},
        "managedFields": {"type": "array", "maxItems": ENTRIES_MAX, "x-kubernetes-list-type": "atomic",
            "items": {"type": "object", "properties": {
                "apiVersion": text, "fieldsType": text, "manager": {"type": "string", "maxLength": 128},
                "operation": text, "subresource": text, "time": time,
                "fieldsV1": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
    }})
}

/// Why a name of this kind is not valid, if it is not.
pub fn check_name(rule: NameRule, name: &str) -> Result<(), String> {
    match rule {
        NameRule::Subdomain(max) => labels::check_dns_subdomain(name, max),
        NameRule::Label => labels::check_dns_label(name),
    }
}

fn invalid(errors: &mut Vec<FieldError>, field: String, value: &str, why: String) {
    errors.push(FieldError {
        reason: "FieldValueInvalid",
        field,
        message: format!("Invalid value: {}: {why}", shown(&Value::from(value))),
    });
}

/// Checks names, labels, annotations, finalizers and owners. Types were checked by the walk.
pub(super) fn check(metadata: &Value, rule: NameRule, errors: &mut Vec<FieldError>) {
    let text = |key: &str| metadata[key].as_str().unwrap_or("");
    if !text("name").is_empty()
        && let Err(why) = check_name(rule, text("name"))
    {
        invalid(errors, "metadata.name".into(), text("name"), why);
    }
    let prefix = text("generateName");
    if !prefix.is_empty() {
        // What is appended makes a trailing dash or dot valid.
        let mut sample = prefix.to_string();
        sample.push('x');
        let rule = match rule {
            NameRule::Subdomain(_) => NameRule::Subdomain(253),
            NameRule::Label => NameRule::Label,
        };
        if let Err(why) = check_name(rule, &sample) {
            invalid(errors, "metadata.generateName".into(), prefix, why);
        }
    }
    if !text("namespace").is_empty()
        && let Err(why) = labels::check_dns_label(text("namespace"))
    {
        invalid(errors, "metadata.namespace".into(), text("namespace"), why);
    }
    if let Some(map) = metadata["labels"].as_object() {
        pairs(map, "metadata.labels", true, errors);
    }
    if let Some(map) = metadata["annotations"].as_object() {
        pairs(map, "metadata.annotations", false, errors);
    }
    for (i, f) in list(&metadata["finalizers"]).enumerate() {
        let name = f.as_str().unwrap_or("");
        if let Err(why) = labels::check_key(name) {
            invalid(errors, format!("metadata.finalizers[{i}]"), name, why);
        }
    }
    let controllers: Vec<&str> = list(&metadata["ownerReferences"])
        .filter(|o| o["controller"] == true)
        .filter_map(|o| o["name"].as_str())
        .collect();
    if controllers.len() > 1 {
        errors.push(FieldError {
            reason: "FieldValueInvalid",
            field: "metadata.ownerReferences".into(),
            message: format!(
                "Invalid value: {}: Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
                shown(&metadata["ownerReferences"]),
                controllers[0],
                controllers[1]
            ),
        });
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn pairs(map: &Map<String, Value>, field: &str, is_label: bool, errors: &mut Vec<FieldError>) {
    let mut total = 0;
    for (key, value) in map {
        let value = value.as_str().unwrap_or("");
        total += key.len() + value.len();
        // Annotation keys may have capitals in their prefix.
        let checked = if is_label {
            labels::check_key(key)
        } else {
            labels::check_key(&key.to_lowercase())
        };
        if let Err(why) = checked {
            invalid(errors, field.into(), key, why);
        }
        if is_label && let Err(why) = labels::check_value(value) {
            invalid(errors, field.into(), value, why);
        }
        if errors.len() > 64 {
            return;
        }
    }
    if total > TOTAL_SIZE_MAX {
        errors.push(FieldError {
            reason: "FieldValueTooLong",
            field: field.into(),
            message: format!("Too long: may not be more than {TOTAL_SIZE_MAX} bytes"),
        });
    }
}
