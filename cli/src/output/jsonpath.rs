//! JSONPath templates as kubectl has them: text around `{expressions}`, `range`, filters, slices.

use std::cmp::Ordering;

use serde_json::Value;

use super::quantity;
use crate::error::{CliError, Result};

/// A parsed template.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Path(Path),
    Range(Path, Vec<Part>),
}

/// A path such as `.status.conditions[?(@.type=="Ready")].status`.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Root,
    Field(String),
    Wildcard,
    Descend,
    Index(i64),
    Slice(Option<i64>, Option<i64>, i64),
    Union(Vec<Step>),
    Filter(Operand, Option<(Op, Operand)>),
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Path(Path),
    Literal(Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// Nested ranges and filters deeper than this are not written by people.
const MAX_DEPTH: usize = 16;

fn bad(what: impl std::fmt::Display) -> CliError {
    CliError::new(
        format!("JSONPath: {what}"),
        "for example '{.items[*].metadata.name}' or '{.status.conditions[?(@.type==\"Ready\")].status}'",
    )
}

impl Template {
    /// Reads a template; one without braces is one expression.
    pub fn parse(text: &str) -> Result<Template> {
        let text = text.trim_matches('\'');
        let braced = if text.contains('{') {
            text.to_string()
        } else {
            format!("{{{text}}}")
        };
        let mut reader = Reader::new(&braced);
        let parts = template(&mut reader, 0)?;
        Ok(Template { parts })
    }

    /// Fills the template.
    pub fn render(&self, root: &Value) -> Result<String> {
        let mut out = String::new();
        fill(&self.parts, root, root, &mut out)?;
        Ok(out)
    }
}

impl Path {
    /// Reads one path, in braces or not, with or without its first dot.
    pub fn parse(text: &str) -> Result<Path> {
        let text = text.trim();
        let inner = text
            .strip_prefix('{')
            .and_then(|t| t.strip_suffix('}'))
            .unwrap_or(text);
        let mut reader = Reader::new(inner);
        let path = path(&mut reader, 0, true)?;
        reader.spaces();
        match reader.peek() {
            None => Ok(path),
            Some(c) => Err(bad(format!("unexpected {c:?} in {text:?}"))),
        }
    }

    /// All values that the path leads to.
    pub fn find<'a>(&self, from: &'a Value) -> Vec<&'a Value> {
        walk(&self.steps, from, from)
    }
}

fn fill(parts: &[Part], root: &Value, current: &Value, out: &mut String) -> Result<()> {
    for p in parts {
        match p {
            Part::Text(t) => out.push_str(t),
            Part::Path(p) => {
                let shown: Vec<String> = walk(&p.steps, root, current)
                    .into_iter()
                    .map(show)
                    .collect();
                out.push_str(&shown.join(" "));
            }
            Part::Range(over, body) => {
                for item in walk(&over.steps, root, current) {
                    fill(body, root, item, out)?;
                }
            }
        }
    }
    Ok(())
}

/// A value as text: strings bare, all else as JSON.
pub fn show(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn walk<'a>(steps: &[Step], root: &'a Value, from: &'a Value) -> Vec<&'a Value> {
    let mut at = vec![from];
    for s in steps {
        let mut next = Vec::new();
        for v in at {
            step(s, root, v, &mut next);
        }
        at = next;
    }
    at
}

fn step<'a>(s: &Step, root: &'a Value, v: &'a Value, out: &mut Vec<&'a Value>) {
    match s {
        Step::Root => out.push(root),
        Step::Field(name) => out.extend(v.get(name.as_str())),
        Step::Wildcard => match v {
            Value::Array(items) => out.extend(items),
            Value::Object(map) => out.extend(map.values()),
            _ => {}
        },
        Step::Descend => {
            out.push(v);
            match v {
                Value::Array(items) => items.iter().for_each(|i| step(s, root, i, out)),
                Value::Object(map) => map.values().for_each(|i| step(s, root, i, out)),
                _ => {}
            }
        }
        Step::Index(i) => {
            if let Value::Array(items) = v {
                let at = if *i < 0 { items.len() as i64 + i } else { *i };
                out.extend(usize::try_from(at).ok().and_then(|at| items.get(at)));
            }
        }
        Step::Slice(start, end, by) => {
            if let Value::Array(items) = v {
                let n = items.len() as i64;
                let clamp = |i: i64| (if i < 0 { n + i } else { i }).clamp(0, n);
                let (mut i, end) = (clamp(start.unwrap_or(0)), clamp(end.unwrap_or(n)));
                while i < end {
                    out.push(&items[i as usize]);
                    i += by;
                }
            }
        }
        Step::Union(steps) => steps.iter().for_each(|s| step(s, root, v, out)),
        Step::Filter(left, test) => {
            if let Value::Array(items) = v {
                out.extend(
                    items
                        .iter()
                        .filter(|i| passes(left, test.as_ref(), root, i)),
                );
            }
        }
    }
}

fn passes(left: &Operand, test: Option<&(Op, Operand)>, root: &Value, item: &Value) -> bool {
    let value = |o: &Operand| match o {
        Operand::Literal(v) => Some(v.clone()),
        Operand::Path(p) => walk(&p.steps, root, item).first().map(|v| (*v).clone()),
    };
    let left = value(left);
    let Some((op, right)) = test else {
        return left.is_some();
    };
    let right = value(right);
    let (Some(l), Some(r)) = (&left, &right) else {
        return *op == Op::Ne && left != right;
    };
    let order = quantity::compare(Some(l), Some(r));
    match op {
        Op::Eq => l == r || show(l) == show(r),
        Op::Ne => show(l) != show(r),
        Op::Lt => order == Ordering::Less,
        Op::Le => order != Ordering::Greater,
        Op::Gt => order == Ordering::Greater,
        Op::Ge => order != Ordering::Less,
    }
}

struct Reader {
    chars: Vec<char>,
    at: usize,
}

impl Reader {
    fn new(text: &str) -> Self {
        Reader {
            chars: text.chars().collect(),
            at: 0,
        }
    }
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }
    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }
    fn eat(&mut self, s: &str) -> bool {
        let n = s.chars().count();
        let hit = self.chars[self.at..].iter().take(n).copied().eq(s.chars());
        if hit {
            self.at += n;
        }
        hit
    }
    fn spaces(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }
    fn expect(&mut self, s: &str) -> Result<()> {
        self.spaces();
        if self.eat(s) {
            Ok(())
        } else {
            Err(bad(format!("{s:?} expected at character {}", self.at + 1)))
        }
    }
}

/// Parts up to `{end}` when `depth` > 0, else up to the end of the text.
fn template(r: &mut Reader, depth: usize) -> Result<Vec<Part>> {
    if depth > MAX_DEPTH {
        return Err(bad("too deeply nested"));
    }
    let mut parts = Vec::new();
    let mut text = String::new();
    loop {
        match r.next() {
            None if depth > 0 => return Err(bad("{range} without {end}")),
            None => break,
            Some('{') => {
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                if expression(r, depth, &mut parts)? {
                    return Ok(parts);
                }
            }
            Some(c) => text.push(c),
        }
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

/// One `{...}`; true if it was `{end}`.
fn expression(r: &mut Reader, depth: usize, parts: &mut Vec<Part>) -> Result<bool> {
    loop {
        r.spaces();
        match r.peek() {
            None => return Err(bad("} is missing")),
            Some('}') => {
                r.at += 1;
                return Ok(false);
            }
            Some('"' | '\'') => parts.push(Part::Text(quoted(r)?)),
            Some(_) if r.eat("range ") => {
                r.spaces();
                let over = path(r, 0, false)?;
                r.expect("}")?;
                parts.push(Part::Range(over, template(r, depth + 1)?));
                return Ok(false);
            }
            Some(_) if r.eat("end") => {
                r.expect("}")?;
                return if depth > 0 {
                    Ok(true)
                } else {
                    Err(bad("{end} without {range}"))
                };
            }
            Some(_) => parts.push(Part::Path(path(r, 0, false)?)),
        }
    }
}

fn quoted(r: &mut Reader) -> Result<String> {
    let quote = r.next();
    let mut out = String::new();
    loop {
        match r.next() {
            None => return Err(bad("a quote is not closed")),
            c if c == quote => return Ok(out),
            Some('\\') => match r.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some(c) => out.push(c),
                None => return Err(bad("a quote is not closed")),
            },
            Some(c) => out.push(c),
        }
    }
}

fn path(r: &mut Reader, depth: usize, bare: bool) -> Result<Path> {
    if depth > MAX_DEPTH {
        return Err(bad("too deeply nested"));
    }
    let start = r.at;
    let mut steps = Vec::new();
    if r.eat("$") {
        steps.push(Step::Root);
    } else {
        r.eat("@");
    }
    if bare && r.peek().is_some_and(is_name) {
        steps.push(Step::Field(name(r)));
    }
    loop {
        if r.eat("..") {
            steps.push(Step::Descend);
            if r.eat("*") {
                steps.push(Step::Wildcard);
            } else if r.peek().is_some_and(is_name) {
                steps.push(Step::Field(name(r)));
            }
        } else if r.eat(".") {
            if r.eat("*") {
                steps.push(Step::Wildcard);
            } else if r.peek().is_some_and(is_name) {
                steps.push(Step::Field(name(r)));
            }
        } else if r.eat("[") {
            steps.push(bracket(r, depth)?);
        } else {
            break;
        }
    }
    if r.at == start {
        let found = r.peek().map_or("the end".to_string(), |c| format!("{c:?}"));
        return Err(bad(format!("a path starts with a dot, not with {found}")));
    }
    Ok(Path { steps })
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '\\' | '/')
}

fn name(r: &mut Reader) -> String {
    let mut out = String::new();
    while let Some(c) = r.peek().filter(|c| is_name(*c)) {
        r.at += 1;
        match c {
            '\\' => out.extend(r.next()),
            c => out.push(c),
        }
    }
    out
}

fn bracket(r: &mut Reader, depth: usize) -> Result<Step> {
    r.spaces();
    if r.eat("?(") {
        r.spaces();
        let left = operand(r, depth)?;
        r.spaces();
        let op = if r.eat("==") {
            Some(Op::Eq)
        } else if r.eat("!=") {
            Some(Op::Ne)
        } else if r.eat("<=") {
            Some(Op::Le)
        } else if r.eat(">=") {
            Some(Op::Ge)
        } else if r.eat("<") {
            Some(Op::Lt)
        } else if r.eat(">") {
            Some(Op::Gt)
        } else {
            None
        };
        let test = match op {
            Some(op) => {
                r.spaces();
                Some((op, operand(r, depth)?))
            }
            None => None,
        };
        r.expect(")")?;
        r.expect("]")?;
        return Ok(Step::Filter(left, test));
    }
    let mut all = Vec::new();
    loop {
        r.spaces();
        all.push(match r.peek() {
            Some('*') => {
                r.at += 1;
                Step::Wildcard
            }
            Some('"' | '\'') => Step::Field(quoted(r)?),
            _ => index(r)?,
        });
        r.spaces();
        if !r.eat(",") {
            break;
        }
    }
    r.expect("]")?;
    Ok(match <[Step; 1]>::try_from(all) {
        Ok([one]) => one,
        Err(all) => Step::Union(all),
    })
}

fn index(r: &mut Reader) -> Result<Step> {
    let mut numbers: Vec<Option<i64>> = Vec::new();
    loop {
        r.spaces();
        let mut digits = String::new();
        while let Some(c) = r.peek().filter(|c| c.is_ascii_digit() || *c == '-') {
            r.at += 1;
            digits.push(c);
        }
        numbers.push(match digits.as_str() {
            "" => None,
            d => Some(
                d.parse()
                    .map_err(|_| bad(format!("{d:?} is not an index")))?,
            ),
        });
        r.spaces();
        if !r.eat(":") {
            break;
        }
    }
    match numbers.as_slice() {
        [Some(i)] => Ok(Step::Index(*i)),
        [start, end] => Ok(Step::Slice(*start, *end, 1)),
        [start, end, by] => match by.unwrap_or(1) {
            by if by > 0 => Ok(Step::Slice(*start, *end, by)),
            _ => Err(bad("the step of a slice must be positive")),
        },
        _ => Err(bad(
            "an index is a number, a slice a:b, a name in quotes, * or ?(...)",
        )),
    }
}

fn operand(r: &mut Reader, depth: usize) -> Result<Operand> {
    match r.peek() {
        Some('@' | '$' | '.') => Ok(Operand::Path(path(r, depth + 1, false)?)),
        Some('"' | '\'') => Ok(Operand::Literal(Value::String(quoted(r)?))),
        _ => {
            let mut word = String::new();
            while let Some(c) = r
                .peek()
                .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | '_'))
            {
                r.at += 1;
                word.push(c);
            }
            if word.is_empty() {
                return Err(bad(
                    "a filter compares paths (@.field), strings, numbers, true and false",
                ));
            }
            Ok(Operand::Literal(
                serde_json::from_str(&word).unwrap_or(Value::String(word)),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn sample() -> Value {
        json!({"kind": "List", "items": [
            {"metadata": {"name": "a", "labels": {"rota.dev/job": "x"}}, "status": {"n": 3, "conditions": [{"type": "Ready", "status": "True"}, {"type": "Failed", "status": "False"}]}},
            {"metadata": {"name": "b", "labels": {}}, "status": {"n": 12, "ok": true, "conditions": []}}]})
    }

    fn render(t: &str) -> String {
        Template::parse(t).unwrap().render(&sample()).unwrap()
    }

    #[test]
    fn what_kubectl_users_write() {
        for (template, want) in [
            ("{.items[*].metadata.name}", "a b"),
            (".items[0].metadata.name", "a"),
            ("{.items[-1].metadata.name}", "b"),
            ("{.items[0:1].metadata.name}", "a"),
            ("{.items[::1].metadata.name}", "a b"),
            ("{.items[0,1].metadata.name}", "a b"),
            (
                "{range .items[*]}{.metadata.name}={.status.n}{\"\\n\"}{end}",
                "a=3\nb=12\n",
            ),
            (
                "{.items[0].status.conditions[?(@.type==\"Ready\")].status}",
                "True",
            ),
            ("{.items[?(@.status.n>5)].metadata.name}", "b"),
            ("{.items[?(@.status.ok)].metadata.name}", "b"),
            ("{.items[?(@.status.ok==true)].metadata.name}", "b"),
            ("{.items[?(@.metadata.name!='a')].metadata.name}", "b"),
            ("{.items[0].metadata.labels.rota\\.dev/job}", "x"),
            ("{.items[0].metadata.labels['rota.dev/job']}", "x"),
            ("{..name}", "a b"),
            ("{$.kind}: {.items[0].status.n}{'\\t'}!", "List: 3\t!"),
            ("{.items[*]['metadata'].name}", "a b"),
            ("{.nothing}", ""),
            (
                "{.items[0].metadata}",
                r#"{"labels":{"rota.dev/job":"x"},"name":"a"}"#,
            ),
            (
                "{range .items[*]}{range .status.conditions[*]}{.type};{end}|{end}",
                "Ready;Failed;||",
            ),
        ] {
            assert_eq!(render(template), want, "{template}");
        }
    }

    #[test]
    fn mistakes_are_errors_and_never_panics() {
        for t in [
            "{",
            "{.a",
            "{range .items[*]}x",
            "{end}",
            "{.a[}",
            "{.a[x]}",
            "{.a[?(]}",
            "{.a[?(@.b==)]}",
            "{'x}",
            "{.a[::0]}",
            "{.a[1:2:3:4]}",
            "{foo}",
            "{.a[99999999999999999999]}",
        ] {
            assert!(Template::parse(t).is_err(), "{t}");
        }
        let deep = "[?(@".repeat(100);
        assert!(Template::parse(&format!("{{.a{deep}}}")).is_err());
    }
}
