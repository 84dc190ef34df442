//! v1 Node: a machine, registered by its agent.

use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use super::{age, column, row};
use crate::registry::Kind;
use crate::structural::merge_by;

pub(super) fn kind() -> Kind {
    let mut kind = row::<Node>(false, "no", &mut |name, node| match name {
        "addresses" if node.get("type") == Some(&json!("array")) => merge_by(node, "type"),
        "podCIDRs" if node.get("type") == Some(&json!("array")) => {
            node.insert("x-kubernetes-list-type".into(), json!("set"));
            node.insert("x-kubernetes-patch-strategy".into(), json!("merge"));
        }
        _ => {}
    });
    // An agent may report two addresses of one type, which a map list would refuse.
    let addresses = &mut kind.schema["properties"]["status"]["properties"]["addresses"];
    addresses["x-kubernetes-list-type"] = json!("atomic");
    if let Some(list) = addresses.as_object_mut() {
        list.remove("x-kubernetes-list-map-keys");
    }
    kind.status = true;
    kind.selectable = vec!["spec.unschedulable".into()];
    let wide = |name, path, about| column(name, "string", path, 1, about);
    kind.columns = vec![
        column(
            "Status",
            "string",
            "computed:node-status",
            0,
            "Ready, NotReady or Unknown; SchedulingDisabled when cordoned.",
        ),
        column(
            "Roles",
            "string",
            "computed:node-roles",
            0,
            "Roles by label.",
        ),
        age(),
        column(
            "Version",
            "string",
            ".status.nodeInfo.kubeletVersion",
            0,
            "Version of the agent.",
        ),
        wide(
            "Internal-IP",
            "computed:node-internal-ip",
            "First internal address.",
        ),
        wide(
            "External-IP",
            "computed:node-external-ip",
            "First external address.",
        ),
        wide("OS-Image", ".status.nodeInfo.osImage", "Operating system."),
        wide(
            "Kernel-Version",
            ".status.nodeInfo.kernelVersion",
            "Kernel.",
        ),
        wide(
            "Container-Runtime",
            ".status.nodeInfo.containerRuntimeVersion",
            "What runs the tasks.",
        ),
    ];
    kind
}
