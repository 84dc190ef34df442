//! The agent's side of its supervisors: finding the living, replacing the dead, talking to them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rota_supervisor::client;
use rota_supervisor::protocol::{
    Decoder, Event, PROTOCOL_VERSION, Report, Request, Welcome, encode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::config::{AgentConfig, AgentError};

/// How long a supervisor may take until it listens; it may have to take over a large journal.
const START_WAIT: Duration = Duration::from_secs(20);

/// What supervisors tell, with their generation.
#[derive(Debug)]
pub enum Told {
    /// The state at connection.
    Welcome(u64, Box<Welcome>),
    /// News.
    Report(u64, Report),
    /// The connection ended; the supervisor may live.
    Closed(u64),
}

/// A connection to one supervisor.
#[derive(Debug)]
pub struct Link {
    /// Its generation.
    pub generation: u64,
    /// Why it cannot enforce limits; empty when it can.
    pub unlimited: String,
    requests: mpsc::UnboundedSender<Request>,
}

impl Link {
    /// Queues a request. Bounded by what the agent was told to do: one start and stop per task.
    pub fn send(&self, request: Request) {
        let _ = self.requests.send(request); // a closed link is told by Told::Closed
    }
}

fn directory(data_dir: &Path, generation: u64) -> PathBuf {
    data_dir.join(format!("supervisor-{generation}"))
}

/// Generations that have a directory, oldest first.
pub fn generations(data_dir: &Path) -> Vec<u64> {
    let mut found: Vec<u64> = std::fs::read_dir(data_dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| {
            e.file_name()
                .to_str()?
                .strip_prefix("supervisor-")?
                .parse()
                .ok()
        })
        .collect();
    found.sort_unstable();
    found
}

/// Connects to every living supervisor of the data directory and makes sure that one of this
/// program's version is among them; a new one takes over from the dead. The newest link is last.
pub async fn attach(
    config: &AgentConfig,
    tell: &mpsc::Sender<Told>,
) -> Result<Vec<Link>, AgentError> {
    let (mut links, mut dead) = (Vec::new(), Vec::new());
    let found = generations(&config.data_dir);
    let mut current = None;
    for generation in &found {
        match open(&config.data_dir, *generation).await {
            Ok((stream, welcome, decoder)) => {
                // One that drains was told to end by an agent that is gone; it refuses starts.
                if welcome.program == env!("CARGO_PKG_VERSION") && !welcome.draining {
                    current = Some(*generation);
                }
                links.push(link(*generation, stream, welcome, decoder, tell));
            }
            Err(_) => dead.push(directory(&config.data_dir, *generation)),
        }
    }
    if current.is_none() || !dead.is_empty() {
        let generation = found.last().map_or(1, |g| g + 1);
        let (stream, welcome, decoder) = start(config, generation, &dead).await?;
        for old in &links {
            old.send(Request::Drain); // ends with its last task
        }
        links.push(link(generation, stream, welcome, decoder, tell));
    }
    Ok(links)
}

async fn open(data_dir: &Path, generation: u64) -> std::io::Result<(UnixStream, Welcome, Decoder)> {
    let stream = client::connect(&directory(data_dir, generation))?;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let mut hello = Vec::new();
    encode(
        &Request::Hello {
            version: PROTOCOL_VERSION,
        },
        &mut hello,
    )?;
    stream.write_all(&hello).await?;
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match decoder
            .next_frame::<Event>()
            .map_err(std::io::Error::other)?
        {
            Some(Event::Welcome(w)) => return Ok((stream, *w, decoder)),
            Some(Event::Refused { message }) => return Err(std::io::Error::other(message)),
            Some(Event::Report(_)) | None => {}
        }
        let n = tokio::time::timeout(START_WAIT, stream.read(&mut buffer)).await??;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        decoder.push(&buffer[..n]);
    }
}

async fn start(
    config: &AgentConfig,
    generation: u64,
    dead: &[PathBuf],
) -> Result<(UnixStream, Welcome, Decoder), AgentError> {
    let dir = directory(&config.data_dir, generation);
    let import: Vec<&Path> = dead.iter().map(PathBuf::as_path).collect();
    let group = group_name(config);
    let group = config.control_groups.then_some(group.as_str());
    let mut child = client::launch(&config.supervisor, &dir, generation, &import, group)
        .map_err(|e| AgentError::Supervisor(format!("it cannot be started: {e}")))?;
    let deadline = Instant::now() + START_WAIT;
    loop {
        if let Ok(open) = open(&config.data_dir, generation).await {
            // Reaped when it ends, however long that takes.
            std::thread::Builder::new()
                .name("supervisor-wait".into())
                .stack_size(64 << 10)
                .spawn(move || child.wait())
                .map_err(|e| AgentError::Supervisor(e.to_string()))?;
            return Ok(open);
        }
        if let Ok(Some(status)) = child.try_wait() {
            let said = std::fs::read_to_string(dir.join(client::MESSAGES)).unwrap_or_default();
            let said = said
                .lines()
                .next_back()
                .unwrap_or("it said nothing")
                .to_string();
            // Its empty directory must not look like a dead predecessor next time.
            let _ = std::fs::remove_dir_all(&dir);
            return Err(AgentError::Supervisor(format!(
                "it ended with {status}: {said}"
            )));
        }
        if Instant::now() > deadline {
            return Err(AgentError::Supervisor(format!(
                "it does not listen after {} s",
                START_WAIT.as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Name of the parent control group: different for two agents of one machine even when their
/// nodes have the same name in two clusters.
fn group_name(config: &AgentConfig) -> String {
    let path = config
        .data_dir
        .canonicalize()
        .unwrap_or_else(|_| config.data_dir.clone());
    let hash = rota_api::names::short_hash(&[&path.to_string_lossy()], 8);
    format!("{}-{hash}", config.name)
}

fn unlimited(w: &Welcome) -> String {
    let say = |what: &str, why: &Option<String>| {
        why.as_ref()
            .map(|w| format!("{what} limits are not enforced: {w}"))
    };
    let all: Vec<String> = [
        say("cpu", &w.cpu_unlimited),
        say("memory", &w.memory_unlimited),
    ]
    .into_iter()
    .flatten()
    .collect();
    all.join("; ")
}

fn link(
    generation: u64,
    stream: UnixStream,
    welcome: Welcome,
    mut decoder: Decoder,
    tell: &mpsc::Sender<Told>,
) -> Link {
    let (requests, mut queue) = mpsc::unbounded_channel::<Request>();
    let unlimited = unlimited(&welcome);
    let (mut reader, mut writer) = stream.into_split();
    tokio::spawn(async move {
        let mut out = Vec::new();
        while let Some(request) = queue.recv().await {
            out.clear();
            let mut ok = encode(&request, &mut out).is_ok();
            while let Ok(request) = queue.try_recv() {
                ok &= encode(&request, &mut out).is_ok();
            }
            if !ok || writer.write_all(&out).await.is_err() {
                return;
            }
        }
    });
    let tell = tell.clone();
    tokio::spawn(async move {
        // From here, because whoever makes the link may be the one who empties the channel.
        let welcome = Told::Welcome(generation, Box::new(welcome));
        if tell.send(welcome).await.is_err() {
            return;
        }
        let mut buffer = vec![0; 256 << 10];
        'read: loop {
            loop {
                match decoder.next_frame::<Event>() {
                    Ok(Some(Event::Report(r))) => {
                        if tell.send(Told::Report(generation, r)).await.is_err() {
                            return;
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(e) => {
                        tracing::error!(generation, error = %e, "the supervisor's message cannot be read");
                        break 'read;
                    }
                }
            }
            match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => decoder.push(&buffer[..n]),
            }
        }
        let _ = tell.send(Told::Closed(generation)).await; // the agent may be gone
    });
    Link {
        generation,
        unlimited,
        requests,
    }
}

/// After a connection ended: connects again, or has a successor take over from a dead supervisor.
/// `None` when the supervisor ended in good order and left nothing.
pub async fn recover(
    config: &AgentConfig,
    generation: u64,
    newest: bool,
    stopping: bool,
    tell: &mpsc::Sender<Told>,
) -> Result<Option<Link>, AgentError> {
    if let Ok((stream, welcome, decoder)) = open(&config.data_dir, generation).await {
        return Ok(Some(link(generation, stream, welcome, decoder, tell)));
    }
    let dir = directory(&config.data_dir, generation);
    let (state, _) =
        rota_supervisor::journal::read(&dir).map_err(|e| AgentError::Supervisor(e.to_string()))?;
    if state.running.is_empty() && state.exits.is_empty() && (!newest || stopping) {
        let _ = std::fs::remove_dir_all(&dir); // a successor would remove it too
        return Ok(None);
    }
    tracing::error!(generation, "the supervisor died; another one takes over");
    let next = generations(&config.data_dir).last().map_or(1, |g| g + 1);
    let (stream, welcome, decoder) = start(config, next, &[dir]).await?;
    Ok(Some(link(next, stream, welcome, decoder, tell)))
}
