use std::time::Duration;

use rota_controllers::runtime::lease::Candidate;
use rota_controllers::runtime::{Clock, Failure, Rest, Timings};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::world::World;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/rota-system/leases/job";

fn candidate(world: &World, identity: &str) -> Candidate {
    Candidate::new(
        Rest::new(world.client("rota:job")),
        "job",
        identity,
        "",
        Timings::default(),
        Clock::tokio("2026-01-01T00:00:00Z".parse().unwrap()),
        1,
    )
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_a_dead_leader_is_replaced_after_its_lease() {
    let world = World::start().await;
    let stop = CancellationToken::new();
    let first = candidate(&world, "a").acquire(&stop).await.unwrap();
    // Nobody renews it: as if the process had died.
    let start = Instant::now();
    let second = candidate(&world, "b").acquire(&stop).await.unwrap();
    assert!(
        start.elapsed() >= Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert!(
        start.elapsed() < Duration::from_secs(7),
        "{:?}",
        start.elapsed()
    );
    assert!(second.term > first.term);
}

#[tokio::test(start_paused = true)]
async fn a_released_lease_is_taken_within_the_retry_time() {
    let world = World::start().await;
    let stop = CancellationToken::new();
    let a = candidate(&world, "a");
    let first = a.acquire(&stop).await.unwrap();
    a.release(first).await;
    let start = Instant::now();
    candidate(&world, "b").acquire(&stop).await.unwrap();
    assert!(
        start.elapsed() <= Duration::from_millis(1),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_kept_lease_is_never_taken_and_its_holder_renews() {
    let world = World::start().await;
    let stop = CancellationToken::new();
    let a = candidate(&world, "a");
    let mut first = a.acquire(&stop).await.unwrap();
    let before: Value = world.get(LEASE).await.unwrap();
    tokio::select! {
        _ = a.keep(&mut first, &stop) => panic!("lost without a reason"),
        _ = async { candidate(&world, "b").acquire(&stop).await } => panic!("taken from a live holder"),
        _ = tokio::time::sleep(Duration::from_secs(60)) => {}
    }
    let after: Value = world.get(LEASE).await.unwrap();
    assert_eq!(after["spec"]["holderIdentity"], "a");
    assert_ne!(before["spec"]["renewTime"], after["spec"]["renewTime"]);
    assert_eq!(
        before["spec"]["leaseTransitions"],
        after["spec"]["leaseTransitions"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_another_may_lead() {
    let world = World::start().await;
    let stop = CancellationToken::new();
    let a = candidate(&world, "a");
    let mut first = a.acquire(&stop).await.unwrap();
    // Somebody else holds the Lease now; renewals conflict.
    let mut lease = world.get(LEASE).await.unwrap();
    lease["spec"]["holderIdentity"] = json!("thief");
    lease["spec"]["leaseTransitions"] = json!(first.term + 1);
    world.admin.put(LEASE, &lease).await.unwrap();
    let start = Instant::now();
    a.keep(&mut first, &stop).await;
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_write_of_an_older_term_is_refused() {
    let world = World::start().await;
    let stop = CancellationToken::new();
    let a = candidate(&world, "a");
    let first = a.acquire(&stop).await.unwrap();
    let rest = Rest::new(world.client("rota:job")).fenced("rota-system", "job", first.term);
    let target = "/apis/rota.dev/v1/namespaces/default/jobs";
    world
        .admin
        .post(target, &crate::world::job("x", json!({})))
        .await
        .unwrap();
    let patch = json!({"metadata": {"annotations": {"a": "1"}}});
    rest.patch(&format!("{target}/x"), &patch).await.unwrap();
    // Released, then taken: from then on the old term writes nothing.
    a.release(first).await;
    candidate(&world, "b").acquire(&stop).await.unwrap();
    let patch = json!({"metadata": {"annotations": {"a": "2"}}});
    let refused = rest.patch(&format!("{target}/x"), &patch).await;
    assert!(matches!(refused, Err(Failure::LeaseLost(_))), "{refused:?}");
    let item = json!({"verb": "patch", "path": format!("{target}/x"), "body": patch});
    let refused = rest.bulk(vec![item], false, false).await;
    let lost = match &refused {
        Err(failure) => matches!(failure, Failure::LeaseLost(_)),
        Ok(items) => matches!(items[0], Err(Failure::LeaseLost(_))),
    };
    assert!(lost, "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_clean_shutdown_hands_over_within_two_seconds() {
    let world = World::start().await;
    let one = world.controllers("one", &["job"]);
    world
        .until(LEASE, |l| {
            l.is_some_and(|l| l["spec"]["holderIdentity"] == "one")
        })
        .await;
    let two = world.controllers("two", &["job"]);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let start = Instant::now();
    one.shut_down().await;
    world
        .until(LEASE, |l| {
            l.is_some_and(|l| l["spec"]["holderIdentity"] == "two")
        })
        .await;
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    two.shut_down().await;
}
