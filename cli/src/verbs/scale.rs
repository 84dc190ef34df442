//! `rota scale`: sets the number of tasks through the scale subresource.

use serde_json::json;

use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output::named;
use crate::selector;

/// Flags of `rota scale`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// KIND NAME, or KIND/NAME ...
    #[arg(required = true, value_name = "KIND/NAME")]
    what: Vec<String>,
    /// Tasks to keep running
    #[arg(long, value_name = "N")]
    replicas: u32,
    /// Scale only if this is what is set now
    #[arg(long, value_name = "N")]
    current_replicas: Option<u32>,
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    let namespace = cx.namespace().await?;
    let api = cx.api().await?;
    for target in selector::targets(&args.what, &*cx.discovery().await?)? {
        if target.names.is_empty() {
            return Err(CliError::new(
                format!("no name given for {}", target.resource.plural),
                format!("write {}/NAME", target.resource.singular),
            ));
        }
        for name in &target.names {
            let path = format!("{}/scale", target.resource.object(&namespace, name));
            let mut patch = json!({"spec": {"replicas": args.replicas}});
            if let Some(expected) = args.current_replicas {
                let now = api.get(&path).await?;
                let have = now["spec"]["replicas"].as_u64().unwrap_or(0);
                if have != u64::from(expected) {
                    return Err(CliError::new(
                        format!("{} has {have} replicas, not {expected}", named(&target.resource, name)),
                        "leave out --current-replicas, or name the number that is set",
                    ));
                }
                // The version makes the check hold until the write.
                patch["metadata"] = json!({"resourceVersion": now["metadata"]["resourceVersion"]});
            }
            api.merge_patch(&path, &patch).await?;
            cx.print(&format!("{} scaled\n", named(&target.resource, name)))?;
        }
    }
    Ok(())
}
