//! Watches on etcd: other stores beside this one, and answers larger than we take.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use rota_store::{EtcdOptions, Store, Txn, Version};

use crate::support::{Etcd, connect, create, put};

async fn neighbour(etcd: &Etcd, prefix: &str, answer_bytes_max: Option<usize>) -> Arc<dyn Store> {
    let defaults = EtcdOptions::default();
    connect(&EtcdOptions {
        endpoints: vec![etcd.url.clone()],
        prefix: prefix.to_owned(),
        answer_bytes_max: answer_bytes_max.unwrap_or(defaults.answer_bytes_max),
        ..defaults
    })
    .await
}

/// Versions after `from` until `last`, over as many watches as it takes; and how many those were.
async fn watched(store: &Arc<dyn Store>, from: Version, last: Version) -> (Vec<Version>, usize) {
    let mut seen = vec![from];
    let mut watches = 0;
    let all = async {
        loop {
            watches += 1;
            let mut watch = store.watch(seen[seen.len() - 1]).await.unwrap();
            while let Some(Ok(batch)) = watch.next().await {
                seen.extend(batch.events.iter().map(|event| event.version));
                if batch.version >= last {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all)
        .await
        .unwrap();
    (seen.split_off(1), watches)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_whose_prefixes_begin_alike_do_not_see_each_other() {
    let Some(etcd) = Etcd::start() else { return };
    let mine = neighbour(&etcd, "/rota", None).await;
    let other = neighbour(&etcd, "/rota-test", None).await;
    let from = mine.current().await.unwrap();
    let mut versions = Vec::new();
    for i in 0..20 {
        create(&other, &format!("/n/{i}"), "theirs").await;
        versions.push(create(&mine, &format!("/n/{i}"), "mine").await);
        assert_eq!(mine.current().await.unwrap() / 1000, versions[i] / 1000);
        create(&other, &format!("/n/more-{i}"), "theirs").await;
    }
    let (seen, _) = watched(&mine, from, versions[19]).await;
    assert_eq!(seen, versions);
    let page = mine.list(Default::default()).await.unwrap();
    assert_eq!(page.items.len(), 20);
    assert!(page.items.iter().all(|record| record.value == "mine"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_missed_more_than_one_answer_may_hold_gets_it_in_pieces() {
    const TAKEN: usize = 3 << 20;
    let Some(etcd) = Etcd::start() else { return };
    let store = neighbour(&etcd, "/pieces", Some(TAKEN)).await;
    let from = create(&store, "/p/first", "x").await;
    let text = "x".repeat(10_000);
    let mut versions = Vec::new();
    for round in 0..10 {
        let writes = (0..100).map(|i| put(&format!("/p/{round}-{i}"), &text));
        let txn = Txn {
            guards: vec![],
            writes: writes.collect(),
        };
        versions.extend(store.commit(txn).await.unwrap());
    }
    assert!(versions.len() * text.len() > 3 * TAKEN);
    let (seen, watches) = watched(&store, from, versions[999]).await;
    assert_eq!(seen, versions);
    assert_eq!(watches, 2, "the whole was too large, the pieces were not");
}
