//! YAML as kubectl reads and writes it, over `serde_json::Value`.
//!
//! Reading is strict where being lenient loses data: duplicate keys, integers that do not fit and
//! unknown tags are errors, and every size that an author can blow up has a budget.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_yaml::granit_parser::{Event, Parser, ScalarStyle};

/// Deepest nesting that is read; the same limit as for JSON bodies.
const DEPTH_MAX: usize = 64;
/// Most nodes (maps, lists and scalars) of a text: a request body of 3 MiB has fewer unless it is hostile.
const NODES_MAX: usize = 1_000_000;
/// Most events that aliases may add; people use anchors for a few blocks, bombs for millions.
const ALIAS_EVENTS_MAX: usize = 50_000;
/// Most documents of a text.
const DOCUMENTS_MAX: usize = 10_000;
/// Below this a float with an integral value is exactly that integer.
const EXACT_INTEGER_MAX: f64 = 9_007_199_254_740_992.0;

/// Why a text is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What is wrong, in one line.
    pub message: String,
    /// Line, from 1; 0 if unknown.
    pub line: u64,
    /// Column, from 1; 0 if unknown.
    pub column: u64,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            return f.write_str(&self.message);
        }
        write!(
            f,
            "line {}, column {}: {}",
            self.line, self.column, self.message
        )
    }
}
impl std::error::Error for Error {}

/// All documents of a text, in order; empty ones are left out.
pub fn documents(text: &str) -> Result<Vec<Value>, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 2 * NODES_MAX,
            max_documents: DOCUMENTS_MAX,
        },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: ALIAS_EVENTS_MAX,
        },
        duplicate_keys: serde_yaml::options::DuplicateKeyPolicy::Error,
        legacy_octal_numbers: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    let read: Vec<Read> =
        serde_yaml::from_multiple_with_options(text, options).map_err(|e| Error {
            line: e.location().map_or(0, |l| l.line()),
            column: e.location().map_or(0, |l| l.column()),
            message: one_line(&e),
        })?;
    if read.iter().any(|r| r.whole_floats) {
        refuse_broken_integers(text)?;
    }
    Ok(read
        .into_iter()
        .map(|r| r.value)
        .filter(|v| !v.is_null())
        .collect())
}

/// One document, as `kubectl get -o yaml` would write it.
pub fn to_string(value: &Value) -> String {
    // Writing to a String fails only for types that YAML cannot show; JSON values all can.
    serde_yaml::to_string(value).unwrap_or_default()
}

/// The error without the position that it appends in different wordings.
fn one_line(error: &serde_yaml::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().next().unwrap_or("").trim();
    // The reader's advice to programmers is none for who wrote the manifest.
    let line = line
        .split(", set DuplicateKeyPolicy")
        .next()
        .unwrap_or(line)
        .to_string();
    match line.rfind(" at line ").or_else(|| line.find(": line ")) {
        Some(at) if at > 0 => line[..at].to_string(),
        _ => line,
    }
}

/// A float with an integral value may stem from an integer literal that the reader could not hold
/// (beyond 64 bit, or `089` which is no octal number). Those change silently, so they are refused.
fn refuse_broken_integers(text: &str) -> Result<(), Error> {
    for event in Parser::new_from_str(text) {
        let Ok((event, span)) = event else {
            return Ok(());
        };
        let Event::Scalar(literal, ScalarStyle::Plain, _, None) = &event else {
            continue;
        };
        let digits = literal.strip_prefix(['-', '+']).unwrap_or(literal);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit() || b == b'_') {
            continue;
        }
        let plain: String = literal.chars().filter(|c| *c != '_').collect();
        let why = if digits.len() > 1 && digits.starts_with('0') && digits.contains(['8', '9']) {
            "begins with 0 like an octal number but is none"
        } else if plain.parse::<i64>().is_err() && plain.parse::<u64>().is_err() {
            "does not fit into 64 bits"
        } else {
            continue;
        };
        let cut: String = literal.chars().take(40).collect();
        return Err(Error {
            message: format!("integer {cut} {why}; quote it if it is text"),
            line: span.start.line() as u64,
            column: span.start.col() as u64 + 1,
        });
    }
    Ok(())
}

/// A value, and whether a float in it has an integral value.
struct Read {
    value: Value,
    whole_floats: bool,
}

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ReadVisitor)
    }
}

struct ReadVisitor;

fn plain<E>(value: impl Into<Value>) -> Result<Read, E> {
    Ok(Read {
        value: value.into(),
        whole_floats: false,
    })
}

impl<'de> Visitor<'de> for ReadVisitor {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Read, E> {
        plain(v)
    }
    fn visit_i64<E>(self, v: i64) -> Result<Read, E> {
        plain(v)
    }
    fn visit_u64<E>(self, v: u64) -> Result<Read, E> {
        plain(v)
    }
    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Read, E> {
        let whole = v.fract() == 0.0;
        let value = if whole && v.abs() < EXACT_INTEGER_MAX {
            Value::from(v as i64)
        } else {
            Number::from_f64(v)
                .map(Value::Number)
                .ok_or_else(|| E::custom("a number must be finite"))?
        };
        Ok(Read {
            value,
            whole_floats: whole,
        })
    }
    fn visit_str<E>(self, v: &str) -> Result<Read, E> {
        plain(v)
    }
    fn visit_string<E>(self, v: String) -> Result<Read, E> {
        plain(v)
    }
    fn visit_unit<E>(self) -> Result<Read, E> {
        plain(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Read, E> {
        plain(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Read, D::Error> {
        Read::deserialize(d)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Read, A::Error> {
        let (mut list, mut whole_floats) = (Vec::new(), false);
        while let Some(item) = seq.next_element::<Read>()? {
            whole_floats |= item.whole_floats;
            list.push(item.value);
        }
        Ok(Read {
            value: Value::Array(list),
            whole_floats,
        })
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
        let (mut object, mut whole_floats) = (Map::new(), false);
        while let Some((key, item)) = map.next_entry::<String, Read>()? {
            whole_floats |= item.whole_floats;
            object.insert(key, item.value);
        }
        Ok(Read {
            value: Value::Object(object),
            whole_floats,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn one(text: &str) -> Value {
        documents(text).unwrap_or_else(|e| panic!("{text}: {e}"))[0].clone()
    }

    #[test]
    fn reads_like_kubectl() {
        assert_eq!(
            one("mode: 0644\non: yes\nno: off\nx: 1.0\nf: 0.5\ns: '012'\nn: ~\n"),
            json!({"mode": 420, "on": true, "no": false, "x": 1, "f": 0.5, "s": "012", "n": null})
        );
        assert_eq!(
            documents("---\na: 1\n---\n# nothing\n---\nb: 2\n...\n").unwrap(),
            vec![json!({"a": 1}), json!({"b": 2})]
        );
        assert_eq!(
            one("a: &x {k: v}\nb: *x\n"),
            json!({"a": {"k": "v"}, "b": {"k": "v"}})
        );
        assert!(documents("").unwrap().is_empty());
        assert!(documents("\u{feff}a: 1").is_ok());
    }

    #[test]
    fn writes_what_it_reads_and_what_kubectl_reads() {
        for text in [
            "yes",
            "no",
            "on",
            "off",
            "y",
            "1:20",
            "1_000",
            "0644",
            "2026-01-01",
            "<<",
            "=",
            "null",
            "",
            " x",
            "a: b",
            "- a",
            "#",
            "line\nline\n",
            "\ttab",
        ] {
            let value = json!({"k": text, "n": 1, "l": [text], "e": {}, "z": []});
            assert_eq!(one(&to_string(&value)), value, "{}", to_string(&value));
        }
        assert!(!to_string(&json!({"k": "yes"})).contains("k: yes"));
    }

    #[test]
    fn refuses_what_would_change_silently() {
        for (text, line) in [
            ("a: 1\nb: 089\n", 2),
            ("a: 18446744073709551616\n", 1),
            ("a: -9223372036854775809\n", 1),
            ("a: 1\na: 2\n", 2),
            ("a: !!python/object:os.system x\n", 1),
            ("a: .nan\n", 1),
        ] {
            let e = documents(text).unwrap_err();
            assert_eq!(e.line, line, "{text}: {e}");
        }
    }

    #[test]
    fn refuses_bombs_fast() {
        let started = std::time::Instant::now();
        let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
        for i in 1..9 {
            let p = i - 1;
            laughs.push_str(&format!(
                "a{i}: &a{i} [*a{p},*a{p},*a{p},*a{p},*a{p},*a{p},*a{p},*a{p},*a{p}]\n"
            ));
        }
        assert!(documents(&laughs).is_err());
        assert!(documents(&"[".repeat(40_000)).is_err());
        assert!(documents(&"a:\n ".repeat(3_000)).is_err());
        assert!(documents("a: &a [*a]\n").is_err());
        assert!(documents("a: &a {<<: *a}\n").is_err());
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }
}
