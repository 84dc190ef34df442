//! What the placement leader is asked over its line: `jobs/NAME/why` and `plans`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rota_api::names::{PATH_PLACEMENT_TUNNEL, SYSTEM_NAMESPACE, TUNNEL_UPGRADE};
use rota_apiserver::auth::User;
use rota_controllers::runtime::{Failure, Rest};
use serde_json::{Value, json};

use crate::placement::{Agents, node, queue, run_on, submit, tasks, until_job};
use crate::world::{JOBS, LIMIT, World, job};

const PLANS: &str = "/apis/rota.dev/v1/namespaces/default/plans";

/// Asks until the leader has dialled in.
async fn ask(
    what: impl AsyncFn() -> Result<Value, Failure>,
    wanted: impl Fn(&Value) -> bool,
) -> Value {
    let start = tokio::time::Instant::now();
    loop {
        let answer = what().await;
        match &answer {
            Ok(value) if wanted(value) => return answer.unwrap(),
            Ok(_) | Err(Failure::Transient { .. }) => {}
            Err(failure) => panic!("{failure}"),
        }
        assert!(start.elapsed() < LIMIT, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn why(world: &World, name: &str) -> Result<Value, Failure> {
    world.admin.get(&format!("{JOBS}/{name}/why")).await
}

fn cpu(name: &str, cpu: &str, completions: u32) -> Value {
    let resources = json!({"requests": {"cpu": cpu}});
    job(
        name,
        json!({"completions": completions, "template": {"spec": {"command": ["true"], "resources": resources}}}),
    )
}

fn refused(answer: Result<Value, Failure>) -> String {
    match answer {
        Err(Failure::Terminal(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn why_is_answered_by_whoever_leads_now() {
    let world = World::start().await;
    queue(&world, "default", json!({})).await;
    node(&world, "n1", "4").await;
    submit(&world, "big", "9", json!({"completions": 3})).await;
    let nobody = why(&world, "big").await;
    assert!(
        matches!(
            nobody,
            Err(Failure::Transient {
                retry_after: Some(_),
                ..
            })
        ),
        "{nobody:?}"
    );

    let first = world.controllers("a", &["job", "placement"]);
    let answer = ask(|| why(&world, "big"), |a| !a["waitingFor"].is_null()).await;
    assert_eq!(answer["kind"], "Why");
    assert_eq!(answer["waiting"], 3);
    let stored = until_job(&world, "big", |j| !j["status"]["waitingFor"].is_null()).await;
    assert_eq!(answer["waitingFor"], stored["status"]["waitingFor"]);
    let seen: u64 = answer["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(seen > 0);
    assert!(matches!(
        why(&world, "none").await,
        Err(Failure::NotFound(_))
    ));

    // The next leader answers for itself; the old term cannot dial in any more.
    first.shut_down().await;
    let gone = why(&world, "big").await;
    assert!(matches!(gone, Err(Failure::Transient { .. })), "{gone:?}");
    let _second = world.controllers("b", &["job", "placement"]);
    let again = ask(|| why(&world, "big"), |a| !a["waitingFor"].is_null()).await;
    assert_eq!(again["waitingFor"], answer["waitingFor"]);
    let placement = Rest::new(world.client("rota:placement"));
    let old = placement.fenced(SYSTEM_NAMESPACE, "placement", 1);
    let dialled = old.upgrade(PATH_PLACEMENT_TUNNEL, TUNNEL_UPGRADE).await;
    assert!(matches!(dialled, Err(Failure::LeaseLost(_))));
    let unfenced = placement
        .upgrade(PATH_PLACEMENT_TUNNEL, TUNNEL_UPGRADE)
        .await;
    assert!(matches!(unfenced, Err(Failure::Terminal(_))));
}

#[tokio::test(start_paused = true)]
async fn a_plan_is_what_then_happens() {
    let world = World::start().await;
    queue(&world, "default", json!({"placement": "Spread"})).await;
    for (name, cpu) in [("n1", "4"), ("n2", "6"), ("n3", "3")] {
        node(&world, name, cpu).await;
    }
    let _controllers = world.controllers("c", &["job", "placement"]);
    // One Job has started and waits for more, with a higher priority; of another's all runs.
    submit(
        &world,
        "waits",
        "5",
        json!({"completions": 2, "priority": 5}),
    )
    .await;
    until_job(&world, "waits", |j| j["status"]["waiting"] == 1).await;
    submit(&world, "there", "2", json!({"completions": 1})).await;
    until_job(&world, "there", |j| j["status"]["replicas"] == 1).await;

    let mut body = json!({"items": [
        {"apiVersion": "rota.dev/v1", "kind": "Queue", "metadata": {"name": "narrow"}, "spec": {"limit": {"cpu": 2}}},
        cpu("one", "2", 20),
        cpu("later", "1", 1),
        cpu("limited", "1", 1),
    ]});
    body["items"][2]["spec"]["after"] = json!([{"job": "one"}]);
    body["items"][3]["spec"]["queue"] = json!("narrow");
    // Whichever of the two comes first, both get the same.
    let n2 = json!({"kubernetes.io/hostname": "n2"});
    body["items"][3]["spec"]["template"]["spec"]["nodeSelector"] = n2;
    let plan = ask(|| world.admin.post(PLANS, &body), |_| true).await;
    assert_eq!(plan["kind"], "Plan");
    assert_eq!(plan["evictions"], json!([]));
    let [one, later, limited] = &plan["jobs"].as_array().unwrap()[..] else {
        panic!("{plan}");
    };
    assert_eq!((&one["tasks"], &one["placed"]), (&json!(20), &json!(2)));
    assert_eq!(limited["placed"], 1);
    assert_eq!(
        one["waitingFor"]["reasons"][0]["reason"],
        "InsufficientResource"
    );
    assert_eq!(later["waitingFor"]["reasons"][0]["reason"], "AfterJob");
    assert_eq!(
        (&later["placed"], &later["waiting"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(
        world.get(&format!("{JOBS}/one")).await,
        None,
        "nothing is stored"
    );

    let queue = &body["items"][0];
    world
        .admin
        .post("/apis/rota.dev/v1/queues", queue)
        .await
        .unwrap();
    for item in &body["items"].as_array().unwrap()[1..] {
        world.admin.post(JOBS, item).await.unwrap();
    }
    for planned in [one, limited] {
        let name = planned["name"].as_str().unwrap();
        until_job(&world, name, |j| {
            j["status"]["replicas"] == planned["placed"]
        })
        .await;
        let mut nodes: BTreeMap<String, u64> = BTreeMap::new();
        for task in tasks(&world)
            .await
            .iter()
            .filter(|t| t["spec"]["jobName"] == name)
        {
            *nodes
                .entry(task["spec"]["nodeName"].as_str().unwrap().into())
                .or_default() += 1;
        }
        let placements = planned["placements"].as_array().unwrap().iter();
        let expected = placements.map(|p| {
            (
                p["node"].as_str().unwrap().to_string(),
                p["tasks"].as_u64().unwrap(),
            )
        });
        assert_eq!(nodes, expected.collect(), "{name}");
    }
    // A Job that is there is supposed to change: what runs of it stays.
    let more = json!({"apiVersion": "rota.dev/v1", "kind": "Job", "metadata": {"name": "there"}, "spec": {"completions": 3}});
    let plan = ask(|| world.admin.post(PLANS, &more), |_| true).await;
    assert_eq!(plan["jobs"][0]["tasks"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_plan_tells_who_would_leave_and_what_starts_together() {
    let world = World::start().await;
    queue(&world, "default", json!({})).await;
    node(&world, "n1", "4").await;
    let _controllers = world.controllers("c", &["job", "placement"]);
    let _agents = Agents::start(&world, run_on);
    submit(&world, "low", "1", json!({"completions": 4})).await;
    until_job(&world, "low", |j| j["status"]["running"] == 4).await;

    let mut gang = cpu("gang", "1", 5);
    gang["spec"]["gang"] = json!({});
    gang["spec"]["priority"] = json!(9);
    let plan = ask(|| world.admin.post(PLANS, &gang), |_| true).await;
    assert_eq!(plan["jobs"][0]["placed"], 0, "five never fit");
    assert_eq!(plan["evictions"], json!([]));

    gang["spec"]["completions"] = json!(3);
    let plan = ask(|| world.admin.post(PLANS, &gang), |_| true).await;
    assert_eq!(plan["jobs"][0]["placed"], 3, "{plan}");
    let leaving = plan["evictions"].as_array().unwrap();
    let names: BTreeSet<&str> = leaving
        .iter()
        .map(|e| e["task"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 3);
    let there = tasks(&world).await;
    let running = |name: &&str| there.iter().any(|t| t["metadata"]["name"] == **name);
    assert!(names.iter().all(running), "{names:?}");
    let whom = json!({"namespace": "default", "name": "gang"});
    assert!(leaving.iter().all(|e| e["for"] == whom));
    let kept = |t: &Value| t["metadata"]["deletionTimestamp"].is_null();
    assert!(there.iter().all(kept), "nobody has left");
}

#[tokio::test(start_paused = true)]
async fn a_plan_is_checked_and_authorised_as_if_it_were_applied() {
    let world = World::start().await;
    let _controllers = world.controllers("c", &["job", "placement"]);
    let plan = async |item: Value| world.admin.post(PLANS, &item).await;
    let mut wrong = cpu("x", "1", 1);
    wrong["spec"]["completions"] = json!(-1);
    assert!(refused(plan(wrong).await).contains("spec.completions"));
    let mut typo = cpu("x", "1", 1);
    typo["spec"]["complations"] = json!(1);
    assert!(refused(plan(typo).await).contains("complations"));
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    assert!(refused(plan(node).await).contains("not for Node"));
    let ann = Rest::new(world.api.kube_client(User::new("ann", &[])));
    for body in [cpu("x", "1", 1), json!({"items": [cpu("x", "1", 1)]})] {
        let answer = refused(ann.post(PLANS, &body).await);
        assert!(
            answer.contains("cannot create resource \"jobs\""),
            "{answer}"
        );
    }
}
