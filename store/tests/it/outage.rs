//! etcd away for a while, a second server on the same prefix, and a version floor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use rota_store::{EtcdOptions, EtcdStore, Expect, Store, StoreError, Txn};

use crate::support::{Etcd, PATIENCE, collect, create, guard, list_all, put};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_etcd_is_reported_soon_and_everything_recovers() {
    let Some(mut etcd) = Etcd::start() else {
        return;
    };
    let store: Arc<dyn Store> = etcd.connect("outage").await;
    let from = create(&store, "/o/a", "x").await;
    let mut watch = store.watch(from).await.unwrap();
    etcd.freeze();
    let write = || Txn {
        guards: vec![],
        writes: vec![put("/o/b", "x")],
    };
    // The first write may have got through; from then on nothing was written.
    let started = Instant::now();
    let first = store.commit(write()).await;
    assert!(
        matches!(
            first,
            Err(StoreError::Unknown(_) | StoreError::Unavailable(_))
        ),
        "{first:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(6));
    let started = Instant::now();
    let (second, current) = tokio::join!(store.commit(write()), store.current());
    assert!(
        matches!(second, Err(StoreError::Unavailable(_))),
        "{second:?}"
    );
    assert!(
        matches!(current, Err(StoreError::Unavailable(_))),
        "{current:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(6));
    // The watch notices the half-open connection by itself.
    let ended = loop {
        match tokio::time::timeout(PATIENCE, watch.next()).await.unwrap() {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("a watch never just ends"),
        }
    };
    assert!(matches!(ended, StoreError::Unavailable(_)), "{ended:?}");
    etcd.thaw();
    let deadline = Instant::now() + PATIENCE;
    let version = loop {
        match store.commit(write()).await {
            Ok(versions) => break versions[0],
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    let events = collect(&store, from, version).await;
    assert_eq!(events.last().unwrap().version, version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_share_a_store_and_fences_hold() {
    let Some(etcd) = Etcd::start() else {
        return;
    };
    let one: Arc<dyn Store> = etcd.connect("two").await;
    let two: Arc<dyn Store> = etcd.connect("two").await;
    assert_eq!(one.info().incarnation, two.info().incarnation);
    let start = one.current().await.unwrap();
    create(&one, "/fence/x", "1").await;
    let fenced = |term: &'static str, name: &str| Txn {
        guards: vec![guard(
            "/fence/x",
            Expect::Value(bytes::Bytes::from_static(term.as_bytes())),
        )],
        writes: vec![put(name, term)],
    };
    for i in 0..20 {
        two.commit(fenced("1", &format!("/t/{i}"))).await.unwrap();
    }
    // The term changes through one server; the other's leader is out from that moment.
    let raise = Txn {
        guards: vec![guard("/fence/x", Expect::Value(b"1"[..].into()))],
        writes: vec![put("/fence/x", "2")],
    };
    one.commit(raise).await.unwrap();
    let late = two.commit(fenced("1", "/t/late")).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
    let last = two.commit(fenced("2", "/t/now")).await.unwrap()[0];
    let (a, b) = tokio::join!(collect(&one, start, last), collect(&two, start, last));
    assert_eq!(a, b);
    assert_eq!(a.len(), 23);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_floor_lifts_a_restored_store() {
    let Some(etcd) = Etcd::start() else {
        return;
    };
    let old: Arc<dyn Store> = etcd.connect("floor").await;
    let version = create(&old, "/f/a", "x").await;
    let options = EtcdOptions {
        endpoints: vec![etcd.url.clone()],
        prefix: "/floor".to_owned(),
        history_time: Duration::ZERO,
        version_floor: version + 5_000_000,
        ..EtcdOptions::default()
    };
    let store: Arc<dyn Store> = EtcdStore::connect(options).await.unwrap();
    assert_ne!(store.info().incarnation, old.info().incarnation);
    assert!(store.current().await.unwrap() > version + 5_000_000);
    let stale = store.watch(version).await.err();
    assert!(
        matches!(stale, Some(StoreError::Compacted { .. })),
        "{stale:?}"
    );
    let (items, at) = list_all(&store, "/f/").await;
    assert_eq!(items.len(), 1);
    let next = create(&store, "/f/b", "x").await;
    assert_eq!(collect(&store, at, next).await.len(), 1);
}
