//! `rota bench`: measures a running server, and in the same run the limit that it is held against.
//!
//! Every benchmark alternates slices of the limit with slices of the measurement, so that both see
//! the same machine, and prints one JSON object with the raw samples. Without `--server` it starts
//! a cluster of its own in a temporary directory and removes it afterwards.

mod api;
mod client;
mod cluster;
mod hollow;
mod limits;
mod report;
mod schedule;
mod tasks;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

/// Arguments of `rota bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Requests of one kind against the API: create, bulk, get, list or page.
    Api(api::Args),
    /// Writers, and watchers that must see every write once and in order.
    Watch(watch::Args),
    /// One Job of many short tasks, from its creation until it is complete.
    Tasks(tasks::Args),
    /// The scheduler core alone: many tasks onto many nodes, each placement counted again.
    Schedule(schedule::Args),
    /// Serves ready bytes over TLS: the limit of `get` and `list`. Ends when its standard input does.
    #[command(hide = true)]
    LimitServer(limits::ServerArgs),
}

/// Where to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Where {
    /// Measure this server (https://host:port), with the credentials of the kubeconfig, instead of a cluster of its own.
    #[arg(long)]
    server: Option<String>,
    /// Measure the server of this kubeconfig.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Own cluster: keep its objects in this etcd instead of the embedded store.
    #[arg(long, value_name = "URL,..")]
    etcd_endpoints: Option<String>,
    /// Own cluster: start a private etcd for it.
    #[arg(long, conflicts_with = "etcd_endpoints")]
    etcd: bool,
    /// Own cluster: directory to make the temporary directory in; choose the disk that is to be measured.
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    /// Leave the objects, and the directory of an own cluster, in place.
    #[arg(long)]
    keep: bool,
    /// Process id of the server, to read its CPU time when it is not an own cluster.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Output format.
    #[arg(short, long, default_value = "json", value_parser = ["json"])]
    output: String,
}

/// Runs the benchmark and prints its report. Fails when any operation failed or an independent
/// list does not find what was acknowledged.
pub async fn run(args: Args) -> ExitCode {
    // Several crates ask for the process-wide provider; a second installation changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match args.what {
        What::Api(args) => api::run(args).await,
        What::Watch(args) => watch::run(args).await,
        What::Tasks(args) => tasks::run(args).await,
        What::Schedule(args) => schedule::run(&args),
        What::LimitServer(args) => {
            return match limits::serve(args).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error),
            };
        }
    };
    match result {
        Ok(report) => {
            println!("{:#}", report.json);
            if report.sound {
                ExitCode::SUCCESS
            } else {
                eprintln!(
                    "error: operations failed or objects are missing; see errors, lost and objects above"
                );
                ExitCode::FAILURE
            }
        }
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
