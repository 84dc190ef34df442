//! Filter: may a task of this class be on a node with this profile, and how many fit.

use crate::cluster::profiles::Profile;
use crate::mutant::{Mutant, mutant};
use crate::spec::{Effect, Taint, Toleration};

/// Labels, taints, cordon and readiness.
pub(crate) fn suits(pairs: &[u32], tolerations: &[Toleration], profile: &Profile) -> bool {
    profile.ready
        && !profile.unschedulable
        && carries(pairs, profile)
        && blocking_taint(tolerations, profile).is_none()
}

/// Whether the node carries every label pair asked for.
pub(crate) fn carries(pairs: &[u32], profile: &Profile) -> bool {
    pairs.iter().all(|p| profile.pairs.binary_search(p).is_ok())
}

/// A taint that keeps the class away, if there is one.
pub(crate) fn blocking_taint<'a>(
    tolerations: &[Toleration],
    profile: &'a Profile,
) -> Option<&'a Taint> {
    profile.taints.iter().find(|t| {
        t.effect != Effect::PreferNoSchedule
            && !tolerated(tolerations, t)
            && !mutant(Mutant::IgnoreTaint)
    })
}

/// Whether other nodes should be tried first.
pub(crate) fn shuns(tolerations: &[Toleration], profile: &Profile) -> bool {
    profile
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
