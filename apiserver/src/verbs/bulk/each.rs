//! Items that are independent of each other.
//!
//! Each is prepared on what the cache shows and all are handed to the store at once. Success needs
//! no more: the store checks what was assumed. Whatever else an item meets there (a lost race, a
//! cache that is behind) is settled by doing that item alone.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use rota_store::{StoreError, Txn, Write};
use serde_json::value::RawValue;

use super::answer::Answer;
use super::item::{Item, Place, Places, Verb};
use crate::error::{ApiError, ApiResult};
use crate::server::{Caller, Server};
use crate::storage::{Prepared, lease_lost, store_error};

/// Items prepared before other requests on the same thread get their turn; about half a millisecond.
const TURN: usize = 64;

/// Bytes of prepared objects at which they are handed over before more are prepared: a small patch
/// of a large object is a large write.
const PREPARED_MAX: usize = 16 << 20;

/// Items done alone at a time.
const ALONE_CONCURRENCY: usize = 64;

/// A write on its way to the store.
struct Pending {
    /// Which item.
    at: usize,
    place: Arc<Place>,
    key: Arc<str>,
    prepared: Prepared,
}

/// What came of the items so far.
struct Progress<'a> {
    server: &'a Server,
    caller: &'a Caller,
    whole: bool,
    answers: Vec<Option<ApiResult<Answer>>>,
    /// Items that only a look at the store can decide.
    alone: Vec<usize>,
    pending: Vec<Pending>,
    txns: Vec<Txn>,
    /// Of the values in `txns`.
    bytes: usize,
}

impl Progress<'_> {
    fn add(&mut self, one: Pending, txn: Txn) {
        for write in &txn.writes {
            if let Write::Put { value, .. } = write {
                self.bytes += value.len();
            }
        }
        self.pending.push(one);
        self.txns.push(txn);
    }

    /// Hands over what is prepared and notes what came of it.
    async fn commit(&mut self) {
        if self.txns.is_empty() {
            return;
        }
        self.bytes = 0;
        let txns = std::mem::take(&mut self.txns);
        let pending = std::mem::take(&mut self.pending);
        let outcomes = self.server.store.commit_all(txns).await;
        let fence = self.caller.guard().map(|guard| guard.key);
        for (one, outcome) in pending.into_iter().zip(outcomes) {
            let answer = match outcome {
                Ok(versions) => {
                    let name = one.key.rsplit('/').next().unwrap_or("");
                    Ok(Answer::of(
                        one.prepared,
                        name,
                        &one.place.served,
                        &versions,
                        self.whole,
                    ))
                }
                Err(StoreError::Conflict { guard, actual })
                    if fence.as_ref() == Some(&guard.key) =>
                {
                    Err(lease_lost(actual.as_ref()))
                }
                Err(StoreError::Conflict { .. }) => {
                    self.alone.push(one.at);
                    continue;
                }
                Err(e) => Err(store_error(e)),
            };
            self.answers[one.at] = Some(answer);
        }
    }
}

pub(super) async fn run(
    server: &Arc<Server>,
    caller: &Caller,
    items: &[&RawValue],
    whole: bool,
) -> Vec<ApiResult<Answer>> {
    let mut progress = Progress {
        server,
        caller,
        whole,
        answers: items.iter().map(|_| None).collect(),
        alone: Vec::new(),
        pending: Vec::with_capacity(items.len()),
        txns: Vec::with_capacity(items.len()),
        bytes: 0,
    };
    let mut places = Places::new(server, caller);
    for (at, raw) in items.iter().enumerate() {
        if at % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
        match first(server, caller, &mut places, at, raw) {
            Err(refusal) => progress.answers[at] = Some(Err(refusal)),
            Ok(None) => progress.alone.push(at),
            Ok(Some((one, txn))) => progress.add(one, txn),
        }
        if progress.bytes >= PREPARED_MAX {
            progress.commit().await;
        }
    }
    progress.commit().await;
    let Progress {
        mut answers, alone, ..
    } = progress;
    let again = alone.into_iter().map(|at| async move {
        let item = Item::read(&mut Places::new(server, caller), items[at]);
        let done = match item {
            Ok(item) => item.run(server, caller).await,
            Err(refusal) => Err(refusal),
        };
        (at, done.map(|done| Answer::new(done, whole)))
    });
    let mut again = stream::iter(again).buffer_unordered(ALONE_CONCURRENCY);
    while let Some((at, answer)) = again.next().await {
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
