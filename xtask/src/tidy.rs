//! House rules that no compiler checks: where words, sizes and dependencies may go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A longer file usually holds two ideas; it is listed, not refused.
const LINES_MAX: usize = 600;
/// Crates that the scheduler must not know: it is pure, and its manifest proves it.
const IMPURE: &[&str] = &["tokio", "kube", "serde", "k8s-openapi", "rota-"];
/// Crates of which a second version would double build time or split a global (TLS provider, types
/// in public signatures).
const ONE_VERSION: &[&str] = &[
    "axum",
    "cel",
    "http",
    "hyper",
    "json-patch",
    "k8s-openapi",
    "kube",
    "prost",
    "rustls",
    "schemars",
    "serde-saphyr",
    "tokio",
    "tonic",
    "tower",
    "tower-http",
];
/// Directories that are not ours to check; in a linked worktree `.git` is a file.
const SKIPPED: &[&str] = &["target", ".git", "node_modules", "proptest-regressions"];
/// Parts of paths that exist on one machine only, split so that this file does not hold them itself.
const MACHINE_PATHS: &[[&str; 2]] = &[
    ["/work/", "main"],
    ["/work/", "shared"],
    ["/tmp/", "tgt"],
    ["/home/", "runner"],
    ["/root/", "."],
];

/// Runs every check and fails with all that was found.
pub fn run(root: &Path) -> Result<()> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    let mut problems = Vec::new();
    let mut long = Vec::new();
    for path in &files {
        let name = path
            .strip_prefix(root)
            .unwrap_or(path)
            .display()
            .to_string();
        let Ok(text) = std::fs::read_to_string(path) else {
            continue;
        };
        problems.extend(check_text(&name, &text));
        if name.ends_with(".rs") && text.lines().count() > LINES_MAX {
            long.push(format!("{name} ({} lines)", text.lines().count()));
        }
    }
    let read = |name: &str| {
        std::fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))
    };
    problems.extend(check_scheduler(&read("scheduler/Cargo.toml")?));
    problems.extend(check_listed(
        &read("Cargo.toml")?,
        &read("docs/dependencies.md")?,
    ));
    problems.extend(check_versions(&read("Cargo.lock")?));
    for file in &long {
        println!("long: {file}");
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(())
}

fn collect(dir: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_string();
        let kind = entry.file_type()?;
        if SKIPPED.contains(&name.as_str()) {
            continue;
        }
        if kind.is_dir() {
            collect(&entry.path(), out)?;
        } else if kind.is_file() {
            out.push(entry.path());
        }
    }
    Ok(())
}

fn check_text(name: &str, text: &str) -> Vec<String> {
    let mut out = Vec::new();
    // Tests are named after what they test.
    let is_test =
        name.ends_with("_tests.rs") || name.contains("/tests/") && !name.ends_with("/main.rs");
    if name.ends_with(".rs") && !is_test && !text.starts_with("//!") {
        out.push(format!(
            "{name}: the first line does not say what the file owns (//! ...)"
        ));
    }
    for [a, b] in MACHINE_PATHS {
        let path = format!("{a}{b}");
        if let Some(at) = text.lines().position(|l| l.contains(&path)) {
            out.push(format!("{name}:{}: a path of one machine ({path})", at + 1));
        }
    }
    out
}

/// Names of the entries of a table of a manifest, such as `dependencies`.
fn entries(manifest: &str, table: &str) -> Vec<String> {
    let header = format!("[{table}]");
    manifest
        .lines()
        .skip_while(|l| l.trim() != header)
        .skip(1)
        .take_while(|l| !l.trim_start().starts_with('['))
        .filter_map(|l| {
            let name = l.split(['=', '.']).next()?.trim();
            (!name.is_empty() && !name.starts_with('#')).then(|| name.to_string())
        })
        .collect()
}

fn check_scheduler(manifest: &str) -> Vec<String> {
    entries(manifest, "dependencies")
        .into_iter()
        .filter(|d| {
            IMPURE
                .iter()
                .any(|i| d == i || (i.ends_with('-') && d.starts_with(i)))
        })
        .map(|d| format!("scheduler/Cargo.toml: depends on {d}, but the scheduler is pure"))
        .collect()
}

fn check_listed(manifest: &str, page: &str) -> Vec<String> {
    entries(manifest, "workspace.dependencies")
        .into_iter()
        .filter(|d| !d.starts_with("rota-"))
        .filter(|d| !mentions(page, d))
        .map(|d| format!("docs/dependencies.md: {d} is not listed"))
        .collect()
}

/// Whether the page holds the name as a word of its own.
fn mentions(page: &str, name: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    page.split(|c: char| !part(c)).any(|w| w == name)
}

fn check_versions(lock: &str) -> Vec<String> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut name = "";
    for line in lock.lines() {
        if let Some(n) = line.strip_prefix("name = ") {
            name = n.trim_matches('"');
        } else if let Some(v) = line.strip_prefix("version = ") {
            found.entry(name).or_default().push(v.trim_matches('"'));
        }
    }
    ONE_VERSION
        .iter()
        .filter_map(|n| {
            let versions = found.get(n)?;
            (versions.len() > 1)
                .then(|| format!("Cargo.lock: {n} in versions {}", versions.join(", ")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        assert!(check_text("a.rs", "//! Owns x.\nfn x() {}\n").is_empty());
        assert_eq!(check_text("a.rs", "fn x() {}\n").len(), 1);
        let path = MACHINE_PATHS[0].concat();
        let found = check_text("a.md", &format!("one\nsee {path}\n"));
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("a.md:2:"));
    }

    #[test]
    fn manifests() {
        let bad = "[dependencies]\nfixedbitset.workspace = true\ntokio.workspace = true\nrota-api = {}\n[dev-dependencies]\nserde = \"1\"\n";
        assert_eq!(check_scheduler(bad).len(), 2);
        let root = "[workspace.dependencies]\nrota-api = { path = \"api\" }\naxum = \"1\"\nhttp-body = \"1\"\n\n[profile.dev]\nx = 1\n";
        assert_eq!(check_listed(root, "| `axum` | http-body-util |").len(), 1);
        assert!(check_listed(root, "axum and http-body").is_empty());
    }

    #[test]
    fn locks() {
        let one = "name = \"serde\"\nversion = \"1.0.1\"\n";
        assert!(check_versions(one).is_empty());
        assert_eq!(
            check_versions(&one.replace("serde", "tokio").repeat(2)).len(),
            1
        );
    }
}
