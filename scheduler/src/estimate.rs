//! Estimates: how long tasks run, learnt from how long their like ran before.
//!
//! Owned by the caller, who observes what ends and predicts before each cycle; rebuilt after a
//! restart by observing again, in the order of [`Estimates::samples`] or from what it still sees.
//! Integers and fixed orders only, so a replay predicts the same.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::spec::{NEVER, Time};

/// Keys kept; the one that was not observed for longest goes first.
const KEYS_MAX: usize = 1 << 16;
/// Runs kept per key. Older ones say little of what the user does now, and at least 19 are needed
/// for a 95th percentile.
const RUNS_MAX: usize = 64;

/// How one task ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What the user had asked for; [`NEVER`] when nothing.
    pub requested: Time,
    /// How long it ran.
    pub actual: Time,
}

/// How long a task will run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// As likely longer as shorter.
    pub p50: Time,
    /// In 19 of 20 cases it has ended by then. Never below `p50`.
    pub p95: Time,
}

#[derive(Clone, Debug, Default)]
struct Past {
    /// Oldest first.
    runs: VecDeque<Sample>,
    /// When it was observed last, by the count of all observations.
    seen: u64,
}

/// What was learnt, per key: the caller's own number of what runs alike, such as a hash of the user
/// and the Job's template.
#[derive(Clone, Debug, Default)]
pub struct Estimates {
    keys: HashMap<u64, Past>,
    by_age: BTreeMap<u64, u64>,
    observed: u64,
}

impl Estimates {
    /// Knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A task of this key ran for `actual` to its own end (not one that was evicted or lost).
    pub fn observe(&mut self, key: u64, requested: Option<Time>, actual: Time) {
        self.observed += 1;
        let past = self.keys.entry(key).or_default();
        self.by_age.remove(&past.seen);
        past.seen = self.observed;
        self.by_age.insert(past.seen, key);
        if past.runs.len() == RUNS_MAX {
            past.runs.pop_front();
        }
        past.runs.push_back(Sample {
            requested: requested.unwrap_or(NEVER),
            actual: actual.max(0),
        });
        if self.keys.len() > KEYS_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.keys.remove(&oldest);
        }
    }

    /// How long a task of this key will run; None when no like of it was seen.
    ///
    /// Runs that were asked for with the same limit count alone where there are any: users name the
    /// same limit for the same work. Otherwise all runs of the key count, as parts of their limits
    /// where limits are known. The 95th percentile is the conformal one (the ⌈0.95 (n+1)⌉-th of n),
    /// which covers also with few samples; below 19 it is the limit, or without one twice the longest.
    pub fn predict(&self, key: u64, requested: Option<Time>) -> Option<Estimate> {
        let runs = &self.keys.get(&key)?.runs;
        let requested = requested.unwrap_or(NEVER);
        let same = runs.iter().filter(|s| s.requested == requested);
        let mut likely: Vec<Time> = same.map(|s| s.actual).collect();
        if likely.is_empty() {
            let scaled = runs.iter().map(|s| scale(*s, requested));
            likely = scaled.collect();
        }
        likely.sort_unstable();
        let n = likely.len();
        let bound = requested.max(1);
        let p50 = likely.get(n.div_ceil(2).saturating_sub(1))?;
        let rank = (95 * (n + 1)).div_ceil(100);
        let p95 = match likely.get(rank - 1) {
            Some(run) => *run,
            None if requested != NEVER => requested,
            None => likely.last()?.saturating_mul(2),
        };
        let p50 = (*p50).clamp(1, bound);
        Some(Estimate {
            p50,
            p95: p95.clamp(p50, bound),
        })
    }

    /// Everything learnt, the key observed longest ago first and each key's runs oldest first.
    /// Observed again in this order, it makes an equal value.
    pub fn samples(&self) -> impl Iterator<Item = (u64, Sample)> {
        let keys = self.by_age.values();
        keys.flat_map(|key| self.keys[key].runs.iter().map(|s| (*key, *s)))
    }
}

/// A run as it would have been under another limit.
fn scale(sample: Sample, requested: Time) -> Time {
    if requested == NEVER || sample.requested == NEVER || sample.requested <= 0 {
        return sample.actual;
    }
    let scaled = i128::from(sample.actual) * i128::from(requested) / i128::from(sample.requested);
    Time::try_from(scaled).unwrap_or(NEVER)
}

/// When a task that runs since `start` and was expected to end at `predicted` will end, as far as
/// one can say at `now`: as predicted while that lies ahead; otherwise its run time is taken to be
/// double, and double again, until the end lies ahead. So the answer moves rarely and the error
/// stays within a factor of two. It is at most `bound` (when the task is killed) while that lies ahead.
///
/// Tsafrir, Etsion, Feitelson: Backfilling Using System-Generated Predictions Rather Than User
/// Runtime Estimates (IEEE TPDS 18(6), 2007) show that a prediction which was outlived must be
/// moved up for backfilling to gain from it; they do so in fixed steps.
pub fn corrected(start: Time, now: Time, predicted: Time, bound: Time) -> Time {
    let bound = if bound > now { bound } else { NEVER };
    if predicted > now {
        return predicted.min(bound);
    }
    let ran = now.saturating_sub(start);
    let mut run = predicted.saturating_sub(start).max(1);
    while run <= ran && run < NEVER {
        run = run.saturating_mul(2);
    }
    start
        .saturating_add(run)
        .max(now.saturating_add(1))
        .min(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(runs: &[(Option<Time>, Time)]) -> Estimates {
        let mut estimates = Estimates::new();
        for (requested, actual) in runs {
            estimates.observe(7, *requested, *actual);
        }
        estimates
    }

    #[test]
    fn the_same_limit_speaks_for_the_same_work() {
        let mut estimates = of(&[(Some(100), 30), (Some(1000), 900)]);
        let of = |e: &Estimates, limit| e.predict(7, Some(limit)).unwrap();
        assert_eq!(of(&estimates, 100), Estimate { p50: 30, p95: 100 });
        assert_eq!(of(&estimates, 1000).p50, 900);
        // A limit not seen before: as a part of it, the lower of the two middle ones.
        assert_eq!(of(&estimates, 10).p50, 3);
        assert_eq!(estimates.predict(8, Some(100)), None);
        for run in 1..=19 {
            estimates.observe(9, Some(100), run);
        }
        let many = estimates.predict(9, Some(100)).unwrap();
        assert_eq!(many, Estimate { p50: 10, p95: 19 });
    }

    #[test]
    fn without_a_limit_the_runs_themselves_count() {
        let estimates = of(&[(None, 10), (None, 30), (None, 20)]);
        let estimate = estimates.predict(7, None).unwrap();
        assert_eq!(estimate, Estimate { p50: 20, p95: 60 });
        // A limit bounds what was seen without one.
        assert_eq!(estimates.predict(7, Some(15)).unwrap().p95, 15);
    }

    #[test]
    fn old_keys_and_old_runs_are_forgotten_and_the_rest_can_be_rebuilt() {
        let mut estimates = Estimates::new();
        for key in 0..KEYS_MAX as u64 + 10 {
            estimates.observe(key, None, 5);
        }
        for run in 0..RUNS_MAX as Time + 10 {
            estimates.observe(20, None, 1000 + run);
        }
        assert_eq!(estimates.predict(9, None), None);
        assert_eq!(estimates.predict(10, None).unwrap().p50, 5);
        assert!(estimates.predict(20, None).unwrap().p50 > 1000);
        let mut again = Estimates::new();
        for (key, sample) in estimates.samples() {
            let requested = (sample.requested != NEVER).then_some(sample.requested);
            again.observe(key, requested, sample.actual);
        }
        assert!(again.samples().eq(estimates.samples()));
        assert_eq!(again.keys.len(), KEYS_MAX);
        assert_eq!(again.samples().count(), KEYS_MAX - 1 + RUNS_MAX);
    }

    #[test]
    fn an_outlived_prediction_doubles_until_it_lies_ahead() {
        assert_eq!(corrected(100, 105, 110, NEVER), 110);
        assert_eq!(corrected(100, 110, 110, NEVER), 120);
        assert_eq!(corrected(100, 119, 110, NEVER), 120);
        assert_eq!(corrected(100, 120, 110, NEVER), 140);
        // The bound holds until it is outlived too.
        assert_eq!(corrected(100, 120, 110, 125), 125);
        assert_eq!(corrected(100, 130, 110, 125), 140);
        // A clock that was set back, and ends of time.
        assert_eq!(corrected(100, 50, 40, NEVER), 101);
        assert_eq!(corrected(0, NEVER - 1, 5, NEVER), NEVER);
        assert_eq!(corrected(0, 10, NEVER, NEVER), NEVER);
    }
}
