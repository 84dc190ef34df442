//! `rota why`: all that keeps a Job from starting or finishing, and the smallest change that helps.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::Value;

use crate::client::{Api, Failure};
use crate::context::Context;
use crate::discovery::{Discovery, Resource};
use crate::error::{CliError, Result};
use crate::output::{named, time};
use crate::progress;
use crate::verbs::describe;
use crate::watch::{self, Selection};

/// Failed tasks that are named one by one.
const FAILED_SHOWN: usize = 5;
/// Newest events shown.
const EVENTS_SHOWN: usize = 5;

/// Flags of `rota why`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Name of the Job, or job/NAME
    job: String,
}

/// What is known around a Job.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    job: Value,
    /// Null if the queue does not exist.
    queue: Value,
    /// Jobs that `after` names; null where one does not exist.
    after: BTreeMap<String, Value>,
    tasks: Vec<Value>,
    events: Vec<Value>,
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    let discovery = cx.discovery().await?;
    let name = match args.job.split_once('/') {
        None => args.job.as_str(),
        Some((kind, name)) => {
            let r = discovery.resolve(kind)?;
            if r.kind != "Job" || r.group != rota_api::names::GROUP {
                return Err(CliError::new(
                    format!("only Jobs wait; {} is another kind", r.qualified()),
                    "write `rota why JOB`; `rota describe` shows other objects",
                ));
            }
            name
        }
    };
    let namespace = cx.namespace().await?;
    let facts = gather(cx.api().await?, &discovery, &namespace, name).await?;
    let job = discovery.resolve("jobs.rota.dev")?;
    cx.print(&explain(&facts, job, Timestamp::now()))
}

/// An object, or null if there is none.
async fn maybe(api: &Api, path: &str) -> std::result::Result<Value, Failure> {
    match api.get(path).await {
        Err(e) if e.is_not_found() => Ok(Value::Null),
        other => other,
    }
}

async fn gather(api: &Api, discovery: &Discovery, namespace: &str, name: &str) -> Result<Facts> {
    let jobs = discovery.resolve("jobs.rota.dev")?;
    let job = api.get(&jobs.object(namespace, name)).await?;
    let mut facts = Facts::default();
    if let Ok(queues) = discovery.resolve("queues.rota.dev") {
        let queue = job["spec"]["queue"].as_str().unwrap_or("default");
        facts.queue = maybe(api, &queues.object("", queue)).await?;
    }
    for edge in job["spec"]["after"].as_array().into_iter().flatten() {
        if let Some(other) = edge["job"].as_str() {
            facts.after.insert(other.into(), maybe(api, &jobs.object(namespace, other)).await?);
        }
    }
    if let Ok(tasks) = discovery.resolve("tasks.rota.dev") {
        let selection = Selection {
            labels: format!("{}={name}", rota_api::names::LABEL_JOB),
            ..Selection::default()
        };
        facts.tasks = watch::list(api, &tasks.collection(Some(namespace)), &selection).await?.0;
    }
    facts.events = describe::events_of(api, &job).await?;
    facts.job = job;
    Ok(facts)
}

/// The answer, from facts alone.
fn explain(facts: &Facts, resource: &Resource, now: Timestamp) -> String {
    let job = &facts.job;
    let (spec, status) = (&job["spec"], &job["status"]);
    let name = job["metadata"]["name"].as_str().unwrap_or("");
    let shown = named(resource, name);
    let mut out = String::new();
    let line = |out: &mut String, text: String| {
        let _ = writeln!(out, "{text}");
    };
    line(&mut out, headline(facts, &shown, now));
    line(&mut out, format!("  {}", progress::counts(job)));

    let mut blockers = Vec::new();
    if spec["suspend"] == true {
        blockers.push("Suspended: spec.suspend is true; `rota apply` it with suspend: false to let it run".to_string());
    }
    blockers.extend(edges(facts));
    let queue = spec["queue"].as_str().unwrap_or("default");
    let waiting = status["waiting"].as_u64().unwrap_or(0);
    for r in status["waitingFor"]["reasons"].as_array().into_iter().flatten() {
        let mut text = progress::phrase(r);
        let mut about = Vec::new();
        if let Some(n) = r["nodes"].as_u64() {
            about.push(format!("{n} node{}", if n == 1 { "" } else { "s" }));
        }
        if let Some(resource) = r["resource"].as_str().filter(|r| !text.contains(r)) {
            about.push(resource.to_string());
        }
        if !about.is_empty() {
            text.push_str(&format!(" [{}]", about.join(", ")));
        }
        blockers.push(text);
    }
    if facts.queue.is_null() && !blockers.iter().any(|b| b.contains("QueueNotFound")) {
        blockers.push(format!("QueueNotFound: the queue {queue:?} does not exist"));
    }
    if blockers.is_empty() {
        for kind in ["Admitted", "Scheduled"] {
            if let Some(c) = progress::condition(job, kind).filter(|c| c["status"] == "False") {
                blockers.push(progress::phrase(c));
            }
        }
    }
    let finished = finished(status);
    if !blockers.is_empty() && !finished {
        line(&mut out, "Blocked by:".into());
        for b in blockers {
            line(&mut out, format!("  - {b}"));
        }
    }
    if let Some(change) = status["waitingFor"]["smallestChange"].as_str() {
        line(&mut out, format!("Smallest change that helps: {change}"));
    }
    if waiting > 0 && !facts.queue.is_null() {
        let q = &facts.queue;
        let mut text = format!(
            "Queue {queue}: {} running, {} waiting",
            q["status"]["running"].as_u64().unwrap_or(0),
            q["status"]["waiting"].as_u64().unwrap_or(0)
        );
        for (resource, limit) in q["spec"]["limit"].as_object().into_iter().flatten() {
            let used = progress_text(&q["status"]["used"][resource]);
            text.push_str(&format!(", {resource} {used} of {}", progress_text(limit)));
        }
        line(&mut out, text);
    }
    let failed: Vec<&Value> = facts
        .tasks
        .iter()
        .filter(|t| matches!(t["status"]["phase"].as_str(), Some("Failed" | "Lost")))
        .collect();
    if !failed.is_empty() {
        line(&mut out, "Failed tasks:".into());
        for t in failed.iter().take(FAILED_SHOWN) {
            let s = &t["status"];
            let mut text = format!(
                "  - index {} attempt {} on {}: {}",
                t["spec"]["index"],
                t["spec"]["attempt"],
                t["spec"]["nodeName"].as_str().unwrap_or("?"),
                s["phase"].as_str().unwrap_or("")
            );
            if let Some(code) = s["exitCode"].as_i64() {
                text.push_str(&format!(", exit code {code}"));
            }
            let why = progress::phrase(s);
            if !why.is_empty() {
                text.push_str(&format!(", {why}"));
            }
            line(&mut out, text);
        }
        if failed.len() > FAILED_SHOWN {
            line(&mut out, format!("  ... and {} more", failed.len() - FAILED_SHOWN));
        }
        line(&mut out, format!("Next: `rota logs job/{name} --index {}`", failed[0]["spec"]["index"]));
    }
    if !facts.events.is_empty() {
        line(&mut out, "Latest events:".into());
        for e in facts.events.iter().rev().take(EVENTS_SHOWN).rev() {
            line(&mut out, format!("  {} ago  {}", time::age(describe::event_time(e), now), progress::phrase(e)));
        }
    }
    out
}

fn progress_text(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Null => "0".into(),
        other => other.to_string(),
    }
}

fn finished(status: &Value) -> bool {
    matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// State of the Job in one sentence.
fn headline(facts: &Facts, shown: &str, now: Timestamp) -> String {
    let job = &facts.job;
    let status = &job["status"];
    let since = |field: &str| match status[field].as_str() {
        Some(t) => format!(" {} ago", time::age(Some(t), now)),
        None => String::new(),
    };
    let created = job["metadata"]["creationTimestamp"].as_str();
    if job["metadata"]["deletionTimestamp"].is_string() {
        return format!("{shown} is being deleted; its tasks stop first");
    }
    let observed = status["observedGeneration"].as_i64().unwrap_or(0);
    if observed < job["metadata"]["generation"].as_i64().unwrap_or(0) {
        return format!(
            "{shown} was created {} ago, and no controller has looked at its newest spec yet; if that lasts, the controllers are down",
            time::age(created, now)
        );
    }
    let why = |kind: &str| match progress::condition(job, kind).filter(|c| c["status"] == "True").map(progress::phrase) {
        Some(p) if !p.is_empty() => format!(": {p}"),
        _ => String::new(),
    };
    match status["phase"].as_str() {
        Some("Succeeded") => format!("{shown} does not wait: it succeeded{}", since("completionTime")),
        Some("Failed") => format!("{shown} does not wait: it failed{}{}", since("completionTime"), why("Failed")),
        Some("Suspended") => format!("{shown} is held by spec.suspend"),
        Some("Blocked") => format!("{shown} waits for other Jobs{}", why("Stalled")),
        Some("Running") if status["waiting"].as_u64().unwrap_or(0) > 0 => {
            format!("{shown} runs, and some of its tasks wait{}", why("Stalled"))
        }
        Some("Running") => format!("{shown} does not wait: it runs, started{}", since("startTime")),
        _ => format!("{shown} waits since {}{}", time::age(created, now), why("Stalled")),
    }
}

/// `after` edges that are not met.
fn edges(facts: &Facts) -> Vec<String> {
    let mut out = Vec::new();
    for edge in facts.job["spec"]["after"].as_array().into_iter().flatten() {
        let other = edge["job"].as_str().unwrap_or("");
        let wanted = edge["condition"].as_str().unwrap_or("Succeeded");
        let job = facts.after.get(other).unwrap_or(&Value::Null);
        if job.is_null() {
            out.push(format!("AfterJob: job {other:?} does not exist (must be {wanted})"));
            continue;
        }
        let phase = job["status"]["phase"].as_str().unwrap_or("Waiting");
        let met = match wanted {
            "Finished" => matches!(phase, "Succeeded" | "Failed"),
            w => phase == w,
        };
        if !met {
            let never = matches!((wanted, phase), ("Succeeded", "Failed") | ("Failed", "Succeeded"));
            let end = if never { ", so this will never start" } else { "" };
            out.push(format!("AfterJob: job {other:?} is {phase} (must be {wanted}; {}){end}", progress::counts(job)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resource() -> Resource {
        Resource {
            group: "rota.dev".into(),
            singular: "job".into(),
            ..Resource::default()
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_767_225_600 + 600).unwrap_or_default()
    }

    fn waiting() -> Facts {
        Facts {
            job: json!({
                "metadata": {"name": "pi", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"queue": "q", "completions": 10, "after": [{"job": "prep"}, {"job": "gone", "condition": "Finished"}]},
                "status": {"phase": "Waiting", "observedGeneration": 1, "waiting": 10, "waitingFor": {
                    "reasons": [
                        {"reason": "InsufficientResource", "resource": "cpu", "nodes": 12, "message": "needs 4 cpu, most free is 2"},
                        {"reason": "TaintNotTolerated", "nodes": 1, "message": "node n9 is tainted"}],
                    "smallestChange": "drop cpu from 4 to 2"}}
            }),
            queue: json!({"spec": {"limit": {"cpu": "10"}}, "status": {"used": {"cpu": "9500m"}, "running": 3, "waiting": 10}}),
            after: BTreeMap::from([("prep".to_string(), json!({"spec": {}, "status": {"phase": "Failed"}}))]),
            ..Facts::default()
        }
    }

    #[test]
    fn all_blockers_are_told_at_once_with_counts_and_the_smallest_change() {
        let text = explain(&waiting(), &resource(), now());
        for part in [
            "job.rota.dev/pi waits since 10m",
            "0/10 succeeded, 10 waiting",
            "InsufficientResource: needs 4 cpu, most free is 2 [12 nodes]",
            "TaintNotTolerated: node n9 is tainted [1 node]",
            "job \"prep\" is Failed (must be Succeeded; 0/1 succeeded), so this will never start",
            "job \"gone\" does not exist (must be Finished)",
            "Smallest change that helps: drop cpu from 4 to 2",
            "Queue q: 3 running, 10 waiting, cpu 9500m of 10",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }

    #[test]
    fn a_job_that_does_not_wait_says_its_state_and_why() {
        let mut f = waiting();
        f.job["status"] = json!({"phase": "Failed", "observedGeneration": 1, "failed": 1, "completionTime": "2026-01-01T00:09:00Z",
            "conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "index 3 failed 7 times"}]});
        f.tasks = vec![json!({"spec": {"index": 3, "attempt": 6, "nodeName": "n1"}, "status": {"phase": "Failed", "exitCode": 2, "reason": "Error"}})];
        let text = explain(&f, &resource(), now());
        assert!(text.contains("it failed 60s ago: BackoffLimitExceeded: index 3 failed 7 times"), "{text}");
        assert!(text.contains("index 3 attempt 6 on n1: Failed, exit code 2, Error"), "{text}");
        assert!(text.contains("rota logs job/pi --index 3"), "{text}");
        assert!(!text.contains("Blocked by"), "{text}");
    }

    #[test]
    fn an_unseen_job_points_at_the_controllers() {
        let mut f = waiting();
        f.job["status"] = Value::Null;
        assert!(explain(&f, &resource(), now()).contains("controllers are down"));
    }
}
