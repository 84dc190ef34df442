//! `rota version`: the client's version and the server's.

use serde_json::json;

use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output;

/// Flags of `rota version`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Only the client's version; asks no server
    #[arg(long)]
    client: bool,
    /// yaml or json
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<String>,
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    let client = env!("CARGO_PKG_VERSION");
    let mut whole = json!({"clientVersion": {"gitVersion": format!("v{client}")}});
    let mut text = format!("Client Version: v{client}\n");
    let mut failed = None;
    if !args.client {
        let answer = match cx.api().await {
            Ok(api) => api.get("/version").await.map_err(CliError::from),
            Err(e) => Err(e),
        };
        match answer {
            Ok(v) => {
                text.push_str(&format!("Server Version: {}\n", v["gitVersion"].as_str().unwrap_or("unknown")));
                whole["serverVersion"] = v;
            }
            Err(e) => failed = Some(e),
        }
    }
    cx.print(&match args.output.as_deref() {
        None => text,
        Some("yaml") => output::to_yaml(&whole)?,
        Some("json") => output::to_json(&whole)?,
        Some(other) => {
            return Err(CliError::new(
                format!("unknown output format {other:?}"),
                "one of: yaml, json",
            ));
        }
    })?;
    failed.map_or(Ok(()), Err)
}
