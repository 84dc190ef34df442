//! Rules of our kinds that a schema cannot say. They run after validation, so types are as declared.

mod scheduling;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::labels;
use crate::names::{JOB_NAME_MAX, PORT_RANGE_DEFAULT, RESOURCE_PORTS};
use crate::quantity::{self, Quantity};
use crate::registry::FieldError;

fn error(reason: &'static str, field: impl Into<String>, message: impl Into<String>) -> FieldError {
    FieldError {
        reason,
        field: field.into(),
        message: message.into(),
    }
}

fn invalid(field: impl Into<String>, value: &Value, why: impl AsRef<str>) -> FieldError {
    let message = format!("Invalid value: {value}: {}", why.as_ref());
    error("FieldValueInvalid", field, message)
}

fn forbidden(field: impl Into<String>, why: &str) -> FieldError {
    error("FieldValueForbidden", field, format!("Forbidden: {why}"))
}

const IMMUTABLE: &str = "field is immutable";

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Job.
pub fn job(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    let name = &new["metadata"]["name"];
    if let Some(text) = name.as_str()
        && (labels::check_dns_label(text).is_err() || text.len() > JOB_NAME_MAX)
    {
        errors.push(invalid("metadata.name", name, format!(
            "a Job's name must consist of at most {JOB_NAME_MAX} lower case alphanumeric characters or '-', and start and end with an alphanumeric character, since the names of its tasks derive from it"
        )));
    }
    let service = spec["type"] == "Service";
    if service && spec.get("completions").is_some() {
        errors.push(forbidden(
            "spec.completions",
            "a Service keeps running, it has no completions",
        ));
    }
    let restart = &spec["template"]["spec"]["restartPolicy"];
    let restart_field = "spec.template.spec.restartPolicy";
    if service && restart == "Never" {
        errors.push(invalid(
            restart_field,
            restart,
            "a Service keeps its tasks running: use Always or OnFailure",
        ));
    }
    if !service && restart == "Always" {
        errors.push(invalid(
            restart_field,
            restart,
            "a Batch Job runs to completion: use Never or OnFailure",
        ));
    }
    if let Some(queue) = spec["queue"].as_str()
        && let Err(why) = labels::check_dns_subdomain(queue, 253)
    {
        errors.push(invalid("spec.queue", &spec["queue"], why));
    }
    for (i, after) in items(&spec["after"]).enumerate() {
        let field = format!("spec.after[{i}].job");
        if &after["job"] == name {
            errors.push(invalid(
                field,
                &after["job"],
                "a Job cannot wait for itself",
            ));
        } else if let Err(why) = labels::check_dns_label(after["job"].as_str().unwrap_or("")) {
            errors.push(invalid(field, &after["job"], why));
        }
    }
    scheduling::job(spec, &mut errors);
    template(&spec["template"], "spec.template", &mut errors);
    if let Some(old) = old {
        let before = &old["spec"];
        if spec["type"] != before["type"] {
            errors.push(forbidden("spec.type", IMMUTABLE));
        }
        if !service && spec["template"] != before["template"] {
            errors.push(forbidden(
                "spec.template",
                "field is immutable for a Batch Job; create another Job",
            ));
        }
        let completions = |s: &Value| s["completions"].as_i64().unwrap_or(1);
        if !service && completions(spec) < completions(before) {
            let had = completions(before);
            errors.push(forbidden(
                "spec.completions",
                &format!("may only grow, it was {had}"),
            ));
        }
    }
    errors
}

/// Task: bound once; what has ended stays ended.
pub fn task(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let Some(old) = old else {
        requests(&new["spec"]["requests"], "spec.requests", &mut errors);
        return errors;
    };
    if new["spec"] != old["spec"] {
        errors.push(forbidden("spec", IMMUTABLE));
    }
    let before = old["status"]["phase"].as_str().unwrap_or("");
    let terminal = matches!(before, "Succeeded" | "Failed" | "Lost");
    if terminal && new["status"]["phase"] != before {
        errors.push(forbidden(
            "status.phase",
            &format!("the task has ended ({before}), its phase never changes"),
        ));
    }
    errors
}

/// JobRevision: frozen.
pub fn job_revision(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    match old {
        Some(old) if new["spec"] != old["spec"] => vec![forbidden("spec", IMMUTABLE)],
        _ => Vec::new(),
    }
}

/// Queue: what it says by itself must make sense. What depends on other Queues is a condition of
/// it instead, so that the order in which they are made does not matter.
pub fn queue(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    scheduling::parent(new, &mut errors);
    resources(&spec["limit"], "spec.limit", &mut errors);
    resources(&spec["guarantee"], "spec.guarantee", &mut errors);
    not_above(
        &spec["guarantee"],
        &spec["limit"],
        "spec.guarantee",
        "must be less than or equal to the queue's limit",
        &mut errors,
    );
    requests(
        &spec["defaultResources"],
        "spec.defaultResources",
        &mut errors,
    );
    not_above(
        &spec["defaultResources"],
        &spec["limit"],
        "spec.defaultResources",
        "must be less than or equal to the queue's limit",
        &mut errors,
    );
    errors
}

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(s) => s.parse().ok(),
        Value::Number(n) => n.to_string().parse().ok(),
        _ => None,
    }
}

/// What a task asks for: amounts, and of a device a share of one or whole ones, since no task
/// could use one and a half.
fn requests(map: &Value, field: &str, errors: &mut Vec<FieldError>) {
    resources(map, field, errors);
    for (name, value) in entries(map) {
        if quantity::is_shared_device(name)
            && let Some(q) = quantity(value)
            && q.units_floor() >= 1
            && q.units_ceil() != q.units_floor()
        {
            errors.push(invalid(
                format!("{field}[{name}]"),
                value,
                "must be a whole number of devices, or less than one for a share of one",
            ));
        }
    }
}

/// Names and steps of amounts: a thousandth of a cpu makes sense, half a byte does not.
fn resources(map: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for (name, value) in entries(map) {
        let at = format!("{field}[{name}]");
        if let Err(why) = labels::check_key(name) {
            errors.push(invalid(&at, &Value::from(name.as_str()), why));
        }
        if let Some(q) = quantity(value)
            && !quantity::in_thousandths(name)
            && q.units_ceil() != q.units_floor()
        {
            errors.push(invalid(
                &at,
                value,
                "must be a whole number; only cpu and gpu have fractions",
            ));
        }
    }
}

fn not_above(low: &Value, high: &Value, field: &str, why: &str, errors: &mut Vec<FieldError>) {
    for (name, value) in entries(low) {
        if let (Some(l), Some(h)) = (quantity(value), high.get(name).and_then(quantity))
            && l > h
        {
            errors.push(invalid(
                format!("{field}[{name}]"),
                value,
                format!("{why} of {h}"),
            ));
        }
    }
}

fn template(template: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in entries(&template["metadata"]["labels"]) {
        let at = format!("{field}.metadata.labels");
        let checked =
            labels::check_key(key).and_then(|()| labels::check_value(value.as_str().unwrap_or("")));
        if let Err(why) = checked {
            errors.push(invalid(at, &Value::from(key.as_str()), why));
        }
    }
    for (key, _) in entries(&template["metadata"]["annotations"]) {
        if let Err(why) = labels::check_key(&key.to_lowercase()) {
            errors.push(invalid(
                format!("{field}.metadata.annotations"),
                &Value::from(key.as_str()),
                why,
            ));
        }
    }
    let spec = &template["spec"];
    let field = format!("{field}.spec");
    let r = &spec["resources"];
    requests(
        &r["requests"],
        &format!("{field}.resources.requests"),
        errors,
    );
    requests(&r["limits"], &format!("{field}.resources.limits"), errors);
    not_above(
        &r["requests"],
        &r["limits"],
        &format!("{field}.resources.requests"),
        "must be less than or equal to the limit",
        errors,
    );
    if r["requests"].get(RESOURCE_PORTS).is_some() {
        errors.push(forbidden(
            format!("{field}.resources.requests[{RESOURCE_PORTS}]"),
            "it is counted from ports",
        ));
    }
    if items(&spec["command"]).next().is_some_and(|c| c == "") {
        errors.push(invalid(
            format!("{field}.command[0]"),
            &spec["command"][0],
            "the program must not be empty",
        ));
    }
    if let Some(dir) = spec["workingDir"].as_str()
        && !dir.starts_with('/')
        && dir.split('/').any(|p| p == "..")
    {
        errors.push(invalid(
            format!("{field}.workingDir"),
            &spec["workingDir"],
            "a relative directory must not leave the task's own one",
        ));
    }
    let mut fixed = BTreeSet::new();
    for (i, port) in items(&spec["ports"]).enumerate() {
        let number = port["port"].as_i64().unwrap_or(0);
        let (low, high) = PORT_RANGE_DEFAULT;
        let at = format!("{field}.ports[{i}].port");
        if (i64::from(low)..=i64::from(high)).contains(&number) {
            errors.push(invalid(&at, &port["port"], format!(
                "{low}-{high} are given out dynamically: use 0 to get one of them, or a port outside"
            )));
        }
        if number != 0 && !fixed.insert(number) {
            errors.push(error(
                "FieldValueDuplicate",
                at,
                format!("Duplicate value: {number}"),
            ));
        }
    }
    for (i, env) in items(&spec["env"]).enumerate() {
        let path = &env["valueFrom"]["field"]["fieldPath"];
        if let Some(text) = path.as_str()
            && !field_path_known(text)
        {
            errors.push(invalid(
                format!("{field}.env[{i}].valueFrom.field.fieldPath"),
                path,
                "must be metadata.name, metadata.namespace, metadata.uid, metadata.labels['KEY'], metadata.annotations['KEY'], spec.nodeName, spec.index or spec.attempt",
            ));
        }
    }
    for (key, value) in entries(&spec["nodeSelector"]) {
        let checked =
            labels::check_key(key).and_then(|()| labels::check_value(value.as_str().unwrap_or("")));
        if let Err(why) = checked {
            errors.push(invalid(
                format!("{field}.nodeSelector"),
                &Value::from(key.as_str()),
                why,
            ));
        }
    }
    scheduling::affinity(&spec["affinity"], &format!("{field}.affinity"), errors);
    scheduling::spread(&spec["spread"], &format!("{field}.spread"), errors);
    for (i, t) in items(&spec["tolerations"]).enumerate() {
        let at = format!("{field}.tolerations[{i}]");
        let exists = t["operator"] == "Exists";
        if exists && t["value"].as_str().is_some_and(|v| !v.is_empty()) {
            errors.push(invalid(
                format!("{at}.value"),
                &t["value"],
                "must be empty when operator is Exists",
            ));
        }
        match t["key"].as_str() {
            None | Some("") if !exists => errors.push(invalid(
                format!("{at}.operator"),
                &t["operator"],
                "must be Exists when key is empty",
            )),
            Some(key) if !key.is_empty() => {
                if let Err(why) = labels::check_key(key) {
                    errors.push(invalid(format!("{at}.key"), &t["key"], why));
                }
            }
            _ => {}
        }
    }
}

/// Whether the agent knows the field.
fn field_path_known(path: &str) -> bool {
    let in_quotes = |prefix: &str| {
        path.strip_prefix(prefix)
            .and_then(|p| p.strip_prefix("['"))
            .and_then(|p| p.strip_suffix("']"))
            .is_some_and(|key| labels::check_key(key).is_ok())
    };
    matches!(
        path,
        "metadata.name"
            | "metadata.namespace"
            | "metadata.uid"
            | "spec.nodeName"
            | "spec.index"
            | "spec.attempt"
    ) || in_quotes("metadata.labels")
        || in_quotes("metadata.annotations")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn a_job(spec: Value) -> Value {
        let mut job = json!({"metadata": {"name": "pi"}, "spec": {"type": "Batch", "queue": "default",
            "template": {"spec": {"command": ["true"]}}}});
        merge(&mut job["spec"], spec);
        job
    }

    fn merge(into: &mut Value, from: Value) {
        match from {
            Value::Object(map) if into.is_object() => {
                for (k, v) in map {
                    merge(&mut into[k.as_str()], v);
                }
            }
            other => *into = other,
        }
    }

    fn fields(errors: &[FieldError]) -> Vec<&str> {
        errors.iter().map(|e| e.field.as_str()).collect()
    }

    #[test]
    fn jobs_on_creation() {
        assert_eq!(job(&a_job(json!({})), None), []);
        let spec = |s: Value| json!({"template": {"spec": s}});
        for (change, field) in [
            (
                json!({"type": "Service", "completions": 3}),
                "spec.completions",
            ),
            (
                json!({"type": "Service", "template": {"spec": {"restartPolicy": "Never"}}}),
                "spec.template.spec.restartPolicy",
            ),
            (
                spec(json!({"restartPolicy": "Always"})),
                "spec.template.spec.restartPolicy",
            ),
            (json!({"queue": "A B"}), "spec.queue"),
            (json!({"after": [{"job": "pi"}]}), "spec.after[0].job"),
            (json!({"after": [{"job": "P"}]}), "spec.after[0].job"),
            (
                spec(json!({"command": [""]})),
                "spec.template.spec.command[0]",
            ),
            (
                spec(json!({"workingDir": "a/../../b"})),
                "spec.template.spec.workingDir",
            ),
            (
                spec(json!({"ports": [{"name": "a", "port": 20000}]})),
                "spec.template.spec.ports[0].port",
            ),
            (
                spec(json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 80}]})),
                "spec.template.spec.ports[1].port",
            ),
            (
                spec(json!({"resources": {"requests": {"memory": "100m"}}})),
                "spec.template.spec.resources.requests[memory]",
            ),
            (
                spec(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": 1}}})),
                "spec.template.spec.resources.requests[cpu]",
            ),
            (
                spec(json!({"resources": {"requests": {"rota.dev/ports": 1}}})),
                "spec.template.spec.resources.requests[rota.dev/ports]",
            ),
            (
                spec(json!({"resources": {"limits": {"a b": 1}}})),
                "spec.template.spec.resources.limits[a b]",
            ),
            (
                spec(
                    json!({"env": [{"name": "A", "valueFrom": {"type": "Field", "field": {"fieldPath": "status.x"}}}]}),
                ),
                "spec.template.spec.env[0].valueFrom.field.fieldPath",
            ),
            (
                spec(json!({"nodeSelector": {"a": "b c"}})),
                "spec.template.spec.nodeSelector",
            ),
            (
                spec(json!({"tolerations": [{}]})),
                "spec.template.spec.tolerations[0].operator",
            ),
            (
                spec(json!({"tolerations": [{"operator": "Exists", "value": "x"}]})),
                "spec.template.spec.tolerations[0].value",
            ),
            (
                json!({"template": {"metadata": {"labels": {"a": "b c"}}}}),
                "spec.template.metadata.labels",
            ),
        ] {
            let found = job(&a_job(change.clone()), None);
            assert_eq!(fields(&found), [field], "{change}");
        }
        for good in [
            spec(
                json!({"ports": [{"name": "a", "port": 0}, {"name": "b", "port": 0}, {"name": "c", "port": 32000}]}),
            ),
            spec(json!({"resources": {"requests": {"cpu": "100m", "nvidia.com/gpu": 1}}})),
            spec(json!({"resources": {"requests": {"nvidia.com/gpu": "500m"}}})),
            spec(json!({"tolerations": [{"operator": "Exists"}, {"key": "k", "value": "v"}]})),
            spec(
                json!({"env": [{"name": "A", "valueFrom": {"type": "Field", "field": {"fieldPath": "metadata.labels['rota.dev/job']"}}}]}),
            ),
        ] {
            assert_eq!(job(&a_job(good.clone()), None), [], "{good}");
        }
        let mut named = a_job(json!({}));
        for (name, ok) in [
            ("a.b", false),
            ("a-b", true),
            (&"a".repeat(52), true),
            (&"a".repeat(53), false),
        ] {
            named["metadata"]["name"] = json!(name);
            assert_eq!(job(&named, None).is_empty(), ok, "{name}");
        }
    }

    #[test]
    fn jobs_on_update() {
        let old = a_job(json!({"completions": 5}));
        for (change, expected) in [
            (
                json!({"completions": 6, "replicas": 2, "priority": 3, "suspend": true}),
                vec![],
            ),
            (json!({"completions": 4}), vec!["spec.completions"]),
            (json!({"completions": null}), vec!["spec.completions"]),
            (
                json!({"template": {"spec": {"command": ["false"]}}}),
                vec!["spec.template"],
            ),
        ] {
            let mut new = old.clone();
            merge(&mut new["spec"], change.clone());
            assert_eq!(fields(&job(&new, Some(&old))), expected, "{change}");
        }
        let service = a_job(json!({"type": "Service"}));
        assert_eq!(
            fields(&job(&service, Some(&a_job(json!({}))))),
            ["spec.type"]
        );
        let changed = a_job(json!({"type": "Service", "template": {"spec": {"command": ["x"]}}}));
        assert_eq!(job(&changed, Some(&service)), []);
    }

    #[test]
    fn tasks_revisions_and_queues() {
        let running = json!({"spec": {"index": 1}, "status": {"phase": "Running"}});
        let done = json!({"spec": {"index": 1}, "status": {"phase": "Succeeded", "exitCode": 0}});
        assert_eq!(task(&done, Some(&running)), []);
        assert_eq!(task(&done, Some(&done)), []);
        assert_eq!(fields(&task(&running, Some(&done))), ["status.phase"]);
        let moved = json!({"spec": {"index": 2}});
        assert_eq!(fields(&task(&moved, Some(&done))), ["spec", "status.phase"]);
        assert_eq!(
            job_revision(&json!({"spec": 1}), Some(&json!({"spec": 2}))).len(),
            1
        );
        assert_eq!(job_revision(&json!({"spec": 1}), None), []);
        let q = json!({"spec": {"limit": {"cpu": "1"}, "defaultResources": {"cpu": "2", "memory": "1Gi"}}});
        assert_eq!(fields(&queue(&q, None)), ["spec.defaultResources[cpu]"]);
        let q = json!({"metadata": {"name": "a"}, "spec": {"parent": "a", "guarantee": {"cpu": 2, "memory": "1Gi"},
            "limit": {"cpu": 1, "x.io/gpu": "2500m"}}});
        assert_eq!(
            fields(&queue(&q, None)),
            ["spec.parent", "spec.guarantee[cpu]"]
        );
    }
}
