//! From prepared writes to the store and back: guards, retries on lost races, and how the store's
//! failures look to clients.

use std::sync::Arc;

use bytes::Bytes;
use rota_store::{Expect, Guard, Record, StoreError, Txn, Version, Write};

use crate::error::{ApiError, ApiResult};
use crate::objects::{Object, splice};
use crate::server::{Caller, Served, Server};

/// How often a write without a version of its own is tried again when others win the race.
pub const RETRIES_MAX: usize = 64;

/// Largest stored object; the store takes no transaction above 1.4 MB.
pub const OBJECT_BYTES_MAX: usize = 1_300_000;

/// A write that is ready to be committed, by itself or with others.
#[derive(Debug)]
pub struct Prepared {
    /// What must hold besides the write's own guard.
    pub guards: Vec<Guard>,
    /// The object's write first, then derived ones (fence keys). Empty when nothing changes.
    pub writes: Vec<Write>,
    /// What the caller is answered.
    pub outcome: Outcome,
    /// Warnings for the caller.
    pub warnings: Vec<String>,
}

/// What a prepared write amounts to.
#[derive(Debug)]
pub enum Outcome {
    /// The object is stored with these bytes.
    Stored {
        /// Stored (not ready) bytes.
        stored: Bytes,
        /// 201 or 200.
        code: u16,
        /// metadata.uid.
        uid: Box<str>,
    },
    /// The object is removed; this was its last state.
    Removed(Arc<Object>),
    /// Nothing changes.
    Unchanged(Arc<Object>),
}

/// What a verb did.
#[derive(Debug)]
pub struct Done {
    /// HTTP code.
    pub code: u16,
    /// Ready bytes of the object, or of its last state when it was removed.
    pub bytes: Bytes,
    /// Version of the object; of its removal where it was removed.
    pub version: Version,
    /// It is gone.
    pub removed: bool,
    /// For the caller.
    pub warnings: Vec<String>,
}

impl Prepared {
    /// The transaction, with the caller's fence.
    pub fn txn(&self, fence: Option<Guard>) -> Txn {
        let mut guards = self.guards.clone();
        guards.extend(fence);
        Txn {
            guards,
            writes: self.writes.clone(),
        }
    }

    /// The answer, given the versions that the store gave to this write (none on dry run).
    pub fn done(self, served: &Served, versions: &[Version]) -> Done {
        let version = versions.first().copied();
        match self.outcome {
            Outcome::Unchanged(object) => Done {
                code: 200,
                bytes: object.bytes.clone(),
                version: object.version,
                removed: false,
                warnings: self.warnings,
            },
            Outcome::Removed(object) => Done {
                code: 200,
                bytes: object.bytes.clone(),
                version: version.unwrap_or(object.version),
                removed: true,
                warnings: self.warnings,
            },
            Outcome::Stored { stored, code, .. } => Done {
                code,
                bytes: match version {
                    Some(v) => splice(&stored, served.offset, v),
                    None => stored,
                },
                version: version.unwrap_or(0),
                removed: false,
                warnings: self.warnings,
            },
        }
    }
}

/// Key of a lease's fence.
pub fn fence_key(namespace: &str, name: &str) -> Arc<str> {
    format!("/fence/{namespace}/{name}").into()
}

impl Caller {
    /// The guard that the caller's leadership adds to each of its writes.
    pub fn guard(&self) -> Option<Guard> {
        let (namespace, name, term) = self.fence.as_ref()?;
        Some(Guard {
            key: fence_key(namespace, name),
            expect: Expect::Value(term.to_string().into()),
        })
    }
}

/// 409 when the caller no longer leads.
pub fn lease_lost(actual: Option<&Record>) -> ApiError {
    let now = actual.map_or("none".to_string(), |r| {
        String::from_utf8_lossy(&r.value).into_owned()
    });
    ApiError::new(
        409,
        rota_api::names::REASON_LEASE_LOST,
        format!("the caller's term is over: the lease's term is now {now}; nothing was written"),
    )
}

/// How a failure of the store looks to a client.
pub fn store_error(e: StoreError) -> ApiError {
    match e {
        StoreError::Conflict { guard, .. } => ApiError::new(
            409,
            "Conflict",
            format!("precondition on {} failed", guard.key),
        ),
        StoreError::Compacted { wanted, oldest } => ApiError::expired(format!(
            "The resourceVersion {wanted} is too old; the oldest kept is {oldest}."
        )),
        StoreError::Future { wanted, current } => ApiError::version_too_large(wanted, current),
        StoreError::TooLarge(why) => {
            ApiError::too_large(format!("the request is too large: {why}"))
        }
        StoreError::Invalid(why) => ApiError::internal(why),
        StoreError::Unavailable(why) => ApiError::unavailable(format!(
            "the store is unavailable, nothing was written: {why}"
        )),
        StoreError::Unknown(why) => ApiError::unavailable(format!(
            "the outcome of the write is unknown, read before trying again: {why}"
        )),
        StoreError::Corrupt(why) => ApiError::internal(format!("the store is damaged: {why}")),
    }
}

/// Refuses bytes that the store would not take.
pub fn check_size(stored: &Bytes) -> ApiResult<()> {
    if stored.len() > OBJECT_BYTES_MAX {
        return Err(ApiError::too_large(format!(
            "the object has {} bytes as stored; the limit is {OBJECT_BYTES_MAX}",
            stored.len()
        )));
    }
    Ok(())
}

impl Server {
    /// Creates: `prepare` is called again with a new name suffix while a generated name is taken.
    pub async fn commit_new(
        &self,
        caller: &Caller,
        served: &Served,
        dry_run: bool,
        mut prepare: impl FnMut(&Server) -> ApiResult<(Prepared, Arc<str>, bool)>,
    ) -> ApiResult<Done> {
        for attempt in 0.. {
            let (prepared, key, generated) = prepare(self)?;
            let name = key.rsplit('/').next().unwrap_or("").to_string();
            if dry_run {
                self.cache.fresh().await.map_err(store_error)?;
                if self
                    .cache
                    .kind(served.cache)
                    .get(key.strip_prefix(&*served.prefix).unwrap_or(&key))
                    .is_some()
                {
                    return Err(ApiError::already_exists(
                        served.kind.group,
                        served.kind.plural,
                        &name,
                    ));
                }
                return Ok(prepared.done(served, &[]));
            }
            match self.store.commit(prepared.txn(caller.guard())).await {
                Ok(versions) => return Ok(prepared.done(served, &versions)),
                Err(StoreError::Conflict { guard, actual }) => {
                    if guard.key == key {
                        if generated && attempt < 8 {
                            continue;
                        }
                        let mut e =
                            ApiError::already_exists(served.kind.group, served.kind.plural, &name);
                        if generated {
                            e = e.with(|d| d.retry_after_seconds = Some(1));
                        }
                        return Err(e);
                    }
                    if guard.key.starts_with("/fence/")
                        && caller.guard().is_some_and(|g| g.key == guard.key)
                    {
                        return Err(lease_lost(actual.as_ref()));
                    }
                    // The namespace changed under us: look at it again.
                    if attempt >= RETRIES_MAX {
                        return Err(ApiError::modified(
                            served.kind.group,
                            served.kind.plural,
                            &name,
                        ));
                    }
                    self.cache.fresh().await.map_err(store_error)?;
                }
                Err(e) => return Err(store_error(e)),
            }
        }
        Err(ApiError::internal("unreachable retry end"))
    }

    /// Changes an existing object: reads, calls `prepare` on what is there, commits if it is still
    /// that, else starts over with what is there now. `prepare` itself refuses stale versions.
    pub async fn commit_change(
        &self,
        caller: &Caller,
        served: &Served,
        namespace: &str,
        name: &str,
        dry_run: bool,
        prepare: impl Fn(&Arc<Object>) -> ApiResult<Prepared>,
    ) -> ApiResult<Done> {
        let key = served.key(namespace, name);
        let mut current = self.cached(served, namespace, name);
        // The cache may be behind: trust it for success (the store checks), never for a refusal.
        let mut fresh = false;
        for _ in 0..RETRIES_MAX {
            let prepared = match &current {
                Some(object) => prepare(object),
                None => Err(served.not_found(name)),
            };
            let prepared = match prepared {
                Ok(p) => p,
                Err(e) if fresh => return Err(e),
                Err(_) => {
                    current = self.current(served, namespace, name).await?;
                    fresh = true;
                    continue;
                }
            };
            if prepared.writes.is_empty() && !fresh {
                // Nothing to write is an answer about the present state, so it must be the present state.
                current = self.current(served, namespace, name).await?;
                fresh = true;
                continue;
            }
            if prepared.writes.is_empty() {
                return Ok(prepared.done(served, &[]));
            }
            if dry_run {
                // The answer of a dry run carries the version that it was computed from.
                let version = current.as_ref().map_or(0, |object| object.version);
                return Ok(prepared.done(served, &[version]));
            }
            match self.store.commit(prepared.txn(caller.guard())).await {
                Ok(versions) => return Ok(prepared.done(served, &versions)),
                Err(StoreError::Conflict { guard, actual }) if guard.key == key => {
                    current = actual.map(|record| self.cache.kind(served.cache).object(&record));
                    fresh = true;
                }
                Err(StoreError::Conflict { guard, actual })
                    if guard.key.starts_with("/fence/")
                        && caller.guard().is_some_and(|g| g.key == guard.key) =>
                {
                    return Err(lease_lost(actual.as_ref()));
                }
                Err(e) => return Err(store_error(e)),
            }
        }
        Err(
            ApiError::modified(served.kind.group, served.kind.plural, name)
                .with(|d| d.retry_after_seconds = Some(1)),
        )
    }
}
