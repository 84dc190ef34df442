//! Latencies, samples and the JSON that a benchmark prints.

use serde_json::{Value, json};

/// Limit slices of one run that differ by more than this say that the machine was not quiet.
const SPREAD_MAX: f64 = 1.5;

/// What a benchmark prints, and whether it may be believed.
pub(crate) struct Report {
    /// The object printed.
    pub(crate) json: Value,
    /// No operation failed, nothing was lost, and an independent list found every object.
    pub(crate) sound: bool,
}

/// Latencies in microseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(pub(crate) Vec<u32>);

impl Latencies {
    /// Adds those of another worker.
    pub(crate) fn merge(&mut self, other: Latencies) {
        self.0.extend(other.0);
    }

    /// The value below which this share of all lies, in milliseconds.
    pub(crate) fn quantile_ms(&mut self, q: f64) -> f64 {
        if self.0.is_empty() {
            return 0.0;
        }
        let at = ((self.0.len() - 1) as f64 * q).round() as usize;
        let (_, value, _) = self.0.select_nth_unstable(at);
        round(f64::from(*value) / 1000.0)
    }
}

/// Three decimals are more than the measurement carries.
pub(crate) fn round(x: f64) -> f64 {
    (x * 1000.0).round() / 1000.0
}

/// Middle value.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => None,
        _ if n % 2 == 1 => Some(sorted[n / 2]),
        _ => Some((sorted[n / 2 - 1] + sorted[n / 2]) / 2.0),
    }
}

/// The limit's slices as JSON: median, raw values, and their spread.
pub(crate) fn limit_json(what: &str, unit: &str, values: &[f64]) -> Value {
    let Some(middle) = median(values) else {
        return Value::Null;
    };
    let spread = spread(values);
    json!({
        "what": what,
        "unit": unit,
        "median": round(middle),
        "samples": values.iter().map(|v| round(*v)).collect::<Vec<_>>(),
        "spread": round(spread),
        "valid": spread <= SPREAD_MAX,
    })
}

/// Measured over limit, medians of both.
pub(crate) fn ratio(measured: &[f64], limit: &[f64]) -> Value {
    match (median(measured), median(limit)) {
        (Some(m), Some(l)) if l > 0.0 => json!(round(m / l)),
        _ => Value::Null,
    }
}

fn spread(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::MIN, f64::max);
    let min = values.iter().copied().fold(f64::MAX, f64::min);
    if min > 0.0 { max / min } else { f64::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_medians() {
        let mut l = Latencies((1..=1000).rev().map(|n| n * 1000).collect());
        assert_eq!(l.quantile_ms(0.5), 501.0);
        assert_eq!(l.quantile_ms(0.99), 990.0);
        assert_eq!(Latencies::default().quantile_ms(0.5), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_noisy_limit_is_void() {
        assert_eq!(limit_json("x", "1/s", &[10.0, 14.0])["valid"], true);
        assert_eq!(limit_json("x", "1/s", &[10.0, 16.0])["valid"], false);
        assert_eq!(limit_json("x", "1/s", &[]), Value::Null);
        assert_eq!(ratio(&[5.0], &[10.0]), json!(0.5));
        assert_eq!(ratio(&[5.0], &[]), Value::Null);
    }
}
