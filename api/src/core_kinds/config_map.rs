//! v1 ConfigMap.

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;

use super::{age, column, data_rules, error, no_overlay, row};
use crate::registry::{FieldError, Kind};

pub(super) fn kind() -> Kind {
    let mut kind = row::<ConfigMap>(true, "cm", &mut no_overlay);
    kind.columns = vec![
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
    kind
}

fn rules(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = data_rules(new, old, &["data", "binaryData"]);
    for key in new["binaryData"]
        .as_object()
        .into_iter()
        .flat_map(|m| m.keys())
    {
        if new["data"].get(key).is_some() {
            errors.push(error(
                "FieldValueInvalid",
                format!("data[{key}]"),
                format!("Invalid value: {key:?}: duplicate of key present in binaryData"),
            ));
        }
    }
    errors
}
