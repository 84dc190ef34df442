//! Order: which demand goes next.
//!
//! Inside a queue by its own rule. Between queues, the one whose next demand is oldest goes first:
//! queues are flat here, and what keeps one from taking everything is its limit.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::cluster::Cluster;
use crate::spec::{Demand, Order};

/// Positions in `demands`, in the order to look at them.
pub(crate) fn order(cluster: &Cluster, demands: &[Demand]) -> Vec<u32> {
    let mut queues: Vec<Vec<u32>> = vec![Vec::new(); cluster.queues.len()];
    for (i, demand) in demands.iter().enumerate() {
        queues[demand.queue.0 as usize].push(i as u32);
    }
    for (members, queue) in queues.iter_mut().zip(&cluster.queues) {
        let rule = queue.spec.as_ref().map_or(Order::Fifo, |s| s.order);
        members.sort_by(|a, b| within(rule, &demands[*a as usize], &demands[*b as usize]));
    }
    let key = |i: u32| {
        let demand = &demands[i as usize];
        Reverse((demand.created, demand.id, i))
    };
    let mut heads: BinaryHeap<_> = queues
        .iter()
        .enumerate()
        .filter_map(|(q, members)| Some((key(*members.first()?), q, 0)))
        .collect();
    let mut out = Vec::with_capacity(demands.len());
    while let Some((Reverse((_, _, i)), q, at)) = heads.pop() {
        out.push(i);
        if let Some(next) = queues[q].get(at + 1) {
            heads.push((key(*next), q, at + 1));
        }
    }
    out
}

fn within(rule: Order, a: &Demand, b: &Demand) -> Ordering {
    let by_age = || (a.created, a.id).cmp(&(b.created, b.id));
    match rule {
        Order::Fifo => by_age(),
        Order::ShortestJobFirst | Order::ShortestRemainingTimeFirst => {
            a.run.cmp(&b.run).then_with(by_age)
        }
        Order::Fair | Order::Priority => b.priority.cmp(&a.priority).then_with(by_age),
    }
}
