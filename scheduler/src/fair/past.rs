//! Past use: what somebody held, averaged over the past with old use counting less.
//!
//! With half-life h, the average of the use u is the exponentially weighted one,
//! `ln 2 / h · ∫ u(s) · 2^(-(now - s) / h) ds`: constant use for ever has itself as its average. It
//! is an amount, so it can be added to what is held now, whatever the half-life. While u does not
//! change over a span d it becomes `average · 2^(-d/h) + u · (1 - 2^(-d/h))`, which is what
//! [`Past::settle`] does, lazily: only when u changes or somebody asks.

use crate::spec::Time;

/// Bits after the point in stored averages.
const FRACTION: u32 = 16;
/// Bits after the point in factors.
const FACTOR: u32 = 32;
/// Use beyond this counts as this, so that products fit 128 bits.
const HELD_MOST: i128 = 1 << 72;
/// After so many half-lives nothing is left of any amount.
const GONE: Time = 100;

/// `2^(-1/2^(i+1))` in [`FACTOR`] bits, each the square root of the one before.
const ROOTS: [u64; 16] = {
    let mut roots = [0; 16];
    // 2^-1 with 62 bits.
    let mut root: u128 = 1 << 61;
    let mut i = 0;
    while i < 16 {
        root = (root << 62).isqrt();
        roots[i] = (root >> (62 - FACTOR)) as u64;
        i += 1;
    }
    roots
};

/// `2^(-span/half_life)` in [`FACTOR`] bits.
fn decay(span: Time, half_life: Time) -> u64 {
    let whole = span / half_life;
    if whole >= GONE.min(FACTOR as Time) {
        return 0;
    }
    // The fraction in 16 bits, a table entry for each bit set.
    let part = (i128::from(span % half_life) << 16) / i128::from(half_life);
    let mut factor = 1u64 << FACTOR;
    for (i, root) in ROOTS.iter().enumerate() {
        if part >> (15 - i) & 1 == 1 {
            factor = ((u128::from(factor) * u128::from(*root)) >> FACTOR) as u64;
        }
    }
    factor >> whole
}

/// The average after a span over which `held` was held. Rounds down, so that what is gone becomes 0.
fn mix(average: i128, held: i128, factor: u64) -> i128 {
    let held = held.clamp(0, HELD_MOST) << FRACTION;
    let kept = i128::from(factor);
    // Each product is below 2^(72+16+32).
    (average * kept + held * ((1 << FACTOR) - kept)) >> FACTOR
}

/// An average of use per resource, as of a moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past {
    average: Vec<i128>,
    since: Time,
}

impl Past {
    /// Takes into account that `held` was held since the last call. Nothing is remembered when
    /// `half_life` is 0. A clock that goes back changes nothing.
    pub fn settle(&mut self, held: &[i128], half_life: Time, now: Time) {
        if half_life <= 0 {
            self.average.clear();
            self.since = now;
            return;
        }
        if now <= self.since {
            return;
        }
        let factor = decay(now.saturating_sub(self.since), half_life);
        self.since = now;
        self.average.resize(held.len(), 0);
        for (average, held) in self.average.iter_mut().zip(held) {
            *average = mix(*average, *held, factor);
        }
    }

    /// What [`Past::settle`] would make of it now, without doing it.
    pub fn view(&self, half_life: Time, now: Time) -> View<'_> {
        let factor = match now.saturating_sub(self.since) {
            _ if half_life <= 0 => None,
            span if span <= 0 => Some(1 << FACTOR),
            span => Some(decay(span, half_life)),
        };
        View { past: self, factor }
    }

    /// Nothing of it is left, as of the last call of [`Past::settle`].
    pub fn is_none(&self) -> bool {
        self.average.iter().all(|a| a >> FRACTION == 0)
    }
}

/// Past use as of now.
pub(crate) struct View<'a> {
    past: &'a Past,
    /// Decay since it was settled; none when the past does not count.
    factor: Option<u64>,
}

impl View<'_> {
    /// The average of one resource, of which `held` has been held since it was settled.
    pub fn amount(&self, r: usize, held: i128) -> i128 {
        let average = self.past.average.get(r).copied().unwrap_or(0);
        self.factor
            .map_or(0, |factor| mix(average, held, factor) >> FRACTION)
    }
}
