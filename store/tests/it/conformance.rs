//! One set of cases, run against every backend: what the `Store` trait promises.

mod history;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use rota_store::{
    Event, Expect, Guard, ListRequest, Record, Store, StoreError, TXN_BYTES_MAX, TXN_WRITES_MAX,
    Txn, Version, Write,
};

use crate::support::{
    collect, create, delete, guard, key, list_all, put, put_txn, status, under, update, value,
};

macro_rules! on_every_backend {
    ($($case:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(crate::support::memory().await).await;
            })*
        }
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let (store, _dir) = crate::support::embedded().await;
                super::$case(store).await;
            })*
        }
        #[cfg(feature = "etcd")]
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                if let Some(store) = crate::support::etcd(stringify!($case)).await {
                    super::$case(store).await;
                }
            })*
        }
    };
}

on_every_backend! {
    every_write_gets_its_own_growing_version,
    a_get_sees_what_was_acknowledged,
    guards_of_all_kinds,
    a_conflict_answers_the_record_and_changes_nothing,
    invalid_transactions_are_refused,
    transactions_handed_over_together_fare_each_by_itself,
    a_list_at_a_version_is_one_snapshot_over_all_its_pages,
    a_list_pages_in_key_order_and_keeps_to_its_prefix,
    a_watch_resumes_after_every_single_event,
    a_live_watch_sees_concurrent_writers_in_order,
    compaction_edges,
    versions_in_the_future_are_refused,
    concurrent_writers_each_get_their_own_answer,
    writers_of_one_key_all_get_a_decision,
    a_transaction_moves_or_does_not,
    expiry_removes_what_is_due_and_nothing_else,
    a_resume_point_can_be_listed_and_resumed,
    a_slow_watch_is_cut_or_catches_up,
    large_transactions_fit,
    current_covers_everything_acknowledged,
}

use history::*;

type Shared = Arc<dyn Store>;

async fn every_write_gets_its_own_growing_version(store: Shared) {
    let mut last = store.current().await.unwrap();
    for round in 0..5 {
        let keys = (0..7).map(|i| put(&format!("/v/{i}"), &format!("{round}")));
        let versions = store
            .commit(Txn {
                guards: vec![],
                writes: keys.collect(),
            })
            .await
            .unwrap();
        assert_eq!(versions.len(), 7);
        for version in versions {
            assert!(version > last, "{version} after {last}");
            last = version;
        }
    }
    let (items, _) = list_all(&store, "/v/").await;
    let listed: Vec<Version> = items.iter().map(|record| record.version).collect();
    assert!(listed.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(listed.last(), Some(&last));
}

async fn a_get_sees_what_was_acknowledged(store: Shared) {
    assert_eq!(store.get("/g/a").await.unwrap(), None);
    let version = create(&store, "/g/a", "one").await;
    let found = store.get("/g/a").await.unwrap().unwrap();
    assert_eq!((found.version, found.value), (version, value("one")));
    assert_eq!(found.expires_at, None);
    delete(&store, "/g/a", version).await;
    assert_eq!(store.get("/g/a").await.unwrap(), None);
    // Not a prefix match.
    create(&store, "/g/ab", "x").await;
    assert_eq!(store.get("/g/a").await.unwrap(), None);
}

async fn guards_of_all_kinds(store: Shared) {
    let version = create(&store, "/k/a", "one").await;
    let attempt = |expect: Expect, on: &str| {
        store.commit(Txn {
            guards: vec![Guard {
                key: key(on),
                expect,
            }],
            writes: vec![put("/k/other", "x")],
        })
    };
    attempt(Expect::Version(version), "/k/a").await.unwrap();
    attempt(Expect::Value(value("one")), "/k/a").await.unwrap();
    attempt(Expect::Absent, "/k/none").await.unwrap();
    let mut refused = Vec::new();
    refused.push(attempt(Expect::Absent, "/k/a").await);
    refused.push(attempt(Expect::Version(version + 1), "/k/a").await);
    refused.push(attempt(Expect::Version(version - 1), "/k/a").await);
    refused.push(attempt(Expect::Value(value("two")), "/k/a").await);
    refused.push(attempt(Expect::Value(value("on")), "/k/a").await);
    refused.push(attempt(Expect::Value(value("one")), "/k/none").await);
    refused.push(attempt(Expect::Version(version), "/k/none").await);
    for outcome in refused {
        assert!(
            matches!(outcome, Err(StoreError::Conflict { .. })),
            "{outcome:?}"
        );
    }
    // Two guards on one key, and the second one fails.
    let both = Txn {
        guards: vec![
            guard("/k/a", Expect::Version(version)),
            guard("/k/a", Expect::Value(value("no"))),
        ],
        writes: vec![put("/k/a", "two")],
    };
    let refused = store.commit(both).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })));
}

async fn a_conflict_answers_the_record_and_changes_nothing(store: Shared) {
    let version = create(&store, "/c/a", "one").await;
    let before = store.current().await.unwrap();
    let refused = store
        .commit(Txn {
            guards: vec![
                guard("/c/none", Expect::Absent),
                guard("/c/a", Expect::Version(version + 7)),
            ],
            writes: vec![put("/c/none", "x"), put("/c/a", "two")],
        })
        .await;
    match refused {
        Err(StoreError::Conflict { guard, actual }) => {
            assert_eq!(guard.key.as_ref(), "/c/a");
            let actual = actual.unwrap();
            assert_eq!((actual.version, actual.value), (version, value("one")));
        }
        other => panic!("{other:?}"),
    }
    let absent = store
        .commit(Txn {
            guards: vec![guard("/c/none", Expect::Version(3))],
            writes: vec![put("/c/a", "two")],
        })
        .await;
    match absent {
        Err(StoreError::Conflict { actual, .. }) => assert_eq!(actual, None),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.current().await.unwrap(), before);
    assert_eq!(store.get("/c/none").await.unwrap(), None);
}

async fn invalid_transactions_are_refused(store: Shared) {
    let version = create(&store, "/i/a", "x").await;
    let before = store.current().await.unwrap();
    let txn = |guards: Vec<Guard>, writes: Vec<Write>| Txn { guards, writes };
    let remove = || Write::Delete { key: key("/i/a") };
    let invalid = [
        txn(vec![], vec![]),
        txn(vec![], vec![put("/i/b", "1"), put("/i/b", "2")]),
        txn(vec![], vec![remove()]),
        txn(vec![guard("/i/a", Expect::Absent)], vec![remove()]),
        txn(
            vec![guard("/i/b", Expect::Version(version))],
            vec![remove()],
        ),
        txn(vec![], vec![put("", "1")]),
    ];
    for txn in invalid {
        let outcome = store.commit(txn).await;
        assert!(
            matches!(outcome, Err(StoreError::Invalid(_))),
            "{outcome:?}"
        );
    }
    let many = (0..=TXN_WRITES_MAX).map(|i| put(&format!("/i/{i}"), "1"));
    let big = "x".repeat(TXN_BYTES_MAX + 1);
    for writes in [many.collect(), vec![put("/i/big", &big)]] {
        let outcome = store.commit(txn(vec![], writes)).await;
        assert!(
            matches!(outcome, Err(StoreError::TooLarge(_))),
            "{outcome:?}"
        );
    }
    assert_eq!(store.current().await.unwrap(), before);
}

async fn transactions_handed_over_together_fare_each_by_itself(store: Shared) {
    let taken = create(&store, "/all/taken", "x").await;
    // More than any backend commits at once, on either side of the bad ones.
    let fresh = |i: usize| Txn {
        guards: vec![guard(&format!("/all/{i}"), Expect::Absent)],
        writes: vec![put(&format!("/all/{i}"), &format!("{i}"))],
    };
    let mut txns: Vec<Txn> = (0..1500).map(fresh).collect();
    txns[3] = Txn {
        guards: vec![guard("/all/taken", Expect::Absent)],
        writes: vec![put("/all/taken", "y")],
    };
    txns[700] = Txn::default();
    txns[1499].writes[0] = put("no-slash", "x");
    // The same key again: after the first of them, whatever the grouping.
    txns[1200] = put_txn("/all/taken", taken, "second");
    let outcomes = store.commit_all(txns).await;
    assert_eq!(outcomes.len(), 1500);
    for (i, outcome) in outcomes.iter().enumerate() {
        match i {
            3 => assert!(
                matches!(outcome, Err(StoreError::Conflict { .. })),
                "{outcome:?}"
            ),
            700 | 1499 => assert!(
                matches!(outcome, Err(StoreError::Invalid(_))),
                "{outcome:?}"
            ),
            _ => assert!(
                matches!(outcome, Ok(versions) if versions.len() == 1),
                "{i}: {outcome:?}"
            ),
        }
    }
    let (items, _) = list_all(&store, "/all/").await;
    assert_eq!(items.len(), 1500 - 4 + 1);
    for record in &items {
        let name = record.key.strip_prefix("/all/").unwrap();
        let (i, text) = match name {
            "taken" => (1200, "second"),
            number => (number.parse().unwrap(), number),
        };
        assert_eq!(record.value, value(text));
        assert_eq!(outcomes[i].as_ref().unwrap(), &[record.version]);
    }
    assert!(store.commit_all(Vec::new()).await.is_empty());
}

async fn a_list_at_a_version_is_one_snapshot_over_all_its_pages(store: Shared) {
    let mut versions = BTreeMap::new();
    for i in 0..20 {
        let name = format!("/s/{i:02}");
        versions.insert(name.clone(), create(&store, &name, "old").await);
    }
    create(&store, "/t/outside", "x").await;
    let (before, at) = list_all(&store, "/s/").await;
    assert_eq!(before.len(), 20);

    let mut seen: Vec<Record> = Vec::new();
    let mut after = None;
    let mut round = 0;
    loop {
        let page = store
            .list(ListRequest {
                prefix: "/s/".into(),
                after: after.take(),
                limit: 3,
                at: Some(at),
            })
            .await
            .unwrap();
        assert_eq!(page.version, at);
        assert!(page.items.len() <= 3);
        seen.extend(page.items);
        // Between the pages: change one, remove one, add one, on both sides of the position.
        let (gone, changed) = (format!("/s/{round:02}"), format!("/s/{:02}", 19 - round));
        if let Some(version) = versions.remove(&gone) {
            delete(&store, &gone, version).await;
        }
        if let Some(version) = versions.remove(&changed) {
            update(&store, &changed, version, "new").await;
        }
        create(&store, &format!("/s/{round:02}-new"), "x").await;
        round += 1;
        if !page.more {
            break;
        }
        after = seen.last().map(|record| record.key.to_string());
    }
    assert_eq!(seen, before);
    let (now, version) = list_all(&store, "/s/").await;
    assert!(version > at);
    assert_ne!(now, before);
}

async fn a_list_pages_in_key_order_and_keeps_to_its_prefix(store: Shared) {
    for name in ["/p/b", "/p/a", "/p/c", "/p0", "/o/z", "/p/a/x", "/q"] {
        create(&store, name, name).await;
    }
    let names =
        |records: &[Record]| -> Vec<String> { records.iter().map(|r| r.key.to_string()).collect() };
    let (all, _) = list_all(&store, "/p/").await;
    assert_eq!(names(&all), ["/p/a", "/p/a/x", "/p/b", "/p/c"]);
    let page = store
        .list(ListRequest {
            prefix: "/p/".into(),
            after: Some("/p/a".into()),
            limit: 2,
            at: None,
        })
        .await
        .unwrap();
    assert_eq!(names(&page.items), ["/p/a/x", "/p/b"]);
    assert!(page.more);
    let page = store
        .list(ListRequest {
            prefix: "/p/".into(),
            after: Some("/p/b".into()),
            limit: 1,
            at: None,
        })
        .await
        .unwrap();
    assert_eq!(names(&page.items), ["/p/c"]);
    assert!(
        !page.more,
        "an exactly full last page has nothing behind it"
    );
    let (none, _) = list_all(&store, "/none/").await;
    assert!(none.is_empty());
}

async fn tangled_history(store: &Shared) -> Vec<Version> {
    let mut held: BTreeMap<String, Version> = BTreeMap::new();
    let mut all = Vec::new();
    for round in 0..8 {
        let mut txn = Txn::default();
        for i in 0..6 {
            let name = format!("/h/{}", (round * 5 + i * 3) % 11);
            if txn.writes.iter().any(|write| **write.key() == *name) {
                continue;
            }
            match held.get(&name) {
                Some(version) if (round + i) % 3 == 0 => {
                    txn.guards.push(guard(&name, Expect::Version(*version)));
                    txn.writes.push(Write::Delete { key: key(&name) });
                }
                _ => txn.writes.push(put(&name, &format!("{round}.{i}"))),
            }
        }
        let writes = txn.writes.clone();
        let versions = store.commit(txn).await.unwrap();
        for (write, version) in writes.iter().zip(&versions) {
            match write {
                Write::Put { key, .. } => held.insert(key.to_string(), *version),
                Write::Delete { key } => held.remove(key.as_ref()),
            };
        }
        all.extend(versions);
    }
    all
}

async fn concurrent_writers_each_get_their_own_answer(store: Shared) {
    // Half of the units are refused by their own guard; the combiner may not mix them up.
    let taken = create(&store, "/m/taken", "x").await;
    let before = store.stats();
    let units = (0..300).map(|i| {
        let store = store.clone();
        async move {
            let expect = match i % 3 {
                0 => Expect::Absent,
                _ => Expect::Version(taken),
            };
            let txn = Txn {
                guards: vec![guard("/m/taken", expect)],
                writes: vec![put(&format!("/m/u/{i}"), &format!("{i}"))],
            };
            (i, store.commit(txn).await)
        }
    });
    let mut applied = 0;
    for (i, outcome) in join_all(units).await {
        match outcome {
            Ok(versions) => {
                assert_ne!(i % 3, 0, "unit {i} should have been refused");
                let found = store.get(&format!("/m/u/{i}")).await.unwrap().unwrap();
                assert_eq!(found.version, versions[0]);
                assert_eq!(found.value, value(&format!("{i}")));
                applied += 1;
            }
            Err(StoreError::Conflict { actual, .. }) => {
                assert_eq!(i % 3, 0, "unit {i} should have applied");
                assert_eq!(actual.unwrap().version, taken);
                assert_eq!(store.get(&format!("/m/u/{i}")).await.unwrap(), None);
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(applied, 200);
    let after = store.stats();
    assert_eq!(after.commits - before.commits, 200);
    assert_eq!(after.writes - before.writes, 200);
    assert_eq!(after.conflicts - before.conflicts, 100);
    assert!(after.groups > before.groups);
}

async fn writers_of_one_key_all_get_a_decision(store: Shared) {
    const WRITERS: usize = 12;
    const EACH: usize = 10;
    create(&store, "/n/count", "0").await;
    let writers = (0..WRITERS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while done < EACH {
                let found = store.get("/n/count").await.unwrap().unwrap();
                let count: usize = std::str::from_utf8(&found.value).unwrap().parse().unwrap();
                let txn = put_txn("/n/count", found.version, &(count + 1).to_string());
                match store.commit(txn).await {
                    Ok(_) => done += 1,
                    Err(StoreError::Conflict { .. }) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
        })
    });
    for outcome in join_all(writers).await {
        outcome.unwrap();
    }
    let found = store.get("/n/count").await.unwrap().unwrap();
    assert_eq!(found.value, value(&(WRITERS * EACH).to_string()));
    // Unguarded writes of one key queue behind each other; each gets its own version.
    let writes = (0..50).map(|i| {
        let txn = Txn {
            guards: vec![],
            writes: vec![put("/n/plain", &i.to_string())],
        };
        store.commit(txn)
    });
    let mut versions = Vec::new();
    for outcome in join_all(writes).await {
        versions.extend(outcome.unwrap());
    }
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), 50);
    let found = store.get("/n/plain").await.unwrap().unwrap();
    assert_eq!(Some(&found.version), versions.last());
}

async fn a_transaction_moves_or_does_not(store: Shared) {
    let mut version = create(&store, "/a/here", "token").await;
    let mut here = true;
    for _ in 0..6 {
        let (from, to) = if here {
            ("/a/here", "/a/there")
        } else {
            ("/a/there", "/a/here")
        };
        let txn = Txn {
            guards: vec![
                guard(from, Expect::Version(version)),
                guard(to, Expect::Absent),
            ],
            writes: vec![Write::Delete { key: key(from) }, put(to, "token")],
        };
        let versions = store.commit(txn.clone()).await.unwrap();
        assert!(store.commit(txn).await.is_err(), "only once");
        version = versions[1];
        here = !here;
        let (items, _) = list_all(&store, "/a/").await;
        assert_eq!(items.len(), 1);
        assert_eq!((items[0].key.as_ref(), items[0].version), (to, version));
    }
}

async fn expiry_removes_what_is_due_and_nothing_else(store: Shared) {
    let record = |name: String, expires_at: Option<u64>| Txn {
        guards: vec![],
        writes: vec![Write::Put {
            key: key(&name),
            value: value("x"),
            expires_at,
        }],
    };
    let mut records = Vec::new();
    for i in 0..150u64 {
        let expires_at = (i % 3 != 0).then_some(1000 + i);
        records.push(store.commit(record(format!("/e/{i:03}"), expires_at)));
    }
    records.push(store.commit(record("/other/a".into(), Some(1))));
    for outcome in join_all(records).await {
        outcome.unwrap();
    }
    let found = store.get("/e/001").await.unwrap().unwrap();
    assert_eq!(found.expires_at, Some(1001));
    let from = store.current().await.unwrap();
    let (one, two) = tokio::join!(store.expire("/e/", 1099), store.expire("/e/", 1099));
    assert_eq!(one.unwrap() + two.unwrap(), 66, "each is counted once");
    let (left, at) = list_all(&store, "/e/").await;
    assert_eq!(left.len(), 150 - 66);
    let due = |record: &Record| record.expires_at.is_some_and(|at| at <= 1099);
    assert!(!left.iter().any(due));
    assert!(store.get("/other/a").await.unwrap().is_some());
    // Every removal is an event with its own version.
    let events = collect(&store, from, at.min(store.current().await.unwrap())).await;
    assert_eq!(events.len(), 66);
    assert!(events.iter().all(|event| event.value.is_none()));
    assert_eq!(store.expire("/e/", 1099).await.unwrap(), 0);
}

async fn large_transactions_fit(store: Shared) {
    let text = "v".repeat(TXN_BYTES_MAX / TXN_WRITES_MAX);
    let writes = (0..TXN_WRITES_MAX).map(|i| put(&format!("/large/{i:03}"), &text));
    let txn = Txn {
        guards: (0..TXN_WRITES_MAX)
            .map(|i| guard(&format!("/large/{i:03}"), Expect::Absent))
            .collect(),
        writes: writes.collect(),
    };
    let from = store.current().await.unwrap();
    let versions = store.commit(txn).await.unwrap();
    assert_eq!(versions.len(), TXN_WRITES_MAX);
    let last = *versions.last().unwrap();
    let events = collect(&store, from, last).await;
    let seen: Vec<Version> = events.iter().map(|event| event.version).collect();
    assert_eq!(seen, versions);
    let (items, _) = list_all(&store, "/large/").await;
    assert_eq!(items.len(), TXN_WRITES_MAX);
}

async fn current_covers_everything_acknowledged(store: Shared) {
    let rounds = (0..20).map(|i| {
        let store = store.clone();
        async move {
            let acked = create(&store, &format!("/cur/{i}"), "x").await;
            let readers = (0..10).map(|_| store.current());
            for current in join_all(readers).await {
                assert!(current.unwrap() >= acked);
            }
            let (items, version) = list_all(&store, &format!("/cur/{i}")).await;
            assert!(!items.is_empty());
            assert!(version >= acked);
        }
    });
    join_all(rounds).await;
}
