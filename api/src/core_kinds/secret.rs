//! v1 Secret.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Map, Value, json};

use super::{age, column, data_rules, error, no_overlay, row};
use crate::registry::{FieldError, Kind};

pub(super) fn kind() -> Kind {
    let mut kind = row::<Secret>(true, "", &mut no_overlay);
    kind.selectable = vec!["type".into()];
    kind.columns = vec![
        column("Type", "string", ".type", 0, "What the data is for."),
        column(
            "Data",
            "integer",
            "computed:data-count",
            0,
            "Number of keys.",
        ),
        age(),
    ];
    kind.rules = rules;
    kind.prepare = prepare;
    kind
}

/// Folds `stringData` into `data`; what is no text stays for validation to refuse.
fn prepare(new: &mut Value, _: Option<&Value>) {
    let Some(object) = new.as_object_mut() else {
        return;
    };
    let foldable = match object.get("stringData") {
        Some(Value::Object(texts)) => texts.values().all(|v| v.is_string() || v.is_null()),
        Some(Value::Null) => true,
        _ => false,
    };
    let data_fits = matches!(
        object.get("data"),
        None | Some(Value::Object(_) | Value::Null)
    );
    if foldable && data_fits {
        let texts = match object.remove("stringData") {
            Some(Value::Object(texts)) => texts,
            _ => Map::new(),
        };
        if !texts.is_empty() {
            let data = object.entry("data").or_insert_with(|| json!({}));
            if data.is_null() {
                *data = json!({});
            }
            for (key, text) in texts {
                data[key.as_str()] = json!(STANDARD.encode(text.as_str().unwrap_or("")));
            }
        }
    }
    if matches!(object.get("type"), None | Some(Value::Null)) || object["type"] == "" {
        object.insert("type".into(), json!("Opaque"));
    }
}

fn rules(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = data_rules(new, old, &["data"]);
    if let Some(old) = old
        && new["type"] != old["type"]
    {
        errors.push(error(
            "FieldValueInvalid",
            "type",
            format!("Invalid value: {}: field is immutable", new["type"]),
        ));
    }
    let needed: &[&str] = match new["type"].as_str() {
        Some("kubernetes.io/tls") => &["tls.crt", "tls.key"],
        Some("kubernetes.io/dockerconfigjson") => &[".dockerconfigjson"],
        Some("kubernetes.io/ssh-auth") => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed {
        if new["data"].get(key).is_none() {
            errors.push(error(
                "FieldValueRequired",
                format!("data[{key}]"),
                "Required value",
            ));
        }
    }
    errors
}
