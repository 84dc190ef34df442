//! What the server serves: kinds by any of their names. Nothing is compiled in.

use serde_json::Value;

use crate::client::{Api, Failure, encode};
use crate::error::{CliError, Result};

/// The one-request form; servers without it answer with the plain lists.
const ACCEPT_AGGREGATED: &str =
    "application/json;v=v2;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList,application/json";

/// One resource that the server serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// Group, empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Plural name.
    pub plural: String,
    /// Singular name.
    pub singular: String,
    /// Kind.
    pub kind: String,
    /// Short names.
    pub short_names: Vec<String>,
    /// Categories such as `all`.
    pub categories: Vec<String>,
    /// Lives in a namespace.
    pub namespaced: bool,
    /// Verbs.
    pub verbs: Vec<String>,
}

impl Resource {
    /// `rota.dev/v1` or `v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `job.rota.dev` or `node`: how results name an object's kind.
    pub fn label(&self) -> String {
        let singular = if self.singular.is_empty() {
            self.kind.to_lowercase()
        } else {
            self.singular.clone()
        };
        if self.group.is_empty() {
            singular
        } else {
            format!("{singular}.{}", self.group)
        }
    }

    /// `jobs.rota.dev` or `nodes`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Path of the collection; `None` is all namespaces.
    pub fn collection(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        match namespace {
            Some(n) if self.namespaced => {
                format!("{root}/namespaces/{}/{}", encode(n), self.plural)
            }
            _ => format!("{root}/{}", self.plural),
        }
    }

    /// Path of an object.
    pub fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.collection(Some(namespace)), encode(name))
    }

    fn answers_to(&self, name: &str) -> bool {
        self.plural == name
            || self.singular == name
            || self.kind.eq_ignore_ascii_case(name)
            || self.short_names.iter().any(|s| s == name)
    }

    fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// All resources, ours first, so that `jobs` means ours on any server.
#[derive(Clone, Debug, Default)]
pub struct Discovery {
    resources: Vec<Resource>,
}

impl Discovery {
    /// Asks the server.
    pub async fn load(api: &Api) -> Result<Self> {
        let (core, groups) = futures::join!(
            api.get_as("/api", ACCEPT_AGGREGATED),
            api.get_as("/apis", ACCEPT_AGGREGATED)
        );
        let (core, groups) = (core?, groups?);
        let mut resources = Vec::new();
        for answer in [&core, &groups] {
            if answer["kind"] == "APIGroupDiscoveryList" {
                resources.extend(aggregated(answer));
            } else {
                resources.extend(plain(api, answer).await?);
            }
        }
        Ok(Self::from_resources(resources))
    }

    /// From known resources.
    pub fn from_resources(mut resources: Vec<Resource>) -> Self {
        resources.sort_by_key(|r| r.group != rota_api::names::GROUP);
        Discovery { resources }
    }

    /// A kind by plural, singular, kind or short name, alone or as `name.group` or `name.version.group`.
    pub fn resolve(&self, name: &str) -> Result<&Resource> {
        let lower = name.to_lowercase();
        if let Some(r) = self.resources.iter().find(|r| r.answers_to(&lower)) {
            return Ok(r);
        }
        if let Some((head, rest)) = lower.split_once('.') {
            let in_group = self.resources.iter().find(|r| {
                r.answers_to(head)
                    && (r.group == rest || format!("{}.{}", r.version, r.group) == rest)
            });
            if let Some(r) = in_group {
                return Ok(r);
            }
        }
        let near = self
            .resources
            .iter()
            .flat_map(|r| [&r.plural, &r.singular].into_iter().chain(&r.short_names))
            .filter(|n| !n.is_empty())
            .map(|n| (distance(n, &lower), n))
            .min();
        let remedy = match near {
            Some((d, n)) if d <= 2 => format!("did you mean `{n}`?"),
            _ => format!("this server has: {}", self.names()),
        };
        Err(CliError::new(
            format!("the server has no kind {name:?}"),
            remedy,
        ))
    }

    /// A kind by what a manifest says.
    pub fn by_kind(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        self.resources
            .iter()
            .find(|r| r.kind == kind && r.api_version() == api_version)
    }

    /// Kinds of a category, such as `all`, that can be listed.
    pub fn category(&self, name: &str) -> Vec<&Resource> {
        self.resources
            .iter()
            .filter(|r| r.can("list") && r.categories.iter().any(|c| c == name))
            .collect()
    }

    /// All plural names, for messages and completion.
    pub fn names(&self) -> String {
        let mut names: Vec<&str> = self
            .resources
            .iter()
            .filter(|r| r.can("list"))
            .map(|r| r.plural.as_str())
            .collect();
        names.dedup();
        names.join(", ")
    }
}

fn text(v: &Value) -> String {
    v.as_str().unwrap_or("").to_string()
}

fn texts(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().map(text).collect()
}

fn aggregated(list: &Value) -> Vec<Resource> {
    let mut out = Vec::new();
    for group in list["items"].as_array().into_iter().flatten() {
        // The first version is the preferred one; the others only add what it lacks.
        let mut seen: Vec<String> = Vec::new();
        for version in group["versions"].as_array().into_iter().flatten() {
            let mut here = Vec::new();
            for r in version["resources"].as_array().into_iter().flatten() {
                let plural = text(&r["resource"]);
                let kind = text(&r["responseKind"]["kind"]);
                if kind.is_empty() || seen.contains(&plural) {
                    continue;
                }
                here.push(plural.clone());
                out.push(Resource {
                    group: text(&group["metadata"]["name"]),
                    version: text(&version["version"]),
                    plural,
                    singular: text(&r["singularResource"]),
                    kind,
                    short_names: texts(&r["shortNames"]),
                    categories: texts(&r["categories"]),
                    namespaced: r["scope"] == "Namespaced",
                    verbs: texts(&r["verbs"]),
                });
            }
            seen.extend(here);
        }
    }
    out
}

async fn plain(api: &Api, answer: &Value) -> std::result::Result<Vec<Resource>, Failure> {
    let mut paths = Vec::new();
    if answer["kind"] == "APIVersions" {
        for v in texts(&answer["versions"]) {
            paths.push((String::new(), v.clone(), format!("/api/{v}")));
        }
    }
    for g in answer["groups"].as_array().into_iter().flatten() {
        let (group, version) = (text(&g["name"]), text(&g["preferredVersion"]["version"]));
        let path = format!("/apis/{group}/{version}");
        paths.push((group, version, path));
    }
    let mut out = Vec::new();
    for (group, version, path) in paths {
        let list = match api.get(&path).await {
            Ok(l) => l,
            // An extension server that is down must not take the rest with it.
            Err(Failure::Status {
                code: 404 | 503, ..
            }) => continue,
            Err(e) => return Err(e),
        };
        for r in list["resources"].as_array().into_iter().flatten() {
            let plural = text(&r["name"]);
            if plural.contains('/') {
                continue;
            }
            out.push(Resource {
                group: group.clone(),
                version: version.clone(),
                plural,
                singular: text(&r["singularName"]),
                kind: text(&r["kind"]),
                short_names: texts(&r["shortNames"]),
                categories: texts(&r["categories"]),
                namespaced: r["namespaced"] == true,
                verbs: texts(&r["verbs"]),
            });
        }
    }
    Ok(out)
}

/// Edit distance, for "did you mean".
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let change = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn sample() -> Discovery {
        let list = json!({"items": [
            {"metadata": {"name": "batch"}, "versions": [{"version": "v1", "resources": [
                {"resource": "jobs", "singularResource": "job", "responseKind": {"kind": "Job"}, "scope": "Namespaced", "verbs": ["list"]}]}]},
            {"metadata": {"name": "rota.dev"}, "versions": [{"version": "v1", "resources": [
                {"resource": "jobs", "singularResource": "job", "shortNames": ["rj"], "categories": ["all"],
                 "responseKind": {"kind": "Job"}, "scope": "Namespaced", "verbs": ["list"]},
                {"resource": "queues", "singularResource": "queue", "responseKind": {"kind": "Queue"}, "scope": "Cluster", "verbs": ["list"]}]},
              {"version": "v1alpha1", "resources": [
                {"resource": "jobs", "singularResource": "job", "responseKind": {"kind": "Job"}, "scope": "Namespaced", "verbs": ["list"]}]}]}]});
        Discovery::from_resources(aggregated(&list))
    }

    #[test]
    fn a_kind_answers_to_all_its_names_and_ours_comes_first() {
        let d = sample();
        for name in [
            "jobs",
            "job",
            "rj",
            "Job",
            "jobs.rota.dev",
            "job.v1.rota.dev",
        ] {
            let r = d.resolve(name).unwrap();
            assert_eq!(
                (r.group.as_str(), r.version.as_str()),
                ("rota.dev", "v1"),
                "{name}"
            );
        }
        assert_eq!(d.resolve("jobs.batch").unwrap().group, "batch");
        assert_eq!(d.category("all").len(), 1);
        assert_eq!(d.by_kind("batch/v1", "Job").unwrap().group, "batch");
    }

    #[test]
    fn an_unknown_kind_gets_a_suggestion() {
        assert_eq!(
            sample().resolve("jbos").unwrap_err().remedy,
            "did you mean `job`?"
        );
        assert!(
            sample()
                .resolve("zzzzzzzz")
                .unwrap_err()
                .remedy
                .contains("queues")
        );
    }

    #[test]
    fn paths_follow_group_and_scope() {
        let d = sample();
        let job = d.resolve("jobs").unwrap();
        assert_eq!(
            job.object("ns", "pi"),
            "/apis/rota.dev/v1/namespaces/ns/jobs/pi"
        );
        assert_eq!(job.collection(None), "/apis/rota.dev/v1/jobs");
        assert_eq!(
            d.resolve("queues").unwrap().object("ns", "q"),
            "/apis/rota.dev/v1/queues/q"
        );
    }
}
