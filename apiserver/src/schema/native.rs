//! The few CEL rules of our schemas, as Rust. An emitted CRD carries the CEL text; this server
//! runs the same rule without an interpreter.

use serde_json::Value;

/// Whether an object keeps the rule.
pub(super) type NativeRule = fn(&Value) -> bool;

/// CEL text to its equivalent.
pub(super) const RULES: &[(&str, NativeRule)] = &[
    ("!(has(self.value) && has(self.valueFrom))", |v| {
        !(has(v, "value") && has(v, "valueFrom"))
    }),
    (
        "(self.type == 'Secret') == has(self.secret) && (self.type == 'ConfigMap') == has(self.configMap) && (self.type == 'Field') == has(self.field)",
        |v| {
            [
                ("Secret", "secret"),
                ("ConfigMap", "configMap"),
                ("Field", "field"),
            ]
            .iter()
            .all(|(name, field)| (v["type"] == *name) == has(v, field))
        },
    ),
];

/// The equivalent of a CEL rule.
pub(super) fn lookup(cel: &str) -> Option<NativeRule> {
    RULES.iter().find(|r| r.0 == cel).map(|r| r.1)
}

fn has(v: &Value, field: &str) -> bool {
    v.get(field).is_some_and(|f| !f.is_null())
}
