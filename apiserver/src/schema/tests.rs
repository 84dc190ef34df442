//! What admission does to whole objects.
#![allow(clippy::unwrap_used)]

use rota_api::registry;
use serde_json::{Value, json};

use super::*;

fn compiled(plural: &str) -> Compiled {
    let kinds = registry::all();
    Compiled::new(kinds.iter().find(|k| k.plural == plural).unwrap())
}

fn job(spec: Value) -> Value {
    json!({"apiVersion": "rota.dev/v1", "kind": "Job", "metadata": {"name": "pi"}, "spec": spec})
}

fn minimal() -> Value {
    job(json!({"template": {"spec": {"command": ["true"]}}}))
}

fn texts(a: &Admitted) -> Vec<String> {
    a.errors
        .iter()
        .map(|e| format!("{}: {}", e.field, e.message))
        .collect()
}

#[test]
fn defaults_prunes_and_drops_nulls() {
    let c = compiled("jobs");
    let mut v = minimal();
    v["spec"]["bogus"] = json!({"x": 1});
    v["spec"]["template"]["spec"]["imagee"] = json!("x");
    v["spec"]["suspend"] = Value::Null;
    v["spec"]["completions"] = Value::Null;
    v["metadata"]["labels"] = json!({"a": null, "b": "c"});
    v["metadata"]["bogus"] = json!(1);
    v["extra"] = json!(1);
    let a = c.admit(&mut v, Mode::Full);
    assert_eq!(a.errors, []);
    assert_eq!(
        a.unknown,
        [
            "extra",
            "metadata.bogus",
            "spec.bogus",
            "spec.template.spec.imagee"
        ]
    );
    assert_eq!(
        v["spec"],
        json!({"type": "Batch", "queue": "default", "priority": 0, "suspend": false, "backoffLimit": 6,
            "onLost": "Rerun", "template": {"spec": {"command": ["true"]}}})
    );
    assert_eq!(v["metadata"], json!({"name": "pi", "labels": {"b": "c"}}));
    let again = v.clone();
    assert_eq!(c.admit(&mut v, Mode::Full), Admitted::default());
    assert_eq!(v, again, "admission is idempotent");
}

#[test]
fn words_errors_as_kubernetes_does() {
    let c = compiled("jobs");
    for (spec, expected) in [
        (
            json!({"replicas": "three"}),
            r#"spec.replicas: Invalid value: "string": spec.replicas in body must be of type integer: "string""#,
        ),
        (
            json!({"replicas": -1}),
            "spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0",
        ),
        (
            json!({"priority": 2000000}),
            "spec.priority: Invalid value: 2000000: spec.priority in body should be less than or equal to 1000000",
        ),
        (
            json!({"type": "Nope"}),
            r#"spec.type: Unsupported value: "Nope": supported values: "Batch", "Service""#,
        ),
        (
            json!({"queue": ""}),
            r#"spec.queue: Invalid value: "": spec.queue in body should be at least 1 chars long"#,
        ),
        (
            json!({"completions": 0.5}),
            r#"spec.completions: Invalid value: "number": spec.completions in body must be of type integer: "number""#,
        ),
        (
            json!({"completions": 3000000000u64}),
            "spec.completions: Invalid value: 3000000000: spec.completions in body must fit into int32",
        ),
        (
            json!({"after": [{"job": "a"}, {"job": "a"}]}),
            r#"spec.after[1]: Duplicate value: {"job":"a"}"#,
        ),
        (
            json!({"failurePolicy": [{"onExitCodes": [1, 1], "action": "Count"}]}),
            "spec.failurePolicy[0].onExitCodes[1]: Duplicate value: 1",
        ),
        (json!({"after": [{}]}), "spec.after[0].job: Required value"),
        (
            json!({"after": [null]}),
            r#"spec.after[0]: Invalid value: "null": spec.after[0] in body must be of type object: "null""#,
        ),
    ] {
        let mut v = minimal();
        for (k, x) in spec.as_object().unwrap() {
            v["spec"][k] = x.clone();
        }
        let a = c.admit(&mut v, Mode::Full);
        assert_eq!(texts(&a), [expected], "{spec}");
    }
    let mut v = job(Value::Null);
    assert_eq!(
        texts(&c.admit(&mut v, Mode::Full)),
        ["spec: Required value"]
    );
    let mut v = job(json!({"template": {"spec": {"command": []}}}));
    assert_eq!(
        texts(&c.admit(&mut v, Mode::Full)),
        [
            "spec.template.spec.command: Invalid value: 0: spec.template.spec.command in body should have at least 1 items"
        ]
    );
}

#[test]
fn quantities_and_unions() {
    let c = compiled("jobs");
    let with = |requests: Value| {
        let mut v = minimal();
        v["spec"]["template"]["spec"]["resources"] = json!({"requests": requests});
        v
    };
    let mut v = with(json!({"cpu": 1, "memory": "64Mi", "x.io/y": 0.5}));
    assert_eq!(c.admit(&mut v, Mode::Full).errors, []);
    assert_eq!(
        v["spec"]["template"]["spec"]["resources"]["requests"]["x.io/y"],
        json!("0.5")
    );
    for bad in [
        json!("1e1000000"),
        json!("-1"),
        json!("9999999999Ei"),
        json!("NaN"),
        json!(true),
        json!(-1),
    ] {
        let a = c.admit(&mut with(json!({"cpu": bad})), Mode::Full);
        assert_eq!(a.errors.len(), 1, "{bad}");
        assert!(a.errors[0].field.ends_with("requests.cpu"));
    }
    let env = |e: Value| {
        let mut v = minimal();
        v["spec"]["template"]["spec"]["env"] = json!([e]);
        c.admit(&mut v, Mode::Full).errors.len()
    };
    let secret = json!({"name": "s", "key": "k"});
    assert_eq!(env(json!({"name": "A", "value": "x"})), 0);
    assert_eq!(
        env(json!({"name": "A", "valueFrom": {"type": "Secret", "secret": secret}})),
        0
    );
    assert_eq!(
        env(json!({"name": "A", "value": "x", "valueFrom": {"type": "Secret", "secret": secret}})),
        1
    );
    assert_eq!(
        env(json!({"name": "A", "valueFrom": {"type": "Secret"}})),
        1
    );
    assert_eq!(
        env(json!({"name": "A", "valueFrom": {"type": "Field", "secret": secret}})),
        1
    );
    assert_eq!(env(json!({"name": "1A"})), 1);
}

#[test]
fn metadata_is_checked_for_every_kind() {
    let c = compiled("jobs");
    for (metadata, fields) in [
        (json!({"name": "Pi"}), vec!["metadata.name"]),
        (json!({"name": "a".repeat(53)}), vec!["metadata.name"]),
        (json!({"name": ".."}), vec!["metadata.name"]),
        (json!({"generateName": "pi-"}), vec![]),
        (
            json!({"name": "x", "labels": {"a b": "c"}}),
            vec!["metadata.labels"],
        ),
        (
            json!({"name": "x", "labels": {"a": "c d"}}),
            vec!["metadata.labels"],
        ),
        (
            json!({"name": "x", "labels": {"a": 1}}),
            vec!["metadata.labels.a"],
        ),
        (
            json!({"name": "x", "annotations": {"a": "x".repeat(300_000)}}),
            vec!["metadata.annotations"],
        ),
        (
            json!({"name": "x", "finalizers": ["a b"]}),
            vec!["metadata.finalizers[0]"],
        ),
        (
            json!({"name": "x", "finalizers": vec!["a"; 10_000]}),
            vec!["metadata.finalizers"],
        ),
        (
            json!({"name": "x", "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x"}]}),
            vec!["metadata.ownerReferences[0].uid"],
        ),
        (
            json!({"name": "x", "creationTimestamp": "soon"}),
            vec!["metadata.creationTimestamp"],
        ),
    ] {
        let mut v = minimal();
        v["metadata"] = metadata.clone();
        let a = c.admit(&mut v, Mode::Full);
        let found: Vec<&str> = a.errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(
            found,
            fields,
            "{}",
            metadata.to_string().chars().take(80).collect::<String>()
        );
    }
    let many: serde_json::Map<String, Value> = (0..200_000)
        .map(|i| (format!("k {i}"), json!("v")))
        .collect();
    let mut v = minimal();
    v["metadata"]["labels"] = Value::Object(many);
    assert!(c.admit(&mut v, Mode::Full).errors.len() < 80);
}

#[test]
fn status_mode_leaves_the_spec_alone() {
    let c = compiled("tasks");
    let mut v = json!({"metadata": {"name": "x"}, "spec": {"anything": null}, "status": {"phase": "Nope", "x": 1}});
    let a = c.admit(&mut v, Mode::Status);
    assert_eq!(a.unknown, ["status.x"]);
    assert_eq!(a.errors[0].field, "status.phase");
    assert_eq!(v["spec"], json!({"anything": null}));
    assert_eq!(v["status"]["ready"], json!(false));
}

#[test]
fn every_rule_and_pattern_of_the_kinds_is_known() {
    fn check(path: &str, schema: &Value) {
        for rule in schema["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let text = rule["rule"].as_str().unwrap();
            assert!(
                native::lookup(text).is_some(),
                "{path}: no native form of {text}"
            );
        }
        if let Some(p) = schema["pattern"].as_str() {
            assert!(regex::Regex::new(p).is_ok(), "{path}: {p}");
        }
        for (k, v) in schema["properties"].as_object().into_iter().flatten() {
            check(&format!("{path}.{k}"), v);
        }
        for key in ["items", "additionalProperties"] {
            if schema[key].is_object() {
                check(&format!("{path}.{key}"), &schema[key]);
            }
        }
    }
    for kind in registry::all() {
        check(kind.kind, &kind.schema);
    }
}
