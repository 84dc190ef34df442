//! Forecast: when what waits will start, as far as one can say now.
//!
//! Everything that waits is planned once in the order of the agenda, each unit at the earliest
//! moment at which it fits beside what runs and what was planned before it. The median takes run
//! times as expected, the 90th percentile as their limits say. Two things that plans cannot know
//! (who comes later and goes first, and how wrong limits are here) are learnt from past errors: see
//! [`Calibration`]. Limits of queues are not looked at; what they cost is learnt in the same way.

mod calibration;
#[cfg(test)]
mod tests;

pub use self::calibration::Calibration;
use crate::agenda::{Agenda, Unit};
use crate::ahead::{Ahead, Need, Pick};
use crate::cluster::Cluster;
use crate::place::Budget;
use crate::spec::{Demand, NEVER, Time};

/// An array is planned in about this many steps, and in at most four times as many where no more
/// of it fits at once; what is left then is left out of the plan.
const STEPS: u32 = 8;

/// When the first task of a demand (of a gang: all that start together) will start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Position in the demands.
    pub demand: u32,
    /// As likely later as earlier; [`NEVER`] when nothing is known.
    pub p50: Time,
    /// In nine of ten cases it has started by then; [`NEVER`] when nothing is known. Not before `p50`.
    pub p90: Time,
}

/// Forecasts for all demands, in their order, before calibration. `budget` is in the work units of
/// [`crate::Options`]; demands that it does not suffice for are forecast [`NEVER`]. The cluster is
/// only taught classes and sizes that it did not know.
pub fn forecast(
    cluster: &mut Cluster,
    demands: &[Demand],
    now: Time,
    budget: u64,
) -> Vec<Forecast> {
    let mut agenda = Agenda::new(cluster, demands, now);
    agenda.sequence(
        cluster,
        demands,
        now,
        &mut Budget {
            left: budget,
            spent: 0,
        },
    );
    let mut units = Vec::new();
    while let Some(turn) = agenda.next(cluster) {
        units.push(agenda.unit(turn.unit).clone());
        agenda.over(&turn, false);
    }
    let mut pass = |ahead: Ahead, run: fn(&Demand) -> Time| {
        let mut budget = Budget {
            left: budget / 2,
            spent: 0,
        };
        plan(cluster, demands, &units, ahead, run, &mut budget)
    };
    let likely = pass(Ahead::expected(now), |d| d.run);
    let late = pass(Ahead::new(now), |d| d.run_max.max(d.run));
    let both = likely.into_iter().zip(late).zip(0..);
    both.map(|((p50, late), demand)| Forecast {
        demand,
        p50,
        p90: p50.max(late),
    })
    .collect()
}

/// Whether tasks that start by `start` and run for `run` are done by the deadline.
pub fn deadline_feasible(start: Time, run: Time, deadline: Time) -> bool {
    deadline == NEVER || start.saturating_add(run) <= deadline
}

/// The starts of all demands when all units are planned one after the other.
fn plan(
    cluster: &mut Cluster,
    demands: &[Demand],
    units: &[Unit],
    mut ahead: Ahead,
    run: fn(&Demand) -> Time,
    budget: &mut Budget,
) -> Vec<Time> {
    let mut starts = vec![NEVER; demands.len()];
    for unit in units {
        let mut left: Vec<u32> = unit
            .demands
            .iter()
            .map(|d| demands[*d as usize].count)
            .collect();
        // What starts together: of a gang the minimum of each, else its first
        // task, and then the rest in steps.
        let gang = unit.gang != 0;
        let mut step = 1;
        let mut first = true;
        for _ in 0..4 * STEPS {
            if left.iter().all(|n| *n == 0) || budget.left == 0 {
                break;
            }
            let (mut needs, mut whose) = (Vec::new(), Vec::new());
            for (position, left) in unit.demands.iter().zip(&left) {
                let demand = &demands[*position as usize];
                let count = if gang && first {
                    demand.min.min(*left)
                } else {
                    step.min(*left)
                };
                if count > 0 && (gang || needs.is_empty()) {
                    whose.push(*position);
                    needs.push(Need {
                        class: cluster.class(&demand.class),
                        count,
                        run_max: run(demand),
                    });
                }
            }
            let more = (left.iter().copied().max().unwrap_or(1) / STEPS).max(1);
            let slot = ahead.earliest(cluster, &needs, Pick::Latest, &[], budget);
            let Some(slot) = slot else {
                if step == 1 || (gang && first) {
                    break;
                }
                // So many never fit at once.
                step = (step / 4).max(1);
                continue;
            };
            ahead.reserve(cluster, &slot, &needs, 0);
            for (position, need) in whose.iter().zip(&needs) {
                let start = &mut starts[*position as usize];
                *start = (*start).min(slot.start);
                let at = unit.demands.iter().position(|d| d == position);
                if let Some(at) = at {
                    left[at] -= need.count;
                }
            }
            if first {
                step = more;
            }
            first = false;
        }
    }
    starts
}
