//! Placement policies: which node is best among those that fit. One file per policy, one line in [`of`].
//!
//! A score depends only on the node state and the class, so it is computed once per state, not per node.

mod binpack;
pub(crate) mod fragmentation;
mod spread;

use self::fragmentation::Outlook;
use crate::cluster::devices::Layout;
use crate::cluster::profiles::Profile;
use crate::cluster::states::States;
use crate::spec::Policy;

/// About one part in a million: the unit of normalised amounts.
pub const UNIT: i64 = 1 << 20;

/// A node state as a policy sees it. All slices run over resources. What not every policy asks for
/// is behind a method: states are rated by the million, and each look elsewhere costs.
pub struct StateView<'a> {
    /// Amounts free.
    pub free: &'a [i64],
    /// Sum over resources of the free amount in units of the largest node's ([`UNIT`] = all of it):
    /// a class-independent measure of what would be left over.
    pub leftover: i64,
    pub(crate) state: u32,
    /// Number of the nodes' profile.
    pub(crate) profile: usize,
    pub(crate) states: &'a States,
    pub(crate) profiles: &'a [Profile],
    /// What the workload typically asks for.
    pub(crate) outlook: &'a Outlook,
}

impl<'a> StateView<'a> {
    /// Amounts in all.
    pub fn capacity(&self) -> &'a [i64] {
        &self.profiles[self.profile].capacity
    }

    /// What is free of each device, sorted per resource.
    pub fn devices(&self) -> &'a [i64] {
        self.states.devices_of(self.state)
    }

    /// Resources that come as devices, and how many.
    pub(crate) fn layout(&self) -> &'a Layout {
        &self.profiles[self.profile].devices
    }
}

/// How a batch of equal tasks goes onto the nodes of the best state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// As many as fit on one node, then the next node: a fuller node is always better.
    Deep,
    /// One per node, then look again: an emptier node is always better.
    Level,
    /// One on one node, then look again: what is best may change with every task.
    Single,
}

/// A placement policy.
pub trait Score: Sync {
    /// Higher is better.
    fn score(&self, state: &StateView<'_>, requests: &[(u32, i64)]) -> i64;
    /// How batches fill nodes; must agree with what the score prefers.
    fn fill(&self) -> Fill;
    /// Whether the score is minus what is left over and nothing else: then one order of states
    /// serves all classes.
    fn is_leftover(&self) -> bool {
        false
    }
}

/// The registry.
pub fn of(policy: Policy) -> &'static dyn Score {
    match policy {
        Policy::BinPack => &binpack::BinPack,
        Policy::Fragmentation => &fragmentation::Fragmentation,
        Policy::Spread => &spread::Spread,
    }
}
