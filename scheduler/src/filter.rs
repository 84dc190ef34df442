//! Filter: may a task of this class be on a node with these traits, and how many fit.

use crate::cluster::profiles::Traits;
use crate::mutant::{Mutant, mutant};
use crate::spec::{Effect, Taint, Toleration};

/// What a class asks of node labels, in atoms (see [`crate::cluster::profiles`]).
#[derive(Clone, Debug, Default)]
pub(crate) struct Wants {
    /// Label pairs of the node selector, sorted.
    pub pairs: Box<[u32]>,
    /// Terms of which one must hold; none: no need.
    pub required: Box<[Box<[u32]>]>,
    /// Weights of terms that hold.
    pub preferred: Box<[(i32, Box<[u32]>)]>,
}

impl Wants {
    /// Whether a node may be used as far as labels go.
    pub fn hold(&self, traits: &Traits) -> bool {
        meets(&self.pairs, traits) && self.required_hold(traits)
    }

    /// Whether one of the required terms holds.
    pub fn required_hold(&self, traits: &Traits) -> bool {
        self.required.is_empty() || self.required.iter().any(|term| meets(term, traits))
    }

    /// The sum of the weights of the preferred terms that hold, within ±[`PREFERENCE_MAX`].
    pub fn preference(&self, traits: &Traits) -> i32 {
        let held = self.preferred.iter().filter(|(_, t)| meets(t, traits));
        let sum: i64 = held.map(|(weight, _)| i64::from(*weight)).sum();
        sum.clamp(-PREFERENCE_MAX, PREFERENCE_MAX) as i32
    }
}

/// Sums of weights beyond this rank alike: ten thousand terms of the heaviest weight that
/// Kubernetes allows (100) are still told apart.
pub(crate) const PREFERENCE_MAX: i64 = 1 << 20;

/// Labels, taints, cordon and readiness.
pub(crate) fn suits(wants: &Wants, tolerations: &[Toleration], traits: &Traits) -> bool {
    traits.ready
        && !traits.unschedulable
        && wants.hold(traits)
        && blocking_taint(tolerations, traits).is_none()
}

/// Whether the node meets every one of the atoms.
fn meets(atoms: &[u32], traits: &Traits) -> bool {
    atoms.iter().all(|a| traits.atoms.binary_search(a).is_ok())
}

/// A taint that keeps the class away, if there is one.
pub(crate) fn blocking_taint<'a>(
    tolerations: &[Toleration],
    traits: &'a Traits,
) -> Option<&'a Taint> {
    traits.taints.iter().find(|t| {
        t.effect != Effect::PreferNoSchedule
            && !tolerated(tolerations, t)
            && !mutant(Mutant::IgnoreTaint)
    })
}

/// Whether other nodes should be tried first.
pub(crate) fn shuns(tolerations: &[Toleration], traits: &Traits) -> bool {
    traits
        .taints
        .iter()
        .any(|t| t.effect == Effect::PreferNoSchedule && !tolerated(tolerations, t))
}

fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| t.accepts(taint))
}

/// Whether the free amounts hold one task.
#[inline]
pub(crate) fn fits(free: &[i64], requests: &[(u32, i64)]) -> bool {
    requests
        .iter()
        .all(|(r, amount)| free[*r as usize] >= *amount)
}

/// How many tasks the free amounts hold; requests are above zero.
pub(crate) fn how_many(free: &[i64], requests: &[(u32, i64)]) -> u32 {
    requests
        .iter()
        .map(|(r, amount)| (free[*r as usize] / *amount).max(0))
        .min()
        .map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX))
}
