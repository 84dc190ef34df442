//! Durable, versioned, watchable bytes: what the API server keeps its objects in.
//!
//! The crate knows keys, bytes and versions, never kinds. It promises: a commit is all or nothing
//! and is durable before it is acknowledged; every write of a commit gets its own strictly
//! increasing [`Version`]; a watch shows every write once, in version order; a list is one
//! consistent cut. Three backends keep that promise (memory, embedded, etcd) and one conformance
//! suite runs against all of them.

mod types;

pub use types::*;
