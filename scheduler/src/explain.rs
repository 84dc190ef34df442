//! Explain: why a class does not fit now, all blockers at once, and the smallest change that would help.

use crate::cluster::states::NONE;
use crate::cluster::{Cluster, QueueId, clamp};
use crate::filter;
use crate::side::rules::{Rule, Rules};
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
    /// Nodes that would do, but whose domain has no task that the class must be with.
    Affinity {
        /// How many.
        nodes: u32,
    },
    /// Nodes that would do, but whose domain has a task that the class must not be with, or that
    /// must not be with it.
    AntiAffinity {
        /// How many.
        nodes: u32,
    },
    /// Nodes that would do, but whose domain has too many tasks compared with the emptiest.
    SpreadSkew {
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

/// Explains. Costs one look at every state, and one at every node for classes with fixed ports
/// or under rules between tasks.
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
    let rules = Rules::of(cluster, id);
    let mut kept_away = KeptAway::default();
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
        let free = &states.usable(&cluster.profiles.all, *state, requests);
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
                let capacity = &profile.usable(requests);
                could_hold |= filter::fits(capacity, requests);
                empty.offer(capacity, requests);
                for (most, (r, _)) in most.iter_mut().zip(requests) {
                    *most = (*most).max(capacity[*r as usize]);
                }
                if !open {
                    continue;
                }
                if fits {
                    let rules = rules.as_ref();
                    let open = open_nodes(cluster, *state, &shape.ports, rules, &mut kept_away);
                    port_taken += nodes - open.with_ports;
                    fitting += open.by_rules;
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
    blockers.extend(kept_away.blockers());
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

/// Nodes that rules between tasks keep a class from, by rule.
#[derive(Default)]
struct KeptAway {
    apart: u32,
    repelled: u32,
    skewed: u32,
}

impl KeptAway {
    fn blockers(&self) -> impl Iterator<Item = Blocker> {
        let all = [
            (self.apart, Blocker::Affinity { nodes: self.apart }),
            (
                self.repelled,
                Blocker::AntiAffinity {
                    nodes: self.repelled,
                },
            ),
            (self.skewed, Blocker::SpreadSkew { nodes: self.skewed }),
        ];
        let some = all.into_iter().filter(|(nodes, _)| *nodes > 0);
        some.map(|(_, blocker)| blocker)
    }
}

/// Nodes of one state.
#[derive(Default)]
struct OpenNodes {
    /// That have all the ports free.
    with_ports: u32,
    /// Of those, that the rules allow too.
    by_rules: u32,
}

fn open_nodes(
    cluster: &Cluster,
    state: u32,
    ports: &[u16],
    rules: Option<&Rules>,
    kept_away: &mut KeptAway,
) -> OpenNodes {
    let mut open = OpenNodes::default();
    if ports.is_empty() && rules.is_none() {
        let all = cluster.states.count[state as usize];
        (open.with_ports, open.by_rules) = (all, all);
        return open;
    }
    let mut node = cluster.states.head[state as usize];
    while node != NONE {
        let taken = |port: &u16| cluster.ports.contains_key(&(node, *port));
        if !ports.iter().any(taken) {
            open.with_ports += 1;
            match rules.and_then(|rules| rules.against(&cluster.side, node)) {
                None => open.by_rules += 1,
                Some(Rule::Affinity) => kept_away.apart += 1,
                Some(Rule::AntiAffinity) => kept_away.repelled += 1,
                Some(Rule::Spread) => kept_away.skewed += 1,
            }
        }
        node = cluster.states.next_node(node);
    }
    open
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
