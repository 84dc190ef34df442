//! Drives the built `rota` as a user would: `rota up`, kubectl, the CLI, plain HTTP, a real etcd,
//! and signals to its processes.
//!
//! `ROTA_BIN` names the binary; without it the tests build one. Campaigns are short by default;
//! `ROTA_E2E_KILLS` and `ROTA_E2E_AGENT_KILLS` make them long. `KUBECTL` and `KUBECTL_120` name
//! kubectl binaries to test with in the place of those that are installed.

#![allow(clippy::unwrap_used)]

mod harness;

mod agent;
mod auth;
mod bad_input;
mod examples;
mod kubectl;
mod nodes;
mod placing;
mod server_kills;
mod servers;
mod store_faults;
mod wordcount;
