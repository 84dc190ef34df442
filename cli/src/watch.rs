//! Lists in pages and watches as streams of JSON events.

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;

use crate::client::{Api, Failure, with_query};

/// Objects per page: small enough to keep answers below a megabyte or so.
pub const PAGE: usize = 500;
/// A single event larger than this is not from a healthy server.
const MAX_LINE: usize = 64 << 20;

/// Selectors of a list or watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Label selector, empty for all.
    pub labels: String,
    /// Field selector, empty for all.
    pub fields: String,
}

impl Selection {
    /// The one object with this name.
    pub fn name(name: &str) -> Self {
        Selection {
            labels: String::new(),
            fields: format!("metadata.name={name}"),
        }
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        vec![
            ("labelSelector", self.labels.clone()),
            ("fieldSelector", self.fields.clone()),
        ]
    }
}

/// All pages of a list, in the form that `accept` asks for; each is one answer of the server.
pub async fn pages(
    api: &Api,
    path: &str,
    selection: &Selection,
    accept: &str,
    page: usize,
) -> Result<Vec<Value>, Failure> {
    let mut out = Vec::new();
    let mut token = String::new();
    loop {
        let mut query = selection.query();
        if page > 0 {
            query.push(("limit", page.to_string()));
        }
        query.push(("continue", token));
        let answer = api.get_as(&with_query(path, &query), accept).await?;
        token = answer["metadata"]["continue"]
            .as_str()
            .unwrap_or("")
            .to_string();
        out.push(answer);
        if token.is_empty() {
            return Ok(out);
        }
    }
}

/// All objects of a list, each with its kind and apiVersion, and the version of the list.
pub async fn list(
    api: &Api,
    path: &str,
    selection: &Selection,
) -> Result<(Vec<Value>, String), Failure> {
    let mut items = Vec::new();
    let mut version = String::new();
    for mut page in pages(api, path, selection, "application/json", PAGE).await? {
        version = page["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or("")
            .to_string();
        let kind = page["kind"]
            .as_str()
            .unwrap_or("")
            .trim_end_matches("List")
            .to_string();
        let api_version = page["apiVersion"].clone();
        if let Some(Value::Array(page_items)) = page.get_mut("items").map(Value::take) {
            for mut item in page_items {
                if item["kind"].is_null() && !kind.is_empty() {
                    item["kind"] = kind.clone().into();
                    item["apiVersion"] = api_version.clone();
                }
                items.push(item);
            }
        }
    }
    Ok((items, version))
}

/// One watch event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// ADDED, MODIFIED, DELETED, BOOKMARK or ERROR.
    pub kind: String,
    /// The object, or a Table with its row.
    pub object: Value,
}

/// An open watch.
pub struct Watch {
    lines: Lines,
}

impl Watch {
    /// Watches a collection from a version on.
    pub async fn open(
        api: &Api,
        path: &str,
        selection: &Selection,
        version: &str,
        accept: &str,
    ) -> Result<Self, Failure> {
        let mut query = selection.query();
        query.push(("watch", "true".into()));
        query.push(("allowWatchBookmarks", "true".into()));
        query.push(("resourceVersion", version.to_string()));
        let body = api.stream(&with_query(path, &query), accept).await?;
        Ok(Watch {
            lines: Lines::new(body),
        })
    }

    /// The next event; `None` when the server ended the watch, which it may do at any time.
    pub async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            let Some(line) = self.lines.next().await? else {
                return Ok(None);
            };
            if line.is_empty() {
                continue;
            }
            let mut event: Value = serde_json::from_slice(&line)
                .map_err(|e| Failure::Other(format!("watch event is not JSON: {e}")))?;
            let object = event["object"].take();
            let kind = event["type"].as_str().unwrap_or("").to_string();
            if kind == "ERROR" {
                let code = object["code"].as_u64().unwrap_or(500) as u16;
                return Err(Failure::Status { code, body: object });
            }
            return Ok(Some(Event { kind, object }));
        }
    }
}

/// Lines of a streamed answer, without their ends.
pub struct Lines {
    body: Body,
    buffer: BytesMut,
    ended: bool,
}

impl Lines {
    /// Of this body.
    pub fn new(body: Body) -> Self {
        Lines {
            body,
            buffer: BytesMut::new(),
            ended: false,
        }
    }

    /// The next line; the last one may lack its end.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut scanned = 0;
        loop {
            if let Some(i) = self.buffer[scanned..].iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(scanned + i).to_vec();
                self.buffer.advance(1);
                return Ok(Some(line));
            }
            scanned = self.buffer.len();
            if self.ended {
                let rest = self.buffer.split().to_vec();
                return Ok((!rest.is_empty()).then_some(rest));
            }
            if scanned > MAX_LINE {
                return Err(Failure::Other(format!(
                    "a line of the answer is longer than {MAX_LINE} bytes"
                )));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                // A server that restarts cuts the answer short; what came is complete up to here.
                Some(Err(_)) | None => self.ended = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn lines_are_split_and_the_last_may_lack_its_end() {
        let mut lines = Lines::new(Body::from(b"a\n\nbc".to_vec()));
        assert_eq!(lines.next().await.unwrap().unwrap(), b"a");
        assert_eq!(lines.next().await.unwrap().unwrap(), b"");
        assert_eq!(lines.next().await.unwrap().unwrap(), b"bc");
        assert!(lines.next().await.unwrap().is_none());
    }
}
