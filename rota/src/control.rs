//! The control plane in one process: authority, store, API server behind TLS, controllers; and the
//! roles `rota server` and `rota apiserver`, which are this and nothing else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rota_api::names::{GROUP_MASTERS, USER_CONTROLLER_PREFIX};
use rota_apiserver::auth::User;
use rota_apiserver::auth::authorizer::GROUP_CONTROLLERS;
use rota_apiserver::auth::pki::{ADMIN_LIFE, Pki, private_dir, read_private, write_private};
use rota_apiserver::serve::{self, ServerTls};
use rota_apiserver::{ApiServer, Config};
use rota_controllers::runtime::{Clock, Metrics, Timings};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::datadir::{self, DataDir};
use crate::fail::{Fail, Result};
use crate::machine;
use crate::storage::StorageArgs;

/// The port that clients try first.
pub const PORT: u16 = 7443;
/// Name of the administrator in certificates and kubeconfigs.
const ADMIN: &str = "system:admin";
/// Users of controllers that run in another process.
pub const CONTROLLERS: &[&str] = &["placement", "job", "node", "namespace", "gc"];

/// Flags of `rota apiserver`.
#[derive(Debug, clap::Args)]
pub struct ApiserverArgs {
    /// Directory for certificates, kubeconfigs and the embedded store [default: $XDG_DATA_HOME/rota]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address to serve on
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7443")]
    listen: SocketAddr,
    /// URL by which agents and other servers reach this server [default: from --listen]
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// Further name or address in the server's certificate
    #[arg(long = "san", value_name = "NAME")]
    sans: Vec<String>,
    #[command(flatten)]
    storage: StorageArgs,
}

/// Flags of `rota server`.
pub type ServerArgs = ApiserverArgs;

/// Runs an API server until it is told to stop.
pub async fn apiserver(args: ApiserverArgs) -> Result<()> {
    role(args, false).await
}

/// Runs an API server and the controllers until it is told to stop.
pub async fn server(args: ServerArgs) -> Result<()> {
    role(args, true).await
}

async fn role(args: ApiserverArgs, with_controllers: bool) -> Result<()> {
    machine::raise_file_limit();
    let stop = stop_signal()?;
    let dir = DataDir::lock(&datadir::choose(args.data_dir.as_deref())?, "rota server")?;
    let listener = bind(args.listen).await?;
    if args.storage.shared() && args.advertise.is_none() && args.listen.ip().is_unspecified() {
        tracing::warn!(
            "other API servers and agents on other machines cannot tell where this one is: \
             give the URL by which they reach it with --advertise"
        );
    }
    let mut plane = Plane::start(
        &dir,
        listener,
        args.advertise.clone(),
        &args.sans,
        &args.storage,
    )
    .await?;
    if with_controllers {
        plane.start_controllers();
    } else {
        plane.write_controller_kubeconfigs(&dir)?;
    }
    println!(
        "serving {}; kubeconfig: {}",
        plane.url,
        plane.kubeconfig.display()
    );
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        fail = plane.failed() => Err(fail),
    };
    plane.stop_controllers().await;
    plane.stop().await;
    ended
}

/// Binds an address that was asked for.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let remedy = if e.kind() == std::io::ErrorKind::AddrInUse {
            "stop the process that uses the port, or choose another one with --listen"
        } else {
            "choose an address of this machine with --listen"
        };
        Fail::new(format!("cannot listen on {address}: {e}"), remedy)
    })
}

/// A token that SIGINT, SIGTERM and SIGHUP cancel. A second signal ends the process at once.
pub fn stop_signal() -> Result<CancellationToken> {
    let fail = |e: std::io::Error| Fail::new(format!("cannot wait for signals: {e}"), "");
    let mut signals = [
        signal(SignalKind::interrupt()).map_err(fail)?,
        signal(SignalKind::terminate()).map_err(fail)?,
        signal(SignalKind::hangup()).map_err(fail)?,
    ];
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        let [a, b, c] = &mut signals;
        for round in 0.. {
            tokio::select! { _ = a.recv() => {}, _ = b.recv() => {}, _ = c.recv() => {} }
            if round > 0 {
                eprintln!("stopped at once; tasks may still run");
                // 128 + SIGINT, as shells say it.
                std::process::exit(130);
            }
            stop.cancel();
        }
    });
    Ok(token)
}

/// A running control plane.
pub struct Plane {
    /// The authority.
    pub pki: Arc<Pki>,
    /// Where clients reach it.
    pub url: String,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    api: Arc<ApiServer>,
    metrics: Metrics,
    front: JoinHandle<()>,
    front_stop: CancellationToken,
    controllers: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Plane {
    /// Starts everything but the controllers; returns when it answers requests.
    pub async fn start(
        dir: &DataDir,
        listener: TcpListener,
        advertise: Option<String>,
        sans: &[String],
        storage: &StorageArgs,
    ) -> Result<Plane> {
        let address = listener
            .local_addr()
            .map_err(|e| Fail::new(format!("cannot read the address listened on: {e}"), ""))?;
        let mut names = sans.to_vec();
        names.extend(machine::host_name());
        if !address.ip().is_unspecified() {
            names.push(address.ip().to_string());
        }
        if let Some(url) = &advertise {
            names.push(host_of(url)?);
        }
        let pki = Arc::new(Pki::ensure(&dir.join("pki"), &names)?);
        let tls = ServerTls::new(&pki)?;
        let kubeconfig = dir.join("admin.kubeconfig");
        // One that others could read has leaked; overwriting it would only hide that.
        read_private(&kubeconfig, 0o600)?;
        private_dir(&dir.join("store"))?;
        let store = storage.open(&dir.join("store")).await?;
        let url = advertise.unwrap_or_else(|| url_of(address));
        let config = Config {
            pki: Some(pki.clone()),
            advertise: url.clone(),
            history: storage.history(),
            ..Config::default()
        };
        let metrics = Metrics::new(&mut config.registry.lock());
        let api = ApiServer::start(store, config).await;
        let front_stop = CancellationToken::new();
        let front = tokio::spawn(serve::serve(
            listener,
            api.router(),
            tls,
            serve::Options::default(),
            front_stop.clone(),
        ));
        let admin = pki.issue_client(ADMIN, GROUP_MASTERS, ADMIN_LIFE)?;
        let text = pki.kubeconfig(&url_of(address), ADMIN, &admin);
        write_private(&kubeconfig, text.as_bytes(), true)?;
        Ok(Plane {
            pki,
            url,
            kubeconfig,
            api,
            metrics,
            front,
            front_stop,
            controllers: None,
        })
    }

    /// Starts all controllers in this process; they call the API server without a socket.
    pub fn start_controllers(&mut self) {
        let api = self.api.clone();
        let options = rota_controllers::Options {
            clients: Arc::new(move |user| api.kube_client(User::new(user, &[GROUP_CONTROLLERS]))),
            identity: identity(),
            address: self.url.clone(),
            timings: Timings::default(),
            only: Vec::new(),
            metrics: self.metrics.clone(),
            clock: Clock::System,
            seed: rand::random(),
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(rota_controllers::run(options, stop.clone()));
        self.controllers = Some((stop, running));
    }

    /// Stops the controllers, which give their Leases back.
    pub async fn stop_controllers(&mut self) {
        if let Some((stop, running)) = self.controllers.take() {
            stop.cancel();
            let _ = tokio::time::timeout(Duration::from_secs(5), running).await;
        }
    }

    /// Kubeconfigs for controllers that run elsewhere, in `controllers/`.
    fn write_controller_kubeconfigs(&self, dir: &DataDir) -> Result<()> {
        let folder = dir.join("controllers");
        private_dir(&folder)?;
        for name in CONTROLLERS {
            let user = format!("{USER_CONTROLLER_PREFIX}{name}");
            let issued = self
                .pki
                .issue_client(&user, GROUP_CONTROLLERS, ADMIN_LIFE)?;
            let text = self.pki.kubeconfig(&self.url, &user, &issued);
            write_private(
                &folder.join(format!("{name}.kubeconfig")),
                text.as_bytes(),
                true,
            )?;
        }
        Ok(())
    }

    /// Returns only when serving has ended though nobody asked for it.
    pub async fn failed(&mut self) -> Fail {
        let _ = (&mut self.front).await;
        Fail::new(
            "the API server's front ended",
            "this is a defect: please report it with the log",
        )
    }

    /// Ends watches, then connections.
    pub async fn stop(mut self) {
        self.api.stop();
        self.front_stop.cancel();
        if !self.front.is_finished() {
            let _ = (&mut self.front).await;
        }
    }
}

/// Holder name in Leases: readable, and unique to this process.
pub fn identity() -> String {
    format!(
        "{}-{:08x}",
        machine::node_base_name(),
        rand::random::<u32>()
    )
}

fn url_of(address: SocketAddr) -> String {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        // Both loopbacks answer on an unspecified address; v4 is what users expect to see.
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    format!("https://{}", SocketAddr::new(ip, address.port()))
}

/// The host of an `https://` URL.
fn host_of(url: &str) -> Result<String> {
    let uri: Option<http::Uri> = url.parse().ok();
    uri.filter(|u| u.scheme_str() == Some("https"))
        .and_then(|u| Some(u.host()?.trim_matches(['[', ']']).to_string()))
        .ok_or_else(|| {
            Fail::new(
                format!("{url:?} is no https URL"),
                "for example --advertise https://control.example:7443",
            )
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn urls() {
        let url = |a: &str| url_of(a.parse().unwrap());
        assert_eq!(url("127.0.0.1:7443"), "https://127.0.0.1:7443");
        assert_eq!(url("0.0.0.0:1"), "https://127.0.0.1:1");
        assert_eq!(url("[::1]:7443"), "https://[::1]:7443");
        assert_eq!(host_of("https://a.example:7443").unwrap(), "a.example");
        assert_eq!(host_of("https://[::1]:7443").unwrap(), "::1");
        assert!(host_of("http://a").is_err() && host_of("a b").is_err());
    }
}
