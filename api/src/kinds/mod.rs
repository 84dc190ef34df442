//! One file per kind.

// The derive takes one `printcolumn` per column, whose parts repeat.
#![allow(clippy::duplicated_attributes)]

mod affinity;
mod common;
mod job;
mod job_ledger;
mod job_revision;
mod queue;
pub mod rules;
mod task;
mod task_spec;

pub use affinity::*;
pub use common::*;
pub use job::*;
pub use job_ledger::*;
pub use job_revision::*;
pub use queue::*;
pub use task::*;
pub use task_spec::*;
