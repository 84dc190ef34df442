//! Event: one stored kind (v1), shown in two groups. Old clients and `kubectl describe` read v1,
//! recorders write events.k8s.io/v1.

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::api::events::v1::Event as NewEvent;
use serde_json::{Map, Value, json};

use super::{column, error, no_overlay, row};
use crate::registry::{Column, FieldError, Kind};

/// Events are notes about the recent past.
const TTL_SECONDS: u32 = 3600;

/// Fields that differ by name only: (v1, events.k8s.io/v1).
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

pub(super) fn kind() -> Kind {
    let mut kind = row::<Event>(true, "ev", &mut no_overlay);
    kind.columns = columns();
    kind.ttl_seconds = Some(TTL_SECONDS);
    kind.selectable = selectable("involvedObject", "reportingComponent");
    kind.rules = |new, _| same_namespace(new, "involvedObject");
    kind
}

pub(super) fn kind_of_events_group() -> Kind {
    let mut kind = row::<NewEvent>(true, "ev", &mut no_overlay);
    kind.columns = columns();
    kind.ttl_seconds = Some(TTL_SECONDS);
    kind.selectable = selectable("regarding", "reportingController");
    kind.rules = |new, _| same_namespace(new, "regarding");
    kind.stored_as = Some(("", "events"));
    kind
}

/// Both lists have the same fields in the same order, so that one index serves both groups.
fn selectable(about: &str, reporter: &str) -> Vec<String> {
    let mut all: Vec<String> = [
        "kind",
        "namespace",
        "name",
        "uid",
        "apiVersion",
        "resourceVersion",
        "fieldPath",
    ]
    .iter()
    .map(|f| format!("{about}.{f}"))
    .collect();
    all.extend([reporter.to_string(), "reason".into(), "type".into()]);
    all
}

fn columns() -> Vec<Column> {
    let mut name = column("Name", "string", ".metadata.name", 1, "Name of the event.");
    name.format = "name".into();
    vec![
        column(
            "Last Seen",
            "string",
            "computed:event-last-seen",
            0,
            "Time since it was last seen.",
        ),
        column("Type", "string", ".type", 0, "Normal or Warning."),
        column("Reason", "string", ".reason", 0, "CamelCase cause."),
        column(
            "Object",
            "string",
            "computed:event-object",
            0,
            "What it is about.",
        ),
        column(
            "Source",
            "string",
            "computed:event-source",
            1,
            "Who reported it.",
        ),
        column(
            "Message",
            "string",
            "computed:event-message",
            0,
            "A sentence for people.",
        ),
        column(
            "First Seen",
            "string",
            "computed:event-first-seen",
            1,
            "Time since it was first seen.",
        ),
        column(
            "Count",
            "integer",
            "computed:event-count",
            1,
            "How often it was seen.",
        ),
        name,
    ]
}

fn same_namespace(new: &Value, about: &str) -> Vec<FieldError> {
    let of = new[about]["namespace"].as_str().unwrap_or("");
    let own = new["metadata"]["namespace"].as_str().unwrap_or("");
    // Events about cluster-wide objects name no namespace.
    if of.is_empty() || own.is_empty() || of == own {
        return Vec::new();
    }
    vec![error(
        "FieldValueInvalid",
        format!("{about}.namespace"),
        format!("Invalid value: {of:?}: does not match event.namespace"),
    )]
}

/// A v1 Event as events.k8s.io/v1.
pub fn to_events_v1(event: &Value) -> Value {
    let mut out = convert(event, "events.k8s.io/v1", |key| {
        RENAMED.iter().find(|r| r.0 == key).map(|r| r.1)
    });
    // Clients of the new group insist on a time; old events have only the deprecated ones.
    if out.get("eventTime").is_none_or(Value::is_null) {
        let time = [
            &event["firstTimestamp"],
            &event["metadata"]["creationTimestamp"],
        ];
        if let Some(t) = time.iter().find(|t| t.is_string()) {
            out["eventTime"] = (*t).clone();
        }
    }
    out
}

/// An events.k8s.io/v1 Event as v1, the form that is stored.
pub fn to_core_v1(event: &Value) -> Value {
    let mut out = convert(event, "v1", |key| {
        RENAMED.iter().find(|r| r.1 == key).map(|r| r.0)
    });
    if out.get("involvedObject").is_none() {
        out["involvedObject"] = json!({});
    }
    out
}

fn convert<'a>(
    event: &Value,
    api_version: &str,
    renamed: impl Fn(&str) -> Option<&'a str>,
) -> Value {
    let mut out = Map::new();
    for (key, value) in event.as_object().into_iter().flatten() {
        out.insert(renamed(key).unwrap_or(key).to_string(), value.clone());
    }
    out.insert("apiVersion".into(), json!(api_version));
    out.insert("kind".into(), json!("Event"));
    Value::Object(out)
}
