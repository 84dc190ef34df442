//! `rota wait`: waits until objects meet a condition, exist, or are gone.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::context::Context;
use crate::discovery::Resource;
use crate::error::{CliError, Result};
use crate::output::jsonpath::{self, Path};
use crate::output::{named, time};
use crate::progress;
use crate::selector;
use crate::verbs::delete;
use crate::watch::{self, Selection};

/// Flags of `rota wait`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// KIND NAME ..., KIND/NAME ..., or KIND with -l or --all
    #[arg(required = true, value_name = "KIND")]
    what: Vec<String>,
    /// condition=TYPE[=STATUS], jsonpath={PATH}[=VALUE], create or delete
    #[arg(long = "for", value_name = "WHAT")]
    condition: String,
    /// How long to wait; 0 looks once, negative is a week
    #[arg(long, value_name = "DURATION", default_value = "30s", allow_hyphen_values = true)]
    timeout: String,
    /// Objects with these labels
    #[arg(short = 'l', long, value_name = "QUERY", default_value = "")]
    selector: String,
    /// Objects with these field values
    #[arg(long, value_name = "QUERY", default_value = "")]
    field_selector: String,
    /// All objects of the kind in the namespace
    #[arg(long)]
    all: bool,
}

/// A week, as kubectl takes a negative time-out.
const NEGATIVE_TIMEOUT: Duration = Duration::from_secs(7 * 86400);

#[derive(Clone, Debug, PartialEq)]
enum Goal {
    Condition(String, String),
    JsonPath(Path, Option<String>),
    Create,
    Delete,
}

impl Goal {
    fn parse(text: &str) -> Result<Goal> {
        match text.split_once('=') {
            None if text == "create" => Ok(Goal::Create),
            None if text == "delete" => Ok(Goal::Delete),
            Some(("condition", rest)) if !rest.is_empty() => {
                let (kind, status) = rest.split_once('=').unwrap_or((rest, "True"));
                Ok(Goal::Condition(kind.into(), status.into()))
            }
            Some(("jsonpath", rest)) if !rest.is_empty() => {
                // The value follows the closing brace; filters inside may hold = as well.
                let rest = rest.trim_matches('\'');
                let (path, value) = match rest.rfind('}') {
                    Some(i) => (&rest[..=i], rest[i + 1..].trim_start_matches('\'').strip_prefix('=')),
                    None => rest.split_once('=').map_or((rest, None), |(p, v)| (p, Some(v))),
                };
                Ok(Goal::JsonPath(Path::parse(path)?, value.map(String::from)))
            }
            _ => Err(CliError::new(
                format!("--for={text} is not known"),
                "one of: condition=TYPE, condition=TYPE=STATUS, jsonpath='{PATH}'=VALUE, create, delete",
            )),
        }
    }

    /// Whether the object meets it; a condition counts only for the newest generation.
    fn met(&self, object: &Value) -> bool {
        match self {
            Goal::Condition(kind, status) => progress::condition(object, kind).is_some_and(|c| {
                let generation = object["metadata"]["generation"].as_i64();
                let observed = c["observedGeneration"]
                    .as_i64()
                    .or_else(|| object["status"]["observedGeneration"].as_i64());
                let current = match (generation, observed) {
                    (Some(g), Some(o)) => o >= g,
                    _ => true,
                };
                current && c["status"].as_str().is_some_and(|s| s.eq_ignore_ascii_case(status))
            }),
            Goal::JsonPath(path, value) => {
                let found = path.find(object);
                match value {
                    None => !found.is_empty(),
                    Some(v) => !found.is_empty() && found.iter().all(|f| jsonpath::show(f) == *v),
                }
            }
            Goal::Create => true,
            Goal::Delete => false,
        }
    }
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    let goal = Goal::parse(&args.condition)?;
    let timeout = match args.timeout.strip_prefix('-') {
        Some(_) => NEGATIVE_TIMEOUT,
        None => time::duration(&args.timeout).map_err(|e| CliError::new(e, "for example --timeout=5m"))?,
    };
    let deadline = Instant::now() + timeout;
    let namespace = cx.namespace().await?;
    let api = cx.api().await?;
    let mut objects: Vec<(Resource, String)> = Vec::new();
    for target in selector::targets(&args.what, &*cx.discovery().await?)? {
        let mut names = target.names;
        if names.is_empty() {
            if !args.all && args.selector.is_empty() && args.field_selector.is_empty() {
                return Err(CliError::new(
                    format!("no {} named", target.resource.plural),
                    "name them, select them with -l, or take all with --all",
                ));
            }
            let selection = Selection {
                labels: args.selector.clone(),
                fields: args.field_selector.clone(),
            };
            let (items, _) = watch::list(api, &target.resource.collection(Some(&namespace)), &selection).await?;
            names.extend(items.iter().filter_map(|i| i["metadata"]["name"].as_str().map(String::from)));
            if names.is_empty() && goal != Goal::Delete {
                return Err(CliError::new(
                    format!("no {} match", target.resource.plural),
                    format!("`rota get {} -n {namespace}` lists what is there", target.resource.plural),
                ));
            }
        }
        objects.extend(names.into_iter().map(|n| (target.resource.clone(), n)));
    }
    for (resource, name) in &objects {
        let shown = named(resource, name);
        if goal == Goal::Delete {
            let path = resource.object(&namespace, name);
            let uid = match api.get(&path).await {
                Ok(o) => o["metadata"]["uid"].as_str().unwrap_or("").to_string(),
                Err(e) if e.is_not_found() => String::new(),
                Err(e) => return Err(e.into()),
            };
            delete::gone(api, resource, &path, &uid, Some(deadline)).await?;
            cx.print(&format!("{shown} condition met\n"))?;
            continue;
        }
        let mut last = Value::Null;
        // A time-out of 0 still looks once.
        let until = deadline.max(Instant::now() + LOOK_ONCE);
        let end = progress::follow(api, resource, &namespace, name, Some(until), |object| match object {
            Some(o) if goal.met(o) => Some(Ok(())),
            Some(o) => {
                last = o.clone();
                None
            }
            None if goal == Goal::Create => None,
            None => Some(Err(CliError::new(
                format!("{} {name:?} not found (NotFound)", resource.qualified()),
                "`--for=create` waits until it exists",
            ))),
        })
        .await?;
        match end {
            Some(Ok(())) => cx.print(&format!("{shown} condition met\n"))?,
            Some(Err(e)) => return Err(e),
            None => {
                return Err(CliError::new(
                    format!("timed out waiting for {} on {shown}", args.condition),
                    hint(&last, resource, name),
                ));
            }
        }
    }
    Ok(())
}

/// Enough for one request on a working network.
const LOOK_ONCE: Duration = Duration::from_millis(500);

fn hint(last: &Value, resource: &Resource, name: &str) -> String {
    if resource.kind == "Job" && resource.group == rota_api::names::GROUP {
        return format!("now: {}; `rota why {name}` says more", progress::counts(last));
    }
    format!("`rota describe {}/{name}` shows its conditions", resource.singular)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn goals_are_read_and_judged() {
        let object = json!({"metadata": {"generation": 2}, "status": {"phase": "Running", "observedGeneration": 2,
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Old", "status": "True", "observedGeneration": 1}]}});
        for (goal, met) in [
            ("condition=Ready", true),
            ("condition=ready=true", true),
            ("condition=Ready=False", false),
            ("condition=Complete", false),
            ("condition=Old", false),
            ("jsonpath={.status.phase}=Running", true),
            ("jsonpath='{.status.phase}'=Failed", false),
            ("jsonpath={.status.phase}", true),
            ("jsonpath={.status.none}", false),
            ("jsonpath={.status.conditions[?(@.type==\"Ready\")].status}=True", true),
            ("create", true),
        ] {
            assert_eq!(Goal::parse(goal).unwrap().met(&object), met, "{goal}");
        }
        for bad in ["", "Ready", "condition=", "jsonpath={.a"] {
            assert!(Goal::parse(bad).is_err(), "{bad}");
        }
    }
}
