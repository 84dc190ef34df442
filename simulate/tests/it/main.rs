//! Integration tests of the simulator.

#![allow(clippy::unwrap_used)]

mod events;
mod quality;
mod readers;
mod reference;
mod stories;
mod tools;
