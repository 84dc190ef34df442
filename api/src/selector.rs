//! Label and field selectors: `labelSelector=` and `fieldSelector=` of lists and watches.

use std::collections::{BTreeMap, BTreeSet};

/// Most terms and values of a selector; far beyond what people write, little enough to match quickly.
const TERMS_MAX: usize = 1_000;
/// Longest selector that is read.
const TEXT_MAX: usize = 64 * 1024;

/// A parsed label selector; empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    terms: Vec<LabelTerm>,
}

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LabelTerm {
    /// Label key.
    pub key: String,
    /// What is asked of its value.
    pub op: LabelOp,
}

/// What a term asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LabelOp {
    /// The value is one of these.
    In(BTreeSet<String>),
    /// The label is absent or its value none of these.
    NotIn(BTreeSet<String>),
    /// The label is there.
    Exists,
    /// The label is absent.
    Absent,
    /// The value is an integer above this.
    Above(i64),
    /// The value is an integer below this.
    Below(i64),
}

/// Where labels are looked up.
pub trait Labels {
    /// Value of a label.
    fn get_label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for serde_json::Value {
    /// The value is the labels' JSON object; anything else has no labels.
    fn get_label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(|v| v.as_str())
    }
}

impl<T: Labels> Labels for Option<T> {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.as_ref().and_then(|l| l.get_label(key))
    }
}

impl<T: Labels + ?Sized> Labels for &T {
    fn get_label(&self, key: &str) -> Option<&str> {
        (**self).get_label(key)
    }
}

impl LabelSelector {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > TEXT_MAX {
            return Err(format!("selector is longer than {TEXT_MAX} bytes"));
        }
        let mut p = Lexer { text, at: 0 };
        let mut terms = Vec::new();
        let mut weight = 0;
        p.skip_space();
        if p.done() {
            return Ok(Self::default());
        }
        loop {
            let term = p.term()?;
            weight += match &term.op {
                LabelOp::In(v) | LabelOp::NotIn(v) => v.len().max(1),
                _ => 1,
            };
            if weight > TERMS_MAX {
                return Err(format!(
                    "selector has more than {TERMS_MAX} terms and values"
                ));
            }
            terms.push(term);
            p.skip_space();
            if p.done() {
                return Ok(LabelSelector { terms });
            }
            if !p.eat(',') {
                return Err(p.unexpected("a comma or the end"));
            }
        }
    }

    /// From terms that must all hold.
    pub fn all_of(terms: Vec<LabelTerm>) -> Self {
        LabelSelector { terms }
    }

    /// Its terms.
    pub fn terms(&self) -> &[LabelTerm] {
        &self.terms
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether these labels are selected.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        self.terms.iter().all(|t| {
            let value = labels.get_label(&t.key);
            let number = || value.and_then(|v| v.parse::<i64>().ok());
            match &t.op {
                LabelOp::In(set) => value.is_some_and(|v| set.contains(v)),
                LabelOp::NotIn(set) => value.is_none_or(|v| !set.contains(v)),
                LabelOp::Exists => value.is_some(),
                LabelOp::Absent => value.is_none(),
                LabelOp::Above(n) => number().is_some_and(|v| v > *n),
                LabelOp::Below(n) => number().is_some_and(|v| v < *n),
            }
        })
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }
    fn done(&self) -> bool {
        self.at >= self.text.len()
    }
    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
    }
    fn eat(&mut self, c: char) -> bool {
        let found = self.rest().starts_with(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }
    fn unexpected(&self, wanted: &str) -> String {
        match self.rest().chars().next() {
            Some(c) => format!("found {c:?} at position {}, expected {wanted}", self.at + 1),
            None => format!("the selector ends, expected {wanted}"),
        }
    }
    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let end = rest
            .find(|c: char| c.is_whitespace() || "=!<>(),".contains(c))
            .unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn key(&mut self) -> Result<String, String> {
        self.skip_space();
        let start = self.at;
        let key = self.word();
        if key.is_empty() {
            return Err(self.unexpected("a label key"));
        }
        match crate::labels::check_key(key) {
            Ok(()) => Ok(key.to_string()),
            Err(why) => Err(format!("key {key:?} at position {}: {why}", start + 1)),
        }
    }

    fn value(&mut self) -> Result<String, String> {
        self.skip_space();
        let start = self.at;
        let value = self.word();
        match crate::labels::check_value(value) {
            Ok(()) => Ok(value.to_string()),
            Err(why) => Err(format!("value {value:?} at position {}: {why}", start + 1)),
        }
    }

    fn term(&mut self) -> Result<LabelTerm, String> {
        self.skip_space();
        if self.eat('!') {
            let key = self.key()?;
            return Ok(LabelTerm {
                key,
                op: LabelOp::Absent,
            });
        }
        let key = self.key()?;
        self.skip_space();
        let one = |v: String| BTreeSet::from([v]);
        let op = if self.done() || self.rest().starts_with(',') {
            LabelOp::Exists
        } else if self.eat('=') {
            self.eat('=');
            LabelOp::In(one(self.value()?))
        } else if self.rest().starts_with("!=") {
            self.at += 2;
            LabelOp::NotIn(one(self.value()?))
        } else if self.rest().starts_with(['<', '>']) {
            let above = self.eat('>') || !self.eat('<');
            self.skip_space();
            let start = self.at;
            let word = self.word();
            let n = word.parse().map_err(|_| {
                format!(
                    "value {word:?} at position {}: must be an integer",
                    start + 1
                )
            })?;
            if above {
                LabelOp::Above(n)
            } else {
                LabelOp::Below(n)
            }
        } else {
            let start = self.at;
            match self.word() {
                "in" => LabelOp::In(self.set()?),
                "notin" => LabelOp::NotIn(self.set()?),
                _ => {
                    self.at = start;
                    return Err(self.unexpected("one of = == != in notin < > or a comma"));
                }
            }
        };
        Ok(LabelTerm { key, op })
    }

    fn set(&mut self) -> Result<BTreeSet<String>, String> {
        self.skip_space();
        if !self.eat('(') {
            return Err(self.unexpected("an opening parenthesis"));
        }
        self.skip_space();
        if self.rest().starts_with(')') {
            return Err(self.unexpected("at least one value"));
        }
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value()?);
            if values.len() > TERMS_MAX {
                return Err(format!(
                    "selector has more than {TERMS_MAX} terms and values"
                ));
            }
            self.skip_space();
            if self.eat(')') {
                return Ok(values);
            }
            if !self.eat(',') {
                return Err(self.unexpected("a comma or a closing parenthesis"));
            }
        }
    }
}

/// A parsed field selector; which fields a kind knows is for the server to check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

/// One requirement on a field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldTerm {
    /// Path such as `spec.nodeName`.
    pub field: String,
    /// The value, with escapes resolved.
    pub value: String,
    /// True for `=`, false for `!=`.
    pub equal: bool,
}

impl FieldSelector {
    /// Reads `a=b,c==d,e!=f`; `\,`, `\=` and `\\` stand for themselves in values.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > TEXT_MAX {
            return Err(format!("selector is longer than {TEXT_MAX} bytes"));
        }
        let mut terms = Vec::new();
        for piece in split_unescaped(text) {
            if piece.is_empty() {
                continue;
            }
            if terms.len() >= TERMS_MAX {
                return Err(format!("selector has more than {TERMS_MAX} terms"));
            }
            let invalid =
                || format!("invalid selector: {piece:?}; can't understand a term without = or !=");
            let at = piece.find('=').ok_or_else(invalid)?;
            let (field, equal) = match piece[..at].strip_suffix('!') {
                Some(field) => (field, false),
                None => (&piece[..at], true),
            };
            let rest = &piece[at + 1..];
            let raw = if equal {
                rest.strip_prefix('=').unwrap_or(rest)
            } else {
                rest
            };
            if field.is_empty() {
                return Err(invalid());
            }
            terms.push(FieldTerm {
                field: field.to_string(),
                value: unescape(raw)?,
                equal,
            });
        }
        Ok(FieldSelector { terms })
    }

    /// Its terms.
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether an object is selected whose fields `lookup` finds; an absent field counts as empty.
    pub fn matches<'a>(&self, mut lookup: impl FnMut(&str) -> Option<&'a str>) -> bool {
        self.terms
            .iter()
            .all(|t| (lookup(&t.field).unwrap_or("") == t.value) == t.equal)
    }
}

fn split_unescaped(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let s = rest?;
        let mut escaped = false;
        for (i, c) in s.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                ',' => {
                    rest = Some(&s[i + 1..]);
                    return Some(&s[..i]);
                }
                _ => {}
            }
        }
        rest = None;
        Some(s)
    })
}

fn unescape(raw: &str) -> Result<String, String> {
    let mut out = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(e @ ('\\' | ',' | '=')) => out.push(e),
                Some(e) => {
                    return Err(format!(
                        "invalid field selector: \\{e} is no escape sequence"
                    ));
                }
                None => return Err("invalid field selector: it ends in a backslash".into()),
            },
            '=' => {
                return Err(format!(
                    "invalid field selector: unescaped = in value {raw:?}"
                ));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    #[test]
    fn label_terms() {
        let l = labels(&[("a", "b"), ("n", "5"), ("x.io/y", "")]);
        for (text, selected) in [
            ("", true),
            ("a=b", true),
            ("a==b", true),
            ("a = b , n", true),
            ("a!=b", false),
            ("z!=b", true),
            ("a in (b, c)", true),
            ("a in (c)", false),
            ("a notin (c,d)", true),
            ("z notin (c)", true),
            ("!z", true),
            ("!a", false),
            ("! a", false),
            ("n>4", true),
            ("n>5", false),
            ("n<6,a=b", true),
            ("a>1", false),
            ("x.io/y=", true),
            ("x.io/y", true),
            ("in in (in)", false),
        ] {
            let s = LabelSelector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(s.matches(&l), selected, "{text}");
        }
    }

    #[test]
    fn label_errors_say_what_and_where() {
        for (text, part) in [
            ("a in ()", "at least one value"),
            ("!!a", "position 2"),
            ("a=b=c", "position 4"),
            ("a,,b", "position 3"),
            ("a in (b", "ends"),
            ("a in b", "parenthesis"),
            ("=b", "label key"),
            ("a b", "position 3"),
            ("a>x", "integer"),
            ("a/b/c=d", "key"),
            (",", "label key"),
            ("a,", "label key"),
        ] {
            let e = LabelSelector::parse(text).unwrap_err();
            assert!(e.contains(part), "{text}: {e}");
        }
        assert!(
            LabelSelector::parse(&format!("a=b{}", ",a=b".repeat(1000)))
                .unwrap_err()
                .contains("1000")
        );
        assert!(LabelSelector::parse(&"a".repeat(1 << 20)).is_err());
    }

    #[test]
    fn field_terms() {
        let s =
            FieldSelector::parse(r"spec.nodeName=n1,status.phase!=Failed,m==a\,b\=c\\").unwrap();
        assert_eq!(s.terms().len(), 3);
        assert_eq!(s.terms()[2].value, r"a,b=c\");
        assert!(s.matches(|f| match f {
            "spec.nodeName" => Some("n1"),
            "m" => Some(r"a,b=c\"),
            _ => None,
        }));
        assert!(FieldSelector::parse("").unwrap().is_empty());
        for bad in ["a", "=b", "a=b=c", r"a=\x", r"a=\"] {
            assert!(FieldSelector::parse(bad).is_err(), "{bad}");
        }
        assert!(
            FieldSelector::parse("spec.unschedulable!=")
                .unwrap()
                .matches(|_| Some("true"))
        );
    }
}
