//! What is wrong with the tree of queues and what it sums up, found by looking at everything.

use std::collections::BTreeMap;

use crate::cluster::Cluster;
use crate::cluster::states::NONE;

/// Everything that is wrong, one sentence each.
pub(crate) fn wrong(cluster: &Cluster) -> Vec<String> {
    let mut wrong = Vec::new();
    let queues = &cluster.queues;
    for (q, queue) in queues.iter().enumerate() {
        let children = (0..queues.len() as u32).filter(|c| queues[*c as usize].parent == q as u32);
        if !children.eq(queue.children.iter().copied()) {
            wrong.push(format!("queue {}: wrong list of children", queue.name));
        }
        let (mut at, mut steps, mut half_life) = (q as u32, 0, 0);
        let mut named = None;
        while at != NONE && steps <= queues.len() {
            let above = &queues[at as usize];
            let spec = above.spec.as_ref();
            if half_life == 0 {
                half_life = spec.map_or(0, |s| s.half_life.max(0));
            }
            named = spec.and_then(|s| s.parent.as_deref());
            at = above.parent;
            steps += 1;
        }
        if steps > queues.len() {
            wrong.push(format!("queue {} is its own ancestor", queue.name));
        }
        // At the top of its branch somebody is who names no parent, or the branch is detached.
        if queue.detached.is_some() != named.is_some() {
            wrong.push(format!("queue {}: wrongly on a tree or not", queue.name));
        }
        if queue.half_life != half_life {
            wrong.push(format!("queue {}: wrong half-life", queue.name));
        }
    }
    let mut charged = vec![0i128; cluster.stride];
    let mut owners: BTreeMap<(u32, u64), (Vec<i128>, u64)> = BTreeMap::new();
    let tasks = cluster.tasks.slots.iter();
    for task in tasks.filter(|t| t.node != NONE && !t.leaving) {
        let owner = cluster.tasks.runs.get(task.run).owner;
        let requests = &cluster.tasks.shapes.get(task.shape).requests;
        let mut held = queues[task.queue as usize].by_owner.then(|| {
            let none = || (vec![0; cluster.stride], 0);
            owners.entry((task.queue, owner)).or_insert_with(none)
        });
        if let Some((_, running)) = &mut held {
            *running += 1;
        }
        for (r, amount) in requests {
            charged[*r as usize] += i128::from(*amount);
            if let Some((held, _)) = &mut held {
                held[*r as usize] += i128::from(*amount);
            }
        }
    }
    if charged != cluster.charged {
        wrong.push("what all tasks hold is not their sum".into());
    }
    let kept = cluster.owners.iter();
    let kept: BTreeMap<_, _> = kept
        .filter(|(_, owned)| owned.running > 0)
        .map(|(key, owned)| (*key, (owned.held.clone(), owned.running)))
        .collect();
    if kept != owners {
        wrong.push("what owners hold is not the sum of their tasks".into());
    }
    wrong
}
