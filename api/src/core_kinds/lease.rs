//! coordination.k8s.io/v1 Lease: heartbeats of nodes and leadership of controllers.

use k8s_openapi::api::coordination::v1::Lease;

use super::{age, column, no_overlay, row};
use crate::registry::Kind;

pub(super) fn kind() -> Kind {
    let mut kind = row::<Lease>(true, "", &mut no_overlay);
    kind.columns = vec![
        column(
            "Holder",
            "string",
            ".spec.holderIdentity",
            0,
            "Who holds it.",
        ),
        age(),
    ];
    kind
}
