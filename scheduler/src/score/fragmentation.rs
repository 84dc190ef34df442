//! Fragmentation: the node where least is lost for what the workload typically asks of devices.
//!
//! The first part is the fragmentation gradient of Weng et al., "Beware of Fragmentation:
//! Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent" (USENIX ATC 2023): a
//! node's fragmentation is the free amount of its devices that a task of the typical workload
//! cannot use there, averaged over that workload; a task goes where the sum grows least.
//!
//! Two parts come on top, both in the same unit (device amount):
//! - *Scarcity.* What a node's devices are typically asked for, over what there is: the load that
//!   each kind of task puts on the devices that it may use, spread evenly over them. A task that
//!   may go anywhere so keeps off devices that others depend on, long before these run out.
//! - *Balance.* Free devices beyond the free part of what goes with them (processor, memory) will be
//!   stranded when that runs out; the gradient alone only sees it when it has.

use fixedbitset::FixedBitSet;

use super::{Fill, Score, StateView};
use crate::cluster::devices as device;
use crate::spec::DEVICE;

/// Weights are parts of 1 << this.
pub(crate) const WEIGHT_BITS: u32 = 16;
const ONE: i128 = 1 << WEIGHT_BITS;
/// What an imbalance counts, in parts of the devices that it may strand: one half, since more may
/// still come that restores it. Between 0.3 and 1 the allocation that is reached hardly differs.
const BALANCE_PART: i128 = 2;
/// Costs are kept to this many bits below the unit of devices.
const COST_BITS: u32 = 8;
/// Levels of what is left over that break ties (best fit), as bits.
const TIE_BITS: u32 = 12;
/// Bits of [`StateView::leftover`] that no tie is broken by.
const LEFTOVER_SHIFT: u32 = 11;

/// What the typical workload asks of nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outlook {
    pub of: Vec<OfResource>,
    /// Other resources that it asks for together with devices.
    pub companions: Vec<u32>,
}

/// A kind of task that uses devices of one resource.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    /// Of the devices.
    pub amount: i64,
    /// Of resources that are no devices.
    pub rest: Box<[(u32, i64)]>,
    /// Its part of all, in parts of 1 << [`WEIGHT_BITS`].
    pub weight: i64,
    /// Per profile: an empty node could hold it.
    pub suits: FixedBitSet,
}

/// What is asked of one resource.
#[derive(Clone, Debug)]
pub(crate) struct OfResource {
    resource: u32,
    /// By amount.
    kinds: Vec<Kind>,
    /// Per profile.
    on: Vec<OnProfile>,
}

#[derive(Clone, Debug)]
struct OnProfile {
    /// Kinds that may be there, by amount.
    kinds: Box<[u32]>,
    /// Weight of the others.
    others: i64,
    /// Load on its devices over their capacity, where [`ONE`] is even.
    price: i64,
}

impl OfResource {
    /// `capacity` is what all nodes of each profile have together.
    pub fn new(resource: u32, mut kinds: Vec<Kind>, capacity: &[i64]) -> Self {
        kinds.sort_by_key(|k| k.amount);
        let load = |k: &Kind| i128::from(k.weight) * i128::from(k.amount);
        let all: i128 = kinds.iter().map(load).sum::<i128>().max(1);
        let total: i128 = capacity.iter().map(|c| i128::from(*c)).sum();
        // What each kind puts on a unit of the devices that it may use.
        let pressure: Vec<i128> = kinds
            .iter()
            .map(|k| {
                let usable: i128 = k.suits.ones().map(|p| i128::from(capacity[p])).sum();
                let part = load(k).saturating_mul(ONE) / all;
                part.saturating_mul(total) / usable.max(1)
            })
            .collect();
        let on = (0..capacity.len())
            .map(|profile| {
                let suited = |i: &usize| kinds[*i].suits.contains(profile);
                let mine: Vec<usize> = (0..kinds.len()).filter(suited).collect();
                let weight: i64 = mine.iter().map(|i| kinds[*i].weight).sum();
                let price: i128 = mine.iter().map(|i| pressure[*i]).sum();
                OnProfile {
                    kinds: mine.iter().map(|i| *i as u32).collect(),
                    others: kinds.iter().map(|k| k.weight).sum::<i64>() - weight,
                    price: i64::try_from(price).unwrap_or(i64::MAX),
                }
            })
            .collect();
        OfResource {
            resource,
            kinds,
            on,
        }
    }

    /// Free device amount that typical tasks cannot use, averaged over them, in parts of [`ONE`].
    /// `devices` is sorted.
    fn fragmentation(
        &self,
        profile: &OnProfile,
        free: impl Fn(u32) -> i64,
        devices: &[i64],
    ) -> i64 {
        let total: i64 = devices.iter().sum();
        let whole = devices.iter().filter(|free| **free == DEVICE).count() as i64 * DEVICE;
        let mut sum = profile.others * total;
        // What lies on devices with less free than the kind asks for; kinds come by amount.
        let (mut at, mut below) = (0, 0);
        for kind in &profile.kinds {
            let kind = &self.kinds[*kind as usize];
            while at < devices.len() && devices[at] < kind.amount.min(DEVICE) {
                below += devices[at];
                at += 1;
            }
            let enough = at < devices.len() && (kind.amount <= DEVICE || whole >= kind.amount);
            let usable = enough && kind.rest.iter().all(|(r, amount)| free(*r) >= *amount);
            sum += kind.weight * if usable { below } else { total };
        }
        sum
    }
}

pub(super) struct Fragmentation;

impl Score for Fragmentation {
    fn score(&self, state: &StateView<'_>, requests: &[(u32, i64)]) -> i64 {
        let tie = (state.leftover >> LEFTOVER_SHIFT).min((1 << TIE_BITS) - 1);
        let cost = cost(state, requests) >> (WEIGHT_BITS - COST_BITS);
        let cost = i64::try_from(cost).unwrap_or(i64::MAX >> TIE_BITS);
        -(cost.clamp(i64::MIN >> (TIE_BITS + 1), i64::MAX >> (TIE_BITS + 1)) * (1 << TIE_BITS)
            + tie)
    }

    fn fill(&self) -> Fill {
        Fill::Single
    }
}

/// What placing the task costs, in parts of [`ONE`] of a device unit.
fn cost(state: &StateView<'_>, requests: &[(u32, i64)]) -> i128 {
    let layout = state.layout();
    if layout.is_empty() {
        return 0;
    }
    let (devices, capacities) = (state.devices(), state.capacity());
    let asked = |r: u32| {
        let found = requests.iter().find(|(of, _)| *of == r);
        found.map_or(0, |(_, amount)| *amount)
    };
    let before = |r: u32| state.free[r as usize];
    let after = |r: u32| state.free[r as usize] - asked(r);
    let mut left = devices.to_vec();
    device::assign(layout, &mut left, requests);
    let left = device::sorted(layout, &left);
    let least = |free: &dyn Fn(u32) -> i64| {
        let companions = state.outlook.companions.iter();
        companions
            .map(|r| part(free(*r), capacities[*r as usize]))
            .min()
    };
    let companions = (least(&before), least(&after));
    let mut first = 0;
    let mut cost = 0;
    for (resource, count) in layout {
        let range = first..first + *count as usize;
        first += *count as usize;
        let Some(of) = state.outlook.of.iter().find(|of| of.resource == *resource) else {
            continue;
        };
        let Some(on) = of.on.get(state.profile) else {
            continue;
        };
        let (had, has) = (&devices[range.clone()], &left[range]);
        cost += i128::from(of.fragmentation(on, after, has));
        cost -= i128::from(of.fragmentation(on, before, had));
        cost += i128::from(on.price) * i128::from(asked(*resource));
        if let (Some(before), Some(after)) = companions {
            let capacity = i128::from(*count) * i128::from(DEVICE);
            let excess = |devices: &[i64], companion: i128| {
                let free: i64 = devices.iter().sum();
                (i128::from(free) * ONE / capacity.max(1) - companion).max(0)
            };
            cost += (excess(has, after) - excess(had, before)) * capacity / BALANCE_PART;
        }
    }
    cost
}

/// The part of the capacity that is free, in parts of [`ONE`]; none counts as all.
fn part(free: i64, capacity: i64) -> i128 {
    if capacity <= 0 {
        return ONE;
    }
    i128::from(free.max(0)) * ONE / i128::from(capacity)
}
