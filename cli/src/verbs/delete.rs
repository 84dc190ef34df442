//! `rota delete`: deletes by name, selector or manifest, and waits until the objects are gone.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::{Api, Failure};
use crate::context::Context;
use crate::discovery::Resource;
use crate::error::{CliError, EXIT_ERROR, Result};
use crate::manifest;
use crate::output::{named, time};
use crate::selector;
use crate::watch::{self, Selection};

/// Pause between looks at an object that is going.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What happens to the objects that a deleted one owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Cascade {
    /// They are deleted afterwards.
    Background,
    /// They are deleted first.
    Foreground,
    /// They stay.
    Orphan,
}

/// Flags of `rota delete`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// KIND NAME ..., KIND/NAME ..., or KIND with -l or --all
    #[arg(value_name = "KIND")]
    what: Vec<String>,
    /// Delete what these manifests name: files, directories or -
    #[arg(short, long, value_name = "FILE", conflicts_with = "what")]
    filename: Vec<PathBuf>,
    /// Also the directories below those of -f
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Objects with these labels
    #[arg(short = 'l', long, value_name = "QUERY", default_value = "")]
    selector: String,
    /// Objects with these field values
    #[arg(long, value_name = "QUERY", default_value = "")]
    field_selector: String,
    /// All objects of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Wait until the objects are gone
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    wait: bool,
    /// How long to wait, 0 without end
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = time::duration)]
    timeout: Duration,
    /// No error for names that do not exist
    #[arg(long)]
    ignore_not_found: bool,
    /// What happens to owned objects
    #[arg(long, value_enum, default_value = "background")]
    cascade: Cascade,
    /// Seconds that an object gets to end by itself
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<u32>,
    /// Only say what would be deleted (client), or let the server check it too (server)
    #[arg(long, value_name = "WHERE", num_args = 0..=1, default_missing_value = "client", value_parser = ["none", "client", "server"], default_value = "none")]
    dry_run: String,
    /// name prints `kind.group/name` only
    #[arg(short, long, value_name = "FORMAT", value_parser = ["name"])]
    output: Option<String>,
}

/// One object to delete.
struct Doomed {
    resource: Resource,
    namespace: String,
    name: String,
}

impl Doomed {
    fn path(&self) -> String {
        self.resource.object(&self.namespace, &self.name)
    }
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    let api = cx.api().await?;
    let mut failed = false;
    let doomed = find(&args, cx, api).await?;
    let mut going = Vec::new();
    for d in doomed {
        let shown = match args.output.as_deref() {
            Some("name") => named(&d.resource, &d.name),
            _ => format!("{} {:?} deleted", d.resource.label(), d.name),
        };
        if args.dry_run == "client" {
            cx.print(&format!("{shown} (dry run)\n"))?;
            continue;
        }
        match api.delete(&d.path(), &options(&args)).await {
            Ok(answer) => {
                let suffix = if args.dry_run == "server" { " (server dry run)" } else { "" };
                cx.print(&format!("{shown}{suffix}\n"))?;
                if args.wait && suffix.is_empty() {
                    going.push((d, uid(&answer)));
                }
            }
            Err(e) if e.is_not_found() && (args.ignore_not_found || args.all || !args.selector.is_empty()) => {}
            Err(e @ Failure::Status { .. }) => {
                cx.report(&e.into());
                failed = true;
            }
            Err(e) => return Err(e.into()),
        }
    }
    let deadline = (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout);
    for (d, uid) in going {
        gone(api, &d.resource, &d.path(), &uid, deadline).await?;
    }
    if failed { Err(CliError::exit(EXIT_ERROR)) } else { Ok(()) }
}

/// The uid that a delete's answer names: of the object itself, or in a Status.
fn uid(answer: &Value) -> String {
    let uid = if answer["kind"] == "Status" {
        &answer["details"]["uid"]
    } else {
        &answer["metadata"]["uid"]
    };
    uid.as_str().unwrap_or("").to_string()
}

fn options(args: &Args) -> Value {
    let mut options = json!({
        "kind": "DeleteOptions",
        "apiVersion": "v1",
        "propagationPolicy": match args.cascade {
            Cascade::Background => "Background",
            Cascade::Foreground => "Foreground",
            Cascade::Orphan => "Orphan",
        },
    });
    if let Some(seconds) = args.grace_period {
        options["gracePeriodSeconds"] = seconds.into();
    }
    if args.dry_run == "server" {
        options["dryRun"] = json!(["All"]);
    }
    options
}

async fn find(args: &Args, cx: &Context, api: &Api) -> Result<Vec<Doomed>> {
    let namespace = cx.namespace().await?;
    let mut out = Vec::new();
    if !args.filename.is_empty() {
        let discovery = cx.discovery().await?;
        for m in manifest::read_all(&args.filename, args.recursive)? {
            let Some(resource) = discovery.by_kind(m.api_version(), m.kind()) else {
                return Err(CliError::new(
                    format!("{}: the server has no kind {} in {}", m.source, m.kind(), m.api_version()),
                    format!("this server has: {}", discovery.names()),
                ));
            };
            out.push(Doomed {
                resource: resource.clone(),
                namespace: m.object["metadata"]["namespace"].as_str().unwrap_or(&namespace).to_string(),
                name: m.name().to_string(),
            });
        }
        // What was made last goes first, so that nothing outlives what it stands on.
        out.reverse();
        return Ok(out);
    }
    for target in selector::targets(&args.what, &*cx.discovery().await?)? {
        if !target.names.is_empty() {
            out.extend(target.names.iter().map(|name| Doomed {
                resource: target.resource.clone(),
                namespace: namespace.clone(),
                name: name.clone(),
            }));
            continue;
        }
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
        let scope = (!args.all_namespaces).then_some(namespace.as_str());
        let (items, _) = watch::list(api, &target.resource.collection(scope), &selection).await?;
        if items.is_empty() {
            cx.say("No resources found.");
        }
        for item in items {
            let text = |v: &Value| v.as_str().unwrap_or("").to_string();
            out.push(Doomed {
                resource: target.resource.clone(),
                namespace: text(&item["metadata"]["namespace"]),
                name: text(&item["metadata"]["name"]),
            });
        }
    }
    Ok(out)
}

/// Waits until the object is gone, or another one has its name.
pub async fn gone(api: &Api, resource: &Resource, path: &str, uid: &str, deadline: Option<Instant>) -> Result<()> {
    loop {
        match api.get(path).await {
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e.into()),
            Ok(o) if !uid.is_empty() && o["metadata"]["uid"] != uid => return Ok(()),
            Ok(o) => {
                if deadline.is_some_and(|d| Instant::now() >= d) {
                    let name = o["metadata"]["name"].as_str().unwrap_or("").to_string();
                    let holders: Vec<&str> = o["metadata"]["finalizers"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str)
                        .collect();
                    return Err(CliError::new(
                        format!("{} is still there when the time was up", named(resource, &name)),
                        match holders.is_empty() {
                            true => "give it longer with --timeout".to_string(),
                            false => format!("it waits for the finalizers {}; give it longer with --timeout", holders.join(", ")),
                        },
                    ));
                }
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
