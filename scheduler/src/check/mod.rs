//! What is wrong with a cluster, and with a run of one.
//!
//! [`check`] recomputes every sum from the tasks and says where it differs: a defect of this crate.
//! [`snapshot`] says which promises do not hold at this moment, [`History`] which are broken by
//! what happened one after the other. All answers are empty when all is well. Tests run them all
//! the time; a running scheduler may run them when asked.

mod history;
mod snapshot;

pub use history::{Event, History, Reason, Work};
pub use snapshot::snapshot;

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::states::NONE;
use crate::cluster::{Cluster, NodeId, clamp};

/// Everything that is wrong, one sentence each.
pub fn check(cluster: &Cluster) -> Vec<String> {
    let mut wrong = crate::fair::check::wrong(cluster);
    let stride = cluster.stride;
    let mut used = vec![0i128; cluster.nodes.len() * stride];
    let mut leaving = vec![0i128; cluster.nodes.len() * stride];
    let mut queue_leaving = vec![vec![0i128; stride]; cluster.queues.len()];
    let mut queue_own = vec![vec![0i128; stride]; cluster.queues.len()];
    let mut running = vec![0u64; cluster.queues.len()];
    let mut gangs: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
    let mut ports: BTreeMap<(u32, u16), u32> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (n, node) in cluster.nodes.iter().enumerate() {
        let mut at = node.first_task;
        while at != NONE {
            let task = &cluster.tasks.slots[at as usize];
            if !seen.insert(at) {
                wrong.push(format!("task {at} is listed twice"));
                break;
            }
            if task.node != n as u32 {
                wrong.push(format!(
                    "task {at} is listed on {} and is not there",
                    node.name
                ));
            }
            let shape = cluster.tasks.shapes.get(task.shape);
            for (r, amount) in &shape.requests {
                used[n * stride + *r as usize] += i128::from(*amount);
                if task.leaving {
                    leaving[n * stride + *r as usize] += i128::from(*amount);
                    queue_leaving[task.queue as usize][*r as usize] += i128::from(*amount);
                } else {
                    queue_own[task.queue as usize][*r as usize] += i128::from(*amount);
                }
            }
            let gang = cluster.tasks.runs.get(task.run).gang;
            if gang != 0 {
                gangs.entry(gang).or_default().insert(at);
            }
            for port in &shape.ports {
                *ports.entry((n as u32, *port)).or_insert(0) += 1;
            }
            running[task.queue as usize] += u64::from(!task.leaving);
            at = task.next;
        }
    }
    if seen.len() != cluster.task_count() {
        wrong.push(format!(
            "{} tasks are listed on nodes, {} exist",
            seen.len(),
            cluster.task_count()
        ));
    }
    if used != cluster.used {
        wrong.push("the use of a node is not the sum of its tasks".into());
    }
    if leaving != cluster.leaving {
        wrong.push("what leaves a node is not the sum of its tasks that leave".into());
    }
    let mut evictable: BTreeMap<(u32, i32), BTreeSet<u32>> = BTreeMap::new();
    let mut on_the_way_out = BTreeSet::new();
    for slot in &seen {
        let task = &cluster.tasks.slots[*slot as usize];
        let run = cluster.tasks.runs.get(task.run);
        if task.leaving {
            on_the_way_out.insert(*slot);
        } else if run.preemptible {
            let list = evictable.entry((task.queue, run.priority)).or_default();
            list.insert(*slot);
        }
    }
    let lists = &cluster.tasks.listed;
    let listed = lists.evictable.iter();
    let listed: BTreeMap<_, BTreeSet<u32>> = listed
        .map(|(key, slots)| (*key, slots.iter().copied().collect()))
        .collect();
    if evictable != listed || on_the_way_out != lists.leaving.iter().copied().collect() {
        wrong.push("the lists of who may be evicted, or leaves, are not what the tasks say".into());
    }
    let listed = cluster.tasks.gangs.iter();
    let listed: BTreeMap<u64, BTreeSet<u32>> = listed
        .map(|(gang, members)| (*gang, members.iter().copied().collect()))
        .collect();
    if gangs != listed {
        wrong.push("the table of gangs is not what the tasks are members of".into());
    }
    for (q, queue) in cluster.queues.iter().enumerate() {
        let mut used = queue_own[q].clone();
        let mut going = queue_leaving[q].clone();
        let mut all = running[q];
        for below in (0..cluster.queues.len()).filter(|below| *below != q) {
            let mut at = cluster.queues[below].parent;
            while at != NONE && at as usize != q {
                at = cluster.queues[at as usize].parent;
            }
            if at != NONE {
                all += running[below];
                for (sum, amount) in used.iter_mut().zip(&queue_own[below]) {
                    *sum += amount;
                }
                for (sum, amount) in going.iter_mut().zip(&queue_leaving[below]) {
                    *sum += amount;
                }
            }
        }
        if queue.own != queue_own[q]
            || queue.own_running != running[q]
            || queue.used != used
            || queue.own_leaving != queue_leaving[q]
            || queue.leaving != going
            || queue.running != all
        {
            wrong.push(format!(
                "queue {}: use is not the sum of its tasks",
                queue.name
            ));
        }
    }
    if ports.len() != cluster.ports.len()
        || ports.iter().any(|(k, n)| cluster.ports.get(k) != Some(n))
    {
        wrong.push("the table of ports in use is not what the tasks hold".into());
    }
    for (n, node) in cluster.nodes.iter().enumerate() {
        if !cluster.check_devices(n as u32) {
            wrong.push(format!(
                "{}: devices are not what its tasks hold",
                node.name
            ));
        }
    }
    let mut in_states = 0;
    for state in &cluster.states.live {
        let mut node = cluster.states.head[*state as usize];
        let mut count = 0;
        while node != NONE {
            count += 1;
            if cluster.states.of_node[node as usize] != *state {
                wrong.push(format!(
                    "node {node} is listed in state {state} and is not there"
                ));
                break;
            }
            let profile = cluster.nodes[node as usize].profile;
            let capacity = &cluster.profiles.all[profile as usize].capacity;
            for (r, free) in cluster.states.free_of(*state).iter().enumerate() {
                if *free != clamp(i128::from(capacity[r]) - used[node as usize * stride + r]) {
                    wrong.push(format!("node {node}: free amount {r} is wrong"));
                }
            }
            if profile != cluster.states.profile[*state as usize] {
                wrong.push(format!("node {node} has another profile than its state"));
            }
            node = cluster.states.next_node(node);
        }
        if count != cluster.states.count[*state as usize] || count == 0 {
            wrong.push(format!("state {state} counts its nodes wrongly"));
        }
        in_states += count as usize;
    }
    if in_states != cluster.node_count() {
        wrong.push(format!(
            "{in_states} nodes have a state, {} are there",
            cluster.node_count()
        ));
    }
    crate::finder::check(cluster, &mut wrong);
    crate::side::check::check(cluster, &mut wrong);
    wrong
}

/// Nodes on which tasks that stay hold more than there is. Placement never causes this; a node that shrank,
/// or tasks that the caller bound, may.
pub fn over_allocated(cluster: &Cluster) -> Vec<NodeId> {
    (0..cluster.nodes.len() as u32)
        .map(NodeId)
        .filter(|n| {
            let at = n.0 as usize * cluster.stride;
            let leaving = &cluster.leaving[at..at + cluster.stride];
            let mut free = cluster.free(*n).zip(leaving);
            free.any(|((_, free), leaving)| i128::from(free) + leaving < 0)
                || cluster.devices_over(n.0)
        })
        .collect()
}

/// Queues, at any level of the tree, whose tasks together with those of the queues below hold more
/// than the limit allows, by name. Placement never causes this; a
/// limit that was lowered may.
pub fn over_limit(cluster: &Cluster) -> Vec<String> {
    cluster
        .queues
        .iter()
        .filter(|q| {
            q.used
                .iter()
                .zip(&q.limit)
                .any(|(used, limit)| *limit != i64::MAX && *used > i128::from(*limit))
        })
        .map(|q| q.name.to_string())
        .collect()
}

/// What two clusters must agree on however they came to be: free amounts per node, use per queue.
pub fn fingerprint(cluster: &Cluster) -> BTreeMap<String, BTreeMap<String, i64>> {
    let nodes = (0..cluster.nodes.len() as u32)
        .map(NodeId)
        .filter(|n| cluster.nodes[n.0 as usize].present)
        .map(|n| {
            let free = cluster.free(n).filter(|(_, v)| *v != 0);
            (
                format!("node {}", cluster.node_name(n)),
                free.map(|(r, v)| (r.to_owned(), v)).collect(),
            )
        });
    let queues = (0..cluster.queues.len() as u32)
        .map(crate::cluster::QueueId)
        .filter(|q| cluster.queue_running(*q) > 0)
        .map(|q| {
            (
                format!("queue {}", cluster.queue_name(q)),
                cluster
                    .queue_used(q)
                    .map(|(r, v)| (r.to_owned(), v))
                    .collect(),
            )
        });
    nodes.chain(queues).collect()
}
