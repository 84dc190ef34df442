//! Who may do what from outside: nothing without a certificate, an agent only its own.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::harness::cluster::{Options, items};
use crate::harness::wait::check;
use crate::harness::{Cluster, Http, Store, eventually};

#[test]
fn nothing_is_open_without_a_certificate() {
    let cluster = Cluster::one_node();
    let mut anonymous = cluster.anonymous();
    for path in ["/livez", "/readyz", "/version"] {
        assert_eq!(anonymous.get(path).status, 200, "{path}");
    }
    let mut paths: Vec<String> = [
        "/",
        "/api",
        "/api/",
        "/apis",
        "/api/v1",
        "/apis/rota.dev/v1",
        "/openapi/v3",
        "/openapi/v2",
        "/metrics",
        "/api/v1/nodes",
        "/api/v1/namespaces/kube-system/secrets",
        "/apis/rota.dev/v1/jobs",
        "/apis/rota.dev/v1/namespaces/default/tasks/x/log",
        "/rota/v1/nodes/x/tunnel",
        "/rota/v1/certificates",
        "/no/such/path",
        "/healthz",
        "/readyz/x",
        "/version/x",
        "//livez/../api",
        "/livez/..%2fapi",
    ]
    .map(String::from)
    .to_vec();
    // Every resource that discovery names, too.
    let mut admin = cluster.http();
    for group in [
        "/api/v1",
        "/apis/rota.dev/v1",
        "/apis/coordination.k8s.io/v1",
        "/apis/events.k8s.io/v1",
    ] {
        let list = admin.get(group).ok();
        for resource in list["resources"].as_array().unwrap() {
            paths.push(format!("{group}/{}", resource["name"].as_str().unwrap()));
        }
    }
    assert!(paths.len() > 30, "{paths:?}");
    for path in &paths {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let answer =
                anonymous.request(method, path, &[("Content-Type", "application/json")], b"{}");
            // A path with dots is refused for what it is, to whoever sends it.
            let dots = path.contains("..") && answer.status == 400;
            assert!(
                answer.status == 401 || dots,
                "{method} {path}: HTTP {} {}",
                answer.status,
                answer.text()
            );
        }
    }
    let (reason, _) = anonymous.get("/api/v1/nodes").refused(401);
    assert_eq!(reason, "Unauthorized");
    // Headers that other systems trust, and made-up credentials.
    for header in [
        ("X-Remote-User", "system:admin"),
        ("Impersonate-User", "system:admin"),
        ("Authorization", "Bearer nonsense"),
        ("Authorization", "Bearer a.b"),
        ("Authorization", "Basic YTpi"),
    ] {
        let answer = anonymous.request("GET", "/api/v1/nodes", &[header], b"");
        assert_eq!(answer.status, 401, "{header:?}");
    }
}

#[test]
fn files_with_secrets_are_private() {
    let cluster = Cluster::one_node();
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&cluster.kubeconfig()), 0o600);
    assert_eq!(mode(cluster.data_dir()), 0o700);
    assert_eq!(mode(&cluster.data_dir().join("pki/ca.key")), 0o600);
    assert_eq!(mode(&cluster.data_dir().join("pki/server.key")), 0o600);
    for node in std::fs::read_dir(cluster.data_dir().join("nodes"))
        .unwrap()
        .flatten()
    {
        let key = node.path().join("agent.key");
        if key.exists() {
            assert_eq!(mode(&key), 0o600, "{}", key.display());
        }
    }
}

/// Client with a local node's own certificate.
fn as_node(cluster: &Cluster, node: &str) -> Http {
    let dir = cluster.data_dir().join("nodes").join(node);
    let read = |path: std::path::PathBuf| {
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    Http::with_certificate(
        cluster.port(),
        &read(cluster.data_dir().join("pki/ca.crt")),
        &read(dir.join("agent.crt")),
        &read(dir.join("agent.key")),
    )
}

#[test]
fn an_agent_reaches_only_its_own() {
    let cluster = Cluster::start(Options {
        nodes: 2,
        store: Store::Embedded,
        ..Options::default()
    });
    let mut admin = cluster.http();
    let nodes: Vec<String> = items(&admin.get("/api/v1/nodes").ok())
        .iter()
        .map(|n| n["metadata"]["name"].as_str().unwrap().to_string())
        .collect();
    let (mine, other) = (&nodes[0], &nodes[1]);
    let mut agent = as_node(&cluster, mine);

    // A task on each node, each with a Secret of its own.
    for (n, node) in nodes.iter().enumerate() {
        let hostname = items(&admin.get("/api/v1/nodes").ok())[n]["metadata"]["labels"]["kubernetes.io/hostname"].clone();
        admin
            .post(
                "/api/v1/namespaces/default/secrets",
                &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("s{n}")}, "stringData": {"word": node}}),
            )
            .ok();
        cluster.create_job(
            &format!("on-{n}"),
            json!({"type": "Service", "template": {"spec": {
                "command": ["sleep", "3600"],
                "nodeSelector": {"kubernetes.io/hostname": hostname},
                "env": [{"name": "WORD", "valueFrom": {"type": "Secret", "secret": {"name": format!("s{n}"), "key": "word"}}}],
            }}}),
        );
    }
    let tasks: Vec<String> = (0..2)
        .map(|n| {
            eventually("the task runs", || {
                let tasks = cluster.tasks(&format!("on-{n}"));
                check(
                    tasks.len() == 1 && tasks[0]["status"]["phase"] == "Running",
                    || format!("{tasks:?}"),
                )?;
                Ok(tasks[0]["metadata"]["name"].as_str().unwrap().to_string())
            })
        })
        .collect();
    let task = |n: usize| format!("/apis/rota.dev/v1/namespaces/default/tasks/{}", tasks[n]);
    let all_tasks = "/apis/rota.dev/v1/tasks";

    let mut allowed = |method: &str, path: &str, body: &str| {
        let answer = agent.request(
            method,
            path,
            &[("Content-Type", "application/merge-patch+json")],
            body.as_bytes(),
        );
        assert!(
            (200..300).contains(&answer.status),
            "{method} {path}: HTTP {} {}",
            answer.status,
            answer.text()
        );
    };
    allowed("GET", &format!("/api/v1/nodes/{mine}"), "");
    allowed(
        "GET",
        &format!("{all_tasks}?fieldSelector=spec.nodeName%3D{mine}"),
        "",
    );
    allowed("GET", &task(0), "");
    allowed("GET", "/api/v1/namespaces/default/secrets/s0", "");
    allowed(
        "GET",
        &format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{mine}"),
        "",
    );

    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{other}");
    let other_node = format!("/api/v1/nodes/{other}");
    let other_status = format!("{other_node}/status");
    let other_task = task(1);
    let other_task_status = format!("{other_task}/status");
    let selecting_other = format!("{all_tasks}?fieldSelector=spec.nodeName%3D{other}");
    let own_task = task(0);
    let refused = [
        ("GET", all_tasks, ""),
        ("GET", selecting_other.as_str(), ""),
        ("GET", other_task.as_str(), ""),
        (
            "PATCH",
            other_task_status.as_str(),
            r#"{"status":{"phase":"Failed"}}"#,
        ),
        ("PATCH", own_task.as_str(), r#"{"spec":{"nodeName":"x"}}"#),
        ("DELETE", own_task.as_str(), ""),
        ("GET", "/api/v1/namespaces/default/secrets/s1", ""),
        ("GET", "/api/v1/namespaces/default/secrets", ""),
        ("GET", "/api/v1/secrets", ""),
        ("GET", "/api/v1/namespaces/rota-system/secrets", ""),
        (
            "PATCH",
            other_node.as_str(),
            r#"{"metadata":{"labels":{"a":"b"}}}"#,
        ),
        (
            "PATCH",
            other_status.as_str(),
            r#"{"status":{"capacity":{"cpu":"900"}}}"#,
        ),
        ("DELETE", other_node.as_str(), ""),
        ("PATCH", lease.as_str(), r#"{"spec":{"renewTime":null}}"#),
        ("DELETE", lease.as_str(), ""),
        ("POST", "/apis/rota.dev/v1/namespaces/default/jobs", "{}"),
        (
            "DELETE",
            "/apis/rota.dev/v1/namespaces/default/jobs/on-0",
            "",
        ),
        (
            "PATCH",
            "/apis/rota.dev/v1/namespaces/default/jobs/on-0",
            r#"{"spec":{"suspend":true}}"#,
        ),
        ("POST", "/apis/rota.dev/v1/namespaces/default/tasks", "{}"),
        (
            "PATCH",
            "/apis/rota.dev/v1/queues/default",
            r#"{"spec":{}}"#,
        ),
        ("POST", "/api/v1/namespaces", "{}"),
        ("DELETE", "/api/v1/namespaces/default", ""),
    ];
    for (method, path, body) in refused {
        let content_type = if method == "PATCH" {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let answer = agent.request(
            method,
            path,
            &[("Content-Type", content_type)],
            body.as_bytes(),
        );
        assert_eq!(answer.status, 403, "{method} {path}: {}", answer.text());
        assert_eq!(answer.json()["reason"], "Forbidden", "{method} {path}");
    }
    // By the bulk road, too.
    let answer = agent
        .post(
            "/apis/rota.dev/v1/bulk",
            &json!({"atomic": false, "items": [
                {"verb": "status", "path": other_task, "body": {"status": {"phase": "Failed"}}},
                {"verb": "delete", "path": own_task},
            ]}),
        )
        .json();
    for item in items(&answer) {
        assert_eq!(item["code"], 403, "{answer}");
    }
    assert_eq!(cluster.tasks("on-1")[0]["status"]["phase"], "Running");
    // A certificate for another name is not to be had with this one.
    let tunnel = agent.request(
        "GET",
        &format!("/rota/v1/nodes/{other}/tunnel"),
        &[("Connection", "Upgrade"), ("Upgrade", "rota-tunnel/1")],
        b"",
    );
    assert_eq!(tunnel.status, 403, "{}", tunnel.text());
}
