//! What a backend promises of its history: watches, compaction, old versions.

use super::*;

/// Builds a history with transactions of many writes, overwrites and removals.
pub(super) async fn a_watch_resumes_after_every_single_event(store: Shared) {
    let start = store.current().await.unwrap();
    let versions = tangled_history(&store).await;
    let last = *versions.last().unwrap();
    let history = collect(&store, start, last).await;
    let seen: Vec<Version> = history.iter().map(|event| event.version).collect();
    assert_eq!(seen, versions);
    for (i, from) in versions.iter().enumerate() {
        let rest = if i + 1 < versions.len() {
            collect(&store, *from, last).await
        } else {
            Vec::new()
        };
        assert_eq!(rest, history[i + 1..], "resumed after {from}");
    }
    // Replaying the history gives the list, at every transaction and at every version between.
    let mut state: BTreeMap<Arc<str>, Record> = BTreeMap::new();
    for event in history {
        let Event {
            version,
            key,
            value,
            expires_at,
        } = event;
        match value {
            Some(value) => {
                let record = Record {
                    key: key.clone(),
                    value,
                    version,
                    expires_at,
                };
                state.insert(key, record);
            }
            None => drop(state.remove(&key)),
        }
        if store.info().backend == "etcd" {
            // etcd's states are whole revisions; the last one is compared below.
            continue;
        }
        let page = under(&store, "/h/", Some(version)).await;
        let expected: Vec<Record> = state.values().cloned().collect();
        assert_eq!(page, expected, "state at {version}");
    }
    let (now, _) = list_all(&store, "/h/").await;
    assert_eq!(now, state.into_values().collect::<Vec<_>>());
}

pub(super) async fn a_live_watch_sees_concurrent_writers_in_order(store: Shared) {
    const WRITERS: usize = 8;
    const EACH: usize = 40;
    let from = store.current().await.unwrap();
    let mut watch = store.watch(from).await.unwrap();
    let writers = (0..WRITERS).map(|w| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut versions = Vec::new();
            for i in 0..EACH {
                let pair = Txn {
                    guards: vec![],
                    writes: vec![
                        put(&format!("/w/{w}/{}", i % 5), &format!("{i}")),
                        put(&format!("/w/{w}/x"), &format!("{i}")),
                    ],
                };
                versions.extend(store.commit(pair).await.unwrap());
            }
            versions
        })
    });
    let mut acked: Vec<Version> = Vec::new();
    for versions in join_all(writers).await {
        acked.extend(versions.unwrap());
    }
    acked.sort_unstable();
    let last = *acked.last().unwrap();
    let mut seen: Vec<Version> = Vec::new();
    let mut delivered = from;
    while delivered < last {
        let next = tokio::time::timeout(Duration::from_secs(20), watch.next());
        let batch = next.await.unwrap().unwrap().unwrap();
        assert!(batch.version > delivered);
        delivered = batch.version;
        for event in batch.events {
            assert!(event.version <= delivered);
            seen.push(event.version);
        }
    }
    assert_eq!(seen, acked);
}

pub(super) async fn compaction_edges(store: Shared) {
    let long_ago = store.current().await.unwrap();
    // A backend may keep one transaction more than it was asked to.
    create(&store, "/h/first", "x").await;
    let start = store.current().await.unwrap();
    let versions = tangled_history(&store).await;
    let last = *versions.last().unwrap();
    let history = collect(&store, start, last).await;
    // At the end of a transaction, in its middle, and at the newest version.
    let (ends, middle) = (versions[5], versions[versions.len() / 2]);
    for at in [ends, middle, last] {
        let state_before = under(&store, "/h/", Some(last)).await;
        store.compact(at).await.unwrap();
        store.compact(at).await.unwrap();
        // Never backwards, and no error either.
        store.compact(long_ago).await.unwrap();
        if at < last {
            let rest = collect(&store, at, last).await;
            let expected: Vec<Event> = history
                .iter()
                .filter(|event| event.version > at)
                .cloned()
                .collect();
            assert_eq!(rest, expected, "resume exactly at the compacted version");
        }
        let below = store.watch(long_ago).await;
        let error = match below {
            Ok(mut watch) => watch.next().await.unwrap().unwrap_err(),
            Err(error) => error,
        };
        match error {
            StoreError::Compacted { wanted, oldest } => {
                assert_eq!(wanted, long_ago);
                assert!(oldest > long_ago, "{oldest} {long_ago}");
            }
            other => panic!("{other:?}"),
        }
        let list = store
            .list(ListRequest {
                prefix: "/h/".into(),
                at: Some(long_ago),
                ..ListRequest::default()
            })
            .await;
        assert!(
            matches!(list, Err(StoreError::Compacted { .. })),
            "{list:?}"
        );
        assert_eq!(under(&store, "/h/", Some(last)).await, state_before);
    }
    // Life goes on.
    create(&store, "/h/after", "x").await;
    let point = store.current().await.unwrap();
    assert!(point > last);
    assert_eq!(collect(&store, last, point).await.len(), 1);
}

pub(super) async fn versions_in_the_future_are_refused(store: Shared) {
    create(&store, "/f/a", "x").await;
    let current = store.current().await.unwrap();
    let wanted = current + 5000;
    let list = store
        .list(ListRequest {
            prefix: "/f/".into(),
            at: Some(wanted),
            ..ListRequest::default()
        })
        .await;
    assert!(
        matches!(list, Err(StoreError::Future { wanted: w, .. }) if w == wanted),
        "{list:?}"
    );
    let watch = store.watch(wanted).await.err();
    assert!(
        matches!(watch, Some(StoreError::Future { .. })),
        "{watch:?}"
    );
    let compact = store.compact(wanted).await;
    assert!(
        matches!(compact, Err(StoreError::Future { .. })),
        "{compact:?}"
    );
}

pub(super) async fn a_resume_point_can_be_listed_and_resumed(store: Shared) {
    let versions = tangled_history(&store).await;
    let last = *versions.last().unwrap();
    for events_max in [0, 1, 5, 10, 10_000] {
        let point = store.resume_point(events_max).await.unwrap();
        let mut state: BTreeMap<Arc<str>, bytes::Bytes> = under(&store, "/h/", Some(point))
            .await
            .into_iter()
            .map(|record| (record.key, record.value))
            .collect();
        let current = store.current().await.unwrap();
        let events = if point < last {
            collect(&store, point, last).await
        } else {
            Vec::new()
        };
        if events_max <= 10 {
            assert!(events.len() <= events_max.max(6) * 2, "{}", events.len());
        }
        for event in events {
            match event.value {
                Some(value) => drop(state.insert(event.key, value)),
                None => drop(state.remove(&event.key)),
            }
        }
        let now: BTreeMap<_, _> = under(&store, "/h/", Some(current))
            .await
            .into_iter()
            .map(|record| (record.key, record.value))
            .collect();
        assert_eq!(state, now, "from {point} with {events_max}");
    }
}

pub(super) async fn a_slow_watch_is_cut_or_catches_up(store: Shared) {
    let from = store.current().await.unwrap();
    let mut slow = store.watch(from).await.unwrap();
    let text = "x".repeat(20_000);
    let before = status("VmRSS");
    let mut acked = Vec::new();
    for round in 0..30 {
        let writes = (0..50).map(|i| put(&format!("/slow/{i}"), &format!("{round}{text}")));
        let txn = Txn {
            guards: vec![],
            writes: writes.collect(),
        };
        acked.extend(store.commit(txn).await.unwrap());
    }
    let _ = before;
    store.compact(*acked.last().unwrap()).await.unwrap();
    // What it had buffered may still come, in order and without holes; then it ends with an
    // error, or it has seen everything.
    let mut seen = Vec::new();
    let cut = loop {
        let next = tokio::time::timeout(Duration::from_secs(20), slow.next());
        match next.await.unwrap() {
            Some(Ok(batch)) => seen.extend(batch.events.iter().map(|event| event.version)),
            Some(Err(error)) => break Some(error),
            None => panic!("a watch never just ends"),
        }
        if seen.len() == acked.len() {
            break None;
        }
    };
    assert_eq!(seen[..], acked[..seen.len()]);
    if let Some(error) = cut {
        assert!(
            matches!(
                error,
                StoreError::Compacted { .. } | StoreError::Unavailable(_)
            ),
            "{error:?}"
        );
        assert!(slow.next().await.is_none(), "one error, then the end");
    }
}
