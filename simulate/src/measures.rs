//! Measures of a run. What each one is, is said at its field; shares are percent, times seconds.

use std::collections::BTreeMap;

use rota_scheduler::{NEVER, Time};
use serde::Serialize;

use crate::engine::{Fate, Record};

/// Shortest run time that a bounded slowdown divides by, in milliseconds (Feitelson, Rudolph 1998).
const TAU: Time = 10_000;
/// Decimals that are printed: more would be noise of binary fractions.
const DECIMALS: f64 = 1e4;

/// What the event loop sums up besides records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub units: u64,
    pub evictions: u64,
    /// Task milliseconds lost by evictions.
    pub wasted: f64,
    /// Jobs of the trace that could not be replayed.
    pub unreadable: u64,
    pub utilization: BTreeMap<String, f64>,
    pub jain: Option<f64>,
    pub gpu: Option<f64>,
    /// Inner: `None` when there is nothing to measure.
    pub fragmentation: Option<Option<f64>>,
}

/// The measures, in the order in which they are printed. `None` (null): there is nothing to measure.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Measures {
    /// Jobs of the trace.
    pub jobs: u64,
    /// Jobs all of whose tasks ended.
    pub completed: u64,
    /// Jobs that can never run here, that do not make sense, or that would not wait.
    pub rejected: u64,
    /// Jobs that their users gave up.
    pub cancelled: u64,
    /// Of the resource that was used most: held over capacity, weighted by time, 0 to 1.
    pub utilization: Option<f64>,
    /// Last end minus first submission.
    pub makespan_s: Option<f64>,
    /// Mean over started jobs of the time in which none of their tasks ran, evictions included.
    pub mean_wait_s: Option<f64>,
    /// The wait that 99 % of started jobs do not exceed.
    pub p99_wait_s: Option<f64>,
    /// Mean over completed jobs of max(1, (end − submission) / max(run, 10 s)).
    pub mean_bounded_slowdown: Option<f64>,
    /// Mean over completed jobs that run at all of (end − submission) / run.
    pub mean_slowdown: Option<f64>,
    /// Jain's index over owners of what they got over what a max-min fair division owes them.
    pub jain: Option<f64>,
    /// Of (end − submission) over run × load, where load is the mean of demand over capacity (at
    /// least 1) while the job was there: the value that 99 % of completed jobs do not exceed. At
    /// most 1 means that nobody fared worse than with an equal part of the cluster (Themis, NSDI 2020).
    pub finish_time_ratio_p99: Option<f64>,
    /// Tasks evicted.
    pub preemptions: u64,
    /// Work lost by evictions, in task seconds.
    pub wasted_s: f64,
    /// GPUs held over all GPUs in percent: weighted by time, or in the end where nothing ends.
    pub gpu_allocated_percent: Option<f64>,
    /// Free GPUs that a GPU task drawn from the trace cannot use, in percent of all GPUs, when the last job has come.
    pub fragmentation: Option<f64>,
    /// Mean of |start − median forecast| over jobs that waited.
    pub forecast_mae_s: Option<f64>,
    /// Share of the jobs that waited and started by the forecast's 90 % point, 0 to 1.
    pub forecast_p90_coverage: Option<f64>,
    /// Work units that the scheduler spent.
    pub work_units: u64,
}

impl Measures {
    pub(crate) fn of(records: &[Record], totals: &Totals) -> Self {
        let with = |fate: Fate| records.iter().filter(move |r| r.fate == fate);
        let seconds = |ms: f64| round(ms / 1000.0);
        let mut waits: Vec<f64> = records
            .iter()
            .filter(|r| r.start.is_some())
            .map(|r| r.waited as f64)
            .collect();
        let there = |r: &Record| (r.end.unwrap_or(r.submit) - r.submit) as f64;
        let bounded: Vec<f64> = with(Fate::Completed)
            .map(|r| (there(r) / r.run.max(TAU) as f64).max(1.0))
            .collect();
        let runs = || with(Fate::Completed).filter(|r| r.run > 0);
        let slowdowns: Vec<f64> = runs().map(|r| there(r) / r.run as f64).collect();
        let mut ratios: Vec<f64> = runs().map(|r| there(r) / (r.run as f64 * r.load)).collect();
        let told = || {
            let known = records.iter().filter_map(|r| Some((r.start?, r.forecast?)));
            known.filter(|(_, (_, p90))| *p90 != NEVER)
        };
        let errors: Vec<f64> = told()
            .map(|(start, (p50, _))| (start - p50).abs() as f64)
            .collect();
        let covered: Vec<f64> = told()
            .map(|(start, (_, p90))| f64::from(u8::from(start <= p90)))
            .collect();
        let first = records.iter().map(|r| r.submit).min();
        let last = records.iter().filter_map(|r| r.end).max();
        Measures {
            jobs: records.len() as u64 + totals.unreadable,
            completed: with(Fate::Completed).count() as u64,
            rejected: with(Fate::Rejected).count() as u64 + totals.unreadable,
            cancelled: with(Fate::Cancelled).count() as u64,
            utilization: totals
                .utilization
                .values()
                .copied()
                .reduce(f64::max)
                .map(round),
            makespan_s: first.zip(last).map(|(a, b)| seconds((b - a) as f64)),
            mean_wait_s: mean(&waits).map(seconds),
            p99_wait_s: quantile(&mut waits, 0.99).map(seconds),
            mean_bounded_slowdown: mean(&bounded).map(round),
            mean_slowdown: mean(&slowdowns).map(round),
            jain: totals.jain.map(round),
            finish_time_ratio_p99: quantile(&mut ratios, 0.99).map(round),
            preemptions: totals.evictions,
            wasted_s: seconds(totals.wasted),
            gpu_allocated_percent: totals.gpu.map(|g| round(g * 100.0)),
            fragmentation: totals.fragmentation.flatten().map(|f| round(f * 100.0)),
            forecast_mae_s: mean(&errors).map(seconds),
            forecast_p90_coverage: mean(&covered).map(round),
            work_units: totals.units,
        }
    }
}

fn round(x: f64) -> f64 {
    (x * DECIMALS).round() / DECIMALS
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The smallest value that at least this share of all do not exceed.
fn quantile(values: &mut [f64], q: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * q).ceil() as usize;
    values.get(at.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let mut values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(quantile(&mut values, 0.99), Some(198.0));
        assert_eq!(quantile(&mut values[..1], 0.99), Some(1.0));
        assert_eq!(quantile(&mut [], 0.99), None);
    }
}
