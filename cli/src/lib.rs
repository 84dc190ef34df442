//! The command line verbs that talk to an API server: results on stdout, talk on stderr.
//!
//! Exit codes: 0 done, 1 error, 2 accepted but cannot be placed now (`run`, `plan`,
//! `apply --wait`).
//! A verb is one file in [`verbs`] and one line in its table. Nothing here knows a kind beyond what
//! its verb is about: kinds and their short names come from the server's discovery.

mod client;
mod context;
mod discovery;
mod error;
mod globals;
mod manifest;
mod merge;
mod output;
mod progress;
mod selector;
pub mod verbs;
mod waiting;
mod watch;

pub use client::{Api, Failure};
pub use context::{Capture, Context};
pub use error::{CliError, ErrorKind};
pub use globals::{ColorChoice, Globals};
pub use output::Format;
pub use verbs::apply::{ApplyOptions, ApplySummary, DryRun, apply_files};
pub use verbs::{Command, run, run_with};
