//! Items of which all apply or none.

use std::sync::Arc;

use rota_store::{StoreError, Txn, Version};
use serde_json::value::RawValue;

use super::answer::Answer;
use super::item::{Item, Places, Verb};
use crate::error::{ApiError, ApiResult};
use crate::server::{Caller, Server};
use crate::storage::{Prepared, lease_lost, store_error};

/// How often a transaction that lost a race is prepared anew.
const TRIES: usize = 8;

/// One transaction of all items. A lost race on an object without a stated version starts over.
pub(super) async fn run(
    server: &Arc<Server>,
    caller: &Caller,
    items: &[&RawValue],
    whole: bool,
) -> Vec<ApiResult<Answer>> {
    let count = items.len();
    let mut places = Places::new(server, caller);
    let mut good = Vec::with_capacity(count);
    for (i, raw) in items.iter().enumerate() {
        match Item::read(&mut places, raw) {
            Ok(item) => good.push(item),
            Err(e) => return all_failed(count, i, e),
        }
    }
    let mut templates = Vec::with_capacity(count);
    for (i, item) in good.iter_mut().enumerate() {
        let template = if item.place.verb == Verb::Create {
            item.template(caller).map(Some)
        } else {
            Ok(None)
        };
        match template {
            Ok(t) => templates.push(t),
            Err(e) => return all_failed(count, i, e),
        }
    }
    for attempt in 0..TRIES {
        if attempt > 0
            && let Err(e) = server.cache.fresh().await
        {
            return all_failed(count, 0, store_error(e));
        }
        let mut prepared = Vec::with_capacity(count);
        let mut failed = None;
        for (i, (item, template)) in good.iter().zip(&templates).enumerate() {
            let (served, path) = (&item.place.served, &item.place.path);
            let one = match template {
                Some(t) => t.prepare(server, served, &path.namespace).map(|(p, _)| p),
                None => match server.cached(served, &path.namespace, &path.name) {
                    Some(object) => item.prepare(caller, &object),
                    None => Err(served.not_found(&path.name)),
                },
            };
            match one {
                Ok(p) => prepared.push(p),
                Err(e) => {
                    failed = Some((i, e));
                    break;
                }
            }
        }
        if let Some((i, e)) = failed {
            // A refusal counts only when it was made on fresh state.
            if attempt == 0 {
                continue;
            }
            return all_failed(count, i, e);
        }
        let mut txn = Txn {
            guards: caller.guard().into_iter().collect(),
            writes: Vec::new(),
        };
        for p in &prepared {
            for guard in &p.guards {
                if !txn.guards.contains(guard) {
                    txn.guards.push(guard.clone());
                }
            }
            txn.writes.extend(p.writes.iter().cloned());
        }
        if txn.writes.is_empty() {
            return finish(good, prepared, &[], whole);
        }
        match server.store.commit(txn).await {
            Ok(versions) => return finish(good, prepared, &versions, whole),
            Err(StoreError::Conflict { guard, actual }) => {
                if guard.key.starts_with("/fence/")
                    && caller.guard().is_some_and(|g| g.key == guard.key)
                {
                    return all_failed(count, 0, lease_lost(actual.as_ref()));
                }
                if attempt == TRIES - 1 {
                    return all_failed(
                        count,
                        0,
                        store_error(StoreError::Conflict { guard, actual }),
                    );
                }
                // A taken name is a refusal as soon as the cache shows it; everything else is a race.
                if let Some(i) = prepared
                    .iter()
                    .position(|p| p.guards.first().is_some_and(|g| g.key == guard.key))
                    && templates[i].as_ref().is_some_and(|t| !t.generates_name())
                {
                    let kind = &good[i].place.served.kind;
                    let name = guard.key.rsplit('/').next().unwrap_or("");
                    return all_failed(
                        count,
                        i,
                        ApiError::already_exists(kind.group, kind.plural, name),
                    );
                }
            }
            Err(StoreError::Invalid(why)) => {
                // Such as two items on one object.
                return all_failed(count, 0, ApiError::bad_request(why));
            }
            Err(e) => return all_failed(count, 0, store_error(e)),
        }
    }
    all_failed(
        count,
        0,
        ApiError::new(409, "Conflict", "the objects kept changing; try again"),
    )
}

fn finish(
    items: Vec<Item>,
    prepared: Vec<Prepared>,
    versions: &[Version],
    whole: bool,
) -> Vec<ApiResult<Answer>> {
    let mut at = 0;
    items
        .iter()
        .zip(prepared)
        .map(|(item, p)| {
            let n = p.writes.len();
            let mine = versions.get(at..at + n).unwrap_or(&[]);
            at += n;
            Ok(Answer::new(p.done(&item.place.served, mine), whole))
        })
        .collect()
}

fn all_failed(count: usize, at: usize, e: ApiError) -> Vec<ApiResult<Answer>> {
    let others = ApiError::new(
        409,
        "Conflict",
        format!("not written, because item {at} failed: {}", e.message),
    );
    (0..count)
        .map(|i| Err(if i == at { e.clone() } else { others.clone() }))
        .collect()
}
