//! What nodes lack for a class, by cause, and which change of the class would help most cheaply.

use super::{Blocker, Change};
use crate::cluster::states::NONE;
use crate::cluster::{Cluster, clamp};
use crate::filter;
use crate::side::rules::{Rule, Rules};
use crate::spec::Taint;

/// Asking for less than one part in this many of the request is no useful advice while waiting may help.
const USEFUL_PART: i64 = 16;

/// What a look at all nodes tells.
#[derive(Default)]
pub(super) struct NodesAnswer {
    /// Nodes that take one more.
    pub fitting: u32,
    /// No node could ever.
    pub never: bool,
    pub change: Option<Change>,
}

/// Node counts per blocker, and the cheapest change found on the way.
pub(super) fn look_at_nodes(
    cluster: &Cluster,
    id: u32,
    blockers: &mut Vec<Blocker>,
) -> NodesAnswer {
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
        let traits = &cluster.profiles.traits[profile.traits as usize];
        let free = &states.usable(&cluster.profiles.all, *state, requests);
        let fits = filter::fits(free, requests);
        let missing: Vec<u32> = entry
            .wants
            .pairs
            .iter()
            .filter(|p| traits.atoms.binary_search(p).is_err())
            .copied()
            .collect();
        let blocking: Vec<&Taint> = traits
            .taints
            .iter()
            .filter(|t| {
                t.effect != crate::spec::Effect::PreferNoSchedule
                    && !spec.tolerations.iter().any(|s| s.accepts(t))
            })
            .collect();
        not_ready += if traits.ready { 0 } else { nodes };
        cordoned += if traits.unschedulable { nodes } else { 0 };
        mismatch += if missing.is_empty() { 0 } else { nodes };
        let affine = entry.wants.required_hold(traits);
        unaffine += if affine { 0 } else { nodes };
        for taint in &blocking {
            add(&mut taints, taint, nodes);
        }
        let open = traits.ready && !traits.unschedulable;
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

/// How many tasks of a class fit now as far as free amounts go, at most `most`. Rules between
/// tasks and ports may allow fewer.
pub(super) fn how_many_fit(cluster: &Cluster, id: u32, most: u32) -> u32 {
    let entry = &cluster.classes.all[id as usize];
    let requests = &cluster.tasks.shapes.get(entry.shape).requests;
    let states = &cluster.states;
    let mut fit = 0u64;
    for state in &states.live {
        let profile = states.profile[*state as usize] as usize;
        if entry.suits(cluster.profiles.all[profile].traits) {
            let each = states.room(&cluster.profiles.all, *state, requests);
            fit += u64::from(each) * u64::from(states.count[*state as usize]);
        }
        if fit >= u64::from(most) {
            return most;
        }
    }
    fit as u32
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
