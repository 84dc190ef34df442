//! Spread: the node whose most used resource (of those the class asks for) would be used least.

use super::{Fill, Score, StateView, UNIT};

pub(super) struct Spread;

impl Score for Spread {
    fn score(&self, state: &StateView<'_>, requests: &[(u32, i64)]) -> i64 {
        let mut worst = 0;
        let capacities = state.capacity();
        for (resource, amount) in requests {
            let capacity = capacities[*resource as usize];
            let used = capacity
                .saturating_sub(state.free[*resource as usize])
                .saturating_add(*amount);
            if capacity > 0 {
                let share = match used.checked_mul(UNIT) {
                    Some(scaled) => scaled / capacity,
                    // Amounts near i64::MAX; dividing the wide type costs several times as much.
                    None => {
                        let share = i128::from(used) * i128::from(UNIT) / i128::from(capacity);
                        i64::try_from(share).unwrap_or(i64::MAX)
                    }
                };
                worst = worst.max(share);
            }
        }
        -worst
    }
    fn fill(&self) -> Fill {
        Fill::Level
    }
}
