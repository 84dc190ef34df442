//! `POST /apis/rota.dev/v1/bulk`: many writes in one request.
//!
//! Items are read, authorised, checked and committed each by itself and answered in order; with
//! `atomic: true` all or none apply. An item is read only when its turn comes and its tree is gone
//! before the next one's.

mod answer;
mod atomic;
mod each;
mod item;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{ApiError, ApiResult};
use crate::server::{Caller, Server};
use crate::storage::store_error;

/// Items in one request: bounds the memory and the time of one request.
pub const ITEMS_MAX: usize = 5_000;

/// Items of an atomic request: one store transaction.
pub const ATOMIC_MAX: usize = 100;

/// Bytes of one request: 5,000 tasks of 1 KiB with room to spare.
pub const BODY_MAX: usize = 16 << 20;

/// Longest that an answer is held back for the watch cache; a cache that is stuck for longer stops
/// consistent reads, not writes.
const KEEP_UP_MAX: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Request<'a> {
    atomic: Option<bool>,
    answer: Option<String>,
    #[serde(borrow)]
    items: Items<'a>,
}

/// The items' own bytes, inside those of the request.
struct Items<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Vec<&'de RawValue>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of items")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    if items.len() == ITEMS_MAX {
                        return Err(A::Error::custom(format_args!(
                            "there are more than the {ITEMS_MAX} items that one request may hold"
                        )));
                    }
                    items.push(item);
                }
                Ok(items)
            }
        }
        deserializer.deserialize_seq(List).map(Items)
    }
}

impl<'a> Request<'a> {
    fn read(body: &'a [u8]) -> ApiResult<Self> {
        let text = crate::body::utf8(body)?;
        serde_json::from_str(text).map_err(|e| {
            ApiError::bad_request(if e.is_data() {
                format!("a bulk request must be an object with a list named items: {e}")
            } else {
                format!("the request body is not valid JSON: {e}")
            })
        })
    }
}

/// Handles the request body; answers the result object.
pub async fn bulk(server: &Arc<Server>, caller: &Caller, body: &[u8]) -> ApiResult<String> {
    let request = Request::read(body)?;
    let items = &request.items.0;
    let whole = match request.answer.as_deref() {
        None | Some("Object") => true,
        Some("Version") => false,
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "answer {other:?} is neither \"Object\" nor \"Version\""
            )));
        }
    };
    let atomic = request.atomic.unwrap_or(false);
    if atomic && items.len() > ATOMIC_MAX {
        return Err(ApiError::bad_request(format!(
            "{} items are more than the {ATOMIC_MAX} that one atomic request may hold",
            items.len()
        )));
    }
    if crate::auth::authorizer::node_of(&caller.user).is_some() {
        // What a node may write depends on the Tasks bound to it: look at the newest ones.
        server.cache.fresh().await.map_err(store_error)?;
    }
    // Whoever writes faster than the cache can follow is held back by it: what was acknowledged
    // before this request came must be in the cache when this one is answered. A cache that keeps
    // up costs nothing here, and one that lags stays a round of requests behind at most.
    let acknowledged = server.acknowledged();
    let answers = if atomic {
        atomic::run(server, caller, items, whole).await
    } else {
        each::run(server, caller, items, whole).await
    };
    let newest = answers.iter().flatten().map(answer::Answer::version).max();
    server.acknowledge(newest.unwrap_or(0));
    if let Err(applied) = server.cache.wait_for(acknowledged, KEEP_UP_MAX).await {
        tracing::warn!(
            applied,
            acknowledged,
            "the watch cache does not keep up with writes"
        );
    }
    Ok(answer::render(answers))
}
