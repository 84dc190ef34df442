#![allow(clippy::unwrap_used)]

use super::*;

fn item(uid: &str, meta: Value) -> Item {
    let mut all = json!({"name": uid, "namespace": "n", "uid": uid, "resourceVersion": "3"});
    for (k, v) in meta.as_object().unwrap() {
        all[k] = v.clone();
    }
    Item {
        resource: Arc::new(Resource {
            base: "/api/v1".into(),
            group: String::new(),
            plural: "things".into(),
            kind: "Thing".into(),
            namespaced: true,
            verbs: Vec::new(),
        }),
        meta: Arc::new(serde_json::from_value(all).unwrap()),
    }
}

fn owner(uid: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Thing", "name": uid, "uid": uid, "blockOwnerDeletion": true})
}

fn told(world: World) -> Vec<String> {
    reconcile(&world)
        .writes()
        .map(|w| {
            let what = &w.body;
            let detail = if what["propagationPolicy"].is_string() {
                format!("delete {}", what["propagationPolicy"].as_str().unwrap())
            } else {
                assert!(w.resource_version.is_some());
                what["metadata"].to_string()
            };
            format!("{} {detail}", w.target.name)
        })
        .collect()
}

#[test]
fn owners_decide() {
    use Owner::{Absent, Present, Waiting};
    let child = || item("c", json!({"ownerReferences": [owner("a"), owner("b")]}));
    let cases: Vec<([Owner; 2], Vec<Item>, Vec<String>)> = vec![
        ([Present, Present], vec![], vec![]),
        ([Absent, Absent], vec![], vec!["c delete Background".into()]),
        (
            [Waiting, Absent],
            vec![],
            vec!["c delete Background".into()],
        ),
        (
            [Waiting, Absent],
            vec![item("d", json!({"ownerReferences": [owner("c")]}))],
            vec!["c delete Foreground".into()],
        ),
    ];
    for (owners, dependants, wanted) in cases {
        let world = World {
            item: child(),
            owners: vec![("a".into(), owners[0]), ("b".into(), owners[1])],
            dependants,
        };
        assert_eq!(told(world), wanted, "{owners:?}");
    }
    let world = World {
        item: child(),
        owners: vec![("a".into(), Absent), ("b".into(), Present)],
        dependants: vec![],
    };
    let plan = reconcile(&world);
    let left = plan.writes().next().unwrap().body["metadata"]["ownerReferences"].clone();
    assert_eq!(left.as_array().unwrap().len(), 1);
    assert_eq!(left[0]["uid"], "b");
}

#[test]
fn foreground_waits_for_blocking_dependants_and_orphan_lets_them_go_first() {
    let deleting = |finalizer: &str| {
        item(
            "a",
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer, "mine"]}),
        )
    };
    let child = || item("c", json!({"ownerReferences": [owner("a")]}));
    let world = |item: Item, dependants: Vec<Item>| World {
        item,
        owners: vec![],
        dependants,
    };
    assert!(told(world(deleting(FOREGROUND), vec![child()])).is_empty());
    assert_eq!(
        told(world(deleting(FOREGROUND), vec![])),
        ["a {\"finalizers\":[\"mine\"]}"]
    );
    let plan = reconcile(&world(deleting(ORPHAN), vec![child()]));
    assert_eq!(
        plan.stages.len(),
        2,
        "the finalizer goes only after the references"
    );
    assert_eq!(plan.stages[0][0].target.name, "c");
    assert_eq!(plan.stages[1][0].target.name, "a");
}

#[test]
fn the_graph_names_who_wants_a_look() {
    let kind = item("x", json!({})).resource;
    let object = |uid: &str, meta: Value| -> Arc<Meta> {
        let mut all = json!({"name": uid, "namespace": "n", "uid": uid});
        for (k, v) in meta.as_object().unwrap() {
            all[k] = v.clone();
        }
        Arc::new(serde_json::from_value(json!({"metadata": all})).unwrap())
    };
    let mut graph = Graph::default();
    let mut take = |old: Option<Arc<Meta>>, new: Option<Arc<Meta>>| {
        let key = Key::new("n", "k");
        graph.take(&kind, &Change { key, old, new })
    };
    let (a, c) = (
        object("a", json!({})),
        object("c", json!({"ownerReferences": [owner("a")]})),
    );
    assert!(take(None, Some(a.clone())).is_empty());
    assert_eq!(take(None, Some(c.clone())), ["c"]);
    assert_eq!(take(Some(a), None), ["c"], "its owner has gone");
    assert_eq!(
        take(Some(c), None),
        ["a"],
        "an owner may have waited for it"
    );
    assert!(graph.items.is_empty() && graph.dependants.is_empty());
}
