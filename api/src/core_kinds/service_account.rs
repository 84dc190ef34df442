//! v1 ServiceAccount.

use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::json;

use super::{age, column, row};
use crate::registry::Kind;
use crate::structural::merge_by;

pub(super) fn kind() -> Kind {
    let mut kind = row::<ServiceAccount>(true, "sa", &mut |name, node| {
        if name == "secrets" && node.get("type") == Some(&json!("array")) {
            merge_by(node, "name");
        }
    });
    kind.columns = vec![
        column(
            "Secrets",
            "integer",
            "computed:secrets-count",
            0,
            "Number of secrets.",
        ),
        age(),
    ];
    kind
}
