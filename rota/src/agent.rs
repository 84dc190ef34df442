//! `rota agent`: this machine as a node.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rota_agent::{AgentConfig, Credential};
use rota_api::kinds::Resources;
use rota_api::quantity::{Quantity, is_shared_device};

use crate::children::{OnExit, PID_FILE};
use crate::control::stop_signal;
use crate::datadir::{self, Held, lock_file};
use crate::fail::{Fail, Result};
use crate::machine;

/// Flags of `rota agent`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// URL of the API server; of several, the next is used when one does not answer
    #[arg(
        long = "server",
        value_name = "URL,..",
        value_delimiter = ',',
        required = true
    )]
    servers: Vec<String>,
    /// Join token of `rota token create`; needed once
    #[arg(long, value_name = "TOKEN", env = "ROTA_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Name of the node [default: the host name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Pool of the node
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// What the node offers, instead of what the machine has; other resources are added
    #[arg(long, value_name = "NAME=QUANTITY,..", value_delimiter = ',', value_parser = pair)]
    resources: Vec<(String, String)>,
    /// Labels of the node
    #[arg(long, value_name = "KEY=VALUE,..", value_delimiter = ',', value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Directory for the certificate, tasks and their logs [default: $XDG_DATA_HOME/rota/nodes/NAME]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// What becomes of tasks when the agent is told to end
    #[arg(long, value_enum, default_value = "keep")]
    on_exit: OnExit,
}

/// `key=value`.
pub(crate) fn pair(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err(format!("{text:?} is not of the form key=value")),
    }
}

/// The amount of one `--resources NAME=AMOUNT`.
pub(crate) fn quantity(name: &str, text: &str) -> Result<Quantity> {
    text.parse().map_err(|e| {
        Fail::new(
            format!("--resources {name}={text}: {e}"),
            "write quantities as in Kubernetes: cpu=4 or cpu=500m, memory=8Gi",
        )
    })
}

fn resources(pairs: &[(String, String)]) -> Result<Resources> {
    let mut out = Resources::new();
    for (name, text) in pairs {
        let quantity = quantity(name, text)?;
        if is_shared_device(name) && quantity.units_floor() != quantity.units_ceil() {
            return Err(Fail::new(
                format!("--resources {name}={text}: a node has whole devices"),
                format!("give their number, such as {name}=2; tasks may request shares of one"),
            ));
        }
        out.insert(name.clone(), quantity);
    }
    Ok(out)
}

/// Runs the agent until told to stop.
pub async fn run(args: Args) -> Result<()> {
    let stop = stop_signal()?;
    let name = args.name.clone().unwrap_or_else(machine::node_base_name);
    let dir = match &args.data_dir {
        Some(dir) => datadir::choose(Some(dir))?,
        None => datadir::choose(None)?.join("nodes").join(&name),
    };
    rota_apiserver::auth::pki::private_dir(&dir)?;
    // Tells `rota up` whom to take the directory over from.
    let _pid = lock_file(&dir.join(PID_FILE)).map_err(|held| match held {
        Held::By(pid) => Fail::new(
            format!(
                "another agent{} works in {}",
                pid.map_or(String::new(), |p| format!(" (process {p})")),
                dir.display()
            ),
            "stop it, or give this one its own directory with --data-dir",
        ),
        Held::Io(e) => Fail::new(
            format!("cannot lock {}: {e}", dir.display()),
            "check its owner and mode",
        ),
    })?;
    let program = std::env::current_exe().map_err(|e| {
        Fail::new(
            format!("cannot find the own program file: {e}"),
            "start rota by its full path",
        )
    })?;
    let supervisor = vec![program.into(), "supervisor".into()];
    let mut config = AgentConfig::new(args.servers, &name, dir.clone(), supervisor);
    let ca = dir.join("ca.crt");
    config.ca = ca.exists().then_some(ca);
    config.credential = match args.token {
        Some(token) => Credential::Token(token),
        None => Credential::Stored,
    };
    config.resources = resources(&args.resources)?;
    config.labels = args.labels.into_iter().collect::<BTreeMap<_, _>>();
    config.pool = args.pool;
    config.on_exit = match args.on_exit {
        OnExit::Stop => rota_agent::OnExit::Stop,
        OnExit::Keep => rota_agent::OnExit::Keep,
    };
    rota_agent::run(config, stop)
        .await
        .map_err(|e| Fail::new(e.to_string(), ""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn servers_are_listed_by_flag_and_by_comma_in_order() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let line = ["agent", "--server", "https://a", "--server=https://b,c"];
        let line = <Line as clap::Parser>::try_parse_from(line).unwrap();
        assert_eq!(line.args.servers, ["https://a", "https://b", "c"]);
    }

    #[test]
    fn pairs_and_resources() {
        assert_eq!(pair("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert!(pair("a").is_err() && pair("=b").is_err());
        let ok = [
            ("cpu".to_string(), "500m".to_string()),
            ("nvidia.com/gpu".to_string(), "2".to_string()),
        ];
        assert_eq!(resources(&ok).unwrap().len(), 2);
        assert!(resources(&[("cpu".into(), "many".into())]).is_err());
        assert!(resources(&[("nvidia.com/gpu".into(), "500m".into())]).is_err());
    }
}
