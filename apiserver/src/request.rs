//! What a request asks for, read from its path and query and from nothing else.

use std::collections::HashMap;

use http::Method;

use crate::error::{ApiError, ApiResult};

/// Longest path and query that are looked at; kubectl's longest are selectors, far below.
const URI_MAX: usize = 64 * 1024;

/// A request for resources, or for another path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A resource path.
    Resource(ResourcePath),
    /// Anything else, as cleaned segments (`["openapi", "v3"]`).
    Other(Vec<String>),
}

/// `/apis/{group}/{version}/namespaces/{namespace}/{plural}/{name}/{subresource}` and its shorter forms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePath {
    /// API group; empty for core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Namespace; empty for none.
    pub namespace: String,
    /// Plural.
    pub plural: String,
    /// Name; empty for the collection.
    pub name: String,
    /// Subresource; empty for none.
    pub subresource: String,
}

/// Decoded query parameters. A parameter given twice keeps its first value, as in Kubernetes.
#[derive(Clone, Debug, Default)]
pub struct Query(HashMap<String, String>);

impl Query {
    /// From the raw query string.
    pub fn parse(raw: Option<&str>) -> ApiResult<Self> {
        let mut map = HashMap::new();
        for pair in raw.unwrap_or("").split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decode(key, true)?, decode(value, true)?);
            map.entry(key).or_insert(value);
        }
        Ok(Query(map))
    }

    /// A parameter that is present and not empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .get(key)
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    }

    /// The same query, choosing one object by name as well.
    pub fn with_name(&self, name: &str) -> Query {
        let mut map = self.0.clone();
        let selector = map.entry("fieldSelector".to_string()).or_default();
        if !selector.is_empty() {
            selector.push(',');
        }
        selector.push_str("metadata.name=");
        selector.push_str(name);
        Query(map)
    }

    /// A boolean parameter; present without value means true.
    pub fn flag(&self, key: &str) -> ApiResult<bool> {
        match self.0.get(key).map(String::as_str) {
            None | Some("false" | "0" | "f" | "F" | "False" | "FALSE") => Ok(false),
            Some("" | "true" | "1" | "t" | "T" | "True" | "TRUE") => Ok(true),
            Some(other) => Err(bad_parameter(key, other, "must be true or false")),
        }
    }

    /// A non-negative integer parameter.
    pub fn number(&self, key: &str) -> ApiResult<Option<u64>> {
        let Some(text) = self.get(key) else {
            return Ok(None);
        };
        match text.parse::<i64>() {
            Ok(n) if n >= 0 => Ok(Some(n as u64)),
            Ok(_) => Err(bad_parameter(key, text, "must not be negative")),
            Err(_) => Err(bad_parameter(key, text, "must be an integer")),
        }
    }
}

/// 400 about one query parameter.
pub fn bad_parameter(key: &str, value: &str, why: &str) -> ApiError {
    let shown: String = value.chars().take(100).collect();
    ApiError::bad_request(format!(
        "query parameter {key}={shown:?} is invalid: it {why}"
    ))
}

/// Reads a path. Empty segments and a trailing slash are ignored where Kubernetes' own clients send them.
pub fn target(path: &str) -> ApiResult<Target> {
    if path.len() > URI_MAX {
        return Err(ApiError::new(
            414,
            "BadRequest",
            "the request path is too long",
        ));
    }
    let mut segments = Vec::new();
    for raw in path.split('/').filter(|s| !s.is_empty()) {
        let segment = decode(raw, false)?;
        if segment.contains('/') || segment.contains('\0') || segment == "." || segment == ".." {
            return Err(ApiError::bad_request(format!(
                "path segment {segment:?} is not allowed"
            )));
        }
        segments.push(segment);
    }
    let rest = match segments.first().map(String::as_str) {
        Some("api") if segments.len() > 2 => {
            let version = segments[1].clone();
            Some((String::new(), version, &segments[2..]))
        }
        Some("apis") if segments.len() > 3 => {
            Some((segments[1].clone(), segments[2].clone(), &segments[3..]))
        }
        _ => None,
    };
    let Some((group, version, rest)) = rest else {
        return Ok(Target::Other(segments));
    };
    let mut path = ResourcePath {
        group,
        version,
        ..ResourcePath::default()
    };
    let parts: Vec<&str> = rest.iter().map(String::as_str).collect();
    let tail: &[&str] = match parts.as_slice() {
        ["namespaces"] => &["namespaces"],
        ["namespaces", name] => {
            path.name = name.to_string();
            &["namespaces"]
        }
        ["namespaces", name, sub @ ("status" | "finalize")] => {
            path.name = name.to_string();
            path.subresource = sub.to_string();
            &["namespaces"]
        }
        ["namespaces", ns, tail @ ..] => {
            path.namespace = ns.to_string();
            tail
        }
        all => all,
    };
    match tail {
        [plural] => path.plural = plural.to_string(),
        [plural, name] => {
            path.plural = plural.to_string();
            path.name = name.to_string();
        }
        [plural, name, sub] => {
            path.plural = plural.to_string();
            path.name = name.to_string();
            path.subresource = sub.to_string();
        }
        _ => return Err(ApiError::no_resource()),
    }
    Ok(Target::Resource(path))
}

/// The verb of a resource request, in the words of authorization.
pub fn verb(method: &Method, path: &ResourcePath, watch: bool) -> Option<&'static str> {
    Some(match (method.as_str(), path.name.is_empty()) {
        ("GET" | "HEAD", true) if watch => "watch",
        ("GET" | "HEAD", true) => "list",
        ("GET" | "HEAD", false) if watch => "watch",
        ("GET" | "HEAD", false) => "get",
        ("POST", _) => "create",
        ("PUT", false) => "update",
        ("PATCH", false) => "patch",
        ("DELETE", true) => "deletecollection",
        ("DELETE", false) => "delete",
        _ => return None,
    })
}

fn decode(raw: &str, plus_is_space: bool) -> ApiResult<String> {
    if !raw.contains(['%', '+']) {
        return Ok(raw.to_string());
    }
    let bytes = raw.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'%' => {
                let hex = bytes
                    .get(i + 1..i + 3)
                    .and_then(|h| std::str::from_utf8(h).ok());
                match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
                    Some(b) => out.push(b),
                    None => {
                        return Err(ApiError::bad_request(
                            "invalid percent-encoding in the request URI",
                        ));
                    }
                }
                i += 3;
            }
            b'+' if plus_is_space => {
                out.push(b' ');
                i += 1;
            }
            b => {
                out.push(b);
                i += 1;
            }
        }
    }
    String::from_utf8(out).map_err(|_| ApiError::bad_request("the request URI is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(p: &str) -> ResourcePath {
        match target(p) {
            Ok(Target::Resource(r)) => r,
            other => panic!("{p}: {other:?}"),
        }
    }

    #[test]
    fn reads_resource_paths() {
        let p = path("/apis/rota.dev/v1/namespaces/a/jobs/x/status");
        assert_eq!(
            (
                &*p.group,
                &*p.namespace,
                &*p.plural,
                &*p.name,
                &*p.subresource
            ),
            ("rota.dev", "a", "jobs", "x", "status")
        );
        let p = path("/api/v1/namespaces/a");
        assert_eq!(
            (&*p.plural, &*p.name, &*p.namespace),
            ("namespaces", "a", "")
        );
        let p = path("/api/v1/namespaces/a/finalize");
        assert_eq!((&*p.plural, &*p.subresource), ("namespaces", "finalize"));
        let p = path("/api/v1/nodes/");
        assert_eq!((&*p.plural, &*p.name), ("nodes", ""));
        assert_eq!(target("/apis/"), Ok(Target::Other(vec!["apis".into()])));
    }

    #[test]
    fn refuses_hostile_paths() {
        for p in [
            "/api/v1/namespaces/a/secrets/%2e%2e%2fx",
            "/api/v1/nodes/%00",
            "/api/v1/nodes/%zz",
            "/api/v1/nodes/%ff",
            "/api/v1/nodes/..",
        ] {
            assert!(target(p).is_err(), "{p}");
        }
    }

    #[test]
    fn reads_queries() {
        let q = Query::parse(Some("&limit=500&labelSelector=a%3Db%2Cc&watch")).unwrap_or_default();
        assert_eq!(q.number("limit"), Ok(Some(500)));
        assert_eq!(q.get("labelSelector"), Some("a=b,c"));
        assert_eq!(q.flag("watch"), Ok(true));
        assert!(
            Query::parse(Some("limit=-1"))
                .and_then(|q| q.number("limit"))
                .is_err()
        );
    }
}
