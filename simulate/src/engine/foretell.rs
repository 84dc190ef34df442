//! Forecasts: what the scheduler says of a job's start when the job first has to wait, and what
//! it learns from how that came out.

use rota_scheduler::forecast::{Calibration, forecast};
use rota_scheduler::{Cluster, Demand, NEVER, Time};

use super::State;

/// Work units of one round of forecasts, so that a long queue cannot take the simulation over.
const BUDGET: u64 = 2_000_000;
/// Most of the waiting jobs that are planned for one round: those behind wait longer anyway.
const DEMANDS_MAX: usize = 2000;

/// Both points of the forecasts.
pub(super) struct Foresight {
    p50: Calibration,
    p90: Calibration,
}

/// What was said of a job when it came, as waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    p50: Time,
    p90: Time,
}

impl Foresight {
    pub fn new() -> Self {
        Foresight {
            p50: Calibration::new(500),
            p90: Calibration::new(900),
        }
    }

    /// Forecasts for those of the waiting jobs that have none; `demands` are those of `waiting`.
    pub fn look(
        &self,
        cluster: &mut Cluster,
        now: Time,
        waiting: &[usize],
        demands: &[Demand],
        states: &mut [State],
    ) {
        let new = |job: &usize| states[*job].record.forecast.is_none();
        let Some(last) = waiting.iter().take(DEMANDS_MAX).rposition(new) else {
            return;
        };
        // Who came later may still go first, so all of them take part.
        let part = waiting.len().min(DEMANDS_MAX);
        debug_assert!(last < part);
        for told in forecast(cluster, &demands[..part], now, BUDGET) {
            let state = &mut states[waiting[told.demand as usize]];
            if state.record.forecast.is_some() || told.p50 == NEVER {
                continue;
            }
            let said = Said {
                p50: told.p50 - now,
                p90: told.p90.saturating_sub(now),
            };
            let p50 = now.saturating_add(self.p50.correct(said.p50));
            let p90 = now.saturating_add(self.p90.correct(said.p90));
            state.said = Some(said);
            state.record.forecast = Some((p50, p90.max(p50)));
        }
    }

    /// A job that had a forecast started.
    pub fn learn(&mut self, said: Said, waited: Time) {
        self.p50.observe(said.p50, waited);
        self.p90.observe(said.p90, waited);
    }
}
