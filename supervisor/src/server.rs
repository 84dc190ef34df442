//! The supervisor's loop: one thread, one epoll set; connections, signals, task output, deadlines.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::epoll;

use crate::cgroup::{Groups, TaskGroup};
use crate::journal::{self, Journal, JournalError, StartRecord};
use crate::logs::LogWriter;
use crate::protocol::{
    Decoder, Event, Exit, ExitCause, PROTOCOL_VERSION, Report, Request, SOCKET, StartSpec, Started,
    StopSpec, Welcome, encode,
};
use crate::spawn::{Command, SpawnError, Spawner};
use crate::sys::{self, Ended};
use crate::task::{Task, output_pipe, reopen_output};

/// Starts between two looks at everything else.
const STARTS_PER_TURN: usize = 64;
/// Exits per synced batch: enough to make the sync cheap, few enough to report soon.
const EXITS_PER_BATCH: usize = 512;
/// A peer that lets this much pile up does not read; it is cut and gets it all again in a Welcome.
const OUT_MAX: usize = 32 << 20;
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

struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
    greeted: bool,
    wants_write: bool,
}

struct Supervisor {
    options: Options,
    boot_id: String,
    epoll: OwnedFd,
    listener: UnixListener,
    signals: OwnedFd,
    journal: Journal,
    spawner: Spawner,
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

    /// Takes over the state of dead predecessors, then removes their directories.
    fn take_over(&mut self) -> Result<(), ServeError> {
        for dir in self.options.import.clone() {
            let _lock = lock(&dir)?; // a predecessor that does not answer but lives keeps its tasks
            let (state, _) = journal::read(&dir)?;
            self.adopt_state(state);
            self.journal.flush(true).map_err(io_error("the journal"))?;
            std::fs::remove_dir_all(&dir).map_err(io_error("the predecessor's directory"))?;
            if let Some(generation) = generation_of(&dir) {
                let kept: BTreeSet<String> = self
                    .slots
                    .iter()
                    .flatten()
                    .filter_map(|t| t.record.group.clone())
                    .collect();
                self.groups
                    .reap_unknown(&format!("g{generation}-"), &|name| kept.contains(name));
            }
        }
        Ok(())
    }

    fn adopt_state(&mut self, state: journal::State) {
        for exit in state.exits.into_values() {
            if !self.exits.contains_key(&exit.id) {
                self.journal.exit(&exit);
                self.exits.insert(exit.id.clone(), exit);
            }
        }
        let same_boot = state.boot_id == self.boot_id;
        for record in state.running.into_values() {
            if self.exits.contains_key(&record.started.id) {
                continue;
            }
            self.journal.start(&record);
            self.adopt(record, same_boot);
        }
    }

    /// A task that a dead predecessor started: watched by pidfd while it runs. Its exit code will
    /// never be known, so it ends as Lost. A fenced one lost its watchdog and is killed.
    fn adopt(&mut self, record: StartRecord, same_boot: bool) {
        let pid = record.started.pid;
        let pidfd = rustix::process::Pid::from_raw(pid).and_then(|p| {
            rustix::process::pidfd_open(p, rustix::process::PidfdFlags::empty()).ok()
        });
        // Checked after the open: from then on the descriptor means this very process.
        let alive = same_boot && sys::is_alive(pid, record.started.start_ticks);
        let mut task = Task {
            log: LogWriter::new(Path::new(&record.attempt_dir)),
            group: record.group.as_ref().and_then(|g| self.groups.find(g)),
            pipes: [None, None],
            pidfd,
            cause: None,
            kill_at: None,
            record,
        };
        if alive && task.pidfd.is_some() {
            task.pipes = [reopen_output(pid, 1), reopen_output(pid, 2)];
            if task.record.fenced {
                task.cause = Some(ExitCause::Fenced);
                task.kill();
            }
            self.insert(task);
            return;
        }
        if same_boot && let Some(group) = &task.group {
            group.kill();
        }
        let (reason, message) = if same_boot {
            (
                "SupervisorLost",
                "the supervisor died and the task ended unseen; its exit code is unknown",
            )
        } else {
            (
                "NodeRebooted",
                "the machine was restarted while the task ran",
            )
        };
        let exit = exit_of(&task, ExitCause::Lost, Some(reason), Some(message.into()));
        self.finish(task, exit);
    }

    fn insert(&mut self, task: Task) -> usize {
        let slot = self.free_slots.pop().unwrap_or(self.slots.len());
        for (which, pipe) in task.pipes.iter().enumerate() {
            if let Some(pipe) = pipe {
                let token = KIND_OUTPUT | (slot as u64) << 1 | which as u64;
                let _ = self.watch(pipe.as_fd(), token, epoll::EventFlags::IN); // else read at exit only
            }
        }
        if let Some(fd) = &task.pidfd {
            let _ = self.watch(fd.as_fd(), KIND_PIDFD | slot as u64, epoll::EventFlags::IN); // else found by the sweep
            self.sweep_at = Some(sys::boot_ms() + SWEEP_MS);
        } else {
            self.by_pid.insert(task.record.started.pid, slot);
        }
        if task.record.fenced {
            self.fenced.insert(slot);
        }
        self.by_id.insert(task.record.started.id.clone(), slot);
        if slot == self.slots.len() {
            self.slots.push(Some(task));
        } else {
            self.slots[slot] = Some(task);
        }
        slot
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

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let number = self.next_connection;
            self.next_connection += 1;
            if self
                .watch(
                    stream.as_fd(),
                    KIND_CONNECTION | number,
                    epoll::EventFlags::IN,
                )
                .is_err()
            {
                continue;
            }
            self.connections.insert(
                number,
                Connection {
                    stream,
                    decoder: Decoder::default(),
                    out: Vec::new(),
                    sent: 0,
                    greeted: false,
                    wants_write: false,
                },
            );
        }
    }

    fn on_connection(&mut self, token: u64, flags: epoll::EventFlags) {
        let number = token & !KIND_MASK;
        if flags.contains(epoll::EventFlags::OUT) {
            self.send(number);
        }
        if !flags
            .intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR)
        {
            return;
        }
        let mut requests = Vec::new();
        let mut open = true;
        if let Some(c) = self.connections.get_mut(&number) {
            self.buffer.resize(256 << 10, 0);
            match rustix::io::read(&c.stream, &mut self.buffer[..]) {
                Ok(0) => open = false,
                Ok(n) => c.decoder.push(&self.buffer[..n]),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => open = false,
            }
            loop {
                match c.decoder.next_frame::<Request>() {
                    Ok(Some(r)) => requests.push(r),
                    Ok(None) => break,
                    Err(e) => {
                        eprintln!("a request cannot be read, the connection is closed: {e}");
                        open = false;
                        break;
                    }
                }
            }
        }
        for r in requests {
            if !self.connections.contains_key(&number) {
                return;
            }
            self.on_request(number, r);
        }
        if !open {
            self.connections.remove(&number);
        }
    }

    fn on_request(&mut self, number: u64, request: Request) {
        let greeted = self.connections.get(&number).is_some_and(|c| c.greeted);
        match request {
            Request::Hello { version } if version == PROTOCOL_VERSION => {
                // What is not reported yet goes to the old peers first, so that the Welcome holds
                // everything exactly once.
                self.flush();
                let welcome = Welcome {
                    version: PROTOCOL_VERSION,
                    program: env!("CARGO_PKG_VERSION").into(),
                    pid: std::process::id(),
                    generation: self.options.generation,
                    running: self
                        .slots
                        .iter()
                        .flatten()
                        .map(|t| t.record.started.clone())
                        .collect(),
                    exits: self.exits.values().cloned().collect(),
                    cpu_unlimited: self.groups.refused("cpu"),
                    memory_unlimited: self.groups.refused("memory"),
                };
                // One agent at a time: the newest connection is it.
                self.connections.retain(|n, c| *n == number || !c.greeted);
                if let Some(c) = self.connections.get_mut(&number) {
                    c.greeted = true;
                }
                self.tell(number, &Event::Welcome(Box::new(welcome)));
            }
            Request::Hello { version } => {
                let message =
                    format!("this supervisor speaks protocol {PROTOCOL_VERSION}, not {version}");
                self.tell(number, &Event::Refused { message });
                self.connections.remove(&number);
            }
            _ if !greeted => {
                self.connections.remove(&number);
            }
            Request::Start(specs) => {
                for spec in specs {
                    let known = self.by_id.contains_key(&spec.id)
                        || self.exits.contains_key(&spec.id)
                        || self.queued.contains_key(&spec.id);
                    if !known {
                        self.queued.insert(spec.id.clone(), None);
                        self.queue.push_back(spec);
                    }
                }
            }
            Request::Stop(stops) => stops.into_iter().for_each(|s| self.stop(s)),
            Request::Ack(ids) => {
                for id in &ids {
                    self.exits.remove(id);
                }
                self.journal.ack(&ids);
            }
            Request::Fence { until_boot_ms } => self.fence_until = until_boot_ms,
            Request::Drain => self.draining = true,
        }
    }

    fn stop(&mut self, stop: StopSpec) {
        if let Some(pending) = self.queued.get_mut(&stop.id) {
            *pending = Some(stop);
            return;
        }
        let Some(&slot) = self.by_id.get(&stop.id) else {
            return;
        };
        let Some(task) = self.slots[slot].as_mut() else {
            return;
        };
        let kill_at = sys::boot_ms() + stop.grace_ms;
        let first = task.cause.is_none();
        task.cause.get_or_insert(ExitCause::Stopped);
        if stop.grace_ms == 0 {
            task.kill();
        } else if first {
            task.signal(stop.signal);
            task.signal(libc::SIGCONT); // a stopped process would not see it
        }
        // A later request may only shorten the grace.
        if task.kill_at.is_none_or(|t| kill_at < t) {
            task.kill_at = Some(kill_at);
            self.kills.insert((kill_at, slot));
        }
    }

    fn start_some(&mut self) {
        for _ in 0..STARTS_PER_TURN {
            let Some(spec) = self.queue.pop_front() else {
                return;
            };
            let stop = self.queued.remove(&spec.id).flatten();
            let now = sys::boot_ms();
            let refused = if stop.is_some() {
                Some((ExitCause::Stopped, "Stopped", "stopped before it started"))
            } else if spec.fenced && now >= self.fence_until {
                Some((
                    ExitCause::Fenced,
                    "Fenced",
                    "the node lost contact before the task started",
                ))
            } else if self.draining {
                Some((
                    ExitCause::NotStarted,
                    "SupervisorDraining",
                    "the supervisor ends",
                ))
            } else {
                None
            };
            if let Some((cause, reason, message)) = refused {
                self.not_started(&spec, cause, reason, message.into(), None);
                continue;
            }
            match self.start(&spec) {
                Ok(started) => self.fresh_starts.push(started),
                Err(e) => {
                    self.not_started(
                        &spec,
                        ExitCause::NotStarted,
                        e.reason,
                        e.message,
                        Some(e.code),
                    );
                }
            }
        }
    }

    fn not_started(
        &mut self,
        spec: &StartSpec,
        cause: ExitCause,
        reason: &str,
        message: String,
        code: Option<i32>,
    ) {
        let exit = Exit {
            id: spec.id.clone(),
            tag: spec.tag.clone(),
            pid: 0,
            code,
            signal: None,
            cause,
            reason: Some(reason.into()),
            message: Some(message),
            started_ms: 0,
            finished_ms: sys::wall_ms(),
        };
        self.journal.exit(&exit);
        self.fresh_exits.push(exit);
    }

    fn start(&mut self, spec: &StartSpec) -> Result<Started, SpawnError> {
        let failed = |reason, what: &str, e: io::Error| SpawnError {
            reason,
            message: format!("{what}: {e}"),
            code: 126,
        };
        let attempt = Path::new(&spec.attempt_dir);
        let work = attempt.join("work");
        let cwd = spec
            .cwd
            .clone()
            .unwrap_or_else(|| work.to_string_lossy().into_owned());
        make_dirs(attempt, &work)
            .map_err(|e| failed("WorkingDirFailed", "the work directory cannot be made", e))?;
        if spec.cwd.is_some() && Path::new(&cwd).starts_with(&work) {
            std::fs::create_dir_all(&cwd)
                .map_err(|e| failed("WorkingDirFailed", "the work directory cannot be made", e))?;
        }
        let exhausted = |e| failed("NodeResourceExhausted", "no pipe for the output", e);
        let (out, out_task) = output_pipe().map_err(exhausted)?;
        let (err, err_task) = output_pipe().map_err(exhausted)?;
        self.group_number += 1;
        let name = format!(
            "g{}-{}-{}",
            self.options.generation,
            std::process::id(),
            self.group_number
        );
        let (group, fds) = self
            .groups
            .create(&name, &spec.limits)
            .map_err(|e| failed("ControlGroupFailed", "the control group cannot be made", e))?;
        let spawned = self.spawner.spawn(&Command {
            argv: &spec.argv,
            env: &spec.env,
            cwd: &cwd,
            out: [
                std::os::fd::AsRawFd::as_raw_fd(&out_task),
                std::os::fd::AsRawFd::as_raw_fd(&err_task),
            ],
            groups: &fds,
            die_with_parent: spec.fenced,
        });
        let pid = match spawned {
            Ok(pid) => pid,
            Err(e) => {
                group.remove();
                return Err(e);
            }
        };
        let started = Started {
            id: spec.id.clone(),
            tag: spec.tag.clone(),
            pid,
            start_ticks: sys::start_ticks(pid).unwrap_or(0),
            started_ms: sys::wall_ms(),
        };
        let record = StartRecord {
            started: started.clone(),
            attempt_dir: spec.attempt_dir.clone(),
            mark: spec.mark.clone(),
            fenced: spec.fenced,
            group: (!fds.is_empty()).then_some(name),
        };
        self.journal.start(&record);
        self.insert(Task {
            log: LogWriter::new(attempt),
            group: (!fds.is_empty()).then_some(group),
            pipes: [Some(out), Some(err)],
            pidfd: None,
            cause: None,
            kill_at: None,
            record,
        });
        Ok(started)
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

    /// Collects children that ended: journals a batch, syncs it, reports it, then the next one.
    fn collect(&mut self) {
        while let Some(ended) = sys::peek_ended() {
            match self.by_pid.remove(&ended.pid) {
                Some(slot) => self.on_end(slot, ended),
                None => sys::reap(ended.pid), // a stray descendant
            }
            if self.fresh_exits.len() >= EXITS_PER_BATCH {
                self.flush();
            }
        }
    }

    /// The main process of a task ended: the rest of the task goes too. The pid is still held by
    /// the zombie, so the group cannot be anyone else's.
    fn on_end(&mut self, slot: usize, ended: Ended) {
        let Some(task) = self.take(slot) else {
            sys::reap(ended.pid);
            return;
        };
        task.kill();
        sys::reap(ended.pid);
        let cause = match task.cause {
            None | Some(ExitCause::Ended)
                if ended.signal == Some(libc::SIGKILL)
                    && task.group.as_ref().is_some_and(TaskGroup::out_of_memory) =>
            {
                ExitCause::OutOfMemory
            }
            None => ExitCause::Ended,
            Some(c) => c,
        };
        let mut exit = exit_of(&task, cause, None, None);
        exit.code = ended.code;
        exit.signal = ended.signal;
        self.finish(task, exit);
    }

    /// A task of a predecessor ended.
    fn on_adopted_end(&mut self, slot: usize) {
        let alive = match self.slots.get(slot) {
            Some(Some(t)) => sys::is_alive(t.record.started.pid, t.record.started.start_ticks),
            _ => return,
        };
        if alive {
            return;
        }
        if let Some(task) = self.take(slot) {
            if let Some(group) = &task.group {
                group.kill();
            }
            let message = "the supervisor that started the task died; its exit code is unknown";
            let exit = match task.cause {
                Some(cause) => exit_of(&task, cause, None, Some(message.into())),
                None => exit_of(
                    &task,
                    ExitCause::Lost,
                    Some("SupervisorLost"),
                    Some(message.into()),
                ),
            };
            self.finish(task, exit);
        }
    }

    fn take(&mut self, slot: usize) -> Option<Task> {
        let task = self.slots.get_mut(slot)?.take()?;
        self.free_slots.push(slot);
        self.fenced.remove(&slot);
        self.by_id.remove(&task.record.started.id);
        if let Some(at) = task.kill_at {
            self.kills.remove(&(at, slot));
        }
        Some(task)
    }

    fn finish(&mut self, mut task: Task, exit: Exit) {
        for which in [0, 1] {
            // What the kernel still holds; bounded, since a stray writer may go on for ever.
            for _ in 0..16 {
                if !task.read_output(which, &mut self.buffer, &mut self.scratch) {
                    break;
                }
            }
        }
        if let Some(group) = task.group.take()
            && !group.remove()
        {
            self.stuck.push(group);
        }
        self.sweep_at.get_or_insert(sys::boot_ms() + SWEEP_MS);
        self.journal.exit(&exit);
        self.fresh_exits.push(exit);
    }

    fn deadlines(&mut self) {
        let now = sys::boot_ms();
        while let Some(&(at, slot)) = self.kills.first() {
            if at > now {
                break;
            }
            self.kills.remove(&(at, slot));
            if let Some(Some(task)) = self.slots.get(slot) {
                task.kill();
            }
        }
        if now >= self.fence_until && !self.fenced.is_empty() {
            for slot in std::mem::take(&mut self.fenced) {
                if let Some(Some(task)) = self.slots.get_mut(slot) {
                    task.cause = Some(ExitCause::Fenced);
                    task.kill();
                }
            }
        }
        if self.sweep_at.is_some_and(|t| now >= t) {
            self.sweep(now);
        }
    }

    /// Finds what events do not tell: strays of ended tasks, groups that were not empty yet,
    /// adopted tasks without a pidfd event.
    fn sweep(&mut self, now: u64) {
        self.stuck.retain(|group| {
            group.kill();
            !group.remove()
        });
        let mut strays = false;
        for pid in sys::children() {
            if self.by_pid.contains_key(&pid) {
                continue;
            }
            strays = true;
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let lives = environment.split(|b| *b == 0).any(|entry| {
                self.slots
                    .iter()
                    .flatten()
                    .any(|t| t.record.mark.as_bytes() == entry)
            });
            if !lives {
                sys::kill(pid, libc::SIGKILL);
            }
        }
        let adopted: Vec<usize> = (0..self.slots.len())
            .filter(|s| self.slots[*s].as_ref().is_some_and(|t| t.pidfd.is_some()))
            .collect();
        let again =
            strays || !self.stuck.is_empty() || !adopted.is_empty() || !self.fresh_exits.is_empty();
        self.sweep_at = again.then_some(now + SWEEP_MS);
        for slot in adopted {
            self.on_adopted_end(slot);
        }
    }

    /// Syncs what is journaled and reports it. Without a sync nothing is reported.
    fn flush(&mut self) {
        if self.journal.flush(!self.fresh_exits.is_empty()).is_err() {
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
            let running = self.slots.iter().flatten().map(|t| t.record.clone());
            if let Err(e) = self
                .journal
                .compact(&self.boot_id, running, self.exits.values())
            {
                eprintln!("the journal cannot be compacted: {e}");
            }
        }
    }

    fn tell(&mut self, number: u64, event: &Event) {
        if let Some(c) = self.connections.get_mut(&number)
            && (encode(event, &mut c.out).is_err() || c.out.len() - c.sent > OUT_MAX)
        {
            self.connections.remove(&number);
            return;
        }
        self.send(number);
    }

    fn send(&mut self, number: u64) {
        let Some(c) = self.connections.get_mut(&number) else {
            return;
        };
        while c.sent < c.out.len() {
            match rustix::io::write(&c.stream, &c.out[c.sent..]) {
                Ok(n) => c.sent += n,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    self.connections.remove(&number);
                    return;
                }
            }
        }
        if c.sent == c.out.len() {
            c.out.clear();
            c.sent = 0;
        }
        let wants = !c.out.is_empty();
        if wants != c.wants_write {
            c.wants_write = wants;
            let mut flags = epoll::EventFlags::IN;
            if wants {
                flags |= epoll::EventFlags::OUT;
            }
            let data = epoll::EventData::new_u64(KIND_CONNECTION | number);
            if epoll::modify(&self.epoll, &c.stream, data, flags).is_err() {
                self.connections.remove(&number);
            }
        }
    }
}

fn exit_of(task: &Task, cause: ExitCause, reason: Option<&str>, message: Option<String>) -> Exit {
    let s = &task.record.started;
    Exit {
        id: s.id.clone(),
        tag: s.tag.clone(),
        pid: s.pid,
        code: None,
        signal: None,
        cause,
        reason: reason.map(String::from),
        message,
        started_ms: s.started_ms,
        finished_ms: sys::wall_ms(),
    }
}

/// Makes the directories of an attempt. From the top, since mostly all of them are missing; the
/// agent removes them once the end is reported, off this thread, because that may wait for a disk.
fn make_dirs(attempt: &Path, work: &Path) -> io::Result<()> {
    if let Some(index) = attempt.parent() {
        match std::fs::create_dir(index) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => std::fs::create_dir_all(index)?,
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    for dir in [attempt, work] {
        match std::fs::create_dir(dir) {
            // The agent may just have removed the index's directory with an earlier attempt.
            Err(e) if e.kind() == io::ErrorKind::NotFound => std::fs::create_dir_all(dir)?,
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn generation_of(dir: &Path) -> Option<u64> {
    dir.file_name()?.to_str()?.rsplit_once('-')?.1.parse().ok()
}

/// Path of the socket in an open directory, short enough whatever the directory is called.
pub fn socket_path(dir: &std::fs::File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}
