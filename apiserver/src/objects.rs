//! Stored and served bytes of an object.
//!
//! Stored: canonical JSON that begins `{"apiVersion":..,"kind":..,"metadata":{` and holds no
//! resourceVersion. Served ("ready"): the same bytes with `"resourceVersion":"N",` spliced in as
//! the first member of metadata, so that no read ever serializes an object again.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use rota_store::Version;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Largest encoding buffer that a thread keeps; the usual object has 1 KiB.
const SCRATCH_MAX: usize = 64 << 10;

const RV_KEY: &[u8] = b"\"resourceVersion\":\"";

/// Length of `{"apiVersion":"A","kind":"K","metadata":{` for a kind: where the version is spliced in.
pub fn splice_offset(api_version: &str, kind: &str) -> usize {
    r#"{"apiVersion":"","kind":"","metadata":{"#.len() + api_version.len() + kind.len()
}

/// Canonical stored bytes of an object; `metadata.resourceVersion` is left out.
pub fn encode(object: &Value) -> Bytes {
    // Written into memory that is used again, then copied out in one piece of the right size: the
    // bytes live long, and growing them by doubling would cost more than the copy.
    thread_local! {
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|out| {
        out.clear();
        write_object(out, object);
        let bytes = Bytes::copy_from_slice(out);
        if out.capacity() > SCRATCH_MAX {
            *out = Vec::new();
        }
        bytes
    })
}

fn write_object(out: &mut Vec<u8>, object: &Value) {
    let empty = Map::new();
    let top = object.as_object().unwrap_or(&empty);
    let text = |key: &str| top.get(key).and_then(Value::as_str).unwrap_or("");
    out.extend_from_slice(b"{\"apiVersion\":\"");
    out.extend_from_slice(text("apiVersion").as_bytes());
    out.extend_from_slice(b"\",\"kind\":\"");
    out.extend_from_slice(text("kind").as_bytes());
    out.extend_from_slice(b"\",\"metadata\":{");
    let meta = top
        .get("metadata")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    write_members(out, meta, &["resourceVersion"], true);
    out.push(b'}');
    write_members(out, top, &["apiVersion", "kind", "metadata"], false);
    out.push(b'}');
}

fn write_members(out: &mut Vec<u8>, map: &Map<String, Value>, skip: &[&str], mut first: bool) {
    for (key, value) in map {
        if skip.contains(&key.as_str()) {
            continue;
        }
        if !first {
            out.push(b',');
        }
        first = false;
        // Writing to a Vec cannot fail, and a Value holds nothing that JSON cannot say.
        let _ = serde_json::to_writer(&mut *out, key);
        out.push(b':');
        let _ = serde_json::to_writer(&mut *out, value);
    }
}

/// Ready bytes: stored bytes with the version spliced in.
pub fn splice(stored: &[u8], offset: usize, version: Version) -> Bytes {
    let offset = offset.min(stored.len());
    let mut out = BytesMut::with_capacity(stored.len() + 48);
    out.put_slice(&stored[..offset]);
    out.put_slice(RV_KEY);
    put_number(&mut out, version);
    // An object always has a name, so metadata is never empty and the comma is right.
    out.put_slice(b"\",");
    out.put_slice(&stored[offset..]);
    out.freeze()
}

/// Ready bytes with another version, for the last state of a deleted object.
pub fn resplice(ready: &[u8], offset: usize, version: Version) -> Bytes {
    let start = offset + RV_KEY.len();
    let Some(tail) = ready
        .get(start..)
        .and_then(|t| t.iter().position(|b| *b == b'"').map(|e| &t[e..]))
    else {
        return Bytes::copy_from_slice(ready);
    };
    let mut out = BytesMut::with_capacity(ready.len() + 8);
    out.put_slice(&ready[..start]);
    put_number(&mut out, version);
    out.put_slice(tail);
    out.freeze()
}

fn put_number(out: &mut BytesMut, n: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = n;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

/// One object in the watch cache: ready bytes plus what selectors look at. No parsed tree is kept.
#[derive(Debug)]
pub struct Object {
    /// `<namespace>/<name>` or `<name>`.
    pub key: Arc<str>,
    /// Version of the write that made this state.
    pub version: Version,
    /// Ready JSON.
    pub bytes: Bytes,
    /// metadata.labels.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the kind's selectable fields, in the order of its row; empty where absent.
    pub fields: Box<[Box<str>]>,
}

impl Object {
    /// From stored bytes.
    pub fn new(key: Arc<str>, stored: &[u8], version: Version, index: &FieldIndex) -> Self {
        let (labels, fields) = index.extract(stored);
        Object {
            key,
            version,
            bytes: splice(stored, index.offset, version),
            labels,
            fields,
        }
    }

    /// The same object as it looks in the event of its deletion.
    pub fn deleted_at(&self, version: Version, offset: usize) -> Self {
        Object {
            key: self.key.clone(),
            version,
            bytes: resplice(&self.bytes, offset, version),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
        }
    }

    /// Namespace, empty for cluster-wide objects.
    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(ns, _)| ns)
    }

    /// Name.
    pub fn name(&self) -> &str {
        self.key.split_once('/').map_or(&self.key, |(_, name)| name)
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(k, _)| &**k == key)
            .map(|(_, v)| &**v)
    }

    /// The whole object, parsed. Ready bytes are our own, so a failure is damage in the store.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }
}

/// What is taken out of an object's bytes when it enters the cache.
#[derive(Debug)]
pub struct FieldIndex {
    root: Node,
    count: usize,
    /// Where resourceVersion is spliced in.
    pub offset: usize,
}

#[derive(Debug, Default)]
struct Node {
    children: Vec<(String, Node)>,
    slot: Option<usize>,
    labels: bool,
}

impl FieldIndex {
    /// For a kind with these selectable paths (`spec.nodeName`).
    pub fn new(paths: &[String], offset: usize) -> Self {
        let mut root = Node::default();
        root.at("metadata").at("labels").labels = true;
        for (i, path) in paths.iter().enumerate() {
            let mut node = &mut root;
            for part in path.split('.') {
                node = node.at(part);
            }
            node.slot = Some(i);
        }
        FieldIndex {
            root,
            count: paths.len(),
            offset,
        }
    }

    #[allow(clippy::type_complexity)]
    fn extract(&self, bytes: &[u8]) -> (Box<[(Box<str>, Box<str>)]>, Box<[Box<str>]>) {
        let mut found = Found {
            labels: Vec::new(),
            fields: vec![Box::from(""); self.count],
        };
        let mut de = serde_json::Deserializer::from_slice(bytes);
        // Only damaged bytes fail here; then the object is served but matches no selector.
        let _ = Seed {
            node: &self.root,
            found: &mut found,
        }
        .deserialize(&mut de);
        (found.labels.into(), found.fields.into())
    }
}

impl Node {
    fn at(&mut self, name: &str) -> &mut Node {
        let i = match self.children.iter().position(|(k, _)| k == name) {
            Some(i) => i,
            None => {
                self.children.push((name.into(), Node::default()));
                self.children.len() - 1
            }
        };
        &mut self.children[i].1
    }
}

struct Found {
    labels: Vec<(Box<str>, Box<str>)>,
    fields: Vec<Box<str>>,
}

struct Seed<'a> {
    node: &'a Node,
    found: &'a mut Found,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl Seed<'_> {
    fn set(self, text: String) {
        if let Some(slot) = self.node.slot {
            self.found.fields[slot] = text.into();
        }
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.node.labels {
            while let Some((k, v)) = map.next_entry::<String, String>()? {
                self.found.labels.push((k.into(), v.into()));
            }
            return Ok(());
        }
        while let Some(child) = map.next_key_seed(KeySeed(self.node))? {
            match child {
                Some(i) => map.next_value_seed(Seed {
                    node: &self.node.children[i].1,
                    found: self.found,
                })?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
    fn visit_str<E>(self, v: &str) -> Result<(), E> {
        self.set(v.to_string());
        Ok(())
    }
    fn visit_bool<E>(self, v: bool) -> Result<(), E> {
        self.set(v.to_string());
        Ok(())
    }
    fn visit_i64<E>(self, v: i64) -> Result<(), E> {
        self.set(v.to_string());
        Ok(())
    }
    fn visit_u64<E>(self, v: u64) -> Result<(), E> {
        self.set(v.to_string());
        Ok(())
    }
    fn visit_f64<E>(self, v: f64) -> Result<(), E> {
        self.set(v.to_string());
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Looks a member's name up among the wanted ones without allocating.
struct KeySeed<'a>(&'a Node);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Option<usize>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Option<usize>;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a member name")
    }
    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(self.0.children.iter().position(|(k, _)| k == v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_bytes_are_the_object_with_its_version() {
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "\"b\""},
            "metadata": {"name": "x", "namespace": "n", "resourceVersion": "9", "labels": {"l": "v"}}});
        let stored = encode(&object);
        let index = FieldIndex::new(&["data.a".into()], splice_offset("v1", "ConfigMap"));
        let o = Object::new("n/x".into(), &stored, 42, &index);
        let mut want = object.clone();
        want["metadata"]["resourceVersion"] = json!("42");
        assert_eq!(o.value(), want);
        assert_eq!(
            (o.namespace(), o.name(), o.label("l")),
            ("n", "x", Some("v"))
        );
        assert_eq!(&*o.fields[0], "\"b\"");
        let gone = o.deleted_at(1043, index.offset);
        want["metadata"]["resourceVersion"] = json!("1043");
        assert_eq!(gone.value(), want);
    }
}
