//! Conformance of every backend, and what only the embedded store must prove.
#![allow(clippy::unwrap_used)]

mod conformance;
mod durability;
#[cfg(feature = "etcd")]
mod members;
mod model;
#[cfg(feature = "etcd")]
mod neighbours;
#[cfg(feature = "etcd")]
mod outage;
mod powercut;
mod powercut_redb;
mod support;
