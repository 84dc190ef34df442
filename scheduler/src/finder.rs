//! Finder: where the best state for a class is looked up. Either in an index of its own, or, when
//! the policy ranks by what is left over and the class has no preferences, in the order that all
//! classes share.

use crate::classes::ClassEntry;
use crate::cluster::Cluster;
use crate::cluster::leftovers::{Key, may_hold};
use crate::cluster::states::StateRef;
use crate::index::{Entry, Index};
use crate::place::{Budget, Rater};
use crate::score::{self, Score};
use crate::spec::Policy;

/// A class that has missed more births than one in so many live states starts at the bottom again:
/// passing a state in the order costs that much less than looking at one by number.
const MISSED_PART: usize = 8;
/// And never for fewer than these.
const MISSED_FEW: usize = 64;

/// A class's place in the order by what is left over: no live state below fits it. States do not
/// change, so only those born since can be better.
#[derive(Clone, Debug)]
pub(crate) struct BestFit {
    from: Key,
    /// Position in the birth log up to which that holds.
    caught_up: Option<u64>,
}

impl Default for BestFit {
    fn default() -> Self {
        BestFit {
            from: Key::FIRST,
            caught_up: None,
        }
    }
}

pub(crate) enum Finder {
    Own {
        index: Index,
        aside: Vec<Entry>,
    },
    Shared {
        known: BestFit,
        /// Where to look next; beyond `known.from` when states were set aside.
        at: Key,
        set_aside: bool,
    },
}

impl Finder {
    /// Takes out what the class knows; [`Finder::give_back`] returns it.
    pub fn take(cluster: &mut Cluster, class: u32, policy: Policy, score: &dyn Score) -> Self {
        let entry = &mut cluster.classes.all[class as usize];
        if is_shared(entry, score) {
            let known = std::mem::take(&mut entry.best_fit);
            cluster.states.order_by_leftover(&cluster.profiles.all);
            return Finder::Shared {
                at: known.from,
                known,
                set_aside: false,
            };
        }
        let mut index = entry.take_index(policy);
        if let Some(at) = entry.parked.iter().position(|(p, _)| *p == policy) {
            // Rules of other tasks, which are gone.
            for entry in entry.parked.swap_remove(at).1.all() {
                index.put_back(entry);
            }
        }
        Finder::Own {
            index,
            aside: Vec::new(),
        }
    }

    /// The best state, after a look at what is new.
    pub fn best(&mut self, rater: &Rater<'_>, budget: &mut Budget) -> Option<StateRef> {
        let states = rater.states;
        match self {
            Finder::Own { index, .. } => {
                budget.spend(index.catch_up(states, |state| rater.rate(state)));
                index.best(states).map(|entry| entry.state)
            }
            Finder::Shared {
                known,
                at,
                set_aside,
            } => {
                let bound = states.live.len() / MISSED_PART + MISSED_FEW;
                let news = known.caught_up.and_then(|p| states.births_since(p));
                let news = news.filter(|news| news.len() <= bound);
                known.caught_up = Some(states.births_end());
                match news {
                    Some(news) => {
                        budget.spend(news.len() as u64);
                        for state in news {
                            let key = states.key_of(state.id);
                            if key < *at
                                && may_hold(states.digest[state.id as usize], rater.asked)
                                && states.is_live(*state)
                                && rater.takes(rater.traits_of(state.id), state.id)
                            {
                                *at = key;
                                known.from = known.from.min(key);
                            }
                        }
                    }
                    None => *at = Key::FIRST,
                }
                let takes = |traits, state| rater.takes(traits, state);
                let (found, cost) = states.leftovers.first(*at, rater.asked, takes);
                budget.spend(cost);
                *at = found.unwrap_or(Key::LAST);
                if !*set_aside {
                    known.from = *at;
                }
                let state = found?.state;
                Some(StateRef {
                    id: state,
                    generation: states.generation[state as usize],
                })
            }
        }
    }

    /// Looks behind the best state from now on.
    pub fn set_aside(&mut self) {
        match self {
            Finder::Own { index, aside } => aside.extend(index.set_aside()),
            Finder::Shared { at, set_aside, .. } => {
                *at = at.behind();
                *set_aside = true;
            }
        }
    }

    /// Gives back to the class what was taken out, and what was set aside.
    pub fn give_back(self, entry: &mut ClassEntry, policy: Policy) {
        match self {
            Finder::Own { mut index, aside } => {
                for entry in aside {
                    index.put_back(entry);
                }
                entry.indexes.push((policy, index));
            }
            Finder::Shared { known, .. } => entry.best_fit = known,
        }
    }
}

/// Whether the class uses the order that all share.
pub(crate) fn is_shared(entry: &ClassEntry, score: &dyn Score) -> bool {
    score.is_leftover() && entry.is_indifferent()
}

/// What is wrong with the shared order, and with what classes take for known about it.
pub(crate) fn check(cluster: &Cluster, wrong: &mut Vec<String>) {
    let states = &cluster.states;
    if !states.leftovers.is_on() {
        return;
    }
    let mut expected: Vec<_> = states
        .live
        .iter()
        .map(|state| (states.key_of(*state), cluster.measure(*state)))
        .collect();
    expected.sort_by_key(|(key, _)| *key);
    if !states.leftovers.all().eq(expected.iter().copied()) {
        wrong.push("the order by what is left over is not that of the live states".into());
    }
    for (class, entry) in cluster.classes.all.iter().enumerate() {
        let known = &entry.best_fit;
        let Some(news) = known.caught_up.and_then(|p| states.births_since(p)) else {
            continue;
        };
        let shape = cluster.tasks.shapes.get(entry.shape);
        let rater = Rater::new(cluster, class as u32, shape, score::of(Policy::BinPack));
        let below = expected.iter().take_while(|(key, _)| *key < known.from);
        for (key, measure) in below {
            let is_news = || news.iter().any(|n| n.id == key.state && states.is_live(*n));
            if rater.takes(measure.traits, key.state) && !is_news() {
                wrong.push(format!("class {class} passes state {} over", key.state));
            }
        }
    }
}

#[cfg(test)]
#[path = "finder_tests.rs"]
mod tests;
