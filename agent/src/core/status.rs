//! The words of a Task's status, from what is known of it: pure.
//!
//! Promise: every status carries what all phases share, and a cause of an end always gives the same
//! phase and reason.

use rota_api::kinds::TaskPhase;
use rota_supervisor::logs::rfc3339;
use rota_supervisor::protocol::{Exit, ExitCause};
use serde_json::{Value, json};

use super::tracked::Tracked;

pub(super) fn time(ms: u64) -> String {
    let text = rfc3339(ms * 1_000_000);
    format!("{}Z", &text[..23])
}

/// A status with everything that all phases share.
pub(super) fn status(
    t: &Tracked,
    phase: TaskPhase,
    reason: Option<&str>,
    message: Option<&str>,
) -> Value {
    let ready = phase == TaskPhase::Running;
    let message: Option<String> = message.map(|m| m.chars().take(1000).collect());
    let word = reason.map_or_else(|| format!("{phase:?}"), String::from);
    let mut s = json!({
        "phase": phase, "ready": ready, "reason": reason, "message": message,
        "observedGeneration": t.generation, "restarts": t.observed.restarts,
        "conditions": [{
            "type": "Ready", "status": if ready { "True" } else { "False" }, "reason": word,
            "message": message.unwrap_or_default(),
            "lastTransitionTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }],
    });
    if !t.tag.p.is_empty() {
        s["ports"] = json!(t.tag.p);
    }
    s
}

pub(super) fn running(t: &Tracked, address: &str) -> Value {
    let mut s = status(t, TaskPhase::Running, None, None);
    if let Some(started) = &t.started {
        s["startedTime"] = json!(time(started.started_ms));
        s["pid"] = json!(started.pid);
    }
    s["address"] = json!(address);
    s
}

pub(super) fn backing_off(t: &Tracked, at_ms: u64) -> Value {
    let message = format!("the process ended; it is started again at {}", time(at_ms));
    let mut s = status(t, TaskPhase::Starting, Some("BackOff"), Some(&message));
    if let Some(e) = &t.last_exit {
        s["exitCode"] = json!(e.code);
        s["signal"] = json!(e.signal);
    }
    s
}

/// The terminal status of an exit.
pub(super) fn ended(t: &Tracked, e: &Exit) -> Value {
    // Stopped though nobody asked for it in the API: this agent or an earlier one was told to end,
    // or the machine was.
    let shutdown = !t.desired.as_ref().is_some_and(|d| d.deleting);
    let (phase, reason, message): (TaskPhase, Option<&str>, Option<String>) = match e.cause {
        ExitCause::Ended if e.code == Some(0) => (TaskPhase::Succeeded, None, None),
        ExitCause::Ended => match e.signal {
            Some(n) => (
                TaskPhase::Failed,
                Some("Signaled"),
                Some(format!("ended by signal {n}")),
            ),
            None => (
                TaskPhase::Failed,
                Some("Error"),
                Some(format!("ended with exit code {}", e.code.unwrap_or(-1))),
            ),
        },
        ExitCause::NotStarted => (
            TaskPhase::Failed,
            e.reason.as_deref().or(Some("StartFailed")),
            e.message.clone(),
        ),
        ExitCause::OutOfMemory => (
            TaskPhase::Failed,
            Some("OOMKilled"),
            Some("it used more memory than its limit".into()),
        ),
        // Its result counts for nobody when the node itself went: it runs again elsewhere, not charged.
        ExitCause::Stopped if shutdown => (
            TaskPhase::Lost,
            Some("NodeShutdown"),
            Some("the node's agent was stopped".into()),
        ),
        ExitCause::Stopped => (
            TaskPhase::Failed,
            Some("Stopped"),
            Some("it was asked to end".into()),
        ),
        ExitCause::Fenced => (
            TaskPhase::Lost,
            Some("Fenced"),
            Some("the node lost contact for too long".into()),
        ),
        ExitCause::Lost => (
            TaskPhase::Lost,
            e.reason.as_deref().or(Some("SupervisorLost")),
            e.message.clone(),
        ),
    };
    let mut s = status(t, phase, reason, message.as_deref());
    // 128 + signal, as shells and failure policies count it.
    s["exitCode"] = json!(e.code.or(e.signal.map(|n| 128 + n)));
    s["signal"] = json!(e.signal);
    if e.started_ms > 0 {
        s["startedTime"] = json!(time(e.started_ms));
        s["pid"] = json!(e.pid);
    }
    s["finishedTime"] = json!(time(e.finished_ms));
    s
}
