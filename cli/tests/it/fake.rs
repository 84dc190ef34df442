//! A little API server: objects by path, with discovery, tables, merge patches, watches and logs.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use clap::Parser;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use rota_cli::{Capture, Command, Context, Globals, run_with};
use serde_json::{Value, json};

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub body: Value,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    texts: BTreeMap<String, String>,
    seen: Vec<Seen>,
    version: u64,
    /// Answers to give before anything else.
    busy: Vec<u16>,
    /// What an object becomes when it is watched: path and merge patch.
    changes: Vec<(String, Value)>,
}

/// The server.
#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<State>>);

/// What a command did.
pub struct Done {
    pub code: u8,
    pub out: String,
    pub err: String,
}

const JOBS: &str = "/apis/rota.dev/v1/namespaces/default/jobs";

impl Fake {
    pub fn put(&self, path: &str, object: Value) {
        let mut s = self.0.lock().unwrap();
        s.version += 1;
        let mut object = object;
        object["metadata"]["resourceVersion"] = s.version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", s.version).into();
        }
        s.objects.insert(path.into(), object);
    }

    pub fn job(&self, name: &str, spec: Value, status: Value) {
        let object = json!({"apiVersion": "rota.dev/v1", "kind": "Job",
            "metadata": {"name": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": status});
        self.put(&format!("{JOBS}/{name}"), object);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(path).cloned()
    }

    pub fn text(&self, path_and_query: &str, text: &str) {
        self.0
            .lock()
            .unwrap()
            .texts
            .insert(path_and_query.into(), text.into());
    }

    /// Takes such a text away again.
    pub fn remove_text(&self, path_and_query: &str) {
        self.0.lock().unwrap().texts.remove(path_and_query);
    }

    pub fn busy(&self, codes: &[u16]) {
        self.0.lock().unwrap().busy = codes.to_vec();
    }

    /// When a watch is opened, this object changes so.
    pub fn on_watch(&self, path: &str, patch: Value) {
        self.0.lock().unwrap().changes.push((path.into(), patch));
    }

    pub fn writes(&self) -> Vec<Seen> {
        let seen = self.0.lock().unwrap().seen.clone();
        seen.into_iter()
            .filter(|s| s.method != Method::GET)
            .collect()
    }

    pub fn client(&self) -> kube::Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let seen = Seen {
                    method: parts.method,
                    path: parts.uri.path().to_string(),
                    query: parts.uri.query().unwrap_or("").to_string(),
                    body: serde_json::from_slice(&body).unwrap_or_default(),
                };
                let accept = parts
                    .headers
                    .get("accept")
                    .map_or("", |v| v.to_str().unwrap())
                    .to_string();
                Ok::<_, Infallible>(fake.answer(seen, &accept))
            }
        });
        kube::Client::new(service, "default")
    }

    /// Runs a command line, without its leading `rota`.
    pub async fn run(&self, words: &[&str]) -> Done {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            globals: Globals,
            #[command(subcommand)]
            command: Command,
        }
        let line =
            Line::try_parse_from(std::iter::once("rota").chain(words.iter().copied())).unwrap();
        let (out, err) = (Capture::default(), Capture::default());
        let cx = Context::with_client(line.globals, self.client(), out.clone(), err.clone());
        let code = run_with(line.command, &cx).await;
        Done {
            code,
            out: out.text(),
            err: err.text(),
        }
    }

    fn answer(&self, seen: Seen, accept: &str) -> Response<Body> {
        let mut s = self.0.lock().unwrap();
        s.seen.push(seen.clone());
        if let Some(code) = s.busy.pop() {
            return reply(code, status(code, "ServiceUnavailable", "busy"));
        }
        if let Some(text) = s.texts.get(&format!("{}?{}", seen.path, seen.query)) {
            return Response::new(Body::from(text.clone().into_bytes()));
        }
        match seen.path.as_str() {
            "/api" => return reply(200, core()),
            "/apis" => return reply(200, groups()),
            "/version" => return reply(200, json!({"gitVersion": "v9.9.9"})),
            _ => {}
        }
        let plural_at_end = [
            "/jobs",
            "/tasks",
            "/queues",
            "/configmaps",
            "/events",
            "/nodes",
        ]
        .iter()
        .any(|p| seen.path.ends_with(p));
        match seen.method {
            Method::GET if plural_at_end && seen.query.contains("watch=true") => {
                let mut lines = String::new();
                for (path, patch) in std::mem::take(&mut s.changes) {
                    s.version += 1;
                    let version = s.version.to_string();
                    if patch.is_null() {
                        let object = s.objects.remove(&path).unwrap();
                        lines.push_str(&format!(
                            "{}\n",
                            json!({"type": "DELETED", "object": object})
                        ));
                        continue;
                    }
                    let object = s.objects.get_mut(&path).unwrap();
                    merge(object, &patch);
                    object["metadata"]["resourceVersion"] = version.into();
                    let object = if accept.contains("as=Table") {
                        table(std::slice::from_ref(object))
                    } else {
                        object.clone()
                    };
                    lines.push_str(&format!(
                        "{}\n",
                        json!({"type": "MODIFIED", "object": object})
                    ));
                }
                Response::new(Body::from(lines.into_bytes()))
            }
            Method::GET if plural_at_end => {
                let plural = seen.path.rsplit('/').next().unwrap();
                let all = !seen.path.contains("/namespaces/");
                let items: Vec<Value> = s
                    .objects
                    .iter()
                    .filter(|(p, _)| {
                        p.starts_with(&format!("{}/", seen.path))
                            || (all && p.contains(&format!("/{plural}/")))
                    })
                    .map(|(_, o)| o.clone())
                    .filter(|o| selected(o, &seen.query))
                    .collect();
                if accept.contains("as=Table") {
                    let mut t = table(&items);
                    t["metadata"] = json!({"resourceVersion": s.version.to_string()});
                    return reply(200, t);
                }
                reply(
                    200,
                    json!({"kind": "JobList", "apiVersion": "rota.dev/v1", "metadata": {"resourceVersion": s.version.to_string()}, "items": items}),
                )
            }
            Method::GET => match s.objects.get(&seen.path) {
                Some(o) if accept.contains("as=Table") => {
                    reply(200, table(std::slice::from_ref(o)))
                }
                Some(o) => reply(200, o.clone()),
                None => not_found(&seen.path),
            },
            Method::POST => {
                let name = seen.body["metadata"]["name"].as_str().unwrap();
                let path = format!("{}/{name}", seen.path);
                if s.objects.contains_key(&path) {
                    return reply(409, status(409, "AlreadyExists", "already exists"));
                }
                s.version += 1;
                let mut object = seen.body.clone();
                object["metadata"]["resourceVersion"] = s.version.to_string().into();
                object["metadata"]["uid"] = format!("uid-{}", s.version).into();
                if !seen.query.contains("dryRun") {
                    s.objects.insert(path, object.clone());
                }
                reply(201, object)
            }
            Method::PATCH => {
                s.version += 1;
                let version = s.version.to_string();
                let path = seen.path.trim_end_matches("/scale");
                let Some(object) = s.objects.get_mut(path) else {
                    return not_found(path);
                };
                let mut changed = object.clone();
                merge(&mut changed, &seen.body);
                if changed != *object {
                    changed["metadata"]["resourceVersion"] = version.into();
                }
                if !seen.query.contains("dryRun") {
                    *object = changed.clone();
                }
                reply(200, changed)
            }
            Method::DELETE => match s.objects.remove(&seen.path) {
                Some(o) => reply(
                    200,
                    json!({"kind": "Status", "status": "Success", "details": {"uid": o["metadata"]["uid"]}}),
                ),
                None => not_found(&seen.path),
            },
            _ => reply(405, status(405, "MethodNotAllowed", "no")),
        }
    }
}

fn selected(o: &Value, query: &str) -> bool {
    query.split('&').all(|part| match part.split_once('=') {
        Some(("fieldSelector", v)) => {
            let want = v.replace("%3D", "=").replace("%2C", ",");
            want.split(',').all(|one| match one.split_once('=') {
                Some(("metadata.name", n)) => o["metadata"]["name"] == n,
                Some(("spec.nodeName", n)) => o["spec"]["nodeName"] == n,
                _ => true,
            })
        }
        Some(("labelSelector", v)) => {
            match v.replace("%2F", "/").replace("%3D", "=").split_once('=') {
                Some((k, v)) => o["metadata"]["labels"][k] == v,
                None => true,
            }
        }
        _ => true,
    })
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(map) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (k, v) in map {
        if v.is_null() {
            target.as_object_mut().unwrap().remove(k);
        } else {
            merge(&mut target[k.as_str()], v);
        }
    }
}

fn reply(code: u16, body: Value) -> Response<Body> {
    Response::builder()
        .status(code)
        .body(Body::from(body.to_string().into_bytes()))
        .unwrap()
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
}

fn not_found(path: &str) -> Response<Body> {
    let mut words = path.rsplit('/');
    let (name, plural) = (words.next().unwrap(), words.next().unwrap());
    let mut s = status(404, "NotFound", &format!("{plural} {name:?} not found"));
    s["details"] = json!({"name": name, "kind": plural});
    reply(404, s)
}

fn table(items: &[Value]) -> Value {
    let rows: Vec<Value> = items
        .iter()
        .map(|o| json!({"cells": [o["metadata"]["name"], o["status"]["phase"], o["spec"]["queue"]], "object": {"metadata": o["metadata"]}}))
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": [
        {"name": "Name", "type": "string", "format": "name", "priority": 0},
        {"name": "Phase", "type": "string", "priority": 0},
        {"name": "Queue", "type": "string", "priority": 1}], "rows": rows})
}

fn resource(plural: &str, kind: &str, scope: &str, categories: &[&str]) -> Value {
    json!({"resource": plural, "singularResource": kind.to_lowercase(), "responseKind": {"kind": kind}, "scope": scope,
        "categories": categories, "verbs": ["get", "list", "watch"]})
}

fn core() -> Value {
    json!({"kind": "APIGroupDiscoveryList", "items": [{"metadata": {}, "versions": [{"version": "v1", "resources": [
        resource("configmaps", "ConfigMap", "Namespaced", &[]), resource("nodes", "Node", "Cluster", &[]), resource("events", "Event", "Namespaced", &[])]}]}]})
}

fn groups() -> Value {
    json!({"kind": "APIGroupDiscoveryList", "items": [{"metadata": {"name": "rota.dev"}, "versions": [{"version": "v1", "resources": [
        resource("jobs", "Job", "Namespaced", &["all"]), resource("tasks", "Task", "Namespaced", &["all"]), resource("queues", "Queue", "Cluster", &[])]}]}]})
}
