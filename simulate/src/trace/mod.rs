//! Traces: what a recorded or published workload asked of a cluster. One file per format, one line
//! in [`FORMATS`].

pub mod batsim;
mod csv;
pub mod events;
pub mod openb;
pub mod philly;
pub mod swf;

use std::collections::BTreeMap;

use rota_scheduler::{Class, NodeSpec, QueueSpec, Time};

/// Longest time that is believed, in milliseconds (about 30,000 years): later sums cannot overflow.
pub const TIME_MAX: Time = 1 << 50;
/// Most tasks of one job. More is taken for a mistake in the trace.
pub const TASKS_MAX: u32 = 1 << 20;

/// A job: tasks that are alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Its name in the trace.
    pub id: String,
    /// When it came.
    pub submit: Time,
    /// How long its tasks really run, by index; the last holds for all behind it.
    /// [`rota_scheduler::NEVER`]: to the end of the simulation.
    pub runs: Vec<Time>,
    /// Within which its user promised it to end; [`rota_scheduler::NEVER`] without a promise.
    pub limit: Time,
    /// What each task needs.
    pub class: Class,
    /// Tasks.
    pub count: u32,
    /// How many must start together; 0: each starts when it can.
    pub min: u32,
    /// Its queue.
    pub queue: String,
    /// Whose it is.
    pub owner: String,
    /// What kind of work it is (an executable, a script), for learning run times.
    pub app: String,
    /// Higher goes first.
    pub priority: i32,
    /// It is dropped when it cannot start at once.
    pub impatient: bool,
}

impl Job {
    /// One that asks for `count` tasks at once; nothing else is known of it.
    pub fn gang(id: String, submit: Time, run: Time, class: Class, count: u32) -> Self {
        Job {
            id,
            submit,
            runs: vec![run],
            limit: rota_scheduler::NEVER,
            class,
            count,
            min: count,
            queue: QUEUE.into(),
            owner: String::new(),
            app: String::new(),
            priority: 0,
            impatient: false,
        }
    }

    /// How long a task runs.
    pub fn run(&self, index: u32) -> Time {
        let at = self.runs.get(index as usize).or(self.runs.last());
        at.copied().unwrap_or(0)
    }
}

/// The queue of jobs whose trace names none.
pub const QUEUE: &str = "default";

/// Something that happens to the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A node comes or is changed.
    Node(String, NodeSpec),
    /// A node goes; what ran there starts anew elsewhere.
    NodeGone(String),
    /// A queue comes, is changed, or goes.
    Queue(String, Option<QueueSpec>),
    /// A job, by its number in [`Trace::jobs`], is given up by its user.
    Cancel(usize),
}

/// Which machine jobs of a trace were made for, as far as the trace says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Nodes; 0 when it does not say.
    pub nodes: u64,
    /// Processors in all; 0 when it does not say.
    pub processors: u64,
}

/// A workload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// By time of submission, those of one moment in the order of the trace.
    pub jobs: Vec<Job>,
    /// By time.
    pub changes: Vec<(Time, Change)>,
    /// Jobs of the trace that cannot be replayed, counted by reason.
    pub rejected: BTreeMap<String, u64>,
    /// What it was recorded on.
    pub machine: Machine,
}

impl Trace {
    /// Counts one job that cannot be replayed.
    pub(crate) fn reject(&mut self, reason: &str) {
        *self.rejected.entry(reason.into()).or_default() += 1;
    }

    /// Brings jobs and changes into order of time.
    pub(crate) fn sort(&mut self) {
        self.jobs.sort_by_key(|j| j.submit);
        self.changes.sort_by_key(|(time, _)| *time);
    }
}

/// A line that is not as its format says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {found}; expected {expected}")]
pub struct ReadError {
    /// From 1.
    pub line: usize,
    /// What is there.
    pub found: String,
    /// What should be.
    pub expected: String,
}

impl ReadError {
    pub(crate) fn new(line: usize, found: impl Into<String>, expected: impl Into<String>) -> Self {
        ReadError {
            line,
            found: found.into(),
            expected: expected.into(),
        }
    }
}

/// What `--load PERCENT` means for a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadRule {
    /// Arrivals are drawn together or apart until the work offered per time is this much of the cluster.
    Stretch,
    /// Tasks arrive in random order and stay, until this much of the GPUs has been asked for.
    Fill,
}

/// A format that traces come in.
#[derive(Clone, Copy)]
pub struct Format {
    /// What stands before the colon of `--trace`.
    pub name: &'static str,
    /// Reads a whole file.
    pub read: fn(&str) -> Result<Trace, ReadError>,
    /// What `--load` does.
    pub load: LoadRule,
    /// A node for `--nodes N` when nothing else is said.
    pub node: fn(u64, Machine) -> NodeSpec,
    /// One line for people.
    pub help: &'static str,
}

/// The registry.
pub const FORMATS: &[Format] = &[
    Format {
        name: "openb",
        read: openb::read,
        load: LoadRule::Fill,
        node: openb::node,
        help: "CSV of tasks of Alibaba's GPU cluster trace of 2023",
    },
    Format {
        name: "swf",
        read: swf::read,
        load: LoadRule::Stretch,
        node: swf::node,
        help: "standard workload format of the Parallel Workloads Archive",
    },
    Format {
        name: "batsim",
        read: batsim::read,
        load: LoadRule::Stretch,
        node: batsim::node,
        help: "JSON workload of Batsim with delay profiles",
    },
    Format {
        name: "philly",
        read: philly::read,
        load: LoadRule::Stretch,
        node: philly::node,
        help: "Gavel's traces of deep learning jobs, drawn from the Philly trace",
    },
    Format {
        name: "events",
        read: events::read,
        load: LoadRule::Stretch,
        node: events::node,
        help: "Rota's own event log, a JSON object per line",
    },
];

/// The format of this name.
pub fn format(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|f| f.name == name)
}

/// Milliseconds of a number of seconds; `None` when it is none or beyond [`TIME_MAX`].
pub(crate) fn millis(seconds: f64) -> Option<Time> {
    let ms = (seconds * 1000.0).round();
    (ms.is_finite() && ms.abs() <= TIME_MAX as f64).then_some(ms as Time)
}
