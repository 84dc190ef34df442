//! The table of kinds: one row per kind, from which the API server derives everything it does with it.

use std::collections::BTreeMap;

use kube::CustomResourceExt;
use serde_json::{Value, json};

/// A column of the server-side table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Header.
    pub name: String,
    /// OpenAPI type: string, integer, number, boolean or date (shown as an age).
    pub type_: String,
    /// Format hint, `name` for the name column, else empty.
    pub format: String,
    /// What it shows.
    pub description: String,
    /// 0 is always shown, above only with `-o wide`.
    pub priority: i32,
    /// Where the value is: a path such as `.status.phase`, or one of the computed cells that `apiserver::table` knows.
    pub json_path: String,
}

/// Paths of the scale subresource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// For example `.spec.replicas`.
    pub spec: String,
    /// For example `.status.replicas`.
    pub status: String,
    /// For example `.status.selector`; empty without.
    pub selector: String,
}

/// How names of a kind are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, up to this many characters.
    Subdomain(usize),
    /// RFC 1123 label, up to 63 characters.
    Label,
}

/// One broken rule, as a Status cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// FieldValueInvalid, FieldValueRequired, FieldValueNotSupported, FieldValueForbidden, FieldValueDuplicate, FieldValueTooLong, FieldValueTypeInvalid ...
    pub reason: &'static str,
    /// Path such as `spec.template.spec.command`.
    pub field: String,
    /// For people, in Kubernetes' form: `Invalid value: -1: must be ...`.
    pub message: String,
}

/// Rules beyond the schema: `(new object, old object if this is an update) -> what is wrong`.
pub type Rules = fn(&Value, Option<&Value>) -> Vec<FieldError>;

/// Normalisation before validation and storage: `(new object, old object if this is an update)`.
/// Folds a Secret's stringData, gives a Namespace its finalizer and label, and the like.
pub type Prepare = fn(&mut Value, Option<&Value>);

/// One row: all that the server needs to know of a kind.
#[derive(Clone, Debug)]
pub struct Kind {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// Version in it.
    pub version: &'static str,
    /// `Job`.
    pub kind: &'static str,
    /// `jobs`.
    pub plural: &'static str,
    /// `job`.
    pub singular: &'static str,
    /// `rj`.
    pub short_names: Vec<String>,
    /// `all`, `rota`.
    pub categories: Vec<String>,
    /// Lives in a namespace.
    pub namespaced: bool,
    /// Structural OpenAPI v3 schema of the whole object.
    pub schema: Value,
    /// Columns after NAME.
    pub columns: Vec<Column>,
    /// Has the status subresource (then the main endpoint ignores status).
    pub status: bool,
    /// Has the scale subresource.
    pub scale: Option<ScalePaths>,
    /// Fields usable in field selectors besides metadata.name and metadata.namespace, such as `spec.nodeName`.
    pub selectable: Vec<String>,
    /// How names are checked.
    pub name_rule: NameRule,
    /// A standard Kubernetes kind: accepts strategic merge patches, and PUT without resourceVersion.
    pub core: bool,
    /// metadata.generation counts changes outside metadata and status.
    pub generation: bool,
    /// Objects expire this many seconds after their last write.
    pub ttl_seconds: Option<u32>,
    /// Rules beyond the schema.
    pub rules: Rules,
    /// Normalisation.
    pub prepare: Prepare,
    /// Another kind whose stored objects this one shows (events.k8s.io Event over v1 Event); empty: its own.
    pub stored_as: Option<(&'static str, &'static str)>,
}

impl Kind {
    /// `rota.dev/v1` or `v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `jobs.rota.dev` or `nodes`: how messages name the resource.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Prefix of its keys in the store: `/<group or core>/<plural>/`. Namespaced keys continue
    /// `<namespace>/<name>`, cluster keys `<name>`.
    pub fn key_prefix(&self) -> String {
        let group = if self.group.is_empty() {
            "core"
        } else {
            self.group
        };
        format!("/{group}/{}/", self.plural)
    }
}

fn no_rules(_: &Value, _: Option<&Value>) -> Vec<FieldError> {
    Vec::new()
}
fn no_prepare(_: &mut Value, _: Option<&Value>) {}

/// A row from a type that derives `CustomResource`; everything that the derive knows is taken from it.
pub fn of_crd<K: CustomResourceExt>(name_rule: NameRule) -> Kind {
    let crd = serde_json::to_value(K::crd()).unwrap_or(Value::Null);
    let names = &crd["spec"]["names"];
    let version = &crd["spec"]["versions"][0];
    let leak = |v: &Value| -> &'static str {
        Box::leak(v.as_str().unwrap_or("").to_string().into_boxed_str())
    };
    let strings = |v: &Value| -> Vec<String> {
        v.as_array()
            .into_iter()
            .flatten()
            .filter_map(|s| s.as_str().map(String::from))
            .collect()
    };
    let columns = version["additionalPrinterColumns"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| Column {
            name: c["name"].as_str().unwrap_or("").into(),
            type_: c["type"].as_str().unwrap_or("string").into(),
            format: c["format"].as_str().unwrap_or("").into(),
            description: c["description"].as_str().unwrap_or("").into(),
            priority: c["priority"].as_i64().unwrap_or(0) as i32,
            json_path: c["jsonPath"].as_str().unwrap_or("").into(),
        })
        .collect();
    let scale = version["subresources"]
        .get("scale")
        .filter(|s| s.is_object())
        .map(|s| ScalePaths {
            spec: s["specReplicasPath"].as_str().unwrap_or("").into(),
            status: s["statusReplicasPath"].as_str().unwrap_or("").into(),
            selector: s["labelSelectorPath"].as_str().unwrap_or("").into(),
        });
    Kind {
        group: leak(&crd["spec"]["group"]),
        version: leak(&version["name"]),
        kind: leak(&names["kind"]),
        plural: leak(&names["plural"]),
        singular: leak(&names["singular"]),
        short_names: strings(&names["shortNames"]),
        categories: strings(&names["categories"]),
        namespaced: crd["spec"]["scope"] == json!("Namespaced"),
        schema: crate::structural::of_crd(version["schema"]["openAPIV3Schema"].clone()),
        columns,
        status: version["subresources"]
            .get("status")
            .is_some_and(|s| s.is_object()),
        scale,
        selectable: version["selectableFields"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|f| {
                f["jsonPath"]
                    .as_str()
                    .map(|p| p.trim_start_matches('.').to_string())
            })
            .collect(),
        name_rule,
        core: false,
        generation: true,
        ttl_seconds: None,
        rules: no_rules,
        prepare: no_prepare,
        stored_as: None,
    }
}

/// All kinds, in discovery order: rota.dev first, so that `kubectl get jobs` means ours.
pub fn all() -> Vec<Kind> {
    use crate::kinds::*;
    let with = |mut kind: Kind, rules: Rules| {
        kind.rules = rules;
        kind
    };
    let subdomain = NameRule::Subdomain(253);
    let job = NameRule::Subdomain(crate::names::JOB_NAME_MAX);
    let mut kinds = vec![
        with(of_crd::<Job>(job), rules::job),
        with(of_crd::<Task>(subdomain), rules::task),
        with(of_crd::<Queue>(subdomain), rules::queue),
        with(of_crd::<JobRevision>(subdomain), rules::job_revision),
        of_crd::<JobLedger>(subdomain),
    ];
    kinds.extend(crate::core_kinds::all());
    kinds
}

/// Kinds by `(group, plural)`.
pub fn by_plural(kinds: &[Kind]) -> BTreeMap<(&str, &str), &Kind> {
    kinds.iter().map(|k| ((k.group, k.plural), k)).collect()
}
