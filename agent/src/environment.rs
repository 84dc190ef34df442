//! Environment, arguments and directory of a task: pure, from the template and the values it names.

use std::collections::BTreeMap;

use rota_api::kinds::{EnvVarSourceType, KeyReference, Port, TaskSpec};
use rota_api::names::ANNOTATION_COMPLETIONS;

use crate::plan::Desired;

/// PATH of tasks: the usual directories of a Linux system.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a task cannot be started as it is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// CamelCase.
    pub reason: &'static str,
    /// Sentence.
    pub message: String,
}

/// Values of a Secret or ConfigMap; `None` when the object does not exist.
pub type Values<'a> = Option<&'a BTreeMap<String, String>>;

/// Where values come from.
pub trait Lookup {
    /// Of a Secret of the task's namespace.
    fn secret(&self, name: &str) -> Values<'_>;
    /// Of a ConfigMap of the task's namespace.
    fn config_map(&self, name: &str) -> Values<'_>;
}

/// What is known of the task besides its binding.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// uid of the Task.
    pub uid: &'a str,
    /// Labels of the Task.
    pub labels: &'a BTreeMap<String, String>,
    /// Annotations of the Task.
    pub annotations: &'a BTreeMap<String, String>,
    /// Ports as assigned.
    pub ports: &'a [Port],
    /// Directory of the attempt.
    pub attempt_dir: &'a str,
}

/// What the supervisor gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// Directory, absolute; absent: the work directory.
    pub cwd: Option<String>,
}

fn failure<T>(reason: &'static str, message: String) -> Result<T, Failure> {
    Err(Failure { reason, message })
}

/// Replaces `$(VAR)` by its value and `$$` by `$`; what is unknown stays as it is.
pub fn expand(text: &str, vars: &BTreeMap<String, String>) -> String {
    if !text.contains('$') {
        return text.to_string();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(r) = after.strip_prefix('$') {
            out.push('$');
            rest = r;
        } else if let Some((name, r)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            match vars.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = r;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Names of the Secrets and ConfigMaps that a template refers to.
pub fn references(spec: &TaskSpec) -> (Vec<String>, Vec<String>) {
    let (mut secrets, mut maps) = (Vec::new(), Vec::new());
    for source in spec
        .env
        .iter()
        .flatten()
        .filter_map(|e| e.value_from.as_ref())
    {
        secrets.extend(source.secret.iter().map(|s| s.name.clone()));
        maps.extend(source.config_map.iter().map(|s| s.name.clone()));
    }
    for list in [&mut secrets, &mut maps] {
        list.sort();
        list.dedup();
    }
    (secrets, maps)
}

/// Puts everything together.
pub fn prepare(
    d: &Desired,
    spec: &TaskSpec,
    facts: &Facts<'_>,
    lookup: &dyn Lookup,
) -> Result<Prepared, Failure> {
    let work = format!("{}/work", facts.attempt_dir);
    let index = d.spec.index.to_string();
    let mut vars = BTreeMap::from([
        ("PATH".to_string(), PATH.to_string()),
        ("HOME".into(), work.clone()),
        ("ROTA_JOB".into(), d.spec.job_name.clone()),
        ("ROTA_TASK".into(), d.name.clone()),
        ("ROTA_NAMESPACE".into(), d.namespace.clone()),
        ("ROTA_INDEX".into(), index.clone()),
        ("ROTA_ATTEMPT".into(), d.spec.attempt.to_string()),
        ("ROTA_NODE".into(), d.spec.node_name.clone()),
        ("JOB_COMPLETION_INDEX".into(), index),
    ]);
    if let Some(n) = facts.annotations.get(ANNOTATION_COMPLETIONS) {
        vars.insert("ROTA_COMPLETIONS".into(), n.clone());
    }
    for port in facts.ports {
        let name = port.name.to_uppercase().replace('-', "_");
        vars.insert(format!("PORT_{name}"), port.port.to_string());
    }
    for var in spec.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(v), _) => Some(expand(v, &vars)),
            (None, None) => Some(String::new()),
            (None, Some(source)) => match source.type_ {
                EnvVarSourceType::Secret => key(
                    source.secret.as_ref(),
                    "Secret",
                    "SecretNotFound",
                    "SecretKeyNotFound",
                    |n| lookup.secret(n),
                )?,
                EnvVarSourceType::ConfigMap => key(
                    source.config_map.as_ref(),
                    "ConfigMap",
                    "ConfigMapNotFound",
                    "ConfigMapKeyNotFound",
                    |n| lookup.config_map(n),
                )?,
                EnvVarSourceType::Field => Some(field(
                    source.field.as_ref().map_or("", |f| &f.field_path),
                    d,
                    facts,
                )?),
            },
        };
        if let Some(value) = value {
            vars.insert(var.name.clone(), value);
        }
    }
    let argv: Vec<String> = spec
        .command
        .iter()
        .chain(spec.args.iter().flatten())
        .map(|a| expand(a, &vars))
        .collect();
    let cwd = match spec.working_dir.as_deref() {
        None | Some("") => None,
        Some(dir) if dir.starts_with('/') => Some(dir.to_string()),
        Some(dir) if dir.split('/').any(|p| p == "..") => {
            return failure(
                "WorkingDirInvalid",
                format!("the working directory {dir} leaves the task's own directory"),
            );
        }
        Some(dir) => Some(format!("{work}/{dir}")),
    };
    let env: Vec<String> = vars.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
    if argv.iter().chain(&env).any(|s| s.contains('\0')) {
        return failure(
            "InvalidArgument",
            "command or environment hold a NUL character".into(),
        );
    }
    Ok(Prepared { argv, env, cwd })
}

fn key<'a>(
    reference: Option<&KeyReference>,
    kind: &str,
    no_object: &'static str,
    no_key: &'static str,
    find: impl Fn(&str) -> Values<'a>,
) -> Result<Option<String>, Failure> {
    let Some(r) = reference else {
        return failure(
            "InvalidEnvironment",
            format!("a variable of type {kind} names none"),
        );
    };
    let optional = r.optional.unwrap_or(false);
    match find(&r.name) {
        None if optional => Ok(None),
        None => failure(no_object, format!("{kind} {:?} does not exist", r.name)),
        Some(values) => match values.get(&r.key) {
            Some(v) => Ok(Some(v.clone())),
            None if optional => Ok(None),
            None => failure(
                no_key,
                format!("{kind} {:?} has no key {:?}", r.name, r.key),
            ),
        },
    }
}

fn field(path: &str, d: &Desired, facts: &Facts<'_>) -> Result<String, Failure> {
    let inside = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    Ok(match path {
        "metadata.name" => d.name.clone(),
        "metadata.namespace" => d.namespace.clone(),
        "metadata.uid" => facts.uid.to_string(),
        "spec.nodeName" => d.spec.node_name.clone(),
        "spec.index" => d.spec.index.to_string(),
        "spec.attempt" => d.spec.attempt.to_string(),
        _ => {
            if let Some(k) = inside("metadata.labels['") {
                facts.labels.get(k).cloned().unwrap_or_default()
            } else if let Some(k) = inside("metadata.annotations['") {
                facts.annotations.get(k).cloned().unwrap_or_default()
            } else {
                return failure(
                    "FieldNotFound",
                    format!("a task has no field {path:?} for its environment"),
                );
            }
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rota_api::kinds::{EnvVar, EnvVarSource, FieldReference, TaskBinding};

    struct Fixed(BTreeMap<String, String>);
    impl Lookup for Fixed {
        fn secret(&self, name: &str) -> Values<'_> {
            (name == "s").then_some(&self.0)
        }
        fn config_map(&self, name: &str) -> Values<'_> {
            (name == "c").then_some(&self.0)
        }
    }

    fn desired() -> Desired {
        Desired {
            namespace: "ns".into(),
            name: "t".into(),
            spec: TaskBinding {
                job_name: "j".into(),
                job_uid: "u".into(),
                index: 7,
                attempt: 1,
                epoch: 1,
                node_name: "n".into(),
                queue: "default".into(),
                priority: 0,
                requests: Default::default(),
                ports: None,
                revision: "r".into(),
            },
            deleting: false,
            terminal: false,
        }
    }

    fn run(spec: &TaskSpec) -> Result<Prepared, Failure> {
        let labels = BTreeMap::from([("a/b".to_string(), "lab".to_string())]);
        let annotations = BTreeMap::from([(ANNOTATION_COMPLETIONS.to_string(), "9".to_string())]);
        let ports = [Port {
            name: "my-http".into(),
            port: 20001,
        }];
        let facts = Facts {
            uid: "uid",
            labels: &labels,
            annotations: &annotations,
            ports: &ports,
            attempt_dir: "/d",
        };
        prepare(
            &desired(),
            spec,
            &facts,
            &Fixed(BTreeMap::from([("k".into(), "val".into())])),
        )
    }

    fn of_secret(name: &str, k: &str, optional: Option<bool>) -> EnvVar {
        EnvVar {
            name: "X".into(),
            value: None,
            value_from: Some(EnvVarSource {
                type_: EnvVarSourceType::Secret,
                secret: Some(KeyReference {
                    name: name.into(),
                    key: k.into(),
                    optional,
                }),
                config_map: None,
                field: None,
            }),
        }
    }

    #[test]
    fn builds_a_clean_environment_with_ours_and_theirs() {
        let var = |n: &str, v: &str| EnvVar {
            name: n.into(),
            value: Some(v.into()),
            value_from: None,
        };
        let mut label = var("L", "");
        label.value = None;
        label.value_from = Some(EnvVarSource {
            type_: EnvVarSourceType::Field,
            secret: None,
            config_map: None,
            field: Some(FieldReference {
                field_path: "metadata.labels['a/b']".into(),
            }),
        });
        let spec = TaskSpec {
            command: vec!["run".into(), "$(A)".into()],
            args: Some(vec!["$(B) $$(A) $(nope) $".into()]),
            env: Some(vec![
                var("A", "i$(ROTA_INDEX)"),
                var("B", "$(A)-$(PORT_MY_HTTP)"),
                label,
                of_secret("s", "k", None),
            ]),
            ..TaskSpec::default()
        };
        let p = run(&spec).unwrap();
        assert_eq!(p.argv, ["run", "i7", "i7-20001 $(A) $(nope) $"]);
        for want in [
            "HOME=/d/work",
            "ROTA_JOB=j",
            "ROTA_TASK=t",
            "ROTA_NAMESPACE=ns",
            "ROTA_INDEX=7",
            "ROTA_ATTEMPT=1",
            "ROTA_NODE=n",
            "ROTA_COMPLETIONS=9",
            "JOB_COMPLETION_INDEX=7",
            "PORT_MY_HTTP=20001",
            "L=lab",
            "X=val",
        ] {
            assert!(p.env.iter().any(|e| e == want), "{want} in {:?}", p.env);
        }
        assert_eq!(p.cwd, None);
    }

    #[test]
    fn missing_values_fail_with_their_reason_unless_optional() {
        let spec = |e| TaskSpec {
            command: vec!["x".into()],
            env: Some(vec![e]),
            ..TaskSpec::default()
        };
        assert_eq!(
            run(&spec(of_secret("no", "k", None))).unwrap_err().reason,
            "SecretNotFound"
        );
        assert_eq!(
            run(&spec(of_secret("s", "no", None))).unwrap_err().reason,
            "SecretKeyNotFound"
        );
        assert!(
            !run(&spec(of_secret("no", "k", Some(true))))
                .unwrap()
                .env
                .iter()
                .any(|e| e.starts_with("X="))
        );
    }

    #[test]
    fn working_directories_stay_where_they_belong() {
        let spec = |d: &str| TaskSpec {
            command: vec!["x".into()],
            working_dir: Some(d.into()),
            ..TaskSpec::default()
        };
        assert_eq!(run(&spec("/opt")).unwrap().cwd.as_deref(), Some("/opt"));
        assert_eq!(
            run(&spec("a/b")).unwrap().cwd.as_deref(),
            Some("/d/work/a/b")
        );
        assert_eq!(
            run(&spec("a/../../x")).unwrap_err().reason,
            "WorkingDirInvalid"
        );
    }
}
