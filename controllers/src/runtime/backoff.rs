//! Waiting times between tries.
//!
//! Jitter is a pure function of (seed, what is tried, how often), so that a simulation with the
//! same seed waits the same, while real processes with random seeds do not try in step.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// First wait after a transient failure.
pub const BASE: Duration = Duration::from_millis(100);
/// Longest wait after many failures in a row: short enough that recovery is seen within the 10 s
/// that convergence is promised in.
pub const CAP: Duration = Duration::from_secs(8);

/// `duration` times a factor from 0.75 to 1.25.
pub fn jitter(seed: u64, what: &str, count: u32, duration: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    (seed, what, count).hash(&mut hasher);
    let unit = (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64;
    duration.mul_f64(0.75 + unit / 2.0)
}

/// Wait before try number `failures + 1`; `failures` counts from 1.
pub fn delay(seed: u64, what: &str, failures: u32) -> Duration {
    let doubled = BASE.saturating_mul(1u32 << failures.saturating_sub(1).min(10));
    jitter(seed, what, failures, doubled.min(CAP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap() {
        assert!(delay(1, "a", 1) <= BASE.mul_f64(1.25));
        assert!(delay(1, "a", 2) >= BASE.mul_f64(1.5));
        assert!(delay(1, "a", 40) <= CAP.mul_f64(1.25));
        assert_eq!(delay(1, "a", 3), delay(1, "a", 3));
        assert_ne!(delay(1, "a", 3), delay(2, "a", 3));
    }
}
