//! The verbs. Each is a file with `Args` (its flags) and `run`; the table below is all else there is.

use std::process::ExitCode;

use crate::context::Context;
use crate::error::Result;
use crate::globals::Globals;

macro_rules! verbs {
    ($($(#[$meta:meta])* $variant:ident => $module:ident,)*) => {
        $(#[doc = concat!("`rota ", stringify!($module), "`.")] pub mod $module;)*

        /// A verb with its flags.
        #[derive(clap::Subcommand, Clone, Debug)]
        pub enum Command {
            $($(#[$meta])* $variant($module::Args),)*
        }

        async fn dispatch(cmd: Command, cx: &Context) -> Result<()> {
            match cmd {
                $(Command::$variant(args) => $module::run(args, cx).await,)*
            }
        }
    };
}

verbs! {
    /// Make the cluster match manifests: files, directories or - for stdin
    Apply => apply,
    /// Show objects as a table, YAML, JSON or by an expression
    Get => get,
    /// Show an object in full: what is wanted, what is observed, what happened to it
    Describe => describe,
    /// Delete objects
    Delete => delete,
    /// Wait until objects meet a condition
    Wait => wait,
    /// Show what tasks wrote
    Logs => logs,
    /// Run a command as a Job
    #[command(name = "run")]
    RunJob => run,
    /// Change how many tasks a Job keeps running
    Scale => scale,
    /// Say why a Job waits and what would help
    Why => why,
    /// Say what would start where if manifests were applied, without applying them
    Plan => plan,
    /// Show Queues as a tree: what each is owed, holds, borrows and lends
    Queue => queue,
    /// Make join tokens
    Token => token,
    /// Show the versions of client and server
    Version => version,
    /// Write a completion script for a shell
    Completion => completion,
}

/// Runs a verb on this process's streams.
pub async fn run(cmd: Command, globals: Globals) -> ExitCode {
    let cx = Context::new(globals);
    ExitCode::from(run_with(cmd, &cx).await)
}

/// Runs a verb in a given context and reports its failure there; the exit code.
pub async fn run_with(cmd: Command, cx: &Context) -> u8 {
    match dispatch(cmd, cx).await {
        Ok(()) => 0,
        Err(e) if e.is_broken_pipe() => 0,
        Err(e) => {
            cx.report(&e);
            e.exit
        }
    }
}
