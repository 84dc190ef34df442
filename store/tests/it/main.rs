//! Conformance of every backend, and what only the embedded store must prove.
#![allow(clippy::unwrap_used)]

mod conformance;
mod durability;
mod model;
mod powercut;
mod support;
