//! Amounts of resources as people say them: `1.5 cpu`, `12Gi memory`, `2 nvidia.com/gpu`.

use rota_api::quantity::{Quantity, in_thousandths};
use serde_json::Value;

use super::quantity;

/// Suffixes of bytes, largest first.
const BINARY: [(i64, &str); 6] = [
    (1 << 60, "Ei"),
    (1 << 50, "Pi"),
    (1 << 40, "Ti"),
    (1 << 30, "Gi"),
    (1 << 20, "Mi"),
    (1 << 10, "Ki"),
];
/// Seconds of an hour.
const HOUR: i64 = 3600;

/// Whether a resource is counted in bytes.
fn in_bytes(resource: &str) -> bool {
    matches!(resource, "memory" | "ephemeral-storage")
}

/// A number of thousandths with as many decimals as it needs, at most `decimals`.
fn decimal(thousandths: i128, decimals: usize) -> String {
    let step = 10i128.pow(3u32.saturating_sub(decimals as u32));
    let rounded = (thousandths + step / 2) / step * step;
    let text = format!("{}.{:03}", rounded / 1000, rounded % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// An amount without its resource's name: `1.5`, `12Gi`, `2`.
pub fn number(resource: &str, amount: Quantity) -> String {
    if in_bytes(resource) {
        return bytes(amount.units_ceil());
    }
    if in_thousandths(resource) {
        return decimal(amount.milli().into(), 3);
    }
    amount.units_ceil().to_string()
}

fn bytes(n: i64) -> String {
    match BINARY.iter().find(|(size, _)| n >= *size) {
        Some((size, suffix)) => {
            let thousandths = i128::from(n) * 1000 / i128::from(*size);
            format!("{}{suffix}", decimal(thousandths, 1))
        }
        None => n.to_string(),
    }
}

/// All amounts of a map of resources, those that are nothing left out: `1.5 cpu, 12Gi memory`.
/// `-` where there is none.
pub fn all(resources: &Value) -> String {
    listed(resources, |resource, amount| {
        format!("{} {resource}", number(resource, amount))
    })
}

/// The same of amounts times seconds: `90 cpu-s`, `1.5 cpu-h`, `64Gi memory-s`.
pub fn all_seconds(resources: &Value) -> String {
    listed(resources, |resource, amount| {
        // What makes an hour of it worth saying: one piece, or a Gi.
        let one = if in_bytes(resource) { 1 << 30 } else { 1 };
        if amount.units_floor() / one < HOUR {
            return format!("{} {resource}-s", number(resource, amount));
        }
        let hourly = match in_bytes(resource) {
            true => bytes(amount.units_ceil() / HOUR),
            false => decimal(i128::from(amount.milli()) / i128::from(HOUR), 1),
        };
        format!("{hourly} {resource}-h")
    })
}

fn listed(resources: &Value, show: impl Fn(&str, Quantity) -> String) -> String {
    let each: Vec<String> = resources
        .as_object()
        .into_iter()
        .flatten()
        .map(|(resource, amount)| (resource, quantity::read(amount)))
        .filter(|(_, amount)| !amount.is_zero())
        .map(|(resource, amount)| show(resource, amount))
        .collect();
    if each.is_empty() {
        "-".into()
    } else {
        each.join(", ")
    }
}

/// A share from 0 to 1, as a status holds it, in percent; `-` where there is none.
pub fn share(text: &Value) -> String {
    let share = text.as_str().and_then(|s| s.parse::<f64>().ok());
    match share {
        Some(share) if (0.0..=1e6).contains(&share) => {
            format!("{}%", decimal((share * 100_000.0).round() as i128, 1))
        }
        _ => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn amounts_are_in_units_that_people_use() {
        let resources = json!({"cpu": "1500m", "memory": "12884901888", "nvidia.com/gpu": "500m", "x": 3, "none": "0"});
        assert_eq!(
            all(&resources),
            "1.5 cpu, 12Gi memory, 0.5 nvidia.com/gpu, 3 x"
        );
        assert_eq!(all(&json!({"memory": "1100Mi"})), "1.1Gi memory");
        assert_eq!(all(&json!({"memory": "1023"})), "1023 memory");
        assert_eq!(all(&json!({"cpu": "1005m"})), "1.005 cpu");
        assert_eq!(all(&Value::Null), "-");
    }

    #[test]
    fn work_is_in_hours_when_it_is_much() {
        assert_eq!(all_seconds(&json!({"cpu": "90"})), "90 cpu-s");
        assert_eq!(all_seconds(&json!({"cpu": "5400"})), "1.5 cpu-h");
        assert_eq!(all_seconds(&json!({"memory": "64Gi"})), "64Gi memory-s");
        assert_eq!(all_seconds(&json!({"memory": "7200Gi"})), "2Gi memory-h");
    }

    #[test]
    fn shares_are_percents() {
        assert_eq!(share(&json!("0.125")), "12.5%");
        assert_eq!(share(&json!("1")), "100%");
        assert_eq!(share(&json!("0")), "0%");
        assert_eq!(share(&Value::Null), "-");
        assert_eq!(share(&json!("often")), "-");
    }
}
