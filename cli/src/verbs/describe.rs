//! `rota describe`: an object in full for people: what is wanted, what is observed, what happened.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use rota_api::quantity::Quantity;
use serde_json::{Map, Value};

use crate::client::{Api, Failure};
use crate::context::Context;
use crate::discovery::{Discovery, Resource};
use crate::error::{CliError, EXIT_ERROR, Result};
use crate::merge::LAST_APPLIED;
use crate::output::{quantity, table, time};
use crate::progress;
use crate::selector;
use crate::waiting;
use crate::watch::{self, Selection};

/// Rows of a node's tasks that are listed; the sums below count all.
const TASKS_SHOWN: usize = 100;

/// Flags of `rota describe`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// KIND, KIND NAME ..., or KIND/NAME ...
    #[arg(required = true, value_name = "KIND")]
    what: Vec<String>,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "QUERY", default_value = "")]
    selector: String,
    /// Show what happened to it
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    show_events: bool,
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    let api = cx.api().await?;
    let namespace = cx.namespace().await?;
    let discovery = cx.discovery().await?;
    let mut failed = false;
    let mut printed = false;
    for target in selector::targets(&args.what, &discovery)? {
        let mut objects = Vec::new();
        for name in &target.names {
            match api.get(&target.resource.object(&namespace, name)).await {
                Ok(o) => objects.push(o),
                Err(e @ Failure::Status { .. }) => {
                    cx.report(&e.into());
                    failed = true;
                }
                Err(e) => return Err(e.into()),
            }
        }
        if target.names.is_empty() {
            let scope = (!args.all_namespaces).then_some(namespace.as_str());
            let selection = Selection {
                labels: args.selector.clone(),
                ..Selection::default()
            };
            objects = watch::list(api, &target.resource.collection(scope), &selection).await?.0;
            if objects.is_empty() {
                cx.say("No resources found.");
            }
        }
        for object in objects {
            let mut facts = Facts::default();
            if args.show_events {
                facts.events = Some(events_of(api, &object).await?);
            }
            if target.resource.kind == "Node" {
                facts.tasks = tasks_on(api, &discovery, &object).await?;
            }
            let text = describe(&object, &target.resource, &facts, Timestamp::now());
            let gap = if std::mem::replace(&mut printed, true) { "\n\n" } else { "" };
            cx.print(&format!("{gap}{text}"))?;
        }
    }
    if failed { Err(CliError::exit(EXIT_ERROR)) } else { Ok(()) }
}

/// What is shown beside the object itself.
#[derive(Default)]
struct Facts {
    events: Option<Vec<Value>>,
    /// Live Tasks of a Node.
    tasks: Vec<Value>,
}

/// Time of an event, whichever of its fields holds it.
pub fn event_time(e: &Value) -> Option<&str> {
    let times = [&e["series"]["lastObservedTime"], &e["lastTimestamp"], &e["eventTime"], &e["metadata"]["creationTimestamp"]];
    times.into_iter().find_map(Value::as_str)
}

/// Events about an object, oldest first.
pub async fn events_of(api: &Api, object: &Value) -> Result<Vec<Value>> {
    let meta = &object["metadata"];
    let uid = meta["uid"].as_str().unwrap_or("");
    let name = meta["name"].as_str().unwrap_or("");
    // Events of cluster-scoped objects are kept in `default`.
    let namespace = meta["namespace"].as_str().unwrap_or("default");
    let path = format!("/api/v1/namespaces/{}/events", crate::client::encode(namespace));
    let selection = Selection {
        labels: String::new(),
        fields: format!("involvedObject.name={name},involvedObject.uid={uid}"),
    };
    let listed = match watch::list(api, &path, &selection).await {
        // Servers that cannot select events by what they are about give them all.
        Err(e) if e.code() == 400 => watch::list(api, &path, &Selection::default()).await,
        other => other,
    };
    let mut events = match listed {
        Ok((events, _)) => events,
        // Without the right or the kind, the object itself can still be described.
        Err(e) if matches!(e.code(), 403 | 404) => Vec::new(),
        Err(e) => return Err(e.into()),
    };
    events.retain(|e| {
        let about = &e["involvedObject"];
        about["name"] == name && (about["uid"].as_str().is_none_or(str::is_empty) || about["uid"] == uid)
    });
    events.sort_by(|a, b| event_time(a).cmp(&event_time(b)));
    Ok(events)
}

async fn tasks_on(api: &Api, discovery: &Discovery, node: &Value) -> Result<Vec<Value>> {
    let Ok(tasks) = discovery.resolve("tasks.rota.dev") else {
        return Ok(Vec::new());
    };
    let name = node["metadata"]["name"].as_str().unwrap_or("");
    let selection = Selection {
        labels: String::new(),
        fields: format!("spec.nodeName={name}"),
    };
    let (mut items, _) = watch::list(api, &tasks.collection(None), &selection).await?;
    items.retain(|t| !matches!(t["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Lost")));
    Ok(items)
}

/// The whole description.
fn describe(object: &Value, resource: &Resource, facts: &Facts, now: Timestamp) -> String {
    let mut out = String::new();
    let ours = resource.group == rota_api::names::GROUP;
    let meta = &object["metadata"];
    let mut top: Vec<(String, Vec<String>)> = Vec::new();
    let mut add = |key: &str, lines: Vec<String>| top.push((key.to_string(), lines));
    add("Name", vec![scalar(&meta["name"])]);
    if resource.namespaced {
        add("Namespace", vec![scalar(&meta["namespace"])]);
    }
    add("Labels", pairs(&meta["labels"], "="));
    let mut annotations = meta["annotations"].clone();
    if let Some(a) = annotations.as_object_mut() {
        a.remove(LAST_APPLIED);
    }
    add("Annotations", pairs(&annotations, ": "));
    add("API Version", vec![resource.api_version()]);
    add("Kind", vec![resource.kind.clone()]);
    if let Some(t) = meta["creationTimestamp"].as_str() {
        add("Created", vec![format!("{t} ({} ago)", time::age(Some(t), now))]);
    }
    if let Some(t) = meta["deletionTimestamp"].as_str() {
        add("Deleting", vec![format!("since {t} ({} ago)", time::age(Some(t), now))]);
    }
    for owner in meta["ownerReferences"].as_array().into_iter().flatten() {
        add("Owner", vec![format!("{}/{}", scalar(&owner["kind"]), scalar(&owner["name"]))]);
    }
    if ours && resource.kind == "Job" {
        if let Some(phase) = object["status"]["phase"].as_str() {
            add("Phase", vec![phase.to_string()]);
        }
        add("Tasks", vec![progress::counts(object)]);
        if let Some(text) = waiting::gang(object) {
            add("Gang", vec![text]);
        }
        if let Some(text) = waiting::preemption(object) {
            add("Preemption", vec![text]);
        }
        if let Some(text) = waiting::deadline(object, now) {
            add("Deadline", vec![text]);
        }
    }
    if ours && resource.kind == "Task" {
        for (key, lines) in task_summary(object) {
            add(key, lines);
        }
    }
    aligned(&mut out, &top, 0);

    let mut body = object.as_object().cloned().unwrap_or_default();
    for key in ["apiVersion", "kind", "metadata"] {
        body.remove(key);
    }
    if resource.kind == "Secret" {
        hide_data(&mut body);
    }
    let conditions = body.get_mut("status").and_then(|s| s.as_object_mut()).and_then(|s| s.remove("conditions"));
    let waits_for = match (ours && resource.kind == "Job", body.get_mut("status").and_then(|s| s.as_object_mut())) {
        (true, Some(s)) => s.remove("waitingFor"),
        _ => None,
    };
    // spec before status, whatever else there is between them by name.
    let order = |k: &str| match k {
        "spec" => 0,
        "status" => 2,
        _ => 1,
    };
    let mut keys: Vec<&String> = body.keys().collect();
    keys.sort_by_key(|k| (order(k), k.as_str()));
    for key in keys {
        fields(&mut out, key, &body[key], 0);
    }
    if let Some(w) = waits_for {
        waiting_section(&mut out, &w, meta["name"].as_str().unwrap_or(""), now);
    }
    if let Some(c) = conditions {
        conditions_section(&mut out, &c, now);
    }
    if resource.kind == "Node" {
        node_section(&mut out, object, &facts.tasks, now);
    }
    if let Some(events) = &facts.events {
        events_section(&mut out, events, now);
    }
    out
}

fn scalar(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Null => "<none>".into(),
        other => other.to_string(),
    }
}

fn pairs(v: &Value, between: &str) -> Vec<String> {
    match v.as_object() {
        Some(map) if !map.is_empty() => map.iter().map(|(k, v)| format!("{k}{between}{}", scalar(v))).collect(),
        _ => vec!["<none>".into()],
    }
}

/// `Key:   value`, with further lines under the value.
fn aligned(out: &mut String, rows: &[(String, Vec<String>)], indent: usize) {
    let width = rows.iter().map(|(k, _)| k.chars().count()).max().unwrap_or(0) + 1;
    for (key, lines) in rows {
        for (i, line) in lines.iter().enumerate() {
            let head = if i == 0 { format!("{key}:") } else { String::new() };
            let _ = writeln!(out, "{:indent$}{head:width$}  {line}", "");
        }
    }
}

/// `maxUnavailable` as `Max Unavailable`.
fn title(key: &str) -> String {
    if key.contains(['.', '/', '-']) {
        return key.to_string();
    }
    let mut out = String::new();
    for (i, c) in key.chars().enumerate() {
        if i == 0 {
            out.extend(c.to_uppercase());
        } else {
            if c.is_uppercase() {
                out.push(' ');
            }
            out.push(c);
        }
    }
    out
}

/// A field and all below it.
fn fields(out: &mut String, key: &str, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if map.is_empty() => {}
        Value::Object(map) => {
            let _ = writeln!(out, "{:indent$}{}:", "", title(key));
            members(out, map, indent + 2);
        }
        Value::Array(items) if items.iter().all(|i| !i.is_object() && !i.is_array()) => {
            let lines: Vec<String> = items.iter().map(scalar).collect();
            if !lines.is_empty() {
                aligned(out, &[(title(key), lines)], indent);
            }
        }
        Value::Array(items) => {
            let _ = writeln!(out, "{:indent$}{}:", "", title(key));
            for item in items {
                let mut text = String::new();
                match item {
                    Value::Object(map) => members(&mut text, map, indent + 4),
                    other => {
                        let _ = writeln!(text, "{:1$}{2}", "", indent + 4, scalar(other));
                    }
                }
                // The first line of an item carries its dash.
                let _ = write!(out, "{:1$}- {2}", "", indent + 2, text.trim_start());
            }
        }
        other => aligned(out, &[(title(key), scalar(other).lines().map(String::from).collect())], indent),
    }
}

fn members(out: &mut String, map: &Map<String, Value>, indent: usize) {
    let plain = |v: &Value| !v.is_object() && !v.is_array();
    let rows: Vec<(String, Vec<String>)> = map
        .iter()
        .filter(|(_, v)| plain(v))
        .map(|(k, v)| (title(k), scalar(v).lines().map(String::from).collect()))
        .collect();
    aligned(out, &rows, indent);
    for (k, v) in map.iter().filter(|(_, v)| !plain(v)) {
        fields(out, k, v, indent);
    }
}

/// A Secret's values are only measured.
fn hide_data(body: &mut Map<String, Value>) {
    use base64::Engine as _;
    if let Some(data) = body.get_mut("data").and_then(Value::as_object_mut) {
        for v in data.values_mut() {
            let text = v.as_str().unwrap_or("");
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_or(text.len(), |b| b.len());
            *v = format!("{bytes} bytes").into();
        }
    }
}

fn task_summary(task: &Value) -> Vec<(&'static str, Vec<String>)> {
    let (spec, status) = (&task["spec"], &task["status"]);
    let mut out = vec![
        ("Job", vec![format!("{} (index {}, attempt {})", scalar(&spec["jobName"]), spec["index"], spec["attempt"])]),
        ("Node", vec![scalar(&spec["nodeName"])]),
        ("Phase", vec![status["phase"].as_str().unwrap_or("not yet seen by its agent").to_string()]),
    ];
    let mut exit = Vec::new();
    if let Some(code) = status["exitCode"].as_i64() {
        exit.push(format!("code {code}"));
    }
    if let Some(signal) = status["signal"].as_i64() {
        exit.push(format!("signal {signal}"));
    }
    let why = progress::phrase(status);
    if !why.is_empty() {
        exit.push(why);
    }
    if !exit.is_empty() {
        out.push(("Exit", vec![exit.join(", ")]));
    }
    let address = status["address"].as_str().unwrap_or("");
    let ports: Vec<String> = status["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| format!("{} {address}:{}", scalar(&p["name"]), p["port"]))
        .collect();
    if !ports.is_empty() {
        out.push(("Ports", ports));
    }
    out
}

fn waiting_section(out: &mut String, waits_for: &Value, name: &str, now: Timestamp) {
    let _ = writeln!(out, "Waiting for:");
    for text in waiting::reasons(waits_for) {
        let _ = writeln!(out, "  - {text}");
    }
    for text in waiting::outlook(waits_for, now) {
        let _ = writeln!(out, "  {text}");
    }
    let _ = writeln!(out, "  `rota why {name}` also looks at its queue and the Jobs before it");
}

/// A table under a title, indented by two.
fn section(out: &mut String, title: &str, header: &[&str], rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        let _ = writeln!(out, "{title}:  <none>");
        return;
    }
    let header: Vec<String> = header.iter().map(|h| h.to_string()).collect();
    let rule: Vec<String> = header.iter().map(|h| "-".repeat(h.len())).collect();
    let all: Vec<Vec<String>> = [header, rule].into_iter().chain(rows).collect();
    let widths = table::widths(all.iter().map(Vec::as_slice));
    let _ = writeln!(out, "{title}:");
    for row in &all {
        let _ = write!(out, "  {}", table::line(row, &widths, &table::no_paint));
    }
}

fn conditions_section(out: &mut String, conditions: &Value, now: Timestamp) {
    let rows = conditions
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| {
            vec![
                scalar(&c["type"]),
                scalar(&c["status"]),
                c["reason"].as_str().unwrap_or("").to_string(),
                time::age(c["lastTransitionTime"].as_str(), now),
                c["message"].as_str().unwrap_or("").to_string(),
            ]
        })
        .collect();
    section(out, "Conditions", &["Type", "Status", "Reason", "Since", "Message"], rows);
}

fn events_section(out: &mut String, events: &[Value], now: Timestamp) {
    let rows = events
        .iter()
        .map(|e| {
            let mut age = time::age(event_time(e), now);
            let count = e["series"]["count"].as_u64().or(e["count"].as_u64()).unwrap_or(1);
            if count > 1 {
                let first = e["firstTimestamp"].as_str().or(e["eventTime"].as_str());
                age = format!("{age} (x{count} over {})", time::age(first, now));
            }
            let from = e["source"]["component"]
                .as_str()
                .filter(|s| !s.is_empty())
                .or(e["reportingComponent"].as_str())
                .unwrap_or("");
            vec![
                e["type"].as_str().unwrap_or("Normal").to_string(),
                scalar(&e["reason"]),
                age,
                from.to_string(),
                e["message"].as_str().unwrap_or("").trim().to_string(),
            ]
        })
        .collect();
    section(out, "Events", &["Type", "Reason", "Age", "From", "Message"], rows);
}

/// What a Node's live Tasks hold of it.
fn node_section(out: &mut String, node: &Value, tasks: &[Value], now: Timestamp) {
    let rows = tasks
        .iter()
        .take(TASKS_SHOWN)
        .map(|t| {
            let requests = &t["spec"]["requests"];
            let amount = |r: &str| requests.get(r).map_or("0".into(), scalar);
            vec![
                scalar(&t["metadata"]["namespace"]),
                scalar(&t["metadata"]["name"]),
                amount("cpu"),
                amount("memory"),
                time::age(t["metadata"]["creationTimestamp"].as_str(), now),
            ]
        })
        .collect();
    let title = match tasks.len() {
        n if n > TASKS_SHOWN => format!("Tasks (first {TASKS_SHOWN} of {n})"),
        n => format!("Tasks ({n} in total)"),
    };
    section(out, &title, &["Namespace", "Name", "CPU", "Memory", "Age"], rows);
    let mut sums: BTreeMap<String, i64> = BTreeMap::new();
    for t in tasks {
        for (resource, amount) in t["spec"]["requests"].as_object().into_iter().flatten() {
            let sum = sums.entry(resource.clone()).or_default();
            *sum = sum.saturating_add(quantity::read(amount).base_ceil(resource));
        }
    }
    let allocatable = node["status"]["allocatable"].as_object().cloned().unwrap_or_default();
    let rows = allocatable
        .iter()
        .map(|(resource, have)| {
            let have = quantity::read(have);
            let total = have.base_floor(resource);
            let held = sums.get(resource).copied().unwrap_or(0);
            let percent = if total > 0 { i128::from(held) * 100 / i128::from(total) } else { 0 };
            let free = Quantity::from_base(resource, (total - held).max(0));
            vec![
                resource.clone(),
                format!("{} ({percent}%)", Quantity::from_base(resource, held)),
                free.to_string(),
                have.to_string(),
            ]
        })
        .collect();
    section(out, "Allocated resources", &["Resource", "Requests", "Free", "Allocatable"], rows);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resource(group: &str, kind: &str, namespaced: bool) -> Resource {
        Resource {
            group: group.into(),
            version: "v1".into(),
            kind: kind.into(),
            namespaced,
            ..Resource::default()
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_767_225_600 + 600).unwrap_or_default()
    }

    #[test]
    fn a_waiting_job_says_why_in_full() {
        let job = json!({"metadata": {"name": "pi", "namespace": "a", "labels": {"x": "1", "y": "2"}, "annotations": {LAST_APPLIED: "{}"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"completions": 4, "template": {"spec": {"command": ["sh", "-c", "true"], "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}}},
            "status": {"phase": "Waiting", "waiting": 4, "waitingFor": {"reasons": [{"reason": "NoNodes", "message": "no node is ready", "nodes": 0}], "smallestChange": "add a node"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "Queued", "lastTransitionTime": "2026-01-01T00:00:00Z", "message": "m"}]}});
        let facts = Facts {
            events: Some(vec![json!({"type": "Warning", "reason": "NoNodes", "message": "why", "count": 3, "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:09:00Z", "source": {"component": "placement"}})]),
            tasks: Vec::new(),
        };
        let text = describe(&job, &resource("rota.dev", "Job", true), &facts, now());
        for part in [
            "Name:         pi\n",
            "Labels:       x=1\n              y=2\n",
            "Annotations:  <none>\n",
            "Tasks:        0/4 succeeded, 4 waiting\n",
            "  - NoNodes: no node is ready [0 nodes]\n",
            "  Smallest change that helps: add a node\n",
            "        - Name:   A\n          Value:  1\n",
            "  Ready   True     Queued   10m     m\n",
            "  Warning   NoNodes   60s (x3 over 10m)   placement   why\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }

    #[test]
    fn a_node_shows_what_its_tasks_hold() {
        let node = json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi"}}});
        let task = |name: &str| json!({"metadata": {"name": name, "namespace": "a"}, "spec": {"requests": {"cpu": "500m", "memory": "1Gi"}}});
        let facts = Facts {
            events: None,
            tasks: vec![task("t1"), task("t2")],
        };
        let text = describe(&node, &resource("", "Node", false), &facts, now());
        assert!(text.contains("Tasks (2 in total):"), "{text}");
        assert!(text.contains("  cpu        1 (25%)"), "{text}");
        assert!(text.contains("  memory     2Gi (25%)"), "{text}");
    }

    #[test]
    fn secrets_stay_secret() {
        let secret = json!({"metadata": {"name": "s"}, "data": {"key": "aGVsbG8="}});
        let text = describe(&secret, &resource("", "Secret", true), &Facts::default(), now());
        assert!(text.contains("Key:  5 bytes") && !text.contains("aGVsbG8"), "{text}");
    }

    #[test]
    fn a_task_names_node_ports_and_exit() {
        let task = json!({"metadata": {"name": "t"}, "spec": {"jobName": "j", "index": 3, "attempt": 1, "nodeName": "n1"},
            "status": {"phase": "Failed", "exitCode": 2, "reason": "Error", "message": "bad", "address": "10.0.0.1", "ports": [{"name": "http", "port": 20001}]}});
        let text = describe(&task, &resource("rota.dev", "Task", true), &Facts::default(), now());
        for part in ["j (index 3, attempt 1)", "Node:         n1", "code 2, Error: bad", "http 10.0.0.1:20001"] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }
}
