//! Reads: the newest version, shared by all who ask, and pages of one revision.

use etcd_client::{GetOptions, KvClient, TxnOp, TxnOpResponse};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::codec::{self, Kind, Names, SLOTS, WHOLE};
use super::{CALL_MAX, no_answer};
use crate::{ListPage, ListRequest, Record, StoreError, Version};

/// Keys per request: with objects of usual size an answer stays far below 4 MiB.
const PAGE_KEYS: usize = 500;

type Answer = oneshot::Sender<Result<Version, StoreError>>;

/// Answers calls for the newest version: those that came before a read was sent share it, those
/// that come while it is on its way wait for the next one, since it may be older than they are.
pub(super) async fn serve_current(mut calls: mpsc::Receiver<Answer>, kv: KvClient, names: Names) {
    let mut waiting = Vec::new();
    while calls.recv_many(&mut waiting, usize::MAX).await > 0 {
        let outcome = head(&kv, &names).await;
        for answer in waiting.drain(..) {
            drop(answer.send(outcome.clone()));
        }
    }
}

/// The newest version, by a linearizable read.
pub(super) async fn head(kv: &KvClient, names: &Names) -> Result<Version, StoreError> {
    let mut kv = kv.clone();
    let answer = match timeout(CALL_MAX, kv.get(names.head(), None)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(codec::error(Kind::Read, &error)),
        Err(_) => return Err(no_answer()),
    };
    Ok(head_version(names, answer.kvs().first()))
}

fn head_version(names: &Names, head: Option<&etcd_client::KeyValue>) -> Version {
    head.map_or(names.offset * SLOTS, |kv| {
        names.version(kv.mod_revision(), WHOLE)
    })
}

/// One record, linearizable.
pub(super) async fn get(
    kv: &KvClient,
    names: &Names,
    key: &str,
) -> Result<Option<Record>, StoreError> {
    let mut kv = kv.clone();
    match timeout(CALL_MAX, kv.get(names.full(key), None)).await {
        Ok(Ok(answer)) => Ok(answer.kvs().first().and_then(|kv| names.record(kv))),
        Ok(Err(error)) => Err(codec::error(Kind::Read, &error)),
        Err(_) => Err(no_answer()),
    }
}

/// The end of the range of keys that start with `prefix`; a zero byte means "no end".
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// A page of the state at one revision, put together from as many requests as it takes.
pub(super) async fn list(
    kv: &KvClient,
    names: &Names,
    request: ListRequest,
) -> Result<ListPage, StoreError> {
    if let Some(wanted) = request.at {
        let current = head(kv, names).await?;
        if wanted > current {
            return Err(StoreError::Future { wanted, current });
        }
        let oldest = (names.offset + 1) * SLOTS;
        if wanted < oldest && current >= oldest && wanted != names.offset * SLOTS {
            return Err(StoreError::Compacted { wanted, oldest });
        }
    }
    let limit = match request.limit {
        0 => usize::MAX,
        limit => limit,
    };
    let end = prefix_end(&names.full(&request.prefix));
    let mut start = match &request.after {
        Some(after) if *after >= request.prefix => [names.full(after), vec![0]].concat(),
        _ => names.full(&request.prefix),
    };
    let mut at = request.at.map(|version| names.revision(version));
    let mut version = request.at.map_or(0, whole);
    let mut items: Vec<Record> = Vec::new();
    loop {
        // One more than wanted tells whether more follow.
        let want = PAGE_KEYS.min(limit.saturating_sub(items.len()).saturating_add(1));
        let page = range(kv, names, &start, &end, want, at).await?;
        if at.is_none() {
            version = page.head;
            at = Some(page.revision);
        }
        items.extend(page.kvs.iter().filter_map(|kv| names.record(kv)));
        if items.len() > limit {
            items.truncate(limit);
            return Ok(ListPage {
                items,
                version,
                more: true,
            });
        }
        match page.kvs.last() {
            Some(last) if page.more => start = [last.key(), &[0]].concat(),
            _ => {
                return Ok(ListPage {
                    items,
                    version,
                    more: false,
                });
            }
        }
    }
}

/// The version that stands for the whole revision.
fn whole(version: Version) -> Version {
    version - version % SLOTS + WHOLE
}

struct Page {
    kvs: Vec<etcd_client::KeyValue>,
    more: bool,
    /// The cluster's revision at which the page was read.
    revision: i64,
    /// The store's newest version then.
    head: Version,
}

async fn range(
    kv: &KvClient,
    names: &Names,
    start: &[u8],
    end: &[u8],
    limit: usize,
    at: Option<i64>,
) -> Result<Page, StoreError> {
    let mut options = GetOptions::new().with_range(end).with_limit(limit as i64);
    if let Some(revision) = at {
        // Before the first revision there was nothing; 0 would mean "now".
        if revision == 0 {
            return Ok(Page {
                kvs: Vec::new(),
                more: false,
                revision,
                head: names.offset * SLOTS,
            });
        }
        options = options.with_revision(revision);
    }
    // The head is read in the same transaction, so that it belongs to the page's state.
    let txn = etcd_client::Txn::new().and_then([
        TxnOp::get(names.head(), None),
        TxnOp::get(start, Some(options)),
    ]);
    let mut kv = kv.clone();
    let answer = match timeout(CALL_MAX, kv.txn(txn)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(read_error(names, at, &error)),
        Err(_) => return Err(no_answer()),
    };
    let revision = answer.header().map_or(0, |header| header.revision());
    let mut gets = answer.op_responses().into_iter().filter_map(|op| match op {
        TxnOpResponse::Get(get) => Some(get),
        _ => None,
    });
    let (Some(head), Some(mut page)) = (gets.next(), gets.next()) else {
        return Err(StoreError::Unavailable("etcd: malformed answer".to_owned()));
    };
    Ok(Page {
        more: page.more(),
        kvs: page.take_kvs(),
        revision,
        head: head_version(names, head.kvs().first()),
    })
}

fn read_error(names: &Names, at: Option<i64>, error: &etcd_client::Error) -> StoreError {
    let wanted = at.map_or(0, |revision| names.version(revision, WHOLE));
    let text = error.to_string();
    if text.contains("has been compacted") {
        // etcd does not say here what it kept; anything above the wanted revision is true.
        let oldest = wanted + 1;
        return StoreError::Compacted { wanted, oldest };
    }
    codec::error(Kind::Read, error)
}

/// Hands a call to [`serve_current`].
pub(super) async fn ask_current(calls: &mpsc::Sender<Answer>) -> Result<Version, StoreError> {
    let (answer, outcome) = oneshot::channel();
    if calls.send(answer).await.is_err() {
        return Err(StoreError::Unavailable("the store was closed".to_owned()));
    }
    outcome.await.unwrap_or_else(|_| Err(no_answer()))
}

/// The type of the channel to [`serve_current`].
pub(super) type Calls = mpsc::Sender<Answer>;
