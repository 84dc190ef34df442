//! watch: a stream of events from the cache.
//!
//! Errors after the request was understood come inside the stream with HTTP 200, as clients expect.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::stream;
use http::HeaderValue;
use rota_store::Version;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::read::version_parameter;
use super::selectors::Selectors;
use crate::cache::{Change, WatchHandle};
use crate::error::{ApiError, ApiResult};
use crate::objects::Object;
use crate::request::Query;
use crate::respond::{self, CHUNK, Format};
use crate::server::{Served, Server};
use crate::table;

/// How often a watch that allows bookmarks gets one while nothing happens. Clients that read with
/// a time-out of 15 s tell a dead connection from a quiet one by it.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);

/// Length of a watch whose client names none, before the random part of up to as much again.
const TIMEOUT_DEFAULT_SECONDS: u64 = 1800;

/// Longest watch that a client may ask for.
const TIMEOUT_MAX_SECONDS: u64 = 24 * 3600;

/// Changes taken from the queue at once.
const TAKE_MAX: usize = 256;

/// Time between two writes to one watcher grows with the number of watchers of its kind, unless a
/// whole chunk waits. The first event after a pause leaves at once; in a stream of events a write (a
/// system call, a TLS record) carries several, which is most of what fan-out to many costs. Few
/// watchers, controllers among them, keep their latency.
const WRITE_GAP_EACH: Duration = Duration::from_micros(200);

/// Longest such time.
const WRITE_GAP_MAX: Duration = Duration::from_millis(24);

/// How long a watch from a version that has not happened yet waits for it.
const FUTURE_WAIT: Duration = Duration::from_secs(3);

struct Watch {
    server: Arc<Server>,
    served: Arc<Served>,
    selectors: Selectors,
    namespace: String,
    handle: WatchHandle,
    format: Format,
    headers_sent: bool,
    bookmarks: bool,
    initial_events_end: bool,
    initial: Option<std::vec::IntoIter<Arc<Object>>>,
    deadline: Instant,
    next_bookmark: Instant,
    last_version: Version,
    last_write: Instant,
    ended: bool,
}

/// GET with `watch=true`.
pub async fn watch(
    server: &Arc<Server>,
    served: &Arc<Served>,
    namespace: &str,
    query: &Query,
    format: Format,
) -> ApiResult<Response> {
    let selectors = Selectors::parse(served, query)?;
    let bookmarks = query.flag("allowWatchBookmarks")?;
    let streaming = query.get("sendInitialEvents").is_some();
    let send_initial = query.flag("sendInitialEvents")?;
    let matching = query.get("resourceVersionMatch");
    let forbidden = |why: &str| ApiError::new(422, "Invalid", why);
    if streaming && matching != Some("NotOlderThan") {
        return Err(forbidden(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    if !streaming && matching.is_some() {
        return Err(forbidden(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ));
    }
    if send_initial && !bookmarks {
        return Err(forbidden(
            "allowWatchBookmarks: Forbidden: sendInitialEvents requires allowWatchBookmarks",
        ));
    }
    let seconds = match query.number("timeoutSeconds")? {
        Some(0) | None => TIMEOUT_DEFAULT_SECONDS + rand::random_range(0..TIMEOUT_DEFAULT_SECONDS),
        Some(s) => s.min(TIMEOUT_MAX_SECONDS),
    };
    let version = version_parameter(query, "resourceVersion")?;
    let from = match version {
        None | Some(0) => None,
        Some(v) => Some(v),
    };
    if version.is_none() || send_initial {
        server
            .cache
            .fresh()
            .await
            .map_err(crate::storage::store_error)?;
    }
    if let Some(v) = from
        && let Err(now) = server.cache.wait_for(v, FUTURE_WAIT).await
    {
        return Ok(error_stream(&ApiError::version_too_large(v, now)));
    }
    let start = if send_initial { None } else { from };
    let handle =
        match server
            .cache
            .watch(served.cache, start, selectors.interest(served, namespace))
        {
            Ok(handle) => handle,
            Err(oldest) => {
                return Ok(error_stream(&ApiError::expired(format!(
                    "too old resource version: {} ({oldest})",
                    from.unwrap_or(0)
                ))));
            }
        };
    let mut handle = handle;
    let initial = std::mem::take(&mut handle.initial);
    let now = Instant::now();
    let watch = Watch {
        server: server.clone(),
        served: served.clone(),
        selectors,
        namespace: namespace.to_string(),
        last_version: handle.start,
        handle,
        format,
        headers_sent: false,
        bookmarks,
        initial_events_end: send_initial,
        initial: Some(initial.into_iter()),
        deadline: now + Duration::from_secs(seconds),
        next_bookmark: now + BOOKMARK_EVERY,
        last_write: now.checked_sub(WRITE_GAP_MAX).unwrap_or(now),
        ended: false,
    };
    let frames = stream::unfold(watch, |mut watch| async move {
        let chunk = watch.next_chunk().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(chunk), watch))
    });
    Ok(stream_response(Body::from_stream(frames)))
}

fn stream_response(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

fn error_frame(e: &ApiError) -> Bytes {
    format!("{}\n", json!({"type": "ERROR", "object": e.status()})).into()
}

fn error_stream(e: &ApiError) -> Response {
    stream_response(Body::from(error_frame(e)))
}

impl Watch {
    async fn next_chunk(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        if let Some(mut initial) = self.initial.take() {
            for object in initial.by_ref() {
                if self.chosen(&object) {
                    self.frame(&mut out, "ADDED", &object);
                }
                if out.len() >= CHUNK {
                    self.initial = Some(initial);
                    return Some(out.freeze());
                }
            }
            if self.initial_events_end {
                let version = self.last_version;
                self.bookmark(&mut out, version, true);
            }
            if !out.is_empty() {
                return Some(out.freeze());
            }
        }
        while !self.ended {
            let wake = if self.bookmarks {
                self.next_bookmark.min(self.deadline)
            } else {
                self.deadline
            };
            let server = self.server.clone();
            tokio::select! {
                biased;
                () = server.stop.cancelled() => self.ended = true,
                next = self.handle.next(TAKE_MAX) => match next {
                    Ok(changes) => {
                        self.changes(&mut out, &changes);
                        if out.len() < CHUNK {
                            let watchers = self.handle.siblings().min(1_000) as u32;
                            let gap = (WRITE_GAP_EACH * watchers).min(WRITE_GAP_MAX);
                            tokio::time::sleep_until(self.last_write + gap).await;
                        }
                        // Whatever is there by now goes out in the same write.
                        while out.len() < CHUNK {
                            let Some(more) = self.try_more() else { break };
                            self.changes(&mut out, &more);
                        }
                        self.last_write = Instant::now();
                    }
                    Err(_) => {
                        let e = ApiError::expired("The watch fell too far behind; list again and watch from there");
                        out.extend_from_slice(&error_frame(&e));
                        self.ended = true;
                    }
                },
                () = tokio::time::sleep_until(wake) => {
                    let now = Instant::now();
                    let last = now >= self.deadline;
                    // No word while the store is out of reach: a client whose server is cut off
                    // must see the silence and go to another one.
                    if self.bookmarks
                        && server.cache.healthy()
                        && let Some(version) = server.cache.bookmark(self.served.cache, &self.handle)
                    {
                        self.bookmark(&mut out, version.max(self.last_version), false);
                    }
                    self.next_bookmark = now + BOOKMARK_EVERY;
                    self.ended = last;
                }
            }
            if !out.is_empty() {
                return Some(out.freeze());
            }
        }
        None
    }

    fn changes(&mut self, out: &mut BytesMut, changes: &[Arc<Change>]) {
        let bytes = |c: &Arc<Change>| {
            c.after
                .as_ref()
                .or(c.before.as_ref())
                .map_or(0, |o| o.bytes.len() + 40)
        };
        out.reserve(changes.iter().map(bytes).sum::<usize>().min(2 * CHUNK));
        for change in changes {
            self.change(out, change);
            self.last_version = change.version;
        }
    }

    fn try_more(&self) -> Option<Vec<Arc<Change>>> {
        use futures::FutureExt;
        match self.handle.next(TAKE_MAX).now_or_never() {
            Some(Ok(changes)) => Some(changes),
            // An end is left in the queue for the next round.
            _ => None,
        }
    }

    fn chosen(&self, object: &Object) -> bool {
        (self.namespace.is_empty() || object.namespace() == self.namespace)
            && self.selectors.matches(object)
    }

    /// A change as this watch sees it: an object that leaves the selection is deleted for it, one
    /// that enters is added.
    fn change(&mut self, out: &mut BytesMut, change: &Change) {
        let was = change.before.as_ref().is_some_and(|o| self.chosen(o));
        match (&change.after, &change.removed) {
            (Some(after), _) => match (was, self.chosen(after)) {
                (true, true) => self.frame(out, "MODIFIED", after),
                (false, true) => self.frame(out, "ADDED", after),
                (true, false) => {
                    if let Some(before) = &change.before {
                        let offset = self.served.offset;
                        self.frame(out, "DELETED", &before.deleted_at(change.version, offset));
                    }
                }
                (false, false) => {}
            },
            (None, Some(removed)) if was => self.frame(out, "DELETED", removed),
            _ => {}
        }
    }

    fn frame(&mut self, out: &mut BytesMut, event: &str, object: &Object) {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(event.as_bytes());
        out.extend_from_slice(b"\",\"object\":");
        match self.format {
            Format::Object if !self.served.view => out.extend_from_slice(&object.bytes),
            _ => {
                let value = self.shape(object);
                out.extend_from_slice(value.to_string().as_bytes());
            }
        }
        out.extend_from_slice(b"}\n");
    }

    fn shape(&mut self, object: &Object) -> Value {
        match self.format {
            Format::Object => self.served.shown(object),
            Format::Partial => respond::partial(&object.value()),
            Format::Table(include) => {
                let value = self.served.shown(object);
                let meta = json!({"resourceVersion": object.version.to_string()});
                let with_headers = !std::mem::replace(&mut self.headers_sent, true);
                table::render(
                    &self.served.kind,
                    &[&value],
                    meta,
                    include,
                    jiff::Timestamp::now(),
                    with_headers,
                )
            }
        }
    }

    fn bookmark(&mut self, out: &mut BytesMut, version: Version, initial_end: bool) {
        self.last_version = version;
        let mut metadata =
            json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.format {
            Format::Table(_) => {
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [], "rows": []})
            }
            Format::Partial => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Format::Object => {
                json!({"kind": self.served.kind.kind, "apiVersion": self.served.api_version, "metadata": metadata})
            }
        };
        out.extend_from_slice(
            json!({"type": "BOOKMARK", "object": object})
                .to_string()
                .as_bytes(),
        );
        out.extend_from_slice(b"\n");
    }
}
