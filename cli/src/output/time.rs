//! Durations and ages as kubectl writes and reads them.

use std::time::Duration;

use jiff::Timestamp;

/// An age in the short form of tables: `42s`, `3m12s`, `5h`, `2d`.
pub fn short(seconds: i64) -> String {
    let (s, m, h, d) = (seconds, seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |a: i64, au: &str, b: i64, bu: &str| {
        if b == 0 {
            format!("{a}{au}")
        } else {
            format!("{a}{au}{b}{bu}")
        }
    };
    match seconds {
        i64::MIN..=-2 => "<invalid>".into(),
        -1..=0 => "0s".into(),
        1..=119 => format!("{s}s"),
        120..=599 => pair(m, "m", s % 60, "s"),
        600..=10799 => format!("{m}m"),
        10800..=28799 => pair(h, "h", m % 60, "m"),
        28800..=172799 => format!("{h}h"),
        172800..=691199 => pair(d, "d", h % 24, "h"),
        691200..=63071999 => format!("{d}d"),
        63072000..=252287999 => pair(d / 365, "y", d % 365, "d"),
        _ => format!("{}y", d / 365),
    }
}

/// Age of an RFC 3339 time; `<unknown>` where there is none.
pub fn age(time: Option<&str>, now: Timestamp) -> String {
    match time.and_then(|t| t.parse::<Timestamp>().ok()) {
        Some(t) => short(now.as_second() - t.as_second()),
        None => "<unknown>".into(),
    }
}

/// A duration flag: `30s`, `5m`, `1h30m`, `250ms`, or plain seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration such as 30s, 5m or 1h30m");
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |i| digits + i);
        let seconds = match &rest[digits..unit_end] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(bad()),
        };
        total = Duration::try_from_secs_f64(number * seconds)
            .ok()
            .and_then(|d| total.checked_add(d))
            .ok_or_else(bad)?;
        rest = &rest[unit_end..];
    }
    if text.is_empty() {
        Err(bad())
    } else {
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ages_have_the_steps_of_kubectl() {
        for (s, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10799, "179m"),
            (10800, "3h"),
            (11100, "3h5m"),
            (28800, "8h"),
            (172800, "2d"),
            (180000, "2d2h"),
            (691200, "8d"),
            (63072000, "2y"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(short(s), want, "{s}");
        }
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(duration("30").unwrap().as_secs(), 30);
        assert_eq!(duration("1h30m").unwrap().as_secs(), 5400);
        assert_eq!(duration("250ms").unwrap().as_millis(), 250);
        assert_eq!(duration("1.5m").unwrap().as_secs(), 90);
        for bad in ["", "x", "5x", "-1s", "5m3", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
