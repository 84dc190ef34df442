use std::time::Duration;

use serde_json::json;

use super::*;

/// Reads events of a watch until `n` have come that are no bookmarks.
pub async fn events(api: &Api, query: &str, n: usize) -> Vec<Value> {
    let request = Request::get(format!("{MAPS}?watch=true&{query}"))
        .body(Body::empty())
        .unwrap();
    let mut body = api.raw(request).await.into_body();
    let mut text = String::new();
    let mut found = Vec::new();
    let read = async {
        while found.len() < n {
            let Some(frame) = body.frame().await else {
                break;
            };
            text.push_str(std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap());
            while let Some(end) = text.find('\n') {
                let line: String = text.drain(..=end).collect();
                let event: Value = serde_json::from_str(&line).unwrap();
                if event["type"] != "BOOKMARK" || query.contains("Bookmarks") {
                    found.push(event);
                }
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(20), read).await;
    found
}

fn brief(events: &[Value]) -> Vec<String> {
    events
        .iter()
        .map(|e| {
            format!(
                "{} {} {}",
                e["type"].as_str().unwrap(),
                e["object"]["metadata"]["name"].as_str().unwrap_or("-"),
                e["object"]["data"]["k"].as_str().unwrap_or("-")
            )
        })
        .collect()
}

async fn history(api: &Api) -> u64 {
    let start = version(&api.get(MAPS).await.ok());
    api.post(MAPS, &map("a", "1")).await.ok();
    api.post(MAPS, &map("b", "1")).await.ok();
    api.patch(
        &format!("{MAPS}/a"),
        &json!({"data": {"k": "2"}, "metadata": {"labels": {"v": "2"}}}),
    )
    .await
    .ok();
    api.patch(
        &format!("{MAPS}/a"),
        &json!({"data": {"k": "3"}, "metadata": {"labels": {"v": "1"}}}),
    )
    .await
    .ok();
    api.delete(&format!("{MAPS}/b")).await.ok();
    start
}

#[tokio::test(start_paused = true)]
async fn a_watch_resumes_after_every_single_event() {
    let api = Api::start().await;
    let start = history(&api).await;
    let all = events(&api, &format!("resourceVersion={start}"), 5).await;
    assert_eq!(
        brief(&all),
        [
            "ADDED a 1",
            "ADDED b 1",
            "MODIFIED a 2",
            "MODIFIED a 3",
            "DELETED b 1"
        ]
    );
    for (i, event) in all.iter().enumerate() {
        let v = version(&event["object"]);
        assert!(
            i == 0 || v > version(&all[i - 1]["object"]),
            "versions increase"
        );
        let rest = events(
            &api,
            &format!("resourceVersion={v}&timeoutSeconds=1"),
            5 - i,
        )
        .await;
        assert_eq!(rest, all[i + 1..], "after event {i}");
    }
}

#[tokio::test(start_paused = true)]
async fn selection_changes_look_like_creation_and_deletion() {
    let api = Api::start().await;
    let start = history(&api).await;
    let seen = events(
        &api,
        &format!("resourceVersion={start}&labelSelector=v%3D1"),
        5,
    )
    .await;
    assert_eq!(
        brief(&seen),
        [
            "ADDED a 1",
            "ADDED b 1",
            "DELETED a 1",
            "ADDED a 3",
            "DELETED b 1"
        ]
    );
    let named = events(
        &api,
        &format!("resourceVersion={start}&fieldSelector=metadata.name%3Db"),
        2,
    )
    .await;
    assert_eq!(brief(&named), ["ADDED b 1", "DELETED b 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_without_version_begins_with_what_there_is() {
    let api = Api::start().await;
    history(&api).await;
    let seen = events(
        &api,
        "allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
        2,
    )
    .await;
    assert_eq!(seen[0]["type"], "ADDED");
    assert_eq!(seen[1]["type"], "BOOKMARK");
    assert_eq!(
        seen[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    let quiet = events(
        &api,
        &format!(
            "allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds=12",
            version(&api.get(MAPS).await.ok())
        ),
        3,
    )
    .await;
    assert!(
        quiet.len() >= 2 && quiet.iter().all(|e| e["type"] == "BOOKMARK"),
        "{quiet:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn errors_of_a_watch_come_inside_the_stream() {
    let api = Api::start().await;
    let seen = events(&api, "resourceVersion=999999", 1).await;
    assert_eq!(
        (&seen[0]["type"], &seen[0]["object"]["code"]),
        (&json!("ERROR"), &json!(504))
    );
    let refused = api
        .get(&format!("{MAPS}?watch=true&resourceVersion=nonsense"))
        .await;
    refused.fails(400, "BadRequest");
}

#[tokio::test(start_paused = true)]
async fn a_table_watch_has_columns_once() {
    let api = Api::start().await;
    let start = history(&api).await;
    let request = Request::get(format!(
        "{MAPS}?watch=true&resourceVersion={start}&timeoutSeconds=1"
    ))
    .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
    .body(Body::empty())
    .unwrap();
    let bytes = api
        .raw(request)
        .await
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes();
    let tables: Vec<Value> = bytes
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    assert!(
        tables[0]["object"]["columnDefinitions"]
            .as_array()
            .is_some_and(|c| !c.is_empty())
    );
    assert!(
        tables[1]["object"]["columnDefinitions"]
            .as_array()
            .is_none_or(Vec::is_empty)
    );
    assert_eq!(tables[1]["object"]["kind"], "Table");
}
