//! Shares as fixed-point numbers, and the key that siblings are ordered by.

use crate::mutant::{Mutant, mutant};
use crate::spec::Time;

/// A share of the whole cluster. What differs by less than 2^-60 of it counts as equal.
pub(crate) const ONE: u64 = 1 << 60;
/// Largest share told apart: eight times what there is. More is possible while tasks of lost nodes
/// are still charged; the bound keeps every product of two shares in 128 bits.
pub(crate) const MOST: u64 = 1 << 63;

/// The part that `amount` is of `total`, rounded down. What nobody can have is no part: 0 when
/// there is nothing in total.
pub(crate) fn share(amount: i128, total: i128) -> u64 {
    if amount <= 0 || total <= 0 {
        return 0;
    }
    // Below 2^67 the shift cannot overflow.
    let amount = amount.unsigned_abs().min(1 << 67);
    let part = (amount << ONE.trailing_zeros()) / total.unsigned_abs();
    u64::try_from(part).unwrap_or(MOST).min(MOST)
}

/// A share for a weight (of at least 1), as siblings are compared by. Rounding down twice is rounding
/// down once, so equal fractions are equal levels, whatever they are fractions of.
pub(crate) fn level(share: u64, weight: u32) -> u64 {
    if mutant(Mutant::WrongSister) {
        return MOST - share / u64::from(weight);
    }
    share / u64::from(weight)
}

/// The share that has a level.
pub(crate) fn share_at(level: u64, weight: u32) -> u64 {
    level.saturating_mul(u64::from(weight)).min(MOST)
}

/// The least amount that has at least a level.
pub(crate) fn amount_at(to: u64, total: i128, weight: u32) -> u128 {
    let share = u128::from(to) * u128::from(weight);
    let amount = share.saturating_mul(total.max(0).unsigned_abs());
    amount.div_ceil(u128::from(ONE))
}

/// Place among siblings: who is below its guarantee, then who has the least share for its weight,
/// then whose next work is oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// Has its guarantee already, or has none.
    pub late: bool,
    pub level: u64,
    /// Creation time and id of the next demand.
    pub age: (Time, u64),
}
