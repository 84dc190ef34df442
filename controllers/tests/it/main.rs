//! The controllers against the real API server and the memory store, in process, on paused time.
#![allow(clippy::unwrap_used)]

mod collect;
mod elect;
mod informer;
mod jobs;
mod nodes;
mod placement;
mod questions;
mod seam;
mod sharing;
mod world;
