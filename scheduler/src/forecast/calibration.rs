//! Calibration: what past errors of forecasts say about the next one.

use std::collections::{BTreeMap, VecDeque};

use crate::spec::{NEVER, Time};

/// Errors kept: enough for a 95th percentile, few enough to follow a change of the load.
const KEPT: usize = 200;
/// Errors needed before anything is corrected.
const FEWEST: usize = 10;
/// Parts of which ratios are counted.
const ONE: i128 = 1 << 20;
/// How fast the level follows misses: in parts of a thousand per observation. Waits come in crowds
/// that are forecast long before the first of them is scored, so that faster steps overshoot.
const RATE: i64 = 5;
/// Levels are counted in parts of so many.
const LEVELS: i64 = 1_000_000;
/// Both sides of a ratio have the mean wait divided by this added, so that short waits say little.
const SLACK_PART: i128 = 5;

/// Makes forecasts of waits come true as often as they should: adaptive conformal prediction.
///
/// The score of a past forecast is how many times longer the wait was than forecast. A new forecast
/// is multiplied by the quantile of recent scores; which quantile moves up after each miss and down
/// after each hit, so that the rate of misses comes out right in the long run whatever the errors
/// are like (Gibbs, Candès: Adaptive Conformal Inference Under Distribution Shift, NeurIPS 2021).
///
/// What is scored is the first forecast of each wait, as it was told: see [`Calibration::tell`]. A
/// wait that outlasts what was told is a miss at that moment and not only when it ends, and until
/// then its score is what it has waited so far: otherwise nothing would be learnt from long waits
/// while they are many.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// What part of the waits should be within the forecast, in parts of [`LEVELS`].
    target: i64,
    level: i64,
    /// Forecast (before correction) and what happened, oldest first.
    past: VecDeque<(Time, Time)>,
    /// What still waits, by its id.
    open: BTreeMap<u64, Told>,
    /// The quantile of the scores in parts of [`ONE`], and what is added to both sides of a ratio.
    factor: Option<(i128, i128)>,
}

/// A forecast of a wait.
#[derive(Clone, Copy, Debug)]
struct Told {
    at: Time,
    predicted: Time,
    corrected: Time,
    missed: bool,
}

impl Calibration {
    /// For forecasts that are to hold for so many of a thousand.
    pub fn new(per_mille: u16) -> Self {
        let target = i64::from(per_mille.clamp(1, 999)) * LEVELS / 1000;
        Calibration {
            target,
            level: target,
            past: VecDeque::new(),
            open: BTreeMap::new(),
            factor: None,
        }
    }

    /// It is `now`: forecasts take into account what happened up to here. To be called before each
    /// round of forecasts.
    pub fn advance(&mut self, now: Time) {
        let mut misses = 0;
        for told in self.open.values_mut() {
            if !told.missed && now.saturating_sub(told.at) > told.corrected {
                told.missed = true;
                misses += 1;
            }
        }
        for _ in 0..misses {
            self.score(false);
        }
        self.factor = self.quantile(now);
    }

    /// The forecast of a wait, corrected. The first one of an `id` is scored: when the wait is over
    /// ([`Calibration::ended`]), or when it has lasted too long.
    pub fn tell(&mut self, id: u64, now: Time, predicted: Time) -> Time {
        let corrected = self.correct(predicted);
        if predicted != NEVER {
            self.open.entry(id).or_insert(Told {
                at: now,
                predicted: predicted.max(0),
                corrected,
                missed: false,
            });
        }
        corrected
    }

    /// A wait came to its end by a start. Nothing happens when nothing was told of it.
    pub fn ended(&mut self, id: u64, now: Time) {
        let Some(told) = self.open.remove(&id) else {
            return;
        };
        let waited = now.saturating_sub(told.at).max(0);
        if !told.missed {
            self.score(waited <= told.corrected);
        }
        if self.past.len() == KEPT {
            self.past.pop_front();
        }
        self.past.push_back((told.predicted, waited));
    }

    /// Only these still wait; of the others nothing is learnt.
    pub fn retain(&mut self, waits: impl Fn(u64) -> bool) {
        self.open.retain(|id, _| waits(*id));
    }

    /// A forecast came true or not.
    fn score(&mut self, hit: bool) {
        if self.past.len() >= FEWEST {
            let by = if hit {
                self.target - LEVELS
            } else {
                self.target
            };
            self.level = (self.level + by * RATE / 1000).clamp(self.target / 2, LEVELS);
        }
    }

    fn quantile(&self, now: Time) -> Option<(i128, i128)> {
        let n = self.past.len();
        if n < FEWEST {
            return None;
        }
        let sum: i128 = self
            .past
            .iter()
            .map(|(_, waited)| i128::from(*waited))
            .sum();
        let slack = sum / (SLACK_PART * n as i128) + 1;
        let missed = self.open.values().filter(|told| told.missed);
        let lasting = missed.map(|told| (told.predicted, now.saturating_sub(told.at)));
        let mut scores: Vec<i128> = (self.past.iter().copied().chain(lasting))
            .map(|(predicted, waited)| {
                let parts = (i128::from(waited) + slack) * ONE;
                over(parts, i128::from(predicted) + slack)
            })
            .collect();
        // The conformal rank; beyond the largest, the largest.
        let n = scores.len();
        let rank = over(i128::from(self.level) * (n as i128 + 1), i128::from(LEVELS));
        let place = (rank as usize).clamp(1, n) - 1;
        Some((*scores.select_nth_unstable(place).1, slack))
    }

    fn correct(&self, predicted: Time) -> Time {
        let Some((factor, slack)) = self.factor.filter(|_| predicted != NEVER) else {
            return predicted;
        };
        let corrected = (i128::from(predicted.max(0)) + slack) * factor / ONE - slack;
        Time::try_from(corrected.max(0)).unwrap_or(NEVER)
    }
}

/// Divided and rounded up, both being above zero: so a wait is covered by its own score.
fn over(dividend: i128, divisor: i128) -> i128 {
    (dividend + divisor - 1) / divisor
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits whose error has a shape that changes in the middle.
    fn errors() -> impl Iterator<Item = (Time, Time)> {
        let mut x: u64 = 7;
        (0..4000).map(move |i| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let predicted = (x >> 33) as Time % 10_000;
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let percent = if i < 2000 { 100 } else { 400 };
            let actual = predicted * ((x >> 33) as Time % percent) / 100;
            (predicted, actual)
        })
    }

    /// How many of a thousand held, when each wait comes so long after the one before it.
    fn covered(per_mille: u16, apart: Time) -> usize {
        let mut calibration = Calibration::new(per_mille);
        let mut hits = 0;
        let mut ends: BTreeMap<(Time, u64), ()> = BTreeMap::new();
        for (id, (predicted, actual)) in (0..).zip(errors()) {
            let now = id as Time * apart;
            while let Some(((end, id), ())) = ends.first_key_value().map(|(k, v)| (*k, *v))
                && end <= now
            {
                ends.pop_first();
                calibration.ended(id, end);
            }
            calibration.advance(now);
            hits += usize::from(actual <= calibration.tell(id, now, predicted));
            ends.insert((now + actual, id), ());
        }
        hits / 4
    }

    #[test]
    fn nine_of_ten_hold_also_after_the_errors_change() {
        // One wait at a time, and about a hundred.
        for apart in [40_000, 100] {
            let nine = covered(900, apart);
            assert!((880..=920).contains(&nine), "{nine} of 1000");
            let half = covered(500, apart);
            assert!((460..=540).contains(&half), "{half} of 1000");
        }
    }

    #[test]
    fn nothing_is_corrected_before_there_is_something_to_learn_from() {
        let mut calibration = Calibration::new(900);
        for id in 0..FEWEST as u64 {
            calibration.advance(0);
            assert_eq!(calibration.tell(id, 0, 100), 100);
            calibration.ended(id, 200);
        }
        assert_eq!(calibration.tell(100, 0, NEVER), NEVER);
        calibration.advance(0);
        assert_eq!(calibration.tell(101, 0, 100), 200);
    }

    #[test]
    fn a_wait_that_lasts_too_long_is_learnt_from_while_it_lasts() {
        let mut calibration = Calibration::new(900);
        for id in 0..20 {
            calibration.tell(id, 0, 100);
            calibration.ended(id, 100);
        }
        for id in 20..30 {
            calibration.tell(id, 0, 100);
        }
        calibration.advance(100);
        assert_eq!(calibration.tell(30, 100, 100), 100);
        calibration.advance(1000);
        assert_eq!(calibration.tell(31, 1000, 100), 1000);
        // What is given up teaches nothing.
        calibration.retain(|_| false);
        calibration.advance(1000);
        assert_eq!(calibration.tell(32, 1000, 100), 100);
    }
}
