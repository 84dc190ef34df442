//! From an OpenAPI v3 schema to [`Node`]s that the walk reads without parsing anything.

use regex::{Regex, RegexBuilder};
use rota_api::quantity::QUANTITY_PATTERN;
use serde_json::Value;

use super::native::{self, NativeRule};

/// Compiled size above which a pattern is not accepted: patterns are ours, this only guards against a slip.
const PATTERN_SIZE_MAX: usize = 1 << 20;

/// JSON type of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Anything, kept as it is.
    Any,
    /// An object.
    Object,
    /// A list.
    Array,
    /// A string.
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// A whole number or a string.
    IntOrString,
    /// A quantity: a string or a number in Kubernetes' quantity syntax.
    Quantity,
}

/// How a list merges and what makes its items distinct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    /// Replaced as a whole.
    Atomic,
    /// Scalars without duplicates.
    Set,
    /// Objects, distinct by these keys.
    Map(Vec<String>),
}

/// Text formats that are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    None,
    Int32,
    Int64,
    DateTime,
    Byte,
}

/// A node of the compiled schema.
#[derive(Debug)]
pub struct Node {
    pub(super) ty: Type,
    pub(super) preserve: bool,
    /// Known fields, sorted by name.
    pub(super) properties: Vec<(String, Node)>,
    pub(super) additional: Option<Box<Node>>,
    pub(super) items: Option<Box<Node>>,
    pub(super) required: Vec<String>,
    pub(super) defaults: Vec<(String, Value)>,
    pub(super) allowed: Vec<Value>,
    pub(super) pattern: Option<Regex>,
    pub(super) minimum: Option<f64>,
    pub(super) maximum: Option<f64>,
    pub(super) min_length: Option<usize>,
    pub(super) max_length: Option<usize>,
    pub(super) min_items: Option<usize>,
    pub(super) max_items: Option<usize>,
    pub(super) min_properties: Option<usize>,
    pub(super) max_properties: Option<usize>,
    pub(super) format: Format,
    pub(super) list: ListType,
    pub(super) rules: Vec<(NativeRule, String)>,
}

impl Node {
    /// Compiles a schema. What it does not understand is left unchecked, except rules: a test holds
    /// that every rule and pattern of the registered kinds is known.
    pub(super) fn compile(schema: &Value) -> Node {
        let size = |key: &str| schema[key].as_u64().map(|v| v as usize);
        let strings = |key: &str| -> Vec<String> {
            let list = schema[key].as_array().map(Vec::as_slice).unwrap_or(&[]);
            list.iter()
                .filter_map(|v| v.as_str().map(String::from))
                .collect()
        };
        let mut properties: Vec<(String, Node)> = schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), Node::compile(v)))
            .collect();
        properties.sort_by(|a, b| a.0.cmp(&b.0));
        let defaults = schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, v)| v.get("default").is_some_and(|d| !d.is_null()))
            .map(|(k, v)| (k.clone(), with_defaults(v, v["default"].clone())))
            .collect();
        let additional = match schema.get("additionalProperties") {
            Some(Value::Bool(true)) => Some(Box::new(Node::compile(&Value::Null))),
            Some(s @ Value::Object(_)) => Some(Box::new(Node::compile(s))),
            _ => None,
        };
        let preserve = schema["x-kubernetes-preserve-unknown-fields"] == true;
        let pattern = schema["pattern"].as_str();
        let int_or_string =
            schema["x-kubernetes-int-or-string"] == true || schema["format"] == "int-or-string";
        let ty = match schema["type"].as_str() {
            _ if pattern == Some(QUANTITY_PATTERN) => Type::Quantity,
            _ if int_or_string => Type::IntOrString,
            Some("object") => Type::Object,
            Some("array") => Type::Array,
            Some("string") => Type::String,
            Some("integer") => Type::Integer,
            Some("number") => Type::Number,
            Some("boolean") => Type::Boolean,
            _ if !properties.is_empty() => Type::Object,
            _ => Type::Any,
        };
        Node {
            ty,
            preserve,
            additional,
            items: schema
                .get("items")
                .filter(|i| i.is_object())
                .map(|i| Box::new(Node::compile(i))),
            required: strings("required"),
            defaults,
            allowed: schema["enum"].as_array().cloned().unwrap_or_default(),
            pattern: pattern.filter(|_| ty != Type::Quantity).and_then(|p| {
                RegexBuilder::new(p)
                    .size_limit(PATTERN_SIZE_MAX)
                    .build()
                    .ok()
            }),
            minimum: schema["minimum"].as_f64(),
            maximum: schema["maximum"].as_f64(),
            min_length: size("minLength"),
            max_length: size("maxLength"),
            min_items: size("minItems"),
            max_items: size("maxItems"),
            min_properties: size("minProperties"),
            max_properties: size("maxProperties"),
            format: match schema["format"].as_str() {
                Some("int32") => Format::Int32,
                Some("int64") => Format::Int64,
                Some("date-time") => Format::DateTime,
                Some("byte") => Format::Byte,
                _ => Format::None,
            },
            list: match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => ListType::Set,
                Some("map") => ListType::Map(strings("x-kubernetes-list-map-keys")),
                _ => ListType::Atomic,
            },
            rules: schema["x-kubernetes-validations"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|r| {
                    let rule = native::lookup(r["rule"].as_str()?)?;
                    Some((rule, r["message"].as_str().unwrap_or("").to_string()))
                })
                .collect(),
            properties,
        }
    }

    /// The node of a field of an object, or of the values of a map.
    pub fn field(&self, name: &str) -> Option<&Node> {
        match self.properties.binary_search_by(|p| p.0.as_str().cmp(name)) {
            Ok(at) => Some(&self.properties[at].1),
            Err(_) => self.additional.as_deref(),
        }
    }

    /// The node of a list's items.
    pub fn items(&self) -> Option<&Node> {
        self.items.as_deref()
    }

    /// How a list merges.
    pub fn list_type(&self) -> &ListType {
        &self.list
    }

    /// JSON type.
    pub fn ty(&self) -> Type {
        self.ty
    }
}

/// A default with the defaults of its own fields.
fn with_defaults(schema: &Value, mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        for (key, field) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(default) = field.get("default").filter(|d| !d.is_null())
                && !object.contains_key(key)
            {
                object.insert(key.clone(), with_defaults(field, default.clone()));
            }
        }
    }
    value
}
