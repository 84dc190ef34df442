//! `--merge-kubeconfig`: adds the cluster to the user's own kubeconfig.

use std::path::{Path, PathBuf};

use rota_apiserver::auth::pki::write_private;
use serde_json::{Value, json};

use crate::fail::{Fail, Result};

/// The file that kubectl would write to: the first of $KUBECONFIG, else ~/.kube/config.
fn target() -> Option<PathBuf> {
    let first = std::env::var_os("KUBECONFIG")
        .and_then(|list| std::env::split_paths(&list).find(|p| !p.as_os_str().is_empty()));
    first.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".kube/config")))
}

/// Puts cluster, user and context `rota` of `admin` into the user's kubeconfig and makes the
/// context current; all else in there stays.
pub fn merge_into_users(admin: &str) -> Result<PathBuf> {
    let path = target().ok_or_else(|| {
        Fail::new(
            "there is no kubeconfig to merge into",
            "set HOME or KUBECONFIG",
        )
    })?;
    merge_file(admin, &path)?;
    Ok(path)
}

fn merge_file(admin: &str, path: &Path) -> Result<()> {
    let fail = |e: &dyn std::fmt::Display| {
        Fail::new(
            format!("cannot merge into {}: {e}", path.display()),
            "mend that file, or start without --merge-kubeconfig and use the kubeconfig in the data directory",
        )
    };
    let old = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(fail(&e)),
    };
    let old: Value = if old.trim().is_empty() {
        json!({})
    } else {
        serde_yaml::from_str(&old).map_err(|e| fail(&e))?
    };
    let new: Value = serde_yaml::from_str(admin).map_err(|e| fail(&e))?;
    let merged = merge(old, &new).ok_or_else(|| fail(&"it is not a kubeconfig"))?;
    let text = serde_yaml::to_string(&merged).map_err(|e| fail(&e))?;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|e| fail(&e))?;
    }
    // Follow a link, so that a kubeconfig kept elsewhere stays a link.
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    write_private(&real, text.as_bytes(), true)?;
    Ok(())
}

fn merge(mut old: Value, new: &Value) -> Option<Value> {
    let map = old.as_object_mut()?;
    map.entry("apiVersion").or_insert(json!("v1"));
    map.entry("kind").or_insert(json!("Config"));
    for list in ["clusters", "users", "contexts"] {
        let entries = map.entry(list).or_insert(json!([]));
        if entries.is_null() {
            *entries = json!([]);
        }
        let entries = entries.as_array_mut()?;
        for entry in new[list].as_array()? {
            entries.retain(|e| e["name"] != entry["name"]);
            entries.push(entry.clone());
        }
    }
    map.insert("current-context".into(), new["current-context"].clone());
    Some(old)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ADMIN: &str = "apiVersion: v1\nkind: Config\nclusters: [{name: rota, cluster: {server: new}}]\nusers: [{name: a, user: {}}]\ncontexts: [{name: rota, context: {cluster: rota, user: a}}]\ncurrent-context: rota\n";

    #[test]
    fn merging_twice_is_merging_once_and_keeps_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/config");
        merge_file(ADMIN, &path).unwrap();
        std::fs::write(
            &path,
            "kind: Config\nclusters: [{name: mine, cluster: {server: old}}]\nusers: null\nextensions: [1]\ncurrent-context: mine\n",
        )
        .unwrap();
        for _ in 0..2 {
            merge_file(ADMIN, &path).unwrap();
            let v: Value = serde_yaml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(v["clusters"].as_array().unwrap().len(), 2);
            assert_eq!(v["clusters"][0]["name"], "mine");
            assert_eq!(v["clusters"][1]["cluster"]["server"], "new");
            assert_eq!(v["extensions"], json!([1]));
            assert_eq!(v["current-context"], "rota");
        }
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        for text in ["- a list", "clusters: text", "{{{"] {
            std::fs::write(&path, text).unwrap();
            assert!(merge_file(ADMIN, &path).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
