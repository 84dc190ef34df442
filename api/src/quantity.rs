//! Quantity: an exact amount of a resource in Kubernetes syntax.
//!
//! Kubernetes' syntax is read (`500m`, `1.5Gi`, `2e3`, plain numbers), one canonical form is
//! written, and arithmetic is exact. The finest step is one thousandth. Base units for the
//! scheduler are thousandths for what can be shared ([`in_thousandths`]) and whole units (bytes,
//! pieces) for everything else.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What the schema demands of a quantity written as a string.
pub const QUANTITY_PATTERN: &str =
    r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(([kMGTPE]|[KMGTPE]i|m)|[eE][+-]?[0-9]{1,3})?$";

/// Longest quantity that is read at all.
const TEXT_MAX: usize = 64;

/// Whether one piece of the resource is a device of which tasks can have a share: its name ends in
/// `/gpu`, whoever makes it.
pub fn is_shared_device(resource: &str) -> bool {
    resource.ends_with("/gpu")
}

/// Whether the base unit of the resource is one thousandth: cpu and devices that can be shared.
pub fn in_thousandths(resource: &str) -> bool {
    resource == "cpu" || is_shared_device(resource)
}

/// An exact, non-negative amount. Compared and hashed by amount, not by spelling.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    milli: i128,
    binary: bool,
}

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a quantity: {why}")]
pub struct QuantityError {
    /// What was read (cut).
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Quantity {
    /// Zero.
    pub const ZERO: Quantity = Quantity {
        milli: 0,
        binary: false,
    };

    /// From thousandths (`500` is `500m`).
    pub fn from_milli(milli: i64) -> Self {
        Quantity {
            milli: milli.max(0).into(),
            binary: false,
        }
    }

    /// From whole units.
    pub fn from_units(units: i64) -> Self {
        Quantity {
            milli: i128::from(units.max(0)) * 1000,
            binary: false,
        }
    }

    /// From bytes, written with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Self {
        Quantity {
            milli: i128::from(bytes.max(0)) * 1000,
            binary: true,
        }
    }

    /// Thousandths; saturates at `i64::MAX`.
    pub fn milli(&self) -> i64 {
        i64::try_from(self.milli).unwrap_or(i64::MAX)
    }

    /// Whole units, rounded up: what a request must be counted as.
    pub fn units_ceil(&self) -> i64 {
        i64::try_from((self.milli + 999) / 1000).unwrap_or(i64::MAX)
    }

    /// Whole units, rounded down: what a capacity may be counted as.
    pub fn units_floor(&self) -> i64 {
        i64::try_from(self.milli / 1000).unwrap_or(i64::MAX)
    }

    /// Base units of the named resource, rounded up.
    pub fn base_ceil(&self, resource: &str) -> i64 {
        if in_thousandths(resource) {
            self.milli()
        } else {
            self.units_ceil()
        }
    }

    /// Base units of the named resource, rounded down.
    pub fn base_floor(&self, resource: &str) -> i64 {
        if in_thousandths(resource) {
            self.milli()
        } else {
            self.units_floor()
        }
    }

    /// A quantity of the named resource from base units.
    pub fn from_base(resource: &str, base: i64) -> Self {
        match resource {
            _ if in_thousandths(resource) => Self::from_milli(base),
            "memory" | "ephemeral-storage" => Self::from_bytes(base),
            _ => Self::from_units(base),
        }
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.milli == 0
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.milli == other.milli
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.milli.cmp(&other.milli)
    }
}
impl std::hash::Hash for Quantity {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.milli.hash(state);
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let err = |why| QuantityError {
            text: text.chars().take(TEXT_MAX).collect(),
            why,
        };
        if text.is_empty() {
            return Err(err("it is empty"));
        }
        if text.len() > TEXT_MAX {
            return Err(err("it is longer than 64 characters"));
        }
        if text.starts_with('-') {
            return Err(err("it must not be negative"));
        }
        let body = text.strip_prefix('+').unwrap_or(text);
        let digits_end = body
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(body.len());
        let (number, suffix) = body.split_at(digits_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(err(
                "it must be a number with an optional suffix such as m, k, M, G, Ki, Mi or Gi",
            ));
        }
        let (multiplier, exponent, binary): (i128, i32, bool) = match suffix {
            "" => (1, 0, false),
            "m" => (1, -3, false),
            "k" => (1, 3, false),
            "M" => (1, 6, false),
            "G" => (1, 9, false),
            "T" => (1, 12, false),
            "P" => (1, 15, false),
            "E" => (1, 18, false),
            "Ki" => (1 << 10, 0, true),
            "Mi" => (1 << 20, 0, true),
            "Gi" => (1 << 30, 0, true),
            "Ti" => (1 << 40, 0, true),
            "Pi" => (1 << 50, 0, true),
            "Ei" => (1 << 60, 0, true),
            s if s.starts_with(['e', 'E']) => {
                let e = s[1..]
                    .parse::<i32>()
                    .map_err(|_| err("its exponent is not a number"))?;
                (1, e, false)
            }
            _ => {
                return Err(err(
                    "its suffix is none of m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei",
                ));
            }
        };
        let too_large = || err("it is larger than 9223372036854775807 units");
        let mut digits: i128 = 0;
        for d in whole.bytes().chain(fraction.bytes()) {
            digits = digits
                .checked_mul(10)
                .and_then(|v| v.checked_add(i128::from(d - b'0')))
                .ok_or_else(too_large)?;
        }
        if digits == 0 {
            return Ok(Quantity { milli: 0, binary });
        }
        // value in thousandths = digits * multiplier * 10^(exponent + 3 - fraction digits)
        let power = exponent
            .saturating_add(3)
            .saturating_sub(fraction.len() as i32);
        let scaled = digits.checked_mul(multiplier).ok_or_else(too_large)?;
        let milli = if power >= 0 {
            if power > 40 {
                return Err(too_large());
            }
            10i128
                .checked_pow(power as u32)
                .and_then(|p| scaled.checked_mul(p))
                .ok_or_else(too_large)?
        } else {
            let p = 10i128
                .checked_pow(power.unsigned_abs())
                .ok_or_else(|| err("it is finer than one thousandth"))?;
            if scaled % p != 0 {
                return Err(err("it is finer than one thousandth"));
            }
            scaled / p
        };
        if milli / 1000 > i128::from(i64::MAX) {
            return Err(too_large());
        }
        Ok(Quantity { milli, binary })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.milli % 1000 != 0 {
            return write!(f, "{}m", self.milli);
        }
        let units = self.milli / 1000;
        let table: &[(i128, &str)] = if self.binary {
            &[
                (1 << 60, "Ei"),
                (1 << 50, "Pi"),
                (1 << 40, "Ti"),
                (1 << 30, "Gi"),
                (1 << 20, "Mi"),
                (1 << 10, "Ki"),
            ]
        } else {
            &[
                (1_000_000_000_000_000_000, "E"),
                (1_000_000_000_000_000, "P"),
                (1_000_000_000_000, "T"),
                (1_000_000_000, "G"),
                (1_000_000, "M"),
                (1_000, "k"),
            ]
        };
        for (size, suffix) in table {
            if units != 0 && units % size == 0 {
                return write!(f, "{}{suffix}", units / size);
            }
        }
        write!(f, "{units}")
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a quantity such as 500m, 2 or 1Gi")
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Quantity, E> {
                v.parse().map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Quantity, E> {
                v.to_string().parse().map_err(E::custom)
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Quantity, E> {
                v.to_string().parse().map_err(E::custom)
            }
            fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Quantity, E> {
                format!("{v}").parse().map_err(E::custom)
            }
        }
        d.deserialize_any(Visitor)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true, "pattern": QUANTITY_PATTERN, "maxLength": TEXT_MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(s: &str) -> Quantity {
        s.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn reads_and_writes_the_canonical_form() {
        for (text, milli, canonical) in [
            ("0", 0, "0"),
            ("1", 1000, "1"),
            ("500m", 500, "500m"),
            ("0.5", 500, "500m"),
            ("1000m", 1000, "1"),
            ("1.5Gi", 1536 * 1024 * 1024 * 1000, "1536Mi"),
            ("1024Mi", 1 << 30, "1Gi"),
            ("2e3", 2_000_000, "2k"),
            ("128974848", 128_974_848_000, "128974848"),
        ] {
            let v = q(text);
            if text == "1024Mi" {
                assert_eq!(v.units_ceil(), milli, "{text}");
            } else {
                assert_eq!(v.milli(), milli, "{text}");
            }
            assert_eq!(v.to_string(), canonical, "{text}");
            assert_eq!(q(&v.to_string()), v);
        }
    }

    #[test]
    fn base_units_are_thousandths_of_what_can_be_shared() {
        for (resource, text, base) in [
            ("cpu", "1500m", 1500),
            ("nvidia.com/gpu", "500m", 500),
            ("amd.com/gpu", "2", 2000),
            ("example.com/licence", "2", 2),
            ("memory", "1Ki", 1024),
        ] {
            assert_eq!(q(text).base_ceil(resource), base, "{resource}");
            assert_eq!(q(text).base_floor(resource), base, "{resource}");
            assert_eq!(Quantity::from_base(resource, base), q(text), "{resource}");
        }
        assert_eq!(q("1500m").base_ceil("example.com/licence"), 2);
        assert_eq!(q("1500m").base_floor("example.com/licence"), 1);
    }

    #[test]
    fn refuses_nonsense_with_a_reason() {
        for text in [
            "",
            "-1",
            "NaN",
            "1e1000000",
            "9999999999Ei",
            "1.2.3",
            "1X",
            "0.0001",
            "1Gii",
            ".",
            "e3",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }
}
