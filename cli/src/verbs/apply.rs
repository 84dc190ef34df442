//! `rota apply`: brings the cluster to what manifests say, by a three-way merge on the client.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::{Api, Failure, with_query};
use crate::context::Context;
use crate::discovery::Resource;
use crate::error::{CliError, EXIT_ERROR, ErrorKind, Result};
use crate::manifest::{self, Manifest};
use crate::merge;
use crate::output::{self, Format, named, time};
use crate::progress;

/// How long a kind is waited for whose definition was applied in the same run.
const NEW_KIND_WAIT: Duration = Duration::from_secs(10);
/// Pause between looks for it.
const NEW_KIND_LOOK: Duration = Duration::from_millis(200);
/// Tries of one object when others create or delete it at the same moment.
const MAX_RACES: usize = 3;

/// Flags of `rota apply`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Manifests: files, directories or - for stdin
    #[arg(short, long, value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,
    /// Also the directories below those of -f
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Say what would happen: as the client sees it, or checked by the server
    #[arg(long, value_name = "WHERE", num_args = 0..=1, default_missing_value = "client", value_parser = ["none", "client", "server"], default_value = "none")]
    dry_run: String,
    /// Wait until Jobs are complete or available; exit code 2 if one cannot be placed
    #[arg(long)]
    wait: bool,
    /// How long --wait waits, 0 without end
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = time::duration)]
    timeout: Duration,
    /// yaml, json, jsonl, name or jsonpath=TEMPLATE of the objects after the change
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<String>,
    /// Merge on the server; not available yet, and refused
    #[arg(long, hide = true)]
    server_side: bool,
}

/// What to apply, and how.
#[derive(Clone, Debug, Default)]
pub struct ApplyOptions {
    /// Also directories below.
    pub recursive: bool,
    /// Nothing is changed.
    pub dry_run: DryRun,
    /// What is printed per object; without, a line.
    pub format: Option<Format>,
}

/// Whether anything is changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DryRun {
    /// It is.
    #[default]
    No,
    /// The client says what it would do.
    Client,
    /// The server checks it without storing it.
    Server,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct ApplySummary {
    /// Objects made.
    pub created: usize,
    /// Objects changed.
    pub configured: usize,
    /// Objects that were right already.
    pub unchanged: usize,
    /// Objects refused; each was reported on stderr.
    pub failed: usize,
    /// Jobs among the objects that are there now: namespace and name.
    pub jobs: Vec<(String, String)>,
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    if args.server_side {
        return Err(CliError::new(
            "--server-side is not available: this version merges on the client",
            "leave --server-side out; the annotation is the same as kubectl's client-side apply",
        ));
    }
    let format = match args.output.as_deref() {
        None => None,
        some => match Format::parse(some)? {
            Format::Table { .. } | Format::Csv => {
                return Err(CliError::new(
                    "apply prints no tables",
                    "use -o yaml, json, jsonl, name or jsonpath=TEMPLATE",
                ));
            }
            f => Some(f),
        },
    };
    let dry_run = match args.dry_run.as_str() {
        "client" => DryRun::Client,
        "server" => DryRun::Server,
        _ => DryRun::No,
    };
    let options = ApplyOptions {
        recursive: args.recursive,
        dry_run,
        format,
    };
    let deadline = (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout);
    let done = apply_files(cx, &args.filename, &options).await?;
    if args.wait && dry_run == DryRun::No {
        wait_for_jobs(cx, &done, deadline).await?;
    }
    if done.failed > 0 { Err(CliError::exit(EXIT_ERROR)) } else { Ok(()) }
}

async fn wait_for_jobs(cx: &Context, done: &ApplySummary, deadline: Option<Instant>) -> Result<()> {
    if done.jobs.is_empty() {
        return Ok(());
    }
    let discovery = cx.discovery().await?;
    let job = discovery.resolve("jobs.rota.dev")?;
    let mut worst: Option<CliError> = None;
    for (namespace, name) in &done.jobs {
        if let Err(e) = progress::until_done(cx, job, namespace, name, deadline).await {
            // A failure outranks work that only waits; each is told.
            if let Some(before) = &worst {
                let graver = e.exit == EXIT_ERROR && before.exit != EXIT_ERROR;
                let (told, kept) = if graver { (before.clone(), e) } else { (e, before.clone()) };
                cx.report(&told);
                worst = Some(kept);
            } else {
                worst = Some(e);
            }
        }
    }
    worst.map_or(Ok(()), Err)
}

/// Applies manifests and prints a line per object on the context's stdout. Objects that the server
/// refuses are reported on stderr and counted; the rest is still applied.
pub async fn apply_files(cx: &Context, paths: &[PathBuf], options: &ApplyOptions) -> Result<ApplySummary> {
    let mut manifests = manifest::read_all(paths, options.recursive)?;
    if manifests.is_empty() {
        return Err(CliError::new("the manifests have no objects", "check the files named with -f"));
    }
    // What others stand on goes first; the rest keeps the user's order.
    manifests.sort_by_key(|m| match m.kind() {
        "CustomResourceDefinition" => 0,
        "Namespace" => 1,
        "Queue" => 2,
        _ => 3,
    });
    let defines_kinds = manifests.iter().any(|m| m.kind() == "CustomResourceDefinition");
    let mut summary = ApplySummary::default();
    let mut printed = Vec::new();
    for m in manifests {
        match one(cx, &m, options, defines_kinds).await {
            Ok(applied) => {
                match applied.what {
                    What::Created => summary.created += 1,
                    What::Configured => summary.configured += 1,
                    What::Unchanged => summary.unchanged += 1,
                }
                if m.kind() == "Job" && m.api_version() == rota_api::names::API_VERSION {
                    summary.jobs.push((applied.namespace, m.name().to_string()));
                }
                if options.format.is_some() {
                    printed.push(applied.object);
                } else {
                    let word = match applied.what {
                        What::Created => "created",
                        What::Configured => "configured",
                        What::Unchanged => "unchanged",
                    };
                    let suffix = match options.dry_run {
                        DryRun::No => "",
                        DryRun::Client => " (dry run)",
                        DryRun::Server => " (server dry run)",
                    };
                    cx.print(&format!("{} {word}{suffix}\n", named(&applied.resource, m.name())))?;
                }
            }
            Err(e) if e.is_broken_pipe() => return Err(e),
            Err(mut e) => {
                e.cause = format!("{}: {}", m.source, e.cause);
                // Without a server every further object would fail alike.
                if e.kind == ErrorKind::Unreachable || cx.remote().await.is_err() {
                    return Err(e);
                }
                cx.report(&e);
                summary.failed += 1;
            }
        }
    }
    if let Some(format) = &options.format
        && !printed.is_empty()
    {
        let single = printed.len() == 1;
        cx.print(&output::objects(format, printed, single)?)?;
    }
    Ok(summary)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Created,
    Configured,
    Unchanged,
}

struct Applied {
    what: What,
    resource: Resource,
    namespace: String,
    object: Value,
}

async fn resource_of(cx: &Context, m: &Manifest, defines_kinds: bool) -> Result<Resource> {
    if let Some(r) = cx.discovery().await?.by_kind(m.api_version(), m.kind()) {
        return Ok(r.clone());
    }
    let deadline = Instant::now() + if defines_kinds { NEW_KIND_WAIT } else { Duration::ZERO };
    loop {
        let discovery = cx.refresh_discovery().await?;
        if let Some(r) = discovery.by_kind(m.api_version(), m.kind()) {
            return Ok(r.clone());
        }
        if Instant::now() >= deadline {
            return Err(CliError::new(
                format!("the server has no kind {} in {}", m.kind(), m.api_version()),
                format!("check apiVersion and kind; this server has: {}", discovery.names()),
            ));
        }
        tokio::time::sleep(NEW_KIND_LOOK).await;
    }
}

async fn one(cx: &Context, m: &Manifest, options: &ApplyOptions, defines_kinds: bool) -> Result<Applied> {
    if m.name().is_empty() {
        let remedy = match m.object["metadata"]["generateName"].is_string() {
            true => "apply cannot work with generateName, since it would not find the object again; give it a name",
            false => "give it a name under metadata",
        };
        return Err(CliError::new("metadata.name is missing", remedy));
    }
    let resource = resource_of(cx, m, defines_kinds).await?;
    let mut wanted = m.object.clone();
    let namespace = place(cx, &resource, &mut wanted).await?;
    let wanted = merge::annotated(&wanted);
    let api = cx.api().await?;
    let (what, object) = settle(api, &resource, &namespace, m.name(), &wanted, options.dry_run).await?;
    Ok(Applied {
        what,
        resource,
        namespace,
        object,
    })
}

/// Puts the object into its namespace: its own, which -n must not contradict, or the context's.
pub async fn place(cx: &Context, resource: &Resource, wanted: &mut Value) -> Result<String> {
    if !resource.namespaced {
        return Ok(String::new());
    }
    if let Some(own) = wanted["metadata"]["namespace"].as_str() {
        return match &cx.globals.namespace {
            Some(flag) if flag != own => Err(CliError::new(
                format!("the manifest is for namespace {own:?}, but -n says {flag:?}"),
                format!("use -n {own}, or take metadata.namespace out of the manifest"),
            )),
            _ => Ok(own.to_string()),
        };
    }
    let namespace = cx.namespace().await?;
    wanted["metadata"]["namespace"] = namespace.clone().into();
    Ok(namespace)
}

async fn settle(api: &Api, resource: &Resource, namespace: &str, name: &str, wanted: &Value, dry_run: DryRun) -> Result<(What, Value)> {
    let object_path = resource.object(namespace, name);
    let query = |path: &str| match dry_run {
        DryRun::Server => with_query(path, &[("dryRun", "All".into()), ("fieldManager", "rota-apply".into())]),
        _ => with_query(path, &[("fieldManager", "rota-apply".into())]),
    };
    for _ in 0..MAX_RACES {
        let live = match api.get(&object_path).await {
            Ok(live) => live,
            Err(e) if e.is_not_found() => {
                if dry_run == DryRun::Client {
                    return Ok((What::Created, wanted.clone()));
                }
                let collection = resource.collection(Some(namespace));
                match api.post(&query(&collection), wanted).await {
                    Ok(made) => return Ok((What::Created, made)),
                    Err(Failure::Status { code: 409, body }) if body["reason"] == "AlreadyExists" => continue,
                    Err(e) => return Err(e.into()),
                }
            }
            Err(e) => return Err(e.into()),
        };
        let last = merge::last_applied(&live).unwrap_or(json!({}));
        let mut patch = merge::three_way(&last, wanted, &live);
        // Without the main resource's status: it belongs to controllers.
        if let Some(map) = patch.as_object_mut() {
            map.remove("status");
        }
        if patch.as_object().is_some_and(|p| p.is_empty()) {
            return Ok((What::Unchanged, live));
        }
        if dry_run == DryRun::Client {
            let mut merged = live;
            json_merge(&mut merged, &patch);
            return Ok((What::Configured, merged));
        }
        match api.merge_patch(&query(&object_path), &patch).await {
            Ok(now) => {
                // The server may have had it so already, with defaults inside lists.
                let same = now["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"];
                let what = if same && dry_run == DryRun::No {
                    What::Unchanged
                } else {
                    What::Configured
                };
                return Ok((what, now));
            }
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e.into()),
        }
    }
    Err(CliError::new(
        format!("{} is created and deleted by others at the same time", named(resource, name)),
        "find out who else manages it, then apply again",
    ))
}

/// RFC 7386.
fn json_merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            if let Some(map) = target.as_object_mut() {
                map.remove(key);
            }
        } else {
            json_merge(&mut target[key.as_str()], value);
        }
    }
}
