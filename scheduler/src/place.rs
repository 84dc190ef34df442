//! Place: puts tasks of one class onto the nodes of the best states, until they are all placed,
//! nothing fits any more, or the budget is spent.

use crate::classes::{ClassEntry, Shape};
use crate::cluster::profiles::Profile;
use crate::cluster::states::{NONE, States};
use crate::cluster::{Cluster, NodeId, TaskId};
use crate::filter::{self, PREFERENCE_MAX};
use crate::finder::{Finder, is_shared};
use crate::mutant::{Mutant, mutant};
use crate::score::fragmentation::Outlook;
use crate::score::{self, Fill, Score, StateView};
use crate::side;
use crate::side::rules::Rules;
use crate::spec::Policy;

/// Policies' scores are kept within ± this, so that what the class itself says ranks before them.
const SCORE_MAX: i64 = (1 << 38) - 1;
/// One step of preference: more than policies' scores can differ.
const PREFER: i64 = 2 * (SCORE_MAX + 1);
/// Taken off the score of a state whose nodes should be tried last: more than preferences and
/// scores can differ together. (Their sum stays within an i64: checked here.)
const SHUN: i64 = 1 << 62;
const _: () = assert!(PREFER * (2 * PREFERENCE_MAX + 1) < SHUN);
/// Demands of at most this many tasks, the first time their class is met, are placed by a plain
/// scan: building an index only pays when the class comes again.
pub(crate) const SCAN_TASKS_MAX: u32 = 2;
/// Of nodes alike, those with the lowest numbers are taken first, among so many: the same cluster
/// is filled the same way whatever happened before, and large gaps stay at the other end.
const NEAR: usize = 128;

/// What is left of the cycle's budget.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub left: u64,
    pub spent: u64,
}

impl Budget {
    pub fn spend(&mut self, units: u64) {
        self.spent += units;
        self.left = self.left.saturating_sub(units);
    }
}

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub class: u32,
    pub queue: u32,
    pub policy: Policy,
    /// Number in `cluster.tasks.runs`.
    pub run: u32,
    /// Most tasks.
    pub count: u32,
}

/// What a node state does not show: rules about single nodes.
pub(crate) trait Veto {
    /// How many of `want` tasks of a class the node may take, as far as this rule goes; `want` is
    /// what fits it by its free amounts, and at least 1.
    fn room(&self, cluster: &Cluster, node: u32, class: u32, want: u32) -> u32;
}

/// Places up to `ask.count` tasks; returns how many were placed. With `vetoes` every node is asked
/// about before it is taken.
pub(crate) fn place(
    cluster: &mut Cluster,
    ask: Ask,
    vetoes: &[&dyn Veto],
    budget: &mut Budget,
    placed: impl FnMut(NodeId, TaskId),
) -> u32 {
    if ask.policy != Policy::Fragmentation {
        return place_by(cluster, ask, vetoes, budget, placed);
    }
    let demand = cluster.tasks.runs.get(ask.run).demand;
    cluster.learn_typical(ask.class, demand, ask.count);
    let count = place_by(cluster, ask, vetoes, budget, placed);
    cluster.typical_waits(demand, ask.count - count);
    count
}

fn place_by(
    cluster: &mut Cluster,
    ask: Ask,
    vetoes: &[&dyn Veto],
    budget: &mut Budget,
    mut placed: impl FnMut(NodeId, TaskId),
) -> u32 {
    let Ask {
        class,
        queue,
        policy,
        run,
        count,
    } = ask;
    let entry = &mut cluster.classes.all[class as usize];
    entry.learn(&cluster.profiles);
    entry.uses = entry.uses.saturating_add(1);
    let (shape_id, first) = (entry.shape, entry.uses == 1);
    let shape = cluster.tasks.shapes.get(shape_id).clone();
    if let Some(rules) = Rules::of(cluster, class) {
        return side::place::place(cluster, ask, &shape, rules, vetoes, budget, placed);
    }
    let plain = vetoes.is_empty() && shape.ports.is_empty();
    let policy_impl = score::of(policy);
    let single = policy_impl.fill() == Fill::Single;
    let shared = is_shared(&cluster.classes.all[class as usize], policy_impl);
    if first && count <= SCAN_TASKS_MAX && plain && !shared {
        let mut left = count;
        while left > 0 && budget.left > 0 {
            budget.spend(cluster.states.live.len() as u64);
            let best = scan(&Rater::new(cluster, class, &shape, policy_impl));
            let Some(state) = best else {
                break;
            };
            let node = lowest(&cluster.states, state);
            cluster.take(node, queue, shape_id, run, 1, |task| {
                placed(NodeId(node), task);
            });
            left -= 1;
        }
        return count - left;
    }
    let mut finder = Finder::take(cluster, class, policy, policy_impl);
    let mut left = count;
    while left > 0 && budget.left > 0 {
        let rater = Rater::new(cluster, class, &shape, policy_impl);
        let Some(best) = finder.best(&rater, budget) else {
            break;
        };
        let state = best.id;
        let per_node = match policy_impl.fill() {
            Fill::Deep => {
                let profiles = &cluster.profiles.all;
                cluster.states.room(profiles, state, &shape.requests)
            }
            Fill::Level | Fill::Single => 1,
        };
        if plain {
            // The last node of the batch may take fewer; the others of the state stay for the next demand.
            while left > 0 && cluster.states.is_live(best) {
                let node = lowest(&cluster.states, state);
                let n = per_node.min(left);
                cluster.take(node, queue, shape_id, run, n, |task| {
                    placed(NodeId(node), task);
                });
                left -= n;
                budget.spend(1);
                if single {
                    break;
                }
            }
        } else {
            let mut near: Vec<u32> = nodes(&cluster.states, state).take(NEAR).collect();
            let mut far = near.last().map_or(NONE, |n| cluster.states.next_node(*n));
            near.sort_unstable_by_key(|node| std::cmp::Reverse(*node));
            // One was placed, and the state has to be looked at again before the next.
            let mut again = false;
            while left > 0 {
                let node = near.pop().unwrap_or(far);
                if node == NONE {
                    break;
                }
                if node == far {
                    far = cluster.states.next_node(node);
                }
                budget.spend(1);
                let n = allowed(cluster, vetoes, &shape, node, class, per_node.min(left));
                if n > 0 {
                    cluster.take(node, queue, shape_id, run, n, |task| {
                        placed(NodeId(node), task);
                    });
                    left -= n;
                    if single {
                        again = true;
                        break;
                    }
                }
            }
            // What is still in the state may not be used: look behind it.
            if left > 0 && !again && cluster.states.is_live(best) {
                finder.set_aside();
            }
        }
    }
    finder.give_back(&mut cluster.classes.all[class as usize], policy);
    count - left
}

/// Places up to `ask.count` tasks on the nodes named, in their order; returns how many were placed.
/// Tasks with rules about other tasks are none of its business: it places none of them.
pub(crate) fn place_on(
    cluster: &mut Cluster,
    ask: Ask,
    nodes: &[u32],
    vetoes: &[&dyn Veto],
    budget: &mut Budget,
    mut placed: impl FnMut(NodeId, TaskId),
) -> u32 {
    if Rules::of(cluster, ask.class).is_some() {
        return 0;
    }
    let entry = &mut cluster.classes.all[ask.class as usize];
    entry.learn(&cluster.profiles);
    let shape_id = entry.shape;
    let shape = cluster.tasks.shapes.get(shape_id).clone();
    let mut left = ask.count;
    for node in nodes {
        let state = cluster.states.of_node[*node as usize];
        if left == 0 || budget.left == 0 {
            break;
        }
        budget.spend(1);
        if state == NONE {
            continue;
        }
        let entry = &cluster.classes.all[ask.class as usize];
        let profile = cluster.states.profile[state as usize] as usize;
        let traits = cluster.profiles.all[profile].traits;
        let (states, profiles) = (&cluster.states, &cluster.profiles.all);
        let fit = states.room(profiles, state, &shape.requests).min(left);
        if fit == 0 || !entry.suits(traits) || entry.shuns(traits) {
            continue;
        }
        let n = allowed(cluster, vetoes, &shape, *node, ask.class, fit);
        if n > 0 {
            cluster.take(*node, ask.queue, shape_id, ask.run, n, |task| {
                placed(NodeId(*node), task);
            });
            left -= n;
        }
    }
    ask.count - left
}

/// Nodes of a state.
fn nodes(states: &States, state: u32) -> impl Iterator<Item = u32> + '_ {
    let mut at = states.head[state as usize];
    std::iter::from_fn(move || {
        let node = at;
        (node != NONE).then(|| {
            at = states.next_node(node);
            node
        })
    })
}

/// The node of a live state to take first.
fn lowest(states: &States, state: u32) -> u32 {
    let near = nodes(states, state).take(NEAR);
    near.min().unwrap_or(states.head[state as usize])
}

/// How many of `want` tasks the node may take, by fixed ports and by every veto.
pub(crate) fn allowed(
    cluster: &Cluster,
    vetoes: &[&dyn Veto],
    shape: &Shape,
    node: u32,
    class: u32,
    want: u32,
) -> u32 {
    let mut n = want;
    if !shape.ports.is_empty() && !mutant(Mutant::IgnorePort) {
        let taken = |port: &u16| cluster.ports.contains_key(&(node, *port));
        n = if shape.ports.iter().any(taken) {
            0
        } else {
            n.min(1)
        };
    }
    for veto in vetoes {
        if n > 0 {
            n = n.min(veto.room(cluster, node, class, n));
        }
    }
    n
}

/// Whether the free amounts of some node that the class may use hold one task, vetoes and ports aside.
pub(crate) fn fits_somewhere(cluster: &Cluster, class: u32) -> bool {
    let entry = &cluster.classes.all[class as usize];
    let requests = &cluster.tasks.shapes.get(entry.shape).requests;
    let states = &cluster.states;
    states.live.iter().any(|state| {
        let profile = states.profile[*state as usize] as usize;
        entry.suits(cluster.profiles.all[profile].traits)
            && states.fits(&cluster.profiles.all, *state, requests)
    })
}

/// What rating a state needs, borrowed once per pass over many states.
pub(crate) struct Rater<'a> {
    pub states: &'a States,
    profiles: &'a [Profile],
    entry: &'a ClassEntry,
    requests: &'a [(u32, i64)],
    policy: &'a dyn Score,
    outlook: &'a Outlook,
    /// See [`Cluster::asked`].
    pub asked: u64,
    /// Whether something that it asks for comes as devices anywhere.
    asks_devices: bool,
}

impl<'a> Rater<'a> {
    pub fn new(cluster: &'a Cluster, class: u32, shape: &'a Shape, policy: &'a dyn Score) -> Self {
        let devices = &cluster.profiles.device_resources;
        let asks_devices = shape.requests.iter().any(|(r, _)| devices.contains(r));
        Rater {
            asked: cluster.asked(&shape.requests),
            asks_devices,
            states: &cluster.states,
            profiles: &cluster.profiles.all,
            entry: &cluster.classes.all[class as usize],
            requests: &shape.requests,
            policy,
            outlook: &cluster.typical.outlook,
        }
    }

    /// Number of the traits of a state's nodes.
    pub fn traits_of(&self, state: u32) -> u32 {
        self.profiles[self.states.profile[state as usize] as usize].traits
    }

    /// Whether the class can use a state, which has these traits.
    #[inline]
    pub fn takes(&self, traits: u32, state: u32) -> bool {
        self.entry.suits(traits)
            && filter::fits(self.states.free_of(state), self.requests)
            && (!self.asks_devices || self.states.fits(self.profiles, state, self.requests))
    }

    /// The score of a state; None if the class cannot use it.
    pub fn rate(&self, state: u32) -> Option<i64> {
        let free = self.states.free_of(state);
        if !filter::fits(free, self.requests) {
            return None;
        }
        let profile = self.states.profile[state as usize] as usize;
        let traits = self.profiles[profile].traits;
        if !self.entry.suits(traits) {
            return None;
        }
        if self.asks_devices && !self.states.fits(self.profiles, state, self.requests) {
            return None;
        }
        let score = self.policy.score(
            &StateView {
                free,
                leftover: self.states.leftover[state as usize],
                state,
                profile,
                states: self.states,
                profiles: self.profiles,
                outlook: self.outlook,
            },
            self.requests,
        );
        let score = score.clamp(-SCORE_MAX, SCORE_MAX) + PREFER * self.entry.preference(traits);
        Some(if self.entry.shuns(traits) {
            score - SHUN
        } else {
            score
        })
    }
}

/// The best live state, by looking at all of them.
pub(crate) fn scan(rater: &Rater<'_>) -> Option<u32> {
    let live = rater.states.live.iter();
    live.filter_map(|state| Some((rater.rate(*state)?, *state)))
        .max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.cmp(&a.1)))
        .map(|(_, state)| state)
}
