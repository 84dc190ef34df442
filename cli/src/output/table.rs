//! Tables: the server's `meta.k8s.io/v1 Table`, and the alignment of any rows.

use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use super::time;

/// Spaces between columns.
const GAP: usize = 3;

/// Rows under a header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Header cells.
    pub header: Vec<String>,
    /// Rows.
    pub rows: Vec<Row>,
}

/// One row and the object that it shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Cells, as many as the header has.
    pub cells: Vec<String>,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// resourceVersion of the object.
    pub version: String,
    /// The object, where it was asked for; null otherwise.
    pub object: Value,
}

/// What to show of a server table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Columns of lower priority too.
    pub wide: bool,
    /// A first column with the namespace.
    pub namespace: bool,
    /// A last column with the labels.
    pub labels: bool,
    /// Names as `kind.group/name`; empty for plain names.
    pub prefix: String,
}

/// From an answer of the server: a Table, or a plain object or list where it makes none.
/// `columns` are the definitions of the list that an event follows, since events may lack them.
pub fn from_server(
    answer: &Value,
    columns: Option<&Value>,
    view: &View,
    now: jiff::Timestamp,
) -> Table {
    if answer["kind"] != "Table" {
        return plain(answer, view, now);
    }
    let own = &answer["columnDefinitions"];
    let definitions = match columns {
        Some(c) if own.as_array().is_none_or(Vec::is_empty) => c,
        _ => own,
    };
    let definitions: Vec<&Value> = definitions.as_array().into_iter().flatten().collect();
    let shown: Vec<usize> = (0..definitions.len())
        .filter(|i| view.wide || definitions[*i]["priority"].as_i64().unwrap_or(0) == 0)
        .collect();
    let mut table = Table::default();
    if view.namespace {
        table.header.push("NAMESPACE".into());
    }
    for i in &shown {
        table.header.push(
            definitions[*i]["name"]
                .as_str()
                .unwrap_or("")
                .to_uppercase(),
        );
    }
    if view.labels {
        table.header.push("LABELS".into());
    }
    for row in answer["rows"].as_array().into_iter().flatten() {
        let object = &row["object"];
        let meta = &object["metadata"];
        let mut cells = Vec::with_capacity(table.header.len());
        if view.namespace {
            cells.push(text(&meta["namespace"]));
        }
        for i in &shown {
            let is_name = definitions[*i]["format"] == "name" || definitions[*i]["name"] == "Name";
            let shown = cell(&row["cells"][*i], definitions[*i], now);
            cells.push(if is_name && !view.prefix.is_empty() {
                format!("{}/{shown}", view.prefix)
            } else {
                shown
            });
        }
        if view.labels {
            cells.push(labels(&meta["labels"]));
        }
        table.rows.push(Row {
            cells,
            namespace: text(&meta["namespace"]),
            name: text(&meta["name"]),
            version: text(&meta["resourceVersion"]),
            object: object.clone(),
        });
    }
    table
}

fn plain(answer: &Value, view: &View, now: jiff::Timestamp) -> Table {
    let mut table = Table::default();
    if view.namespace {
        table.header.push("NAMESPACE".into());
    }
    table.header.extend(["NAME".into(), "AGE".into()]);
    if view.labels {
        table.header.push("LABELS".into());
    }
    let items: Vec<&Value> = match answer["items"].as_array() {
        Some(items) => items.iter().collect(),
        None => vec![answer],
    };
    for item in items {
        let meta = &item["metadata"];
        let mut cells = Vec::new();
        if view.namespace {
            cells.push(text(&meta["namespace"]));
        }
        let name = text(&meta["name"]);
        cells.push(if view.prefix.is_empty() {
            name.clone()
        } else {
            format!("{}/{name}", view.prefix)
        });
        cells.push(time::age(meta["creationTimestamp"].as_str(), now));
        if view.labels {
            cells.push(labels(&meta["labels"]));
        }
        table.rows.push(Row {
            cells,
            namespace: text(&meta["namespace"]),
            name,
            version: text(&meta["resourceVersion"]),
            object: item.clone(),
        });
    }
    table
}

/// Labels as `a=b,c=d`.
pub fn labels(v: &Value) -> String {
    match v.as_object() {
        Some(map) if !map.is_empty() => map
            .iter()
            .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or("")))
            .collect::<Vec<_>>()
            .join(","),
        _ => "<none>".into(),
    }
}

fn text(v: &Value) -> String {
    v.as_str().unwrap_or("").to_string()
}

/// One cell; times in columns of type date are ages, unless the server wrote an age already.
fn cell(v: &Value, definition: &Value, now: jiff::Timestamp) -> String {
    match v {
        Value::Null if definition["type"] == "date" => "<unknown>".into(),
        Value::Null => String::new(),
        Value::String(s) if definition["type"] == "date" => match s.parse::<jiff::Timestamp>() {
            Ok(_) => time::age(Some(s), now),
            Err(_) => s.clone(),
        },
        // A cell is one line, whatever is in the object.
        Value::String(s) => s.split(['\n', '\r', '\t']).next().unwrap_or("").to_string(),
        Value::Array(items) => items
            .iter()
            .map(|i| cell(i, &Value::Null, now))
            .collect::<Vec<_>>()
            .join(","),
        other => other.to_string(),
    }
}

/// Widths of the columns over these rows.
pub fn widths<'a>(rows: impl Iterator<Item = &'a [String]>) -> Vec<usize> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (i, c) in row.iter().enumerate() {
            let w = c.as_str().width();
            match widths.get_mut(i) {
                Some(have) => *have = (*have).max(w),
                None => widths.push(w),
            }
        }
    }
    widths
}

/// One aligned line with its end; `paint` colours a cell's text without changing its width.
pub fn line(
    cells: &[String],
    widths: &[usize],
    paint: &dyn Fn(&str) -> Option<&'static str>,
) -> String {
    let mut out = String::new();
    for (i, c) in cells.iter().enumerate() {
        match paint(c) {
            Some(color) => {
                out.push_str(color);
                out.push_str(c);
                out.push_str("\x1b[0m");
            }
            None => out.push_str(c),
        }
        if i + 1 < cells.len() {
            let width = widths.get(i).copied().unwrap_or(0);
            out.push_str(&" ".repeat(width.saturating_sub(c.as_str().width()) + GAP));
        }
    }
    out.push('\n');
    out
}

/// No colours.
pub fn no_paint(_: &str) -> Option<&'static str> {
    None
}

/// Colours of state words: blue, yellow and red also differ in brightness, and the word is always there.
pub fn paint_state(word: &str) -> Option<&'static str> {
    Some(match word {
        "Running" | "Active" | "Ready" | "True" => "\x1b[34m",
        "Succeeded" | "Complete" => "\x1b[36m",
        "Waiting" | "Blocked" | "Starting" | "Suspended" | "Terminating" | "Unknown" => "\x1b[33m",
        "Failed" | "Lost" | "NotReady" => "\x1b[1;31m",
        _ => return None,
    })
}

impl Table {
    /// Aligned text.
    pub fn render(&self, header: bool, color: bool) -> String {
        let shown = if header {
            Some(self.header.as_slice())
        } else {
            None
        };
        let widths = widths(
            shown
                .into_iter()
                .chain(self.rows.iter().map(|r| r.cells.as_slice())),
        );
        let paint: &dyn Fn(&str) -> Option<&'static str> =
            if color { &paint_state } else { &no_paint };
        let mut out = String::new();
        if header {
            out.push_str(&line(&self.header, &widths, &no_paint));
        }
        for r in &self.rows {
            out.push_str(&line(&r.cells, &widths, paint));
        }
        out
    }

    /// Comma-separated values with a header.
    pub fn csv(&self, header: bool) -> String {
        let quote = |c: &String| {
            if c.contains(['"', ',', '\n', '\r']) {
                format!("\"{}\"", c.replace('"', "\"\""))
            } else {
                c.clone()
            }
        };
        let mut out = String::new();
        let head = if header { Some(&self.header) } else { None };
        for cells in head.into_iter().chain(self.rows.iter().map(|r| &r.cells)) {
            out.push_str(&cells.iter().map(quote).collect::<Vec<_>>().join(","));
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn server_table() -> Value {
        json!({"kind": "Table", "columnDefinitions": [
            {"name": "Name", "type": "string", "format": "name", "priority": 0},
            {"name": "Phase", "type": "string", "priority": 0},
            {"name": "Queue", "type": "string", "priority": 1},
            {"name": "Age", "type": "date", "priority": 0}],
          "rows": [
            {"cells": ["pi", "Running", "research", "2026-01-01T00:00:00Z"], "object": {"metadata": {"name": "pi", "namespace": "a", "labels": {"x": "y"}}}},
            {"cells": ["größe", null, "q,r", "5d"], "object": {"metadata": {"name": "größe", "namespace": "b"}}}]})
    }

    fn now() -> jiff::Timestamp {
        jiff::Timestamp::from_second(1_767_225_600 + 90).unwrap_or_default()
    }

    #[test]
    fn columns_are_aligned_as_in_kubectl() {
        let t = from_server(&server_table(), None, &View::default(), now());
        assert_eq!(
            t.render(true, false),
            "NAME    PHASE     AGE\npi      Running   90s\ngröße             5d\n"
        );
    }

    #[test]
    fn wide_namespaces_labels_and_prefix() {
        let view = View {
            wide: true,
            namespace: true,
            labels: true,
            prefix: "job.rota.dev".into(),
        };
        let t = from_server(&server_table(), None, &view, now());
        assert_eq!(
            t.header,
            ["NAMESPACE", "NAME", "PHASE", "QUEUE", "AGE", "LABELS"]
        );
        assert_eq!(
            t.rows[0].cells,
            ["a", "job.rota.dev/pi", "Running", "research", "90s", "x=y"]
        );
        assert_eq!(
            t.csv(false).lines().last(),
            Some("b,job.rota.dev/größe,,\"q,r\",5d,<none>")
        );
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let mut t = Table {
            header: vec!["A".into(), "B".into()],
            rows: Vec::new(),
        };
        for (a, b) in [("日本", "x"), ("ab", "y")] {
            t.rows.push(Row {
                cells: vec![a.into(), b.into()],
                ..Row::default()
            });
        }
        assert_eq!(t.render(true, false), "A      B\n日本   x\nab     y\n");
    }

    #[test]
    fn colour_does_not_change_the_alignment() {
        let t = from_server(&server_table(), None, &View::default(), now());
        let plain = t.render(true, false);
        let mut coloured = t.render(true, true);
        assert!(coloured.contains("\x1b[34mRunning\x1b[0m"));
        for code in ["\x1b[34m", "\x1b[0m"] {
            coloured = coloured.replace(code, "");
        }
        assert_eq!(coloured, plain);
    }

    #[test]
    fn a_server_without_tables_still_gives_names_and_ages() {
        let t = from_server(
            &json!({"kind": "JobList", "items": [{"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}}]}),
            None,
            &View::default(),
            now(),
        );
        assert_eq!(t.render(true, false), "NAME   AGE\nx      90s\n");
    }
}
