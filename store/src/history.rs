//! What memory and embedded share: exact-version pages from the newest state and an undo map, and
//! watches that pull from history at their reader's pace.
//!
//! A watcher holds nothing but its position, so a slow one costs no memory; when history is
//! forgotten beneath it, it ends with [`StoreError::Compacted`].

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;

use crate::{EventBatch, ListRequest, Record, StoreError, Version};

/// Events that a watcher is handed at once; larger only when one transaction is.
pub(crate) const WATCH_BATCH_MAX: usize = 1000;

/// Older contents of keys that changed after a version: `None` means the key was absent then. `T` is
/// the record or what it is fetched by.
pub(crate) type Undo<T> = BTreeMap<Arc<str>, Option<T>>;

/// Whether a key is one that the request asks for (its page limit aside).
pub(crate) fn wanted(request: &ListRequest, key: &str) -> bool {
    key.starts_with(&request.prefix) && request.after.as_deref().is_none_or(|after| key > after)
}

/// Merges the newest records (in key order, already cut to the request's range) with what older
/// state replaces, up to the page limit; `fetch` turns an undo entry into its record and is called
/// only for what the page shows. Returns the items and whether more follow.
pub(crate) fn merge_page<T>(
    newest: impl Iterator<Item = Result<Record, StoreError>>,
    undo: Undo<T>,
    limit: usize,
    mut fetch: impl FnMut(&Arc<str>, T) -> Result<Record, StoreError>,
) -> Result<(Vec<Record>, bool), StoreError> {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let mut items: Vec<Record> = Vec::new();
    let mut undo = undo.into_iter().peekable();
    let mut newest = newest.peekable();
    loop {
        let older_first = match (newest.peek(), undo.peek()) {
            (None, None) => return Ok((items, false)),
            (Some(Err(error)), _) => return Err(error.clone()),
            (Some(Ok(_)), None) => false,
            (None, Some(_)) => true,
            (Some(Ok(record)), Some((key, _))) => {
                if record.key == *key {
                    newest.next();
                    continue;
                }
                *key < record.key
            }
        };
        if older_first {
            if let Some((key, Some(older))) = undo.next() {
                if items.len() == limit {
                    return Ok((items, true));
                }
                items.push(fetch(&key, older)?);
            }
        } else if let Some(record) = newest.next() {
            if items.len() == limit {
                return Ok((items, true));
            }
            items.push(record?);
        }
    }
}

/// A history that watchers pull from.
#[async_trait::async_trait]
pub(crate) trait History: Send + Sync + 'static {
    /// Whole transactions after `from`, oldest first, about [`WATCH_BATCH_MAX`] events. Empty if there are none yet.
    async fn read_after(&self, from: Version) -> Result<EventBatch, StoreError>;
}

/// Streams everything after `from`; `latest` says when there is more. Ends with one error item.
pub(crate) fn pull(
    history: Arc<impl History>,
    from: Version,
    latest: watch::Receiver<Version>,
) -> BoxStream<'static, Result<EventBatch, StoreError>> {
    let start = Some((history, from, latest));
    stream::unfold(start, |state| async move {
        let (history, from, mut latest) = state?;
        loop {
            if latest.wait_for(|version| *version > from).await.is_err() {
                let gone = StoreError::Unavailable("the store was closed".into());
                return Some((Err(gone), None));
            }
            match history.read_after(from).await {
                Ok(batch) if batch.version > from => {
                    let next = batch.version;
                    return Some((Ok(batch), Some((history, next, latest))));
                }
                // Announced but not readable yet: wait for the next announcement.
                Ok(_) => {
                    if latest.changed().await.is_err() {
                        let gone = StoreError::Unavailable("the store was closed".into());
                        return Some((Err(gone), None));
                    }
                }
                Err(error) => return Some((Err(error), None)),
            }
        }
    })
    .boxed()
}
