//! `rota simulate record`: follows a cluster and writes down what happens in it, as an event log
//! that `rota simulate --trace events:FILE` plays again. What a line says is decided in [`log`];
//! this file watches and writes.

mod log;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt, select_all};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use rota_api::{Job, Queue, Task};
use serde::de::DeserializeOwned;

use self::log::{Log, Seen};
use crate::control::stop_signal;
use crate::fail::{Fail, Result};

/// Record what happens in a running cluster, as an event log for events:FILE
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to write; a file that is there already is continued
    file: PathBuf,
    /// Stop after so long [default: at Ctrl-C]
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

/// What one of the watches tells.
enum Told {
    Nodes(Seen<Node>),
    Queues(Seen<Queue>),
    Jobs(Seen<Job>),
    Tasks(Seen<Task>),
}

type Watched = std::result::Result<Told, watcher::Error>;

/// Runs it.
pub async fn run(args: &Args, globals: &rota_cli::Globals) -> Result<()> {
    let cannot = |e: &dyn std::fmt::Display| {
        Fail::new(
            format!("cannot watch the cluster: {e}"),
            "check --kubeconfig and --context; `rota get nodes` shows whether the server answers",
        )
    };
    let config = globals
        .config()
        .await
        .map_err(|e| Fail::new(e.cause, e.remedy))?;
    let url = config.cluster_url.to_string();
    let client = kube::Client::try_from(config).map_err(|e| cannot(&e))?;
    // A wrong address is an error now, not something to try again for ever.
    client.apiserver_version().await.map_err(|e| cannot(&e))?;
    let (mut file, mut log) = open(&args.file)?;

    let mut told = select_all([
        follow(&client, Told::Nodes),
        follow(&client, Told::Queues),
        follow(&client, Told::Jobs),
        follow(&client, Told::Tasks),
    ]);
    let stop = stop_signal()?;
    if let Some(seconds) = args.seconds {
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            stop.cancel();
        });
    }
    let mut lines = 0;
    let mut first = First::default();
    let mut began = false;
    while let Some(Some(next)) = stop.run_until_cancelled(told.next()).await {
        let next = match next {
            Ok(next) => next,
            Err(e) => {
                eprintln!("watching {url}: {e}; trying again");
                continue;
            }
        };
        let Some(batch) = first.pass(next) else {
            continue;
        };
        let now = Timestamp::now().as_millisecond();
        for told in batch {
            match told {
                Told::Nodes(seen) => log.nodes(now, seen),
                Told::Queues(seen) => log.queues(now, seen),
                Told::Jobs(seen) => log.jobs(now, seen),
                Told::Tasks(seen) => log.tasks(now, seen),
            }
        }
        lines += write(&mut file, &mut log).map_err(|e| unusable(&args.file, &e))?;
        if !std::mem::replace(&mut began, true) {
            eprintln!("recording {url} to {}; Ctrl-C stops", args.file.display());
        }
    }
    eprintln!(
        "{lines} events in {}; play them with `rota simulate --trace events:{}`",
        args.file.display(),
        args.file.display()
    );
    Ok(())
}

/// Holds back what the watches tell until each has told all that there is, so that the log begins
/// with nodes, then queues, Jobs and their Tasks.
#[derive(Default)]
struct First {
    held: Vec<Told>,
    passed: bool,
}

impl First {
    fn pass(&mut self, told: Told) -> Option<Vec<Told>> {
        if self.passed {
            return Some(vec![told]);
        }
        self.held.push(told);
        let rank = |told: &Told| match told {
            Told::Nodes(_) => 0,
            Told::Queues(_) => 1,
            Told::Jobs(_) => 2,
            Told::Tasks(_) => 3,
        };
        let there = |r| self.held.iter().any(|told| rank(told) == r);
        if !(0..4).all(there) {
            return None;
        }
        self.passed = true;
        // Stable: what came after a list stays after it.
        self.held.sort_by_key(rank);
        Some(std::mem::take(&mut self.held))
    }
}

/// One kind, of all namespaces.
fn follow<K>(client: &kube::Client, told: fn(Seen<K>) -> Told) -> BoxStream<'static, Watched>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + 'static,
{
    let api = kube::Api::<K>::all(client.clone());
    let mut listed = Vec::new();
    watch(api, watcher::Config::default())
        .default_backoff()
        .filter_map(move |event| {
            let seen = match event {
                Ok(Event::Init) => {
                    listed.clear();
                    None
                }
                Ok(Event::InitApply(object)) => {
                    listed.push(object);
                    None
                }
                Ok(Event::InitDone) => Some(Ok(Seen::All(std::mem::take(&mut listed)))),
                Ok(Event::Apply(object)) => Some(Ok(Seen::Is(object))),
                Ok(Event::Delete(object)) => Some(Ok(Seen::Gone(object))),
                Err(e) => Some(Err(e)),
            };
            std::future::ready(seen.map(|seen| seen.map(told)))
        })
        .boxed()
}

fn unusable(path: &Path, e: &std::io::Error) -> Fail {
    Fail::new(
        format!("cannot write {}: {e}", path.display()),
        "name a file in a directory where this user may write",
    )
}

/// Opens the file for more lines. A last line without an end was cut by a crash and is dropped.
fn open(path: &Path) -> Result<(File, Log)> {
    let bad = |e: std::io::Error| unusable(path, &e);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(bad)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(bad)?;
    text.truncate(text.rfind('\n').map_or(0, |at| at + 1));
    let log = Log::after(&text, Timestamp::now().as_millisecond()).map_err(|e| {
        Fail::new(
            format!("{} is not an event log: {e}", path.display()),
            "name a new file, or one that an earlier recording wrote",
        )
    })?;
    file.set_len(text.len() as u64).map_err(bad)?;
    file.seek(SeekFrom::End(0)).map_err(bad)?;
    Ok((file, log))
}

/// Writes what is new, whole lines at a time; how many.
fn write(file: &mut File, log: &mut Log) -> std::io::Result<usize> {
    let mut text = String::new();
    let events = log.take();
    for event in &events {
        text.push_str(&serde_json::to_string(event)?);
        text.push('\n');
    }
    file.write_all(text.as_bytes())?;
    Ok(events.len())
}
