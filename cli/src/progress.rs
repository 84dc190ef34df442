//! What a Job has come to, in words and numbers; shared by `apply --wait`, `run`, `wait` and `why`.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use tokio::time::Instant;

use crate::client::{Api, Failure};
use crate::context::Context;
use crate::discovery::Resource;
use crate::error::{CliError, EXIT_NOT_PLACED, Result};
use crate::output::named;
use crate::watch::{self, Selection, Watch};

/// Pause before a watch that ended is opened again.
const WATCH_AGAIN: Duration = Duration::from_millis(300);

/// How a Job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Batch: all done. Service: all replicas up.
    Done,
    /// Given up.
    Failed(String),
    /// Cannot run as it is; a change is needed.
    Stuck(String),
    /// Tasks wait for something.
    Waiting(String),
    /// Tasks run or start.
    Running,
    /// Held by `suspend`.
    Suspended,
    /// Nobody has looked at this generation yet.
    Unknown,
}

/// The condition of this type.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| {
        c["type"]
            .as_str()
            .is_some_and(|t| t.eq_ignore_ascii_case(kind))
    })
}

fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|c| c["status"] == "True")
}

/// Reason and message of a condition as one phrase.
pub fn phrase(c: &Value) -> String {
    let reason = c["reason"].as_str().unwrap_or("");
    match c["message"].as_str().filter(|m| !m.is_empty()) {
        Some(m) if reason.is_empty() => m.to_string(),
        Some(m) => format!("{reason}: {m}"),
        None => reason.to_string(),
    }
}

fn number(v: &Value) -> u64 {
    v.as_u64().unwrap_or(0)
}

/// All blockers of a waiting Job as one phrase.
pub fn blockers(job: &Value) -> String {
    let reasons = job["status"]["waitingFor"]["reasons"].as_array();
    let listed: Vec<String> = reasons.into_iter().flatten().map(phrase).collect();
    if listed.is_empty() {
        condition(job, "Scheduled")
            .or_else(|| condition(job, "Admitted"))
            .filter(|c| c["status"] == "False")
            .map(phrase)
            .unwrap_or_default()
    } else {
        listed.join("; ")
    }
}

/// How a Job stands, from its status alone.
pub fn standing(job: &Value) -> Standing {
    let status = &job["status"];
    let observed = status["observedGeneration"].as_i64().unwrap_or(0);
    if observed < job["metadata"]["generation"].as_i64().unwrap_or(0) {
        return Standing::Unknown;
    }
    let service = job["spec"]["type"] == "Service";
    if is_true(job, "Failed") || status["phase"] == "Failed" {
        return Standing::Failed(condition(job, "Failed").map(phrase).unwrap_or_default());
    }
    if is_true(job, "Complete")
        || status["phase"] == "Succeeded"
        || (service && is_true(job, "Available"))
    {
        return Standing::Done;
    }
    if let Some(c) = condition(job, "Stalled").filter(|c| c["status"] == "True") {
        return Standing::Stuck(phrase(c));
    }
    if job["spec"]["suspend"] == true {
        return Standing::Suspended;
    }
    if number(&status["running"]) + number(&status["starting"]) > 0 {
        return Standing::Running;
    }
    match blockers(job) {
        b if !b.is_empty() => Standing::Waiting(b),
        _ if status["phase"] == "Blocked" => {
            Standing::Waiting("another Job must finish first".into())
        }
        _ => Standing::Unknown,
    }
}

/// `12/100 succeeded, 4 running, 84 waiting`.
pub fn counts(job: &Value) -> String {
    let status = &job["status"];
    let mut parts = Vec::new();
    if job["spec"]["type"] == "Service" {
        parts.push(format!(
            "{}/{} ready",
            number(&status["ready"]),
            wanted(job)
        ));
    } else {
        parts.push(format!(
            "{}/{} succeeded",
            number(&status["succeeded"]),
            wanted(job)
        ));
    }
    for word in ["running", "starting", "waiting", "failed"] {
        let n = number(&status[word]);
        if n > 0 {
            parts.push(format!("{n} {word}"));
        }
    }
    parts.join(", ")
}

/// Tasks that a Job needs to be done.
pub fn wanted(job: &Value) -> u64 {
    let spec = &job["spec"];
    if spec["type"] == "Service" {
        spec["replicas"].as_u64().unwrap_or(1)
    } else {
        spec["completions"].as_u64().unwrap_or(1)
    }
}

/// Follows Jobs on stderr: a bar on a terminal, a line per change elsewhere.
struct Meter {
    bar: Option<ProgressBar>,
    last: String,
}

impl Meter {
    fn new(cx: &Context) -> Self {
        // The bar needs the real terminal; a captured stderr gets lines.
        let bar = (cx.err_tty && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Meter {
            bar,
            last: String::new(),
        }
    }

    fn show(&mut self, cx: &Context, name: &str, job: &Value) {
        let mut text = counts(job);
        if let Standing::Waiting(why) | Standing::Stuck(why) = standing(job) {
            text.push_str(&format!(" ({why})"));
        }
        if text == self.last {
            return;
        }
        match &self.bar {
            Some(bar) => {
                let done = match job["spec"]["type"] == "Service" {
                    true => number(&job["status"]["ready"]),
                    false => number(&job["status"]["succeeded"]),
                };
                bar.set_length(wanted(job));
                bar.set_position(done);
                bar.set_prefix(name.to_string());
                bar.set_message(text.clone());
            }
            None => cx.say(&format!("{name}: {text}")),
        }
        self.last = text;
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Follows an object by watch: calls `look` on each version of it (`None` when it does not exist)
/// until it answers or the time is up (then `None`).
pub async fn follow<T>(
    api: &Api,
    resource: &Resource,
    namespace: &str,
    name: &str,
    deadline: Option<Instant>,
    mut look: impl FnMut(Option<&Value>) -> Option<T>,
) -> Result<Option<T>> {
    let path = resource.collection(Some(namespace));
    let selection = Selection::name(name);
    let watching = async {
        loop {
            let (items, version) = watch::list(api, &path, &selection).await?;
            if let Some(t) = look(items.first()) {
                return Ok(t);
            }
            match Watch::open(api, &path, &selection, &version, "application/json").await {
                Ok(mut events) => loop {
                    match events.next().await {
                        Ok(Some(e)) if e.kind == "BOOKMARK" => {}
                        Ok(Some(e)) => {
                            let object = (e.kind != "DELETED").then_some(&e.object);
                            if let Some(t) = look(object) {
                                return Ok(t);
                            }
                        }
                        Ok(None) => break,
                        Err(Failure::Status { code: 410, .. } | Failure::Transport { .. }) => break,
                        Err(e) => return Err(CliError::from(e)),
                    }
                },
                Err(Failure::Status { code: 410, .. }) => {}
                Err(e) => return Err(e.into()),
            }
            tokio::time::sleep(WATCH_AGAIN).await;
        }
    };
    match deadline {
        None => watching.await.map(Some),
        Some(d) => match tokio::time::timeout_at(d, watching).await {
            Ok(r) => r.map(Some),
            Err(_) => Ok(None),
        },
    }
}

/// Waits until a Job is done: an error with exit code 1 when it failed, 2 when it cannot be placed.
pub async fn until_done(
    cx: &Context,
    job: &Resource,
    namespace: &str,
    name: &str,
    deadline: Option<Instant>,
) -> Result<()> {
    let api = cx.api().await?;
    let shown = named(job, name);
    let mut meter = Meter::new(cx);
    let mut seen = None;
    let end = follow(api, job, namespace, name, deadline, |object| {
        let Some(object) = object else {
            return Some(Err(CliError::new(
                format!("{shown} was deleted while waiting for it"),
                "apply it again",
            )));
        };
        meter.show(cx, &shown, object);
        seen = Some(object.clone());
        match standing(object) {
            Standing::Done => Some(Ok(())),
            Standing::Failed(why) => Some(Err(failed(&shown, name, &why))),
            Standing::Stuck(why) => Some(Err(not_placed(&shown, name, &why, object))),
            _ => None,
        }
    })
    .await?;
    drop(meter);
    match end {
        Some(result) => result,
        None => {
            let job = seen.unwrap_or_default();
            Err(match standing(&job) {
                Standing::Waiting(why) => not_placed(&shown, name, &why, &job),
                _ => CliError::new(
                    format!("{shown} is not done when the time was up: {}", counts(&job)),
                    format!(
                        "it goes on; `rota wait --for=condition=Complete job/{name}` waits longer"
                    ),
                ),
            })
        }
    }
}

/// The Job has failed.
fn failed(shown: &str, name: &str, why: &str) -> CliError {
    let why = if why.is_empty() {
        String::new()
    } else {
        format!(": {why}")
    };
    CliError::new(
        format!("{shown} failed{why}"),
        format!("`rota logs job/{name}` shows what its tasks wrote"),
    )
}

/// Accepted, but nothing of it can be placed now.
pub fn not_placed(shown: &str, name: &str, why: &str, job: &Value) -> CliError {
    let remedy = match job["status"]["waitingFor"]["smallestChange"].as_str() {
        Some(change) => format!("smallest change that helps: {change}"),
        None => format!("`rota why {name}` says more; it starts by itself when it can"),
    };
    CliError::new(
        format!("{shown} is accepted but cannot be placed now: {why}"),
        remedy,
    )
    .with_exit(EXIT_NOT_PLACED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(spec: Value, status: Value) -> Value {
        json!({"metadata": {"generation": 1}, "spec": spec, "status": status})
    }

    #[test]
    fn a_jobs_standing_follows_its_conditions() {
        let c = |t: &str, s: &str| json!([{"type": t, "status": s, "reason": "R", "message": "m"}]);
        let with = |conditions: Value| {
            job(
                json!({}),
                json!({"observedGeneration": 1, "conditions": conditions}),
            )
        };
        assert_eq!(standing(&with(c("Complete", "True"))), Standing::Done);
        assert_eq!(standing(&with(c("Complete", "False"))), Standing::Unknown);
        assert_eq!(
            standing(&with(c("Failed", "True"))),
            Standing::Failed("R: m".into())
        );
        assert_eq!(
            standing(&with(c("Stalled", "True"))),
            Standing::Stuck("R: m".into())
        );
        assert_eq!(
            standing(&with(c("Scheduled", "False"))),
            Standing::Waiting("R: m".into())
        );
        assert_eq!(
            standing(&with(c("Available", "True"))),
            Standing::Unknown,
            "a batch Job is never done by Available"
        );
        let service = job(
            json!({"type": "Service"}),
            json!({"observedGeneration": 1, "conditions": c("Available", "True")}),
        );
        assert_eq!(standing(&service), Standing::Done);
        let mut old = service;
        old["metadata"]["generation"] = json!(2);
        assert_eq!(
            standing(&old),
            Standing::Unknown,
            "a status of an older spec says nothing"
        );
    }

    #[test]
    fn counts_leave_out_zeros_and_all_blockers_are_named() {
        let j = job(
            json!({"completions": 10}),
            json!({"observedGeneration": 1, "succeeded": 3, "waiting": 7, "running": 0,
                   "waitingFor": {"reasons": [{"reason": "A", "message": "x"}, {"reason": "B", "message": "y"}], "smallestChange": "less"}}),
        );
        assert_eq!(counts(&j), "3/10 succeeded, 7 waiting");
        assert_eq!(standing(&j), Standing::Waiting("A: x; B: y".into()));
        let e = not_placed("job.rota.dev/x", "x", "A: x", &j);
        assert_eq!(
            (e.exit, e.remedy.as_str()),
            (2, "smallest change that helps: less")
        );
    }
}
