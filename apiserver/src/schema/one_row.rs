//! Proof that a kind is one type and one line: a kind that no code knows is added to the table, and
//! discovery, OpenAPI, table, CRD, admission and patches have it.
#![allow(clippy::unwrap_used)]

use kube::CustomResource;
use rota_api::registry::{self, NameRule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Compiled, Mode};
use crate::table::Include;
use crate::{discovery, openapi, patch, table};

/// A cup of tea.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "kitchen.example",
    version = "v2",
    kind = "Cup",
    plural = "cups",
    singular = "cup",
    shortname = "cu",
    category = "all",
    status = "CupStatus",
    selectable = ".spec.tea",
    scale(
        spec_replicas_path = ".spec.fill",
        status_replicas_path = ".status.fill"
    ),
    printcolumn(name = "Tea", type_ = "string", json_path = ".spec.tea")
)]
struct CupSpec {
    /// Which tea.
    #[schemars(length(min = 1, max = 20))]
    tea: String,
    /// How full, in percent.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    fill: i32,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct CupStatus {
    /// How full it is.
    fill: i32,
}

#[test]
fn a_kind_is_one_type_and_one_line() {
    let mut kinds = registry::all();
    kinds.push(registry::of_crd::<Cup>(NameRule::Subdomain(253)));
    let kind = kinds.last().unwrap();

    let group = discovery::api_group(&kinds, "kitchen.example").unwrap();
    assert_eq!(group["preferredVersion"]["version"], "v2");
    let list = discovery::resource_list(&kinds, "kitchen.example", "v2").unwrap();
    let names: Vec<&str> = list["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["cups", "cups/scale", "cups/status"]);
    assert_eq!(list["resources"][0]["namespaced"], false);

    let doc = openapi::v3_group(&kinds, "apis/kitchen.example/v2").unwrap();
    let schema = &doc["components"]["schemas"]["example.kitchen.v2.Cup"];
    assert_eq!(
        schema["properties"]["spec"]["properties"]["fill"]["maximum"],
        100
    );
    assert!(doc["paths"]["/apis/kitchen.example/v2/cups/{name}"]["patch"].is_object());
    assert!(openapi::v2_json(&kinds)["definitions"]["example.kitchen.v2.Cup"].is_object());

    let mut cup = json!({"apiVersion": "kitchen.example/v2", "kind": "Cup", "metadata": {"name": "c"},
        "spec": {"tea": "oolong", "sugar": 3}});
    let compiled = Compiled::new(kind);
    let admitted = compiled.admit(&mut cup, Mode::Full);
    assert_eq!(admitted.unknown, ["spec.sugar"]);
    assert_eq!(admitted.errors, []);
    assert_eq!(cup["spec"], json!({"tea": "oolong", "fill": 0}));

    let full = patch::apply(kind, patch::MERGE_PATCH, &cup, br#"{"spec":{"fill":101}}"#).unwrap();
    let admitted = compiled.admit(&mut full.clone(), Mode::Full);
    assert_eq!(admitted.errors[0].field, "spec.fill");

    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let shown = table::render(kind, &[&cup], json!({}), Include::None, now, true);
    assert_eq!(shown["rows"][0]["cells"], json!(["c", "oolong"]));

    let crd = rota_api::crd::of(kind);
    assert_eq!(crd["metadata"]["name"], "cups.kitchen.example");
    assert_eq!(
        crd["spec"]["versions"][0]["selectableFields"],
        json!([{"jsonPath": ".spec.tea"}])
    );
    assert_eq!(
        rota_api::structural::problems(&kind.schema),
        [] as [&str; 0]
    );
    assert_eq!(kind.selectable, ["spec.tea"]);
    assert!(kind.status && kind.scale.is_some());
}
