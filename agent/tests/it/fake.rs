//! An API server with just what an agent uses, in memory, with faults on demand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::task::{JoinHandle, JoinSet};

#[derive(Clone)]
pub struct Fake {
    pub inner: Arc<Mutex<Inner>>,
    pub down: Arc<AtomicBool>,
    events: broadcast::Sender<String>,
    pub url: String,
}

/// One address at which the cluster is served.
pub struct Door {
    pub url: String,
    /// How many were ever taken.
    pub connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Door {
    /// As kill -9 would: connections break, and none is taken any more.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

#[derive(Default)]
pub struct Inner {
    version: u64,
    pub objects: BTreeMap<String, Value>,
    /// Every phase that was ever written, per task, in order.
    pub history: BTreeMap<String, Vec<String>>,
    pub bulk_requests: usize,
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(p) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (k, v) in p {
        if v.is_null() {
            target.as_object_mut().unwrap().remove(k);
        } else {
            merge(&mut target[k.as_str()], v);
        }
    }
}

pub const TASKS: &str = "/apis/rota.dev/v1/namespaces/default/tasks";

impl Fake {
    pub async fn start() -> Fake {
        let mut fake = Fake {
            inner: Arc::default(),
            down: Arc::default(),
            events: broadcast::channel(100_000).0,
            url: String::new(),
        };
        fake.url = fake.open().await.url;
        fake
    }

    /// One more server of the same cluster.
    pub async fn open(&self) -> Door {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(handle).with_state(self.clone());
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let service = TowerToHyperService::new(router.clone());
                serving.spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await; // the agent's end may break it off
                });
            }
        });
        Door {
            url,
            connections,
            task,
        }
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.inner.lock().objects.get(path).cloned()
    }
    pub fn node(&self) -> Value {
        self.get("/api/v1/nodes/n").unwrap_or_default()
    }
    pub fn task(&self, name: &str) -> Value {
        self.get(&format!("{TASKS}/{name}")).unwrap_or_default()
    }
    pub fn history(&self, name: &str) -> Vec<String> {
        self.inner
            .lock()
            .history
            .get(name)
            .cloned()
            .unwrap_or_default()
    }

    fn write(&self, path: &str, kind: &str, edit: impl FnOnce(&mut Value)) -> Value {
        let mut inner = self.inner.lock();
        inner.version += 1;
        let version = inner.version.to_string();
        let object = inner
            .objects
            .entry(path.to_string())
            .or_insert_with(|| json!({"metadata": {}}));
        edit(object);
        object["metadata"]["resourceVersion"] = json!(version);
        let object = object.clone();
        if path.contains("/tasks/") {
            let _ = self
                .events
                .send(json!({"type": kind, "object": object}).to_string());
        }
        object
    }

    pub fn put(&self, path: &str, object: Value) {
        self.write(path, "ADDED", |o| *o = object);
    }
    pub fn edit(&self, path: &str, patch: Value) -> Value {
        self.write(path, "MODIFIED", |o| merge(o, &patch))
    }
    pub fn remove(&self, path: &str) {
        let Some(mut object) = self.inner.lock().objects.remove(path) else {
            return;
        };
        self.inner.lock().version += 1;
        object["metadata"]["resourceVersion"] = json!(self.inner.lock().version.to_string());
        let _ = self
            .events
            .send(json!({"type": "DELETED", "object": object}).to_string());
    }

    /// A revision and a task of it, bound to node `n`.
    pub fn add_task(&self, name: &str, spec: Value) {
        self.add_task_with(name, spec, json!({}), 1);
    }
    pub fn add_task_with(&self, name: &str, spec: Value, binding: Value, epoch: i64) {
        let on_lost = binding.get("onLost").cloned().unwrap_or(json!("Rerun"));
        let revision = format!("r-{name}");
        self.put(
            &format!("/apis/rota.dev/v1/namespaces/default/jobrevisions/{revision}"),
            json!({"metadata": {"name": revision}, "spec": {"jobName": "j", "jobUid": "u", "onLost": on_lost, "template": {"spec": spec}}}),
        );
        self.bind(name, &revision, binding, epoch);
    }
    pub fn bind(&self, name: &str, revision: &str, binding: Value, epoch: i64) {
        let mut task = json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1},
            "spec": {"jobName": "j", "jobUid": format!("ju-{name}"), "index": 0, "attempt": 0, "epoch": epoch, "nodeName": "n",
                     "queue": "default", "priority": 0, "requests": {"cpu": "1m"}, "revision": revision},
        });
        merge(&mut task["spec"], &binding);
        task["spec"].as_object_mut().unwrap().remove("onLost");
        self.put(&format!("{TASKS}/{name}"), task);
    }

    pub async fn until<T>(&self, what: &str, mut f: impl FnMut(&Fake) -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(t) = f(self) {
                return t;
            }
            assert!(
                Instant::now() < end,
                "timed out: {what}; tasks: {:#?}",
                self.inner.lock().history
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    pub async fn until_phase(&self, name: &str, phase: &str) -> Value {
        self.until(&format!("{name} {phase}"), |f| {
            let t = f.task(name);
            (t["status"]["phase"] == phase).then(|| t["status"].clone())
        })
        .await
    }

    fn bulk(&self, body: &Value) -> Value {
        self.inner.lock().bulk_requests += 1;
        let items: Vec<Value> = body["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| {
                let path = i["path"].as_str().unwrap();
                let Some(old) = self.get(path) else {
                    return json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"});
                };
                if old["metadata"]["uid"] != i["preconditions"]["uid"] {
                    return json!({"kind": "Status", "status": "Failure", "code": 409, "reason": "Conflict"});
                }
                if ["Succeeded", "Failed", "Lost"].iter().any(|p| old["status"]["phase"] == *p) {
                    return json!({"kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid"});
                }
                let name = old["metadata"]["name"].as_str().unwrap().to_string();
                let phase = i["body"]["status"]["phase"].as_str().unwrap().to_string();
                self.inner.lock().history.entry(name).or_default().push(phase);
                self.edit(path, i["body"].clone());
                json!({"kind": "Status", "status": "Success", "code": 200})
            })
            .collect();
        json!({"kind": "BulkResult", "items": items})
    }
}

fn refuse(code: StatusCode) -> Response {
    let body = json!({"kind": "Status", "status": "Failure", "code": code.as_u16(), "reason": code.canonical_reason(), "message": "as the test wants"});
    (code, body.to_string()).into_response()
}

async fn handle(State(fake): State<Fake>, request: Request<Body>) -> Response {
    if fake.down.load(Ordering::SeqCst) {
        return refuse(StatusCode::SERVICE_UNAVAILABLE);
    }
    let path = request.uri().path().to_string();
    let query = request.uri().query().unwrap_or("").to_string();
    let method = request.method().clone();
    let body = axum::body::to_bytes(request.into_body(), 64 << 20)
        .await
        .unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if path == "/apis/rota.dev/v1/bulk" {
        return fake.bulk(&body).to_string().into_response();
    }
    if path == "/apis/rota.dev/v1/tasks" {
        if query.contains("watch=true") {
            return watch(fake, &query).into_response();
        }
        let inner = fake.inner.lock();
        let items: Vec<&Value> = inner
            .objects
            .iter()
            .filter(|(k, _)| k.starts_with(TASKS))
            .map(|(_, v)| v)
            .collect();
        return json!({"metadata": {"resourceVersion": inner.version.to_string()}, "items": items})
            .to_string()
            .into_response();
    }
    let main = path.trim_end_matches("/status").to_string();
    match method {
        Method::GET => match fake.get(&path) {
            Some(o) => o.to_string().into_response(),
            None => refuse(StatusCode::NOT_FOUND),
        },
        Method::POST => {
            let full = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
            if fake.get(&full).is_some() {
                return refuse(StatusCode::CONFLICT);
            }
            fake.put(&full, body.clone());
            body.to_string().into_response()
        }
        Method::PATCH => {
            if fake.get(&main).is_none() {
                return refuse(StatusCode::NOT_FOUND);
            }
            fake.edit(&main, body).to_string().into_response()
        }
        _ => refuse(StatusCode::METHOD_NOT_ALLOWED),
    }
}

fn watch(fake: Fake, query: &str) -> Response {
    let from: u64 = query
        .split("resourceVersion=")
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let events = fake.events.subscribe();
    // What happened between list and watch: the present state again is as good.
    let missed: Vec<Value> = fake
        .inner
        .lock()
        .objects
        .iter()
        .filter(|(k, v)| {
            k.starts_with(TASKS)
                && v["metadata"]["resourceVersion"]
                    .as_str()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
                    > from
        })
        .map(|(_, v)| json!({"type": "MODIFIED", "object": v}))
        .collect();
    let first = missed.iter().map(|m| format!("{m}\n")).collect::<String>();
    let stream = futures::stream::unfold(
        (events, Some(first), fake),
        |(mut events, first, fake)| async move {
            if let Some(first) = first {
                return Some((
                    Ok::<_, std::io::Error>(Bytes::from(first)),
                    (events, None, fake),
                ));
            }
            match tokio::time::timeout(Duration::from_millis(500), events.recv()).await {
                _ if fake.down.load(Ordering::SeqCst) => None,
                Ok(Ok(e)) => Some((Ok(Bytes::from(format!("{e}\n"))), (events, None, fake))),
                Ok(Err(_)) => None,
                Err(_) => {
                    let v = fake.inner.lock().version;
                    let b = json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": v.to_string()}}});
                    Some((Ok(Bytes::from(format!("{b}\n"))), (events, None, fake)))
                }
            }
        },
    );
    Body::from_stream(stream).into_response()
}
