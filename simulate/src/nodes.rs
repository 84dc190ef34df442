//! The cluster that a trace is played on.

use rota_scheduler::NodeSpec;

use crate::trace::{Change, ReadError, events, openb};

/// A cluster's nodes by name, in the order in which the scheduler is told of them.
pub type Nodes = Vec<(String, NodeSpec)>;

/// `n` equal nodes.
pub fn uniform(n: u32, spec: &NodeSpec) -> Nodes {
    let width = n.saturating_sub(1).to_string().len();
    (0..n)
        .map(|i| (format!("node-{i:0width$}"), spec.clone()))
        .collect()
}

/// Nodes listed in a file: openb's table, or the nodes of an event log.
pub fn read(text: &str) -> Result<Nodes, ReadError> {
    if !text.trim_start().starts_with('{') {
        return openb::read_nodes(text);
    }
    let trace = events::read(text)?;
    let nodes = trace
        .changes
        .into_iter()
        .filter_map(|(_, change)| match change {
            Change::Node(name, spec) => Some((name, spec)),
            _ => None,
        });
    Ok(nodes.collect())
}
