//! Opening backends and writing short cases.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use rota_store::{
    EmbeddedOptions, EmbeddedStore, Event, Expect, Guard, ListRequest, MemoryStore, Record, Store,
    Txn, Version, Write,
};
use tempfile::TempDir;

/// Nothing in these tests takes this long on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub async fn memory() -> Arc<dyn Store> {
    MemoryStore::new()
}

/// Options for tests: any disk is large enough.
pub fn options() -> EmbeddedOptions {
    EmbeddedOptions {
        free_bytes_min: 0,
        ..EmbeddedOptions::default()
    }
}

pub async fn embedded() -> (Arc<dyn Store>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), options()).unwrap();
    (store, dir)
}

pub fn key(name: &str) -> Arc<str> {
    name.into()
}

pub fn value(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn guard(on: &str, expect: Expect) -> Guard {
    Guard {
        key: key(on),
        expect,
    }
}

pub fn put(name: &str, text: &str) -> Write {
    Write::Put {
        key: key(name),
        value: value(text),
        expires_at: None,
    }
}

/// Replaces exactly this version.
pub fn put_txn(name: &str, version: Version, text: &str) -> Txn {
    Txn {
        guards: vec![guard(name, Expect::Version(version))],
        writes: vec![put(name, text)],
    }
}

pub async fn create(store: &Arc<dyn Store>, name: &str, text: &str) -> Version {
    let txn = Txn {
        guards: vec![guard(name, Expect::Absent)],
        writes: vec![put(name, text)],
    };
    store.commit(txn).await.unwrap()[0]
}

pub async fn update(store: &Arc<dyn Store>, name: &str, version: Version, text: &str) -> Version {
    store.commit(put_txn(name, version, text)).await.unwrap()[0]
}

pub async fn delete(store: &Arc<dyn Store>, name: &str, version: Version) -> Version {
    let txn = Txn {
        guards: vec![guard(name, Expect::Version(version))],
        writes: vec![Write::Delete { key: key(name) }],
    };
    store.commit(txn).await.unwrap()[0]
}

/// Everything under a prefix now, and the version of that state.
pub async fn list_all(store: &Arc<dyn Store>, prefix: &str) -> (Vec<Record>, Version) {
    let request = ListRequest {
        prefix: prefix.into(),
        ..ListRequest::default()
    };
    let page = store.list(request).await.unwrap();
    assert!(!page.more);
    (page.items, page.version)
}

pub async fn under(store: &Arc<dyn Store>, prefix: &str, at: Option<Version>) -> Vec<Record> {
    let request = ListRequest {
        prefix: prefix.into(),
        at,
        ..ListRequest::default()
    };
    store.list(request).await.unwrap().items
}

/// Events after `from` up to `to`, from a fresh watch.
pub async fn collect(store: &Arc<dyn Store>, from: Version, to: Version) -> Vec<Event> {
    let mut watch = store.watch(from).await.unwrap();
    let mut events = Vec::new();
    let mut delivered = from;
    while delivered < to {
        let next = tokio::time::timeout(PATIENCE, watch.next()).await;
        let batch = next.expect("the watch is stuck").unwrap().unwrap();
        delivered = batch.version;
        events.extend(batch.events);
    }
    events.retain(|event| event.version <= to);
    events
}

/// A number of kibibytes from /proc/self/status.
pub fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(field));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.unwrap_or(0)
}
