//! What is wrong with the side indexes: counts everything anew from tasks and nodes.

use std::collections::BTreeMap;

use super::matches;
use crate::cluster::Cluster;
use crate::cluster::states::NONE;

/// Everything that is wrong, one sentence each.
pub(crate) fn check(cluster: &Cluster, wrong: &mut Vec<String>) {
    let side = &cluster.side;
    for topology in side.topologies.used() {
        let key = &topology.key;
        let mut domains: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let mut values: BTreeMap<&str, u32> = BTreeMap::new();
        for (id, node) in cluster.nodes.iter().enumerate() {
            let domain = topology.of(id as u32);
            let value = topology.value_of(node);
            if topology.is_stale(id as u32, node) || (domain == NONE) != value.is_none() {
                wrong.push(format!("{key}: node {} is in another domain", node.name));
            }
            if let Some(value) = value {
                if *values.entry(value).or_insert(domain) != domain {
                    wrong.push(format!("{key}={value} is more than one domain"));
                }
                domains.entry(domain).or_default().push(id as u32);
            }
        }
        if topology.live() != domains.len() {
            wrong.push(format!("{key}: the number of domains is wrong"));
        }
        for (domain, nodes) in topology.nodes.iter().enumerate() {
            let mut nodes = nodes.clone();
            nodes.sort_unstable();
            if nodes != domains.remove(&(domain as u32)).unwrap_or_default() {
                wrong.push(format!("{key}: a domain lists other nodes than it has"));
            }
        }
    }
    let tasks = || {
        let slots = cluster.tasks.slots.iter().filter(|t| t.node != NONE);
        slots.map(|t| (t.node, cluster.tasks.shapes.get(t.shape).tag))
    };
    for (id, term) in side.terms.all.iter().enumerate() {
        if term.users == 0 {
            continue;
        }
        let topology = side.topologies.get(term.topology);
        let count = |concerned: &dyn Fn(u32) -> bool| {
            let mut per: BTreeMap<u32, u32> = BTreeMap::new();
            for (node, tag) in tasks() {
                let domain = topology.of(node);
                if domain != NONE && concerned(tag) {
                    *per.entry(domain).or_insert(0) += 1;
                }
            }
            per
        };
        let counters = [
            (
                "matching",
                &term.matching,
                count(&|tag| matches(&term.key, &side.tag(tag).face)),
            ),
            (
                "holders",
                &term.holders,
                count(&|tag| side.tag(tag).face.repels.contains(&(id as u32))),
            ),
        ];
        for (name, counter, truth) in counters {
            let total: u64 = truth.values().map(|n| u64::from(*n)).sum();
            let per: BTreeMap<u32, u32> = counter.per.iter().map(|(d, n)| (*d, *n)).collect();
            if per != truth || counter.total != total {
                wrong.push(format!("{name} of {:?} are miscounted", term.key));
            }
        }
    }
    for (id, tag) in side.tags.all.iter().enumerate() {
        if tag.users == 0 {
            continue;
        }
        let should: Vec<u32> = (0..side.terms.all.len() as u32)
            .filter(|t| side.term(*t).users > 0 && matches(&side.term(*t).key, &tag.face))
            .collect();
        if tag.matches != should {
            wrong.push(format!("{:?} knows other terms than match it", tag.face));
        }
        if !tag.watched {
            if !tag.matches.is_empty() || !tag.face.repels.is_empty() {
                wrong.push(format!("{:?} is not counted", tag.face));
            }
            continue;
        }
        let mut truth: BTreeMap<u32, u32> = BTreeMap::new();
        for (node, _) in tasks().filter(|(_, t)| *t == id as u32) {
            *truth.entry(node).or_insert(0) += 1;
        }
        if tag
            .nodes
            .iter()
            .map(|(n, c)| (*n, *c))
            .collect::<BTreeMap<_, _>>()
            != truth
        {
            wrong.push(format!("{:?} is on other nodes than noted", tag.face));
        }
    }
}
