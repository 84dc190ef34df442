//! How answers leave: content negotiation, and bodies made of ready bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::{Frame, SizeHint};
use serde_json::{Value, json};

use crate::error::{ApiError, ApiResult};
use crate::objects::Object;
use crate::request::Query;
use crate::table::Include;

/// Bytes put together before they are handed to the connection: large enough that framing costs
/// nothing, small enough to stay in the processor's cache.
pub const CHUNK: usize = 64 * 1024;

/// Shape in which objects are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The objects themselves.
    Object,
    /// `meta.k8s.io/v1 Table` rows.
    Table(Include),
    /// Metadata only.
    Partial,
}

const ACCEPTED: &str = "application/json, application/json;as=Table;v=v1;g=meta.k8s.io, application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";

/// Chooses the first shape in the Accept header that this server has.
pub fn negotiate(headers: &HeaderMap, query: &Query) -> ApiResult<Format> {
    let mut any = false;
    for value in headers.get_all(header::ACCEPT) {
        let text = value
            .to_str()
            .map_err(|_| ApiError::not_acceptable(ACCEPTED))?;
        for choice in text.split(',').map(str::trim).filter(|c| !c.is_empty()) {
            any = true;
            let mut parts = choice.split(';').map(str::trim);
            let media = parts.next().unwrap_or("");
            if !matches!(media, "application/json" | "*/*" | "application/*") {
                continue;
            }
            let mut shape = "";
            let mut version = "v1";
            for p in parts {
                match p.split_once('=') {
                    Some(("as", v)) => shape = v,
                    Some(("v", v)) => version = v,
                    _ => {}
                }
            }
            match shape {
                "" => return Ok(Format::Object),
                "Table" if matches!(version, "v1" | "v1beta1") => {
                    let include = match query.get("includeObject") {
                        None | Some("Metadata") => Include::Metadata,
                        Some("None") => Include::None,
                        Some("Object") => Include::Object,
                        Some(other) => {
                            return Err(ApiError::new(
                                422,
                                "Invalid",
                                format!(
                                    "includeObject: Invalid value: {other:?}: must be None, Metadata or Object"
                                ),
                            ));
                        }
                    };
                    return Ok(Format::Table(include));
                }
                "PartialObjectMetadata" | "PartialObjectMetadataList"
                    if matches!(version, "v1" | "v1beta1") =>
                {
                    return Ok(Format::Partial);
                }
                _ => {}
            }
        }
    }
    if any {
        Err(ApiError::not_acceptable(ACCEPTED))
    } else {
        Ok(Format::Object)
    }
}

/// A JSON answer from ready bytes.
pub fn json_bytes(code: u16, bytes: Bytes) -> Response {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// A JSON answer from a tree.
pub fn json_value(code: u16, value: &Value) -> Response {
    json_bytes(code, value.to_string().into())
}

/// Metadata of an object in the shape of PartialObjectMetadata.
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// Adds `Warning` headers, at most 4,096 characters together.
pub fn add_warnings(response: &mut Response, warnings: &[String]) {
    let mut room = 4096usize;
    let mut seen: Vec<&str> = Vec::new();
    for warning in warnings {
        if seen.contains(&warning.as_str()) {
            continue;
        }
        seen.push(warning);
        let text: String = warning.chars().filter(|c| !c.is_control()).collect();
        if text.chars().count() > room {
            break;
        }
        room -= text.chars().count();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(v) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, v);
        }
    }
}

/// A list whose items are copied from the cache's ready bytes as the connection takes them.
pub struct ListBody {
    head: Option<Bytes>,
    items: Vec<Arc<Object>>,
    next: usize,
    tail: bool,
    left: u64,
}

impl ListBody {
    /// `head` ends with `"items":[`.
    pub fn new(head: Bytes, items: Vec<Arc<Object>>) -> Self {
        let commas = items.len().saturating_sub(1) as u64;
        let left = head.len() as u64
            + items.iter().map(|o| o.bytes.len() as u64).sum::<u64>()
            + commas
            + 2;
        ListBody {
            head: Some(head),
            items,
            next: 0,
            tail: true,
            left,
        }
    }
}

impl http_body::Body for ListBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if !self.tail {
            return Poll::Ready(None);
        }
        let mut out = BytesMut::with_capacity((self.left as usize).min(CHUNK + 4096));
        if let Some(head) = self.head.take() {
            out.extend_from_slice(&head);
        }
        while self.next < self.items.len() && out.len() < CHUNK {
            if self.next > 0 {
                out.extend_from_slice(b",");
            }
            let i = self.next;
            out.extend_from_slice(&self.items[i].bytes);
            self.next += 1;
        }
        if self.next == self.items.len() {
            out.extend_from_slice(b"]}");
            self.tail = false;
        }
        self.left = self.left.saturating_sub(out.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(out.freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        !self.tail
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Head of a list body, up to and with `"items":[`.
pub fn list_head(api_version: &str, list_kind: &str, metadata: &Value) -> Bytes {
    format!(
        r#"{{"kind":"{list_kind}","apiVersion":"{api_version}","metadata":{metadata},"items":["#
    )
    .into()
}
