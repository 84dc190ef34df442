//! Request bodies: JSON and YAML to one JSON object, with duplicate keys noted.
//!
//! One pass over the bytes builds the value, so this is also where nesting is bounded. Nothing here
//! knows a kind's fields; pruning and validation are `schema`'s.

use std::cell::{Cell, RefCell};
use std::fmt;

use rota_api::registry::Kind;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{ApiError, ApiResult};

/// Deepest nesting of a body. Manifests stay below 20; every recursive walk over objects relies on this.
pub const DEPTH_MAX: usize = 64;

/// Most duplicate keys that are remembered: enough to tell the author, no way to fill memory.
const DUPLICATES_MAX: usize = 64;

/// Media types that POST and PUT read.
pub const ACCEPTED: &str = "application/json, application/yaml";

/// A body as read.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The object.
    pub value: Value,
    /// Paths of keys that occurred more than once (the last one counts), such as `spec.template`.
    pub duplicates: Vec<String>,
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Yaml,
}

/// Reads the body of a create or update of `what`. Absent `kind` and `apiVersion` are filled in,
/// different ones refused.
pub fn decode(bytes: &[u8], content_type: Option<&str>, what: &Kind) -> ApiResult<Decoded> {
    let mut decoded = decode_object(bytes, content_type)?;
    check_kind(&mut decoded.value, what)?;
    Ok(decoded)
}

/// Fills in absent `kind` and `apiVersion`, refuses different ones and what is no object.
pub fn check_kind(value: &mut Value, what: &Kind) -> ApiResult<()> {
    let Some(object) = value.as_object_mut() else {
        return Err(ApiError::bad_request("the body must be an object"));
    };
    check_type(object, "apiVersion", &what.api_version())?;
    check_type(object, "kind", what.kind)
}

/// Reads a body that must be an object of whatever kind (Scale, plans).
pub fn decode_object(bytes: &[u8], content_type: Option<&str>) -> ApiResult<Decoded> {
    let decoded = match format_of(content_type)? {
        Format::Json => parse_json(bytes)?,
        Format::Yaml => parse_yaml(bytes)?,
    };
    if !decoded.value.is_object() {
        return Err(ApiError::bad_request(format!(
            "the request body must be an object, not {}",
            type_of(&decoded.value)
        )));
    }
    Ok(decoded)
}

/// Reads any JSON value (patches), noting duplicate keys.
pub fn parse_json(bytes: &[u8]) -> ApiResult<Decoded> {
    parse_text(utf8(bytes)?, "the request body")
}

/// The body as text.
pub fn utf8(bytes: &[u8]) -> ApiResult<&str> {
    std::str::from_utf8(bytes).map_err(|e| {
        let before = &bytes[..e.valid_up_to()];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
        ApiError::bad_request(format!(
            "the request body is not valid JSON: it is not UTF-8 at line {line} column {column}"
        ))
    })
}

/// As [`parse_json`], of a part of a body; `what` names it in errors.
pub fn parse_text(text: &str, what: &str) -> ApiResult<Decoded> {
    let state = State::default();
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Node { state: &state }
        .deserialize(&mut reader)
        .and_then(|v| reader.end().map(|()| v))
        .map_err(|e| ApiError::bad_request(format!("{what} is not valid JSON: {e}")))?;
    Ok(Decoded {
        value,
        duplicates: state.duplicates.into_inner(),
    })
}

fn parse_yaml(bytes: &[u8]) -> ApiResult<Decoded> {
    let bad =
        |why: String| ApiError::bad_request(format!("the request body is not valid YAML: {why}"));
    let text = std::str::from_utf8(bytes).map_err(|e| bad(e.to_string()))?;
    let mut documents = rota_api::yaml::documents(text).map_err(|e| bad(e.to_string()))?;
    let value = match documents.len() {
        1 => documents.remove(0),
        n => {
            return Err(ApiError::bad_request(format!(
                "the request body must be one YAML document, not {n}"
            )));
        }
    };
    if holds_nul(&value) {
        return Err(bad("it has a string with a NUL character".into()));
    }
    Ok(Decoded {
        value,
        duplicates: Vec::new(),
    })
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(s) => s.contains('\0'),
        Value::Array(list) => list.iter().any(holds_nul),
        Value::Object(map) => map.iter().any(|(k, v)| k.contains('\0') || holds_nul(v)),
        _ => false,
    }
}

fn format_of(content_type: Option<&str>) -> ApiResult<Format> {
    let media = content_type
        .unwrap_or("")
        .split(';')
        .next()
        .unwrap_or("")
        .trim()
        .to_ascii_lowercase();
    match media.as_str() {
        "" | "*/*" | "application/json" => Ok(Format::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Format::Yaml),
        "application/vnd.kubernetes.protobuf" => {
            let mut e = ApiError::unsupported_media_type(ACCEPTED);
            e.message = format!(
                "this server reads no protobuf bodies for this request; send {ACCEPTED} (with kubectl: write a manifest and use create -f or apply -f)"
            );
            Err(e)
        }
        m if m.ends_with("+json") => Ok(Format::Json),
        _ => Err(ApiError::unsupported_media_type(ACCEPTED)),
    }
}

fn check_type(object: &mut Map<String, Value>, key: &str, wanted: &str) -> ApiResult<()> {
    match object.get(key) {
        Some(Value::String(s)) if s == wanted => Ok(()),
        None | Some(Value::Null) => {
            object.insert(key.into(), Value::from(wanted));
            Ok(())
        }
        Some(Value::String(s)) if s.is_empty() => {
            object.insert(key.into(), Value::from(wanted));
            Ok(())
        }
        Some(Value::String(s)) => {
            let what = if key == "kind" { "kind" } else { "API version" };
            let shown: String = s.chars().take(128).collect();
            Err(ApiError::bad_request(format!(
                "the {what} in the data ({shown}) does not match the expected {what} ({wanted})"
            )))
        }
        Some(other) => Err(ApiError::bad_request(format!(
            "{key} must be a string, not {}",
            type_of(other)
        ))),
    }
}

/// JSON type for messages.
pub(crate) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[derive(Default)]
struct State {
    depth: Cell<usize>,
    duplicates: RefCell<Vec<String>>,
}

impl State {
    fn enter<E: serde::de::Error>(&self) -> Result<(), E> {
        let depth = self.depth.get() + 1;
        if depth > DEPTH_MAX {
            return Err(E::custom(format!("nested deeper than {DEPTH_MAX} levels")));
        }
        self.depth.set(depth);
        Ok(())
    }
    fn leave(&self) {
        self.depth.set(self.depth.get() - 1);
    }
    fn known(&self) -> usize {
        self.duplicates.borrow().len()
    }
    /// Puts a step in front of the paths that were noted since `mark`; paths grow from the inside
    /// out, so bodies without duplicates pay nothing.
    fn prefix(&self, mark: usize, step: impl Fn() -> String) {
        let mut all = self.duplicates.borrow_mut();
        if all.len() == mark {
            return;
        }
        let step = step();
        for path in all.iter_mut().skip(mark) {
            let dot = if path.starts_with('[') { "" } else { "." };
            *path = format!("{step}{dot}{path}");
        }
    }
}

#[derive(Clone, Copy)]
struct Node<'a> {
    state: &'a State,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

fn checked<E: serde::de::Error>(text: &str) -> Result<&str, E> {
    if text.contains('\0') {
        return Err(E::custom("a string must not contain a NUL character"));
    }
    Ok(text)
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number must be finite"))
    }
    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Value, E> {
        checked(v).map(|s| Value::String(s.to_owned()))
    }
    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Value, E> {
        // Borrowed means without escapes, and a raw NUL is no JSON.
        Ok(Value::String(v.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        self.state.enter::<A::Error>()?;
        let mut list = Vec::new();
        loop {
            let mark = self.state.known();
            match seq.next_element_seed(self)? {
                Some(item) => list.push(item),
                None => break,
            }
            let index = list.len() - 1;
            self.state.prefix(mark, || format!("[{index}]"));
        }
        self.state.leave();
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.state.enter::<A::Error>()?;
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            checked::<A::Error>(&key)
                .map_err(|_| A::Error::custom("a key must not contain a NUL character"))?;
            let mark = self.state.known();
            let value = map.next_value_seed(self)?;
            self.state.prefix(mark, || key.clone());
            match object.entry(key) {
                serde_json::map::Entry::Vacant(slot) => {
                    slot.insert(value);
                }
                serde_json::map::Entry::Occupied(mut slot) => {
                    let mut all = self.state.duplicates.borrow_mut();
                    if all.len() < DUPLICATES_MAX && !all.contains(slot.key()) {
                        all.push(slot.key().clone());
                    }
                    slot.insert(value);
                }
            }
        }
        self.state.leave();
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rota_api::registry;
    use serde_json::json;

    use super::*;

    fn job() -> Kind {
        registry::all().remove(0)
    }
    fn read(text: &str) -> ApiResult<Decoded> {
        decode(text.as_bytes(), None, &job())
    }
    fn refused(bytes: &[u8]) -> String {
        let e = decode(bytes, Some("application/json"), &job()).unwrap_err();
        assert_eq!((e.code, e.reason), (400, "BadRequest"));
        e.message
    }

    #[test]
    fn fills_in_or_checks_the_type() {
        let d = read(r#"{"metadata":{"name":"x"}}"#).unwrap();
        assert_eq!(
            d.value,
            json!({"apiVersion": "rota.dev/v1", "kind": "Job", "metadata": {"name": "x"}})
        );
        assert!(read(r#"{"kind":"Job","apiVersion":"rota.dev/v1"}"#).is_ok());
        for (bad, part) in [
            (r#"{"kind":"Task"}"#, "(Task)"),
            (r#"{"apiVersion":"v1"}"#, "(v1)"),
            (r#"{"kind":7}"#, "must be a string"),
        ] {
            assert!(read(bad).unwrap_err().message.contains(part), "{bad}");
        }
    }

    #[test]
    fn content_types() {
        let job = job();
        for json in [
            None,
            Some(""),
            Some("*/*"),
            Some("application/json"),
            Some("Application/JSON; charset=utf-8"),
            Some("application/merge-patch+json"),
        ] {
            assert!(decode(b"{}", json, &job).is_ok(), "{json:?}");
        }
        let yaml = decode(b"spec: {suspend: yes}\n", Some("application/yaml"), &job).unwrap();
        assert_eq!(yaml.value["spec"]["suspend"], json!(true));
        for (bad, part) in [
            ("text/plain", "accepted media types"),
            ("application/cbor", "accepted media types"),
            ("application/vnd.kubernetes.protobuf", "protobuf"),
        ] {
            let e = decode(b"k8s\0garbage", Some(bad), &job).unwrap_err();
            assert_eq!(e.code, 415);
            assert!(e.message.contains(part), "{}", e.message);
        }
        for bad in [
            &b"a: 1\n---\nb: 2\n"[..],
            b"",
            b"- a\n",
            b"a: \"x\\0\"\n",
            b"\xff",
        ] {
            let e = decode(bad, Some("application/yaml"), &job).unwrap_err();
            assert_eq!(e.code, 400);
        }
    }

    #[test]
    fn notes_duplicates_with_their_paths() {
        let d = read(r#"{"spec":{"a":1,"a":2,"l":[{},{"x":{"y":1,"y":2}}]},"spec2":1,"spec2":2}"#)
            .unwrap();
        assert_eq!(d.duplicates, ["spec.a", "spec.l[1].x.y", "spec2"]);
        assert_eq!(d.value["spec"]["a"], json!(2));
        let many: String = (0..1000)
            .map(|i| format!(r#""k{i}":1,"k{i}":2,"#))
            .collect();
        let d = read(&format!("{{{many}\"z\":1}}")).unwrap();
        assert_eq!(d.duplicates.len(), DUPLICATES_MAX);
    }

    #[test]
    fn hostile_json_is_refused_with_a_position() {
        let deep = "[".repeat(100_000);
        assert!(refused(deep.as_bytes()).contains("deeper than 64"));
        let ok = format!("{{\"a\":{}{}}}", "[".repeat(63), "]".repeat(63));
        assert!(read(&ok).is_ok());
        for bad in [
            &b"\xef\xbb\xbf{}"[..],
            b"\xff\xfe{\0}\0",
            b"{\"a\":\"\\ud800\"}",
            b"{\"a\":1e999}",
            b"{\"a\":\"\\u0000\"}",
            b"{\"a\":\"\0\"}",
            b"{\"\\u0000\":1}",
            b"{} x",
            b"{\"a\":1",
            b"{\"a\":01}",
            b"{\"a\":NaN}",
            b"",
            b"{\"a\":\"\xff\"}",
        ] {
            let message = refused(bad);
            assert!(message.contains("line 1"), "{message}");
        }
        for bad in ["[]", "1", "null", "\"x\""] {
            assert!(
                refused(bad.as_bytes()).contains("must be an object"),
                "{bad}"
            );
        }
        assert_eq!(read(r#"{"n":-0}"#).unwrap().value["n"].as_f64(), Some(-0.0));
        assert!(read(r#"{"n":18446744073709551616}"#).unwrap().value["n"].is_f64());
    }
}
