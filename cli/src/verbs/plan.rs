//! `rota plan`: what would start where if these Jobs and Queues were applied now. Nothing is stored.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::client::encode;
use crate::context::Context;
use crate::error::{CliError, EXIT_NOT_PLACED, Result};
use crate::manifest::{self, Manifest};
use crate::output;
use crate::output::table::{Row, Table};
use crate::verbs::apply;
use crate::waiting::{self, plural};

/// Nodes that a row names; the rest is counted.
const NODES_SHOWN: usize = 4;
/// Evicted tasks that are named for one Job; the rest is counted.
const EVICTED_SHOWN: usize = 5;

/// Flags of `rota plan`.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Exit codes: 0 all of it would start, 1 error, 2 something cannot be placed now."
)]
pub struct Args {
    /// Manifests with Jobs and Queues: files, directories, or - for stdin
    #[arg(short, long, required = true, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Also the directories below
    #[arg(short = 'R', long)]
    recursive: bool,
    /// json or yaml: the scheduler's answer as it is (a List where there are several namespaces)
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json", "yaml"])]
    output: Option<String>,
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    let manifests = manifest::read_all(&args.filename, args.recursive)?;
    let parts = parts(cx, &manifests).await?;
    let api = cx.api().await?;
    if parts.len() > 1 {
        cx.say("One plan per namespace; none takes the Jobs of the others into account.");
    }
    let mut answers = Vec::new();
    for (namespace, items) in &parts {
        let path = format!(
            "/apis/{}/namespaces/{}/plans",
            rota_api::names::API_VERSION,
            encode(namespace)
        );
        let answer = api
            .post(&path, &json!({"items": items}))
            .await
            .map_err(CliError::from);
        answers.push(answer.map_err(|e| {
            if parts.len() > 1 {
                within(e, namespace)
            } else {
                e
            }
        })?);
    }
    match args.output.as_deref() {
        None => cx.print(&told(&answers, Timestamp::now()))?,
        Some(format) => {
            let one = match <[Value; 1]>::try_from(answers.clone()) {
                Ok([one]) => one,
                Err(many) => json!({"kind": "List", "apiVersion": "v1", "items": many}),
            };
            cx.print(&match format {
                "yaml" => output::to_yaml(&one)?,
                _ => output::to_json(&one)?,
            })?;
        }
    }
    let total = |field: &str| {
        jobs(&answers)
            .filter_map(|j| j[field].as_u64())
            .sum::<u64>()
    };
    match total("waiting") {
        0 => Ok(()),
        waiting => Err(CliError::new(
            format!("{waiting} of {} cannot be placed now", plural(total("tasks"), "task")),
            "nothing was applied; applied as it is, what cannot be placed waits and starts by itself when it can",
        )
        .with_exit(EXIT_NOT_PLACED)),
    }
}

fn within(mut e: CliError, namespace: &str) -> CliError {
    e.cause = format!("namespace {namespace}: {}", e.cause);
    e
}

/// Jobs by namespace, each with all Queues, in the shape of the API. What has no part in placement
/// is left out with a word.
async fn parts(cx: &Context, manifests: &[Manifest]) -> Result<BTreeMap<String, Vec<Value>>> {
    let discovery = cx.discovery().await?;
    let mut queues = Vec::new();
    let mut jobs: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for m in manifests {
        match (m.api_version(), m.kind()) {
            (rota_api::names::API_VERSION, "Job" | "Queue") if m.name().is_empty() => {
                return Err(CliError::new(
                    format!("{}: metadata.name is missing", m.source),
                    "give it a name under metadata",
                ));
            }
            (rota_api::names::API_VERSION, "Queue") => queues.push(m.object.clone()),
            (rota_api::names::API_VERSION, "Job") => {
                let mut object = m.object.clone();
                let placed =
                    apply::place(cx, discovery.resolve("jobs.rota.dev")?, &mut object).await;
                let namespace = placed.map_err(|mut e| {
                    e.cause = format!("{}: {}", m.source, e.cause);
                    e
                })?;
                jobs.entry(namespace).or_default().push(object);
            }
            (_, kind) => cx.say(&format!(
                "{}: {kind} {} has no part in placement and is left out",
                m.source,
                m.name()
            )),
        }
    }
    if jobs.is_empty() {
        if queues.is_empty() {
            return Err(CliError::new(
                format!(
                    "there is no Job and no Queue of {} in what -f names",
                    rota_api::names::API_VERSION
                ),
                "a plan says where the tasks of Jobs would start; name manifests that have some",
            ));
        }
        jobs.insert(cx.namespace().await?, Vec::new());
    }
    for items in jobs.values_mut() {
        items.splice(0..0, queues.iter().cloned());
    }
    Ok(jobs)
}

fn jobs(answers: &[Value]) -> impl Iterator<Item = &Value> {
    answers
        .iter()
        .flat_map(|a| a["jobs"].as_array().into_iter().flatten())
}

fn text(v: &Value) -> &str {
    v.as_str().unwrap_or("")
}

/// The plan for people.
fn told(answers: &[Value], now: Timestamp) -> String {
    let many = answers.len() > 1;
    let called = |job: &Value| match many {
        true => format!("{}/{}", text(&job["namespace"]), text(&job["name"])),
        false => text(&job["name"]).to_string(),
    };
    let rows: Vec<Row> = jobs(answers)
        .map(|job| Row {
            cells: [called(job)]
                .into_iter()
                .chain(
                    ["tasks", "placed", "waiting"]
                        .map(|field| job[field].as_u64().unwrap_or(0).to_string()),
                )
                .chain([nodes(job)])
                .collect(),
            ..Row::default()
        })
        .collect();
    if rows.is_empty() {
        return "The Queues would be accepted; there is no Job to place.\n".into();
    }
    let table = Table {
        header: ["JOB", "TASKS", "PLACED", "WAITING", "NODES"]
            .map(String::from)
            .to_vec(),
        rows,
    };
    let mut out = table.render(true, false);
    evictions(&mut out, answers, &called);
    queues(&mut out, answers);
    for job in jobs(answers).filter(|job| job["waiting"].as_u64() > Some(0)) {
        let waiting = job["waiting"].as_u64().unwrap_or(0);
        let verb = if waiting == 1 { "waits" } else { "wait" };
        let _ = writeln!(
            out,
            "\n{} of {} {verb}:",
            plural(waiting, "task"),
            called(job)
        );
        for reason in waiting::reasons(&job["waitingFor"]) {
            let _ = writeln!(out, "  - {reason}");
        }
        for line in waiting::outlook(&job["waitingFor"], now) {
            let _ = writeln!(out, "  {line}");
        }
    }
    out
}

/// `n1 (3), n2, and 7 more`: a node with how many tasks it would get where that is not one.
fn nodes(job: &Value) -> String {
    let placements = job["placements"].as_array().map_or(&[][..], Vec::as_slice);
    let mut shown: Vec<String> = placements
        .iter()
        .take(NODES_SHOWN)
        .map(|p| match p["tasks"].as_u64() {
            Some(n) if n != 1 => format!("{} ({n})", text(&p["node"])),
            _ => text(&p["node"]).to_string(),
        })
        .collect();
    match placements.len().saturating_sub(NODES_SHOWN) {
        0 if shown.is_empty() => return "-".into(),
        0 => {}
        more => shown.push(format!("and {more} more")),
    }
    shown.join(", ")
}

/// Who would have to leave, and for whom.
fn evictions(out: &mut String, answers: &[Value], called: &dyn Fn(&Value) -> String) {
    let mut by_job: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for e in answers
        .iter()
        .flat_map(|a| a["evictions"].as_array().into_iter().flatten())
    {
        let task = format!("{}/{}", text(&e["namespace"]), text(&e["task"]));
        by_job.entry(called(&e["for"])).or_default().push(task);
    }
    for (job, mut tasks) in by_job {
        let all = tasks.len();
        let _ = writeln!(
            out,
            "\n{} would be evicted for {job}:",
            plural(all as u64, "task")
        );
        tasks.sort();
        for task in tasks.iter().take(EVICTED_SHOWN) {
            let _ = writeln!(out, "  - {task}");
        }
        if all > EVICTED_SHOWN {
            let _ = writeln!(out, "  ... and {} more", all - EVICTED_SHOWN);
        }
    }
}

/// Queues whose share would change.
fn queues(out: &mut String, answers: &[Value]) {
    let each = answers.iter().flat_map(|a| a["queues"].as_array());
    for queue in each.flatten() {
        let share = &queue["dominantShare"];
        let percent = |share: &Value| match text(share).parse::<f64>() {
            Ok(part) => format!("{:.1} %", part * 100.0),
            Err(_) => text(share).to_string(),
        };
        let _ = writeln!(
            out,
            "\nQueue {}: share {} -> {}",
            text(&queue["name"]),
            percent(&share["before"]),
            percent(&share["after"])
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Value {
        json!({"kind": "Plan", "metadata": {"resourceVersion": "7"},
            "jobs": [
                {"namespace": "a", "name": "train", "tasks": 8, "placed": 6, "waiting": 2,
                 "placements": [{"node": "n1", "tasks": 2}, {"node": "n2", "tasks": 1}, {"node": "n3", "tasks": 1}, {"node": "n4", "tasks": 1}, {"node": "n5", "tasks": 1}],
                 "waitingFor": {"reasons": [{"reason": "QueueLimit", "message": "full"}], "smallestChange": "raise it"}},
                {"namespace": "a", "name": "idle", "tasks": 1, "placed": 0, "waiting": 1, "placements": []}],
            "queues": [{"name": "q", "dominantShare": {"before": "0.25", "after": "0.5"}}],
            "evictions": (0..6).map(|i| json!({"namespace": "b", "task": format!("t{i}"), "for": {"namespace": "a", "name": "train"}})).collect::<Vec<_>>()})
    }

    #[test]
    fn a_plan_tells_places_evictions_and_reasons() {
        let text = told(&[answer()], Timestamp::UNIX_EPOCH);
        for part in [
            "JOB     TASKS   PLACED   WAITING   NODES\n",
            "train   8       6        2         n1 (2), n2, n3, n4, and 1 more\n",
            "idle    1       0        1         -\n",
            "6 tasks would be evicted for train:\n  - b/t0\n",
            "  ... and 1 more\n",
            "2 tasks of train wait:\n  - QueueLimit: full\n  Smallest change that helps: raise it\n",
            "Queue q: share 25.0 % -> 50.0 %\n",
            "1 task of idle waits:\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }

    #[test]
    fn with_several_namespaces_jobs_carry_theirs() {
        let text = told(&[answer(), json!({"jobs": []})], Timestamp::UNIX_EPOCH);
        assert!(text.contains("a/train   8"), "{text}");
    }
}
