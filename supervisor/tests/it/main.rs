//! Drives the built supervisor as an agent would.
#![allow(clippy::unwrap_used)]

mod harness;
mod lifecycle;
mod limits;
mod survival;
mod throughput;
