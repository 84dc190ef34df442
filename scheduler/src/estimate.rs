//! Estimates: how long tasks run.

use crate::spec::{NEVER, Time};

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
