//! get and list: answered from the cache, consistent unless the caller allows otherwise.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use rota_store::{ListRequest, StoreError, Version};
use serde_json::{Value, json};

use super::selectors::Selectors;
use crate::cache::{Page, PageRequest};
use crate::error::{ApiError, ApiResult};
use crate::objects::Object;
use crate::request::{Query, bad_parameter};
use crate::respond::{self, Format, ListBody};
use crate::server::{Served, Server};
use crate::storage::store_error;
use crate::table;

/// Largest page; a larger limit is served as this many with a continue token.
const LIMIT_MAX: u64 = 100_000;

/// Longest wait for a version that the cache has not seen.
const VERSION_WAIT: Duration = Duration::from_secs(3);

/// Longest continue token that is looked at.
const TOKEN_MAX: usize = 4096;

/// Pages that one list below the cache's history may read from the store.
const STORE_PAGE: usize = 500;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Everything acknowledged before the request.
    Latest,
    /// Whatever the cache has.
    Any,
    /// Not older than this.
    NotOlder(Version),
    /// Exactly this.
    Exact(Version),
}

/// A resourceVersion parameter as a number.
pub fn version_parameter(query: &Query, key: &str) -> ApiResult<Option<Version>> {
    let Some(text) = query.get(key) else {
        return Ok(None);
    };
    if text.len() > 1 && text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad_parameter(
            key,
            text,
            "must be a decimal number without leading zeros",
        ));
    }
    text.parse()
        .map(Some)
        .map_err(|_| bad_parameter(key, text, "must fit into 64 bits"))
}

fn invalid(message: &str) -> ApiError {
    ApiError::new(422, "Invalid", message)
}

impl At {
    fn of_list(query: &Query, limited: bool) -> ApiResult<At> {
        let version = version_parameter(query, "resourceVersion")?;
        let token = query.get("continue").is_some();
        if query.flag("sendInitialEvents")? {
            return Err(invalid(
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
            ));
        }
        match (query.get("resourceVersionMatch"), version) {
            (Some(_), _) if token => Err(invalid(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided",
            )),
            (Some(_), None) => Err(invalid(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            )),
            (Some("Exact"), Some(0)) => Err(invalid(
                "resourceVersionMatch: Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            )),
            (Some("Exact"), Some(v)) => Ok(At::Exact(v)),
            (Some("NotOlderThan"), Some(0)) => Ok(At::Any),
            (Some("NotOlderThan"), Some(v)) => Ok(At::NotOlder(v)),
            (Some(other), _) => Err(invalid(&format!(
                "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
            ))),
            (None, Some(v)) if token && v != 0 => Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            )),
            (None, None) => Ok(At::Latest),
            (None, Some(0)) => Ok(At::Any),
            (None, Some(v)) if limited => Ok(At::Exact(v)),
            (None, Some(v)) => Ok(At::NotOlder(v)),
        }
    }

    async fn reach(self, server: &Server) -> ApiResult<Option<Version>> {
        let wait = |v: Version| async move {
            server
                .cache
                .wait_for(v, VERSION_WAIT)
                .await
                .map_err(|now| ApiError::version_too_large(v, now))
        };
        match self {
            At::Any => Ok(None),
            At::Latest => server
                .cache
                .fresh()
                .await
                .map(|_| None)
                .map_err(store_error),
            At::NotOlder(v) => wait(v).await.map(|()| None),
            At::Exact(v) => wait(v).await.map(|()| Some(v)),
        }
    }
}

/// GET of one object.
pub async fn get(
    server: &Server,
    served: &Served,
    namespace: &str,
    name: &str,
    query: &Query,
    format: Format,
) -> ApiResult<Response> {
    let at = match version_parameter(query, "resourceVersion")? {
        None => At::Latest,
        Some(0) => At::Any,
        Some(v) => At::NotOlder(v),
    };
    at.reach(server).await?;
    let object = server
        .cached(served, namespace, name)
        .ok_or_else(|| served.not_found(name))?;
    Ok(render_one(served, &object, format, 200))
}

/// One object in the wanted shape.
pub fn render_one(served: &Served, object: &Object, format: Format, code: u16) -> Response {
    match format {
        Format::Object if !served.view => respond::json_bytes(code, object.bytes.clone()),
        Format::Object => respond::json_value(code, &served.shown(object)),
        Format::Partial => respond::json_value(code, &respond::partial(&object.value())),
        Format::Table(include) => {
            let value = served.shown(object);
            let meta = json!({"resourceVersion": object.version.to_string()});
            respond::json_value(
                code,
                &table::render(
                    &served.kind,
                    &[&value],
                    meta,
                    include,
                    jiff::Timestamp::now(),
                    true,
                ),
            )
        }
    }
}

/// GET of a collection.
pub async fn list(
    server: &Server,
    served: &Served,
    namespace: &str,
    query: &Query,
    format: Format,
) -> ApiResult<Response> {
    let selectors = Selectors::parse(served, query)?;
    let limit = query.number("limit")?.unwrap_or(0);
    query.number("timeoutSeconds")?;
    let at = At::of_list(query, limit > 0)?;
    let page = match query.get("continue") {
        Some(token) => {
            Token::parse(token, served, namespace)?
                .page(server, served, namespace, &selectors, limit)
                .await?
        }
        None => {
            let at = at.reach(server).await?;
            read_page(server, served, namespace, &selectors, at, None, limit, 0).await?
        }
    };
    Ok(render_list(served, page, format))
}

/// Every object of a collection that the selectors choose, as of now.
pub async fn all(
    server: &Server,
    served: &Served,
    namespace: &str,
    selectors: &Selectors,
) -> ApiResult<Vec<Arc<Object>>> {
    server.cache.fresh().await.map_err(store_error)?;
    let listed = read_page(server, served, namespace, selectors, None, None, 0, 0).await?;
    Ok(listed.items)
}

struct Listed {
    items: Vec<Arc<Object>>,
    version: Version,
    token: Option<String>,
    remaining: Option<usize>,
}

#[allow(clippy::too_many_arguments)]
async fn read_page(
    server: &Server,
    served: &Served,
    namespace: &str,
    selectors: &Selectors,
    at: Option<Version>,
    after: Option<&str>,
    limit: u64,
    before: u64,
) -> ApiResult<Listed> {
    let limit = limit.min(LIMIT_MAX) as usize;
    // A name picks one object; no need to look at the others.
    if let (Some(name), None) = (&selectors.name, at)
        && !(served.kind.namespaced && namespace.is_empty())
    {
        let (object, version) = server
            .cache
            .one(served.cache, &served.cache_key(namespace, name));
        let items = object
            .filter(|o| selectors.matches(o))
            .into_iter()
            .collect();
        return Ok(Listed {
            items,
            version,
            token: None,
            remaining: None,
        });
    }
    let filter = |o: &Object| selectors.matches(o);
    let request = PageRequest {
        namespace,
        after,
        at,
        limit,
        filter: if selectors.is_empty() {
            None
        } else {
            Some(&filter)
        },
    };
    let page = match server.cache.page(served.cache, &request) {
        Ok(page) => page,
        Err(_) => {
            older_page(
                server,
                served,
                namespace,
                selectors,
                at.unwrap_or(0),
                after,
                limit,
            )
            .await?
        }
    };
    let token = page.more.then(|| {
        let count = before + page.items.len() as u64;
        let last = page.items.last().map_or("", |o| &o.key).to_string();
        Token {
            version: page.version,
            last,
            count,
        }
        .text()
    });
    let remaining = (page.more && selectors.is_empty()).then(|| {
        page.total
            .saturating_sub(before as usize + page.items.len())
            .max(1)
    });
    Ok(Listed {
        items: page.items,
        version: page.version,
        token,
        remaining,
    })
}

/// A page from before the cache's history: the store still has it, unless it was compacted.
async fn older_page(
    server: &Server,
    served: &Served,
    namespace: &str,
    selectors: &Selectors,
    at: Version,
    after: Option<&str>,
    limit: usize,
) -> ApiResult<Page> {
    let prefix = if namespace.is_empty() {
        served.prefix.clone()
    } else {
        format!("{}{namespace}/", served.prefix)
    };
    let kind = server.cache.kind(served.cache);
    let mut after = after.map(|a| format!("{}{a}", served.prefix));
    let mut items = Vec::new();
    loop {
        let request = ListRequest {
            prefix: prefix.clone(),
            after: after.clone(),
            limit: STORE_PAGE,
            at: Some(at),
        };
        let page = server.store.list(request).await.map_err(|e| match e {
            StoreError::Compacted { .. } => expired(at),
            other => store_error(other),
        })?;
        for record in &page.items {
            let object = kind.object(record);
            if !selectors.matches(&object) {
                continue;
            }
            if limit > 0 && items.len() == limit {
                return Ok(Page {
                    items,
                    version: at,
                    more: true,
                    total: 0,
                });
            }
            items.push(object);
        }
        after = page.items.last().map(|r| r.key.to_string());
        if !page.more {
            return Ok(Page {
                items,
                version: at,
                more: false,
                total: 0,
            });
        }
    }
}

fn expired(at: Version) -> ApiError {
    ApiError::expired(format!(
        "The provided resourceVersion or continue parameter is too old to display a consistent list result: version {at} has been compacted. You can start a new list without the continue parameter."
    ))
}

fn render_list(served: &Served, listed: Listed, format: Format) -> Response {
    let mut meta = json!({"resourceVersion": listed.version.to_string()});
    if let Some(token) = listed.token {
        meta["continue"] = json!(token);
    }
    if let Some(n) = listed.remaining {
        meta["remainingItemCount"] = json!(n);
    }
    match format {
        Format::Object if !served.view => {
            let head = respond::list_head(&served.api_version, &served.list_kind, &meta);
            let mut response =
                Response::new(axum::body::Body::new(ListBody::new(head, listed.items)));
            response.headers_mut().insert(
                http::header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
            response
        }
        Format::Object => {
            let items: Vec<Value> = listed.items.iter().map(|o| served.shown(o)).collect();
            respond::json_value(
                200,
                &json!({"kind": served.list_kind, "apiVersion": served.api_version, "metadata": meta, "items": items}),
            )
        }
        Format::Partial => {
            let items: Vec<Value> = listed
                .items
                .iter()
                .map(|o| respond::partial(&o.value()))
                .collect();
            respond::json_value(
                200,
                &json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items}),
            )
        }
        Format::Table(include) => {
            let values: Vec<Value> = listed.items.iter().map(|o| served.shown(o)).collect();
            let items: Vec<&Value> = values.iter().collect();
            respond::json_value(
                200,
                &table::render(
                    &served.kind,
                    &items,
                    meta,
                    include,
                    jiff::Timestamp::now(),
                    true,
                ),
            )
        }
    }
}

/// Where a paged list goes on. Opaque to clients; the key must lie in the collection it is used for.
struct Token {
    version: Version,
    last: String,
    count: u64,
}

impl Token {
    fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(
            json!({"v": "rota1", "rv": self.version, "key": self.last, "n": self.count})
                .to_string(),
        )
    }

    fn parse(text: &str, served: &Served, namespace: &str) -> ApiResult<Self> {
        let bad = || {
            ApiError::bad_request(
                "continue key is not valid: it is not a token of this server's lists of this collection",
            )
        };
        if text.len() > TOKEN_MAX {
            return Err(bad());
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|_| bad())?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        let last = value["key"].as_str().ok_or_else(bad)?.to_string();
        let namespaced = served.kind.namespaced;
        let fits = if namespaced {
            last.matches('/').count() == 1
        } else {
            !last.contains('/')
        };
        let inside = namespace.is_empty() || last.starts_with(&format!("{namespace}/"));
        if value["v"] != "rota1" || !fits || !inside {
            return Err(bad());
        }
        Ok(Token {
            version: value["rv"].as_u64().ok_or_else(bad)?,
            last,
            count: value["n"].as_u64().ok_or_else(bad)?,
        })
    }

    async fn page(
        self,
        server: &Server,
        served: &Served,
        namespace: &str,
        selectors: &Selectors,
        limit: u64,
    ) -> ApiResult<Listed> {
        At::Exact(self.version).reach(server).await?;
        let result = read_page(
            server,
            served,
            namespace,
            selectors,
            Some(self.version),
            Some(&self.last),
            limit,
            self.count,
        )
        .await;
        result.map_err(|mut e| {
            if e.code == 410 {
                // Lets the client go on with a newer state, at the price of one that is not a single snapshot.
                let next = Token {
                    version: server.cache.applied(),
                    last: self.last.clone(),
                    count: self.count,
                };
                e.continue_token = Some(next.text());
            }
            e
        })
    }
}
