//! `rota`: flags and wiring. What a role does is in its crate; how a process plays the role is in
//! one file here.

mod agent;
mod bench;
mod children;
mod control;
mod controllers;
mod datadir;
mod fail;
mod kubeconfig;
mod logging;
mod machine;
mod record;
mod simulate;
mod storage;
mod up;

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use fail::Fail;

/// Fleets of machines that do what their users declared, over the Kubernetes API.
#[derive(Debug, Parser)]
#[command(name = "rota", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    globals: rota_cli::Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a whole cluster on this machine: API server, controllers and agents
    Up(up::Args),
    /// Run an API server and the controllers
    Server(control::ServerArgs),
    /// Run an API server alone
    Apiserver(control::ApiserverArgs),
    /// Run the controllers alone
    Controllers(controllers::Args),
    /// Run this machine's agent
    Agent(agent::Args),
    /// Measure a server
    Bench(bench::Args),
    Simulate(simulate::Args),
    #[command(flatten)]
    Verb(rota_cli::Command),
}

fn main() -> ExitCode {
    // The supervisor clones itself to start tasks, so it is entered before any thread exists.
    let mut args = std::env::args_os().skip(1);
    if args.next().as_deref() == Some(OsStr::new("supervisor")) {
        return rota_supervisor::main(args);
    }
    let cli = Cli::parse();
    let server_role = !matches!(
        cli.command,
        Command::Verb(_) | Command::Bench(_) | Command::Simulate(_)
    );
    logging::start(server_role);
    // Several crates take the process-wide provider; this is the only place that sets it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = if matches!(cli.command, Command::Verb(_)) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    } else {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
    };
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => {
            return Fail::new(
                format!("cannot start threads: {e}"),
                "raise the limits on processes and memory of this user",
            )
            .report();
        }
    };
    let code = runtime.block_on(run(cli));
    // Blocking reads (stdin) must not hold the exit up.
    runtime.shutdown_background();
    code
}

async fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Verb(verb) => {
            let mut globals = cli.globals;
            globals.root = Some(Cli::command());
            return rota_cli::run(verb, globals).await;
        }
        Command::Bench(args) => return bench::run(args).await,
        Command::Simulate(args) => simulate::run_verb(&args, &cli.globals).await,
        Command::Up(args) => up::run(args).await,
        Command::Server(args) => control::server(args).await,
        Command::Apiserver(args) => control::apiserver(args).await,
        Command::Controllers(args) => controllers::run(args).await,
        Command::Agent(args) => agent::run(args).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => fail.report(),
    }
}

/// Runs `rota apply` on these files, as a user would with this kubeconfig.
async fn apply(kubeconfig: &std::path::Path, files: &[std::path::PathBuf]) -> ExitCode {
    let mut line: Vec<std::ffi::OsString> = vec!["rota".into(), "--kubeconfig".into()];
    line.push(kubeconfig.into());
    line.push("apply".into());
    for file in files {
        line.push("-f".into());
        line.push(file.into());
    }
    match Cli::try_parse_from(line) {
        Ok(Cli {
            globals,
            command: Command::Verb(verb),
        }) => rota_cli::run(verb, globals).await,
        Ok(_) => ExitCode::FAILURE,
        Err(e) => Fail::new(e.to_string(), "check the files given with -f").report(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn interfaces_that_scripts_depend_on_parse() {
        for line in [
            "rota up --data-dir /d --listen 127.0.0.1:0 --nodes 2 --on-exit keep -f a.yaml -f b",
            "rota up --etcd-endpoints http://a:1,http://b:2",
            "rota server --data-dir /d --listen 0.0.0.0:7443",
            "rota apiserver --data-dir /d",
            "rota controllers --data-dir /d",
            "rota agent --server https://h:7443 --token rota1.a.b.c --name n --pool p --resources cpu=4,memory=8Gi,nvidia.com/gpu=2 --labels a=b,c=d",
            "rota agent --server https://a:7443 --server https://b:7443,https://c:7443",
            "rota token create",
            "rota bench schedule --nodes 10 --arrays 2 --tasks-per-array 3 --singles --affinity -o json",
            "rota simulate --nodes 32 --trace swf:f --order easy --placement binpack --load 100 --seed 7 -o json",
            "rota queue",
            "rota plan -f x.yaml",
            "rota why pi",
            "rota simulate --nodes n.csv --trace openb:p.csv --order easy --placement spread --load 100 --seed 1 -o json",
            "rota simulate record log.jsonl --seconds 5",
            "rota version",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "rota up --on-exit maybe",
            "rota up --nodes x",
            "rota simulate",
            "rota agent",
            "rota",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
