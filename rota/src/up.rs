//! `rota up`: a whole cluster on this machine, in one process and a child per node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rota_apiserver::auth::pki::write_private;
use tokio::net::TcpListener;

use crate::children::{Agents, OnExit, Spec};
use crate::control::{PORT, Plane, bind, stop_signal};
use crate::datadir::{self, DataDir};
use crate::fail::{Fail, Result};
use crate::storage::StorageArgs;
use crate::{kubeconfig, machine};

/// How many ports from [`PORT`] on are tried when none was asked for.
const PORTS_TRIED: u16 = 200;
/// Longest wait for agents to stop their tasks: the longest usual grace and some more.
const STOP_PATIENCE: Duration = Duration::from_secs(45);
/// Nodes that one machine pretends to be; each is a process and a share of at least some CPU.
const NODES_MAX: i64 = 256;

/// Flags of `rota up`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory for everything that is kept [default: $XDG_DATA_HOME/rota]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address to serve on [default: 127.0.0.1:7443, or the next free port]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Local nodes; this machine is divided among them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=NODES_MAX))]
    nodes: u32,
    /// What becomes of agents and tasks when this ends
    #[arg(long, value_enum, default_value = "stop")]
    on_exit: OnExit,
    /// Apply these manifests once the cluster is ready
    #[arg(short, long = "filename", value_name = "FILE|DIR")]
    filename: Vec<PathBuf>,
    /// Add the cluster to your own kubeconfig too, and make it the current one
    #[arg(long)]
    merge_kubeconfig: bool,
    #[command(flatten)]
    storage: StorageArgs,
}

/// Runs the cluster until told to stop.
pub async fn run(args: Args) -> Result<()> {
    machine::raise_file_limit();
    let stop = stop_signal()?;
    let path = datadir::choose(args.data_dir.as_deref())?;
    let dir = DataDir::lock(&path, "rota up")?;
    let listener = listen(&args, &dir).await?;
    let mut plane = Plane::start(&dir, listener, None, &[], &args.storage).await?;
    let admin = std::fs::read_to_string(&plane.kubeconfig).unwrap_or_default();
    if args.merge_kubeconfig {
        let merged = kubeconfig::merge_into_users(&admin)?;
        eprintln!("merged into {}; current context: rota", merged.display());
    }
    plane.start_controllers();
    let specs = specs(&args, &dir, &plane.url);
    for spec in &specs {
        spec.prepare(&plane.pki).await?;
    }
    let agents = Agents::start(specs);

    println!(
        "Rota serves {} with {} node{}; kubeconfig: {}",
        plane.url,
        args.nodes,
        if args.nodes == 1 { "" } else { "s" },
        plane.kubeconfig.display()
    );
    println!(
        "next: kubectl --kubeconfig {} get nodes",
        plane.kubeconfig.display()
    );
    let kubeconfig = plane.kubeconfig.clone();
    let applying = async {
        if !args.filename.is_empty() {
            // It has told what went wrong; the cluster stays up for another try.
            crate::apply(&kubeconfig, &args.filename).await;
        }
        std::future::pending::<()>().await
    };
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = applying => Ok(()),
        fail = plane.failed() => Err(fail),
    };
    eprintln!(
        "{}",
        match args.on_exit {
            OnExit::Stop => "stopping tasks and agents; once more to stop at once",
            OnExit::Keep => "leaving tasks and agents running",
        }
    );
    // First those who would start work anew, then the work, then the server it reports to.
    plane.stop_controllers().await;
    agents.stop(STOP_PATIENCE).await;
    plane.stop().await;
    ended
}

/// The address asked for; else the one of the last run, so that kubeconfigs stay right; else the
/// first free port.
async fn listen(args: &Args, dir: &DataDir) -> Result<TcpListener> {
    let remembered = dir.join("listen");
    let listener = match args.listen {
        Some(address) => bind(address).await?,
        None => {
            let last = std::fs::read_to_string(&remembered)
                .ok()
                .and_then(|t| t.trim().parse::<SocketAddr>().ok());
            let first = (PORT..PORT + PORTS_TRIED)
                .map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
            let mut found = None;
            for address in last.into_iter().chain(first) {
                match TcpListener::bind(address).await {
                    Ok(listener) => {
                        found = Some(listener);
                        break;
                    }
                    Err(e) => tracing::debug!(%address, error = %e, "port is taken"),
                }
            }
            found.ok_or_else(|| {
                Fail::new(
                    format!(
                        "none of the ports {PORT} to {} is free",
                        PORT + PORTS_TRIED - 1
                    ),
                    "choose one with --listen 127.0.0.1:PORT",
                )
            })?
        }
    };
    if let Ok(address) = listener.local_addr() {
        write_private(&remembered, format!("{address}\n").as_bytes(), true)?;
    }
    Ok(listener)
}

/// The agents: equal shares of the machine, names that a later run repeats.
fn specs(args: &Args, dir: &DataDir, server: &str) -> Vec<Spec> {
    let base = machine::node_base_name();
    (0..args.nodes)
        .map(|i| {
            let name = format!("{base}-{}", i + 1);
            Spec {
                dir: dir.join("nodes").join(&name),
                name,
                server: server.into(),
                resources: machine::share(args.nodes),
                on_exit: args.on_exit,
            }
        })
        .collect()
}
