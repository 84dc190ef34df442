//! `rota queue`: Queues as a tree, with what each is owed, holds, borrows and lends.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::client::{Api, Failure};
use crate::context::Context;
use crate::discovery::Resource;
use crate::error::{CliError, Result};
use crate::output::table::{Row, Table};
use crate::output::{self, Format, amount};
use crate::progress;
use crate::watch::{self, Selection, Watch};

const HEADER: [&str; 11] = [
    "QUEUE",
    "WEIGHT",
    "SHARE",
    "FAIR",
    "GUARANTEED",
    "USED",
    "BORROWED",
    "LENT",
    "RUNNING",
    "WAITING",
    "WASTED",
];

/// Pause between two looks with -w: figures are written once a second.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Flags of `rota queue`.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "SHARE is the largest part of any one resource of the fleet that the queue holds, FAIR the part that it is owed now.
WASTED is work that evictions threw away, in resource-seconds or resource-hours. Figures include the queues below."
)]
pub struct Args {
    /// Only this Queue and those below it
    name: Option<String>,
    /// json, yaml, jsonl, csv or name
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<String>,
    /// Follow changes: on a terminal the table is redrawn, elsewhere a changed table is appended
    #[arg(short, long)]
    watch: bool,
    /// Without the header line
    #[arg(long)]
    no_headers: bool,
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    let format = Format::parse(args.output.as_deref())?;
    let api = cx.api().await?;
    let discovery = cx.discovery().await?;
    let queues = discovery.resolve("queues.rota.dev")?;
    let path = queues.collection(None);
    let mut last = String::new();
    loop {
        let (items, version) = watch::list(api, &path, &Selection::default()).await?;
        let tree = tree(&items, args.name.as_deref())?;
        let text = text(&tree, &format, &args, cx.color())?;
        if text != last {
            if cx.out_tty && args.watch {
                // Home, then clear to the end.
                cx.print("\x1b[H\x1b[J")?;
            } else if !last.is_empty() {
                cx.print("\n")?;
            }
            cx.print(&text)?;
            last = text;
        }
        if !args.watch {
            if items.is_empty() {
                cx.say("No Queues found.");
            }
            for (_, queue) in &tree {
                if let Some(c) =
                    progress::condition(queue, "Stalled").filter(|c| c["status"] == "True")
                {
                    cx.say(&format!(
                        "{} is stalled: {}",
                        output::named(queues, name(queue)),
                        progress::phrase(c)
                    ));
                }
            }
            return Ok(());
        }
        changed(api, queues, &version).await?;
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Waits until a Queue changes after `version`, or the watch ends.
async fn changed(api: &Api, queues: &Resource, version: &str) -> Result<()> {
    let path = queues.collection(None);
    let mut events = match Watch::open(
        api,
        &path,
        &Selection::default(),
        version,
        "application/json",
    )
    .await
    {
        Ok(events) => events,
        Err(Failure::Status { code: 410, .. }) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    loop {
        match events.next().await {
            Ok(Some(event)) if event.kind == "BOOKMARK" => {}
            Ok(_) | Err(Failure::Status { code: 410, .. } | Failure::Transport { .. }) => {
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn name(queue: &Value) -> &str {
    queue["metadata"]["name"].as_str().unwrap_or("")
}

/// Queues in the order of the tree, each with its depth. Queues whose parent is not there, and
/// circles, stand at the top: they are shown whatever is wrong with them.
fn tree(queues: &[Value], only: Option<&str>) -> Result<Vec<(usize, Value)>> {
    let by_name: BTreeMap<&str, &Value> = queues.iter().map(|q| (name(q), q)).collect();
    let mut below: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut roots = Vec::new();
    for (name, queue) in &by_name {
        match queue["spec"]["parent"].as_str() {
            Some(parent) if by_name.contains_key(parent) => {
                below.entry(parent).or_default().push(name)
            }
            _ => roots.push(*name),
        }
    }
    if let Some(only) = only {
        if !by_name.contains_key(only) {
            return Err(CliError::new(
                format!("queues.{} {only:?} not found", rota_api::names::GROUP),
                "`rota queue` shows all that there are",
            ));
        }
        roots = vec![only];
    } else {
        // What no root leads to is on a circle; its first by name opens it.
        roots.extend(
            by_name
                .keys()
                .filter(|n| by_name[*n]["spec"]["parent"].is_string()),
        );
    }
    let mut out = Vec::new();
    let mut seen = BTreeSet::new();
    for root in roots {
        let mut open = vec![(0, root)];
        while let Some((depth, at)) = open.pop() {
            if !seen.insert(at) {
                continue;
            }
            out.push((depth, by_name[at].clone()));
            let children = below.get(at).into_iter().flatten();
            open.extend(children.rev().map(|child| (depth + 1, *child)));
        }
    }
    Ok(out)
}

fn text(tree: &[(usize, Value)], format: &Format, args: &Args, color: bool) -> Result<String> {
    if format.needs_objects() {
        let items = tree.iter().map(|(_, queue)| queue.clone()).collect();
        return output::objects(format, items, false);
    }
    let table = Table {
        header: HEADER.map(String::from).to_vec(),
        rows: tree
            .iter()
            .map(|(depth, queue)| row(*depth, queue))
            .collect(),
    };
    Ok(match format {
        Format::Csv => table.csv(!args.no_headers),
        _ if tree.is_empty() => String::new(),
        _ => table.render(!args.no_headers, color),
    })
}

fn row(depth: usize, queue: &Value) -> Row {
    let (spec, status) = (&queue["spec"], &queue["status"]);
    let count = |v: &Value| v.as_u64().map_or("-".into(), |n| n.to_string());
    let cells = vec![
        format!("{:1$}{2}", "", depth * 2, name(queue)),
        count(&spec["weight"]),
        amount::share(&status["dominantShare"]),
        amount::share(&status["fairShare"]),
        amount::all(&status["guaranteed"]),
        amount::all(&status["used"]),
        amount::all(&status["borrowed"]),
        amount::all(&status["lent"]),
        count(&status["running"]),
        count(&status["waiting"]),
        amount::all_seconds(&status["wastedByPreemption"]),
    ];
    Row {
        cells,
        name: name(queue).into(),
        ..Row::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn queue(name: &str, parent: Option<&str>) -> Value {
        json!({"metadata": {"name": name}, "spec": {"parent": parent, "weight": 2}})
    }

    fn shape(queues: &[Value], only: Option<&str>) -> Vec<String> {
        let each = tree(queues, only).unwrap();
        each.iter()
            .map(|(depth, q)| format!("{depth}{}", name(q)))
            .collect()
    }

    #[test]
    fn children_follow_their_parents_whatever_their_names() {
        let queues = [
            queue("z", None),
            queue("a", Some("z")),
            queue("m", Some("a")),
            queue("b", Some("z")),
            queue("k", None),
            queue("lost", Some("gone")),
        ];
        assert_eq!(
            shape(&queues, None),
            ["0k", "0lost", "0z", "1a", "2m", "1b"]
        );
        assert_eq!(shape(&queues, Some("a")), ["0a", "1m"]);
        assert!(tree(&queues, Some("gone")).is_err());
    }

    #[test]
    fn a_circle_is_shown_once() {
        let queues = [
            queue("a", Some("b")),
            queue("b", Some("a")),
            queue("c", Some("b")),
        ];
        assert_eq!(shape(&queues, None), ["0a", "1b", "2c"]);
    }

    #[test]
    fn figures_are_in_peoples_units_and_absent_ones_are_dashes() {
        let mut q = queue("q", None);
        q["status"] = json!({"dominantShare": "0.25", "used": {"cpu": "1500m", "memory": "8Gi"}, "running": 3, "waiting": 0,
            "wastedByPreemption": {"cpu": "5400"}});
        assert_eq!(
            row(1, &q).cells,
            [
                "  q",
                "2",
                "25%",
                "-",
                "-",
                "1.5 cpu, 8Gi memory",
                "-",
                "-",
                "3",
                "0",
                "1.5 cpu-h"
            ]
        );
    }
}
