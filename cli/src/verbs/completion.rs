//! `rota completion`: a completion script for a shell.

use clap::{Args as _, Subcommand as _};
use clap_complete::Shell;

use crate::context::Context;
use crate::error::Result;
use crate::globals::Globals;
use crate::verbs::Command;

/// Flags of `rota completion`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "bash:  source <(rota completion bash)\n\
    zsh:   rota completion zsh > \"${fpath[1]}/_rota\"\n\
    fish:  rota completion fish | source")]
pub struct Args {
    /// Shell to write for
    shell: Shell,
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    let mut command = match &cx.globals.root {
        Some(root) => root.clone(),
        None => Command::augment_subcommands(Globals::augment_args(clap::Command::new("rota"))),
    };
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "rota", &mut script);
    cx.print(&String::from_utf8_lossy(&script))
}
