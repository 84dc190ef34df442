//! Manifests: files, directories and stdin to objects, each with where it came from.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{CliError, Result};

/// Files of a directory that are read.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
/// Larger manifests are a mistake, such as a log or an image named by accident.
const MAX_FILE: u64 = 256 << 20;

/// An object as the user wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// File and document, for messages.
    pub source: String,
    /// The object.
    pub object: Value,
}

impl Manifest {
    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or("")
    }
    /// `kind`.
    pub fn kind(&self) -> &str {
        self.object["kind"].as_str().unwrap_or("")
    }
    /// `apiVersion`.
    pub fn api_version(&self) -> &str {
        self.object["apiVersion"].as_str().unwrap_or("")
    }
}

/// Reads all paths in order; `-` is stdin, a directory its manifests by name.
pub fn read_all(paths: &[PathBuf], recursive: bool) -> Result<Vec<Manifest>> {
    let mut out = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| {
                CliError::new(format!("stdin: {e}"), "pipe YAML or JSON into the command")
            })?;
            parse(&text, "stdin", &mut out)?;
        } else if path.is_dir() {
            let before = out.len();
            directory(path, recursive, &mut out)?;
            if out.len() == before {
                return Err(CliError::new(
                    format!("directory {} has no manifests", path.display()),
                    "it is searched for *.yaml, *.yml and *.json; -R also searches below it",
                ));
            }
        } else {
            file(path, &mut out)?;
        }
    }
    Ok(out)
}

fn directory(dir: &Path, recursive: bool, out: &mut Vec<Manifest>) -> Result<()> {
    let unreadable = |e: std::io::Error| {
        CliError::new(
            format!("{}: {e}", dir.display()),
            "check the path and its permissions",
        )
    };
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        entries.push(entry.map_err(unreadable)?.path());
    }
    entries.sort();
    for path in entries {
        if path.is_dir() {
            if recursive {
                directory(&path, true, out)?;
            }
        } else if path
            .extension()
            .and_then(|e| e.to_str())
            .is_some_and(|e| EXTENSIONS.contains(&e))
        {
            file(&path, out)?;
        }
    }
    Ok(())
}

fn file(path: &Path, out: &mut Vec<Manifest>) -> Result<()> {
    let shown = path.display().to_string();
    let unreadable = |e: std::io::Error| {
        CliError::new(
            format!("{shown}: {e}"),
            "check the path and its permissions",
        )
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_FILE {
        return Err(CliError::new(
            format!("{shown} has {size} bytes, which is more than a manifest may have"),
            "split it into several files",
        ));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    parse(&text, &shown, out)
}

/// All documents of a text, lists taken apart.
pub fn parse(text: &str, source: &str, out: &mut Vec<Manifest>) -> Result<()> {
    let documents = rota_api::yaml::documents(text).map_err(|e| {
        CliError::new(
            format!("{source}: {e}"),
            "correct the syntax; a manifest is YAML or JSON, documents are separated by ---",
        )
    })?;
    let many = documents.len() > 1;
    for (i, document) in documents.into_iter().enumerate() {
        let source = if many {
            format!("{source} (document {})", i + 1)
        } else {
            source.to_string()
        };
        flatten(document, source, out)?;
    }
    Ok(())
}

fn flatten(mut object: Value, source: String, out: &mut Vec<Manifest>) -> Result<()> {
    let is_list =
        object["kind"].as_str().is_some_and(|k| k.ends_with("List")) && object["items"].is_array();
    if is_list {
        if let Some(Value::Array(items)) = object.get_mut("items").map(Value::take) {
            for item in items {
                flatten(item, source.clone(), out)?;
            }
        }
        return Ok(());
    }
    for field in ["apiVersion", "kind"] {
        if object[field].as_str().is_none_or(str::is_empty) {
            return Err(CliError::new(
                format!("{source}: {field} is missing"),
                "a manifest starts like `apiVersion: rota.dev/v1` and `kind: Job`",
            ));
        }
    }
    out.push(Manifest { source, object });
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn documents_and_lists_are_taken_apart() {
        let mut out = Vec::new();
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: b}}\n- {apiVersion: rota.dev/v1, kind: Job, metadata: {name: c}}\n";
        parse(text, "f", &mut out).unwrap();
        assert_eq!(
            out.iter().map(Manifest::name).collect::<Vec<_>>(),
            ["a", "b", "c"]
        );
        assert_eq!(out[2].source, "f (document 2)");
    }

    #[test]
    fn mistakes_name_the_file() {
        let mut out = Vec::new();
        assert!(
            parse("a: [", "f.yaml", &mut out)
                .unwrap_err()
                .cause
                .starts_with("f.yaml: ")
        );
        assert_eq!(
            parse("kind: Job", "f", &mut out).unwrap_err().cause,
            "f: apiVersion is missing"
        );
        assert!(parse("just text", "f", &mut out).is_err());
    }

    #[test]
    fn a_directory_gives_its_manifests_in_order_and_only_with_r_those_below() {
        let dir = tempfile::tempdir().unwrap();
        let one = |n: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {n}}}\n");
        std::fs::write(dir.path().join("b.yaml"), one("b")).unwrap();
        std::fs::write(dir.path().join("a.yml"), one("a")).unwrap();
        std::fs::write(dir.path().join("readme.txt"), "no").unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(
            dir.path().join("sub/c.json"),
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"}}"#,
        )
        .unwrap();
        let names = |r| {
            read_all(&[dir.path().to_path_buf()], r)
                .unwrap()
                .iter()
                .map(|m| m.name().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(false), ["a", "b"]);
        assert_eq!(names(true), ["a", "b", "c"]);
        assert!(read_all(&[dir.path().join("none")], false).is_err());
    }
}
