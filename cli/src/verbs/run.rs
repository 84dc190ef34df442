//! `rota run`: one command as a Job.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::client::Failure;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output::{self, named, time};
use crate::progress::{self, Standing};

/// How long `run` without --wait looks whether the Job starts: placement takes a fraction of it.
const PLACEMENT_LOOK: Duration = Duration::from_secs(3);
/// Tries to find a free generated name.
const NAME_TRIES: usize = 5;

/// Flags of `rota run`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Exit codes: 0 started (with --wait: done), 1 error or failed, 2 accepted but cannot be placed now.")]
pub struct Args {
    /// Name of the Job; otherwise made from the command
    #[arg(long)]
    name: Option<String>,
    /// CPU of each task, such as 500m
    #[arg(long, value_name = "QUANTITY")]
    cpu: Option<String>,
    /// Memory of each task, such as 256Mi
    #[arg(long, visible_alias = "mem", value_name = "QUANTITY")]
    memory: Option<String>,
    /// Pieces of nvidia.com/gpu of each task
    #[arg(long, value_name = "N")]
    gpu: Option<u32>,
    /// Tasks to run at once; for a service, to keep running
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// Tasks to complete
    #[arg(long, visible_alias = "array", value_name = "N", conflicts_with = "service")]
    completions: Option<u32>,
    /// Queue that pays
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Higher goes first inside the queue
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    priority: Option<i32>,
    /// Start only when all tasks that may run at once can start together, or at least N of them
    #[arg(long, value_name = "N", num_args = 0..=1)]
    gang: Option<Option<u32>>,
    /// How long one task is expected to run, in seconds or such as 5m; order, backfill and forecasts use it
    #[arg(long, value_name = "SECONDS", value_parser = time::duration, conflicts_with = "service")]
    expected: Option<Duration>,
    /// Keep it running instead of running it to completion
    #[arg(long)]
    service: bool,
    /// Environment variable, such as KEY=VALUE; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Directory on the node to start in
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// Label of the Job, such as team=ml; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Wait until it is done (a service: until it is available)
    #[arg(long)]
    wait: bool,
    /// How long to wait, 0 without end
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = time::duration, requires = "wait")]
    timeout: Duration,
    /// Print the Job instead of creating it (client), or let the server check it (server)
    #[arg(long, value_name = "WHERE", num_args = 0..=1, default_missing_value = "client", value_parser = ["none", "client", "server"], default_value = "none")]
    dry_run: String,
    /// name, yaml or json of the Job
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<String>,
    /// Command and its arguments, not run in a shell
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// The Job that the flags describe.
fn job(args: &Args, name: &str, namespace: &str) -> Result<Value> {
    let mut spec = Map::new();
    spec.insert("type".into(), if args.service { "Service" } else { "Batch" }.into());
    if let Some(n) = args.completions {
        spec.insert("completions".into(), n.into());
    } else if let Some(n) = args.replicas.filter(|_| !args.service) {
        // "Run it N times at once" is what a batch with replicas alone means.
        spec.insert("completions".into(), n.into());
    }
    if let Some(n) = args.replicas {
        spec.insert("replicas".into(), n.into());
    }
    if let Some(q) = &args.queue {
        spec.insert("queue".into(), q.clone().into());
    }
    if let Some(p) = args.priority {
        spec.insert("priority".into(), p.into());
    }
    if let Some(min) = args.gang {
        let gang = min.map_or(json!({}), |n| json!({"minAvailable": n}));
        spec.insert("gang".into(), gang);
    }
    if let Some(expected) = args.expected {
        let whole = expected.as_secs().max(1);
        spec.insert("expectedDurationSeconds".into(), whole.into());
    }
    let mut task = Map::new();
    task.insert("command".into(), json!(args.command));
    if !args.env.is_empty() {
        let env = pairs(&args.env, "--env")?;
        let env: Vec<Value> = env.into_iter().map(|(k, v)| json!({"name": k, "value": v})).collect();
        task.insert("env".into(), env.into());
    }
    if let Some(dir) = &args.workdir {
        task.insert("workingDir".into(), dir.clone().into());
    }
    let mut requests = Map::new();
    for (resource, value) in [("cpu", &args.cpu), ("memory", &args.memory)] {
        if let Some(v) = value {
            v.parse::<rota_api::quantity::Quantity>()
                .map_err(|e| CliError::new(format!("--{resource}: {e}"), "for example --cpu 500m --memory 256Mi"))?;
            requests.insert(resource.into(), v.clone().into());
        }
    }
    if let Some(n) = args.gpu {
        requests.insert("nvidia.com/gpu".into(), n.to_string().into());
    }
    if !requests.is_empty() {
        task.insert("resources".into(), json!({"requests": requests}));
    }
    spec.insert("template".into(), json!({"spec": task}));
    let mut metadata = json!({"name": name, "namespace": namespace});
    if !args.labels.is_empty() {
        let labels: Map<String, Value> = pairs(&args.labels, "--label")?.into_iter().map(|(k, v)| (k, v.into())).collect();
        metadata["labels"] = labels.into();
    }
    Ok(json!({
        "apiVersion": rota_api::names::API_VERSION,
        "kind": "Job",
        "metadata": metadata,
        "spec": spec,
    }))
}

fn pairs(given: &[String], flag: &str) -> Result<Vec<(String, String)>> {
    given
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some((k, v)) if !k.is_empty() => Ok((k.to_string(), v.to_string())),
            _ => Err(CliError::new(
                format!("{flag} {pair:?} is not KEY=VALUE"),
                format!("for example {flag} KEY=VALUE"),
            )),
        })
        .collect()
}

/// A name from the command's first word, with a random end.
fn generated(command: &[String]) -> String {
    let word = command.first().map_or("", |c| c.rsplit('/').next().unwrap_or(""));
    let mut base: String = word
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(30)
        .collect();
    base = base.trim_matches('-').to_string();
    if base.is_empty() {
        base = "run".into();
    }
    format!("{base}-{:05x}", rand::random::<u32>() & 0xf_ffff)
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    let namespace = match args.dry_run.as_str() {
        "client" => cx.globals.namespace.clone().unwrap_or_else(|| "default".into()),
        _ => cx.namespace().await?,
    };
    if !matches!(args.output.as_deref(), None | Some("name" | "yaml" | "json")) {
        return Err(CliError::new("unknown output format", "one of: name, yaml, json"));
    }
    if args.dry_run == "client" {
        let name = args.name.clone().unwrap_or_else(|| generated(&args.command));
        let object = job(&args, &name, &namespace)?;
        return cx.print(&shown(&args, &object, &format!("job.{}/{name} created (dry run)\n", rota_api::names::GROUP))?);
    }
    let api = cx.api().await?;
    let discovery = cx.discovery().await?;
    let resource = discovery.resolve("jobs.rota.dev")?;
    let mut path = resource.collection(Some(&namespace));
    if args.dry_run == "server" {
        path.push_str("?dryRun=All");
    }
    let mut tries = 0;
    let made = loop {
        tries += 1;
        let name = args.name.clone().unwrap_or_else(|| generated(&args.command));
        match api.post(&path, &job(&args, &name, &namespace)?).await {
            Ok(made) => break made,
            Err(Failure::Status { code: 409, body })
                if args.name.is_none() && body["reason"] == "AlreadyExists" && tries < NAME_TRIES => {}
            Err(e) => return Err(e.into()),
        }
    };
    let name = made["metadata"]["name"].as_str().unwrap_or("").to_string();
    let label = named(resource, &name);
    if args.dry_run == "server" {
        return cx.print(&shown(&args, &made, &format!("{label} created (server dry run)\n"))?);
    }
    cx.print(&shown(&args, &made, &format!("{label} created\n"))?)?;
    if args.wait {
        let deadline = (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout);
        return progress::until_done(cx, resource, &namespace, &name, deadline).await;
    }
    let deadline = Instant::now() + PLACEMENT_LOOK;
    let end = progress::follow(api, resource, &namespace, &name, Some(deadline), |object| {
        let object = object?;
        match progress::standing(object) {
            Standing::Done | Standing::Running | Standing::Failed(_) | Standing::Suspended => Some(Ok(())),
            Standing::Waiting(why) | Standing::Stuck(why) => Some(Err(progress::not_placed(&label, &name, &why, object))),
            Standing::Unknown => None,
        }
    })
    .await?;
    match end {
        Some(result) => result,
        None => {
            cx.say(&format!("{label} has not started yet; `rota why {name}` says why"));
            Ok(())
        }
    }
}

fn shown(args: &Args, object: &Value, line: &str) -> Result<String> {
    Ok(match args.output.as_deref() {
        Some("yaml") => output::to_yaml(object)?,
        Some("json") => output::to_json(object)?,
        Some("name") => format!(
            "job.{}/{}\n",
            rota_api::names::GROUP,
            object["metadata"]["name"].as_str().unwrap_or("")
        ),
        _ => line.to_string(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        Line::try_parse_from(std::iter::once("run").chain(words.iter().copied())).unwrap().args
    }

    #[test]
    fn flags_become_a_job_that_the_kind_accepts() {
        let a = args(&["--cpu", "2", "--memory", "1Gi", "--gpu", "1", "--completions", "9", "--replicas", "3", "--queue", "q", "-e", "A=b=c", "--", "sh", "-c", "exit 0"]);
        let object = job(&a, "x", "ns").unwrap();
        let typed: rota_api::Job = serde_json::from_value(object).unwrap();
        assert_eq!((typed.spec.completions, typed.spec.replicas, typed.spec.queue.as_str()), (Some(9), Some(3), "q"));
        let task = typed.spec.template.spec;
        assert_eq!(task.command, ["sh", "-c", "exit 0"]);
        assert_eq!(task.env.unwrap()[0].value.as_deref(), Some("b=c"));
        assert_eq!(task.resources.unwrap().requests.unwrap().len(), 3);
    }

    #[test]
    fn replicas_alone_run_that_many_tasks() {
        let object = job(&args(&["--replicas", "3", "--", "true"]), "x", "ns").unwrap();
        assert_eq!(object["spec"]["completions"], 3);
        let object = job(&args(&["--service", "--replicas", "3", "--", "true"]), "x", "ns").unwrap();
        assert!(object["spec"]["completions"].is_null());
        assert_eq!(object["spec"]["type"], "Service");
    }

    #[test]
    fn gangs_priority_and_expected_time() {
        let spec = |words: &[&str]| {
            let object = job(&args(words), "x", "ns").unwrap();
            serde_json::from_value::<rota_api::Job>(object).unwrap().spec
        };
        let all = spec(&["--replicas", "4", "--gang", "--priority", "-7", "--expected", "5m", "--", "true"]);
        assert_eq!((all.priority, all.expected_duration_seconds), (-7, Some(300)));
        assert_eq!(all.gang.unwrap().min_available, None);
        let some = spec(&["--replicas", "4", "--gang", "2", "--expected", "90", "--", "true"]);
        assert_eq!(some.gang.unwrap().min_available, Some(2));
        assert_eq!(some.expected_duration_seconds, Some(90));
    }

    #[test]
    fn mistakes_are_told_before_anything_is_sent() {
        assert!(job(&args(&["--cpu", "lots", "--", "true"]), "x", "ns").is_err());
        assert!(job(&args(&["-e", "novalue", "--", "true"]), "x", "ns").is_err());
    }

    #[test]
    fn names_come_from_the_command() {
        let name = generated(&["/usr/bin/My_Tool.py".into()]);
        assert!(name.starts_with("my-tool-py-") && name.len() == "my-tool-py-".len() + 5, "{name}");
        assert!(generated(&["///".into()]).starts_with("run-"));
    }
}
