//! Server-side tables: `meta.k8s.io/v1 Table` from a kind's columns.
//!
//! A column shows a path of the object or one of the computed cells below, which core kinds need
//! because kubectl shows more of them than a field.

use jiff::Timestamp;
use rota_api::registry::{Column, Kind};
use serde_json::{Value, json};

/// What each row carries besides its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// A PartialObjectMetadata, the default.
    Metadata,
    /// The whole object.
    Object,
}

/// What a client asked for with `as=Table`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its `includeObject`.
    pub include: Include,
}

impl Include {
    /// Reads the query parameter `includeObject`; absent is [`Include::Metadata`].
    pub fn parse(text: Option<&str>) -> Option<Include> {
        match text {
            None | Some("" | "Metadata") => Some(Include::Metadata),
            Some("None") => Some(Include::None),
            Some("Object") => Some(Include::Object),
            Some(_) => None,
        }
    }
}

/// A table of `items`. In a watch only the first event carries headers.
pub fn render(
    kind: &Kind,
    items: &[&Value],
    list_meta: Value,
    include: Include,
    now: Timestamp,
    with_headers: bool,
) -> Value {
    let columns = columns(kind);
    let cells: Vec<Cell> = columns.iter().map(Cell::new).collect();
    let rows: Vec<Value> = items
        .iter()
        .map(|item| {
            let values: Vec<Value> = cells.iter().map(|c| c.value(item, now)).collect();
            let object = match include {
                Include::None => Value::Null,
                Include::Object => (*item).clone(),
                Include::Metadata => json!({
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                    "metadata": item["metadata"],
                }),
            };
            json!({"cells": values, "object": object})
        })
        .collect();
    let definitions: Vec<Value> = if with_headers {
        columns
            .iter()
            .map(|c| {
                json!({"name": c.name, "type": c.type_, "format": c.format,
                    "description": c.description, "priority": c.priority})
            })
            .collect()
    } else {
        Vec::new()
    };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta,
        "columnDefinitions": definitions, "rows": rows})
}

/// All columns of a kind: NAME first, unless the kind places its name itself.
pub fn columns(kind: &Kind) -> Vec<Column> {
    let mut all = Vec::with_capacity(kind.columns.len() + 1);
    if !kind.columns.iter().any(|c| c.format == "name") {
        all.push(Column {
            name: "Name".into(),
            type_: "string".into(),
            format: "name".into(),
            description: "Name of the object, unique in its namespace.".into(),
            priority: 0,
            json_path: ".metadata.name".into(),
        });
    }
    all.extend(kind.columns.iter().cloned());
    all
}

enum Cell {
    Path { steps: Vec<String>, type_: String },
    Computed(fn(&Value, Timestamp) -> Value),
    Unknown,
}

impl Cell {
    fn new(column: &Column) -> Cell {
        match column.json_path.strip_prefix("computed:") {
            Some(name) => match COMPUTED.iter().find(|c| c.0 == name) {
                Some(c) => Cell::Computed(c.1),
                None => Cell::Unknown,
            },
            None => Cell::Path {
                steps: steps(&column.json_path),
                type_: column.type_.clone(),
            },
        }
    }

    fn value(&self, item: &Value, now: Timestamp) -> Value {
        match self {
            Cell::Unknown => Value::Null,
            Cell::Computed(f) => f(item, now),
            Cell::Path { steps, type_ } => {
                let mut at = item;
                for step in steps {
                    at = match (at, step.parse::<usize>()) {
                        (Value::Array(list), Ok(i)) => list.get(i).unwrap_or(&Value::Null),
                        (other, _) => other.get(step).unwrap_or(&Value::Null),
                    };
                }
                match (type_.as_str(), at) {
                    ("date", v) => age(v, now),
                    (_, Value::Null) => Value::Null,
                    ("integer", Value::Number(n)) => json!(n),
                    ("number", Value::Number(n)) => json!(n),
                    ("boolean", Value::Bool(b)) => json!(b),
                    ("integer" | "number" | "boolean", _) => Value::Null,
                    (_, Value::String(s)) => json!(s),
                    (_, other) => json!(other.to_string()),
                }
            }
        }
    }
}

/// `.spec.nodeName`, `.metadata.annotations['rota\.dev/epoch']`, `.status.addresses[0].address`.
fn steps(path: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut step = String::new();
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => step.extend(chars.next()),
            '.' | '[' => {
                if !step.is_empty() {
                    out.push(std::mem::take(&mut step));
                }
                if c == '[' {
                    let inner: String = chars.by_ref().take_while(|c| *c != ']').collect();
                    out.push(inner.trim_matches(['\'', '"']).replace('\\', ""));
                }
            }
            c => step.push(c),
        }
    }
    if !step.is_empty() {
        out.push(step);
    }
    out
}

/// Time since a timestamp as kubectl writes ages; `<unknown>` without one.
pub fn age(time: &Value, now: Timestamp) -> Value {
    let Some(then) = time.as_str().and_then(|t| t.parse::<Timestamp>().ok()) else {
        return json!("<unknown>");
    };
    json!(duration(now.as_second() - then.as_second()))
}

/// Seconds as kubectl shortens them: two units while the first is small, then one.
pub fn duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    // Clocks of two machines may differ by a second; more is worth seeing.
    if seconds < -1 {
        return "<invalid>".into();
    }
    let s = seconds.max(0);
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| match s % big / small {
        0 => format!("{}{big_unit}", s / big),
        rest => format!("{}{big_unit}{rest}{small_unit}", s / big),
    };
    match s {
        _ if s < 2 * MINUTE => format!("{s}s"),
        _ if s < 10 * MINUTE => two(MINUTE, "m", 1, "s"),
        _ if s < 3 * HOUR => format!("{}m", s / MINUTE),
        _ if s < 8 * HOUR => two(HOUR, "h", MINUTE, "m"),
        _ if s < 2 * DAY => format!("{}h", s / HOUR),
        _ if s < 8 * DAY => two(DAY, "d", HOUR, "h"),
        _ if s < 2 * YEAR => format!("{}d", s / DAY),
        _ if s < 8 * YEAR => two(YEAR, "y", DAY, "d"),
        _ => format!("{}y", s / YEAR),
    }
}

type Computed = (&'static str, fn(&Value, Timestamp) -> Value);

/// Cells that show more than one field, by the name that a column's path gives after `computed:`.
const COMPUTED: &[Computed] = &[
    ("node-status", |o, _| {
        let ready = o["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|c| c["type"] == "Ready");
        let mut text = match ready.and_then(|c| c["status"].as_str()) {
            Some("True") => "Ready".to_string(),
            Some(_) => "NotReady".to_string(),
            None => "Unknown".to_string(),
        };
        if o["spec"]["unschedulable"] == true {
            text.push_str(",SchedulingDisabled");
        }
        json!(text)
    }),
    ("node-roles", |o, _| {
        let mut roles: Vec<&str> = Vec::new();
        for (key, value) in o["metadata"]["labels"].as_object().into_iter().flatten() {
            if let Some(role) = key.strip_prefix("node-role.kubernetes.io/") {
                roles.push(role);
            } else if key == "kubernetes.io/role" {
                roles.extend(value.as_str());
            }
        }
        roles.retain(|r| !r.is_empty());
        roles.sort_unstable();
        roles.dedup();
        if roles.is_empty() {
            return json!("<none>");
        }
        json!(roles.join(","))
    }),
    ("node-internal-ip", |o, _| address(o, "InternalIP")),
    ("node-external-ip", |o, _| address(o, "ExternalIP")),
    ("data-count", |o, _| {
        let count = |key: &str| o[key].as_object().map_or(0, |m| m.len());
        json!(count("data") + count("binaryData"))
    }),
    ("secrets-count", |o, _| {
        json!(o["secrets"].as_array().map_or(0, Vec::len))
    }),
    ("event-last-seen", |o, now| {
        let times = [
            &o["series"]["lastObservedTime"],
            &o["lastTimestamp"],
            &o["deprecatedLastTimestamp"],
            &o["eventTime"],
            &o["metadata"]["creationTimestamp"],
        ];
        match times.iter().find(|t| t.is_string()) {
            Some(t) => age(t, now),
            None => json!("<unknown>"),
        }
    }),
    ("event-first-seen", |o, now| {
        let times = [
            &o["firstTimestamp"],
            &o["deprecatedFirstTimestamp"],
            &o["eventTime"],
            &o["metadata"]["creationTimestamp"],
        ];
        match times.iter().find(|t| t.is_string()) {
            Some(t) => age(t, now),
            None => json!("<unknown>"),
        }
    }),
    ("event-object", |o, _| {
        let about = match o.get("involvedObject") {
            Some(v) => v,
            None => &o["regarding"],
        };
        let kind = about["kind"].as_str().unwrap_or("").to_lowercase();
        match about["name"].as_str().unwrap_or("") {
            "" => json!(kind),
            name => json!(format!("{kind}/{name}")),
        }
    }),
    ("event-message", |o, _| {
        let text = o["message"].as_str().or(o["note"].as_str());
        json!(text.unwrap_or("").trim())
    }),
    ("event-source", |o, _| {
        let of = |v: &Value| v["component"].as_str().map(String::from);
        let component = of(&o["source"])
            .or_else(|| of(&o["deprecatedSource"]))
            .filter(|s| !s.is_empty())
            .or_else(|| o["reportingComponent"].as_str().map(String::from))
            .or_else(|| o["reportingController"].as_str().map(String::from));
        let host = o["source"]["host"]
            .as_str()
            .or(o["deprecatedSource"]["host"].as_str())
            .filter(|h| !h.is_empty());
        let component = component.unwrap_or_default();
        match host {
            Some(host) => json!(format!("{component}, {host}")),
            None => json!(component),
        }
    }),
    ("event-count", |o, _| {
        let count = o["series"]["count"]
            .as_i64()
            .or(o["count"].as_i64())
            .or(o["deprecatedCount"].as_i64());
        json!(count.unwrap_or(1).max(1))
    }),
];

fn address(node: &Value, type_: &str) -> Value {
    let found = node["status"]["addresses"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|a| a["type"] == type_)
        .and_then(|a| a["address"].as_str());
    json!(found.unwrap_or("<none>"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rota_api::registry;

    use super::*;

    #[test]
    fn ages_as_kubectl_writes_them() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (192, "3m12s"),
            (601, "10m"),
            (2 * 3600, "120m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600 + 60, "9h"),
            (47 * 3600, "47h"),
            (48 * 3600, "2d"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (800 * 86400, "2y70d"),
            (4000 * 86400, "10y"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn rows_of_a_job() {
        let kinds = registry::all();
        let job = json!({
            "kind": "Job", "metadata": {"name": "pi", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"type": "Batch", "queue": "q"}, "status": {"phase": "Running", "running": 3, "waiting": "?"},
        });
        let now: Timestamp = "2026-01-01T00:03:12Z".parse().unwrap();
        let t = render(
            &kinds[0],
            &[&job],
            json!({"resourceVersion": "7"}),
            Include::Metadata,
            now,
            true,
        );
        let names: Vec<&str> = t["columnDefinitions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "Name",
                "Phase",
                "Running",
                "Waiting",
                "Succeeded",
                "Failed",
                "Type",
                "Queue",
                "Age"
            ]
        );
        assert_eq!(
            t["rows"][0]["cells"],
            json!(["pi", "Running", 3, null, null, null, "Batch", "q", "3m12s"])
        );
        assert_eq!(t["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(t["metadata"]["resourceVersion"], "7");
        let t = render(&kinds[0], &[&job], json!({}), Include::Object, now, false);
        assert_eq!(t["columnDefinitions"], json!([]));
        assert_eq!(t["rows"][0]["object"], job);
        let t = render(&kinds[0], &[&job], json!({}), Include::None, now, false);
        assert_eq!(t["rows"][0]["object"], Value::Null);
        assert_eq!(Include::parse(Some("x")), None);
    }

    #[test]
    fn paths() {
        assert_eq!(
            steps(r".metadata.annotations['rota\.dev/epoch']"),
            ["metadata", "annotations", "rota.dev/epoch"]
        );
        assert_eq!(steps(r".a.b\.c[0].d"), ["a", "b.c", "0", "d"]);
    }

    #[test]
    fn every_computed_column_is_known() {
        for kind in registry::all() {
            for c in columns(&kind) {
                assert!(
                    !matches!(Cell::new(&c), Cell::Unknown),
                    "{} {}",
                    kind.kind,
                    c.json_path
                );
            }
        }
    }
}
