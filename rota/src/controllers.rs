//! `rota controllers`: the controllers against an API server in another process. Each has its own
//! user, hence its own kubeconfig, as `rota apiserver` writes them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use kube::config::{KubeConfigOptions, Kubeconfig};
use rota_api::names::USER_CONTROLLER_PREFIX;
use rota_apiserver::auth::pki::read_private;
use rota_controllers::runtime::{Clock, Metrics, Timings};

use crate::control::{CONTROLLERS, identity, stop_signal};
use crate::datadir;
use crate::fail::{Fail, Result};

/// Flags of `rota controllers`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Data directory of the API server, or one with its folder `controllers` [default: $XDG_DATA_HOME/rota]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Run only these
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', value_parser = CONTROLLERS.to_vec())]
    only: Vec<String>,
}

/// Runs the controllers until told to stop.
pub async fn run(args: Args) -> Result<()> {
    let stop = stop_signal()?;
    let folder = datadir::choose(args.data_dir.as_deref())?.join("controllers");
    let mut clients = HashMap::new();
    let mut address = String::new();
    for name in CONTROLLERS {
        let path = folder.join(format!("{name}.kubeconfig"));
        let text = read_private(&path, 0o600)?.ok_or_else(|| {
            Fail::new(
                format!("{} does not exist", path.display()),
                "start `rota apiserver` with the same --data-dir first, or copy its folder `controllers` here",
            )
        })?;
        let bad = |e: &dyn std::fmt::Display| {
            Fail::new(
                format!("{} cannot be used: {e}", path.display()),
                "start `rota apiserver` again to have it written anew",
            )
        };
        let config = Kubeconfig::from_yaml(&text).map_err(|e| bad(&e))?;
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
            .await
            .map_err(|e| bad(&e))?;
        // The server that is dialled is the one at which the leader can be asked.
        address = config.cluster_url.to_string().trim_end_matches('/').into();
        let client = kube::Client::try_from(config).map_err(|e| bad(&e))?;
        clients.insert(format!("{USER_CONTROLLER_PREFIX}{name}"), client);
    }
    let fallback = clients[&format!("{USER_CONTROLLER_PREFIX}gc")].clone();
    let options = rota_controllers::Options {
        clients: Arc::new(move |user| clients.get(user).unwrap_or(&fallback).clone()),
        identity: identity(),
        address,
        timings: Timings::default(),
        only: args.only,
        metrics: Metrics::new(&mut Default::default()),
        clock: Clock::System,
        seed: rand::random(),
    };
    rota_controllers::run(options, stop).await;
    Ok(())
}
