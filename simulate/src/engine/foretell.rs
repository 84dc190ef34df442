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

impl Foresight {
    pub fn new() -> Self {
        Foresight {
            p50: Calibration::new(500),
            p90: Calibration::new(900),
        }
    }

    /// Forecasts for those of the waiting jobs that have none; `demands` are those of `waiting`.
    pub fn look(
        &mut self,
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
        self.p50.advance(now);
        self.p90.advance(now);
        for told in forecast(cluster, &demands[..part], now, BUDGET) {
            let job = waiting[told.demand as usize];
            let record = &mut states[job].record;
            if record.forecast.is_some() || told.p50 == NEVER {
                continue;
            }
            let said = |calibration: &mut Calibration, start: Time| {
                let wait = start.saturating_sub(now).max(0);
                let wait = if start == NEVER { NEVER } else { wait };
                now.saturating_add(calibration.tell(job as u64, now, wait))
            };
            let p50 = said(&mut self.p50, told.p50);
            let p90 = said(&mut self.p90, told.p90);
            record.forecast = Some((p50, p90.max(p50)));
        }
    }

    /// A job started.
    pub fn started(&mut self, now: Time, job: usize) {
        self.p50.ended(job as u64, now);
        self.p90.ended(job as u64, now);
    }

    /// A job was given up.
    pub fn cancelled(&mut self, job: usize) {
        self.p50.retain(|other| other != job as u64);
        self.p90.retain(|other| other != job as u64);
    }
}
