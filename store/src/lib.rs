//! Durable, versioned, watchable bytes: what the API server keeps its objects in.
//!
//! The crate knows keys, bytes and versions, never kinds. It promises: a commit is all or nothing
//! and is durable before it is acknowledged; every write of a commit gets its own strictly
//! increasing [`Version`]; a watch shows every write once, in version order; a list is one
//! consistent cut. Three backends keep that promise (memory, embedded, etcd) and one conformance
//! suite runs against all of them.

// A conflict answers with the record found, which callers need at once; boxing it buys nothing.
#![allow(clippy::result_large_err)]

mod check;
mod counters;
mod embedded;
#[cfg(feature = "etcd")]
mod etcd;
mod expiry;
mod history;
mod memory;
mod open;
mod types;

pub use check::{KEY_BYTES_MAX, TXN_GUARDS_MAX};
pub use embedded::{EmbeddedOptions, EmbeddedStore};
#[cfg(feature = "etcd")]
pub use etcd::{EtcdOptions, EtcdStore};
pub use memory::{MEMORY_HISTORY_EVENTS, MemoryStore};
pub use open::{StoreConfig, open};
pub use types::*;
