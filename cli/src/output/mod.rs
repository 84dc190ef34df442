//! Output formats: how `-o` is read and how objects are written in each.

pub mod amount;
pub mod columns;
pub mod jsonpath;
pub mod quantity;
pub mod table;
pub mod time;

use serde_json::{Value, json};

use crate::discovery::Resource;
use crate::error::{CliError, Result};
use columns::Columns;
use jsonpath::Template;

/// What `-o` asks for.
#[derive(Clone, Debug)]
pub enum Format {
    /// A table.
    Table {
        /// With the columns of lower priority.
        wide: bool,
    },
    /// The table as comma-separated values.
    Csv,
    /// YAML.
    Yaml,
    /// JSON.
    Json,
    /// One JSON object per line.
    JsonLines,
    /// `kind.group/name`.
    Name,
    /// A template of JSONPath expressions.
    JsonPath(Template),
    /// A table of JSONPath expressions.
    Custom(Columns),
}

/// All forms of `-o`, for messages.
const FORMATS: &str =
    "wide, yaml, json, jsonl, csv, name, jsonpath=TEMPLATE, custom-columns=HEADER:PATH,...";

impl Format {
    /// Reads the value of `-o`; absent is a table.
    pub fn parse(text: Option<&str>) -> Result<Format> {
        let Some(text) = text else {
            return Ok(Format::Table { wide: false });
        };
        let (word, rest) = match text.split_once('=') {
            Some((w, r)) => (w, Some(r)),
            None => (text, None),
        };
        match (word, rest) {
            ("", None) => Ok(Format::Table { wide: false }),
            ("wide", None) => Ok(Format::Table { wide: true }),
            ("csv", None) => Ok(Format::Csv),
            ("yaml", None) => Ok(Format::Yaml),
            ("json", None) => Ok(Format::Json),
            ("jsonl", None) => Ok(Format::JsonLines),
            ("name", None) => Ok(Format::Name),
            ("jsonpath", Some(t)) => Ok(Format::JsonPath(Template::parse(t)?)),
            ("custom-columns", Some(t)) => Ok(Format::Custom(Columns::parse(t)?)),
            ("jsonpath" | "custom-columns", None) => Err(CliError::new(
                format!("-o {word} needs an expression"),
                match word {
                    "jsonpath" => "for example -o jsonpath='{.items[*].metadata.name}'",
                    _ => "for example -o custom-columns=NAME:.metadata.name,PHASE:.status.phase",
                },
            )),
            _ => Err(CliError::new(
                format!("unknown output format {text:?}"),
                format!("one of: {FORMATS}"),
            )),
        }
    }

    /// Whether whole objects are needed, not the server's table.
    pub fn needs_objects(&self) -> bool {
        !matches!(self, Format::Table { .. } | Format::Csv)
    }
}

/// Objects in a format other than a table; `single` writes the one object, otherwise a List.
pub fn objects(format: &Format, mut items: Vec<Value>, single: bool) -> Result<String> {
    if matches!(format, Format::Yaml | Format::Json | Format::JsonLines) {
        items.iter_mut().for_each(drop_managed_fields);
    }
    let whole = |items: Vec<Value>| match <[Value; 1]>::try_from(items) {
        Ok([one]) if single => one,
        Ok([one]) => list(vec![one]),
        Err(items) => list(items),
    };
    Ok(match format {
        Format::Yaml => to_yaml(&whole(items))?,
        Format::Json => to_json(&whole(items))?,
        Format::JsonLines => items.iter().map(|i| format!("{i}\n")).collect(),
        Format::JsonPath(t) => t.render(&whole(items))?,
        Format::Custom(c) => c.render(&items, true),
        Format::Name => items.iter().map(|i| format!("{}\n", label_of(i))).collect(),
        Format::Table { .. } | Format::Csv => String::new(),
    })
}

/// `job.rota.dev/pi` from the object alone.
fn label_of(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or("").to_lowercase();
    let name = object["metadata"]["name"].as_str().unwrap_or("");
    match object["apiVersion"]
        .as_str()
        .and_then(|v| v.split_once('/'))
    {
        Some((group, _)) => format!("{kind}.{group}/{name}"),
        None => format!("{kind}/{name}"),
    }
}

/// `job.rota.dev/pi`.
pub fn named(resource: &Resource, name: &str) -> String {
    format!("{}/{name}", resource.label())
}

fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}})
}

fn drop_managed_fields(object: &mut Value) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
}

/// JSON of a value, indented as kubectl does it.
pub fn to_json(v: &Value) -> Result<String> {
    let mut text = Vec::new();
    let four = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut writer = serde_json::Serializer::with_formatter(&mut text, four);
    serde::Serialize::serialize(v, &mut writer).map_err(unwritable)?;
    text.push(b'\n');
    String::from_utf8(text).map_err(unwritable)
}

/// YAML of a value.
pub fn to_yaml(v: &Value) -> Result<String> {
    Ok(rota_api::yaml::to_string(v))
}

fn unwritable(e: impl std::fmt::Display) -> CliError {
    CliError::new(format!("writing the object: {e}"), "try -o json")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn job(name: &str) -> Value {
        json!({"apiVersion": "rota.dev/v1", "kind": "Job", "metadata": {"name": name, "managedFields": [1]}})
    }

    #[test]
    fn formats_are_read_and_bad_ones_explained() {
        assert!(matches!(
            Format::parse(None).unwrap(),
            Format::Table { wide: false }
        ));
        assert!(matches!(
            Format::parse(Some("wide")).unwrap(),
            Format::Table { wide: true }
        ));
        assert!(matches!(
            Format::parse(Some("jsonpath={.a}")).unwrap(),
            Format::JsonPath(_)
        ));
        for bad in [
            "xml",
            "jsonpath",
            "custom-columns",
            "go-template=x",
            "yaml=1",
        ] {
            assert!(
                !Format::parse(Some(bad)).unwrap_err().remedy.is_empty(),
                "{bad}"
            );
        }
    }

    #[test]
    fn one_object_is_itself_and_several_are_a_list() {
        let text = objects(&Format::Json, vec![job("a")], true).unwrap();
        let v: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(v["metadata"], json!({"name": "a"}));
        let v: Value =
            serde_json::from_str(&objects(&Format::Json, vec![job("a")], false).unwrap()).unwrap();
        assert_eq!(
            (v["kind"].as_str(), v["items"].as_array().map(Vec::len)),
            (Some("List"), Some(1))
        );
        assert_eq!(
            objects(&Format::Name, vec![job("a"), job("b")], false).unwrap(),
            "job.rota.dev/a\njob.rota.dev/b\n"
        );
        assert_eq!(
            objects(&Format::JsonLines, vec![job("a"), job("b")], false)
                .unwrap()
                .lines()
                .count(),
            2
        );
    }
}
