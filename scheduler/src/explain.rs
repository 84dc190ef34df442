//! Explain: why a class does not fit now, all blockers at once, and the smallest change that would help.

use crate::cluster::states::NONE;
use crate::cluster::{Cluster, QueueId, clamp};
use crate::filter;
use crate::spec::{Class, Taint};

/// One thing that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocker {
    /// There is no node at all.
    NoNodes,
    /// The queue is not there.
    QueueMissing,
    /// The queue's limit leaves less than one task needs.
    QueueLimit {
        /// Resource.
        resource: String,
        /// The limit.
        limit: i64,
        /// What the queue's tasks hold.
        used: i64,
        /// What one task asks for.
        request: i64,
    },
    /// Nodes that are not ready.
    NodeNotReady {
        /// How many.
        nodes: u32,
    },
    /// Nodes that are cordoned.
    NodeUnschedulable {
        /// How many.
        nodes: u32,
    },
    /// Nodes with a taint that the class does not tolerate.
    TaintNotTolerated {
        /// The taint.
        taint: Taint,
        /// How many.
        nodes: u32,
    },
    /// Nodes without a label that the class asks for.
    NodeSelectorMismatch {
        /// How many.
        nodes: u32,
    },
    /// Nodes whose labels meet none of the class's required terms.
    NodeAffinityMismatch {
        /// How many.
        nodes: u32,
    },
    /// Nodes that would do, but have too little free now.
    InsufficientResource {
        /// Resource.
        resource: String,
        /// How many.
        nodes: u32,
        /// What one task asks for.
        request: i64,
        /// The most that one of those nodes has free.
        most_free: i64,
    },
    /// Nodes that would do, but on which a fixed port is taken.
    PortInUse {
        /// How many.
        nodes: u32,
    },
    /// No node that the class may use could hold one task, even empty.
    NeverFits {
        /// Resource.
        resource: String,
        /// What one task asks for.
        request: i64,
        /// The most that one of those nodes has in all.
        most: i64,
    },
}

/// A change after which one more task would start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Ask for less: `(resource, from, to)`.
    Lower(Vec<(String, i64, i64)>),
    /// Do not ask for this label; this many nodes would then take a task.
    DropSelector {
        /// Label key.
        key: String,
        /// Label value.
        value: String,
        /// Nodes that would do.
        nodes: u32,
    },
    /// Require nothing of node labels beyond the selector; this many nodes would then take a task.
    DropNodeAffinity {
        /// Nodes that would do.
        nodes: u32,
    },
    /// Tolerate this taint; this many nodes would then take a task.
    Tolerate {
        /// The taint.
        taint: Taint,
        /// Nodes that would do.
        nodes: u32,
    },
    /// Raise the queue's limit: `(resource, from, to)`.
    RaiseQueueLimit(Vec<(String, i64, i64)>),
    /// Create the queue.
    CreateQueue,
}

/// Why a class waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Everything that stands in the way; empty when one more task fits now.
    pub blockers: Vec<Blocker>,
    /// What would help most cheaply, where a change of the work itself would.
    pub change: Option<Change>,
    /// True when no node could ever hold a task of the class.
    pub never: bool,
}

/// Asking for less than one part in this many of the request is no useful advice while waiting may help.
const USEFUL_PART: i64 = 16;

/// Explains. Costs one look at every state, and one at every node for classes with fixed ports.
pub fn explain(cluster: &mut Cluster, class: &Class, queue: QueueId) -> Explanation {
    let id = cluster.class(class);
    let cluster = &*cluster;
    let mut out = Explanation::default();
    let requests = &cluster
        .tasks
        .shapes
        .get(cluster.classes.all[id as usize].shape)
        .requests;
    let raise = queue_blockers(cluster, queue, requests, &mut out.blockers);
    let nodes = look_at_nodes(cluster, id, &mut out.blockers);
    out.never = nodes.never;
    out.change = if cluster.queues[queue.0 as usize].spec.is_none() {
        Some(Change::CreateQueue)
    } else if nodes.fitting > 0 {
        (!raise.is_empty()).then_some(Change::RaiseQueueLimit(raise))
    } else {
        nodes.change
    };
    out
}

fn queue_blockers(
    cluster: &Cluster,
    queue: QueueId,
    requests: &[(u32, i64)],
    blockers: &mut Vec<Blocker>,
) -> Vec<(String, i64, i64)> {
    let queue = &cluster.queues[queue.0 as usize];
    let mut raise = Vec::new();
    if queue.spec.is_none() {
        blockers.push(Blocker::QueueMissing);
        return raise;
    }
    for (r, request) in requests {
        let (limit, used) = (queue.limit[*r as usize], queue.used[*r as usize]);
        let needed = used + i128::from(*request);
        if limit == i64::MAX || needed <= i128::from(limit) {
            continue;
        }
        let resource = cluster.resources.name(*r).to_string();
        raise.push((resource.clone(), limit, clamp(needed)));
        blockers.push(Blocker::QueueLimit {
            resource,
            limit,
            used: clamp(used),
            request: *request,
        });
    }
    raise
}

#[derive(Default)]
struct NodesAnswer {
    fitting: u32,
    never: bool,
    change: Option<Change>,
}

/// Node counts per blocker, and the cheapest change found on the way.
fn look_at_nodes(cluster: &Cluster, id: u32, blockers: &mut Vec<Blocker>) -> NodesAnswer {
    let entry = &cluster.classes.all[id as usize];
    let spec = entry.class.spec();
    let shape = cluster.tasks.shapes.get(entry.shape);
    let requests = &shape.requests;
    let states = &cluster.states;
    if states.live.is_empty() {
        blockers.push(Blocker::NoNodes);
        return NodesAnswer::default();
    }
    let (mut not_ready, mut cordoned, mut mismatch, mut port_taken, mut fitting) = (0, 0, 0, 0, 0);
    let (mut unaffine, mut only_unaffine) = (0, 0);
    let mut taints: Vec<(Taint, u32)> = Vec::new();
    let mut short = vec![(0u32, i64::MIN); requests.len()];
    let mut by_pair = vec![0u32; spec.node_selector.len()];
    let mut by_taint: Vec<(Taint, u32)> = Vec::new();
    let mut nearest = Nearest::default();
    let mut empty = Nearest::default();
    let mut could_hold = false;
    let mut candidates = false;
    let mut most = vec![0i64; requests.len()];
    for state in &states.live {
        let nodes = states.count[*state as usize];
        let profile = &cluster.profiles.all[states.profile[*state as usize] as usize];
        let free = states.free_of(*state);
        let fits = filter::fits(free, requests);
        let missing: Vec<u32> = entry
            .wants
            .pairs
            .iter()
            .filter(|p| profile.atoms.binary_search(p).is_err())
            .copied()
            .collect();
        let blocking: Vec<&Taint> = profile
            .taints
            .iter()
            .filter(|t| {
                t.effect != crate::spec::Effect::PreferNoSchedule
                    && !spec.tolerations.iter().any(|s| s.accepts(t))
            })
            .collect();
        not_ready += if profile.ready { 0 } else { nodes };
        cordoned += if profile.unschedulable { nodes } else { 0 };
        mismatch += if missing.is_empty() { 0 } else { nodes };
        let affine = entry.wants.required_hold(profile);
        unaffine += if affine { 0 } else { nodes };
        for taint in &blocking {
            add(&mut taints, taint, nodes);
        }
        let open = profile.ready && !profile.unschedulable;
        match (missing.len(), blocking.len()) {
            (0, 0) if !affine => {
                only_unaffine += if open && fits { nodes } else { 0 };
            }
            _ if !affine => {}
            (0, 0) => {
                candidates = true;
                could_hold |= filter::fits(&profile.capacity, requests);
                empty.offer(&profile.capacity, requests);
                for (most, (r, _)) in most.iter_mut().zip(requests) {
                    *most = (*most).max(profile.capacity[*r as usize]);
                }
                if !open {
                    continue;
                }
                if fits {
                    let free_ports = nodes_with_ports(cluster, *state, &shape.ports);
                    port_taken += nodes - free_ports;
                    fitting += free_ports;
                    continue;
                }
                nearest.offer(free, requests);
                for (short, (r, amount)) in short.iter_mut().zip(requests) {
                    let free = free[*r as usize];
                    if free < *amount {
                        short.0 += nodes;
                        short.1 = short.1.max(free);
                    }
                }
            }
            (1, 0) if open && fits => {
                if let Some(i) = spec
                    .node_selector
                    .iter()
                    .position(|(k, v)| cluster.profiles.pair(k, v) == Some(missing[0]))
                {
                    by_pair[i] += nodes;
                }
            }
            (0, 1) if open && fits => add(&mut by_taint, blocking[0], nodes),
            _ => {}
        }
    }
    if fitting > 0 {
        return NodesAnswer {
            fitting,
            ..NodesAnswer::default()
        };
    }
    let never = candidates && !could_hold;
    if never {
        never_blockers(cluster, requests, &most, &empty, blockers);
    } else {
        for ((r, request), (nodes, most_free)) in requests.iter().zip(&short) {
            if *nodes > 0 {
                blockers.push(Blocker::InsufficientResource {
                    resource: cluster.resources.name(*r).to_string(),
                    nodes: *nodes,
                    request: *request,
                    most_free: (*most_free).max(0),
                });
            }
        }
    }
    if mismatch > 0 {
        blockers.push(Blocker::NodeSelectorMismatch { nodes: mismatch });
    }
    if unaffine > 0 {
        blockers.push(Blocker::NodeAffinityMismatch { nodes: unaffine });
    }
    taints.sort();
    for (taint, nodes) in taints {
        blockers.push(Blocker::TaintNotTolerated { taint, nodes });
    }
    if cordoned > 0 {
        blockers.push(Blocker::NodeUnschedulable { nodes: cordoned });
    }
    if not_ready > 0 {
        blockers.push(Blocker::NodeNotReady { nodes: not_ready });
    }
    if port_taken > 0 {
        blockers.push(Blocker::PortInUse { nodes: port_taken });
    }
    let lower = |near: &Nearest, any: bool| {
        let changes = near.best.as_ref()?.1.iter();
        let named: Vec<_> = changes
            .filter(|(_, from, to)| any || *to >= *from / USEFUL_PART)
            .map(|(r, from, to)| (cluster.resources.name(*r).to_string(), *from, *to))
            .collect();
        (named.len() == near.best.as_ref()?.1.len()).then_some(Change::Lower(named))
    };
    let drop_selector = || {
        let (nodes, (key, value)) = by_pair
            .iter()
            .zip(&spec.node_selector)
            .max_by_key(|(nodes, _)| **nodes)?;
        (*nodes > 0).then(|| Change::DropSelector {
            key: key.clone(),
            value: value.clone(),
            nodes: *nodes,
        })
    };
    let drop_affinity = || {
        (only_unaffine > 0).then_some(Change::DropNodeAffinity {
            nodes: only_unaffine,
        })
    };
    let tolerate = || {
        let (taint, nodes) = by_taint.iter().max_by_key(|(_, nodes)| *nodes)?;
        Some(Change::Tolerate {
            taint: taint.clone(),
            nodes: *nodes,
        })
    };
    let change = if never {
        lower(&empty, true)
    } else {
        lower(&nearest, false)
            .or_else(drop_selector)
            .or_else(drop_affinity)
            .or_else(tolerate)
    };
    NodesAnswer {
        fitting,
        never,
        change,
    }
}

fn never_blockers(
    cluster: &Cluster,
    requests: &[(u32, i64)],
    most: &[i64],
    empty: &Nearest,
    blockers: &mut Vec<Blocker>,
) {
    let over = |(_, amount): &(u32, i64), most: &i64| amount > most;
    let mut lacking: Vec<u32> = requests
        .iter()
        .zip(most)
        .filter(|(request, most)| over(request, most))
        .map(|((r, _), _)| *r)
        .collect();
    if lacking.is_empty() {
        // Each amount exists somewhere, only not together: the nearest node says what lacks.
        let cuts = empty.best.iter().flat_map(|(_, cuts)| cuts);
        lacking = cuts.map(|(r, _, _)| *r).collect();
    }
    if lacking.is_empty() {
        lacking = requests.iter().map(|(r, _)| *r).collect();
    }
    for ((r, request), most) in requests.iter().zip(most) {
        if lacking.contains(r) {
            blockers.push(Blocker::NeverFits {
                resource: cluster.resources.name(*r).to_string(),
                request: *request,
                most: *most,
            });
        }
    }
}

/// How many nodes of a state have all the ports free.
fn nodes_with_ports(cluster: &Cluster, state: u32, ports: &[u16]) -> u32 {
    if ports.is_empty() {
        return cluster.states.count[state as usize];
    }
    let mut node = cluster.states.head[state as usize];
    let mut count = 0;
    while node != NONE {
        count += u32::from(
            ports
                .iter()
                .all(|port| !cluster.ports.contains_key(&(node, *port))),
        );
        node = cluster.states.next_node(node);
    }
    count
}

/// Resource number, from, to.
type Cut = (u32, i64, i64);

/// The amounts for which least would have to be given up.
#[derive(Default)]
struct Nearest {
    /// Parts given up (of [`crate::score::UNIT`] per resource), and what.
    best: Option<(i64, Vec<Cut>)>,
}

impl Nearest {
    fn offer(&mut self, available: &[i64], requests: &[(u32, i64)]) {
        let mut cost = 0i64;
        for (r, amount) in requests {
            let has = available[*r as usize];
            if has >= *amount {
                continue;
            }
            if has <= 0 {
                return;
            }
            let lack = i128::from(amount - has) * i128::from(crate::score::UNIT);
            cost = cost.saturating_add(clamp(lack / i128::from(*amount)));
        }
        if self.best.as_ref().is_none_or(|(best, _)| cost < *best) {
            let lack = requests
                .iter()
                .map(|(r, amount)| (*r, *amount, available[*r as usize]))
                .filter(|(_, amount, has)| has < amount);
            self.best = Some((cost, lack.collect()));
        }
    }
}

fn add(list: &mut Vec<(Taint, u32)>, taint: &Taint, nodes: u32) {
    match list.iter_mut().find(|(t, _)| t == taint) {
        Some((_, n)) => *n += nodes,
        None => list.push((taint.clone(), nodes)),
    }
}
