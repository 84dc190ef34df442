#![allow(clippy::unwrap_used)]

use super::*;
use crate::runtime::Verb;

fn world(contents: Vec<Content>) -> World {
    World {
        namespace: json!({
            "metadata": {"name": "x", "resourceVersion": "4", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"finalizers": ["other", "kubernetes"]},
        }),
        contents,
    }
}

fn content(name: &str, leaving: bool) -> Content {
    Content {
        target: Target {
            base: "/api/v1".into(),
            plural: "configmaps".into(),
            namespace: "x".into(),
            name: name.into(),
        },
        uid: Some("u".into()),
        leaving,
    }
}

#[test]
fn what_is_in_it_is_deleted_and_the_finalizer_stays() {
    let plan = reconcile(&world(vec![content("a", false), content("b", true)]));
    let names: Vec<&str> = plan.writes().map(|w| w.target.name.as_str()).collect();
    assert_eq!(names, ["a"]);
    assert_eq!(plan.next, crate::runtime::Next::After(AGAIN));
}

#[test]
fn an_empty_one_is_let_go_with_only_our_finalizer_taken() {
    let plan = reconcile(&world(vec![]));
    let write = plan.writes().next().unwrap();
    assert_eq!(write.verb, Verb::Put("finalize"));
    assert_eq!(write.body["spec"]["finalizers"], json!(["other"]));
    assert_eq!(
        write.body["metadata"]["resourceVersion"], "4",
        "as it was seen"
    );
}
