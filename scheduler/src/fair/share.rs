//! Shares as fixed-point numbers, and the key that siblings are ordered by.

use std::cmp::Ordering;

use crate::mutant::{Mutant, mutant};
use crate::spec::Time;

/// A share of the whole cluster. Shares that differ by less than 2^-40 of it count as equal: with
/// 50,000 nodes of 256 GiB that is 12 KiB.
pub(crate) const ONE: u64 = 1 << 40;
/// Largest share told apart: 1,024 times what there is. More is possible while tasks of lost nodes
/// are still charged; the bound keeps every product below in 128 bits.
pub(crate) const MOST: u64 = 1 << 50;

/// The part that `amount` is of `total`, rounded down. What nobody can have is no part: 0 when
/// there is nothing in total.
pub(crate) fn share(amount: i128, total: i128) -> u64 {
    if amount <= 0 || total <= 0 {
        return 0;
    }
    // Below 2^87 the shift cannot overflow.
    let amount = amount.unsigned_abs().min(1 << 87);
    let part = (amount << ONE.trailing_zeros()) / total.unsigned_abs();
    u64::try_from(part).unwrap_or(MOST).min(MOST)
}

/// Place among siblings: who is below its guarantee, then who has the least share for its weight,
/// then whose next work is oldest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Has its guarantee already, or has none.
    pub late: bool,
    pub share: u64,
    /// At least 1.
    pub weight: u32,
    /// Creation time and id of the next demand.
    pub age: (Time, u64),
}

impl Key {
    /// Compares shares for their weights only. Exact: a < b as fractions, by cross-multiplication.
    pub fn level(&self, other: &Key) -> Ordering {
        let this = u128::from(self.share) * u128::from(other.weight);
        let that = u128::from(other.share) * u128::from(self.weight);
        if mutant(Mutant::WrongSister) {
            return that.cmp(&this);
        }
        this.cmp(&that)
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.late
            .cmp(&other.late)
            .then_with(|| self.level(other))
            .then_with(|| self.age.cmp(&other.age))
    }
}
impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Key {}
