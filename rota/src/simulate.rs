//! `rota simulate`: reads the files, plays the trace, prints the measures.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use rota_scheduler::{NodeSpec, Policy};
use rota_simulate::nodes::{self, Nodes};
use rota_simulate::trace::{self, Change, Format, Trace};
use rota_simulate::{Estimates, Measures, ORDERS, Record, Settings, load, preset, run};
use serde::Serialize;

use crate::fail::{Fail, Result};
use crate::record;

/// Most nodes that `--nodes N` makes.
const NODES_MAX: u32 = 1_000_000;

/// Play a recorded workload through the scheduler, on virtual time
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    play: Play,
}

/// What else belongs to simulating.
#[derive(Debug, clap::Subcommand)]
enum Other {
    Record(record::Args),
}

#[derive(Debug, clap::Args)]
struct Play {
    /// The cluster: a number of equal nodes, or a file (openb's table of nodes, or an event log) [default: what the trace says]
    #[arg(long, value_name = "FILE|N")]
    nodes: Option<String>,
    /// The workload: openb, swf, batsim, philly or events, and its file
    #[arg(long, value_name = "FORMAT:FILE", value_parser = source, required = true)]
    trace: Option<(&'static str, PathBuf)>,
    /// Who goes first [default: default, or each queue's own where the trace has queues]
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(orders()))]
    order: Option<String>,
    /// Where tasks go [default: fragmentation where there are GPUs, else binpack]
    #[arg(long, value_enum)]
    placement: Option<Placement>,
    /// Offered load; openb: tasks come in random order and stay until they asked for so much of the GPUs
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    load: Option<u32>,
    /// Seed of what is random: the order of tasks with --load on openb
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What the scheduler knows of run times: what users said, what it learns meanwhile, or the truth
    #[arg(long, value_enum, default_value = "user")]
    estimates: Known,
    /// Tasks save their work this often, so that an eviction loses less
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    checkpoint: u32,
    /// What each of --nodes N has, instead of what the trace's format suggests
    #[arg(long, value_name = "NAME=QUANTITY,..", value_delimiter = ',', value_parser = crate::agent::pair)]
    resources: Vec<(String, String)>,
    /// Write a line per job to this file: job,submit_s,start_s,end_s,wait_s,evictions,outcome,nodes
    #[arg(long, value_name = "FILE")]
    jobs: Option<PathBuf>,
    /// Write what happened to this file, as an event log that events:FILE plays again
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Placement {
    Binpack,
    Spread,
    Fragmentation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Known {
    User,
    Learnt,
    Exact,
}

fn orders() -> Vec<clap::builder::PossibleValue> {
    let each = ORDERS.iter();
    each.map(|o| clap::builder::PossibleValue::new(o.name).help(o.help))
        .collect()
}

/// `FORMAT:FILE`.
fn source(text: &str) -> std::result::Result<(&'static str, PathBuf), String> {
    let known = || {
        let names: Vec<&str> = trace::FORMATS.iter().map(|f| f.name).collect();
        names.join(", ")
    };
    let (name, file) = text
        .split_once(':')
        .ok_or_else(|| format!("write FORMAT:FILE with one of {}", known()))?;
    let format = trace::format(name).ok_or_else(|| format!("formats are {}", known()))?;
    Ok((format.name, file.into()))
}

/// What is printed: the question, then the measures.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    measures: &'a Measures,
    seed: u64,
    order: &'a str,
    placement: &'a str,
    estimates: &'a str,
    trace: &'a str,
    nodes: usize,
}

/// Runs it.
pub async fn run_verb(args: &Args, globals: &rota_cli::Globals) -> Result<()> {
    match &args.other {
        Some(Other::Record(record)) => record::run(record, globals).await,
        None => play(&args.play),
    }
}

fn play(args: &Play) -> Result<()> {
    let Some((name, file)) = &args.trace else {
        return Err(Fail::new("there is no trace", "say --trace FORMAT:FILE"));
    };
    let format = trace::format(name).ok_or_else(|| Fail::new("no such format", ""))?;
    let mut trace = (format.read)(&read(file)?).map_err(|e| {
        Fail::new(
            format!("{}: {e}", file.display()),
            format!("{name} is: {}", format.help),
        )
    })?;
    let nodes = cluster(args, format, &trace)?;
    let brings_nodes = |c: &(i64, Change)| matches!(c.1, Change::Node(..));
    if nodes.is_empty() && !trace.changes.iter().any(brings_nodes) {
        return Err(Fail::new(
            "there are no nodes",
            "say --nodes FILE or --nodes N",
        ));
    }
    if let Some(percent) = args.load {
        load::apply(&mut trace, format.load, &nodes, percent, args.seed);
    }
    let placement = args.placement.unwrap_or_else(|| usual(&nodes, &trace));
    let has_queues = trace
        .changes
        .iter()
        .any(|(_, c)| matches!(c, Change::Queue(..)));
    let order = args.order.as_deref().unwrap_or("default");
    let settings = Settings {
        preset: *preset(order).ok_or_else(|| Fail::new("no such order", ""))?,
        policy: match placement {
            Placement::Binpack => Policy::BinPack,
            Placement::Spread => Policy::Spread,
            Placement::Fragmentation => Policy::Fragmentation,
        },
        estimates: match args.estimates {
            Known::User => Estimates::User,
            Known::Learnt => Estimates::Learnt,
            Known::Exact => Estimates::Exact,
        },
        checkpoint: i64::from(args.checkpoint) * 1000,
        keep_queues: has_queues && args.order.is_none(),
        log: args.log.is_some(),
    };
    let run = run(&trace, &nodes, &settings);
    if let Some(path) = &args.jobs {
        write(path, &job_lines(&run.records))?;
    }
    if let Some(path) = &args.log {
        let mut text = String::new();
        for event in &run.log {
            let line = serde_json::to_string(event)
                .map_err(|e| Fail::new(format!("cannot write an event: {e}"), ""))?;
            text.push_str(&line);
            text.push('\n');
        }
        write(path, &text)?;
    }
    for (reason, count) in &trace.rejected {
        eprintln!("{count} jobs left out: {reason}");
    }
    let answer = Answer {
        measures: &run.measures,
        seed: args.seed,
        order: if settings.keep_queues {
            "queues"
        } else {
            order
        },
        placement: if settings.keep_queues {
            "queues"
        } else {
            name_of(placement)
        },
        estimates: match args.estimates {
            Known::User => "user",
            Known::Learnt => "learnt",
            Known::Exact => "exact",
        },
        trace: name,
        nodes: nodes.len().max(brought(&trace)),
    };
    print(&answer, args.output)
}

fn name_of(placement: Placement) -> &'static str {
    match placement {
        Placement::Binpack => "binpack",
        Placement::Spread => "spread",
        Placement::Fragmentation => "fragmentation",
    }
}

/// How many nodes come with the trace.
fn brought(trace: &Trace) -> usize {
    let names = trace.changes.iter().filter_map(|(_, change)| match change {
        Change::Node(name, _) => Some(name),
        _ => None,
    });
    names.collect::<std::collections::BTreeSet<_>>().len()
}

/// The placement that Rota would be told to use for such a cluster.
fn usual(nodes: &Nodes, trace: &Trace) -> Placement {
    let has_devices = |spec: &NodeSpec| !spec.devices.is_empty();
    let of_trace = trace.changes.iter().any(|(_, change)| match change {
        Change::Node(_, spec) => has_devices(spec),
        _ => false,
    });
    if of_trace || nodes.iter().any(|(_, spec)| has_devices(spec)) {
        Placement::Fragmentation
    } else {
        Placement::Binpack
    }
}

fn cluster(args: &Play, format: &Format, trace: &Trace) -> Result<Nodes> {
    let wanted = match &args.nodes {
        None => trace.machine.nodes.min(u64::from(NODES_MAX)) as u32,
        Some(text) => match text.parse::<u64>() {
            Ok(n) if n <= u64::from(NODES_MAX) => n as u32,
            Ok(n) => {
                return Err(Fail::new(
                    format!("--nodes {n} is too many"),
                    format!("at most {NODES_MAX}"),
                ));
            }
            Err(_) => {
                let path = Path::new(text);
                return nodes::read(&read(path)?).map_err(|e| {
                    Fail::new(
                        format!("{text}: {e}"),
                        "--nodes takes a number, openb's table of nodes, or an event log",
                    )
                });
            }
        },
    };
    let spec = if args.resources.is_empty() {
        (format.node)(u64::from(wanted), trace.machine)
    } else {
        node(&args.resources)?
    };
    Ok(nodes::uniform(wanted, &spec))
}

fn node(pairs: &[(String, String)]) -> Result<NodeSpec> {
    let mut spec = NodeSpec {
        ready: true,
        ..NodeSpec::default()
    };
    let mut allocatable = BTreeMap::new();
    for (name, text) in pairs {
        let quantity = crate::agent::quantity(name, text)?;
        allocatable.insert(name.clone(), quantity.base_floor(name));
        if rota_api::quantity::is_shared_device(name) {
            spec.devices.insert(name.clone());
        }
    }
    spec.allocatable = allocatable;
    Ok(spec)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| {
        Fail::new(
            format!("cannot read {}: {e}", path.display()),
            "name a text file that this user may read",
        )
    })
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| {
        Fail::new(
            format!("cannot write {}: {e}", path.display()),
            "name a file in a directory where this user may write",
        )
    })
}

fn job_lines(records: &[Record]) -> String {
    let mut text = String::from("job,submit_s,start_s,end_s,wait_s,evictions,outcome,nodes\n");
    let seconds = |ms: i64| format!("{}.{:03}", ms / 1000, ms % 1000);
    for r in records {
        let time = |ms: Option<i64>| ms.map_or(String::new(), seconds);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{},{}",
            r.id,
            seconds(r.submit),
            time(r.start),
            time(r.end),
            seconds(r.waited),
            r.evictions,
            format!("{:?}", r.fate).to_lowercase(),
            r.nodes.join(" ")
        );
    }
    text
}

fn print(answer: &Answer<'_>, output: Output) -> Result<()> {
    let failed = |e| Fail::new(format!("cannot write the measures: {e}"), "");
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(answer).map_err(failed)?);
        return Ok(());
    }
    let value = serde_json::to_value(answer).map_err(failed)?;
    let Some(fields) = value.as_object() else {
        return Ok(());
    };
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    for (name, value) in fields {
        let text = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        println!("{name:width$}  {text}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rota_simulate::GPU;

    #[test]
    fn traces_name_their_format() {
        assert_eq!(source("swf:a:b").unwrap(), ("swf", "a:b".into()));
        assert!(source("swf").unwrap_err().contains("batsim"));
        assert!(source("x:f").unwrap_err().contains("events"));
    }

    #[test]
    fn nodes_have_what_is_asked() {
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        let spec = node(&[pair("cpu", "1500m"), pair(GPU, "2")]).unwrap();
        assert_eq!(spec.allocatable["cpu"], 1500);
        assert_eq!(spec.allocatable[GPU], 2 * rota_scheduler::DEVICE);
        assert!(spec.devices.contains(GPU));
        assert!(node(&[pair("cpu", "much")]).is_err());
    }
}
