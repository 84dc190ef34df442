//! `rota logs`: what tasks wrote: of one task, one index, or all of a Job with a prefix per task.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::str::FromStr;
use std::time::Duration;

use rota_api::index_set::IndexSet;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::{Api, Failure, encode, with_query};
use crate::context::Context;
use crate::discovery::Resource;
use crate::error::{CliError, EXIT_ERROR, ErrorKind, Result};
use crate::output::{named, time};
use crate::watch::{self, Lines, Selection};

/// Pause between looks for new tasks while following a Job. A finished Task stays for longer, so none is missed.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Indexes of a finished Job that are read without being asked for one by one.
const MAX_INDEXES: u64 = 1000;
/// Lines between the readers and the one writer; readers wait when it is full.
const CHANNEL: usize = 256;
/// Colours of prefixes, by index.
const COLORS: [&str; 6] = ["\x1b[36m", "\x1b[33m", "\x1b[34m", "\x1b[35m", "\x1b[32m", "\x1b[96m"];

/// Flags of `rota logs`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// job/NAME or task/NAME; a bare NAME is a Job's, else a Task's
    #[arg(value_name = "KIND/NAME", required = true, num_args = 1..=2)]
    what: Vec<String>,
    /// Only this index of the Job; works after its Task is gone
    #[arg(long, value_name = "N")]
    index: Option<u32>,
    /// Only this attempt of the index; otherwise the last
    #[arg(long, value_name = "N", requires = "index")]
    attempt: Option<u32>,
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines of each task
    #[arg(long, value_name = "N", default_value_t = -1, allow_hyphen_values = true)]
    tail: i64,
    /// Only what is newer than this, such as 5m
    #[arg(long, value_name = "DURATION", value_parser = time::duration)]
    since: Option<Duration>,
    /// Each line with the time it was written
    #[arg(long)]
    timestamps: bool,
    /// Only one of the two streams
    #[arg(long, value_parser = ["stdout", "stderr"])]
    stream: Option<String>,
    /// Each line with its task, even if there is only one
    #[arg(long)]
    prefix: bool,
    /// Tasks that are followed at the same time; further ones start as these end
    #[arg(long, value_name = "N", default_value_t = 50)]
    max_log_requests: usize,
}

impl Args {
    fn query(&self, path: &str, extra: &[(&str, String)]) -> String {
        let mut query = extra.to_vec();
        if self.follow {
            query.push(("follow", "true".into()));
        }
        if self.tail >= 0 {
            query.push(("tailLines", self.tail.to_string()));
        }
        if let Some(since) = self.since {
            query.push(("sinceSeconds", since.as_secs().max(1).to_string()));
        }
        if self.timestamps {
            query.push(("timestamps", "true".into()));
        }
        query.push(("stream", self.stream.clone().unwrap_or_default()));
        with_query(path, &query)
    }
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    let namespace = cx.namespace().await?;
    let api = cx.api().await?;
    let discovery = cx.discovery().await?;
    let jobs = discovery.resolve("jobs.rota.dev")?;
    let tasks = discovery.resolve("tasks.rota.dev")?;
    let joined = args.what.join("/");
    let (is_job, name) = match joined.split_once('/') {
        Some((kind, name)) => {
            let r = discovery.resolve(kind)?;
            if r != jobs && r != tasks {
                return Err(CliError::new(
                    format!("{} have no logs", r.qualified()),
                    "write job/NAME or task/NAME",
                ));
            }
            (r == jobs, name.to_string())
        }
        None => match api.get(&jobs.object(&namespace, &joined)).await {
            Ok(_) => (true, joined.clone()),
            Err(e) if e.is_not_found() => match api.get(&tasks.object(&namespace, &joined)).await {
                Ok(_) => (false, joined.clone()),
                Err(e) if e.is_not_found() => {
                    return Err(CliError::new(
                        format!("there is no job and no task named {joined:?} in namespace {namespace:?}"),
                        "`rota get jobs,tasks` lists them; -n names another namespace",
                    ));
                }
                Err(e) => return Err(e.into()),
            },
            Err(e) => return Err(e.into()),
        },
    };
    if !is_job {
        if args.index.is_some() {
            return Err(CliError::new("--index is for Jobs; a task is one index", "leave out --index"));
        }
        let path = format!("{}/log", tasks.object(&namespace, &name));
        return copy(cx, api, &args.query(&path, &[]), "").await;
    }
    if let Some(index) = args.index {
        let path = format!("{}/log", jobs.object(&namespace, &name));
        let mut extra = vec![("index", index.to_string())];
        extra.extend(args.attempt.map(|a| ("attempt", a.to_string())));
        let prefix = if args.prefix { prefix(cx, &name, u64::from(index)) } else { String::new() };
        return copy(cx, api, &args.query(&path, &extra), &prefix).await;
    }
    let whole = Whole {
        cx,
        api,
        args: &args,
        jobs,
        tasks,
        namespace: &namespace,
        name: &name,
    };
    if args.follow { whole.follow().await } else { whole.print().await }
}

fn prefix(cx: &Context, job: &str, index: u64) -> String {
    if cx.color() {
        let color = COLORS[(index % COLORS.len() as u64) as usize];
        format!("{color}[{job}/{index}]\x1b[0m ")
    } else {
        format!("[{job}/{index}] ")
    }
}

/// Copies one log to stdout, each line after the prefix.
async fn copy(cx: &Context, api: &Api, path: &str, prefix: &str) -> Result<()> {
    let mut lines = Lines::new(api.stream(path, "text/plain, */*").await?);
    while let Some(line) = lines.next().await? {
        cx.print_line(prefix, &line)?;
    }
    Ok(())
}

/// All of a Job.
struct Whole<'a> {
    cx: &'a Context,
    api: &'a Api,
    args: &'a Args,
    jobs: &'a Resource,
    tasks: &'a Resource,
    namespace: &'a str,
    name: &'a str,
}

impl Whole<'_> {
    async fn job(&self) -> std::result::Result<Value, Failure> {
        self.api.get(&self.jobs.object(self.namespace, self.name)).await
    }

    async fn live(&self) -> std::result::Result<Vec<Value>, Failure> {
        let selection = Selection {
            labels: format!("{}={}", rota_api::names::LABEL_JOB, encode_label(self.name)),
            ..Selection::default()
        };
        Ok(watch::list(self.api, &self.tasks.collection(Some(self.namespace)), &selection).await?.0)
    }

    fn index_path(&self, index: u64) -> String {
        let path = format!("{}/log", self.jobs.object(self.namespace, self.name));
        self.args.query(&path, &[("index", index.to_string())])
    }

    /// What is there now, one index after the other.
    async fn print(&self) -> Result<()> {
        let job = self.job().await?;
        let indexes = known_indexes(&job, &self.live().await?);
        let shown = named(self.jobs, self.name);
        if indexes.is_empty() {
            self.cx.say(&format!("{shown} has not run anything yet; `rota why {}` says why", self.name));
            return Ok(());
        }
        let with_prefix = self.args.prefix || indexes.len() > 1;
        let mut failed = false;
        let mut missing = 0usize;
        for index in indexes {
            let prefix = if with_prefix { prefix(self.cx, self.name, index) } else { String::new() };
            match copy(self.cx, self.api, &self.index_path(index), &prefix).await {
                Ok(()) => {}
                Err(e) if e.is_broken_pipe() => return Err(e),
                Err(e) if e.kind == ErrorKind::Status(404) && with_prefix => missing += 1,
                Err(mut e) => {
                    e.cause = format!("index {index}: {}", e.cause);
                    self.cx.report(&e);
                    failed = true;
                }
            }
        }
        if missing > 0 {
            self.cx.say(&format!("{missing} finished tasks of {shown} have no log any more (kept for a limited time)"));
        }
        if failed { Err(CliError::exit(EXIT_ERROR)) } else { Ok(()) }
    }

    /// Every task as it starts, until the Job is finished or gone.
    async fn follow(&self) -> Result<()> {
        let (sender, mut receiver) = mpsc::channel::<(u64, Vec<u8>)>(CHANNEL);
        let mut readers: JoinSet<std::result::Result<(), (u64, CliError)>> = JoinSet::new();
        let mut seen: HashSet<String> = HashSet::new();
        let mut queue: VecDeque<(u64, String)> = VecDeque::new();
        let mut finished = false;
        let mut failed = false;
        let mut with_prefix = self.args.prefix;
        let mut first = true;
        let mut look = tokio::time::interval(LOOK_AGAIN);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some((index, line)) = receiver.recv() => {
                    let prefix = if with_prefix { prefix(self.cx, self.name, index) } else { String::new() };
                    self.cx.print_line(&prefix, &line)?;
                }
                Some(ended) = readers.join_next(), if !readers.is_empty() => {
                    if let Ok(Err((index, mut e))) = ended {
                        e.cause = format!("index {index}: {}", e.cause);
                        self.cx.report(&e);
                        failed = true;
                    }
                }
                _ = look.tick(), if !finished => {
                    let job = match self.job().await {
                        Ok(job) => job,
                        Err(e) if e.is_not_found() && !first => { finished = true; continue; }
                        Err(e) => return Err(e.into()),
                    };
                    with_prefix |= many(&job);
                    // Read before the tasks: what started until it finished is then in the list.
                    finished = matches!(job["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
                    let live = self.live().await?;
                    let mut by_task: BTreeSet<u64> = BTreeSet::new();
                    for t in &live {
                        let index = t["spec"]["index"].as_u64().unwrap_or(0);
                        by_task.insert(index);
                        let name = t["metadata"]["name"].as_str().unwrap_or("");
                        // Not started by its agent yet: there is nothing to read.
                        if t["status"]["phase"].is_string() && seen.insert(name.to_string()) {
                            let path = format!("{}/log", self.tasks.object(self.namespace, name));
                            queue.push_back((index, self.args.query(&path, &[])));
                        }
                    }
                    if first {
                        for index in known_indexes(&job, &[]) {
                            if !by_task.contains(&index) {
                                queue.push_back((index, self.index_path(index)));
                            }
                        }
                    }
                    first = false;
                }
            }
            while readers.len() < self.args.max_log_requests.max(1)
                && let Some((index, path)) = queue.pop_front()
            {
                let (api, sender) = (self.api.clone(), sender.clone());
                readers.spawn(async move {
                    let read = async {
                        let mut lines = Lines::new(api.stream(&path, "text/plain, */*").await?);
                        while let Some(line) = lines.next().await? {
                            if sender.send((index, line)).await.is_err() {
                                break;
                            }
                        }
                        Ok::<(), Failure>(())
                    };
                    read.await.map_err(|e| (index, CliError::from(e)))
                });
            }
            if finished && readers.is_empty() && queue.is_empty() && receiver.is_empty() {
                break;
            }
        }
        if failed { Err(CliError::exit(EXIT_ERROR)) } else { Ok(()) }
    }
}

/// A Job name is a legal label value; anything else finds nothing.
fn encode_label(name: &str) -> String {
    if encode(name) == name { name.to_string() } else { String::new() }
}

/// Whether lines need a prefix to be told apart.
fn many(job: &Value) -> bool {
    let spec = &job["spec"];
    spec["completions"].as_u64().or(spec["replicas"].as_u64()).unwrap_or(1) > 1 || spec["replicas"].as_u64().unwrap_or(1) > 1
}

/// Indexes that have run, as far as the Job and its Tasks tell.
fn known_indexes(job: &Value, live: &[Value]) -> BTreeSet<u64> {
    let mut out: BTreeSet<u64> = live.iter().filter_map(|t| t["spec"]["index"].as_u64()).collect();
    for field in ["succeededIndexes", "failedIndexes"] {
        let set = job["status"][field].as_str().and_then(|t| IndexSet::from_str(t).ok()).unwrap_or_default();
        let room = MAX_INDEXES.saturating_sub(out.len() as u64) as usize;
        out.extend(set.iter().take(room).map(u64::from));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn indexes_come_from_tasks_and_status_and_are_bounded() {
        let job = json!({"status": {"succeededIndexes": "0-2,7", "failedIndexes": "5"}});
        let live = [json!({"spec": {"index": 9}}), json!({"spec": {"index": 0}})];
        assert_eq!(known_indexes(&job, &live).into_iter().collect::<Vec<_>>(), [0, 1, 2, 5, 7, 9]);
        let big = json!({"status": {"succeededIndexes": "0-99999"}});
        assert_eq!(known_indexes(&big, &[]).len() as u64, MAX_INDEXES);
    }

    #[test]
    fn one_task_needs_no_prefix() {
        assert!(!many(&json!({"spec": {}})));
        assert!(!many(&json!({"spec": {"completions": 1}})));
        assert!(many(&json!({"spec": {"completions": 5, "replicas": 1}})));
        assert!(many(&json!({"spec": {"type": "Service", "replicas": 2}})));
    }
}
