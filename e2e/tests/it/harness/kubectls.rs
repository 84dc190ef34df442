//! Which kubectl programs this machine has, and which version each of them is.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{on_path, run};

/// A kubectl that answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kubectl {
    /// The 20 of 1.20.
    pub minor: u32,
    /// Where it is.
    pub program: PathBuf,
}

impl Kubectl {
    /// Asks a program for its version; `None` if it is no kubectl.
    pub fn ask(program: &Path) -> Option<Kubectl> {
        let said = run(Command::new(program).args(["version", "--client", "-o", "json"]));
        let said: serde_json::Value = serde_json::from_str(&said.stdout).ok()?;
        let version = said["clientVersion"]["gitVersion"].as_str()?;
        Some(Kubectl {
            minor: version
                .strip_prefix("v1.")?
                .split('.')
                .next()?
                .parse()
                .ok()?,
            program: program.to_path_buf(),
        })
    }
}

/// Every kubectl on the PATH and beside it, oldest first: `kubectl` itself, and those that carry a
/// version in their names, such as `kubectl.1.30`.
pub fn installed() -> Vec<Kubectl> {
    let mut directories: Vec<PathBuf> = std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .collect();
    // Packages put all versions into a directory of their own and link one to the PATH.
    if let Some(target) = on_path("kubectl").and_then(|p| p.canonicalize().ok()) {
        directories.extend(target.parent().map(Path::to_path_buf));
    }
    let files = directories.iter().filter_map(|d| std::fs::read_dir(d).ok());
    let mut programs: Vec<PathBuf> = files
        .flatten()
        .flatten()
        .filter(|file| file.file_name().to_str().is_some_and(is_versioned))
        .filter_map(|file| file.path().canonicalize().ok())
        .collect();
    programs.sort();
    programs.dedup();
    let mut found: Vec<Kubectl> = programs.iter().filter_map(|p| Kubectl::ask(p)).collect();
    found.sort();
    found
}

/// `kubectl` with nothing but a version behind it; not `kubectl-some_plugin`.
fn is_versioned(name: &str) -> bool {
    name.strip_prefix("kubectl").is_some_and(|rest| {
        rest.chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | 'v'))
    })
}
