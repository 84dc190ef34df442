use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::Mutex;
use rota_api::Queue;
use rota_controllers::runtime::{Informer, Rest, Source};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::world::World;

const QUEUES: &str = "/apis/rota.dev/v1/queues";

/// A client whose watches break: cut in the middle of a line, gone silent, or told 410.
fn flaky(world: &World) -> kube::Client {
    let client = world.client("rota:gc");
    let count = Arc::new(AtomicU64::new(0));
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (client, count) = (client.clone(), count.clone());
        async move {
            let watch = request
                .uri()
                .query()
                .is_some_and(|q| q.contains("watch=true"));
            let response = client.send(request).await?;
            if !watch {
                return Ok::<_, kube::Error>(response.map(BodyExt::boxed_unsync));
            }
            let n = count.fetch_add(1, Ordering::Relaxed);
            let (head, body) = response.into_parts();
            let frames =
                futures::stream::unfold((body, 0u64), move |(mut body, sent)| async move {
                    if sent > 3 + n % 4 {
                        match n % 3 {
                            0 => return None,
                            1 => std::future::pending::<()>().await,
                            _ => {
                                let gone = json!({"type": "ERROR", "object": {"kind": "Status",
                                "status": "Failure", "reason": "Expired", "code": 410}});
                                let line = bytes::Bytes::from(format!("{gone}\n"));
                                return Some((Ok(http_body::Frame::data(line)), (body, 0)));
                            }
                        }
                    }
                    let frame = body.frame().await?;
                    let cut = frame.map(|f| {
                        let data = f.into_data().unwrap_or_default();
                        // The last frame of every third watch is torn.
                        let keep = if n % 3 == 0 && sent == 3 + n % 4 {
                            data.len() / 2
                        } else {
                            data.len()
                        };
                        http_body::Frame::data(data.slice(..keep))
                    });
                    Some((cut, (body, sent + 1)))
                });
            let body = http_body_util::StreamBody::new(frames);
            Ok(http::Response::from_parts(
                head,
                BodyExt::boxed_unsync(body),
            ))
        }
    });
    kube::Client::new(service, "default")
}

#[tokio::test(start_paused = true)]
async fn every_change_is_seen_once_and_in_order_over_watches_that_break() {
    let world = World::start().await;
    let stop = CancellationToken::new();
    let informer = Informer::<Queue>::start(
        Rest::new(flaky(&world)),
        Source::path(QUEUES),
        &[],
        3,
        stop.clone(),
    );
    informer.synced().await;
    let seen: Arc<Mutex<BTreeMap<String, (String, u64)>>> = Arc::default();
    let record = seen.clone();
    let _guard = informer.on_change(move |change| {
        let mut seen = record.lock();
        let name = change.key.name().to_string();
        let version = |o: &Queue| {
            o.metadata
                .resource_version
                .clone()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        // What a handler is told continues what it was told before.
        let before = seen.get(&name).map(|(_, v)| *v);
        assert_eq!(before, change.old.as_deref().map(version), "{name}");
        match &change.new {
            Some(new) => {
                assert!(before.is_none_or(|b| b < version(new)), "{name} went back");
                seen.insert(name, (new.metadata.uid.clone().unwrap(), version(new)));
            }
            None => {
                seen.remove(&name);
            }
        }
    });
    let mut last = 0u64;
    for round in 0..300u32 {
        let name = format!("q{}", round % 17);
        let path = format!("{QUEUES}/{name}");
        let answer = if round % 5 == 4 {
            world.admin.delete(&path, &json!({})).await
        } else {
            let body = json!({"apiVersion": "rota.dev/v1", "kind": "Queue",
                "metadata": {"name": name, "annotations": {"round": round.to_string()}}, "spec": {}});
            match world.admin.post(QUEUES, &body).await {
                Ok(made) => Ok(made),
                Err(_) => {
                    world
                        .admin
                        .patch(&path, &json!({"metadata": body["metadata"]}))
                        .await
                }
            }
        };
        if let Ok(object) = answer
            && let Some(version) = object["metadata"]["resourceVersion"].as_str()
        {
            last = last.max(version.parse().unwrap());
        }
        tokio::time::sleep(Duration::from_millis(u64::from(round % 7) * 50)).await;
    }
    assert!(informer.observed(last, Duration::from_secs(120)).await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (queues, _) = world.admin.list::<Queue>(QUEUES, "").await.unwrap();
    let there: BTreeMap<String, u64> = queues
        .iter()
        .map(|q| {
            let version = q
                .metadata
                .resource_version
                .clone()
                .unwrap()
                .parse()
                .unwrap();
            (q.metadata.name.clone().unwrap(), version)
        })
        .collect();
    let told: BTreeMap<String, u64> = seen
        .lock()
        .iter()
        .map(|(name, (_, v))| (name.clone(), *v))
        .collect();
    assert_eq!(there, told);
    stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_long_list_is_read_in_pages_and_a_new_leader_can_catch_up() {
    let world = World::start().await;
    for i in 0..1234 {
        let body = json!({"apiVersion": "rota.dev/v1", "kind": "Queue",
            "metadata": {"name": format!("q{i}")}, "spec": {}});
        world.admin.post(QUEUES, &body).await.unwrap();
    }
    let stop = CancellationToken::new();
    let rest = Rest::new(world.client("rota:gc"));
    let informer = Informer::<Queue>::start(rest, Source::path(QUEUES), &[], 3, stop.clone());
    informer.synced().await;
    assert_eq!(informer.cache().len(), 1235, "with `default`");
    // A write of another kind moves the version on without an event of this one.
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}});
    let path = "/api/v1/namespaces/default/configmaps";
    let map = world.admin.post(path, &map).await.unwrap();
    let version = map["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let start = tokio::time::Instant::now();
    informer.catch_up(version).await;
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    stop.cancel();
}
