//! The agent: one per machine. It registers the machine as a Node, runs the Tasks bound to it
//! through its supervisor, and reports how they fare.
//!
//! It dials out only. It may die and return at any time: the tasks live on under the supervisor,
//! and whatever happened meanwhile is reported exactly once. What it does about a task is decided
//! by the pure function [`plan::plan`].

pub mod api;
pub mod config;
pub mod core;
pub mod environment;
pub mod identity;
pub mod logs;
pub mod machine;
pub mod metrics;
pub mod node;
pub mod outbox;
pub mod plan;
pub mod ports;
pub mod servers;
pub mod sources;
pub mod supervision;
pub mod tunnel;
pub mod watch;

use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;

pub use config::{AgentConfig, AgentError, Credential, OnExit};
use rota_supervisor::sys;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// When told to end before the registration is through, it may still get through for this long.
const SETUP_GRACE: Duration = Duration::from_secs(2);
/// Pause after a certificate renewal that failed.
const RENEW_RETRY: Duration = Duration::from_secs(60);
/// Certificates are looked at at least this often: a clock may jump.
const RENEW_LOOK: Duration = Duration::from_secs(3600);

/// Runs an agent until `shutdown`.
pub async fn run(config: AgentConfig, shutdown: CancellationToken) -> Result<(), AgentError> {
    let servers = Arc::new(servers::Servers::new(&config.servers)?);
    let boot_id = sys::boot_id().map_err(AgentError::file("/proc/sys/kernel/random/boot_id"))?;
    let _lock = prepare_data_dir(&config)?;
    let config = Arc::new(config);
    let (tell, mut told) = mpsc::channel(256);
    // First of all: tasks of an earlier agent are found again even when the server is away.
    let links = supervision::attach(&config, &tell).await?;
    let unlimited = links
        .last()
        .map(|l| l.unlimited.clone())
        .unwrap_or_default();
    let stopped = shutdown.clone();
    let setting_up = async {
        let identity = identity::obtain(&config, servers.clone()).await?;
        let api = Arc::new(api::Api::new(&identity)?);
        let facts = node::Facts {
            unlimited,
            stopping: false,
        };
        let registered = node::register_until_done(&api, &config, &boot_id, &facts).await?;
        Ok::<_, AgentError>((identity, api, facts, registered))
    };
    let (identity, api, facts, registered) = tokio::select! {
        result = setting_up => result?,
        () = async {
            stopped.cancelled().await;
            tokio::time::sleep(SETUP_GRACE).await;
        } => {
            if config.on_exit == OnExit::Stop {
                stop_unreported(&links, &mut told).await;
            }
            return Ok(());
        }
    };
    tracing::info!(
        node = config.name,
        epoch = registered.epoch,
        server = %servers.current().url,
        "registered"
    );

    let (metrics, registry) = metrics::Metrics::new();
    let attempts = Arc::new(logs::Attempts::default());
    let served = tunnel::Served::new(config.data_dir.join("tasks"), attempts.clone(), registry);
    let look_now = Arc::new(Notify::new());
    let (changes_tx, changes) = mpsc::channel(64);
    let (beats_tx, beats) = mpsc::channel(16);
    let mut background = tokio::task::JoinSet::new();
    background.spawn(watch::run(api.clone(), config.name.clone(), changes_tx));
    background.spawn(node::run(
        api.clone(),
        config.clone(),
        boot_id,
        facts,
        registered,
        beats_tx,
        look_now.clone(),
    ));
    background.spawn(tunnel::run(
        identity.clone(),
        config.name.clone(),
        Arc::new(served),
    ));
    if identity.ca.is_some() {
        background.spawn(keep_certificate(
            api.clone(),
            identity.clone(),
            config.name.clone(),
        ));
    }
    let wiring = core::Wiring {
        api,
        address: machine::address_towards(servers.current()),
        config,
        attempts,
        metrics,
        epoch: registered.epoch,
        renewed_ms: registered.renewed_ms,
        look_now,
    };
    let inputs = core::Inputs {
        changes,
        told,
        tell,
        beats,
    };
    core::run(wiring, inputs, links, shutdown).await
    // `background` ends with its handle.
}

/// Stops every task when the agent is told to end before it ever reached the server. The exits
/// wait in the journal for the next agent.
async fn stop_unreported(
    links: &[supervision::Link],
    told: &mut mpsc::Receiver<supervision::Told>,
) {
    use rota_supervisor::protocol::{Request, StopSpec};
    let mut running = std::collections::BTreeSet::new();
    let deadline =
        tokio::time::Instant::now() + Duration::from_millis(plan::GRACE_DEFAULT_MS * 4 / 3);
    let mut welcomes = 0;
    while welcomes < links.len() || !running.is_empty() {
        let Ok(Some(news)) = tokio::time::timeout_at(deadline, told.recv()).await else {
            return;
        };
        match news {
            supervision::Told::Welcome(generation, w) => {
                welcomes += 1;
                let stop = |id: &String| StopSpec {
                    id: id.clone(),
                    signal: 15,
                    grace_ms: plan::GRACE_DEFAULT_MS,
                };
                running.extend(w.running.iter().map(|r| r.id.clone()));
                let stops = w.running.iter().map(|r| stop(&r.id)).collect();
                if let Some(link) = links.iter().find(|l| l.generation == generation) {
                    link.send(Request::Stop(stops));
                }
            }
            supervision::Told::Report(_, r) => r.exits.iter().for_each(|e| {
                running.remove(&e.id);
            }),
            supervision::Told::Closed(_) => return,
        }
    }
}

/// Makes the data directory and holds it against a second agent.
fn prepare_data_dir(config: &AgentConfig) -> Result<std::fs::File, AgentError> {
    let dir = &config.data_dir;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(AgentError::file(dir))?;
    let spare = dir.join(rota_supervisor::dirs::SPARE);
    std::fs::create_dir_all(&spare).map_err(AgentError::file(&spare))?;
    let path = dir.join("agent.lock");
    let lock = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(AgentError::file(&path))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| AgentError::Busy(dir.clone()))?;
    Ok(lock)
}

/// Renews the certificate at two thirds of its life, for ever.
async fn keep_certificate(api: Arc<api::Api>, identity: identity::Identity, name: String) {
    loop {
        let renew_in = identity::life(&identity.certificate).map_or(RENEW_LOOK, |l| l.renew_in);
        if !renew_in.is_zero() {
            tokio::time::sleep(renew_in.min(RENEW_LOOK)).await;
            continue;
        }
        let renewed = identity::renew(&name, &identity)
            .await
            .and_then(|()| api.reload(&identity));
        match renewed {
            Ok(()) => tracing::info!("the certificate was renewed"),
            Err(e) => {
                tracing::warn!(error = %e, "the certificate cannot be renewed yet");
                tokio::time::sleep(RENEW_RETRY).await;
            }
        }
    }
}
