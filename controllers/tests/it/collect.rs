use std::time::Duration;

use serde_json::{Value, json};

use crate::world::World;

const MAPS: &str = "/api/v1/namespaces/shop/configmaps";

async fn map(world: &World, name: &str, owners: &[&Value]) -> Value {
    let owners: Vec<Value> = owners
        .iter()
        .map(|o| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "name": o["metadata"]["name"],
                "uid": o["metadata"]["uid"], "blockOwnerDeletion": true})
        })
        .collect();
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "ownerReferences": owners}});
    world.admin.post(MAPS, &body).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_has_lost_its_owners_goes_and_what_is_orphaned_stays() {
    let world = World::start().await;
    world.namespace("shop").await;
    let controllers = world.controllers("c", &["gc"]);
    let a = map(&world, "a", &[]).await;
    let b = map(&world, "b", &[]).await;
    map(&world, "of-a", &[&a]).await;
    let both = map(&world, "of-both", &[&a, &b]).await;
    map(&world, "of-of-both", &[&both]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(world.get(&format!("{MAPS}/of-a")).await.is_some());
    world
        .admin
        .delete(&format!("{MAPS}/a"), &json!({}))
        .await
        .unwrap();
    world.until(&format!("{MAPS}/of-a"), |o| o.is_none()).await;
    // Kept by b alone, and it says so.
    world
        .until(&format!("{MAPS}/of-both"), |o| {
            o.is_some_and(|o| o["metadata"]["ownerReferences"].as_array().unwrap().len() == 1)
        })
        .await;
    world
        .admin
        .delete(
            &format!("{MAPS}/b"),
            &json!({"propagationPolicy": "Orphan"}),
        )
        .await
        .unwrap();
    world.until(&format!("{MAPS}/b"), |o| o.is_none()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let both = world.get(&format!("{MAPS}/of-both")).await.unwrap();
    assert!(
        both["metadata"]["ownerReferences"]
            .as_array()
            .is_none_or(|o| o.is_empty())
    );
    // In the foreground the owner goes last.
    world
        .admin
        .delete(
            &format!("{MAPS}/of-both"),
            &json!({"propagationPolicy": "Foreground"}),
        )
        .await
        .unwrap();
    world
        .until(&format!("{MAPS}/of-both"), |o| o.is_none())
        .await;
    assert!(world.get(&format!("{MAPS}/of-of-both")).await.is_none());
    controllers.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_of_another_namespace_or_uid_is_absent() {
    let world = World::start().await;
    world.namespace("shop").await;
    let controllers = world.controllers("c", &["gc"]);
    let foreign = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "f"}});
    let path = "/api/v1/namespaces/default/configmaps";
    let foreign = world.admin.post(path, &foreign).await.unwrap();
    map(&world, "crossed", &[&foreign]).await;
    world
        .until(&format!("{MAPS}/crossed"), |o| o.is_none())
        .await;
    let a = map(&world, "a", &[]).await;
    let mut older = a.clone();
    older["metadata"]["uid"] = json!("00000000-0000-0000-0000-000000000000");
    map(&world, "stale", &[&older]).await;
    world.until(&format!("{MAPS}/stale"), |o| o.is_none()).await;
    controllers.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_namespace_is_emptied_first() {
    let world = World::start().await;
    world.namespace("shop").await;
    map(&world, "a", &[]).await;
    let job = crate::world::job("j", json!({}));
    let jobs = "/apis/rota.dev/v1/namespaces/shop/jobs";
    world.admin.post(jobs, &job).await.unwrap();
    let controllers = world.controllers("c", &["namespace"]);
    world
        .admin
        .delete("/api/v1/namespaces/shop", &json!({}))
        .await
        .unwrap();
    world
        .until("/api/v1/namespaces/shop", |n| n.is_none())
        .await;
    assert!(world.get(&format!("{MAPS}/a")).await.is_none());
    assert!(world.get(&format!("{jobs}/j")).await.is_none());
    controllers.shut_down().await;
}
