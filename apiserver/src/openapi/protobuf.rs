//! OpenAPI version 2 in gnostic's protobuf form (package `openapi.v2`), written by hand: only the
//! fields that our documents have. Field numbers are gnostic's.

use serde_json::Value;

/// A message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.0.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.0.push(v as u8);
    }
    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
    fn text(&mut self, field: u64, value: &Value) {
        if let Some(s) = value.as_str() {
            self.bytes(field, s.as_bytes());
        }
    }
    fn texts(&mut self, field: u64, value: &Value) {
        for v in value.as_array().into_iter().flatten() {
            self.text(field, v);
        }
    }
    fn flag(&mut self, field: u64, value: &Value) {
        if value == true {
            self.varint(field << 3);
            self.varint(1);
        }
    }
    fn int(&mut self, field: u64, value: &Value) {
        if let Some(n) = value.as_u64().filter(|n| *n != 0) {
            self.varint(field << 3);
            self.varint(n);
        }
    }
    fn double(&mut self, field: u64, value: &Value) {
        if let Some(n) = value.as_f64().filter(|n| *n != 0.0) {
            self.varint(field << 3 | 1);
            self.0.extend_from_slice(&n.to_le_bytes());
        }
    }
    fn message(&mut self, field: u64, m: Message) {
        self.bytes(field, &m.0);
    }
    /// `Any { yaml = 2 }`; JSON is YAML.
    fn any(&mut self, field: u64, value: &Value) {
        let mut m = Message::default();
        m.bytes(2, value.to_string().as_bytes());
        self.message(field, m);
    }
    /// Every `x-...` key as `NamedAny`.
    fn extensions(&mut self, field: u64, of: &Value) {
        for (key, value) in of.as_object().into_iter().flatten() {
            if key.starts_with("x-") {
                let mut m = Message::default();
                m.bytes(1, key.as_bytes());
                m.any(2, value);
                self.message(field, m);
            }
        }
    }
}

fn named(name: &str, value: Message) -> Message {
    let mut m = Message::default();
    m.bytes(1, name.as_bytes());
    m.message(2, value);
    m
}

/// The whole document.
pub(super) fn document(doc: &Value) -> Vec<u8> {
    let mut m = Message::default();
    m.text(1, &doc["swagger"]);
    let mut info = Message::default();
    info.text(1, &doc["info"]["title"]);
    info.text(2, &doc["info"]["version"]);
    m.message(2, info);
    let mut paths = Message::default();
    for (url, item) in doc["paths"].as_object().into_iter().flatten() {
        paths.message(2, named(url, path_item(item)));
    }
    m.message(8, paths);
    let mut definitions = Message::default();
    for (name, value) in doc["definitions"].as_object().into_iter().flatten() {
        definitions.message(1, named(name, schema(value)));
    }
    m.message(9, definitions);
    m.0
}

fn path_item(item: &Value) -> Message {
    let mut m = Message::default();
    for (field, method) in [
        (2, "get"),
        (3, "put"),
        (4, "post"),
        (5, "delete"),
        (8, "patch"),
    ] {
        if let Some(op) = item.get(method) {
            m.message(field, operation(op));
        }
    }
    for p in item["parameters"].as_array().into_iter().flatten() {
        m.message(9, parameter(p));
    }
    m
}

fn operation(op: &Value) -> Message {
    let mut m = Message::default();
    m.text(5, &op["operationId"]);
    m.texts(6, &op["produces"]);
    m.texts(7, &op["consumes"]);
    for p in op["parameters"].as_array().into_iter().flatten() {
        m.message(8, parameter(p));
    }
    let mut responses = Message::default();
    for (code, response) in op["responses"].as_object().into_iter().flatten() {
        let mut r = Message::default();
        r.text(1, &response["description"]);
        if let Some(s) = response.get("schema") {
            let mut item = Message::default();
            item.message(1, schema(s));
            r.message(2, item);
        }
        let mut value = Message::default();
        value.message(1, r);
        responses.message(1, named(code, value));
    }
    m.message(9, responses);
    m.extensions(13, op);
    m
}

/// `ParametersItem { parameter = 1: Parameter { body = 1 | non_body = 2 } }`.
fn parameter(p: &Value) -> Message {
    let mut parameter = Message::default();
    if p["in"] == "body" {
        let mut body = Message::default();
        body.text(2, &p["name"]);
        body.text(3, &p["in"]);
        body.flag(4, &p["required"]);
        body.message(5, schema(&p["schema"]));
        parameter.message(1, body);
    } else {
        // Queries have `allow_empty_value` at 5, so their type is one further than in paths.
        let is_query = p["in"] == "query";
        let mut sub = Message::default();
        sub.flag(1, &p["required"]);
        sub.text(2, &p["in"]);
        sub.text(4, &p["name"]);
        sub.text(if is_query { 6 } else { 5 }, &p["type"]);
        let mut non_body = Message::default();
        non_body.message(if is_query { 3 } else { 4 }, sub);
        parameter.message(2, non_body);
    }
    let mut item = Message::default();
    item.message(1, parameter);
    item
}

fn schema(s: &Value) -> Message {
    let mut m = Message::default();
    m.text(1, &s["$ref"]);
    m.text(2, &s["format"]);
    m.text(4, &s["description"]);
    m.double(7, &s["maximum"]);
    m.double(9, &s["minimum"]);
    m.int(11, &s["maxLength"]);
    m.int(12, &s["minLength"]);
    m.text(13, &s["pattern"]);
    m.int(14, &s["maxItems"]);
    m.int(15, &s["minItems"]);
    m.int(17, &s["maxProperties"]);
    m.int(18, &s["minProperties"]);
    m.texts(19, &s["required"]);
    for v in s["enum"].as_array().into_iter().flatten() {
        m.any(20, v);
    }
    match &s["additionalProperties"] {
        Value::Bool(true) => {
            let mut item = Message::default();
            item.varint(2 << 3);
            item.varint(1);
            m.message(21, item);
        }
        sub @ Value::Object(_) => {
            let mut item = Message::default();
            item.message(1, schema(sub));
            m.message(21, item);
        }
        _ => {}
    }
    if s["type"].is_string() {
        let mut item = Message::default();
        item.text(1, &s["type"]);
        m.message(22, item);
    }
    if let Some(items) = s.get("items") {
        let mut item = Message::default();
        item.message(1, schema(items));
        m.message(23, item);
    }
    if let Some(properties) = s["properties"].as_object() {
        let mut all = Message::default();
        for (name, value) in properties {
            all.message(1, named(name, schema(value)));
        }
        m.message(25, all);
    }
    m.extensions(31, s);
    m
}
