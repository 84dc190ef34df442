//! The controllers: each watches what users declared and brings the world toward it.
//!
//! A controller is one file and one line in [`registry`]; what they stand on is in [`runtime`].

pub mod conditions;
pub mod discovery;
pub mod gc;
pub mod job;
pub mod lifecycle;
pub mod namespace;
pub mod node;
pub mod placement;
pub mod registry;
mod run;
pub mod runtime;

pub use run::{Clients, Options, run, run_entries};
