//! The table of task classes in use, and what each class knows: its requests in resource numbers,
//! which nodes' traits suit it, and its indexes over node states.
//!
//! The table is a cache: it can be dropped at any time between cycles and is, when it has grown large.

use fixedbitset::FixedBitSet;

use crate::cluster::profiles::Profiles;
use crate::filter::{self, Wants};
use crate::finder::BestFit;
use crate::index::Index;
use crate::intern::FxMap;
use crate::side::Own;
use crate::side::parked::Parked;
use crate::spec::{Class, Policy};

/// Requests and fixed ports in resource numbers, and a tag: what a task holds and counts for. Shared by tasks and classes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Resource number and amount, amounts above zero.
    pub requests: Box<[(u32, i64)]>,
    pub ports: Box<[u16]>,
    /// What rules between tasks see of it: a number in [`crate::side::Side`].
    pub tag: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct ClassEntry {
    pub class: Class,
    pub shape: u32,
    /// Its terms about other tasks.
    pub own: Own,
    /// What it asks of node labels.
    pub wants: Wants,
    /// Per traits: may be placed there, as far as labels, taints, cordon and readiness go.
    suits: FixedBitSet,
    /// Per traits: has a taint with PreferNoSchedule that is not tolerated.
    shuns: FixedBitSet,
    /// Per traits: the sum of the preferences they meet. Empty for classes that have none.
    preference: Vec<i32>,
    /// Traits looked at so far.
    seen: usize,
    /// Demands of this class met so far: the second one makes an index worth its cost.
    pub uses: u32,
    pub indexes: Vec<(Policy, Index)>,
    pub best_fit: BestFit,
    /// States that rules between tasks keep out of the index for now.
    pub parked: Vec<(Policy, Parked)>,
}

impl ClassEntry {
    pub fn new(class: Class, shape: u32, wants: Wants, own: Own) -> Self {
        ClassEntry {
            class,
            shape,
            wants,
            own,
            preference: Vec::new(),
            suits: FixedBitSet::new(),
            shuns: FixedBitSet::new(),
            seen: 0,
            uses: 0,
            indexes: Vec::new(),
            best_fit: BestFit::default(),
            parked: Vec::new(),
        }
    }

    /// Looks at traits that are new since the last call.
    pub fn learn(&mut self, profiles: &Profiles) {
        let all = &profiles.traits;
        if self.seen == all.len() {
            return;
        }
        self.suits.grow(all.len());
        self.shuns.grow(all.len());
        for (i, traits) in all.iter().enumerate().skip(self.seen) {
            let tolerations = &self.class.spec().tolerations;
            self.suits
                .set(i, filter::suits(&self.wants, tolerations, traits));
            self.shuns.set(i, filter::shuns(tolerations, traits));
            if !self.wants.preferred.is_empty() {
                self.preference.push(self.wants.preference(traits));
            }
        }
        self.seen = all.len();
    }

    /// Whether all that suits it is alike to it, the policy's score aside.
    pub fn is_indifferent(&self) -> bool {
        self.wants.preferred.is_empty() && self.shuns.is_clear()
    }

    /// Takes the index of a policy out; empty if there is none.
    pub fn take_index(&mut self, policy: Policy) -> Index {
        match self.indexes.iter().position(|(p, _)| *p == policy) {
            Some(i) => self.indexes.swap_remove(i).1,
            None => Index::default(),
        }
    }

    /// What is parked under a policy.
    pub fn parked_of(&mut self, policy: Policy) -> &mut Parked {
        let at = match self.parked.iter().position(|(p, _)| *p == policy) {
            Some(at) => at,
            None => {
                self.parked.push((policy, Parked::default()));
                self.parked.len() - 1
            }
        };
        &mut self.parked[at].1
    }

    /// Whether tasks of the class may be placed on nodes with these traits, as far as labels,
    /// taints, cordon and readiness go. Traits that it has not learnt do not suit it.
    pub fn suits(&self, traits: u32) -> bool {
        self.suits.contains(traits as usize)
    }

    /// The same; `None` of traits that it has not learnt.
    pub fn suits_if_learnt(&self, traits: u32) -> Option<bool> {
        ((traits as usize) < self.seen).then(|| self.suits(traits))
    }

    /// Whether nodes with these traits are tried last.
    pub fn shuns(&self, traits: u32) -> bool {
        self.shuns.contains(traits as usize)
    }

    /// What the class prefers of traits, within ±[`filter::PREFERENCE_MAX`].
    pub fn preference(&self, traits: u32) -> i64 {
        let known = self.preference.get(traits as usize);
        known.map_or(0, |p| i64::from(*p))
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Classes {
    pub all: Vec<ClassEntry>,
    pub ids: FxMap<Class, u32>,
}
