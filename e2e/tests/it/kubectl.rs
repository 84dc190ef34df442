//! What kubectl does in daily use, with every version that is present and an empty discovery cache.

use std::path::{Path, PathBuf};

use crate::harness::cluster::condition;
use crate::harness::process::run_with_input;
use crate::harness::wait::check;
use crate::harness::{Cluster, Output, eventually, example, kubectls, on_path, run, skip};

/// One kubectl against one cluster.
struct Kubectl<'a> {
    cluster: &'a Cluster,
    program: PathBuf,
    old: bool,
}

impl Kubectl<'_> {
    fn run(&self, args: &[&str]) -> Output {
        run(&mut self.cluster.kubectl_command(&self.program, args))
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "kubectl {args:?}:\n{}",
            output.text()
        );
        output.stdout
    }

    #[track_caller]
    fn fails(&self, args: &[&str], with: &str) {
        let output = self.run(args);
        assert!(
            !output.status.success(),
            "kubectl {args:?} succeeded:\n{}",
            output.text()
        );
        assert!(
            output.stderr.contains(with),
            "kubectl {args:?}:\n{}",
            output.text()
        );
    }

    #[track_caller]
    fn stdin(&self, args: &[&str], manifest: &str) -> Output {
        run_with_input(
            &mut self.cluster.kubectl_command(&self.program, args),
            manifest.as_bytes(),
        )
    }

    #[track_caller]
    fn stdin_ok(&self, args: &[&str], manifest: &str) -> String {
        let output = self.stdin(args, manifest);
        assert!(
            output.status.success(),
            "kubectl {args:?}:\n{}",
            output.text()
        );
        output.stdout
    }
}

#[test]
fn kubectl_on_the_path() {
    match on_path("kubectl") {
        Some(program) => all_checks(&program),
        None => skip("there is no kubectl on the PATH"),
    }
}

/// The newest that is here, or the one that `KUBECTL` names.
#[test]
fn newest_kubectl() {
    let named = std::env::var_os("KUBECTL").map(PathBuf::from);
    let usual = on_path("kubectl").and_then(|p| p.canonicalize().ok());
    match named.or_else(|| Some(kubectls::installed().pop()?.program)) {
        Some(program) if Some(&program) == usual.as_ref() => {
            skip("the newest kubectl is the one on the PATH, which has a test of its own");
        }
        Some(program) => all_checks(&program),
        None => skip("there is no kubectl here, and KUBECTL names none"),
    }
}

/// Debian's, the oldest that has to work: the one that is here, or the one that `KUBECTL_120` names.
#[test]
fn kubectl_1_20() {
    let named = std::env::var_os("KUBECTL_120").map(PathBuf::from);
    let old = || kubectls::installed().into_iter().find(|k| k.minor == 20);
    match named.or_else(|| Some(old()?.program)) {
        Some(program) => all_checks(&program),
        None => skip("there is no kubectl 1.20 here, and KUBECTL_120 names none"),
    }
}

fn all_checks(program: &Path) {
    let found = kubectls::Kubectl::ask(program)
        .unwrap_or_else(|| panic!("{} is no kubectl", program.display()));
    eprintln!("kubectl 1.{}: {}", found.minor, program.display());
    let cluster = Cluster::one_node();
    let kubectl = Kubectl {
        cluster: &cluster,
        program: program.to_path_buf(),
        old: found.minor <= 20,
    };
    discovery(&kubectl);
    jobs(&kubectl);
    reading(&kubectl);
    changing(&kubectl);
    core_kinds(&kubectl);
    namespaces(&kubectl);
    nodes(&kubectl);
    refusals(&kubectl);
    if !kubectl.old {
        newer(&kubectl);
    }
}

fn discovery(k: &Kubectl) {
    let version = k.ok(&["version"]);
    assert!(version.contains("Server Version"), "{version}");
    let resources = k.ok(&["api-resources"]);
    for kind in [
        "jobs",
        "tasks",
        "queues",
        "nodes",
        "configmaps",
        "leases",
        "namespaces",
        "events",
    ] {
        assert!(resources.contains(kind), "{kind} in\n{resources}");
    }
    let ours = resources.lines().find(|l| l.starts_with("jobs ")).unwrap();
    assert!(
        ours.contains("rj") && ours.contains("rota.dev") && ours.contains("Job"),
        "{ours}"
    );
    let versions = k.ok(&["api-versions"]);
    for version in ["rota.dev/v1", "coordination.k8s.io/v1", "events.k8s.io/v1"] {
        assert!(versions.lines().any(|l| l == version), "{versions}");
    }
    assert!(versions.lines().any(|l| l == "v1"), "{versions}");
    let explained = k.ok(&["explain", "job.spec.completions"]);
    assert!(
        explained.contains("completions") && explained.contains("integer"),
        "{explained}"
    );
    let explained = k.ok(&["explain", "jobs"]);
    assert!(
        explained.contains("spec") && explained.contains("status"),
        "{explained}"
    );
    let explained = k.ok(&["explain", "job.spec.template.spec.env"]);
    assert!(explained.contains("valueFrom"), "{explained}");
    assert!(k.run(&["explain", "job.spec.nonsense"]).status.code() != Some(0));
    assert_eq!(k.ok(&["get", "--raw", "/readyz"]).trim(), "ok");
}

const SLEEPER: &str = r#"
apiVersion: rota.dev/v1
kind: Job
metadata:
  name: sleeper
  labels: {team: red}
spec:
  type: Service
  replicas: 1
  template:
    spec:
      command: [sleep, "3600"]
"#;

fn jobs(k: &Kubectl) {
    let said = k.stdin_ok(&["apply", "-f", "-"], &example("hello.yaml"));
    assert_eq!(said.trim(), "job.rota.dev/hello created");
    let said = k.stdin_ok(&["apply", "-f", "-"], &example("hello.yaml"));
    assert_eq!(said.trim(), "job.rota.dev/hello unchanged");
    let said = k.stdin_ok(&["create", "-f", "-"], SLEEPER);
    assert_eq!(said.trim(), "job.rota.dev/sleeper created");
    let again = k.stdin(&["create", "-f", "-"], SLEEPER);
    assert!(again.stderr.contains("AlreadyExists"), "{}", again.text());
    k.ok(&[
        "wait",
        "--for=condition=Complete",
        "job/hello",
        "--timeout=60s",
    ]);
    k.ok(&[
        "wait",
        "--for=condition=Ready",
        "job/sleeper",
        "--timeout=60s",
    ]);
    let changed = SLEEPER.replace("replicas: 1", "replicas: 2");
    let said = k.stdin_ok(&["apply", "-f", "-"], &changed);
    assert_eq!(said.trim(), "job.rota.dev/sleeper configured");
    eventually("two replicas are ready", || {
        let ready = k.ok(&["get", "job", "sleeper", "-o", "jsonpath={.status.ready}"]);
        check(ready == "2", || ready.clone())
    });
    let said = k.ok(&["scale", "job/sleeper", "--replicas=1"]);
    assert!(said.contains("scaled"), "{said}");
    let said = k.ok(&[
        "scale",
        "job/sleeper",
        "--replicas=2",
        "--current-replicas=1",
    ]);
    assert!(said.contains("scaled"), "{said}");
    k.fails(
        &[
            "scale",
            "job/sleeper",
            "--replicas=3",
            "--current-replicas=7",
        ],
        "2",
    );
    k.ok(&["scale", "job/sleeper", "--replicas=1", "--timeout=60s"]);
}

fn reading(k: &Kubectl) {
    let table = k.ok(&["get", "jobs"]);
    let head = table.lines().next().unwrap();
    for column in [
        "NAME",
        "PHASE",
        "RUNNING",
        "WAITING",
        "SUCCEEDED",
        "FAILED",
        "AGE",
    ] {
        assert!(head.contains(column), "{head}");
    }
    assert!(!head.contains("QUEUE"), "{head}");
    assert!(k.ok(&["get", "jobs", "-o", "wide"]).contains("QUEUE"));
    assert!(k.ok(&["get", "rj"]).contains("hello"));
    assert!(k.ok(&["get", "jobs.rota.dev", "hello"]).contains("hello"));
    assert_eq!(
        k.ok(&["get", "jobs", "-o", "name"]).trim(),
        "job.rota.dev/hello\njob.rota.dev/sleeper"
    );
    let json: serde_json::Value =
        serde_json::from_str(&k.ok(&["get", "jobs", "-o", "json"])).unwrap();
    assert_eq!(json["items"].as_array().unwrap().len(), 2);
    assert!(
        k.ok(&["get", "job", "hello", "-o", "yaml"])
            .contains("kind: Job")
    );
    assert_eq!(
        k.ok(&["get", "job", "hello", "-o", "jsonpath={.status.phase}"]),
        "Succeeded"
    );
    let custom = k.ok(&[
        "get",
        "jobs",
        "-o",
        "custom-columns=N:.metadata.name,P:.status.phase",
    ]);
    assert!(
        custom.contains("hello") && custom.contains("Succeeded"),
        "{custom}"
    );
    let sorted = k.ok(&["get", "jobs", "--sort-by=.metadata.creationTimestamp"]);
    assert!(
        sorted.find("hello").unwrap() < sorted.find("sleeper").unwrap(),
        "{sorted}"
    );
    assert!(k.ok(&["get", "jobs", "-A"]).contains("NAMESPACE"));
    let red = k.ok(&["get", "jobs", "-l", "team=red", "-o", "name"]);
    assert_eq!(red.trim(), "job.rota.dev/sleeper");
    let not = k.ok(&["get", "jobs", "-l", "team notin (red)", "-o", "name"]);
    assert_eq!(not.trim(), "job.rota.dev/hello");
    let one = k.ok(&[
        "get",
        "jobs",
        "--field-selector",
        "metadata.name=hello",
        "-o",
        "name",
    ]);
    assert_eq!(one.trim(), "job.rota.dev/hello");
    let paged = k.ok(&["get", "jobs", "--chunk-size=1", "-o", "name"]);
    assert_eq!(paged.lines().count(), 2);
    let tasks = k.ok(&["get", "tasks"]);
    assert!(
        tasks.contains("Running") && tasks.contains("NODE"),
        "{tasks}"
    );
    let all = k.ok(&["get", "all"]);
    assert!(
        all.contains("job.rota.dev/hello") && all.contains("task.rota.dev/"),
        "{all}"
    );
    let described = k.ok(&["describe", "job", "hello"]);
    assert!(
        described.contains("Succeeded") && described.contains("Events"),
        "{described}"
    );
    k.ok(&["describe", "tasks"]);
    k.ok(&["get", "events"]);
    assert!(k.ok(&["get", "jobs", "--no-headers"]).lines().count() == 2);
}

fn changing(k: &Kubectl) {
    k.ok(&["label", "job", "hello", "colour=green"]);
    assert!(
        k.ok(&["get", "jobs", "-l", "colour=green", "-o", "name"])
            .contains("hello")
    );
    k.ok(&["label", "job", "hello", "colour-"]);
    assert_eq!(k.ok(&["get", "jobs", "-l", "colour", "-o", "name"]), "");
    k.ok(&["annotate", "job", "hello", "note=a longer text"]);
    let generation = k.ok(&[
        "get",
        "job",
        "sleeper",
        "-o",
        "jsonpath={.metadata.generation}",
    ]);
    k.ok(&[
        "patch",
        "job",
        "sleeper",
        "--type=merge",
        "-p",
        r#"{"spec":{"priority":7}}"#,
    ]);
    assert_eq!(
        k.ok(&["get", "job", "sleeper", "-o", "jsonpath={.spec.priority}"]),
        "7"
    );
    let after = k.ok(&[
        "get",
        "job",
        "sleeper",
        "-o",
        "jsonpath={.metadata.generation}",
    ]);
    assert!(after.parse::<u64>().unwrap() > generation.parse().unwrap());
    k.ok(&[
        "patch",
        "job",
        "sleeper",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/spec/priority","value":8}]"#,
    ]);
    k.fails(
        &[
            "patch",
            "job",
            "sleeper",
            "--type=json",
            "-p",
            r#"[{"op":"test","path":"/spec/priority","value":1}]"#,
        ],
        "",
    );
    k.fails(
        &[
            "patch",
            "job",
            "sleeper",
            "-p",
            r#"{"spec":{"priority":9}}"#,
        ],
        "",
    );
    let yaml = k.ok(&["get", "job", "sleeper", "-o", "yaml"]);
    let replaced = k.stdin_ok(
        &["replace", "-f", "-"],
        &yaml.replace("priority: 8", "priority: 3"),
    );
    assert!(replaced.contains("replaced"), "{replaced}");
    // The same file again carries a version that is no longer the newest.
    let stale = k.stdin(&["replace", "-f", "-"], &yaml);
    assert!(
        stale.stderr.contains("Conflict") || stale.stderr.contains("has been modified"),
        "{}",
        stale.text()
    );
    let edited = {
        let mut command = k
            .cluster
            .kubectl_command(&k.program, &["edit", "job", "sleeper"]);
        command.env("KUBE_EDITOR", "sed -i s/team:\\ red/team:\\ blue/");
        run(&mut command)
    };
    assert!(edited.status.success(), "{}", edited.text());
    assert_eq!(
        k.ok(&[
            "get",
            "job",
            "sleeper",
            "-o",
            "jsonpath={.metadata.labels.team}"
        ]),
        "blue"
    );
    k.ok(&["delete", "job", "sleeper", "--wait=true", "--timeout=60s"]);
    k.fails(&["get", "job", "sleeper"], "NotFound");
    k.ok(&["delete", "job", "sleeper", "--ignore-not-found"]);
    k.fails(&["delete", "job", "sleeper"], "not found");
}

fn core_kinds(k: &Kubectl) {
    let map =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {a: \"1\", b: \"2\"}\n";
    let said = k.stdin_ok(&["apply", "-f", "-"], map);
    assert_eq!(said.trim(), "configmap/settings created");
    let said = k.stdin_ok(&["apply", "-f", "-"], &map.replace("b: \"2\"", "c: \"3\""));
    assert_eq!(said.trim(), "configmap/settings configured");
    assert_eq!(
        k.ok(&["get", "cm", "settings", "-o", "jsonpath={.data}"]),
        r#"{"a":"1","c":"3"}"#
    );
    k.ok(&["patch", "cm", "settings", "-p", r#"{"data":{"d":"4"}}"#]);
    assert_eq!(
        k.ok(&["get", "cm", "settings", "-o", "jsonpath={.data.d}"]),
        "4"
    );
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: key}\nstringData: {word: open}\n";
    k.stdin_ok(&["apply", "-f", "-"], secret);
    assert_eq!(
        k.ok(&["get", "secret", "key", "-o", "jsonpath={.data.word}"]),
        "b3Blbg=="
    );
    assert_eq!(
        k.ok(&["get", "secret", "key", "-o", "jsonpath={.stringData}"]),
        ""
    );
    k.ok(&["get", "serviceaccounts"]);
    k.ok(&["get", "leases", "-A"]);
    let lists = k.ok(&["get", "cm,secret", "-o", "name"]);
    assert!(
        lists.contains("configmap/settings") && lists.contains("secret/key"),
        "{lists}"
    );
    k.ok(&["delete", "cm/settings", "secret/key"]);
}

fn namespaces(k: &Kubectl) {
    let space = "apiVersion: v1\nkind: Namespace\nmetadata: {name: lab}\n";
    k.stdin_ok(&["apply", "-f", "-"], space);
    assert!(k.ok(&["get", "ns"]).contains("Active"));
    assert_eq!(
        k.ok(&[
            "get",
            "ns",
            "lab",
            "-o",
            "jsonpath={.metadata.labels.kubernetes\\.io/metadata\\.name}"
        ]),
        "lab"
    );
    k.stdin_ok(&["apply", "-n", "lab", "-f", "-"], &example("hello.yaml"));
    k.ok(&[
        "wait",
        "-n",
        "lab",
        "--for=condition=Complete",
        "job/hello",
        "--timeout=60s",
    ]);
    assert!(k.ok(&["get", "jobs", "-A"]).contains("lab"));
    k.ok(&["delete", "ns", "lab", "--timeout=60s"]);
    k.fails(&["get", "ns", "lab"], "NotFound");
    let missing = k.stdin(&["create", "-n", "lab", "-f", "-"], &example("hello.yaml"));
    assert!(
        missing.stderr.contains("namespaces \"lab\" not found"),
        "{}",
        missing.text()
    );
    k.fails(&["delete", "ns", "default"], "");
}

fn nodes(k: &Kubectl) {
    let table = k.ok(&["get", "nodes"]);
    assert!(table.contains("Ready"), "{table}");
    let name = k
        .ok(&["get", "nodes", "-o", "name"])
        .trim()
        .trim_start_matches("node/")
        .to_string();
    k.ok(&["cordon", &name]);
    assert!(k.ok(&["get", "nodes"]).contains("SchedulingDisabled"));
    let manifest = example("hello.yaml").replace("name: hello", "name: held");
    k.stdin_ok(&["apply", "-f", "-"], &manifest);
    eventually("the Job says why it waits", || {
        let job = k.cluster.job("held");
        check(
            job["status"]["waitingFor"]["reasons"][0]["reason"] == "NodeUnschedulable",
            || job["status"].to_string(),
        )
    });
    k.ok(&["uncordon", &name]);
    k.ok(&[
        "wait",
        "--for=condition=Complete",
        "job/held",
        "--timeout=60s",
    ]);
    k.ok(&["taint", "node", &name, "upkeep=now:NoSchedule"]);
    let manifest = example("hello.yaml").replace("name: hello", "name: tainted");
    k.stdin_ok(&["apply", "-f", "-"], &manifest);
    eventually("the Job says that the taint is in its way", || {
        let job = k.cluster.job("tainted");
        check(
            job["status"]["waitingFor"]["reasons"][0]["reason"] == "TaintNotTolerated",
            || job["status"].to_string(),
        )
    });
    k.ok(&["taint", "node", &name, "upkeep-"]);
    k.ok(&[
        "wait",
        "--for=condition=Complete",
        "job/tainted",
        "--timeout=60s",
    ]);
}

fn refusals(k: &Kubectl) {
    k.fails(
        &["get", "job", "nothing"],
        "jobs.rota.dev \"nothing\" not found",
    );
    k.fails(
        &["get", "unicorns"],
        "the server doesn't have a resource type \"unicorns\"",
    );
    let immutable = example("hello.yaml").replace("\"echo\"", "\"printf\"");
    let output = k.stdin(&["apply", "-f", "-"], &immutable);
    assert!(
        !output.status.success() && output.stderr.contains("immutable"),
        "{}",
        output.text()
    );
    let bad = example("hello.yaml").replace("name: hello", "name: Hello_World");
    let output = k.stdin(&["apply", "-f", "-"], &bad);
    assert!(
        output.stderr.contains("Invalid value") || output.stderr.contains("is invalid"),
        "{}",
        output.text()
    );
    assert_eq!(
        condition(&k.cluster.job("hello"), "Complete").as_deref(),
        Some("True")
    );
}

/// What kubectl does since 1.27.
fn newer(k: &Kubectl) {
    let unknown =
        example("hello.yaml").replace("spec:\n  template", "spec:\n  bogus: 1\n  template");
    let output = k.stdin(
        &["apply", "-f", "-"],
        &unknown.replace("name: hello", "name: strict"),
    );
    assert!(!output.status.success(), "{}", output.text());
    assert!(
        output.stderr.contains("unknown field \"spec.bogus\""),
        "{}",
        output.text()
    );
    let output = k.stdin(
        &["apply", "--validate=warn", "-f", "-"],
        &unknown.replace("name: hello", "name: warned"),
    );
    assert!(output.status.success(), "{}", output.text());
    assert!(
        output.stderr.contains("unknown field \"spec.bogus\""),
        "{}",
        output.text()
    );
    assert!(
        !k.ok(&["get", "job", "warned", "-o", "yaml"])
            .contains("spec.bogus")
    );

    let dry = k.stdin_ok(
        &["apply", "--dry-run=server", "-f", "-"],
        &example("hello.yaml").replace("name: hello", "name: dry"),
    );
    assert!(dry.contains("server dry run"), "{dry}");
    k.fails(&["get", "job", "dry"], "NotFound");
    k.ok(&["delete", "job", "warned", "--dry-run=server"]);
    k.ok(&["get", "job", "warned"]);
    let changed =
        example("hello.yaml").replace("metadata:", "metadata:\n  labels: {diff: \"yes\"}");
    let diff = k.stdin(&["diff", "-f", "-"], &changed);
    assert_eq!(diff.status.code(), Some(1), "{}", diff.text());
    assert!(diff.stdout.contains("diff: \"yes\""), "{}", diff.text());
    assert_eq!(
        k.stdin(&["diff", "-f", "-"], &example("hello.yaml"))
            .status
            .code(),
        Some(0)
    );

    let scale = k.ok(&["get", "job", "hello", "--subresource=scale", "-o", "yaml"]);
    assert!(scale.contains("kind: Scale"), "{scale}");
    k.ok(&["get", "job", "hello", "--subresource=status", "-o", "name"]);
    k.ok(&[
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "job/hello",
        "--timeout=30s",
    ]);
    k.ok(&["events", "--for", "job/hello"]);
    k.ok(&["delete", "jobs", "--all", "--timeout=60s"]);
    assert_eq!(k.ok(&["get", "jobs", "-o", "name"]), "");
}
