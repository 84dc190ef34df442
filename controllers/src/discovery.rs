//! Which kinds the API serves, for controllers that deal with all of them.

use serde_json::Value;

use crate::runtime::{Failure, Rest, Target};

/// A served kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// `/api/v1` or `/apis/<group>/<version>`.
    pub base: String,
    /// Group, empty for the core group.
    pub group: String,
    /// Plural.
    pub plural: String,
    /// Kind.
    pub kind: String,
    /// Lives in namespaces.
    pub namespaced: bool,
    /// get, list, watch ...
    pub verbs: Vec<String>,
}

impl Resource {
    /// Whether all these verbs are served.
    pub fn can(&self, verbs: &[&str]) -> bool {
        verbs
            .iter()
            .all(|v| self.verbs.iter().any(|have| have == v))
    }

    /// Collection over all namespaces.
    pub fn everywhere(&self) -> String {
        format!("{}/{}", self.base, self.plural)
    }

    /// One object.
    pub fn target(&self, namespace: &str, name: &str) -> Target {
        Target {
            base: self.base.clone(),
            plural: self.plural.clone(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// Kinds that have a remover of their own (placement) and that nobody else deletes.
    pub fn is_placements(&self) -> bool {
        self.group == rota_api::names::GROUP
            && (self.plural == "tasks" || self.plural == "jobledgers")
    }
}

/// All served kinds, each in its group's preferred version.
pub async fn discover(rest: &Rest) -> Result<Vec<Resource>, Failure> {
    let mut found = Vec::new();
    let core: Value = rest.get("/api/v1").await?;
    collect("/api/v1", "", &core, &mut found);
    let groups: Value = rest.get("/apis").await?;
    for group in groups["groups"].as_array().into_iter().flatten() {
        let Some(version) = group["preferredVersion"]["groupVersion"].as_str() else {
            continue;
        };
        let base = format!("/apis/{version}");
        let list: Value = rest.get(&base).await?;
        let name = group["name"].as_str().unwrap_or("");
        collect(&base, name, &list, &mut found);
    }
    Ok(found)
}

fn collect(base: &str, group: &str, list: &Value, found: &mut Vec<Resource>) {
    for resource in list["resources"].as_array().into_iter().flatten() {
        let (Some(plural), Some(kind)) = (resource["name"].as_str(), resource["kind"].as_str())
        else {
            continue;
        };
        // A slash names a subresource.
        if plural.contains('/') {
            continue;
        }
        found.push(Resource {
            base: base.into(),
            group: group.into(),
            plural: plural.into(),
            kind: kind.into(),
            namespaced: resource["namespaced"] == true,
            verbs: resource["verbs"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(String::from))
                .collect(),
        });
    }
}
