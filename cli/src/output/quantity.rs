//! Sorting and adding of values that may be numbers, times or resource quantities.

use std::cmp::Ordering;

use rota_api::quantity::Quantity;
use serde_json::Value;

/// Order of two values for `--sort-by`: numbers and quantities by size, else by text; absent first.
pub fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, _) => Ordering::Less,
        (_, None) => Ordering::Greater,
        (Some(Value::Number(x)), Some(Value::Number(y))) => x
            .as_f64()
            .partial_cmp(&y.as_f64())
            .unwrap_or(Ordering::Equal),
        (Some(Value::String(x)), Some(Value::String(y))) => {
            match (x.parse::<Quantity>(), y.parse::<Quantity>()) {
                (Ok(x), Ok(y)) => x.cmp(&y),
                _ => x.cmp(y),
            }
        }
        (Some(Value::Bool(x)), Some(Value::Bool(y))) => x.cmp(y),
        (Some(x), Some(y)) => x.to_string().cmp(&y.to_string()),
    }
}

/// A quantity that an object holds as text or number; zero where it holds none.
pub fn read(v: &Value) -> Quantity {
    serde_json::from_value(v.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_sort_by_size_and_names_by_text() {
        let mut v = [json!("1Gi"), json!("500Mi"), json!("2")];
        v.sort_by(|a, b| compare(Some(a), Some(b)));
        assert_eq!(v, [json!("2"), json!("500Mi"), json!("1Gi")]);
        assert_eq!(
            compare(Some(&json!("b")), Some(&json!("a"))),
            Ordering::Greater
        );
        assert_eq!(
            compare(Some(&json!(10)), Some(&json!(9))),
            Ordering::Greater
        );
        assert_eq!(compare(None, Some(&json!(0))), Ordering::Less);
    }
}
