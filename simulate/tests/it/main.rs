//! Integration tests of the simulator.

#![allow(clippy::unwrap_used)]

mod events;
mod quality;
mod readers;
mod stories;
mod tools;
