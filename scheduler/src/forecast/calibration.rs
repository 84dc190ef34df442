//! Calibration: what past errors of forecasts say about the next one.

use std::collections::VecDeque;

use crate::spec::{NEVER, Time};

/// Errors kept: enough for a 95th percentile, few enough to follow a change of the load.
const KEPT: usize = 200;
/// Errors needed before anything is corrected.
const FEWEST: usize = 10;
/// Parts of which ratios and levels are counted.
const ONE: i128 = 1000;
/// How fast the level follows misses: in parts of [`ONE`] per observation.
const RATE: i64 = 10;

/// Makes forecasts of waits come true as often as they should: adaptive conformal prediction.
///
/// The score of a past forecast is how many times longer the wait was than forecast. A new forecast
/// is multiplied by the quantile of recent scores; which quantile moves up after each miss and down
/// after each hit, so that the rate of misses comes out right in the long run whatever the errors
/// are like (Gibbs, Candès: Adaptive Conformal Inference Under Distribution Shift, NeurIPS 2021).
/// Both sides of the ratio have a tenth of the mean wait added, so that short waits say little.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// What part of the waits should be within the forecast, in parts of [`ONE`].
    target: i64,
    level: i64,
    /// Forecast (before correction) and what happened, oldest first.
    past: VecDeque<(Time, Time)>,
}

impl Calibration {
    /// For forecasts that are to hold for so many of a thousand.
    pub fn new(per_mille: u16) -> Self {
        let target = i64::from(per_mille.clamp(1, 999));
        Calibration {
            target,
            level: target,
            past: VecDeque::new(),
        }
    }

    /// A wait that was forecast (before correction) as `predicted` took `actual`.
    pub fn observe(&mut self, predicted: Time, actual: Time) {
        if predicted == NEVER || actual == NEVER {
            return;
        }
        let (predicted, actual) = (predicted.max(0), actual.max(0));
        if self.past.len() >= FEWEST {
            let hit = actual <= self.correct(predicted);
            let by = if hit { self.target - 1000 } else { self.target };
            self.level = (self.level + by * RATE / 1000).clamp(self.target / 2, 1000);
        }
        if self.past.len() == KEPT {
            self.past.pop_front();
        }
        self.past.push_back((predicted, actual));
    }

    /// The forecast of a wait, corrected.
    pub fn correct(&self, predicted: Time) -> Time {
        if predicted == NEVER || self.past.len() < FEWEST {
            return predicted;
        }
        let sum: i128 = self
            .past
            .iter()
            .map(|(_, actual)| i128::from(*actual))
            .sum();
        let slack = sum / (10 * self.past.len() as i128) + 1;
        let score = |(predicted, actual): &(Time, Time)| {
            (i128::from(*actual) + slack) * ONE / (i128::from(*predicted) + slack)
        };
        let mut scores: Vec<i128> = self.past.iter().map(score).collect();
        scores.sort_unstable();
        let n = scores.len();
        // The conformal rank; beyond the largest, the largest.
        let rank = (self.level as usize * (n + 1)).div_ceil(1000).clamp(1, n);
        let corrected = (i128::from(predicted.max(0)) + slack) * scores[rank - 1] / ONE - slack;
        Time::try_from(corrected.max(0)).unwrap_or(NEVER)
    }
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

    #[test]
    fn nine_of_ten_hold_also_after_the_errors_change() {
        for (per_mille, least, most) in [(900, 880, 920), (500, 460, 540)] {
            let mut calibration = Calibration::new(per_mille);
            let (mut hits, mut n) = (0, 0);
            for (predicted, actual) in errors() {
                n += 1;
                hits += u32::from(actual <= calibration.correct(predicted));
                calibration.observe(predicted, actual);
            }
            let covered = hits * 1000 / n;
            assert!((least..=most).contains(&covered), "{covered} of 1000");
        }
    }

    #[test]
    fn nothing_is_corrected_before_there_is_something_to_learn_from() {
        let mut calibration = Calibration::new(900);
        assert_eq!(calibration.correct(50), 50);
        calibration.observe(NEVER, 10);
        for _ in 0..FEWEST {
            calibration.observe(100, 200);
        }
        // Ratios are rounded down to parts of a thousand.
        assert_eq!(calibration.correct(100), 199);
        assert_eq!(calibration.correct(NEVER), NEVER);
    }
}
