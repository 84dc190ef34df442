//! v1 Namespace.

use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};

use super::{age, column, no_overlay, row};
use crate::registry::{Kind, NameRule};

/// Label that carries the name, so that selectors can choose a namespace by it.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Finalizer in `spec` that keeps a namespace until what is in it is gone.
const FINALIZER: &str = "kubernetes";

pub(super) fn kind() -> Kind {
    let mut kind = row::<Namespace>(false, "ns", &mut no_overlay);
    kind.status = true;
    kind.name_rule = NameRule::Label;
    kind.selectable = vec!["status.phase".into()];
    kind.columns = vec![
        column(
            "Status",
            "string",
            ".status.phase",
            0,
            "Active or Terminating.",
        ),
        age(),
    ];
    kind.prepare = prepare;
    kind
}

fn prepare(new: &mut Value, old: Option<&Value>) {
    let Some(object) = new.as_object_mut() else {
        return;
    };
    let name = object
        .get("metadata")
        .and_then(|m| m["name"].as_str())
        .unwrap_or("")
        .to_string();
    if !name.is_empty() {
        let labels = &mut object["metadata"]["labels"];
        if labels.is_null() {
            *labels = json!({});
        }
        if let Some(labels) = labels.as_object_mut() {
            labels.insert(NAME_LABEL.into(), json!(name));
        }
    }
    if old.is_none() {
        let spec = object.entry("spec").or_insert_with(|| json!({}));
        if spec.is_null() {
            *spec = json!({});
        }
        if spec.get("finalizers").is_none_or(Value::is_null) && spec.is_object() {
            spec["finalizers"] = json!([FINALIZER]);
        }
        let status = object.entry("status").or_insert_with(|| json!({}));
        if status.is_null() {
            *status = json!({});
        }
        if status.get("phase").is_none_or(Value::is_null) && status.is_object() {
            status["phase"] = json!("Active");
        }
    }
}
