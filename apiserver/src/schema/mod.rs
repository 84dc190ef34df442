//! One compiled schema per kind, and one walk over an object that drops nulls, prunes unknown
//! fields, applies defaults and validates.
//!
//! Schemas are structural OpenAPI v3, so each field has exactly one node and a single pass
//! suffices. Messages are worded as Kubernetes words them, since people and tools know those.

mod compile;
mod meta;
mod native;
#[cfg(test)]
mod one_row;
#[cfg(test)]
mod tests;
mod walk;

use rota_api::registry::{FieldError, Kind, NameRule};
use serde_json::Value;

pub use compile::{ListType, Node, Type};
pub use meta::{check_name, object_meta_schema};

/// How much of an object is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All of it.
    Full,
    /// Only metadata and status, for writes to the status subresource: the rest is as stored.
    Status,
}

/// What the walk found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admitted {
    /// Paths of fields that the schema does not know, such as `spec.bogus`; they are gone from the object.
    pub unknown: Vec<String>,
    /// What is wrong.
    pub errors: Vec<FieldError>,
}

/// The schema of a kind, ready to walk.
#[derive(Debug)]
pub struct Compiled {
    root: Node,
    name_rule: NameRule,
    rules: rota_api::registry::Rules,
}

impl Compiled {
    /// Compiles the kind's schema.
    pub fn new(kind: &Kind) -> Self {
        let mut schema = kind.schema.clone();
        if let Some(root) = schema.as_object_mut() {
            let properties = root
                .entry("properties")
                .or_insert_with(|| Value::Object(Default::default()));
            properties["apiVersion"] = serde_json::json!({"type": "string"});
            properties["kind"] = serde_json::json!({"type": "string"});
            properties["metadata"] = object_meta_schema();
        }
        Compiled {
            root: Node::compile(&schema),
            name_rule: kind.name_rule,
            rules: kind.rules,
        }
    }

    /// Normalises and validates in place. The kind's own rules are not run here: they may need the
    /// old object, see [`Compiled::rules`].
    pub fn admit(&self, object: &mut Value, mode: Mode) -> Admitted {
        let mut out = Admitted::default();
        walk::run(&self.root, object, mode, &mut out);
        if let Some(metadata) = object.get("metadata") {
            meta::check(metadata, self.name_rule, &mut out.errors);
        }
        out
    }

    /// The kind's rules beyond the schema; call them only when `admit` found no errors.
    pub fn rules(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        (self.rules)(new, old)
    }

    /// Root of the schema tree, for walks that need list types (strategic and applied patches).
    pub fn root(&self) -> &Node {
        &self.root
    }
}
