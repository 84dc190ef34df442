//! The API server: one generic set of handlers over a table of kinds, a watch cache over the store.

pub mod auth;
pub mod body;
pub mod error;
pub mod patch;
pub mod schema;
pub mod cache;
pub mod objects;
pub mod serve;
