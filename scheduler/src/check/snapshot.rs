//! Snapshot: promises that hold at every single moment, whatever came before.

use std::collections::BTreeMap;

use crate::cluster::Cluster;
use crate::cluster::states::NONE;

/// What is broken now, one sentence each:
///
/// - *nodes*: what stays on a node is at most what it has, device by device, and no fixed port is held twice there;
/// - *gangs*: of each gang in `min` either nobody runs or at least that many. A member that leaves
///   does not run. The caller tells how many must be there *now*: a gang of which three of five are done
///   needs two;
/// - *queues*: what stays in a queue and below it is at most its limit, at every level of the tree.
///
/// Costs one look at every task. Nodes that shrank, limits that were lowered, and tasks that the
/// caller bound break these too; decisions of a cycle do not.
pub fn snapshot(cluster: &Cluster, min: &BTreeMap<u64, u32>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut ports: BTreeMap<(u32, u16), u32> = BTreeMap::new();
    let mut held = vec![0i128; cluster.stride];
    for (n, node) in cluster.nodes.iter().enumerate() {
        held.fill(0);
        for slot in cluster.slots_on(n as u32) {
            let task = &cluster.tasks.slots[slot as usize];
            if task.leaving {
                continue;
            }
            let shape = cluster.tasks.shapes.get(task.shape);
            for (r, amount) in &shape.requests {
                held[*r as usize] += i128::from(*amount);
            }
            for port in &shape.ports {
                *ports.entry((n as u32, *port)).or_insert(0) += 1;
            }
        }
        if node.profile == NONE {
            continue;
        }
        let capacity = &cluster.profiles.all[node.profile as usize].capacity;
        for (r, (held, has)) in held.iter().zip(capacity).enumerate() {
            if *held > i128::from(*has) {
                let resource = cluster.resources.name(r as u32);
                let name = &node.name;
                wrong.push(format!(
                    "node {name}: tasks hold {held} of {resource}, it has {has}"
                ));
            }
        }
    }
    for (n, node) in cluster.nodes.iter().enumerate() {
        if cluster.devices_over(n as u32) {
            let name = &node.name;
            wrong.push(format!(
                "node {name}: a device is promised more than it has"
            ));
        }
    }
    for ((node, port), holders) in ports {
        if holders > 1 {
            let name = &cluster.nodes[node as usize].name;
            wrong.push(format!("node {name}: port {port} is held {holders} times"));
        }
    }
    for (gang, min) in min {
        let members = cluster.tasks.gangs.get(gang);
        let runs = |slot: &&u32| !cluster.tasks.slots[**slot as usize].leaving;
        let running = members.into_iter().flatten().filter(runs).count();
        if running > 0 && running < *min as usize {
            wrong.push(format!(
                "gang {gang}: {running} run, it needs {min} or none"
            ));
        }
    }
    for queue in &cluster.queues {
        for (r, (used, limit)) in queue.used.iter().zip(&queue.limit).enumerate() {
            if *limit != i64::MAX && *used > i128::from(*limit) {
                let resource = cluster.resources.name(r as u32);
                let name = &queue.name;
                wrong.push(format!(
                    "queue {name}: it holds {used} of {resource}, its limit is {limit}"
                ));
            }
        }
    }
    wrong
}
