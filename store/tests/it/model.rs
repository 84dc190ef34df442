//! Random histories: memory and embedded against a plain map that keeps every state.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use rota_store::{EmbeddedStore, Expect, ListRequest, MemoryStore, Store, StoreError, Txn, Write};

use crate::support::{collect, guard, key, options, put};

#[derive(Clone, Debug)]
enum Act {
    /// Keys with what to do: guard kind and new value (`None` removes).
    Commit(Vec<(u8, u8, Option<u8>)>),
    /// List with a page size at a version so far back.
    List(usize, u64),
    /// Compact to so far back.
    Compact(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let write = (
        0..12u8,
        0..5u8,
        proptest::option::weighted(0.7, any::<u8>()),
    );
    prop_oneof![
        6 => proptest::collection::vec(write, 1..6).prop_map(Act::Commit),
        3 => (0..5usize, 0..20u64).prop_map(|(limit, back)| Act::List(limit, back)),
        1 => (0..30u64).prop_map(Act::Compact),
    ]
}

type State = BTreeMap<String, (u64, String)>;

#[derive(Default)]
struct Model {
    /// The state at every version; index = version.
    states: Vec<State>,
    compacted: u64,
}

async fn run(store: Arc<dyn Store>, acts: &[Act]) {
    let mut model = Model {
        states: vec![State::new()],
        compacted: 0,
    };
    for act in acts {
        let newest = model.states.len() as u64 - 1;
        match act {
            Act::Commit(writes) => {
                let mut txn = Txn::default();
                let mut state = model.states.last().unwrap().clone();
                let mut states = Vec::new();
                let mut holds = true;
                for (k, kind, new) in writes {
                    let name = format!("/m/{k:02}");
                    if txn.writes.iter().any(|write| **write.key() == *name) {
                        continue;
                    }
                    let held = model.states.last().unwrap().get(&name);
                    let version = held.map_or(1, |(version, _)| *version);
                    let expect = match kind {
                        0 => Expect::Absent,
                        1 => Expect::Version(version + 1),
                        2 => Expect::Value(held.map_or("?", |(_, v)| v).to_owned().into()),
                        _ => Expect::Version(version),
                    };
                    let fine = match kind {
                        0 => held.is_none(),
                        1 => false,
                        _ => held.is_some(),
                    };
                    // Puts go unguarded now and then.
                    if new.is_none() || *kind != 4 {
                        holds &= fine;
                        let absent = expect == Expect::Absent;
                        txn.guards.push(guard(&name, expect));
                        if new.is_none() && absent {
                            // A removal needs a guard that says it is there.
                            txn.guards.push(guard(&name, Expect::Version(version)));
                            holds = false;
                        }
                    }
                    let at = newest + states.len() as u64 + 1;
                    match new {
                        Some(new) => {
                            txn.writes.push(put(&name, &new.to_string()));
                            state.insert(name, (at, new.to_string()));
                        }
                        None => {
                            txn.writes.push(Write::Delete { key: key(&name) });
                            state.remove(&name);
                        }
                    }
                    states.push(state.clone());
                }
                match store.commit(txn).await {
                    Ok(versions) => {
                        assert!(holds);
                        assert_eq!(versions.len(), states.len());
                        assert_eq!(versions[0], newest + 1);
                        model.states.extend(states);
                    }
                    Err(StoreError::Conflict { guard, actual }) => {
                        assert!(!holds);
                        let held = model.states.last().unwrap().get(guard.key.as_ref());
                        assert_eq!(actual.map(|r| r.version), held.map(|(v, _)| *v));
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
            Act::List(limit, back) => {
                let at = newest.saturating_sub(*back);
                let mut seen = State::new();
                let mut after = None;
                loop {
                    let request = ListRequest {
                        prefix: "/m/".into(),
                        after: after.take(),
                        limit: *limit,
                        at: Some(at),
                    };
                    match store.list(request).await {
                        Ok(page) => {
                            assert_eq!(page.version, at);
                            after = page.items.last().map(|record| record.key.to_string());
                            for record in page.items {
                                let text = String::from_utf8(record.value.to_vec()).unwrap();
                                seen.insert(record.key.to_string(), (record.version, text));
                            }
                            if !page.more {
                                assert_eq!(seen, model.states[at as usize]);
                                break;
                            }
                        }
                        Err(StoreError::Compacted { oldest, .. }) => {
                            assert!(at < model.compacted);
                            assert_eq!(oldest, model.compacted);
                            break;
                        }
                        Err(other) => panic!("{other:?}"),
                    }
                }
            }
            Act::Compact(back) => {
                let at = newest.saturating_sub(*back);
                store.compact(at).await.unwrap();
                model.compacted = model.compacted.max(at);
            }
        }
    }
    // Events since the compacted version rebuild the newest state from the oldest.
    let newest = model.states.len() as u64 - 1;
    if model.compacted < newest {
        let mut state = model.states[model.compacted as usize].clone();
        for event in collect(&store, model.compacted, newest).await {
            match event.value {
                Some(value) => {
                    let text = String::from_utf8(value.to_vec()).unwrap();
                    state.insert(event.key.to_string(), (event.version, text));
                }
                None => drop(state.remove(event.key.as_ref())),
            }
            assert_eq!(state, model.states[event.version as usize]);
        }
        assert_eq!(&state, model.states.last().unwrap());
    }
}

fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn memory_is_the_model(acts in proptest::collection::vec(act(), 1..80)) {
        block_on(run(MemoryStore::new(), &acts));
    }
}

proptest! {
    // Each case opens a database.
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn embedded_is_the_model(acts in proptest::collection::vec(act(), 1..80)) {
        let dir = tempfile::tempdir().unwrap();
        block_on(run(EmbeddedStore::open(dir.path(), options()).unwrap(), &acts));
    }
}
