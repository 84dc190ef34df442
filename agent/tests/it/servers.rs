//! Several API servers: what makes the agent go on with the next one, and what does not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::registry::Registry;
use rota_agent::api::Api;
use rota_agent::identity::{self, Identity};
use rota_agent::servers::Servers;
use rota_agent::tunnel::{self, Served};
use rota_agent::{AgentConfig, Credential};
use rota_api::names::NODE_LEASE_NAMESPACE;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::fake::Fake;
use crate::tasks::{place, sh, start};

const NODE: &str = "/api/v1/nodes/n";

/// Of an agent that knows these servers.
fn identity<const N: usize>(urls: [&str; N]) -> Identity {
    let servers = Servers::new(&urls.map(String::from)).unwrap();
    Identity {
        servers: Arc::new(servers),
        ca: None,
        certificate: "unused".into(),
        key: "unused".into(),
    }
}

fn api<const N: usize>(urls: [&str; N]) -> Api {
    Api::new(&identity(urls)).unwrap()
}

/// A server with the object [`NODE`].
async fn with_node() -> Fake {
    let fake = Fake::start().await;
    fake.put(NODE, json!({"metadata": {}}));
    fake
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Host and port at which nobody listens.
async fn closed() -> String {
    listener().await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn when_its_server_is_killed_the_agent_goes_on_with_the_next() {
    let (fake, dir) = place().await;
    let (first, second) = (fake.open().await, fake.open().await);
    let agent = start(&fake, &dir, |c| {
        c.servers = vec![first.url.clone(), second.url.clone()];
    });
    fake.add_task("t", sh("while ! [ -e stop ]; do sleep 0.05; done; exit 3"));
    fake.until_phase("t", "Running").await;
    assert_eq!(second.connections.load(Ordering::SeqCst), 0);
    first.kill().await;
    let renewed = |f: &Fake| {
        let path =
            format!("/apis/coordination.k8s.io/v1/namespaces/{NODE_LEASE_NAMESPACE}/leases/n");
        f.get(&path).unwrap()["spec"]["renewTime"].clone()
    };
    let before = renewed(&fake);
    fake.until("the lease is renewed", |f| {
        (renewed(f) != before).then_some(())
    })
    .await;
    std::fs::write(dir.path().join("node/tasks/ju-t/0/0/work/stop"), "").unwrap();
    assert_eq!(fake.until_phase("t", "Failed").await["exitCode"], 3);
    fake.add_task("next", sh("exit 0"));
    fake.until_phase("next", "Succeeded").await;
    agent.end().await;
}

#[tokio::test]
async fn what_was_never_sent_goes_to_the_next_server_at_once() {
    let fake = with_node().await;
    let api = api([&format!("http://{}", closed().await), &fake.url]);
    api.patch(NODE, &json!({})).await.unwrap();
    assert_eq!(api.servers().current().at, 1);
}

#[tokio::test]
async fn what_was_sent_is_repeated_only_if_it_reads() {
    let fake = with_node().await;
    let (breaks, address) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = breaks.accept().await.unwrap();
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1024]).await;
        }
    });
    let breaking = format!("http://{address}");
    let reads = api([&breaking, &fake.url]);
    reads.get::<Value>(NODE).await.unwrap();
    let writes = api([&breaking, &fake.url]);
    let error = writes.patch(NODE, &json!({})).await.unwrap_err();
    assert_eq!(error.code(), 0, "{error}");
    assert!(error.to_string().contains(&breaking), "{error}");
    writes.patch(NODE, &json!({})).await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_given_up_counts_against_its_server() {
    let fake = with_node().await;
    let (_silent, address) = listener().await;
    let api = api([&format!("http://{address}"), &fake.url]);
    let patch = json!({});
    let given_up = tokio::time::timeout(Duration::from_millis(50), api.patch(NODE, &patch)).await;
    assert!(given_up.is_err());
    api.patch(NODE, &patch).await.unwrap();
}

#[tokio::test]
async fn a_server_that_refuses_is_kept() {
    let (fake, other) = (with_node().await, with_node().await);
    let api = api([&fake.url, &other.url]);
    fake.down.store(true, Ordering::SeqCst);
    assert_eq!(api.get::<Value>(NODE).await.unwrap_err().code(), 503);
    assert_eq!(api.servers().current().at, 0);
}

#[tokio::test]
async fn a_server_that_alone_is_cut_off_from_the_store_is_left() {
    let (fake, dead, other) = (with_node().await, closed().await, with_node().await);
    let api = api([&fake.url, &format!("http://{dead}"), &other.url]);
    fake.down.store(true, Ordering::SeqCst);
    other.down.store(true, Ordering::SeqCst);
    let refused = api.get::<Value>(NODE).await.unwrap_err();
    api.look_for_a_ready_one(&refused).await;
    assert_eq!(api.servers().current().at, 0, "nobody is better off");
    other.down.store(false, Ordering::SeqCst);
    other.put("/readyz", json!({}));
    api.look_for_a_ready_one(&refused).await;
    assert_eq!(api.servers().current().at, 2);
    api.get::<Value>(NODE).await.unwrap();
}

#[tokio::test]
async fn a_tunnel_that_cannot_be_dialled_goes_to_the_next_server() {
    let (next, address) = listener().await;
    let identity = identity([
        &format!("http://{}", closed().await),
        &format!("http://{address}"),
    ]);
    let served = Served::new("unused".into(), Arc::default(), Registry::default());
    let tunnel = tokio::spawn(tunnel::run(identity, "n".into(), Arc::new(served)));
    let dialled = tokio::time::timeout(Duration::from_secs(30), next.accept()).await;
    dialled.unwrap().unwrap();
    tunnel.abort();
}

#[tokio::test]
async fn who_cannot_join_hears_why_of_each_server() {
    let dir = tempfile::tempdir().unwrap();
    let urls = [closed().await, closed().await].map(|a| format!("https://{a}/"));
    let mut config = AgentConfig::new(&urls, "n", dir.path().into(), vec![]);
    config.credential = Credential::Token("rota1.00.id.secret".into());
    let servers = Arc::new(Servers::new(&config.servers).unwrap());
    let error = identity::obtain(&config, servers).await.unwrap_err();
    for url in urls {
        let why = format!("{url}: Connection refused");
        assert!(error.to_string().contains(&why), "{error}");
    }
}
