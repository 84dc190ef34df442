//! What a Job waits for, line by line; shared by `why`, `plan` and `describe`.

use jiff::Timestamp;
use serde_json::Value;

use crate::output::time;
use crate::progress;

/// `1 node`, `12 nodes`.
pub fn plural(n: u64, word: &str) -> String {
    format!("{n} {word}{}", if n == 1 { "" } else { "s" })
}

/// Each reason of a `waitingFor`, with how many nodes it is about.
pub fn reasons(waiting: &Value) -> Vec<String> {
    let reasons = waiting["reasons"].as_array().into_iter().flatten();
    reasons
        .map(|r| {
            let mut text = progress::phrase(r);
            let mut about = Vec::new();
            let nodes = r["nodes"].as_u64().map(|n| plural(n, "node"));
            about.extend(nodes.filter(|n| !text.contains(n.as_str())));
            if let Some(resource) = r["resource"].as_str().filter(|r| !text.contains(r)) {
                about.push(resource.to_string());
            }
            if !about.is_empty() {
                text.push_str(&format!(" [{}]", about.join(", ")));
            }
            if let Some(holders) = r["heldBy"].as_str() {
                text.push_str(&format!("; held mostly by {holders}"));
            }
            text
        })
        .collect()
}

/// The smallest change that helps and the forecast, where a `waitingFor` has them.
pub fn outlook(waiting: &Value, now: Timestamp) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(change) = waiting["smallestChange"].as_str() {
        out.push(format!("Smallest change that helps: {change}"));
    }
    let start = &waiting["estimatedStart"];
    if let (Some(p50), Some(p90)) = (start["p50Time"].as_str(), start["p90Time"].as_str()) {
        out.push(format!(
            "Expected start: {} (p50, {p50}), nine times in ten {} (p90, {p90})",
            until(p50, now),
            until(p90, now)
        ));
    }
    out
}

/// `in 5m`; `now` for what is past.
fn until(text: &str, now: Timestamp) -> String {
    match text.parse::<Timestamp>() {
        Ok(t) if t.as_second() > now.as_second() => {
            format!("in {}", time::short(t.as_second() - now.as_second()))
        }
        Ok(_) => "now".into(),
        Err(_) => text.into(),
    }
}

/// A Job's deadlines and whether they can be kept; `None` for one without.
pub fn deadline(job: &Value, now: Timestamp) -> Option<String> {
    let by = |field: &str, word: &str| {
        let text = job["spec"][field].as_str()?;
        let when = match text.parse::<Timestamp>() {
            Ok(t) if t.as_second() <= now.as_second() => "past".to_string(),
            _ => until(text, now),
        };
        Some(format!("{word} by {text} ({when})"))
    };
    let both = [
        by("startDeadlineTime", "start"),
        by("finishDeadlineTime", "finish"),
    ];
    let both: Vec<String> = both.into_iter().flatten().collect();
    if both.is_empty() {
        return None;
    }
    let condition = progress::condition(job, "DeadlineFeasible");
    let verdict = match condition.and_then(|c| c["status"].as_str()) {
        Some("True") => "can be kept",
        Some("False") => "cannot be kept",
        _ => "nobody can tell yet",
    };
    let why = condition.map(progress::phrase).filter(|p| !p.is_empty());
    let why = why.map_or(String::new(), |p| format!(": {p}"));
    Some(format!("{}: {verdict}{why}", both.join(", ")))
}

/// What must start together; `None` for a Job that is no gang.
pub fn gang(job: &Value) -> Option<String> {
    let gang = job["spec"]["gang"].as_object()?;
    let together = match gang.get("minAvailable").and_then(Value::as_u64) {
        Some(n) => format!("{} at once or none", plural(n, "task")),
        None => "all tasks that may run at once, or none".into(),
    };
    let mut out = match gang.get("name").and_then(Value::as_str) {
        Some(name) => format!("{name}: {together}, with the other Jobs of this gang"),
        None => together,
    };
    if let Some(seconds) = gang.get("timeoutSeconds").and_then(Value::as_i64) {
        let text = time::short(seconds);
        out.push_str(&format!(
            "; gives its nodes back if it does not run in full within {text}"
        ));
    }
    Some(out)
}

/// Whether tasks may be evicted and what that loses; `None` where the Job does not say.
pub fn preemption(job: &Value) -> Option<String> {
    let says = job["spec"]["preemption"].as_object()?;
    if says.get("preemptible") == Some(&Value::Bool(false)) {
        return Some("never evicted for other work".into());
    }
    let period = says
        .get("checkpoint")
        .and_then(|c| c["periodSeconds"].as_i64());
    Some(match period {
        Some(s) => format!(
            "may be evicted for other work; loses what came after its last checkpoint (every {})",
            time::short(s)
        ),
        None => "may be evicted for other work; starts again from nothing".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        Timestamp::from_second(1_767_225_600).unwrap_or_default()
    }

    #[test]
    fn reasons_say_how_many_nodes_and_the_outlook_when() {
        let waiting = json!({
            "reasons": [
                {"reason": "InsufficientResource", "resource": "cpu", "nodes": 12, "message": "needs 4 cpu"},
                {"reason": "PortInUse", "nodes": 1, "message": "taken"}],
            "smallestChange": "lower cpu",
            "estimatedStart": {"p50Time": "2026-01-01T00:05:00Z", "p90Time": "2026-01-01T02:00:00Z"}});
        assert_eq!(
            reasons(&waiting),
            [
                "InsufficientResource: needs 4 cpu [12 nodes]",
                "PortInUse: taken [1 node]"
            ]
        );
        assert_eq!(
            outlook(&waiting, now()),
            [
                "Smallest change that helps: lower cpu",
                "Expected start: in 5m (p50, 2026-01-01T00:05:00Z), nine times in ten in 120m (p90, 2026-01-01T02:00:00Z)"
            ]
        );
        assert!(outlook(&Value::Null, now()).is_empty());
    }

    #[test]
    fn deadlines_are_told_with_their_verdict() {
        let mut job = json!({"spec": {"startDeadlineTime": "2026-01-01T00:10:00Z", "finishDeadlineTime": "2025-12-31T00:00:00Z"},
            "status": {"conditions": [{"type": "DeadlineFeasible", "status": "False", "reason": "TooLate", "message": "m"}]}});
        assert_eq!(
            deadline(&job, now()).unwrap_or_default(),
            "start by 2026-01-01T00:10:00Z (in 10m), finish by 2025-12-31T00:00:00Z (past): cannot be kept: TooLate: m"
        );
        job["status"] = Value::Null;
        assert!(
            deadline(&job, now())
                .unwrap_or_default()
                .ends_with("nobody can tell yet")
        );
        assert_eq!(deadline(&json!({"spec": {}}), now()), None);
    }

    #[test]
    fn gangs_and_preemption_in_words() {
        let job = json!({"spec": {"gang": {"name": "g", "minAvailable": 4, "timeoutSeconds": 600},
            "preemption": {"preemptible": true, "checkpoint": {"periodSeconds": 300}}}});
        assert_eq!(
            gang(&job).unwrap_or_default(),
            "g: 4 tasks at once or none, with the other Jobs of this gang; gives its nodes back if it does not run in full within 10m"
        );
        assert!(preemption(&job).unwrap_or_default().contains("every 5m"));
        assert_eq!(gang(&json!({"spec": {}})), None);
        assert_eq!(
            preemption(&json!({"spec": {"preemption": {"preemptible": false}}}))
                .unwrap_or_default(),
            "never evicted for other work"
        );
    }
}
