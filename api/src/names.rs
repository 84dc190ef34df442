//! Names that are part of the contract: groups, labels, annotations, finalizers, environment
//! variables, users, and the deterministic names of derived objects.

use sha2::{Digest, Sha256};

/// Our API group.
pub const GROUP: &str = "rota.dev";
/// Our API version.
pub const VERSION: &str = "v1";
/// `apiVersion` of our kinds.
pub const API_VERSION: &str = "rota.dev/v1";

/// Held on Jobs and Tasks until placement has folded them into the ledger; only placement removes it.
pub const FINALIZER_LEDGER: &str = "rota.dev/ledger";

/// Label on derived objects: the Job's name.
pub const LABEL_JOB: &str = "rota.dev/job";
/// Label on derived objects: the Job's uid.
pub const LABEL_JOB_UID: &str = "rota.dev/job-uid";
/// Label on Tasks: the index.
pub const LABEL_INDEX: &str = "rota.dev/index";
/// Label on Nodes that a Rota agent registered; only these exist for placement.
pub const LABEL_AGENT: &str = "rota.dev/agent";
/// Label on Nodes: the pool they belong to.
pub const LABEL_POOL: &str = "rota.dev/pool";

/// Node annotation: fencing number, raised when the node is declared lost and on a new boot id.
pub const ANNOTATION_EPOCH: &str = "rota.dev/epoch";
/// Node annotation: range of dynamic ports, `20000-31999` by default.
pub const ANNOTATION_PORT_RANGE: &str = "rota.dev/port-range";
/// Lease annotation of a node: address of the API server that holds its tunnel.
pub const ANNOTATION_TUNNEL_SERVER: &str = "rota.dev/tunnel-server";
/// Lease annotation of a node: id of its newest tunnel connection.
pub const ANNOTATION_TUNNEL_ID: &str = "rota.dev/tunnel-id";
/// Lease annotation of a node: id of the newest tunnel connection whose far end went away.
pub const ANNOTATION_TUNNEL_CLOSED: &str = "rota.dev/tunnel-closed";
/// Node annotation: the epoch that the agent has adopted, after it stopped older tasks.
pub const ANNOTATION_OBSERVED_EPOCH: &str = "rota.dev/observed-epoch";
/// Task annotation: the Job's completions at bind.
pub const ANNOTATION_COMPLETIONS: &str = "rota.dev/completions";
/// Node taint key while it counts as lost.
pub const TAINT_LOST: &str = "rota.dev/lost";
/// Default of [`ANNOTATION_PORT_RANGE`], inclusive.
pub const PORT_RANGE_DEFAULT: (u16, u16) = (20000, 31999);
/// The resource that counts a node's dynamic ports.
pub const RESOURCE_PORTS: &str = "rota.dev/ports";

/// Namespace of node heartbeat Leases.
pub const NODE_LEASE_NAMESPACE: &str = "kube-node-lease";
/// Namespace of our controllers' leader Leases and of cluster-wide policies.
pub const SYSTEM_NAMESPACE: &str = "rota-system";

/// Group whose members may do everything.
pub const GROUP_MASTERS: &str = "system:masters";
/// Group of agents; user names are `system:node:<node>`.
pub const GROUP_NODES: &str = "system:nodes";
/// Group of join tokens: may only post a certificate request.
pub const GROUP_BOOTSTRAPPERS: &str = "system:bootstrappers";
/// Group of API servers when they ask each other: may only relay.
pub const GROUP_SERVERS: &str = "system:apiservers";
/// User name of an API server when it asks another one.
pub const USER_SERVER: &str = "system:apiserver";
/// Prefix of an agent's user name.
pub const USER_NODE_PREFIX: &str = "system:node:";
/// The one user that creates and removes Tasks and JobLedgers.
pub const USER_PLACEMENT: &str = "rota:placement";
/// Prefix of controller user names: `rota:job`, `rota:node`, `rota:namespace`, `rota:gc`, `rota:placement`.
pub const USER_CONTROLLER_PREFIX: &str = "rota:";

/// Path at which the placement leader opens the connection over which it is asked.
pub const PATH_PLACEMENT_TUNNEL: &str = "/rota/v1/placement/tunnel";
/// Below it API servers hand on questions to whoever holds the other end of a tunnel.
pub const PATH_RELAY: &str = "/rota/v1/relay";
/// Value of the Upgrade header of connections over which the server asks the one who dialled.
pub const TUNNEL_UPGRADE: &str = "rota-tunnel/1";
/// Name of placement's leader Lease in [`SYSTEM_NAMESPACE`].
pub const LEASE_PLACEMENT: &str = "placement";
/// Lease annotation: URL of the API server at which the leader can be asked.
pub const ANNOTATION_ADDRESS: &str = "rota.dev/address";

/// Request header that carries a leader's term: `<namespace>/<lease>@<term>`.
pub const HEADER_FENCE: &str = "rota-fence";

/// Reason of a 409 when a leader's fence no longer holds.
pub const REASON_LEASE_LOST: &str = "LeaseLost";

/// Indexes that one JobLedger object covers.
pub const LEDGER_CHUNK: u32 = 4096;

/// Longest Job name, so that derived names fit into a label.
pub const JOB_NAME_MAX: usize = 52;

/// First `n` hex characters of SHA-256 over the parts, each ended by a NUL so that parts cannot run together.
pub fn short_hash(parts: &[&str], n: usize) -> String {
    let mut h = Sha256::new();
    for p in parts {
        h.update(p.as_bytes());
        h.update([0]);
    }
    let digest = h.finalize();
    let mut out = String::with_capacity(64);
    for b in digest.iter() {
        out.push_str(&format!("{b:02x}"));
    }
    out.truncate(n);
    out
}

/// Name of the Task of an attempt: opaque, deterministic, never parsed.
pub fn task_name(job: &str, job_uid: &str, index: u32, attempt: u32) -> String {
    let cut: String = job.chars().take(40).collect();
    let hash = short_hash(&[job_uid, &index.to_string(), &attempt.to_string()], 8);
    format!("{}-{index}-{hash}", cut.trim_end_matches(['-', '.']))
}

/// Name of a JobLedger chunk; holds the uid so that a Job created again under the same name starts fresh.
pub fn ledger_name(job: &str, job_uid: &str, chunk: u32) -> String {
    format!("{job}-{}-{chunk}", short_hash(&[job_uid], 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_names_are_stable_and_distinct() {
        let a = task_name("pi", "u", 0, 0);
        assert_eq!(a, task_name("pi", "u", 0, 0));
        assert_ne!(a, task_name("pi", "u", 0, 1));
        assert_ne!(a, task_name("pi", "v", 0, 0));
        assert!(a.starts_with("pi-0-"));
        assert!(task_name(&"x".repeat(52), "u", 4_000_000, 9).len() <= 63);
    }
}
