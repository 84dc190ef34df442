//! What a simulation is told, and what it tells.

use rota_scheduler::{Policy, Time};

use crate::measures::Measures;
use crate::order::Preset;
use crate::trace::events::Event;

/// Where the scheduler's idea of run times comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Estimates {
    /// From the limit that the user gave; nothing is known without one.
    #[default]
    User,
    /// From how long jobs of the same owner and kind ran before, at most the user's limit.
    Learnt,
    /// From what really happens.
    Exact,
}

/// The rules of a simulation.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who goes first, and what may overtake.
    pub preset: Preset,
    /// Where tasks go.
    pub policy: Policy,
    /// What is known of run times.
    pub estimates: Estimates,
    /// Milliseconds of work between two checkpoints; 0: an evicted task begins anew.
    pub checkpoint: Time,
    /// Whether queues that come with the trace keep their own order, backfill and policy.
    pub keep_queues: bool,
    /// Whether to write an event log.
    pub log: bool,
}

/// How a job fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Some of its tasks have not started.
    Waiting,
    /// All of its tasks have started, and some run.
    Running,
    /// All of its tasks ended.
    Completed,
    /// It would never fit, or did not at once and would not wait.
    Rejected,
    /// Its user gave it up.
    Cancelled,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its name.
    pub id: String,
    /// Tasks.
    pub tasks: u32,
    /// When it came.
    pub submit: Time,
    /// When its first task started for the first time.
    pub start: Option<Time>,
    /// When its last task ended.
    pub end: Option<Time>,
    /// How long it waited before its first start, and again after evictions.
    pub waited: Time,
    /// How long its longest task runs without disturbance.
    pub run: Time,
    /// How it fared.
    pub fate: Fate,
    /// Evictions of its tasks.
    pub evictions: u32,
    /// Nodes by name in order of first use, at its latest start.
    pub nodes: Vec<String>,
    /// For one that had to wait: by when it was said to start as likely as not, and by when in nine
    /// cases of ten ([`rota_scheduler::NEVER`] when nothing was known).
    pub forecast: Option<(Time, Time)>,
    /// Mean of the load (at least 1) over the time it was there.
    pub load: f64,
}

/// The result.
#[derive(Clone, Debug)]
pub struct Run {
    /// In the order of the trace's jobs.
    pub records: Vec<Record>,
    /// The sums.
    pub measures: Measures,
    /// What happened, when [`Settings::log`] asks for it.
    pub log: Vec<Event>,
}
