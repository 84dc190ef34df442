//! Input that no well-behaved client sends: each gets a clear refusal, changes nothing, and the
//! server goes on.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::cluster::{Options, condition, items, reason};
use crate::harness::wait::check;
use crate::harness::{Cluster, Http, eventually, example, on_path};

const JOBS: &str = "/apis/rota.dev/v1/namespaces/default/jobs";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: (&str, &str) = ("Content-Type", "application/json");

fn no_nodes() -> Cluster {
    Cluster::start(Options {
        nodes: 0,
        ..Options::default()
    })
}

fn job(name: &str) -> Value {
    json!({"apiVersion": "rota.dev/v1", "kind": "Job", "metadata": {"name": name},
           "spec": {"template": {"spec": {"command": ["true"]}}}})
}

/// The server is well, and nothing was stored.
#[track_caller]
fn unharmed(cluster: &Cluster) {
    let mut http = cluster.http();
    assert_eq!(http.get("/readyz").status, 200);
    for collection in [JOBS, MAPS] {
        let list = http.get(collection).ok();
        assert!(items(&list).is_empty(), "{list}");
    }
    let log = cluster.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn bodies() {
    let cluster = no_nodes();
    let mut http = cluster.http();
    let whole = job("x").to_string();
    let deep_array = "[".repeat(100_000);
    let deep_object = r#"{"a":"#.repeat(100_000);
    let deep_spec = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"x"}},"data":{}1{}}}"#,
        r#"{"a":"#.repeat(50_000),
        "}".repeat(50_000)
    );
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("garbage", b"\x00\xff\xfe garbage".to_vec()),
        ("not JSON", b"hello".to_vec()),
        ("truncated", whole.as_bytes()[..whole.len() - 5].to_vec()),
        ("trailing", format!("{whole} {whole}").into_bytes()),
        ("null", b"null".to_vec()),
        ("number", b"1".to_vec()),
        ("array", b"[]".to_vec()),
        ("string", b"\"x\"".to_vec()),
        (
            "no metadata",
            br#"{"apiVersion":"rota.dev/v1","kind":"Job"}"#.to_vec(),
        ),
        ("deep array", deep_array.into_bytes()),
        ("deep object", deep_object.into_bytes()),
        (
            "lone surrogate",
            br#"{"apiVersion":"rota.dev/v1","kind":"Job","metadata":{"name":"\ud800"}}"#.to_vec(),
        ),
        (
            "invalid UTF-8",
            b"{\"apiVersion\":\"rota.dev/v1\",\"kind\":\"Job\",\"metadata\":{\"name\":\"\xff\"}}"
                .to_vec(),
        ),
        (
            "huge number",
            whole
                .replace("\"spec\":{", "\"spec\":{\"completions\":1e999,")
                .into_bytes(),
        ),
        (
            "wrong kind",
            whole.replace("\"Job\"", "\"Queue\"").into_bytes(),
        ),
        (
            "wrong version",
            whole.replace("rota.dev/v1", "rota.dev/v9").into_bytes(),
        ),
        (
            "wrong namespace",
            whole
                .replace("\"name\":\"x\"", "\"name\":\"x\",\"namespace\":\"other\"")
                .into_bytes(),
        ),
        (
            "version set",
            whole
                .replace("\"name\":\"x\"", "\"name\":\"x\",\"resourceVersion\":\"5\"")
                .into_bytes(),
        ),
    ];
    for (what, body) in &cases {
        let answer = http.request("POST", JOBS, &[JSON], body);
        assert!(
            matches!(answer.status, 400 | 422),
            "{what}: HTTP {} {}",
            answer.status,
            answer.text()
        );
        let code = answer.status;
        answer.refused(code);
    }
    let answer = http.request("POST", MAPS, &[JSON], deep_spec.as_bytes());
    assert!(matches!(answer.status, 400 | 422), "{}", answer.text());

    let large = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"x"}},"data":{{"a":"{}"}}}}"#,
        "x".repeat(4 << 20)
    );
    let (reason, _) = http
        .request("POST", MAPS, &[JSON], large.as_bytes())
        .refused(413);
    assert_eq!(reason, "RequestEntityTooLarge");
    let mut http = cluster.http();
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/cbor",
        "nonsense",
    ] {
        let answer = http.request(
            "POST",
            JOBS,
            &[("Content-Type", content_type)],
            whole.as_bytes(),
        );
        let (reason, _) = answer.refused(415);
        assert_eq!(reason, "UnsupportedMediaType", "{content_type}");
    }
    let answer = http.request(
        "POST",
        JOBS,
        &[("Content-Type", "application/vnd.kubernetes.protobuf")],
        b"k8s\0garbage",
    );
    assert!(matches!(answer.status, 400 | 415), "{}", answer.text());
    let answer = http.request(
        "POST",
        JOBS,
        &[JSON, ("Content-Encoding", "gzip")],
        b"\x1f\x8b garbage",
    );
    assert!(matches!(answer.status, 400 | 415), "{}", answer.text());
    unharmed(&cluster);
}

#[test]
fn fields_of_the_wrong_type_or_value() {
    let cluster = no_nodes();
    let mut http = cluster.http();
    let set = |path: &[&str], value: Value| {
        let mut job = job("x");
        let mut at = &mut job;
        for key in path {
            at = &mut at[*key];
        }
        *at = value;
        job
    };
    let spec = ["spec", "template", "spec"];
    let in_spec = |key: &'static str, value: Value| set(&[&spec[..], &[key]].concat(), value);
    let cases = [
        (
            "spec.completions",
            set(&["spec", "completions"], json!("many")),
        ),
        ("spec.completions", set(&["spec", "completions"], json!(0))),
        (
            "spec.completions",
            set(&["spec", "completions"], json!(1.5)),
        ),
        (
            "spec.completions",
            set(&["spec", "completions"], json!(i64::MAX)),
        ),
        ("spec.replicas", set(&["spec", "replicas"], json!(-1))),
        ("spec.type", set(&["spec", "type"], json!("Sometimes"))),
        ("spec.suspend", set(&["spec", "suspend"], json!("yes"))),
        ("spec.template", set(&["spec", "template"], json!([]))),
        (
            "spec.template.spec.command",
            in_spec("command", json!("true")),
        ),
        ("spec.template.spec.command", in_spec("command", json!([]))),
        (
            "spec.template.spec.command[0]",
            in_spec("command", json!([1])),
        ),
        (
            "spec.template.spec.env",
            in_spec(
                "env",
                json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
            ),
        ),
        (
            "spec.template.spec.resources",
            in_spec("resources", json!({"requests": {"cpu": "-1"}})),
        ),
        (
            "spec.template.spec.resources",
            in_spec("resources", json!({"requests": {"cpu": "1e1000000"}})),
        ),
        (
            "spec.template.spec.resources",
            in_spec("resources", json!({"requests": {"memory": "NaN"}})),
        ),
        (
            "spec.template.spec.ports",
            in_spec("ports", json!([{"name": "http", "port": 25000}])),
        ),
        ("metadata.name", set(&["metadata", "name"], json!("Über"))),
        (
            "metadata.name",
            set(&["metadata", "name"], json!("x".repeat(53))),
        ),
        ("metadata.name", set(&["metadata", "name"], json!(".."))),
        (
            "metadata.labels",
            set(&["metadata", "labels"], json!({"a b": "c"})),
        ),
        (
            "metadata.labels",
            set(&["metadata", "labels"], json!({"a": "x".repeat(64)})),
        ),
    ];
    for (field, body) in cases {
        let answer = http.post(JOBS, &body);
        let text = answer.text();
        assert!(
            matches!(answer.status, 400 | 422),
            "{field}: HTTP {} {text}",
            answer.status
        );
        if answer.status == 422 {
            let (reason, message) = answer.refused(422);
            assert_eq!(reason, "Invalid");
            let last = field.rsplit('.').next().unwrap();
            assert!(message.contains(last), "{field}: {message}");
        }
    }
    unharmed(&cluster);
}

#[test]
fn unknown_and_doubled_fields() {
    let cluster = no_nodes();
    let mut http = cluster.http();
    let mut body = job("x");
    body["spec"]["bogus"] = json!(1);
    body["spec"]["template"]["spec"]["image2"] = json!("a");
    let (reason, message) = http
        .post(&format!("{JOBS}?fieldValidation=Strict"), &body)
        .refused(400);
    assert_eq!(reason, "BadRequest");
    assert!(
        message.contains(r#"unknown field "spec.bogus""#),
        "{message}"
    );
    assert!(
        message.contains(r#"unknown field "spec.template.spec.image2""#),
        "{message}"
    );
    let doubled = job("x")
        .to_string()
        .replace("\"spec\":{", "\"spec\":{\"priority\":1,\"priority\":2,");
    let answer = http.request(
        "POST",
        &format!("{JOBS}?fieldValidation=Strict"),
        &[JSON],
        doubled.as_bytes(),
    );
    let (_, message) = answer.refused(400);
    assert!(message.contains("priority"), "{message}");
    unharmed(&cluster);

    for (mode, warned) in [
        ("", true),
        ("?fieldValidation=Warn", true),
        ("?fieldValidation=Ignore", false),
    ] {
        let answer = http.post(&format!("{JOBS}{mode}"), &body);
        assert_eq!(answer.status, 201, "{}", answer.text());
        let warnings: Vec<&str> = answer
            .headers
            .iter()
            .filter(|(n, _)| n == "warning")
            .map(|(_, v)| v.as_str())
            .collect();
        assert_eq!(!warnings.is_empty(), warned, "{mode}: {warnings:?}");
        assert!(
            answer.json()["spec"].get("bogus").is_none(),
            "pruned: {}",
            answer.text()
        );
        http.delete(&format!("{JOBS}/x"));
        eventually("it is gone", || {
            let status = http.get(&format!("{JOBS}/x")).status;
            check(status == 404, || status.to_string())
        });
    }
    http.post(&format!("{JOBS}?fieldValidation=Sometimes"), &job("y"))
        .refused(422);
}

#[test]
fn queries() {
    let cluster = no_nodes();
    let mut http = cluster.http();
    for query in [
        "labelSelector=a%3Db%3Dc",
        "labelSelector=%21%21a",
        "labelSelector=a%20in%20%28",
        "labelSelector=%3Da",
        "fieldSelector=spec.nonsense%3D1",
        "fieldSelector=a",
        "limit=-1",
        "limit=abc",
        "limit=99999999999999999999",
        "continue=nonsense",
        "continue=%00%ff",
        "resourceVersion=-1",
        "resourceVersion=abc",
        "resourceVersion=0x1",
        "resourceVersion=99999999999999999999999",
        "resourceVersionMatch=Exact",
        "watch=true&timeoutSeconds=abc",
        "resourceVersion=0&resourceVersionMatch=Exact",
        "resourceVersionMatch=Sometimes&resourceVersion=1",
        "sendInitialEvents=true",
    ] {
        let answer = http.get(&format!("{JOBS}?{query}"));
        let code = answer.status;
        assert!(
            matches!(code, 400 | 422),
            "{query}: HTTP {code} {}",
            answer.text()
        );
        answer.refused(code);
    }
    // A version that does not exist yet: tell the client to come back, not an empty list.
    let answer = http.get(&format!("{JOBS}?resourceVersion=99999999999"));
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert_eq!(
        answer.json()["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
    let (reason, message) = http.get(&format!("{JOBS}/nothing")).refused(404);
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("NotFound", "jobs.rota.dev \"nothing\" not found")
    );
    for (method, path, code) in [
        ("GET", "/apis/rota.dev/v2/jobs", 404),
        ("GET", "/apis/nothing.dev/v1", 404),
        ("GET", "/nothing", 404),
        ("PURGE", JOBS, 405),
        ("PUT", JOBS, 405),
        ("POST", "/apis/rota.dev/v1/namespaces/default/jobs/x", 405),
        (
            "GET",
            "/apis/rota.dev/v1/namespaces/default/jobs/x/nonsense",
            404,
        ),
    ] {
        let answer = http.request(method, path, &[JSON], b"");
        assert_eq!(answer.status, code, "{method} {path}: {}", answer.text());
        assert_eq!(
            answer.json()["kind"],
            "Status",
            "{method} {path}: {}",
            answer.text()
        );
    }
    for path in [
        "/apis/rota.dev/v1/namespaces/default/jobs/%00",
        "/apis/rota.dev/v1/namespaces/%ff/jobs",
        "/api/v1/namespaces/..%2f..%2fx/configmaps",
    ] {
        let answer = http.get(path);
        assert!(
            (400..500).contains(&answer.status),
            "{path}: {}",
            answer.text()
        );
    }
    unharmed(&cluster);
}

#[test]
fn patches() {
    let cluster = no_nodes();
    let mut http = cluster.http();
    http.post(JOBS, &job("p")).ok();
    let path = format!("{JOBS}/p");
    let before = http.get(&path).ok();
    let mut patch = |kind: &str, body: &str| {
        http.request("PATCH", &path, &[("Content-Type", kind)], body.as_bytes())
    };
    let merge = "application/merge-patch+json";
    let json_patch = "application/json-patch+json";
    let many = format!(
        "[{}]",
        vec![r#"{"op":"test","path":"/kind","value":"Job"}"#; 10_001].join(",")
    );
    let doubling = {
        let mut ops =
            vec![r#"{"op":"add","path":"/metadata/annotations","value":{"a":"x"}}"#.to_string()];
        for i in 0..30 {
            ops.push(format!(r#"{{"op":"copy","from":"/metadata/annotations","path":"/metadata/annotations/n{i}"}}"#));
        }
        format!("[{}]", ops.join(","))
    };
    for (kind, body) in [
        (merge, "[]"),
        (merge, "null"),
        (merge, "garbage"),
        (merge, "1"),
        (merge, r#"{"metadata":{"name":"q"}}"#),
        (merge, r#"{"metadata":{"uid":"x"}}"#),
        (merge, r#"{"spec":{"template":null}}"#),
        (merge, r#"{"spec":{"completions":"x"}}"#),
        (merge, r#"{"metadata":{"resourceVersion":"1"}}"#),
        (json_patch, "{}"),
        (
            json_patch,
            r#"[{"op":"test","path":"/spec/priority","value":99}]"#,
        ),
        (json_patch, r#"[{"op":"remove","path":"/spec/nothing"}]"#),
        (json_patch, r#"[{"op":"fly","path":"/a"}]"#),
        (
            json_patch,
            r#"[{"op":"add","path":"/spec/template/spec/command/-1","value":"a"}]"#,
        ),
        (json_patch, r#"[{"op":"add","path":"/~2","value":"a"}]"#),
        (
            json_patch,
            r#"[{"op":"add","path":"/spec/template/spec/command/9223372036854775808","value":"a"}]"#,
        ),
        (json_patch, many.as_str()),
        (json_patch, doubling.as_str()),
        ("application/strategic-merge-patch+json", "{}"),
        ("application/json", "{}"),
        ("text/plain", "{}"),
    ] {
        let answer = patch(kind, body);
        let shown: String = body.chars().take(80).collect();
        assert!(
            matches!(answer.status, 400 | 409 | 413 | 415 | 422),
            "{kind} {shown}: HTTP {} {}",
            answer.status,
            answer.text()
        );
        let code = answer.status;
        answer.refused(code);
    }
    let after = http.get(&path).ok();
    assert_eq!(
        before["metadata"]["generation"],
        after["metadata"]["generation"]
    );
    assert_eq!(before["spec"], after["spec"]);
    let log = cluster.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn broken_http() {
    let cluster = no_nodes();
    let http = cluster.http();
    let quiet = Duration::from_secs(1);
    let host = "Host: x\r\n";
    let big_header = format!(
        "GET /livez HTTP/1.1\r\n{host}X-Big: {}\r\n\r\n",
        "a".repeat(1 << 20)
    );
    let many_headers = format!(
        "GET /livez HTTP/1.1\r\n{host}{}\r\n",
        (0..10_000)
            .map(|i| format!("X-{i}: a\r\n"))
            .collect::<String>()
    );
    let long_path = format!("GET /{} HTTP/1.1\r\n{host}\r\n", "a".repeat(100_000));
    let cases: Vec<Vec<u8>> = vec![
        b"\x00\x01\x02\x03".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        format!("POST {MAPS} HTTP/1.1\r\n{host}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello").into_bytes(),
        format!("POST {MAPS} HTTP/1.1\r\n{host}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").into_bytes(),
        format!("POST {MAPS} HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n").into_bytes(),
        format!("POST {MAPS} HTTP/1.1\r\n{host}Content-Length: 99999999999999999999\r\n\r\n").into_bytes(),
        big_header.into_bytes(),
        many_headers.into_bytes(),
        long_path.into_bytes(),
    ];
    for case in cases {
        let answer = http.raw(&case, quiet);
        let first = String::from_utf8_lossy(&answer);
        let shown: String = String::from_utf8_lossy(&case).chars().take(60).collect();
        assert!(
            answer.is_empty() || first.starts_with("HTTP/1.1 4"),
            "{shown:?}: {}",
            first.chars().take(200).collect::<String>()
        );
    }
    // A body that is shorter than it says, and then the connection goes.
    {
        use std::io::Write;
        let mut stream = http.connect().unwrap();
        write!(stream, "POST {MAPS} HTTP/1.1\r\n{host}Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{{\"apiVersion\"").unwrap();
        stream.flush().unwrap();
    }
    // Not even TLS.
    {
        use std::io::{Read, Write};
        let mut plain = std::net::TcpStream::connect(("127.0.0.1", cluster.port())).unwrap();
        plain.set_read_timeout(Some(quiet)).unwrap();
        let _ = plain.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer);
        assert!(
            !answer.starts_with(b"HTTP/1.1 2"),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }
    unharmed(&cluster);
}

#[test]
fn yaml_by_both_clients() {
    let cluster = no_nodes();
    let mut clients = vec!["rota"];
    if on_path("kubectl").is_some() {
        clients.push("kubectl");
    }
    let apply = |client: &str, manifest: &str| match client {
        "rota" => cluster.rota_stdin(&["apply", "-f", "-"], manifest),
        _ => cluster.kubectl_stdin(&["apply", "-f", "-"], manifest),
    };
    let bomb = format!(
        "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n{}apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: bomb}}\n",
        (1..12)
            .map(|i| format!(
                "a{i}: &a{i} [{}]\n",
                vec![format!("*a{}", i - 1); 10].join(",")
            ))
            .collect::<String>()
    );
    let deep = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: deep}}\ndata: {}{}\n",
        "{a: ".repeat(20_000),
        "}".repeat(20_000)
    );
    for client in &clients {
        for (what, manifest) in [
            ("alias bomb", bomb.as_str()),
            ("depth", deep.as_str()),
            ("not YAML", "a: [b\n"),
            ("no kind", "apiVersion: v1\nmetadata: {name: x}\n"),
            ("a scalar", "hello\n"),
            (
                "an unquoted on",
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: on}\n",
            ),
            (
                "an unquoted octal",
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: 0755}\n",
            ),
        ] {
            if *client == "kubectl" && what == "depth" {
                continue;
            }
            let output = apply(client, manifest);
            assert!(
                !output.status.success(),
                "{client}, {what}: {}",
                output.text()
            );
            assert!(
                !output.stderr.trim().is_empty(),
                "{client}, {what}: no reason"
            );
        }
        // kubectl itself drops the first of two equal keys before it sends anything.
        if *client == "rota" {
            let doubled = apply(
                client,
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: one, a: two}\n",
            );
            assert!(
                !doubled.status.success() && doubled.stderr.contains("duplicate"),
                "{}",
                doubled.text()
            );
        }
    }
    unharmed(&cluster);

    // Words and numbers as kubectl reads them: both clients must store the same.
    for client in &clients {
        let manifest = format!(
            "apiVersion: rota.dev/v1\nkind: Job\nmetadata: {{name: words-{client}}}\nspec:\n  suspend: on\n  priority: 010\n  completions: 0x10\n  template:\n    spec:\n      command: [\"true\", \"on\", \"010\", 'no']\n"
        );
        let output = apply(client, &manifest);
        assert!(output.status.success(), "{client}: {}", output.text());
        let job = cluster.job(&format!("words-{client}"));
        assert_eq!(job["spec"]["suspend"], true, "{client}");
        assert_eq!(job["spec"]["priority"], 8, "{client}");
        assert_eq!(job["spec"]["completions"], 16, "{client}");
        assert_eq!(
            job["spec"]["template"]["spec"]["command"],
            json!(["true", "on", "010", "no"]),
            "{client}"
        );
    }
}

#[test]
fn a_job_that_can_never_fit_says_so() {
    let cluster = Cluster::one_node();
    cluster.create_job(
        "giant",
        json!({"template": {"spec": {
            "command": ["true"], "resources": {"requests": {"cpu": "5000", "memory": "16Mi"}},
        }}}),
    );
    let job = eventually("the Job is Stalled", || {
        let job = cluster.job("giant");
        check(
            condition(&job, "Stalled").as_deref() == Some("True"),
            || job["status"].to_string(),
        )?;
        Ok(job)
    });
    assert_eq!(reason(&job, "Stalled"), "NeverFits", "{}", job["status"]);
    assert_eq!(condition(&job, "Reconciling").as_deref(), Some("False"));
    let reasons = job["status"]["waitingFor"]["reasons"].to_string();
    assert!(
        reasons.contains("NeverFits") && reasons.contains("cpu"),
        "{reasons}"
    );
    let change = job["status"]["waitingFor"]["smallestChange"]
        .as_str()
        .unwrap_or("");
    assert!(change.contains("cpu"), "what would help: {change:?}");
    let why = cluster.rota(&["why", "giant"]);
    assert!(why.text().contains("cpu"), "{}", why.text());

    cluster.create_job(
        "picky",
        json!({"template": {"spec": {"command": ["true"], "nodeSelector": {"no/such": "label"}}}}),
    );
    eventually("the other Job says what it looks for", || {
        let job = cluster.job("picky");
        let reasons = job["status"]["waitingFor"]["reasons"].to_string();
        check(reasons.contains("NodeSelectorMismatch"), || {
            job["status"].to_string()
        })
    });
    // Neither holds back what can run.
    let output = cluster.rota_stdin(&["apply", "-f", "-"], &example("hello.yaml"));
    assert!(output.status.success());
    cluster.wait_job("hello", "Complete", Duration::from_secs(60));
}

#[test]
fn a_hundred_idle_connections_do_not_hurt() {
    let cluster = no_nodes();
    let http = cluster.http();
    let idle: Vec<_> = (0..100).filter_map(|_| http.connect().ok()).collect();
    let slow: Vec<_> = (0..50)
        .filter_map(|_| std::net::TcpStream::connect(("127.0.0.1", cluster.port())).ok())
        .collect();
    let mut other: Http = cluster.http();
    assert_eq!(other.get("/readyz").status, 200);
    drop((idle, slow));
    unharmed(&cluster);
}
