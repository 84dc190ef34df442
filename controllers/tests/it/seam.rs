//! A controller is one file and one line: this is the file, `keyed::<Greeter>()` the line.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use rota_api::Job;
use rota_controllers::registry::keyed;
use rota_controllers::runtime::{
    Context, Controller, Failure, HandlerGuard, Informer, Informers, Key, Note, Plan, Queue,
    Regarding, Target, Write,
};
use serde_json::json;

use crate::world::{JOBS, World, job};

struct Greeter(Informer<Job>);

static PANICS: AtomicU32 = AtomicU32::new(0);

impl Controller for Greeter {
    // A name that may have a Lease and a user.
    const NAME: &'static str = "job";
    type World = Arc<Job>;

    fn new(ctx: &Context) -> Self {
        Greeter(ctx.informers.get())
    }
    fn warm(informers: &Informers) {
        informers.get::<Job>();
    }
    async fn wire(&self, _: &Context, queue: &Arc<Queue>) -> Vec<HandlerGuard> {
        self.0.synced().await;
        let queue = queue.clone();
        vec![self.0.on_change(move |change| queue.add(&change.key))]
    }
    async fn observe(&self, key: &Key) -> Result<Option<Arc<Job>>, Failure> {
        Ok(self.0.cache().get(key))
    }
    fn reconcile(job: &Arc<Job>, _: Timestamp) -> Plan {
        if job.metadata.name.as_deref() == Some("poison") {
            PANICS.fetch_add(1, Ordering::Relaxed);
            panic!("poison");
        }
        let mut plan = Plan::none();
        let greeted = job
            .metadata
            .annotations
            .as_ref()
            .is_some_and(|a| a.contains_key("greeting"));
        if !greeted {
            let patch = json!({"metadata": {"annotations": {"greeting": "hello"}}});
            plan.write(Write::patch(
                Target::of::<Job>(&Key::of(&job.metadata)),
                patch,
            ));
            plan.note(Note::normal(
                Regarding::of::<Job>(&job.metadata),
                "Greeted",
                "hello",
            ));
        }
        plan
    }
}

#[tokio::test(start_paused = true)]
async fn a_controller_is_one_file_and_one_line_and_a_poison_object_harms_only_itself() {
    let world = World::start().await;
    let process = world.process(vec![keyed::<Greeter>()], world.options("c"));
    for name in ["poison", "a", "b"] {
        world.admin.post(JOBS, &job(name, json!({}))).await.unwrap();
    }
    for name in ["a", "b"] {
        world
            .until(&format!("{JOBS}/{name}"), |j| {
                j.is_some_and(|j| j["metadata"]["annotations"]["greeting"] == "hello")
            })
            .await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let panics = PANICS.load(Ordering::Relaxed);
    assert!(
        (5..25).contains(&panics),
        "{panics} looks at the poison in a minute"
    );
    let events = "/api/v1/namespaces/default/events";
    let (events, _) = world
        .admin
        .list::<serde_json::Value>(events, "")
        .await
        .unwrap();
    let greeted = events.iter().filter(|e| e["reason"] == "Greeted").count();
    assert_eq!(greeted, 2);
    process.shut_down().await;
}
