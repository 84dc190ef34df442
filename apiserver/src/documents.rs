//! Discovery and OpenAPI documents: made once per set of kinds, served as bytes.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use rota_api::registry::Kind;

use crate::auth::pki::hex;
use crate::{discovery, openapi};

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The documents of a fixed set of kinds. OpenAPI is made at the first request for it: a cluster
/// that nobody explores does not pay for it.
pub struct Documents {
    kinds: Vec<Kind>,
    discovery: BTreeMap<String, Bytes>,
    aggregated_core: Bytes,
    aggregated_groups: Bytes,
    v3_index: OnceLock<Bytes>,
    v3: OnceLock<BTreeMap<String, Bytes>>,
    v2_protobuf: OnceLock<Bytes>,
    v2_json: OnceLock<Bytes>,
}

impl Documents {
    /// For these kinds.
    pub fn new(kinds: &[Kind]) -> Self {
        let mut discovery: BTreeMap<String, Bytes> = BTreeMap::new();
        let bytes = |v: serde_json::Value| Bytes::from(v.to_string());
        discovery.insert("api".to_string(), bytes(discovery::api_versions()));
        discovery.insert("apis".to_string(), bytes(discovery::api_group_list(kinds)));
        for kind in kinds {
            let resources = discovery::resource_list(kinds, kind.group, kind.version);
            let path = if kind.group.is_empty() {
                format!("api/{}", kind.version)
            } else {
                discovery.extend(
                    discovery::api_group(kinds, kind.group)
                        .map(|d| (format!("apis/{}", kind.group), bytes(d))),
                );
                format!("apis/{}/{}", kind.group, kind.version)
            };
            discovery.extend(resources.map(|d| (path, bytes(d))));
        }
        Documents {
            kinds: kinds.to_vec(),
            discovery,
            aggregated_core: bytes(discovery::aggregated_core(kinds)),
            aggregated_groups: bytes(discovery::aggregated_groups(kinds)),
            v3_index: OnceLock::new(),
            v3: OnceLock::new(),
            v2_protobuf: OnceLock::new(),
            v2_json: OnceLock::new(),
        }
    }

    /// The document at a path, if there is one.
    pub fn get(&self, path: &[String], headers: &HeaderMap) -> Option<Response> {
        let joined = path.join("/");
        let accept = headers
            .get(header::ACCEPT)
            .and_then(|v| v.to_str().ok())
            .unwrap_or("");
        match joined.as_str() {
            "api" | "apis" => {
                if let Some(version) = aggregated_version(accept) {
                    let body = if joined == "api" {
                        &self.aggregated_core
                    } else {
                        &self.aggregated_groups
                    };
                    let body = if version == "v2" {
                        body.clone()
                    } else {
                        String::from_utf8_lossy(body)
                            .replace("apidiscovery.k8s.io/v2\"", "apidiscovery.k8s.io/v2beta1\"")
                            .into()
                    };
                    let content = format!(
                        "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
                    );
                    return Some(answer(body, &content, headers));
                }
                self.discovery
                    .get(&joined)
                    .map(|b| answer(b.clone(), "application/json", headers))
            }
            "openapi/v3" => {
                let body = self
                    .v3_index
                    .get_or_init(|| openapi::v3_index(&self.kinds).to_string().into());
                Some(answer(body.clone(), "application/json", headers))
            }
            "openapi/v2" => {
                if accept.contains("protobuf") {
                    let body = self
                        .v2_protobuf
                        .get_or_init(|| openapi::v2_protobuf(&self.kinds).into());
                    return Some(answer(body.clone(), V2_PROTOBUF, headers));
                }
                let body = self
                    .v2_json
                    .get_or_init(|| openapi::v2_json(&self.kinds).to_string().into());
                Some(answer(body.clone(), "application/json", headers))
            }
            other => match other.strip_prefix("openapi/v3/") {
                Some(group) => {
                    let all = self.v3.get_or_init(|| self.all_v3());
                    all.get(group)
                        .map(|b| answer(b.clone(), "application/json", headers))
                }
                None => self
                    .discovery
                    .get(other)
                    .map(|b| answer(b.clone(), "application/json", headers)),
            },
        }
    }

    fn all_v3(&self) -> BTreeMap<String, Bytes> {
        let mut all = BTreeMap::new();
        for kind in &self.kinds {
            let path = if kind.group.is_empty() {
                format!("api/{}", kind.version)
            } else {
                format!("apis/{}/{}", kind.group, kind.version)
            };
            if let Some(doc) = openapi::v3_group(&self.kinds, &path) {
                all.insert(path, doc.to_string().into());
            }
        }
        all
    }
}

/// Which aggregated form the client prefers, if it takes one.
fn aggregated_version(accept: &str) -> Option<&'static str> {
    accept.split(',').find_map(|choice| {
        let choice = choice.replace(' ', "");
        if !choice.contains("as=APIGroupDiscoveryList") || !choice.starts_with("application/json") {
            return None;
        }
        match () {
            () if choice.contains("v=v2beta1") => Some("v2beta1"),
            () if choice.contains("v=v2") => Some("v2"),
            () => None,
        }
    })
}

fn answer(body: Bytes, content_type: &str, headers: &HeaderMap) -> Response {
    let tag = format!(
        "\"{}\"",
        hex(&ring::digest::digest(&ring::digest::SHA256, &body).as_ref()[..16])
    );
    let unchanged = headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|v| v.as_bytes() == tag.as_bytes());
    let mut response = Response::new(if unchanged {
        axum::body::Body::empty()
    } else {
        body.into()
    });
    if unchanged {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let out = response.headers_mut();
    if let (Ok(tag), Ok(content_type)) = (
        HeaderValue::from_str(&tag),
        HeaderValue::from_str(content_type),
    ) {
        out.insert(header::ETAG, tag);
        out.insert(header::CONTENT_TYPE, content_type);
    }
    out.insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}
