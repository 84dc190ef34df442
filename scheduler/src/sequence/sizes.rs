//! What size came lately, to tell what is large here.

use std::collections::VecDeque;

use crate::intern::FxSet;

/// Units remembered.
const KEPT: usize = 500;

/// Sizes (size × run time) of the units that came last. Not part of any decision but which of the
/// waiting are protected, so nothing is lost when it starts empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sizes {
    recent: VecDeque<i128>,
    /// Ids of what waited in this cycle and in the last one: these have been counted.
    seen: [FxSet<u64>; 2],
}

impl Sizes {
    /// A cycle begins.
    pub fn turn_over(&mut self) {
        self.seen.swap(0, 1);
        self.seen[0].clear();
    }

    /// A demand waits; counted when it did not in the last cycle.
    pub fn observe(&mut self, id: u64, size: i128) {
        if self.seen[0].insert(id) && !self.seen[1].contains(&id) {
            if self.recent.len() == KEPT {
                self.recent.pop_front();
            }
            self.recent.push_back(size);
        }
    }

    /// Four of five are smaller.
    pub fn large(&self) -> i128 {
        let mut sizes: Vec<i128> = self.recent.iter().copied().collect();
        if sizes.is_empty() {
            return i128::MAX;
        }
        let rank = sizes.len() * 4 / 5;
        *sizes.select_nth_unstable(rank).1
    }
}
