//! The list and watch of this node's Tasks.
//!
//! A watch resumes after the last version seen; 410 leads to a new list, which tells of removals
//! too. Silence longer than the server's bookmarks allow means a dead connection.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
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
    let response = api
        .open(Method::GET, &path, "application/json", Vec::new())
        .await?;
    let mut body = response.into_body();
    let mut buffer: Vec<u8> = Vec::new();
    loop {
        let frame = match tokio::time::timeout(SILENCE, body.frame()).await {
            Err(_) => {
                return Err(CallError::Transport(
                    "the server has been silent for 15 s".into(),
                ));
            }
            Ok(None) => return Ok(true),
            Ok(Some(Err(e))) => return Err(CallError::Transport(e.to_string())),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        buffer.extend_from_slice(&data);
        let Some(end) = buffer.iter().rposition(|b| *b == b'\n') else {
            continue;
        };
        let mut set = Vec::new();
        for line in buffer[..end]
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
        {
            let bad = |e: serde_json::Error| {
                CallError::Transport(format!("a watch event cannot be read: {e}"))
            };
            let event: Event<'_> = serde_json::from_slice(line).map_err(bad)?;
            match event.kind {
                "ADDED" | "MODIFIED" => {
                    let task: TaskObject = serde_json::from_str(event.object.get()).map_err(bad)?;
                    *version = Some(task.metadata.resource_version.clone());
                    set.push(task);
                }
                "DELETED" => {
                    let task: TaskObject = serde_json::from_str(event.object.get()).map_err(bad)?;
                    *version = Some(task.metadata.resource_version.clone());
                    if !set.is_empty()
                        && tell
                            .send(Change::Set(std::mem::take(&mut set)))
                            .await
                            .is_err()
                    {
                        return Ok(false);
                    }
                    if tell.send(Change::Gone(task.metadata.uid)).await.is_err() {
                        return Ok(false);
                    }
                }
                "BOOKMARK" => {
                    let b: Bookmark = serde_json::from_str(event.object.get()).map_err(bad)?;
                    *version = Some(b.metadata.resource_version);
                }
                _ => {
                    let status: serde_json::Value =
                        serde_json::from_str(event.object.get()).map_err(bad)?;
                    return Err(CallError::Status {
                        code: status["code"].as_u64().unwrap_or(500) as u16,
                        reason: status["reason"].as_str().unwrap_or("").into(),
                        message: status["message"].as_str().unwrap_or("").into(),
                    });
                }
            }
        }
        buffer.drain(..=end);
        if !set.is_empty() && tell.send(Change::Set(set)).await.is_err() {
            return Ok(false);
        }
    }
}
