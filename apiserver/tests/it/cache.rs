//! The cache against a model: random histories, pages at every version, watches from every version.

use proptest::prelude::*;
use serde_json::json;

use super::watches::events;
use super::*;

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        prop_oneof![
            (0u8..6, 0u8..3).prop_map(|(k, v)| Step::Put(k, v)),
            (0u8..6).prop_map(Step::Delete)
        ],
        1..25,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn every_state_can_be_listed_and_every_suffix_watched(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let api = Api::start().await;
            let mut states = vec![(version(&api.get(MAPS).await.ok()), api.get(MAPS).await.ok()["items"].clone())];
            for step in &steps {
                match step {
                    Step::Put(k, v) => {
                        let value = map(&format!("k{k}"), &format!("v{v}"));
                        let made = api.post(MAPS, &value).await;
                        if made.code == 409 {
                            let patch = json!({"metadata": value["metadata"], "data": value["data"]});
                            api.patch(&format!("{MAPS}/k{k}"), &patch).await.ok();
                        }
                    }
                    Step::Delete(k) => {
                        api.delete(&format!("{MAPS}/k{k}")).await;
                    }
                }
                let now = api.get(MAPS).await.ok();
                if version(&now) > states.last().unwrap().0 {
                    states.push((version(&now), now["items"].clone()));
                }
            }
            let last = states.last().unwrap().clone();
            for (at, items) in &states {
                let listed = api.get(&format!("{MAPS}?resourceVersion={at}&resourceVersionMatch=Exact")).await.ok();
                assert_eq!(&listed["items"], items);
                let seen = events(&api, &format!("resourceVersion={at}&timeoutSeconds=1"), usize::MAX).await;
                let mut model: std::collections::BTreeMap<String, Value> =
                    items.as_array().unwrap().iter().map(|o| (o["metadata"]["name"].as_str().unwrap().into(), o.clone())).collect();
                for event in seen {
                    let name = event["object"]["metadata"]["name"].as_str().unwrap().to_string();
                    let had = match event["type"].as_str().unwrap() {
                        "DELETED" => model.remove(&name).is_some(),
                        "ADDED" => model.insert(name, event["object"].clone()).is_none(),
                        _ => model.insert(name, event["object"].clone()).is_some(),
                    };
                    assert!(had, "{event}");
                }
                assert_eq!(json!(model.into_values().collect::<Vec<_>>()), last.1);
            }
        });
    }
}
