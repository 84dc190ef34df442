//! Cover: the cheapest units (tasks or whole gangs) that free what is lacking.

use crate::score::UNIT;

/// What leaves together.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub cost: i128,
    /// Members that do not leave yet.
    pub slots: Vec<u32>,
    /// Per amount that may lack: what it frees there.
    pub frees: Vec<i128>,
    /// Holds something that only it can give (a fixed port).
    pub must: bool,
}

/// Positions of units that together free what is lacking, and their cost. Least cost first, then
/// what turned out to be redundant is dropped, most costly first; the same by cost per freed amount; the
/// cheaper of both. `None` when all together are not enough.
///
/// Bound: by the first order no unit kept costs more than the best solution's most costly one (the units up to
/// that cost suffice), so the answer costs at most its number of units times the least cost.
pub(crate) fn cover(lack: &[i128], units: &[Unit]) -> Option<(i128, Vec<usize>)> {
    let mut by_cost: Vec<usize> = (0..units.len())
        .filter(|u| units[*u].must || useful(lack, &units[*u]))
        .collect();
    by_cost.sort_by_key(|u| (!units[*u].must, units[*u].cost, units[*u].slots[0]));
    let first = prefix(lack, units, &by_cost)?;
    let worth: Vec<i128> = units.iter().map(|unit| worth(lack, unit)).collect();
    let mut by_worth = by_cost;
    by_worth.sort_by(|a, b| {
        let must = units[*b].must.cmp(&units[*a].must);
        let density = (units[*a].cost * worth[*b]).cmp(&(units[*b].cost * worth[*a]));
        must.then(density)
            .then(units[*a].slots[0].cmp(&units[*b].slots[0]))
    });
    let second = prefix(lack, units, &by_worth)?;
    Some(if second.0 < first.0 { second } else { first })
}

fn useful(lack: &[i128], unit: &Unit) -> bool {
    lack.iter().zip(&unit.frees).any(|(l, f)| *l > 0 && *f > 0)
}

/// How much of what lacks a unit frees, summed over amounts, [`UNIT`] for all of one.
fn worth(lack: &[i128], unit: &Unit) -> i128 {
    let parts = lack.iter().zip(&unit.frees).filter(|(l, _)| **l > 0);
    parts.map(|(l, f)| f.min(l) * i128::from(UNIT) / l).sum()
}

fn prefix(lack: &[i128], units: &[Unit], order: &[usize]) -> Option<(i128, Vec<usize>)> {
    let mut left = lack.to_vec();
    let mut chosen = Vec::new();
    for u in order {
        if !units[*u].must && left.iter().all(|l| *l <= 0) {
            break;
        }
        for (l, f) in left.iter_mut().zip(&units[*u].frees) {
            *l -= f;
        }
        chosen.push(*u);
    }
    if left.iter().any(|l| *l > 0) {
        return None;
    }
    let mut dear = chosen.clone();
    dear.sort_by_key(|u| (std::cmp::Reverse(units[*u].cost), *u));
    for u in dear {
        let unit = &units[u];
        if !unit.must && left.iter().zip(&unit.frees).all(|(l, f)| l + f <= 0) {
            for (l, f) in left.iter_mut().zip(&unit.frees) {
                *l += f;
            }
            chosen.retain(|c| *c != u);
        }
    }
    Some((chosen.iter().map(|u| units[*u].cost).sum(), chosen))
}
