//! Rules of one class: how many of its tasks a node may take now, as far as other tasks go.

use std::collections::BTreeMap;

use fixedbitset::FixedBitSet;

use super::Side;
use super::terms::Term;
use crate::cluster::Cluster;
use crate::cluster::states::NONE;
use crate::mutant::{Mutant, mutant};

/// What the rules say of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// It may take so many, at least one.
    Open(u32),
    /// None, and that does not change by placing more tasks of the class.
    Never(Rule),
    /// None now: its domain has enough until others have more. Position in `spread`, and the domain.
    Later(usize, u32),
}

/// Which rule keeps tasks away from a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    Affinity,
    AntiAffinity,
    Spread,
}

/// A bound on unevenness, with what it takes to know the emptiest domain at any time.
#[derive(Clone, Debug)]
struct Even {
    term: u32,
    max_skew: i64,
    required: bool,
    /// Whether the class's own tasks count.
    own: bool,
    /// Per number of tasks: how many of the domains that the class may use have so many.
    levels: BTreeMap<u32, u32>,
    /// By how much a bound that is no must has been widened, since nothing else is left.
    lift: i64,
    /// Whether nodes that are in no domain may be used: only for a bound that is no must, at last.
    loose: bool,
}

impl Even {
    fn floor(&self) -> i64 {
        self.levels.keys().next().map_or(0, |n| i64::from(*n))
    }

    /// How many more tasks a domain may take that has `count`, at least as long as the floor stays.
    fn room(&self, count: u32) -> i64 {
        self.max_skew + self.floor() + self.lift - i64::from(count)
    }
}

/// The rules that a class is under at a moment, kept up while its own tasks are placed.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// Terms of which a matching task must be there, and whether the class matches them itself.
    affinity: Vec<(u32, bool)>,
    /// Terms of which no matching task may be there, and whether the class matches them itself.
    repels: Vec<(u32, bool)>,
    /// Terms of others that repel tasks of the class.
    repelled: Vec<u32>,
    spread: Vec<Even>,
}

impl Rules {
    /// The rules of a class; `None` if it is under none.
    pub fn of(cluster: &Cluster, class: u32) -> Option<Rules> {
        let (side, entry) = (&cluster.side, &cluster.classes.all[class as usize]);
        let tag = side.tag(cluster.tasks.shapes.get(entry.shape).tag);
        let itself = |term: u32| tag.matches.binary_search(&term).is_ok();
        let with_self = |terms: &[u32]| terms.iter().map(|t| (*t, itself(*t))).collect();
        let repelled = tag.matches.iter().copied();
        let rules = Rules {
            affinity: with_self(&entry.own.affinity),
            repels: with_self(&entry.own.repels),
            repelled: repelled
                .filter(|t| side.term(*t).holders.total > 0)
                .collect(),
            spread: entry
                .own
                .spread
                .iter()
                .map(|(term, max_skew, required)| Even {
                    term: *term,
                    max_skew: i64::from(*max_skew),
                    required: *required,
                    own: itself(*term),
                    levels: levels(cluster, class, side.term(*term)),
                    lift: 0,
                    loose: false,
                })
                .collect(),
        };
        let free = rules.affinity.is_empty()
            && rules.repels.is_empty()
            && rules.repelled.is_empty()
            && rules.spread.is_empty();
        (!free && !mutant(Mutant::IgnoreRules)).then_some(rules)
    }

    pub fn spreads(&self) -> bool {
        !self.spread.is_empty()
    }

    /// How many of `want` tasks the node may take.
    pub fn room(&self, side: &Side, node: u32, want: u32) -> Room {
        let domain = |term: &Term| side.topologies.get(term.topology).of(node);
        let mut n = want;
        for (id, itself) in &self.affinity {
            let term = side.term(*id);
            let at = domain(term);
            let first = *itself && term.matching.total == 0;
            if at == NONE || !(first || term.matching.of(at) > 0) {
                return Room::Never(Rule::Affinity);
            }
        }
        for (id, itself) in &self.repels {
            let term = side.term(*id);
            let at = domain(term);
            if at != NONE {
                if term.matching.of(at) > 0 {
                    return Room::Never(Rule::AntiAffinity);
                }
                if *itself {
                    n = n.min(1);
                }
            }
        }
        for id in &self.repelled {
            let term = side.term(*id);
            let at = domain(term);
            if at != NONE && term.holders.of(at) > 0 {
                return Room::Never(Rule::AntiAffinity);
            }
        }
        for (i, even) in self.spread.iter().enumerate() {
            let term = side.term(even.term);
            let at = domain(term);
            if at == NONE {
                if even.required {
                    return Room::Never(Rule::Spread);
                }
                if !even.loose {
                    return Room::Later(i, NONE);
                }
                continue;
            }
            let room = even.room(term.matching.of(at));
            if even.own {
                if room <= 0 {
                    return Room::Later(i, at);
                }
                n = n.min(u32::try_from(room).unwrap_or(u32::MAX));
            } else if room < 0 {
                return Room::Later(i, at);
            }
        }
        Room::Open(n)
    }

    /// The rule that keeps the class from a node, if one does; those that are no must do not.
    pub fn against(&self, side: &Side, node: u32) -> Option<Rule> {
        match self.room(side, node, 1) {
            Room::Never(rule) => Some(rule),
            Room::Open(_) => None,
            Room::Later(..) => {
                let musts = self.spread.iter().filter(|e| e.required).cloned();
                let hard = Rules {
                    spread: musts.collect(),
                    ..self.clone()
                };
                match hard.room(side, node, 1) {
                    Room::Open(_) => None,
                    _ => Some(Rule::Spread),
                }
            }
        }
    }

    /// Notes that a node took tasks, which the counters know already. Answers for which bounds the
    /// emptiest domain now has more.
    pub fn took(&mut self, side: &Side, node: u32, count: u32) -> Vec<usize> {
        let mut risen = Vec::new();
        for (i, even) in self.spread.iter_mut().enumerate() {
            let term = side.term(even.term);
            let at = side.topologies.get(term.topology).of(node);
            if !even.own || at == NONE {
                continue;
            }
            let floor = even.floor();
            let now = term.matching.of(at);
            let before = now - count;
            if let Some(domains) = even.levels.get_mut(&before) {
                *domains -= 1;
                if *domains == 0 {
                    even.levels.remove(&before);
                }
            }
            *even.levels.entry(now).or_insert(0) += 1;
            if even.floor() > floor {
                risen.push(i);
            }
        }
        risen
    }

    /// Whether a domain may take one more, as far as a bound goes.
    pub fn is_open(&self, side: &Side, i: usize, domain: u32) -> bool {
        let even = &self.spread[i];
        if domain == NONE {
            return even.loose;
        }
        even.room(side.term(even.term).matching.of(domain)) >= i64::from(even.own)
    }

    /// Widens a bound that is no must just so far that one of these domains opens; false where it
    /// is a must, or open to all of them.
    pub fn lift(&mut self, side: &Side, i: usize, domains: impl Iterator<Item = u32>) -> bool {
        let even = &mut self.spread[i];
        if even.required {
            return false;
        }
        let term = side.term(even.term);
        let (mut least, mut homeless) = (None::<i64>, false);
        for domain in domains {
            if domain == NONE {
                homeless = true;
                continue;
            }
            let lack = i64::from(even.own) - even.room(term.matching.of(domain));
            least = Some(least.map_or(lack, |l| l.min(lack)));
        }
        match least {
            Some(lack) => even.lift += lack.max(0),
            None if homeless && !even.loose => even.loose = true,
            None => return false,
        }
        true
    }

    /// When something changed last that may let the class onto nodes that it was kept from.
    pub fn loosened(&self, side: &Side) -> u64 {
        let affinity = self.affinity.iter();
        let repels = self.repels.iter();
        let spread = self.spread.iter();
        affinity
            .map(|(t, _)| side.term(*t).matching.changed)
            .chain(repels.map(|(t, _)| side.term(*t).matching.emptied))
            .chain(self.repelled.iter().map(|t| side.term(*t).holders.emptied))
            .chain(spread.map(|e| side.term(e.term).matching.changed))
            .fold(side.moved, u64::max)
    }

    /// Nodes of the domains with tasks that the class must be with, where those are few: fewer than
    /// `below`. `None` where it may go anywhere, or they are many.
    pub fn near(&self, side: &Side, below: usize) -> Option<Vec<u32>> {
        let places = |term: &Term| {
            let topology = side.topologies.get(term.topology);
            let domains = term.matching.per.keys();
            let nodes = domains.map(|d| topology.nodes[*d as usize].len());
            nodes.sum::<usize>()
        };
        let terms = self
            .affinity
            .iter()
            .map(|(id, itself)| (side.term(*id), itself));
        let (fewest, term) = terms
            .filter(|(term, itself)| term.matching.total > 0 || !**itself)
            .map(|(term, _)| (places(term), term))
            .min_by_key(|(nodes, _)| *nodes)?;
        if fewest >= below {
            return None;
        }
        let topology = side.topologies.get(term.topology);
        let domains = term.matching.per.keys();
        Some(
            domains
                .flat_map(|d| &topology.nodes[*d as usize])
                .copied()
                .collect(),
        )
    }
}

/// Per number of matching tasks, the domains that have so many, of those with a node that the class
/// may use as far as labels go (whether it is full, tainted or cordoned does not matter, so that a
/// domain which cannot take more still holds the others back).
fn levels(cluster: &Cluster, class: u32, term: &Term) -> BTreeMap<u32, u32> {
    let topology = cluster.side.topologies.get(term.topology);
    let wants = &cluster.classes.all[class as usize].wants;
    let mut levels = BTreeMap::new();
    if wants.pairs.is_empty() && wants.required.is_empty() {
        for count in term.matching.per.values() {
            *levels.entry(*count).or_insert(0) += 1;
        }
        let empty = topology.live() - term.matching.per.len();
        if empty > 0 {
            levels.insert(0, empty as u32);
        }
        return levels;
    }
    let profiles = &cluster.profiles;
    let mut suits = FixedBitSet::with_capacity(profiles.traits.len());
    for (i, traits) in profiles.traits.iter().enumerate() {
        suits.set(i, wants.hold(traits));
    }
    for (domain, nodes) in topology.nodes.iter().enumerate() {
        let usable = |n: &u32| {
            let profile = profiles
                .all
                .get(cluster.nodes[*n as usize].profile as usize);
            profile.is_some_and(|p| suits.contains(p.traits as usize))
        };
        if nodes.iter().any(usable) {
            *levels.entry(term.matching.of(domain as u32)).or_insert(0) += 1;
        }
    }
    levels
}
