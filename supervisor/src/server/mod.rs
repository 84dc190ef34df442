//! The supervisor's loop: one thread, one epoll set; connections, signals, task output, deadlines.
//!
//! This file owns the state, the loop, the journal's sync and the end of the supervisor; what the
//! events lead to is in the modules below. Promise: an exit is told to nobody before it is synced.

mod connections;
mod ending;
mod starting;
mod takeover;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::event::epoll;

use self::connections::Connection;
pub use self::connections::socket_path;
use crate::cgroup::{Groups, TaskGroup};
use crate::dirs::Spares;
use crate::journal::{Journal, JournalError};
use crate::protocol::{Event, Exit, Report, SOCKET, StartSpec, Started, StopSpec};
use crate::spawn::Spawner;
use crate::sys;
use crate::task::Task;

/// Exits per synced batch: enough to make the sync cheap, few enough to report soon.
const EXITS_PER_BATCH: usize = 512;
/// Life without tasks, agent and unacknowledged exits.
const IDLE_END_MS: u64 = 60_000;
/// First fence deadline of a supervisor that has not heard of one, and of nodes' leases in general.
const FENCE_DEFAULT_MS: u64 = 10_000;
/// Grace of tasks when the supervisor itself is told to end by SIGTERM.
const TERM_GRACE_MS: u64 = 10_000;
/// Pause between looks for stray descendants, stuck groups and a disk that is full.
const SWEEP_MS: u64 = 1_000;

const TOKEN_LISTENER: u64 = 0;
const TOKEN_SIGNALS: u64 = 1;
const KIND_CONNECTION: u64 = 1 << 60;
const KIND_OUTPUT: u64 = 2 << 60;
const KIND_PIDFD: u64 = 3 << 60;
const KIND_MASK: u64 = 15 << 60;

/// How a supervisor is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its directory.
    pub dir: PathBuf,
    /// Its generation.
    pub generation: u64,
    /// Directories of dead predecessors to take over.
    pub import: Vec<PathBuf>,
    /// Name of the parent control group; absent: no control groups.
    pub group: Option<String>,
}

/// Why a supervisor ends in error.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Another supervisor is at work in the directory.
    #[error("another supervisor is at work in {0}")]
    Busy(PathBuf),
    /// The system.
    #[error("{what}: {source}")]
    Io {
        /// What failed.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Io { what, source }
}

struct Supervisor {
    options: Options,
    boot_id: String,
    epoll: OwnedFd,
    listener: UnixListener,
    signals: OwnedFd,
    journal: Journal,
    spawner: Spawner,
    spares: Spares,
    /// Whether processes start at the time that our clock shows; unknown before the first.
    clock_agrees: Option<bool>,
    groups: Groups,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    slots: Vec<Option<Task>>,
    free_slots: Vec<usize>,
    by_id: HashMap<String, usize>,
    by_pid: HashMap<i32, usize>,
    queue: VecDeque<StartSpec>,
    queued: HashMap<String, Option<StopSpec>>,
    exits: BTreeMap<String, Exit>,
    /// Journaled, perhaps not synced yet; reported after the next sync.
    fresh_exits: Vec<Exit>,
    fresh_starts: Vec<Started>,
    kills: BTreeSet<(u64, usize)>,
    fence_until: u64,
    fenced: BTreeSet<usize>,
    stuck: Vec<TaskGroup>,
    draining: bool,
    idle_since: u64,
    sweep_at: Option<u64>,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    group_number: u64,
}

/// Runs a supervisor until it is over.
pub fn serve(options: Options) -> Result<(), ServeError> {
    sys::seal_inherited_files();
    std::fs::create_dir_all(&options.dir).map_err(io_error("the directory cannot be made"))?;
    let _lock = lock(&options.dir)?;
    let _ = rustix::process::setsid(); // fails when we lead a session already, which is as good
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
        .map_err(|e| io_error("descendants cannot be adopted")(e.into()))?;
    let mut s = Supervisor::new(options)?;
    s.take_over()?;
    s.listen()?;
    s.run()
}

/// Makes sure that nobody else works in a directory, as long as the file is open.
fn lock(dir: &Path) -> Result<std::fs::File, ServeError> {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))
        .map_err(io_error("the lock file cannot be opened"))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| ServeError::Busy(dir.to_path_buf()))?;
    Ok(file)
}

impl Supervisor {
    fn new(options: Options) -> Result<Self, ServeError> {
        let signals = sys::signals().map_err(io_error("signals cannot be received"))?;
        let files_limit = sys::raise_files_limit();
        let boot_id = sys::boot_id().map_err(io_error("the boot id cannot be read"))?;
        let (journal, state) = Journal::open(&options.dir, &boot_id)?;
        let groups = match &options.group {
            Some(parent) => Groups::detect(parent),
            None => Groups::none(),
        };
        // Bound through /proc because a socket's path may hold 107 bytes only.
        let _ = std::fs::remove_file(options.dir.join(SOCKET));
        let dir = std::fs::File::open(&options.dir).map_err(io_error("the directory"))?;
        let listener = UnixListener::bind(socket_path(&dir)).map_err(io_error("the socket"))?;
        let now = sys::boot_ms();
        let mut s = Supervisor {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)
                .map_err(|e| io_error("epoll")(e.into()))?,
            spawner: Spawner::new(files_limit).map_err(io_error("the spawner"))?,
            clock_agrees: None,
            spares: Spares::new(options.dir.parent().unwrap_or(&options.dir)),
            options,
            boot_id,
            listener,
            signals,
            journal,
            groups,
            connections: BTreeMap::new(),
            next_connection: 1,
            slots: Vec::new(),
            free_slots: Vec::new(),
            by_id: HashMap::new(),
            by_pid: HashMap::new(),
            queue: VecDeque::new(),
            queued: HashMap::new(),
            exits: BTreeMap::new(),
            fresh_exits: Vec::new(),
            fresh_starts: Vec::new(),
            kills: BTreeSet::new(),
            fence_until: now + FENCE_DEFAULT_MS,
            fenced: BTreeSet::new(),
            stuck: Vec::new(),
            draining: false,
            idle_since: now,
            sweep_at: None,
            buffer: Vec::new(),
            scratch: Vec::new(),
            group_number: 0,
        };
        s.adopt_state(state);
        Ok(s)
    }

    fn listen(&mut self) -> Result<(), ServeError> {
        self.listener
            .set_nonblocking(true)
            .map_err(io_error("the socket"))?;
        let add = |fd: std::os::fd::BorrowedFd<'_>, token| {
            epoll::add(
                &self.epoll,
                fd,
                epoll::EventData::new_u64(token),
                epoll::EventFlags::IN,
            )
            .map_err(|e| io_error("epoll")(e.into()))
        };
        add(self.listener.as_fd(), TOKEN_LISTENER)?;
        add(self.signals.as_fd(), TOKEN_SIGNALS)
    }

    fn watch(
        &self,
        fd: std::os::fd::BorrowedFd<'_>,
        token: u64,
        flags: epoll::EventFlags,
    ) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token),
            flags,
        )?)
    }

    fn running(&self) -> usize {
        self.by_id.len()
    }

    fn run(&mut self) -> Result<(), ServeError> {
        let mut events = Vec::with_capacity(256);
        loop {
            self.flush();
            if self.is_over() {
                self.groups.clear();
                return Ok(());
            }
            let timeout = self.timeout();
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(io_error("epoll")(e.into())),
            }
            for event in &events {
                let token = event.data.u64();
                match token & KIND_MASK {
                    KIND_CONNECTION => self.on_connection(token, event.flags),
                    KIND_OUTPUT => self.on_output(token & !KIND_MASK),
                    KIND_PIDFD => self.on_adopted_end((token & !KIND_MASK) as usize),
                    _ if token == TOKEN_LISTENER => self.accept(),
                    _ => self.on_signals(),
                }
            }
            self.start_some();
            self.deadlines();
        }
    }

    fn is_over(&mut self) -> bool {
        let busy = self.running() > 0 || !self.queue.is_empty() || !self.fresh_exits.is_empty();
        let now = sys::boot_ms();
        if busy || !self.connections.is_empty() {
            self.idle_since = now;
        }
        // Unacknowledged exits are safe in the journal, where a successor finds them.
        !busy
            && ((self.draining && self.exits.is_empty() && self.connections_flushed())
                || now >= self.idle_since + IDLE_END_MS)
    }

    fn connections_flushed(&self) -> bool {
        self.connections.values().all(|c| c.out.is_empty())
    }

    fn timeout(&self) -> rustix::time::Timespec {
        let now = sys::boot_ms();
        let mut at = now + IDLE_END_MS;
        if !self.queue.is_empty() {
            at = now;
        }
        if let Some((t, _)) = self.kills.first() {
            at = at.min(*t);
        }
        if !self.fenced.is_empty() {
            at = at.min(self.fence_until);
        }
        if let Some(t) = self.sweep_at {
            at = at.min(t);
        }
        let ms = at.saturating_sub(now);
        rustix::time::Timespec {
            tv_sec: (ms / 1000) as i64,
            tv_nsec: (ms % 1000 * 1_000_000) as _,
        }
    }

    /// Whether a run was started or ended here already; an exit counts before it is synced too.
    fn knows(&self, id: &str) -> bool {
        self.by_id.contains_key(id)
            || self.exits.contains_key(id)
            || self.fresh_exits.iter().any(|e| e.id == id)
    }

    fn on_output(&mut self, token: u64) {
        let (slot, which) = ((token >> 1) as usize, (token & 1) as usize);
        if let Some(Some(task)) = self.slots.get_mut(slot) {
            task.read_output(which, &mut self.buffer, &mut self.scratch);
        }
    }

    fn on_signals(&mut self) {
        let signals = sys::read_signals(&self.signals);
        if signals.contains(&libc::SIGTERM) {
            self.draining = true;
            let ids: Vec<String> = self
                .by_id
                .keys()
                .chain(self.queued.keys())
                .cloned()
                .collect();
            for id in ids {
                self.stop(StopSpec {
                    id,
                    signal: libc::SIGTERM,
                    grace_ms: TERM_GRACE_MS,
                });
            }
        }
        self.collect();
    }

    /// Syncs what is journaled and reports it. Without a sync nothing is reported.
    fn flush(&mut self) {
        let written = self.journal.flush(!self.fresh_exits.is_empty());
        if written.is_err() && !(self.journal.is_broken() && self.rewrite_journal()) {
            // The disk is full or broken: the exits stay with us, and the sweep tries again.
            self.sweep_at.get_or_insert(sys::boot_ms() + SWEEP_MS);
            return;
        }
        if !self.fresh_starts.is_empty() || !self.fresh_exits.is_empty() {
            let report = Report {
                started: std::mem::take(&mut self.fresh_starts),
                exits: std::mem::take(&mut self.fresh_exits),
            };
            for exit in &report.exits {
                self.exits.insert(exit.id.clone(), exit.clone());
            }
            let greeted: Vec<u64> = self
                .connections
                .iter()
                .filter(|(_, c)| c.greeted)
                .map(|(n, _)| *n)
                .collect();
            let event = Event::Report(report);
            for number in greeted {
                self.tell(number, &event);
            }
        }
        if self.journal.wants_compaction() {
            self.rewrite_journal();
        }
    }

    /// Writes all that we know into a new journal; whether that is durable now.
    fn rewrite_journal(&mut self) -> bool {
        let running = self.slots.iter().flatten().map(|t| t.record.clone());
        let exits = self.exits.values().chain(&self.fresh_exits);
        let written = self.journal.compact(&self.boot_id, running, exits);
        if let Err(e) = &written {
            eprintln!("the journal cannot be rewritten: {e}");
        }
        written.is_ok()
    }
}
