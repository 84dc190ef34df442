//! The list and watch of this node's Tasks.
//!
//! A watch resumes after the last version seen; 410 leads to a new list, which tells of removals
//! too. Silence longer than the server's bookmarks allow means a dead connection.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::api::{Api, CallError, TaskObject};

/// The server sends bookmarks every 5 s; three of them missing means that nobody is there.
const SILENCE: Duration = Duration::from_secs(15);
/// Objects per page of a list.
const PAGE: usize = 500;
/// Longest pause between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What the watch tells.
#[derive(Debug)]
pub enum Change {
    /// All Tasks of the node, as of now.
    All(Vec<TaskObject>),
    /// Tasks that are new or changed.
    Set(Vec<TaskObject>),
    /// uid of a Task that is gone.
    Gone(String),
}

#[derive(Deserialize)]
struct ListMeta {
    #[serde(rename = "resourceVersion", default)]
    resource_version: String,
    #[serde(rename = "continue", default)]
    next: String,
}
#[derive(Deserialize)]
struct List {
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<TaskObject>,
}
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a serde_json::value::RawValue,
}
#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMeta,
}
#[derive(Deserialize)]
struct BookmarkMeta {
    #[serde(rename = "resourceVersion")]
    resource_version: String,
}

/// Watches for ever.
pub async fn run(api: Arc<Api>, node: String, tell: mpsc::Sender<Change>) {
    let mut version: Option<String> = None;
    let mut pause = Duration::from_millis(100);
    loop {
        if version.is_none() {
            match list(&api, &node).await {
                Ok((items, v)) => {
                    if tell.send(Change::All(items)).await.is_err() {
                        return;
                    }
                    version = Some(v);
                    pause = Duration::from_millis(100);
                }
                Err(e) => {
                    tracing::warn!(error = %e, "tasks cannot be listed");
                    wait(&mut pause).await;
                    continue;
                }
            }
        }
        let from = version.clone().unwrap_or_default();
        match follow(&api, &node, from, &mut version, &tell).await {
            Ok(true) => pause = Duration::from_millis(100), // ended by the server's time limit
            Ok(false) => return,
            Err(e) if e.code() == 410 => version = None,
            Err(e) => {
                tracing::info!(error = %e, "the watch of tasks broke");
                wait(&mut pause).await;
            }
        }
    }
}

async fn wait(pause: &mut Duration) {
    tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>())).await;
    *pause = (*pause * 2).min(BACKOFF_MAX);
}

async fn list(api: &Api, node: &str) -> Result<(Vec<TaskObject>, String), CallError> {
    let (mut items, mut next) = (Vec::new(), String::new());
    loop {
        let path = format!(
            "/apis/rota.dev/v1/tasks?fieldSelector=spec.nodeName%3D{node}&limit={PAGE}&continue={next}"
        );
        let page: List = api.get(&path).await?;
        items.extend(page.items);
        next = page.metadata.next;
        if next.is_empty() {
            return Ok((items, page.metadata.resource_version));
        }
    }
}

/// Follows one watch. True: it ended in good order; false: nobody listens any more.
async fn follow(
    api: &Api,
    node: &str,
    from: String,
    version: &mut Option<String>,
    tell: &mpsc::Sender<Change>,
) -> Result<bool, CallError> {
    let path = format!(
        "/apis/rota.dev/v1/tasks?watch=true&allowWatchBookmarks=true&fieldSelector=spec.nodeName%3D{node}&resourceVersion={from}"
    );
    let mut stream = api
        .open(Method::GET, &path, "application/json", Vec::new())
        .await?;
    let mut buffer: Vec<u8> = Vec::new();
    loop {
        let Some(data) = stream.next(SILENCE).await? else {
            return Ok(true);
        };
        buffer.extend_from_slice(&data);
        let Some(end) = buffer.iter().rposition(|b| *b == b'\n') else {
            continue;
        };
        let (steps, trouble) = read(&buffer[..end]);
        for step in steps {
            // A version counts once everything up to it was handed on: after trouble the next
            // watch begins there.
            if let Some(change) = step.change
                && tell.send(change).await.is_err()
            {
                return Ok(false);
            }
            *version = Some(step.version);
        }
        if let Some(e) = trouble {
            return Err(e);
        }
        buffer.drain(..=end);
    }
}

/// Events that belong together, and the version reached with them.
#[derive(Debug)]
struct Step {
    change: Option<Change>,
    version: String,
}

/// Reads whole lines of a watch: what came before trouble, and the trouble.
fn read(lines: &[u8]) -> (Vec<Step>, Option<CallError>) {
    let mut steps = Vec::new();
    let (mut set, mut reached) = (Vec::new(), String::new());
    let mut trouble = None;
    for line in lines.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        match one(line) {
            Ok(One::Set(task)) => {
                reached.clone_from(&task.metadata.resource_version);
                set.push(*task);
            }
            Ok(One::Gone(uid, version)) => {
                if !set.is_empty() {
                    steps.push(Step {
                        change: Some(Change::Set(std::mem::take(&mut set))),
                        version: std::mem::take(&mut reached),
                    });
                }
                steps.push(Step {
                    change: Some(Change::Gone(uid)),
                    version,
                });
            }
            Ok(One::Reached(version)) => {
                let change = (!set.is_empty()).then(|| Change::Set(std::mem::take(&mut set)));
                steps.push(Step { change, version });
            }
            Err(e) => {
                trouble = Some(e);
                break;
            }
        }
    }
    if !set.is_empty() {
        steps.push(Step {
            change: Some(Change::Set(set)),
            version: reached,
        });
    }
    (steps, trouble)
}

enum One {
    Set(Box<TaskObject>),
    Gone(String, String),
    Reached(String),
}

fn one(line: &[u8]) -> Result<One, CallError> {
    let bad =
        |e: serde_json::Error| CallError::Transport(format!("a watch event cannot be read: {e}"));
    let event: Event<'_> = serde_json::from_slice(line).map_err(bad)?;
    let object = event.object.get();
    match event.kind {
        "ADDED" | "MODIFIED" => Ok(One::Set(serde_json::from_str(object).map_err(bad)?)),
        "DELETED" => {
            let task: TaskObject = serde_json::from_str(object).map_err(bad)?;
            Ok(One::Gone(task.metadata.uid, task.metadata.resource_version))
        }
        "BOOKMARK" => {
            let b: Bookmark = serde_json::from_str(object).map_err(bad)?;
            Ok(One::Reached(b.metadata.resource_version))
        }
        _ => {
            let status: serde_json::Value = serde_json::from_str(object).map_err(bad)?;
            Err(CallError::Status {
                code: status["code"].as_u64().unwrap_or(500) as u16,
                reason: status["reason"].as_str().unwrap_or("").into(),
                message: status["message"].as_str().unwrap_or("").into(),
            })
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn task(kind: &str, uid: &str, version: u32) -> String {
        serde_json::json!({"type": kind, "object": {
            "metadata": {"uid": uid, "name": uid, "namespace": "ns", "resourceVersion": version.to_string()},
            "spec": {"jobName": "j", "jobUid": "u", "index": 0, "attempt": 0, "epoch": 1,
                "nodeName": "n", "queue": "q", "priority": 0, "requests": {}, "revision": "r"},
        }})
        .to_string()
    }

    #[test]
    fn what_came_before_trouble_is_handed_on_with_its_version() {
        let error =
            r#"{"type":"ERROR","object":{"code":500,"reason":"InternalError","message":"m"}}"#;
        let lines = [
            task("ADDED", "a", 1),
            task("MODIFIED", "b", 2),
            task("DELETED", "c", 3),
            task("ADDED", "d", 4),
            error.to_string(),
            task("ADDED", "e", 5),
        ];
        let (steps, trouble) = read(lines.join("\n").as_bytes());
        assert_eq!(trouble.unwrap().code(), 500);
        let seen: Vec<(String, String)> = steps
            .iter()
            .map(|s| {
                let what = match s.change.as_ref().unwrap() {
                    Change::Set(t) => t.iter().map(|t| t.metadata.uid.as_str()).collect(),
                    Change::Gone(uid) => format!("-{uid}"),
                    Change::All(_) => unreachable!("lists only"),
                };
                (what, s.version.clone())
            })
            .collect();
        let want = [("ab", "2"), ("-c", "3"), ("d", "4")];
        assert_eq!(seen, want.map(|(a, b)| (a.to_string(), b.to_string())));
    }

    #[test]
    fn a_bookmark_moves_the_version_alone() {
        let line = br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#;
        let (steps, trouble) = read(line);
        assert!(trouble.is_none() && steps[0].change.is_none());
        assert_eq!(steps[0].version, "9");
    }
}
