//! Rules of the fields that steer the scheduler: gangs, deadlines, affinity, spread, queue trees.

use jiff::Timestamp;
use serde_json::Value;

use super::{forbidden, invalid, items};
use crate::labels;
use crate::registry::FieldError;

/// Duration, gang and deadlines of a Job's spec.
pub fn job(spec: &Value, errors: &mut Vec<FieldError>) {
    if spec["type"] == "Service" {
        for field in ["expectedDurationSeconds", "finishDeadlineTime"] {
            if spec.get(field).is_some() {
                errors.push(forbidden(
                    format!("spec.{field}"),
                    "a Service keeps running, it has no end",
                ));
            }
        }
    }
    let time = |field: &str| spec[field].as_str()?.parse::<Timestamp>().ok();
    if let (Some(start), Some(finish)) = (time("startDeadlineTime"), time("finishDeadlineTime"))
        && finish < start
    {
        errors.push(invalid(
            "spec.finishDeadlineTime",
            &spec["finishDeadlineTime"],
            "must not be before startDeadlineTime",
        ));
    }
    gang(spec, errors);
}

fn gang(spec: &Value, errors: &mut Vec<FieldError>) {
    let gang = &spec["gang"];
    if let Some(name) = gang["name"].as_str()
        && let Err(why) = labels::check_dns_label(name)
    {
        errors.push(invalid("spec.gang.name", &gang["name"], why));
    }
    let most = spec["replicas"]
        .as_i64()
        .or(spec["completions"].as_i64())
        .unwrap_or(1);
    // A Job that is scaled to nothing for a while keeps its gang.
    if let Some(least) = gang["minAvailable"].as_i64()
        && most > 0
        && least > most
    {
        errors.push(invalid(
            "spec.gang.minAvailable",
            &gang["minAvailable"],
            format!("must be at most {most}, which is what may run at once"),
        ));
    }
}

/// The parent that a Queue names.
pub fn parent(queue: &Value, errors: &mut Vec<FieldError>) {
    let parent = &queue["spec"]["parent"];
    let Some(name) = parent.as_str() else { return };
    if let Err(why) = labels::check_dns_subdomain(name, 253) {
        errors.push(invalid("spec.parent", parent, why));
    } else if parent == &queue["metadata"]["name"] {
        errors.push(invalid(
            "spec.parent",
            parent,
            "a Queue cannot be its own parent",
        ));
    }
}

/// Affinity of a template.
pub fn affinity(affinity: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for (i, term) in items(&affinity["required"]).enumerate() {
        expressions(term, &format!("{field}.required[{i}]"), errors);
    }
    for (i, preferred) in items(&affinity["preferred"]).enumerate() {
        expressions(
            &preferred["term"],
            &format!("{field}.preferred[{i}].term"),
            errors,
        );
    }
    for list in ["taskAffinity", "antiAffinity"] {
        for (i, term) in items(&affinity[list]).enumerate() {
            topology(term, &format!("{field}.{list}[{i}]"), errors);
        }
    }
}

/// Spread of a template.
pub fn spread(spread: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for (i, item) in items(spread).enumerate() {
        topology(item, &format!("{field}[{i}]"), errors);
    }
}

fn topology(term: &Value, field: &str, errors: &mut Vec<FieldError>) {
    key(&term["topologyKey"], format!("{field}.topologyKey"), errors);
    let selector = &term["labelSelector"];
    let field = format!("{field}.labelSelector");
    for (name, value) in super::entries(&selector["matchLabels"]) {
        let checked = labels::check_key(name)
            .and_then(|()| labels::check_value(value.as_str().unwrap_or("")));
        if let Err(why) = checked {
            let at = format!("{field}.matchLabels");
            errors.push(invalid(at, &Value::from(name.as_str()), why));
        }
    }
    expressions(selector, &field, errors);
}

fn expressions(holder: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for (i, expression) in items(&holder["matchExpressions"]).enumerate() {
        let field = format!("{field}.matchExpressions[{i}]");
        key(&expression["key"], format!("{field}.key"), errors);
        let values = &expression["values"];
        let count = values.as_array().map_or(0, Vec::len);
        let wrong = match expression["operator"].as_str() {
            Some("In" | "NotIn") if count == 0 => Some("must name at least one value"),
            Some("Exists" | "DoesNotExist") if count > 0 => {
                Some("must be empty, since only the key is looked at")
            }
            Some("Gt" | "Lt")
                if count != 1 || values[0].as_str().is_none_or(|v| v.parse::<i64>().is_err()) =>
            {
                Some("must be exactly one integer")
            }
            _ => None,
        };
        if let Some(why) = wrong {
            errors.push(invalid(format!("{field}.values"), values, why));
            continue;
        }
        for (j, value) in items(values).enumerate() {
            // A number to compare with need not be a label's value: -1 is none.
            let compared = matches!(expression["operator"].as_str(), Some("Gt" | "Lt"));
            if let Err(why) = labels::check_value(value.as_str().unwrap_or(""))
                && !compared
            {
                errors.push(invalid(format!("{field}.values[{j}]"), value, why));
            }
        }
    }
}

fn key(value: &Value, field: String, errors: &mut Vec<FieldError>) {
    if let Err(why) = labels::check_key(value.as_str().unwrap_or("")) {
        errors.push(invalid(field, value, why));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(check: impl Fn(&mut Vec<FieldError>)) -> Vec<String> {
        let mut errors = Vec::new();
        check(&mut errors);
        errors.into_iter().map(|e| e.field).collect()
    }

    #[test]
    fn jobs() {
        let (early, late) = ("2030-01-01T00:00:00Z", "2030-01-01T02:00:00+01:00");
        for (spec, wrong) in [
            (
                json!({"type": "Batch", "expectedDurationSeconds": 60, "startDeadlineTime": early, "finishDeadlineTime": late}),
                None,
            ),
            (
                json!({"type": "Batch", "startDeadlineTime": late, "finishDeadlineTime": early}),
                Some("spec.finishDeadlineTime"),
            ),
            (
                json!({"type": "Service", "expectedDurationSeconds": 60}),
                Some("spec.expectedDurationSeconds"),
            ),
            (
                json!({"type": "Service", "finishDeadlineTime": late}),
                Some("spec.finishDeadlineTime"),
            ),
            (
                json!({"type": "Batch", "gang": {"name": "No"}}),
                Some("spec.gang.name"),
            ),
            (
                json!({"type": "Batch", "gang": {"minAvailable": 2}}),
                Some("spec.gang.minAvailable"),
            ),
            (
                json!({"type": "Batch", "completions": 9, "replicas": 4, "gang": {"minAvailable": 5}}),
                Some("spec.gang.minAvailable"),
            ),
            (
                json!({"type": "Batch", "completions": 9, "gang": {"name": "a", "minAvailable": 9}}),
                None,
            ),
            (
                json!({"type": "Service", "replicas": 0, "gang": {"minAvailable": 9}}),
                None,
            ),
        ] {
            let wrong: Vec<&str> = wrong.into_iter().collect();
            assert_eq!(found(|e| job(&spec, e)), wrong, "{spec}");
        }
    }

    #[test]
    fn queues() {
        for (parent_name, ok) in [("b", true), ("a", false), ("B", false)] {
            let queue = json!({"metadata": {"name": "a"}, "spec": {"parent": parent_name}});
            assert_eq!(found(|e| parent(&queue, e)).is_empty(), ok, "{parent_name}");
        }
    }

    #[test]
    fn expressions_take_as_many_values_as_their_operator_needs() {
        for (expression, wrong) in [
            (json!({"key": "a", "operator": "In", "values": ["x"]}), None),
            (json!({"key": "a", "operator": "In"}), Some("values")),
            (
                json!({"key": "a", "operator": "NotIn", "values": []}),
                Some("values"),
            ),
            (
                json!({"key": "a", "operator": "In", "values": ["x y"]}),
                Some("values[0]"),
            ),
            (json!({"key": "a", "operator": "Exists"}), None),
            (
                json!({"key": "a", "operator": "DoesNotExist", "values": ["x"]}),
                Some("values"),
            ),
            (
                json!({"key": "a", "operator": "Gt", "values": ["-8"]}),
                None,
            ),
            (
                json!({"key": "a", "operator": "Lt", "values": ["8", "9"]}),
                Some("values"),
            ),
            (
                json!({"key": "a", "operator": "Gt", "values": ["x"]}),
                Some("values"),
            ),
            (json!({"key": "a b", "operator": "Exists"}), Some("key")),
        ] {
            let terms = json!({"required": [{"matchExpressions": [expression]}]});
            let wrong: Vec<String> = wrong
                .map(|w| format!("f.required[0].matchExpressions[0].{w}"))
                .into_iter()
                .collect();
            assert_eq!(found(|e| affinity(&terms, "f", e)), wrong, "{expression}");
        }
    }

    #[test]
    fn topology_terms() {
        let terms = json!({"antiAffinity": [{"topologyKey": "no key", "labelSelector": {
            "matchLabels": {"a": "b c"}, "matchExpressions": [{"key": "k", "operator": "In"}]}}]});
        let at = "f.antiAffinity[0]";
        assert_eq!(
            found(|e| affinity(&terms, "f", e)),
            [
                format!("{at}.topologyKey"),
                format!("{at}.labelSelector.matchLabels"),
                format!("{at}.labelSelector.matchExpressions[0].values"),
            ]
        );
        let good = json!([{"topologyKey": "topology.kubernetes.io/zone", "maxSkew": 1,
            "whenUnsatisfiable": "DoNotSchedule"}]);
        assert_eq!(found(|e| spread(&good, "f", e)), Vec::<String>::new());
    }
}
