//! Items that are independent of each other.
//!
//! Each is prepared on what the cache shows and all are handed to the store at once. Success needs
//! no more: the store checks what was assumed. Whatever else an item meets there (a lost race, a
//! cache that is behind) is settled by doing that item alone.

use std::sync::Arc;

use futures::future::join_all;
use rota_store::{StoreError, Txn};
use serde_json::value::RawValue;

use super::answer::Answer;
use super::item::{Item, Place, Places, Verb};
use crate::error::{ApiError, ApiResult};
use crate::server::{Caller, Server};
use crate::storage::{Prepared, store_error};

/// Items prepared before other requests on the same thread get their turn; about half a millisecond.
const TURN: usize = 64;

/// A write on its way to the store.
struct Pending {
    /// Which item.
    at: usize,
    place: Arc<Place>,
    key: Arc<str>,
    prepared: Prepared,
}

pub(super) async fn run(
    server: &Arc<Server>,
    caller: &Caller,
    items: &[&RawValue],
    whole: bool,
) -> Vec<ApiResult<Answer>> {
    let mut answers: Vec<Option<ApiResult<Answer>>> = items.iter().map(|_| None).collect();
    let mut places = Places::new(server, caller);
    let mut pending = Vec::with_capacity(items.len());
    let mut txns = Vec::with_capacity(items.len());
    let mut alone = Vec::new();
    for (at, raw) in items.iter().enumerate() {
        if at % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
        match first(server, caller, &mut places, at, raw) {
            Err(refusal) => answers[at] = Some(Err(refusal)),
            Ok(None) => alone.push(at),
            Ok(Some((one, txn))) => {
                pending.push(one);
                txns.push(txn);
            }
        }
    }
    let outcomes = if txns.is_empty() {
        Vec::new()
    } else {
        server.store.commit_all(txns).await
    };
    for (one, outcome) in pending.into_iter().zip(outcomes) {
        let answer = match outcome {
            Ok(versions) => {
                let name = one.key.rsplit('/').next().unwrap_or("");
                Ok(Answer::of(
                    one.prepared,
                    name,
                    &one.place.served,
                    &versions,
                    whole,
                ))
            }
            Err(StoreError::Conflict { .. }) => {
                alone.push(one.at);
                continue;
            }
            Err(e) => Err(store_error(e)),
        };
        answers[one.at] = Some(answer);
    }
    alone.sort_unstable();
    let again = alone.into_iter().map(|at| {
        let item = Item::read(&mut places, items[at]);
        async move {
            let done = match item {
                Ok(item) => item.run(server, caller).await,
                Err(refusal) => Err(refusal),
            };
            (at, done.map(|done| Answer::new(done, whole)))
        }
    });
    for (at, answer) in join_all(again).await {
        answers[at] = Some(answer);
    }
    let missing = || Err(ApiError::internal("an item was not answered"));
    answers
        .into_iter()
        .map(|answer| answer.unwrap_or_else(missing))
        .collect()
}

/// Prepares an item on the present state of the cache. `None`: only a look at the store can tell.
fn first(
    server: &Server,
    caller: &Caller,
    places: &mut Places,
    at: usize,
    raw: &RawValue,
) -> ApiResult<Option<(Pending, Txn)>> {
    let mut item = Item::read(places, raw)?;
    let place = item.place.clone();
    let (served, path) = (&place.served, &place.path);
    let prepared = if place.verb == Verb::Create {
        let template = item.template(caller)?;
        template
            .prepare(server, served, &path.namespace)
            .map(|(prepared, ..)| prepared)
    } else {
        match server.cached(served, &path.namespace, &path.name) {
            Some(object) => item.prepare(caller, &object),
            None => return Ok(None),
        }
    };
    // A refusal, and that there is nothing to do, are answers about the newest state.
    let Ok(mut prepared) = prepared else {
        return Ok(None);
    };
    let Some(write) = prepared.writes.first() else {
        return Ok(None);
    };
    let key = write.key().clone();
    let mut guards = std::mem::take(&mut prepared.guards);
    guards.extend(caller.guard());
    let writes = std::mem::take(&mut prepared.writes);
    let one = Pending {
        at,
        place,
        key,
        prepared,
    };
    Ok(Some((one, Txn { guards, writes })))
}
