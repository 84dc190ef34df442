//! `rota why`: all that keeps a Job from starting or finishing, and the smallest change that helps.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::client::{Api, Failure};
use crate::context::Context;
use crate::discovery::{Discovery, Resource};
use crate::error::{CliError, Result};
use crate::output::{self, amount, named, quantity, time};
use crate::progress;
use crate::verbs::describe;
use crate::waiting;
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
    /// json or yaml: the scheduler's answer as it is
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json", "yaml"])]
    output: Option<String>,
    /// Also say as of which resourceVersion the answer is
    #[arg(short, long)]
    verbose: bool,
}

/// What is known around a Job.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    job: Value,
    /// What the scheduler says now; `None` where it could not be asked.
    answer: Option<Value>,
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
    let api = cx.api().await?;
    let jobs = discovery.resolve("jobs.rota.dev")?;
    let path = jobs.object(&namespace, name);
    let job = api.get(&path).await?;
    let answer = ask(cx, api, &path).await?;
    if let Some(format) = args.output.as_deref() {
        let shown = answer.unwrap_or_else(|| from_status(&job));
        return cx.print(&match format {
            "yaml" => output::to_yaml(&shown)?,
            _ => output::to_json(&shown)?,
        });
    }
    let facts = gather(api, &discovery, &namespace, job, answer).await?;
    let mut text = explain(&facts, jobs, Timestamp::now());
    let version = facts.answer.as_ref().map(|a| &a["metadata"]["resourceVersion"]);
    if let (true, Some(version)) = (args.verbose, version.and_then(Value::as_str)) {
        let _ = writeln!(text, "As of resourceVersion {version}");
    }
    cx.print(&text)
}

/// The scheduler's own answer. Without one, a word on stderr says where the reasons come from.
async fn ask(cx: &Context, api: &Api, job: &str) -> Result<Option<Value>> {
    let why = match api.get(&format!("{job}/why")).await {
        Ok(answer) => return Ok(Some(answer)),
        Err(Failure::Timeout { seconds, .. }) => format!("no answer within {seconds} s"),
        Err(Failure::Status { code: 403..=405, .. }) => "the server does not answer this here".into(),
        Err(Failure::Status { code: 503 | 504, body }) => body["message"].as_str().unwrap_or("no answer").into(),
        Err(e) => return Err(e.into()),
    };
    cx.say(&format!("The scheduler cannot be asked now ({why}); what follows is from the Job's status."));
    Ok(None)
}

/// The same shape from the status alone.
fn from_status(job: &Value) -> Value {
    let meta = &job["metadata"];
    let mut answer = json!({
        "kind": "Why", "apiVersion": rota_api::names::API_VERSION,
        "metadata": {"namespace": meta["namespace"], "name": meta["name"], "resourceVersion": meta["resourceVersion"]},
        "waiting": job["status"]["waiting"].as_u64().unwrap_or(0),
    });
    if job["status"]["waitingFor"].is_object() {
        answer["waitingFor"] = job["status"]["waitingFor"].clone();
    }
    answer
}

/// An object, or null if there is none.
async fn maybe(api: &Api, path: &str) -> std::result::Result<Value, Failure> {
    match api.get(path).await {
        Err(e) if e.is_not_found() => Ok(Value::Null),
        other => other,
    }
}

async fn gather(api: &Api, discovery: &Discovery, namespace: &str, job: Value, answer: Option<Value>) -> Result<Facts> {
    let jobs = discovery.resolve("jobs.rota.dev")?;
    let name = job["metadata"]["name"].as_str().unwrap_or("");
    let mut facts = Facts {
        answer,
        ..Facts::default()
    };
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
    let waits = status["waiting"].as_u64().unwrap_or(0);
    let waits_for = match &facts.answer {
        Some(answer) => &answer["waitingFor"],
        None => &status["waitingFor"],
    };
    for reason in waiting::reasons(waits_for) {
        // Said already, with how far that Job is.
        if !(reason.starts_with("AfterJob: ") && blockers.iter().any(|b| b.starts_with("AfterJob: "))) {
            blockers.push(reason);
        }
    }
    if facts.queue.is_null() && !blockers.iter().any(|b| b.contains("QueueNotFound")) {
        blockers.push(format!("QueueNotFound: the queue {queue:?} does not exist"));
    }
    if blockers.is_empty() && facts.answer.is_none() {
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
    } else if facts.answer.as_ref().is_some_and(|a| a["waiting"].as_u64() > Some(0)) {
        line(&mut out, "Nothing stands in its way; the next scheduling cycle decides".into());
    }
    if !finished {
        for text in waiting::outlook(waits_for, now) {
            line(&mut out, text);
        }
        if let Some(text) = waiting::deadline(job, now) {
            line(&mut out, format!("Deadline: {text}"));
        }
        if let Some(text) = waiting::gang(job).filter(|_| waits > 0) {
            line(&mut out, format!("Gang: {text}"));
        }
    }
    if waits > 0 && !facts.queue.is_null() {
        let q = &facts.queue;
        let mut text = format!(
            "Queue {queue}: {} running, {} waiting",
            q["status"]["running"].as_u64().unwrap_or(0),
            q["status"]["waiting"].as_u64().unwrap_or(0)
        );
        for (resource, limit) in q["spec"]["limit"].as_object().into_iter().flatten() {
            let shown = |v: &Value| amount::number(resource, quantity::read(v));
            let used = shown(&q["status"]["used"][resource]);
            text.push_str(&format!(", {used} of at most {} {resource}", shown(limit)));
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
            "Queue q: 3 running, 10 waiting, 9.5 of at most 10 cpu",
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
    fn what_the_scheduler_says_now_goes_before_the_status() {
        let mut f = waiting();
        f.answer = Some(json!({"waiting": 3, "waitingFor": {
            "reasons": [{"reason": "QueueLimit", "message": "holds all"}],
            "estimatedStart": {"p50Time": "2026-01-01T00:15:00Z", "p90Time": "2026-01-01T00:30:00Z"}}}));
        f.job["spec"]["startDeadlineTime"] = json!("2026-01-01T00:12:00Z");
        let text = explain(&f, &resource(), now());
        assert!(text.contains("  - QueueLimit: holds all\n"), "{text}");
        assert!(text.contains("Expected start: in 5m"), "{text}");
        assert!(text.contains("Deadline: start by 2026-01-01T00:12:00Z"), "{text}");
        assert!(!text.contains("InsufficientResource") && !text.contains("drop cpu"), "{text}");
        f.job["spec"]["after"] = Value::Null;
        f.answer = Some(json!({"waiting": 3}));
        assert!(explain(&f, &resource(), now()).contains("the next scheduling cycle decides"));
    }

    #[test]
    fn an_unseen_job_points_at_the_controllers() {
        let mut f = waiting();
        f.job["status"] = Value::Null;
        assert!(explain(&f, &resource(), now()).contains("controllers are down"));
    }
}
